"""Ending what was made for an upgrade: shared by the undo of create_image and provision, and by later attempts."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.domain.upgrade import Intent
from orchestrator.store import Kind, LedgerItem
from providers.compute import Image, Server
from tasks import keys
from tasks.world import Turn


def end_images(turn: Turn, *, but: str = "") -> list[str]:
    """Every image that was made for this upgrade is gone, but that one; their ids."""
    found = [thing.id for thing in turn.compute.inventory(keys.ours(turn.upgrade)) if isinstance(thing, Image)]
    gone = _with_known(turn, found, step="create_image", field="image", but=but)
    for id in gone:
        turn.compute.delete_image(id)
    return gone


def end_servers(turn: Turn, *, but: str = "") -> list[str]:
    """Every server that was made for this upgrade is gone or going, but that one; their ids."""
    found = [thing.id for thing in turn.compute.inventory(keys.ours(turn.upgrade)) if isinstance(thing, Server)]
    gone = _with_known(turn, found, step="provision", field="server", but=but)
    for id in gone:
        turn.compute.terminate(id)
    return gone


def _with_known(turn: Turn, found: Sequence[str], *, step: str, field: str, but: str) -> list[str]:
    """What was found by its tags, which a provider may show late, and what the record itself remembers."""
    u = turn.upgrade
    remembered = [str(known[field]) for known in (u.results.get(step, {}), u.notes) if known.get(field)]
    return [id for id in dict.fromkeys([*found, *remembered]) if id != but]


def ended(turn: Turn, kind: Kind, intents: Sequence[Intent]) -> tuple[LedgerItem, ...]:
    """What the ledger says of them from now on."""
    return tuple(
        LedgerItem(key=f"{kind}:{intent.token}", kind=kind, server=turn.upgrade.server, state="deleted")
        for intent in intents
    )
