"""What rollouts have left over: kept on purpose, due to go, or found without an owner."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.domain.orphans import Patience, Sighting
from orchestrator.domain.upgrade import Upgrade
from orchestrator.errors import ChangeoverError, UnsafeStore
from orchestrator.ids import new_id
from orchestrator.operations.asking import Asker, Waiter, await_answer
from orchestrator.operations.looking import rows_of
from orchestrator.store import LedgerItem, Row, Store

if TYPE_CHECKING:
    from orchestrator.dispatch import Sender

YES = 600.0  # seconds for which a person's yes to what is left over waits for a worker


@dataclass(frozen=True, kw_only=True)
class Kept:
    """One entry of a rollout's ledger."""

    rollout: str
    item: LedgerItem

    @property
    def yours(self) -> bool:
        """Whether a person's `settle` has left it behind: nothing of ours ends it."""
        return self.item.until is None and self.item.state in ("quarantined", "retained")


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """`due`: (rollout, server) whose old server's time is up; `sent`: those sent on their way now; `kept_on`: those
    whose old server is kept though its time is up, and why. `orphans` carry our mark and nobody accounts for them;
    something is due for the `ripe` among them (keys), as the workers' `patience` has it. `done` is what became of some
    now, `not_done` what did not, and why. `searched`: the lanes that this Redis knows of. `unread`: lanes that could
    not be asked, and rollouts that could not be read, and why."""

    kept: tuple[Kept, ...]
    due: tuple[tuple[str, str], ...]
    sent: tuple[tuple[str, str], ...] = ()
    kept_on: Mapping[tuple[str, str], str] = field(default_factory=dict)
    orphans: tuple[Sighting, ...] = ()
    ripe: frozenset[str] = frozenset()
    patience: Patience | None = None
    done: tuple[str, ...] = ()
    not_done: tuple[str, ...] = ()
    unread: Mapping[str, str] = field(default_factory=dict)
    searched: tuple[str, ...] = ()


def gc(
    store: Store,
    ask: Asker,
    publish: Callable[[], Sender],
    *,
    collect: bool,
    grace: float,
    foreign: bool = False,
    only: Sequence[str] = (),
    waiter: Waiter | None = None,
) -> Inventory:
    """Every billable thing that we know of, what is due to go, and what nobody accounts for. With `collect` the
    retirements that are due are sent on their way now, and of the orphans those that were seen for long enough go into
    quarantine, and those that were in it for long enough are deleted; `foreign` ones only when told, and a server among
    them only when `only` has its id. Nothing else is touched, and with `only` nothing that it does not name."""
    rollouts = store.rollouts()
    kept: list[Kept] = []
    due: list[Row] = []
    kept_on: dict[tuple[str, str], str] = {}
    unread = dict(store.unread())
    now = store.now()
    for rollout in rollouts:
        try:
            if not rollout.closed:
                rows, those = rows_of(store, rollout)
                up = [row for row in rows if _time_is_up(row.upgrade, now)]
                due += [row for row in up if not row.upgrade.keeps_old]
                kept_on |= {(rollout.id, u.server): u.keeps_old for u in (row.upgrade for row in up) if u.keeps_old}
                unread |= {f"{rollout.id}/{server}": why for server, why in those.items()}
        except UnsafeStore as error:  # it holds up nothing else
            unread[rollout.id] = error.message
    sent = [row for row in due if collect and not only and _send(store, publish, row, grace)]
    from orchestrator.lanes import lanes

    done: list[str] = []
    not_done: list[str] = []
    ripe: set[str] = set()
    patience: Patience | None = None
    named = {"only": list(only)} if only else {}  # a worker of the version before knows no such thing
    searched = lanes(store, {})
    for lane in searched:
        request = new_id("q", now)
        try:
            if collect:  # whoever may send a message is not whoever may say yes: the worker believes the store alone
                store.put_document("yes", request, {"lane": lane, "foreign": foreign, **named}, ttl=YES)
            ask("collect", request=request, lane=lane, act=collect, foreign=foreign, **named)
            answer = await_answer(store, "collect", request, waiter or Waiter(timeout=20.0))
            done += answer["done"]
            not_done += answer["not_done"]
            ripe.update(answer.get("due", ()))  # of a worker of the version before there is neither
            patience = Patience(**answer["patience"]) if "patience" in answer else patience
        except ChangeoverError as error:
            unread[lane] = error.message
    for rollout in rollouts:  # now, after what was done
        try:
            kept += [Kept(rollout=rollout.id, item=item) for item in store.ledger(rollout.id)]
        except UnsafeStore as error:
            unread[rollout.id] = error.message
    return Inventory(
        kept=tuple(kept),
        due=tuple((row.upgrade.rollout, row.upgrade.server) for row in due),
        sent=tuple((row.upgrade.rollout, row.upgrade.server) for row in sent),
        kept_on=kept_on,
        orphans=tuple(store.sightings()),
        ripe=frozenset(ripe),
        patience=patience,
        done=tuple(done),
        not_done=tuple(not_done),
        unread=unread,
        searched=tuple(searched),
    )


def _time_is_up(u: Upgrade, now: float) -> bool:
    return u.state == "upgraded" and not u.settled and (u.retain_until or now) <= now


def _send(store: Store, publish: Callable[[], Sender], row: Row, grace: float) -> bool:
    from orchestrator import dispatch

    return dispatch.send(store, publish(), row, grace=grace) is not None
