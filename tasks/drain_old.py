"""A out, A proven idle, A stopped and kept: until its time is up, it can be put back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.domain.upgrade import Intent, Observe, Upgrade
from orchestrator.store import LedgerItem
from providers.errors import GuardRefused
from tasks import keys, membership
from tasks.step import Done, StepFailed, Wait
from tasks.world import Turn


def params(turn: Turn) -> Mapping[str, Any]:
    return {"server": turn.server.id}


def do(turn: Turn, intent: Intent) -> Done | Wait:
    old = membership.names(membership.old_members(turn.server.seats))
    address = turn.upgrade.results["provision"]["address"]
    new = membership.names(membership.new_members(turn, address))
    if (wait := membership.take_out(turn, old, serving=new)) is not None:
        return wait
    _stop(turn, intent.params["server"])
    until = turn.now + turn.fleet.retain.old_servers
    item = LedgerItem(
        key=f"old:{turn.upgrade.server}",
        kind="old server",
        server=turn.upgrade.server,
        state="retained",
        id=turn.server.id,
        until=until,
    )
    return Done(result={"stopped": turn.server.id, "retain_until": until}, ledger=(item,), retain_until=until)


def _stop(turn: Turn, id: str) -> None:
    """Stop A. A protection that an earlier rollback of ours had put on it is taken off; anybody else's stays."""
    try:
        turn.compute.stop(id)
    except GuardRefused:
        server = turn.compute.servers([id]).get(id)
        if server is None or server.tags.get(keys.PHASE) != "rollback":
            raise
        turn.compute.protect(id, on=False)
        turn.compute.stop(id)


def check(u: Upgrade) -> bool:
    assert u.seen is not None
    if u.seen.kind == "server":
        return any(answer["state"] not in ("pending", "stopping") for answer in u.seen.answers.values())
    return membership.worth_waking(u)


def undo(turn: Turn) -> Done | Wait:
    id = turn.server.id
    notes = dict(turn.upgrade.notes)
    if not notes.get("started"):
        # First of all: a late stop or terminate of a worker that was frozen meets the provider's own refusal.
        turn.compute.tag(id, {keys.PHASE: "rollback", keys.DISPOSABLE: None, **keys.undoing(turn.upgrade)})
        turn.compute.protect(id, on=True)
        turn.compute.start(id)
        notes["started"] = True
    if not notes.get("running"):
        server = turn.look_at_server(id)
        if server is None or server.state in ("pending", "stopping"):
            observe = Observe(kind="server", lane=turn.fleet.lane, ids=(id,))
            reason = f"the old server {id} is starting again"
            return Wait(reason=reason, every=turn.fleet.rollout.poll, observe=observe, notes=notes)
        if server.state == "stopped":
            turn.compute.start(id)
            return Wait(reason=f"the old server {id} had stopped again", every=turn.fleet.rollout.poll, notes=notes)
        if server.state != "running":
            raise StepFailed(f"the old server {id} is {server.state}: {server.reason}; B goes on serving")
        notes["running"] = True
    wait = membership.bring_in(turn, membership.old_members(turn.server.seats), notes=notes, back=True)
    if wait is not None:
        return wait
    item = LedgerItem(
        key=f"old:{turn.upgrade.server}", kind="old server", server=turn.upgrade.server, state="live", id=id
    )
    return Done(result={"serving": id}, ledger=(item,))
