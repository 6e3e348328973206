"""Ending what was made for an upgrade: shared by the undo of create_image and provision, and by later attempts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.domain.orphans import Made, gives
from orchestrator.domain.upgrade import Intent, Upgrade
from orchestrator.store import Kind, LedgerItem
from providers.compute import Image, Server
from tasks import keys
from tasks.step import Wait
from tasks.world import Turn


def end_images(turn: Turn, *, but: str = "") -> Mapping[str, str]:
    """Every image that was made for this upgrade is gone, but that one: their ids, and the names that are known."""
    gone = _made(turn, Image, step="create_image", field="image", but=but)
    for id in gone:
        turn.compute.delete_image(id)
    return gone


def end_servers(turn: Turn, *, but: str = "") -> Mapping[str, str]:
    """Every server that was made for this upgrade is gone or going, but that one: ids, and the names that are known."""
    gone = _made(turn, Server, step="provision", field="server", but=but)
    for id in gone:
        turn.compute.terminate(id)
    return gone


def end_others(turn: Turn, *, server: str, image: str) -> None:
    """All that was made for this upgrade is gone or going, but these two: what was refused may have been made all the
    same, and the store may have forgotten an attempt with its last second."""
    found = turn.looks.inventory(keys.ours(turn.upgrade))
    for id in _made(turn, Server, step="provision", field="server", but=server, found=found):
        turn.compute.terminate(id)
    for id in _made(turn, Image, step="create_image", field="image", but=image, found=found):
        turn.compute.delete_image(id)


def _made(
    turn: Turn,
    kind: type[Image] | type[Server],
    *,
    step: str,
    field: str,
    but: str,
    found: Sequence[Server | Image] | None = None,
) -> Mapping[str, str]:
    """What was found by its tags, which a provider may show late, and what the record itself remembers. Many may write
    a tag: what has another name than we would have given it is somebody else's."""
    u = turn.upgrade
    what: Made = "image" if kind is Image else "server"
    if found is None:
        found = turn.compute.inventory(keys.ours(u))
    named = {
        thing.id: thing.name
        for thing in found
        if isinstance(thing, kind)
        and gives(thing.name, kind=what, rollout=u.rollout, server=u.server, fleet=turn.fleet, upgrade=u)
    }
    remembered = [str(known[field]) for known in (u.results.get(step, {}), u.notes) if known.get(field)]
    return {id: name for id, name in {**dict.fromkeys(remembered, ""), **named}.items() if id != but}


def still_to_come(turn: Turn, step: str, gone: Mapping[str, str]) -> Wait | None:
    """A wait, while something may still be made: for an attempt whose answer nobody heard, and that was not found by
    its name either, or for one of which a call went without an answer though another was answered. A call of a worker
    that was cut off may be under way, and what it made may not show yet. When the time in which such a call can end is
    over, and another look has found nothing, it is gone."""
    u = turn.upgrade
    doubts = [u.doubted.get(intent.token, 0.0) for intent in u.intents(step)]
    if any(intent.name not in gone.values() for intent in u.unanswered(step)):
        doubts.append(turn.now + turn.settled_after)
    until = float(u.notes.get("settles", max(doubts, default=0.0)))
    if turn.now >= until:
        return None
    what = "image" if step == "create_image" else "server"
    return Wait(
        reason=f"nobody knows whether the {what} that was asked for will still be made; looking again",
        every=until - turn.now,
        notes={**u.notes, "settles": until},
    )


def doubted_until(u: Upgrade) -> float:
    """Until when an unanswered call of any of its steps may still take effect, epoch seconds; 0 when none may."""
    return max(u.doubted.values(), default=0.0)


def ended(turn: Turn, kind: Kind, intents: Sequence[Intent]) -> tuple[LedgerItem, ...]:
    """What the ledger says of them from now on."""
    return tuple(
        LedgerItem(key=f"{kind}:{intent.token}", kind=kind, server=turn.upgrade.server, state="deleted")
        for intent in intents
    )
