"""A out, A proven idle, A stopped and kept: until its time is up, it can be put back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NoReturn

from orchestrator.domain.upgrade import SURE, Intent, Observe, Upgrade
from orchestrator.store import LedgerItem
from providers.compute import Server
from providers.errors import GuardRefused, NotFound
from tasks import keys, membership
from tasks.step import Done, NeedsPerson, StepFailed, Wait
from tasks.world import Turn


def params(turn: Turn) -> Mapping[str, Any]:
    return {"server": turn.server.id}


def do(turn: Turn, intent: Intent) -> Done | Wait:
    old = membership.names(membership.old_members(turn.server.seats))
    address = turn.upgrade.results["provision"]["address"]
    new = membership.names(membership.new_members(turn, address))
    if (wait := membership.take_out(turn, old, server=turn.server.id, serving=new)) is not None:
        return wait
    id, gone = intent.params["server"], False
    try:
        _stop(turn, id)
    except NotFound:  # B serves, as the guards have just seen: no reason to leave it for what is no more
        if (wait := _making_sure(id, turn.upgrade.notes)) is not None:
            return wait
        gone = True
    until = turn.now + turn.fleet.retain.old_servers  # from the answer on: the call itself may have taken its time
    item = LedgerItem(
        key=f"old:{turn.upgrade.server}", kind="old server", server=turn.upgrade.server, state="deleted", id=id
    )
    if not gone:
        item = replace(item, state="retained", until=until)
    return Done(result={"gone" if gone else "stopped": id, "retain_until": until}, ledger=(item,), retain_until=until)


def _stop(turn: Turn, id: str) -> None:
    """Stop A, unless it has come back from this very drain: then whoever asks was frozen, and is late.

    A protection that an earlier rollback of ours had put on it is taken off; anybody else's stays."""
    try:
        turn.compute.stop(id, given={keys.RETURNED: None})
    except GuardRefused:
        server = _found(turn.compute.servers([id], protection=True).get(id))
        if server is None:
            raise NotFound(f"the old server {id} is gone") from None
        came_back = server.tags.get(keys.RETURNED)
        if came_back in (None, keys.drained(turn.fleet, turn.upgrade)):
            raise
        if server.protected and (ours := server.tags.get(keys.PROTECTED)):
            turn.compute.protect(id, on=False, given={keys.PROTECTED: ours})
        turn.compute.stop(id, given={keys.RETURNED: came_back})


def check(u: Upgrade) -> bool:
    assert u.seen is not None
    if u.seen.kind == "server":
        return any(answer["state"] not in ("pending", "stopping") for answer in u.seen.answers.values())
    return membership.worth_waking(u)


def undo(turn: Turn) -> Done | Wait:
    if (wait := put_back(turn)) is not None:
        return wait
    id = turn.server.id
    item = LedgerItem(
        key=f"old:{turn.upgrade.server}", kind="old server", server=turn.upgrade.server, state="live", id=id
    )
    return Done(result={"serving": id}, ledger=(item,))


def put_back(turn: Turn) -> Wait | None:
    """A runs, and serves in all its pools, wherever it was; None when so."""
    id = turn.server.id
    notes = dict(turn.upgrade.notes)
    if not notes.get("started"):
        server = _found(turn.compute.servers([id], protection=True).get(id))
        if server is None:
            return _making_sure(id, notes) or _ask(turn, id)
        _protect(turn, server)
        _start(turn, id)
        notes["started"] = True
    if not notes.get("running"):
        server = _found(turn.look_at_server(id))
        if server is None:
            return _making_sure(id, notes) or _ask(turn, id)
        if server.state in ("pending", "stopping"):
            observe = Observe(kind="server", lane=turn.fleet.lane, ids=(id,))
            reason = f"the old server {id} is starting again"
            return Wait(reason=reason, every=turn.fleet.rollout.poll, observe=observe, notes=notes)
        if server.state == "stopped":
            _start(turn, id)
            return Wait(reason=f"the old server {id} had stopped again", every=turn.fleet.rollout.poll, notes=notes)
        if server.state != "running":
            raise StepFailed(f"the old server {id} is {server.state}: {server.reason}; B goes on serving")
        notes["running"] = True
    members = membership.old_members(turn.server.seats, life=turn.upgrade.life)
    return membership.bring_in(turn, members, notes=notes, back=True)


def _found(server: Server | None) -> Server | None:
    """None too for one that is terminated: some providers show it for a while."""
    return server if server is not None and server.state != "terminated" else None


def _making_sure(id: str, notes: Mapping[str, Any]) -> Wait | None:
    """A was not found. A provider may overlook it once: it is believed when it was so in some looks in a row."""
    looks = int(notes.get("gone", 0)) + 1
    if looks >= SURE:
        return None
    return Wait(reason=f"the old server {id} is gone; making sure", every=1.0, notes={**notes, "gone": looks})


def _ask(turn: Turn, id: str) -> NoReturn:
    settle = f"changeover settle {turn.upgrade.rollout} {turn.upgrade.server} --serving new --because TEXT"
    raise NeedsPerson(
        f"the old server {id} is gone, deleted by somebody else: nothing can be put back, and the new one stays in its "
        f"pools. Once {id} is in none of them any more: {settle}"
    )


def _protect(turn: Turn, server: Server) -> None:
    """First of all: a late stop or terminate of a worker that was frozen meets the provider's own refusal. A protection
    that somebody else has put on A is theirs, now and at the end."""
    this = keys.drained(turn.fleet, turn.upgrade)
    theirs = server.protected and keys.PROTECTED not in server.tags
    tags = {keys.PHASE: "rollback", keys.RETURNED: this, keys.PROTECTED: None if theirs else this}
    seen = {name: server.tags.get(name) for name in (keys.PHASE, keys.RETURNED)}
    turn.compute.tag(server.id, {**tags, keys.DISPOSABLE: None, **keys.undoing(turn.upgrade)}, given=seen)
    if not theirs:
        turn.compute.protect(server.id, on=True, given={keys.PROTECTED: this})


def _start(turn: Turn, id: str) -> None:
    """Unless it is no longer being put back: a late start must not wake up what was drained anew."""
    turn.compute.start(id, given={keys.PHASE: "rollback", keys.RETURNED: keys.drained(turn.fleet, turn.upgrade)})


def let_go(turn: Turn) -> None:
    """At the end of a rollback A is as it was before: its protection is off if it was ours, and its phase is over. What
    stays is the note that it has come back, which voids a stop that is still on its way. One that never left has
    none."""
    id, this = turn.server.id, keys.drained(turn.fleet, turn.upgrade)
    if not turn.upgrade.has_begun("drain_old"):
        server = turn.compute.servers([id]).get(id)
        if server is None or server.tags.get(keys.RETURNED) != this:
            return
    try:
        turn.compute.protect(id, on=False, given={keys.PROTECTED: this})
    except GuardRefused:
        server = turn.compute.servers([id]).get(id)
        if server is not None and server.tags.get(keys.PROTECTED) == this:
            raise  # else it is not ours, or was taken off already
    turn.compute.tag(id, {keys.PHASE: None, keys.PROTECTED: None}, given={keys.RETURNED: this})
