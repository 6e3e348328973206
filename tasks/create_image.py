"""An image of A, made while A serves, and where the fleet file says so, while it writes nothing.

An image counts as whole when one and the same freeze was on before it was asked for and after its moment had passed.
One that was there already, or whose freeze was over too soon, is thrown away for another attempt. Whatever happens
here, A is released: by this step, by its undo, and by its own watchdog if neither comes to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from orchestrator.domain.upgrade import Intent, Observe, Upgrade
from orchestrator.store import LedgerItem
from providers.compute import Image
from providers.errors import Busy, NotFound, NotYetVisible, Refused, Throttled, Transient, Unauthorized
from providers.guest.quiesce import Hook
from tasks import cleaning, drain_old, keys, membership
from tasks.step import Done, NeedsPerson, Wait
from tasks.world import Turn

SURE = 3  # looks in a row that find A not serving before a person is asked
SOON = 1.0  # seconds between two looks while A writes nothing
SETTLES = 60.0  # seconds after which an image shows that was made: a cloud's own lists may lag behind it


def params(turn: Turn) -> Mapping[str, Any]:
    return {"source": turn.server.id}


def do(turn: Turn, intent: Intent) -> Done | Wait:
    hook = _hook(turn)
    if hook is None:
        return _do(turn, intent)
    try:
        return _do(turn, intent, hook)
    except Exception:
        if turn.upgrade.notes.get("frozen") or "image" not in turn.upgrade.notes:
            with suppress(Exception):  # who cannot be reached now releases itself
                turn.guest.release(intent.params["source"], "", hook=hook)
        raise


def _do(turn: Turn, intent: Intent, hook: Hook | None = None) -> Done | Wait:
    frozen = bool(turn.upgrade.notes.get("frozen"))
    image = _find(turn)
    known, made = turn.upgrade.notes.get("image"), turn.upgrade.notes.get("made", turn.now)
    if image is None and known:
        if turn.now - made < SETTLES:
            return _wait(turn, known, f"image {known} of {turn.upgrade.server} does not show yet", made)
        raise Refused(f"image {known} of {turn.upgrade.server} is gone: somebody has deleted it")
    if image is None or image.state == "available":
        membership.prepare(turn)  # once more at the end: what was asked for may have to be seen before its time runs
    if image is None:
        try:
            if hook is not None:
                by = turn.now + turn.settled_after  # a worker that is frozen just now may go on much later
                turn.guest.quiesce(intent.params["source"], intent.token, hook=hook, by=by)
                frozen = True
            image = turn.compute.ensure_image(
                keys.key(turn.upgrade, intent, role="image"), source=intent.params["source"]
            )
        except NotFound as error:
            # Not a failure of ours to turn back from: that would say that it serves.
            raise NeedsPerson(f"{turn.upgrade.server} is gone: {error}") from error
        if hook is not None and image.adopted:
            raise Refused(
                f"nobody knows whether {turn.upgrade.server} was quiesced when image {image.id} was made of it"
            )
    if hook is not None and frozen:
        if not _taken(turn, image):
            reason = f"{turn.upgrade.server} is quiesced until the moment of image {image.id} has passed"
            return Wait(reason=reason, every=SOON, notes={"image": image.id, "made": made, "frozen": True})
        if not turn.guest.release(intent.params["source"], intent.token, hook=hook):
            raise Refused(
                f"{turn.upgrade.server} was not quiesced any more when the moment of image {image.id} had passed: give "
                f"it longer than {hook.seconds:g} s (quiesce.timeout)"
            )
    match image.state:
        case "available":
            item = LedgerItem(
                key=f"image:{intent.token}", kind="image", server=turn.upgrade.server, state="live", id=image.id
            )
            former = turn.upgrade.intents("create_image")[:-1]
            if former:  # what the store has forgotten of is ended with the next look at all that was made
                cleaning.end_images(turn, but=image.id)
            return Done(
                result={"image": image.id, "disk": image.disk}, ledger=(*cleaning.ended(turn, "image", former), item)
            )
        case "pending":
            return _wait(turn, image.id, f"image {image.id} of {turn.upgrade.server} is being made", made)
        case "failed":
            raise Refused(f"image {image.id} failed: {image.reason or 'no reason given'}")


def _hook(turn: Turn) -> Hook | None:
    said = turn.fleet.quiesce
    return None if said is None else Hook(before=said.before, after=said.after, seconds=said.timeout)


def _taken(turn: Turn, image: Image) -> bool:
    """Where nobody can tell just now, it is asked again."""
    if image.state != "pending":
        return True
    try:
        return turn.compute.taken(image.id)
    except (Busy, NotYetVisible, Throttled, Transient):
        return False


def _find(turn: Turn) -> Image | None:
    """What this intent has made, as last seen; None if it is not known to have made anything."""
    known = turn.upgrade.notes.get("image")
    return turn.look_at_image(known) if known else None


def _wait(turn: Turn, image: str, reason: str, made: float) -> Wait:
    observe = Observe(kind="image", lane=turn.fleet.lane, ids=(image,))
    return Wait(reason=reason, every=turn.fleet.rollout.poll, observe=observe, notes={"image": image, "made": made})


def check(u: Upgrade) -> bool:
    assert u.seen is not None
    if not u.seen.answers:
        return bool(u.seen.at - u.notes.get("made", 0.0) >= SETTLES)
    return any(answer["state"] != "pending" for answer in u.seen.answers.values())


def undo(turn: Turn) -> Done | Wait:
    if (wait := _released(turn)) is not None:
        return wait
    gone = cleaning.end_images(turn)
    if (wait := cleaning.still_to_come(turn, "create_image", gone)) is not None:
        return wait
    if sick := membership.not_serving(turn, membership.old_members(turn.server.seats)):
        looks = int(turn.upgrade.notes.get("sick", 0)) + 1
        if looks < SURE:
            return Wait(reason=f"{sick}; making sure", every=1.0, notes={**turn.upgrade.notes, "sick": looks})
        raise NeedsPerson(f"all is undone, but the old server does not serve: {sick}. Bring it up, then retry")
    if turn.upgrade.past_swap and (wait := membership.out_again(turn)) is not None:
        return wait
    drain_old.let_go(turn)
    membership.settled(turn)
    return Done(
        result={"deleted": list(gone)}, ledger=cleaning.ended(turn, "image", turn.upgrade.intents("create_image"))
    )


def _released(turn: Turn) -> Wait | None:
    """None once nothing is on in A, be it that its own watchdog has seen to it: who does not answer is not waited for
    any longer than that takes, counted from the last moment at which a call of ours may have frozen it."""
    if (hook := _hook(turn)) is None:
        return None
    try:
        turn.guest.release(turn.server.id, "", hook=hook)
    except NotFound:
        return None  # what is gone writes nothing
    except (Transient, Unauthorized) as error:
        by = float(turn.upgrade.notes.get("released_by", turn.now + turn.settled_after + hook.seconds))
        if turn.now >= by:
            return None
        reason = f"{turn.upgrade.server} is released by its own watchdog, since it cannot be told to: {error}"
        every = min(turn.fleet.rollout.poll, by - turn.now)
        return Wait(reason=reason, every=every, notes={**turn.upgrade.notes, "released_by": by})
    return None
