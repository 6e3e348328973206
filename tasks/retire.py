"""What becomes of A and of the image when their time is up. Its intent is the point of no return."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from orchestrator.domain.upgrade import Intent, Upgrade
from orchestrator.store import LedgerItem
from providers.errors import GuardRefused, NotFound
from tasks import cleaning, keys, membership
from tasks.step import Done, Wait
from tasks.world import Turn


def params(turn: Turn) -> Mapping[str, Any]:
    """Raises `GuardRefused` while B does not serve: looked at now, since it may have fallen ill a moment ago."""
    address = turn.upgrade.results["smoke_test"]["address"]
    if sick := membership.not_serving(turn, membership.new_members(turn, address)):
        raise GuardRefused(f"the old server of {turn.upgrade.server} is kept on: {sick}")
    image = turn.upgrade.results["create_image"]["image"]
    return {"server": turn.server.id, "image": image, "delete_image": turn.fleet.retain.images == "delete"}


def do(turn: Turn, intent: Intent) -> Done | Wait:
    wanted = intent.params
    name = turn.upgrade.server
    with suppress(NotFound):  # it is gone: by an earlier try whose end nobody heard of, or by itself
        turn.compute.tag(wanted["server"], {keys.DISPOSABLE: "1"})
    turn.compute.terminate(wanted["server"])
    membership.settled(turn)
    ledger = [
        LedgerItem(key=f"old:{name}", kind="old server", server=name, state="deleted", id=wanted["server"]),
    ]
    if wanted["delete_image"]:
        turn.compute.delete_image(wanted["image"])
        made = turn.upgrade.intents("create_image")[-1].token
        ledger.append(LedgerItem(key=f"image:{made}", kind="image", server=name, state="deleted", id=wanted["image"]))
    if until := cleaning.doubted_until(turn.upgrade):
        if turn.now < until:
            return Wait(reason="a call that was never answered may still make something", every=until - turn.now)
        new = turn.upgrade.results["provision"]["server"]
        cleaning.end_others(turn, server=new, image="" if wanted["delete_image"] else wanted["image"])
    return Done(result={"terminated": wanted["server"]}, ledger=tuple(ledger))


def check(u: Upgrade) -> bool:
    return u.seen is not None


def undo(turn: Turn) -> Done | Wait:
    raise AssertionError(f"{turn.upgrade.server}: nothing undoes a termination")
