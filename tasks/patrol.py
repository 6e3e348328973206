"""Looks after the pools of an open rollout: what must serve and is missing is put back, what must not be there is taken
out, and a new server that fares badly is noticed.

The order is always A's and B's records, then one look at the balancers, then, only where something is wrong, a lease on
that upgrade as it was seen. Capacity is taken away under the same guards as in a step; only a B whose smoke test passed
on this very boot is put back.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import structlog

from orchestrator import dispatch
from orchestrator.domain.membership import Place, alarm, desired, must_serve, on_probation, watched
from orchestrator.domain.plan import Seat, users_between
from orchestrator.domain.rollout import Rollout
from orchestrator.domain.upgrade import Ailed, Event, Recovered, Repaired, TurnedBack
from orchestrator.errors import ChangeoverError, Fenced
from orchestrator.reading import readable
from orchestrator.store import Entry, Row, Users
from providers.errors import GuardRefused, ProviderError
from providers.traffic import Guard, Member, MemberView
from tasks import membership, smoke_test, swap
from tasks.step import Extras, commit, due_of, kept_short, lane_of, reckon_with_lost
from tasks.world import OutOfTime, Spec, Turn, World

log = structlog.get_logger()
Views = Mapping[tuple[str, str], MemberView]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A place that is not as it must be."""

    place: Place
    view: MemberView


def run(world: World, *, rollout: str) -> Mapping[str, Any]:
    """One round: how many places were looked at, and what was done about how many upgrades."""
    found = world.store.rollout(rollout)
    if found is None or found.closed:
        return {"looked": 0, "acted": 0}
    spec = world.spec(rollout)
    traffic = world.traffic(spec.fleet)
    if (poll := traffic.caps.poll) > 0:  # more often than that its looks tell nothing new
        ticket = uuid.uuid4().hex
        if world.store.lease(f"patrolled:{rollout}", owner=ticket, seconds=0.9 * poll) is None:
            return {"looked": 0, "acted": 0}
    rows, unread = readable(world.store, rollout, [name for wave in found.waves for name in wave])
    seats = {server.name: server.seats for server in spec.plan.survey.servers}
    rows = [row for row in rows if row.upgrade.server in seats]  # of another nobody knows where it belongs
    additive = traffic.caps.additive
    wanted = {row.upgrade.server: desired(row.upgrade, seats[row.upgrade.server], additive=additive) for row in rows}
    views = _look(world, spec, [place for places in wanted.values() for place in places])
    now: list[Row] = []
    acted = 0
    for row in rows:
        places = wanted[row.upgrade.server]
        seen = all((place.pool, place.name) in views for place in places)
        wrong = [
            Finding(place=place, view=views[place.pool, place.name])
            for place in places
            if seen and views[place.pool, place.name].state != place.want
        ]
        if not seen or not (wrong or (row.upgrade.ailing is not None and watched(places))):
            now.append(row)
            continue
        after = _mend(world, found, row, wrong, seats[row.upgrade.server])
        acted += after is not None
        now.append(after or row)
    _count_users(world, rollout, spec)
    if not unread:  # whose record cannot be read may ail: nothing is said to be over
        _tell(world, found, now)
    return {"looked": len(views), "acted": acted}


def _look(world: World, spec: Spec, places: Sequence[Place]) -> Views:
    """The balancers' own view of all these, one call per lane and batch. A lane that does not answer is left out."""
    traffic = world.traffic(spec.fleet)
    lanes: dict[str, list[tuple[str, str]]] = {}
    for place in places:
        lanes.setdefault(traffic.lane(place.pool), []).append((place.pool, place.name))
    views: dict[tuple[str, str], MemberView] = {}
    for lane, pairs in sorted(lanes.items()):
        for start in range(0, len(pairs), traffic.caps.batch):
            try:
                views |= traffic.proven(pairs[start : start + traffic.caps.batch])
            except ProviderError as error:
                log.warning("a pool could not be looked at", lane=lane, error=repr(error))
    return views


def _count_users(world: World, rollout: str, spec: Spec) -> None:
    """What the balancers have counted of users since the plan, for dashboards: a report asks for itself."""
    was, traffic = spec.plan.survey, world.traffic(spec.fleet)
    pools = []
    for pool in was.pools if all(pool.epoch for pool in was.pools) else ():
        try:
            counted = traffic.counters(pool.pool)
        except ProviderError as error:
            log.warning("users were not counted", pool=pool.pool, error=repr(error))
            return
        if counted is None:
            return
        pools.append(replace(pool, **asdict(counted)))
    found = users_between(was, replace(was, pools=tuple(pools))) if pools else None
    if found is not None:
        world.store.put_users(rollout, Users(requests=found[0], failed=found[1], at=world.store.now()))


def _mend(world: World, rollout: Rollout, row: Row, wrong: Sequence[Finding], seats: Sequence[Seat]) -> Row | None:
    """The record afterwards; None if somebody is at work on it, or nothing could be done."""
    owner = f"{world.worker}/{os.getpid()}:{uuid.uuid4().hex[:12]}"
    claim = world.store.take(row, owner=owner, lease=world.lease)
    if claim is None:
        return None
    turn = Turn(world, claim, name="patrol")
    try:
        reckon_with_lost(world, turn)
        event, extras = _act(turn, wrong, seats)
        if event is None:
            _give_back(world, turn)
            return None
        event, extras = kept_short(_judged(turn, rollout, event), extras)
        stored = commit(world, turn, event, extras)
    except Fenced:
        world.owed.give_back(partial(world.store.release, turn.claim))
        return None
    except Exception as error:  # whatever it was: the places of the others are to be looked after as well
        expected = isinstance(error, ProviderError | ChangeoverError | OutOfTime)
        log.warning("not put right", server=row.upgrade.server, error=repr(error), exc_info=not expected)
        _give_back(world, turn)
        return None
    if isinstance(event, TurnedBack) and not stored.upgrade.terminal:
        dispatch.send(world.store, world.publish, stored, grace=world.grace)
    return stored


def _give_back(world: World, turn: Turn) -> None:
    """As it was found: an old server that is kept must not come due before its time."""
    u = turn.upgrade
    due = due_of(u, now=turn.now, grace=world.grace)
    world.owed.give_back(partial(world.store.release, turn.claim, due=due, look=lane_of(u)))


def _judged(turn: Turn, rollout: Rollout, event: Event) -> Event:
    """What it is to ail: before the end of the bake the server goes back, afterwards a person is told."""
    if not isinstance(event, Ailed):
        return event
    after = turn.upgrade.after(event)
    if after.ailing is not None and after.ailing.sure and on_probation(rollout, after):
        return TurnedBack(why=event.why, at=event.at, asked=False)
    return event


def _act(turn: Turn, wrong: Sequence[Finding], seats: Sequence[Seat]) -> tuple[Event | None, Extras]:
    """Put right what can be, and say what was found. At most one event: a B that ails says more than a repair."""
    u = turn.upgrade
    done: list[Mapping[str, str]] = []
    ails: list[tuple[str, bool]] = []
    for finding in wrong:
        place, was = finding.place, finding.view
        if place.want == "absent":
            done += _take_out(turn, finding, wrong, seats)
        elif place.side == "new":
            said, ill, now = _put_back_new(turn, finding, seats)
            ails.append((said, ill))
            done += _change(place, was, now)
        else:
            done += _change(place, was, _put_back_old(turn, finding, seats))
    detail = {"repaired": done} if done else {}
    if ails and must_serve(u):
        why, ill = next((one for one in ails if one[1]), ails[0])
        if u.ailing is not None and u.ailing.sure and not done:
            return None, Extras()  # a person has been told already
        return Ailed(why=why, at=turn.now, ill=ill), Extras(detail={**detail, "why": why})
    additive = turn.traffic.caps.additive
    if u.ailing is not None and not ails and watched(desired(u, seats, additive=additive)):
        return Recovered(), Extras(detail=detail)
    return (Repaired(), Extras(detail=detail)) if done else (None, Extras())


def _change(place: Place, was: MemberView, now: MemberView | None) -> Iterable[Mapping[str, str]]:
    if now is None or now.state == was.state:
        return
    yield {"pool": place.pool, "name": place.name, "was": was.state, "now": now.state}


def _put_back_old(turn: Turn, finding: Finding, seats: Sequence[Seat]) -> MemberView | None:
    """A, if it runs: a member whose server is down would only wait at the gate."""
    if finding.view.state == "down":
        return None  # it is where it must be, and no repair of ours makes it well
    if not _old_runs(turn):
        log.warning("the old server cannot be put back: it does not run", server=turn.upgrade.server)
        return None
    return _in(turn, finding.place.pool, _member(turn, finding.place, seats), back=True)


def _old_runs(turn: Turn) -> bool:
    server = turn.compute.servers([turn.server.id]).get(turn.server.id)
    return server is not None and server.state == "running"


def _put_back_new(turn: Turn, finding: Finding, seats: Sequence[Seat]) -> tuple[str, bool, MemberView | None]:
    """Why it does not serve, whether it is ill, and how it is now if it was put back."""
    place, was = finding.place, finding.view
    why = f"{place.name} is {was.state} in {place.pool}" + (f" ({was.detail})" if was.detail else "")
    if was.state == "down":
        return why, True, None
    address = turn.upgrade.results["smoke_test"]["address"]
    if lost := membership.lost(turn):
        return f"{why}: {lost}", True, None
    if was.state == "absent" and turn.now - membership.tested(turn.upgrade)[1] > swap.FRESH:
        failed, _ = smoke_test.one_round(turn, address, old_runs=_old_runs(turn))
        if failed:
            return f"{why}, and its smoke test fails now: {failed}", True, None
    member = replace(_member(turn, place, seats), address=address)
    return why, False, _in(turn, place.pool, member, back=was.state != "absent")


def _in(turn: Turn, pool: str, member: Member, *, back: bool) -> MemberView:
    with turn.writer_of(pool):
        return turn.traffic.restore(pool, member) if back else turn.traffic.add(pool, member)


def _take_out(
    turn: Turn, finding: Finding, wrong: Sequence[Finding], seats: Sequence[Seat]
) -> Iterable[Mapping[str, str]]:
    """Out goes what must not be there, as long as the other of the two serves and enough besides."""
    place = finding.place
    others = [
        other
        for other in desired(turn.upgrade, seats, additive=turn.traffic.caps.additive)
        if other.pool == place.pool and other.want == "serving"
    ]
    guard = Guard(
        min_healthy=turn.fleet.traffic.pools[place.pool].min_healthy, serving=tuple(other.name for other in others)
    )
    if any(each.place in others for each in wrong):
        return []  # the one that users rely on first
    try:
        with turn.writer_of(place.pool):
            now = turn.traffic.remove(place.pool, place.name, guard=guard, cut=False)
    except GuardRefused as refused:
        log.warning("not taken out", server=turn.upgrade.server, member=place.name, why=str(refused))
        return []
    return list(_change(place, finding.view, now))


def _member(turn: Turn, place: Place, seats: Sequence[Seat]) -> Member:
    seat = next(seat for seat in seats if seat.pool == place.pool)
    return membership.member_of(seat, place.name, address=seat.address, life=turn.upgrade.life)


def _tell(world: World, rollout: Rollout, rows: Sequence[Row]) -> None:
    """The rollout says whose new server ails: who lists the rollouts sees it, and coordinators look anew."""
    told = alarm([row.upgrade for row in rows])
    if told == rollout.alarm:
        return
    entry = Entry(event="alarm" if told else "alarm over", actor=world.worker, detail={"why": told} if told else {})
    world.store.change(rollout, replace(rollout, alarm=told), entry=entry)
