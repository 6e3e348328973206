"""An image of A, made while A serves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.domain.upgrade import Intent, Observe, Upgrade
from orchestrator.store import LedgerItem
from providers.compute import Image
from providers.errors import NotFound, Refused
from tasks import cleaning, drain_old, keys, membership
from tasks.step import Done, NeedsPerson, Wait
from tasks.world import Turn

SURE = 3  # looks in a row that find A not serving before a person is asked
SETTLES = 60.0  # seconds after which an image shows that was made: a cloud's own lists may lag behind it


def params(turn: Turn) -> Mapping[str, Any]:
    return {"source": turn.server.id}


def do(turn: Turn, intent: Intent) -> Done | Wait:
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
            image = turn.compute.ensure_image(
                keys.key(turn.upgrade, intent, role="image"), source=intent.params["source"]
            )
        except NotFound as error:
            # Not a failure of ours to turn back from: that would say that it serves.
            raise NeedsPerson(f"{turn.upgrade.server} is gone: {error}") from error
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
