"""How a server comes into its pools, and how it leaves them: shared by swap and drain_old, forward and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from orchestrator.domain.plan import Seat, generation
from orchestrator.domain.upgrade import Observe, Upgrade
from providers.traffic import Guard, Member, MemberView
from tasks.step import NeedsPerson, Wait
from tasks.world import Turn

POLL = 0.2  # seconds between looks at a balancer that has no pace of its own: its own checks take about that long


def bring_in(turn: Turn, members: Sequence[tuple[str, Member]], *, notes: Mapping[str, Any], back: bool) -> Wait | None:
    """Advance (pool, member) pairs until all serve in the balancer's own view; None when they do.

    `back` restores a former member rather than adding a new one."""
    waiting: list[MemberView] = []
    act = turn.traffic.restore if back else turn.traffic.add
    for pool, member in members:
        with turn.writer_of(pool):
            view = act(pool, member)
            if view.actionable and view.state != "serving":  # the balancer says that the next advance is due already
                view = act(pool, member)
        if view.state != "serving":
            waiting.append(view)
    if not waiting:
        return None
    pairs = [(pool, member.name) for pool, member in members]
    first = waiting[0]
    reason = f"{first.name} is {first.state} in the balancer" + (f" ({first.detail})" if first.detail else "")
    return _look(turn, "proven", pairs, reason, {**notes, "wanted": "serving"})


def take_out(
    turn: Turn, seats: Sequence[tuple[str, str]], *, server: str, serving: Sequence[tuple[str, str]]
) -> Wait | None:
    """Advance (pool, member name) pairs of that server until the balancer knows none of them any more; None when so.

    In each pool, `serving` must be up there, and enough others, at the very moment (the provider refuses otherwise).
    Requests in flight have until the drain's deadline; then they are cut, or a person is asked."""
    if not turn.traffic.caps.counts_sessions:
        return _take_out_uncounted(turn, seats, server=server, serving=serving)
    drain = turn.fleet.rollout.drain
    notes = dict(turn.upgrade.notes)
    late = turn.now >= notes.setdefault("drained_by", turn.now + drain.deadline)
    left: list[MemberView] = []
    for pool, name in seats:
        view = _seen_draining(turn, pool, name)
        if view is None or view.state != "draining" or late or (not view.sessions and drain.quiet == 0):
            guard = _guard(turn, pool, serving)
            with turn.writer_of(pool):
                cut = late and drain.at_deadline == "cut"
                view = turn.traffic.remove(pool, name, guard=guard, cut=cut)
                if (
                    view.actionable and view.state == "draining" and drain.quiet == 0
                ):  # idle already, and nothing to wait for
                    view = turn.traffic.remove(pool, name, guard=guard, cut=cut)
        if view.state != "absent":
            left.append(view)
    if not left:
        return None
    sessions = sum(view.sessions for view in left)
    if late and drain.at_deadline == "keep" and sessions:
        these = "1 request or connection" if sessions == 1 else f"{sessions} requests or connections"
        raise NeedsPerson(
            f"{left[0].name} still has {these} after {drain.deadline:g} s; "
            "it drains and goes on serving them; a retry gives them as long again"
        )
    if not sessions and all(view.state == "draining" for view in left) and not late:
        # Idle as seen once. The next look, a quiet time later, is made by `remove` itself, at the very moment.
        return Wait(reason=f"{left[0].name} is idle; making sure", every=max(0.05, drain.quiet), notes=notes)
    reason = f"{left[0].name} is {left[0].state}, {sessions} session{'' if sessions == 1 else 's'} left"
    return _look(turn, "idle", list(seats), reason, notes)


def _guard(turn: Turn, pool: str, serving: Sequence[tuple[str, str]]) -> Guard:
    return Guard(
        min_healthy=turn.fleet.traffic.pools[pool].min_healthy,
        serving=tuple(other for where, other in serving if where == pool),
    )


def _take_out_uncounted(
    turn: Turn, seats: Sequence[tuple[str, str]], *, server: str, serving: Sequence[tuple[str, str]]
) -> Wait | None:
    """Where the switch does not see sessions: first until nobody is sent there any more, then until the server itself
    has no connection left in its pools, for the quiet time."""
    views = _seen_leaving(turn, seats) or dict(turn.traffic.idle(seats))
    for pool, name in seats:
        for _ in range(2):  # out, and where that shows everywhere at once, noted
            if views[pool, name].state in ("leaving", "absent"):
                break
            with turn.writer_of(pool):
                guard = _guard(turn, pool, serving)
                views[pool, name] = turn.traffic.remove(pool, name, guard=guard, cut=False)
            if not views[pool, name].actionable:
                break
    notes = dict(turn.upgrade.notes)
    going = [view for view in views.values() if view.state not in ("leaving", "absent")]
    if going:
        reason = f"{going[0].name} is {going[0].state}" + (f": {going[0].detail}" if going[0].detail else "")
        return _look(turn, "idle", seats, reason, notes)
    leaving = [(pool, name) for pool, name in seats if views[pool, name].state == "leaving"]
    if leaving and (wait := _until_quiet(turn, server, leaving, notes)) is not None:
        return wait
    for pool, name in leaving:
        with turn.writer_of(pool):
            view = turn.traffic.remove(pool, name, guard=_guard(turn, pool, serving), cut=False)
        if view.state != "absent":
            return _look(turn, "idle", seats, f"{name} is {view.state} once more", notes)
    return None


def _until_quiet(turn: Turn, server: str, leaving: Sequence[tuple[str, str]], notes: Mapping[str, Any]) -> Wait | None:
    """None when it may be stopped: no connection for the quiet time, or past the deadline of a drain that cuts."""
    drain = turn.fleet.rollout.drain
    deadline = notes.get("drained_by", turn.now + drain.deadline)
    if turn.now >= deadline and drain.at_deadline == "cut":
        return None
    notes = {**notes, "drained_by": deadline}
    left = _connections(turn, server, [turn.fleet.traffic.pools[pool].port for pool, _ in leaving])
    if left != 0:
        these = "connections that cannot be counted" if left is None else f"{left} connection{'' if left == 1 else 's'}"
        if turn.now >= deadline:
            raise NeedsPerson(
                f"{server} still has {these} after {drain.deadline:g} s, though no name leads there any more; "
                "it goes on serving them; a retry gives them as long again"
            )
        notes = {what: value for what, value in notes.items() if what != "quiet_since"}
        every = max(turn.traffic.caps.poll, min(1.0, turn.fleet.rollout.poll))
        return Wait(reason=f"{server} still has {these}", every=every, notes=notes)
    since = notes.get("quiet_since", turn.now)
    if (rest := since + drain.quiet - turn.now) <= 0:
        return None
    every = max(0.05, min(max(1.0, turn.traffic.caps.poll), rest))
    return Wait(reason=f"{server} is idle; making sure", every=every, notes={**notes, "quiet_since": since})


def _connections(turn: Turn, server: str, ports: Sequence[int]) -> int | None:
    """Open at those ports of the server, as it sees them itself; 0 where it cannot see them, or does not run; None if
    it runs and does not answer."""
    facts = turn.guest.facts([server], paths=[]).get(server)
    if facts is None:
        found = turn.compute.servers([server]).get(server)
        return 0 if found is None or found.state != "running" else None
    return sum((facts.connections or {}).get(str(port), 0) for port in ports)


def prepare(turn: Turn) -> float:
    """B's pools get ready for it, where that takes time; seconds until they are."""
    if not turn.traffic.caps.prepares:
        return 0.0
    left = 0.0
    for pool, name in names(new_members(turn, "")):
        with turn.writer_of(pool):
            left = max(left, turn.traffic.prepare(pool, name))
    return left


def settled(turn: Turn) -> None:
    """B neither comes nor goes any more, and A neither: what was prepared is put back."""
    if not turn.traffic.caps.prepares:
        return
    for pool, name in names(new_members(turn, "")):
        with turn.writer_of(pool):
            turn.traffic.settled(pool, name)


def _seen_draining(turn: Turn, pool: str, name: str) -> MemberView | None:
    """What the last look saw of it; None if there was none since the last advance."""
    seen = turn.upgrade.seen
    if seen is None or seen.kind != "idle":
        return None
    answer = seen.answers.get(f"{pool}/{name}")
    return MemberView(**answer) if answer is not None else None


def _seen_leaving(turn: Turn, seats: Sequence[tuple[str, str]]) -> dict[tuple[str, str], MemberView] | None:
    """What the last look saw of them, if it saw that all are leaving: the switch looks itself when it is to let go of
    them. Anything else is to be seen anew."""
    seen = {pair: _seen_draining(turn, *pair) for pair in seats}
    found = {pair: view for pair, view in seen.items() if view is not None and view.state == "leaving"}
    return found if found and len(found) == len(seats) else None


def _look(turn: Turn, kind: str, pairs: Sequence[tuple[str, str]], reason: str, notes: Mapping[str, Any]) -> Wait:
    every = max(turn.traffic.caps.poll, min(POLL, turn.fleet.rollout.poll))
    return Wait(reason=reason, every=every, observe=_observe(turn, kind, pairs), notes=notes)


def _observe(turn: Turn, kind: str, pairs: Sequence[tuple[str, str]]) -> Observe:
    return Observe(kind=kind, lane=turn.traffic.lane(pairs[0][0]), ids=tuple(word for pair in pairs for word in pair))


def observe_proven(turn: Turn, members: Sequence[tuple[str, Member]]) -> Observe:
    """A look at whether they all serve."""
    return _observe(turn, "proven", names(members))


def not_serving(turn: Turn, members: Sequence[tuple[str, Member]]) -> str:
    """Which of these does not serve in the balancer's own view, and how it is there; empty when all do."""
    views = turn.traffic.proven(names(members))
    sick = [(pool, name, view) for (pool, name), view in sorted(views.items()) if view.state != "serving"]
    return ", ".join(f"{name} is {view.state} in {pool}" for pool, name, view in sick)


def is_member(turn: Turn) -> bool:
    """Whether the balancer knows B in any of its pools."""
    views = turn.traffic.idle(names(new_members(turn, "")))
    return any(view.state != "absent" for view in views.values())


def tested(u: Upgrade) -> tuple[str, float]:
    """The boot of B that has passed a smoke test, and when: the step's own, or one that swap has made since."""
    smoke = u.results["smoke_test"]
    later = u.results.get("swap", u.notes if u.step == "swap" else {})
    return str(later.get("boot", smoke["boot"])), float(later.get("tested", smoke["at"]))


def lost(turn: Turn) -> str:
    """Why B is no longer the server that its smoke test has asked; empty while it runs, on the same boot."""
    id = turn.upgrade.results["provision"]["server"]
    server = turn.looks.servers([id]).get(id)
    if server is None or server.state != "running":
        return f"its server {id} is {server.state if server else 'gone'}"
    if server.boot != tested(turn.upgrade)[0]:
        return f"its server {id} has started anew since its smoke test"
    return ""


def out_again(turn: Turn) -> Wait | None:
    """B is taken out once more where a late call has put it back; None when it is in no pool."""
    address = turn.upgrade.results.get("smoke_test", {}).get("address", "")
    old = names(old_members(turn.server.seats))
    server = turn.upgrade.results.get("provision", {}).get("server", "")
    return take_out(turn, names(new_members(turn, address)), server=server, serving=old)


def worth_waking(u: Upgrade) -> bool:
    """Pure: whether a look at the balancer has shown something to act on."""
    assert u.seen is not None
    answers = u.seen.answers.values()
    if u.seen.kind == "proven":
        return any(answer["actionable"] for answer in answers) or all(a["state"] == "serving" for a in answers)
    late = u.seen.at >= u.notes.get("drained_by", float("inf"))
    return late or any(answer["actionable"] or answer["state"] == "absent" for answer in answers)


def old_members(seats: Sequence[Seat], *, life: int = 1) -> list[tuple[str, Member]]:
    return [(seat.pool, member_of(seat, seat.name, address=seat.address, life=life)) for seat in _sorted(seats)]


def new_members(turn: Turn, address: str) -> list[tuple[str, Member]]:
    """B in each pool. A life of the upgrade has names of its own: a late command for a former B finds nothing."""
    seats, life = _sorted(turn.server.seats), turn.upgrade.life
    return [
        (seat.pool, member_of(seat, generation(seat.new_name, life - 1), address=address, life=life)) for seat in seats
    ]


def known_as(turn: Turn) -> Mapping[str, str]:
    """The tag by which B's balancer will know its name, where it goes by one, and B has one name in all its pools."""
    tag, called = turn.traffic.caps.member_tag, {name for _, name in names(new_members(turn, ""))}
    return {tag: called.pop()} if tag and len(called) == 1 else {}


def member_of(seat: Seat, name: str, *, address: str, life: int) -> Member:
    """A or a B in that seat. It may take the place of the others of its upgrade, and of nobody else."""
    mine = (seat.name, *(generation(seat.new_name, each) for each in range(life)))
    return Member(name=name, address=address, port=seat.port, instead_of=mine)


def names(members: Sequence[tuple[str, Member]]) -> list[tuple[str, str]]:
    return [(pool, member.name) for pool, member in members]


def evidence(views: Mapping[tuple[str, str], MemberView]) -> list[Mapping[str, Any]]:
    """The balancer's own view, for the record."""
    return [{"pool": pool, **asdict(view)} for (pool, _), view in sorted(views.items())]


def _sorted(seats: Sequence[Seat]) -> list[Seat]:
    return sorted(seats, key=lambda seat: seat.pool)
