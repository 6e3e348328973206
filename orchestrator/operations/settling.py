"""Where a person says how a server stands, since nothing else can tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.domain.upgrade import Settled, Side, Upgrade
from orchestrator.errors import BadInput, Conflict, IllegalTransition
from orchestrator.ids import new_id
from orchestrator.operations.asking import Asker, Waiter, await_answer
from orchestrator.operations.control import Answer, confirmed, row_of
from orchestrator.operations.looking import find
from orchestrator.store import Entry, LedgerItem, LedgerState, Store

if TYPE_CHECKING:
    from orchestrator.domain.settlement import Whereabouts


def settle(
    store: Store,
    ask: Asker,
    id: str,
    server: str,
    *,
    serving: Side,
    because: str,
    unchecked: bool,
    actor: str,
    waiter: Waiter | None = None,
) -> Answer:
    """A server that is held, or upgraded while its new one ails, stays as it is: this one of the two serves, and
    nothing more is done for it. A worker looks first whether it does, and whether the other is out of every pool,
    unless `unchecked`. In the ledger, what we made and nobody uses then is quarantined; an old server that is left is
    retained without an end.

    Raises `IllegalTransition` for any other and for one settled the other way, `Conflict` with what was seen.
    """
    from orchestrator.domain.settlement import contradictions

    if not because.strip():
        raise BadInput("a reason is wanted: it is all that will be known of why", place="--because")
    rollout, row = find(store, id), row_of(store, id, server)
    if row.upgrade.terminal and row.upgrade.by_hand and (row.upgrade.state == "upgraded") == (serving == "new"):
        return Answer(rollout=rollout, changed=False, confirmed=confirmed(store), servers=(row.upgrade,))
    event = Settled(serving=serving, why=because, at=store.now())
    if not row.upgrade.asks_person:
        was = "was settled already" if row.upgrade.by_hand else f"is {row.upgrade.state}"
        raise IllegalTransition(
            f"{server} {was}; only a held server can be settled, or one whose new server ails",
            traffic=row.upgrade.traffic,
            next=f"changeover explain {server}",
        )
    seen = None if unchecked else _whereabouts(store, ask, id, server, waiter)
    if seen is not None and (against := contradictions(serving, seen)):
        told = "".join(f"\n  {line}" for line in against)
        raise Conflict(
            f"{server} cannot be settled as served by its {serving} server:{told}",
            traffic="; ".join(member for member in seen.told() if "pool" in member),
            next=f"bring that about and repeat it, or add --unchecked: changeover settle {id} {server} --help",
        )
    old = _old_id(store, id, server)
    event = replace(event, old_gone=row.upgrade.old_lost or (seen is not None and seen.gone(old)))
    left = _left_behind(store.ledger(id), row.upgrade, event, seen, old)
    entry = Entry(
        event="Settled",
        actor=actor,
        detail={
            "why": because,
            "serving": serving,
            "checked": seen is not None,
            "seen": seen.told() if seen is not None else [],
            "left": [f"{item.kind} {item.id} {item.state}" for item in left],
        },
    )
    stored = store.turn(row, row.upgrade.after(event), entry=entry, due=None, ledger=left)
    if stored is None:
        raise Conflict(f"{server} was changed meanwhile; nothing was done", next=f"changeover explain {server}")
    return Answer(rollout=rollout, changed=True, confirmed=confirmed(store), servers=(stored.upgrade,))


def _whereabouts(store: Store, ask: Asker, rollout: str, server: str, waiter: Waiter | None) -> Whereabouts:
    from orchestrator.domain.settlement import whereabouts_from

    request = new_id("q", store.now())
    ask("whereabouts", request=request, rollout=rollout, server=server)
    return whereabouts_from(await_answer(store, "whereabouts", request, waiter or Waiter())["seen"])


def _old_id(store: Store, rollout: str, server: str) -> str:
    from orchestrator.domain.plan import plan_from

    spec = store.document("spec", rollout)
    return plan_from(spec["plan"]).server(server).id if spec is not None else ""


def _left_behind(
    ledger: Sequence[LedgerItem], u: Upgrade, event: Settled, seen: Whereabouts | None, old: str
) -> tuple[LedgerItem, ...]:
    """What the ledger says of this server's things from now on."""
    mine = [item for item in ledger if item.server == u.server]
    user = u.results.get("provision", {}).get("server") if event.serving == "new" else None
    left: list[LedgerItem] = []
    for item in mine:
        if item.kind == "old server" or item.state == "deleted" or not item.id:
            continue  # what was only intended may still show: it is looked for until then
        gone = seen is not None and seen.gone(item.id)
        state: LedgerState = "deleted" if gone else "live" if item.id == user else "quarantined"
        left.append(replace(item, state=state, until=None))
    known = {item.id for item in mine}
    left += [
        LedgerItem(key=f"{thing.kind}:{thing.id}", kind=thing.kind, server=u.server, state="quarantined", id=thing.id)
        for thing in (seen.things if seen is not None else ())
        if thing.side == "new" and not thing.gone and thing.id not in (*known, user)
    ]
    key = f"old:{u.server}"
    if event.serving == "new":
        state = "deleted" if event.old_gone else "retained"
        left.append(LedgerItem(key=key, kind="old server", server=u.server, state=state, id=old))
    elif any(item.key == key for item in mine):
        left.append(LedgerItem(key=key, kind="old server", server=u.server, state="live", id=old))
    return tuple(left)
