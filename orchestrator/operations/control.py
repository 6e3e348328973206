"""What a person decides of a rollout, of one server, or of everything: compared with what was seen, and set."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator import words
from orchestrator.domain import rollout as decisions
from orchestrator.domain.rollout import Rollout
from orchestrator.domain.upgrade import Released, Shifted, TurnedBack, Upgrade
from orchestrator.errors import Conflict, NotFound, Outdated, Unreachable, UnsafeStore
from orchestrator.operations.looking import find, rows_of
from orchestrator.store import Entry, Row, Store

TRIES = 20  # of a compare-and-set that others keep winning
LEASED = 3.0  # seconds to let a worker finish what it holds, before its record is changed under it


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a verb did to a rollout. `in_flight`: the servers under way when it was asked. `confirmed`: see there.
    `unread`: servers that could not be asked along, since their records cannot be read, and why. Nothing of ours
    touches them or their traffic until they can; the rollout begins nothing new and does not end."""

    rollout: Rollout
    changed: bool
    confirmed: bool | None = None
    in_flight: tuple[Upgrade, ...] = ()
    servers: tuple[Upgrade, ...] = ()
    unread: Mapping[str, str] = field(default_factory=dict)


def refuse_outdated(rollout: Rollout, seen: int | None) -> None:
    """Raises `Outdated` if its version is not the one that whoever asks has seen; None: asked without having looked."""
    if seen is not None and rollout.version != seen:
        raise Outdated(
            f"rollout {rollout.id} was changed since you looked: it is {rollout.state}",
            traffic="unchanged; nothing was done",
            next=f"changeover show {rollout.id}",
        )


def seen_of(u: Upgrade) -> str:
    """What of a server must be as it was seen for a decision about it to hold: that it goes from step to step must
    not keep it from being rolled back, and that somebody else has decided must."""
    state = "under way" if u.state in ("running", "waiting") else u.state
    return f"{u.life} {u.direction} {state}"


def refuse_moved(u: Upgrade, was: str | None) -> None:
    """Raises `Outdated` if it is not as whoever asks has seen it; None: asked without having looked."""
    if was is not None and seen_of(u) != was:
        now = u.state if u.terminal else f"{u.state}, at {words.where(u)}"
        raise Outdated(
            f"{u.server} was changed since you looked: it is {now}",
            traffic=u.traffic,
            next=f"changeover explain {u.server} --rollout {u.rollout}",
        )


def pause(store: Store, id: str, *, actor: str, why: str = "", seen: int | None = None, dry: bool = False) -> Answer:
    """Nothing new begins; what a worker has in hand finishes its step. Raises `IllegalTransition`; and here as in the
    other verbs, `Outdated` unless its version is `seen`, where that is given. `dry`: nothing is changed; the answer is
    what it would be, and what would be refused is."""
    reason = why or f"paused by {actor}"
    to = decisions.paused
    return _ask(store, id, lambda r: to(r, why=reason, now=store.now()), "paused", actor, reason, seen=seen, dry=dry)


def resume(store: Store, id: str, *, actor: str, seen: int | None = None, dry: bool = False) -> Answer:
    """It goes on where it was. Deadlines of open upgrades move by the pause, before anything may begin again, so that
    none is judged by the time in which it was not allowed to work."""
    was = find(store, id)
    refuse_outdated(was, seen)
    read = None
    if was.state == "paused":
        decisions.resumed(was, failed_before_swap=0, now=store.now())
        if not dry:
            read = _shift(store, was, actor=actor, seen=seen)

    def to(r: Rollout) -> Rollout:
        return decisions.resumed(r, failed_before_swap=store.tally(id).failed_before_swap, now=store.now())

    return _ask(store, id, to, "resumed", actor, "", seen=seen, dry=dry, read=read)


def _shift(store: Store, rollout: Rollout, *, actor: str, seen: int | None) -> tuple[list[Row], dict[str, str]] | None:
    """What was read for it, where nothing had to be shifted."""
    patience = time.monotonic() + LEASED
    read = rows_of(store, rollout)
    open = [row for row in read[0] if row.upgrade.state in ("running", "waiting")]
    for row in open:

        def shifted(u: Upgrade, now: float) -> Upgrade:
            if u.state not in ("running", "waiting"):
                return u
            return u.after(Shifted(seconds=max(0.0, now - (rollout.paused_at or now))))

        unleased = _unleased(store, row, patience)
        entry = Entry(event="Shifted", actor=actor, detail={"why": "the rollout was resumed"})
        _turn(store, unleased, shifted, entry, always=True, seen=seen)
    return None if open else read


def _unleased(store: Store, row: Row, until: float) -> Row:
    """The row once its worker has given it back, or at that time the row as it is."""
    while row.lease_until > store.now() and time.monotonic() < until:
        time.sleep(0.05)
        row = row_of(store, row.upgrade.rollout, row.upgrade.server)
    return row


def approve(
    store: Store,
    id: str,
    *,
    who: str,
    actor: str,
    wave: int | None = None,
    seen: int | None = None,
    dry: bool = False,
) -> Answer:
    """`who` says yes to the wave that waits for it. `wave`: only if it is this one, from 0. Raises `IllegalTransition`
    where none waits, or another's yes is wanted."""

    def to(r: Rollout) -> Rollout:
        return decisions.approved(r, who=who, wave=wave)

    return _ask(store, id, to, "approved", actor, "", seen=seen, dry=dry)


def promote(store: Store, id: str, *, actor: str, seen: int | None = None, dry: bool = False) -> Answer:
    """The bake of its wave ends now. Raises `IllegalTransition` where none bakes."""
    return _ask(store, id, lambda r: decisions.promoted(r, now=store.now()), "promoted", actor, "", seen=seen, dry=dry)


def abort(store: Store, id: str, *, actor: str, why: str = "", seen: int | None = None, dry: bool = False) -> Answer:
    """Nothing new begins, and what was begun is undone (or finished behind its swap, as the fleet file says)."""
    reason = why or f"aborted by {actor}"
    return _ask(store, id, lambda r: decisions.aborting(r, why=reason), "aborting", actor, reason, seen=seen, dry=dry)


def rollback(store: Store, id: str, *, actor: str, why: str = "", seen: int | None = None, dry: bool = False) -> Answer:
    """Every server whose old one is still there goes back to it."""
    reason = why or f"rolled back by {actor}"
    return _ask(
        store, id, lambda r: decisions.rolling_back(r, why=reason), "rolling back", actor, reason, seen=seen, dry=dry
    )


def rollback_server(
    store: Store,
    id: str,
    server: str,
    *,
    actor: str,
    why: str = "",
    seen: int | None = None,
    was: str | None = None,
    dry: bool = False,
) -> Answer:
    """This server goes back to its old one. Raises `PointOfNoReturn` once that is terminated or about to be, `Conflict`
    for one that was left pending by a rollout that is closed, `Outdated` unless it is as it `was` (see `seen_of`)."""
    rollout = find(store, id)
    refuse_outdated(rollout, seen)
    reason = why or f"rolled back by {actor}"
    entry = Entry(event="TurnedBack", actor=actor, detail={"why": reason})

    def back(u: Upgrade, now: float) -> Upgrade:
        return u.after(TurnedBack(why=reason, at=now, asked=True))

    if dry:
        turned, changed = _would_turn(store, rollout, row_of(store, id, server), back, was)
        return Answer(rollout=rollout, changed=changed, servers=(turned,))
    row, changed = _turn(store, row_of(store, id, server), back, entry, seen=seen, was=was)
    if not changed:
        _due_again(store, row)
    return Answer(rollout=rollout, changed=changed, confirmed=confirmed(store), servers=(row.upgrade,))


def retry(
    store: Store,
    id: str,
    servers: Sequence[str] | None,
    *,
    actor: str,
    seen: int | None = None,
    was: str | None = None,
    dry: bool = False,
) -> Answer:
    """A held server goes on where it was; a failed or rolled back one starts anew, with new attempts. None: every
    server that is held or failed. Raises `NotFound` before anything is done if one is unknown, `Outdated` unless each
    is as it `was` (see `seen_of`)."""
    rollout = find(store, id)
    refuse_outdated(rollout, seen)
    known = {name for wave in rollout.waves for name in wave}
    for server in servers or ():
        if server not in known:
            raise NotFound(f"there is no server {server} in rollout {id}", next=f"changeover show {id}")
    unread: Mapping[str, str] = {}
    if servers is None:
        rows, unread = rows_of(store, rollout)
        servers = [row.upgrade.server for row in rows if row.upgrade.state in ("held", "failed")]
    if dry:
        done = [_would_retry(store, rollout, server, was) for server in servers]
    else:
        done = []
        for server in servers:
            done.append(_retry(store, id, server, actor=actor, seen=seen, was=was))
            if done[-1][1]:
                seen = None  # it was so when this began: what has changed since may be by us
    return Answer(
        rollout=find(store, id),
        changed=any(changed for _, changed in done),
        confirmed=None if dry else confirmed(store),
        servers=tuple(u for u, _ in done),
        unread=unread,
    )


def _retry(
    store: Store, id: str, server: str, *, actor: str, seen: int | None, was: str | None
) -> tuple[Upgrade, bool]:
    row = row_of(store, id, server)
    refuse_moved(row.upgrade, was)
    if row.upgrade.state not in ("held", "failed", "rolled_back"):
        _due_again(store, row)
        return row.upgrade, False
    entry = Entry(event="Released", actor=actor, detail={"why": f"retried by {actor}"})
    if row.upgrade.state == "held":
        row, changed = _turn(store, row, _released, entry, seen=seen, was=was)
        return row.upgrade, changed

    upgrades = [row.upgrade]

    def to(r: Rollout) -> Rollout:
        return decisions.reopened(r, upgrades, server)

    to(find(store, id))  # refused before anything is changed
    row, changed = _turn(store, row, _released, entry, seen=seen, was=was)
    # Always a new version: whoever decided before the server was pending again must not end its wave.
    _ask(store, id, to, "reopened", actor, f"retry of {server}", always=True)
    return row.upgrade, changed


def _would_retry(store: Store, rollout: Rollout, server: str, was: str | None) -> tuple[Upgrade, bool]:
    row = row_of(store, rollout.id, server)
    if row.upgrade.state in ("failed", "rolled_back"):
        decisions.reopened(rollout, [row.upgrade], server)
    return _would_turn(store, rollout, row, _released, was)


def _due_again(store: Store, row: Row) -> None:
    """One that is under way already does not lie in its agenda for longer than its record asks for."""
    if row.upgrade.state in ("running", "waiting"):
        store.mend(row.upgrade.rollout, [row], late=0.0)


def _released(u: Upgrade, now: float) -> Upgrade:
    return u.after(Released(at=now)) if u.state in ("held", "failed", "rolled_back") else u


def confirmed(store: Store) -> bool | None:
    """Whether what was done before this call is on a replica too: None where the server has none. False is no failure
    of what was done: it is done, and would be lost with its server. Asking again, or doing it again, is safe."""
    try:
        return store.confirmed()
    except (Unreachable, UnsafeStore):  # of all moments, right after it had answered
        return False


def _ask(
    store: Store,
    id: str,
    to: Callable[[Rollout], Rollout],
    event: str,
    actor: str,
    why: str,
    *,
    always: bool = False,
    seen: int | None = None,
    dry: bool = False,
    read: tuple[list[Row], dict[str, str]] | None = None,
) -> Answer:
    """`always`: stored as a new version even where nothing of it changes. `seen`: only if this is its version. `dry`:
    nothing is stored, and the answer says what would be. `read`: its servers, if they were read for this already."""
    for _ in range(TRIES):
        was = find(store, id)
        refuse_outdated(was, seen)
        if read is None:
            read = rows_of(store, was)
        rows, unread = read
        flying = tuple(row.upgrade for row in rows if decisions.in_flight(row.upgrade))
        now = to(was)
        if dry:
            return Answer(rollout=now, changed=now != was, in_flight=flying, unread=unread)
        if now == was and not always:
            return Answer(rollout=was, changed=False, confirmed=confirmed(store), in_flight=flying, unread=unread)
        stored = store.change(was, now, entry=Entry(event=event, actor=actor, detail={"why": why} if why else {}))
        if stored is not None:
            return Answer(rollout=stored, changed=True, confirmed=confirmed(store), in_flight=flying, unread=unread)
    raise _contended(f"rollout {id}", f"changeover show {id}")


def _turn(
    store: Store,
    row: Row,
    to: Callable[[Upgrade, float], Upgrade],
    entry: Entry,
    *,
    always: bool = False,
    seen: int | None = None,
    was: str | None = None,
) -> tuple[Row, bool]:
    """The record moved on, and due at once. `always`: made due even where nothing of it changes. Raises `Conflict` when
    its rollout is closed: another one may have its servers by now; `Outdated` unless, in the moment of the change, its
    rollout is of the version `seen`, and it is as it `was`."""
    for _ in range(TRIES):
        refuse_moved(row.upgrade, was)
        now = store.now()
        moved = to(row.upgrade, now)
        if moved == row.upgrade and not (always and moved.state in ("running", "waiting")):
            return row, False
        at_rest = moved.state in ("pending", "held") or moved.settled
        stored = store.turn(row, moved, entry=entry, due=None if at_rest else now, seen=seen)
        if stored is not None:
            return stored, True
        rollout = find(store, row.upgrade.rollout)
        refuse_closed(rollout, row.upgrade)
        refuse_outdated(rollout, seen)
        row = row_of(store, row.upgrade.rollout, row.upgrade.server)
    raise _contended(row.upgrade.server, f"changeover explain {row.upgrade.server}")


def _would_turn(
    store: Store, rollout: Rollout, row: Row, to: Callable[[Upgrade, float], Upgrade], was: str | None
) -> tuple[Upgrade, bool]:
    refuse_moved(row.upgrade, was)
    moved = to(row.upgrade, store.now())
    if moved != row.upgrade:
        refuse_closed(rollout, row.upgrade)
    return moved, moved != row.upgrade


def refuse_closed(rollout: Rollout, u: Upgrade) -> None:
    """Raises `Conflict` when it is closed: another rollout may have its servers by now."""
    if rollout.closed:
        raise Conflict(
            f"rollout {rollout.id} is closed, and {u.server} stays as it left it: {u.state}",
            traffic="unchanged",
            next="changeover plan FILE",
        )


def row_of(store: Store, rollout: str, server: str) -> Row:
    row = store.row(rollout, server)
    if row is None:
        raise NotFound(f"there is no server {server} in rollout {rollout}", next=f"changeover show {rollout}")
    return row


def _contended(what: str, next: str) -> Conflict:
    return Conflict(f"{what} was changed by others {TRIES} times in a row; nothing was done", next=next)
