"""A rollout from nothing but the world, when Redis has lost it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from orchestrator.domain.rollout import Rollout
from orchestrator.errors import BadInput, Conflict, Locked
from orchestrator.ids import new_id
from orchestrator.operations.asking import PATIENCE, Asker, Waiter, await_answer, send_request
from orchestrator.operations.planning import rollout_of
from orchestrator.store import Entry, LedgerItem, LedgerState, Store

if TYPE_CHECKING:
    from orchestrator.domain.fleet import Fleet
    from orchestrator.domain.plan import Plan
    from orchestrator.domain.rebuild import Position, Rebuilt


def rebuild(
    store: Store,
    ask: Asker,
    fleet: Fleet,
    *,
    rollout: str,
    act: bool,
    actor: str,
    without: Collection[str] = (),
    waiter: Waiter | None = None,
) -> tuple[Rebuilt, Rollout | None]:
    """Where every server of this file stands, as the world says; with `act` the rollout is there again, under its own
    id and paused, with its records, locks and ledger. `rollout` says which, where marks of several are found; servers
    in `without` are left out of it, and stay as they are.

    Raises `Conflict` with every reason for which nothing can be rebuilt, and if this Redis knows the rollout already,
    `Locked` if another one holds a server; then nothing was created.
    """
    from orchestrator.domain.rebuild import findings_from
    from orchestrator.domain.rebuild import rebuild as positions_of

    unknown = sorted(set(without) - {server.name for server in fleet.servers})
    left = tuple(server for server in fleet.servers if server.name not in without)
    if unknown or not left:
        what = f"{unknown[0]} is not in the file" if unknown else "nothing of the file is left"
        raise BadInput(what, place="--without", next="changeover rebuild --help")
    fleet = fleet.model_copy(update={"servers": left})
    request = send_request(store, ask, "findings", fleet)
    findings = findings_from(await_answer(store, "findings", request, waiter or Waiter())["findings"])
    found = positions_of(fleet, findings, rollout=rollout, now=store.now(), without=without)
    if found.refusals or found.plan is None:
        told = "".join(f"\n  {line}" for line in found.refusals[:20])
        more = f"\n  and {len(found.refusals) - 20} more" if len(found.refusals) > 20 else ""
        next = "put these right by hand, or leave the server out: changeover rebuild FILE --without NAME"
        if any(thing.quarantined for thing in findings.marked):
            next = (
                "lift the quarantine of what is to serve (start it, take its tag changeover:phase off, put it back "
                "into its pools); then changeover rebuild FILE"
            )
        elif not found.rollout and found.marks:
            next = f"changeover rebuild FILE --rollout {found.marks[-1]}"
        elif not found.rollout and len(found.refusals) == 1:
            next = "changeover plan FILE: there is nothing to rebuild"
        raise Conflict(
            f"where the servers stand cannot be told from the world:{told}{more}",
            traffic="unchanged; nothing was created",
            next=next,
        )
    _refuse_known(store, found.rollout)
    lanes = {server.name: at.lane for at in fleet.places for server in at.servers}
    names = {position.upgrade.server: position.new for position in found.positions if position.new}
    locks = {**fleet.locks, **{f"{lanes[server]}/{new}": server for server, new in names.items()}}
    for lock, server in locks.items():
        if (owner := store.owner_of(lock)) is not None:
            raise Locked(f"{server} belongs to rollout {owner}", next=f"changeover show {owner}")
    return found, _put(store, fleet, found, found.plan, locks, actor) if act else None


def _refuse_known(store: Store, rollout: str) -> None:
    if store.rollout(rollout) is not None:
        raise Conflict(
            f"this Redis knows rollout {rollout}: there is nothing to rebuild",
            traffic="unchanged; nothing was created",
            next=f"changeover show {rollout}",
        )


def _put(store: Store, fleet: Fleet, found: Rebuilt, plan: Plan, locks: Mapping[str, str], actor: str) -> Rollout:
    from orchestrator.domain.rebuild import wave_of

    now = store.now()
    whole = replace(
        rollout_of(fleet, plan, id=found.rollout, now=now, actor=actor),
        state="paused",
        resume_to="running",
        paused_at=now,
        wave=wave_of(found.positions),
        why=f"rebuilt from the world by {actor}: look at each server, then resume",
    )
    from orchestrator.lanes import remember

    # Only one at a time: the file of the rollout that comes to be is to be the one that its records were told by.
    who = f"{actor}:{new_id('q', now)}"
    if store.lease("rebuild", owner=who, seconds=PATIENCE) is None:
        raise Conflict("somebody else is rebuilding at this moment; nothing was created", next="changeover rollouts")
    try:
        _refuse_known(store, whole.id)  # somebody else has rebuilt it since it was looked for
        store.forget_document("spec", whole.id)  # of a rebuild that did not come to its end
        store.put_document("spec", whole.id, {"plan": asdict(plan)})
        remember(store, fleet, whole.id)
        made = store.create(whole, [position.upgrade for position in found.positions], locks=locks)
        store.put_ledger(whole.id, [item for position in found.positions for item in _ledger_of(position)])
        for position in found.positions:
            detail = {"found": position.found, "resumes": position.resumes}
            store.note(whole.id, Entry(event="Rebuilt", actor=actor, detail=detail), server=position.upgrade.server)
    finally:
        store.unlease("rebuild", owner=who)
    return made


def _ledger_of(position: Position) -> list[LedgerItem]:
    u = position.upgrade
    items = [
        LedgerItem(key=f"{kind}:{token}", kind=kind, server=u.server, state="live", id=id)
        for kind, token, id in position.made
    ]
    if u.state == "upgraded":
        state: LedgerState = "deleted" if u.old_gone else "retained"
        old = LedgerItem(key=f"old:{u.server}", kind="old server", server=u.server, state=state, id=position.old.id)
        items.append(replace(old, until=None if u.old_gone else u.retain_until))
    return items
