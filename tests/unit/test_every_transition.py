"""Every pair of a record and an event has a defined answer: over all records that any history can lead to.

The records are found, not listed: from the first one on, every event in every variant of its fields, until no record of
a new shape appears. A new event, state or step is picked up by that. What no history leads to is refused.
"""

from __future__ import annotations

import itertools
import random
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from orchestrator.domain import upgrade as module
from orchestrator.domain.steps import RETIRE, STEPS
from orchestrator.domain.upgrade import (
    Began,
    Direction,
    Event,
    Intent,
    Observe,
    Released,
    Seen,
    Shifted,
    State,
    Stumbled,
    TurnedBack,
    Undone,
    Upgrade,
    Waiting,
)
from orchestrator.errors import Conflict, IllegalTransition, PointOfNoReturn
from tasks.step import due_of

AT = 1000.0
KINDS: tuple[type[Any], ...] = get_args(Event)
ALL_STEPS = (*STEPS, RETIRE)
FIRST = Upgrade(rollout="r", server="s", wave=0)


@dataclass(frozen=True, kw_only=True)
class Edge:
    was: Upgrade
    event: Event
    now: Upgrade
    shapes: tuple[Any, Any] = ((), ())


# -- every event, in every variant of its fields ---------------------------------------------------------------------


def variants(kind: type[Any], u: Upgrade) -> Iterator[Event]:
    """All that differ in a way that a record could tell."""
    hints = hints_of(kind)
    names = [field.name for field in fields(kind)]
    for values in itertools.product(*(list(values_of(hints[name], u)) for name in names)):
        yield kind(**dict(zip(names, values, strict=True)))


@cache
def hints_of(kind: type[Any]) -> Mapping[str, Any]:
    return get_type_hints(kind, vars(module))


def values_of(hint: Any, u: Upgrade) -> Iterator[Any]:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        for part in get_args(hint):
            yield from [None] if part is type(None) else values_of(part, u)
    elif origin is Literal:
        yield from get_args(hint)
    elif hint is Intent:
        another = RETIRE if u.step == "swap" else "swap"
        for step, attempt in ((u.step, u.attempt(u.step)), (u.step, u.attempt(u.step) + 1), (another, 0)):
            yield Intent(step=step, attempt=attempt, rung=0, token=f"{step}{attempt}.{u.life}", name="n", at=AT)
    elif hint is Waiting:
        yield Waiting(reason="is starting", at=AT + 5, observe=Observe(kind="server", lane="l", ids=("i",)))
        yield Waiting(reason="soaking", at=AT + 5)
    elif hint is Seen:
        yield Seen(kind="server", at=AT, answers={})
    elif hint is bool:
        yield from (False, True)
    elif hint is float:
        yield AT
    elif hint is str:
        yield "why"
    elif origin in (Mapping, dict) or getattr(origin, "__name__", "") == "Mapping":
        yield {}
        if u.step == "drain_old":
            yield {"gone": "i"}
    else:
        raise AssertionError(f"say in this test what values a field of type {hint} may have")


def shape(value: Any) -> Any:
    """What of a record may decide which events apply to it: not its times, and not how often something happened."""
    match value:
        case bool() | None:
            return value
        case int() | float():
            return True
        case str():
            return value if value in (*ALL_STEPS, *get_args(State), *get_args(Direction)) else bool(value)
        case Intent():
            return value.step
        case Mapping():
            return bool(value), value.get("drain_old") == {"gone": "i"}
        case tuple():
            return tuple(dict.fromkeys(shape(part) for part in value))
        case _ if is_dataclass(value):
            return tuple(shape(getattr(value, field.name)) for field in fields(value))
    raise AssertionError(f"say in this test what {value!r} is")


def answer(u: Upgrade, event: Event) -> Upgrade | None:
    """The record after it; None where it was refused as it has to be."""
    try:
        return u.after(event)
    except PointOfNoReturn as refused:
        assert isinstance(event, TurnedBack) and u.beyond_return
        assert_told(refused, u, "settled by a person" if u.by_hand else "is gone" if u.old_lost else "terminated")
    except IllegalTransition as refused:
        assert_told(refused, u, f"{type(event).__name__} does not apply")
    return None


def assert_told(refused: Conflict, u: Upgrade, says: str) -> None:
    """What happened, where traffic is, and one command."""
    assert u.server in refused.message and says in refused.message
    assert u.server in refused.traffic
    assert refused.next.startswith("changeover ")


@cache
def explored() -> tuple[Mapping[Any, Upgrade], tuple[Edge, ...]]:
    """A record of every shape that any history leads to, and every change between them."""
    found = {shape(FIRST): FIRST}
    edges: list[Edge] = []
    to_do = [FIRST]
    while to_do:
        u = to_do.pop()
        here = shape(u)
        for kind in KINDS:
            for event in variants(kind, u):
                now = answer(u, event)
                if now is None:
                    continue
                key = shape(now)
                edges.append(Edge(was=u, event=event, now=now, shapes=(here, key)))
                if key not in found:
                    found[key] = now
                    to_do.append(now)
    return found, tuple(edges)


# -- what is true of each change, and of each record ------------------------------------------------------------------

BY_A_PERSON = ("Released", "TurnedBack", "Settled")


def check_edge(edge: Edge) -> None:
    was, event, now = edge.was, edge.event, edge.now
    anew = isinstance(event, Released) and was.state in ("failed", "rolled_back")
    assert (now.rollout, now.server, now.wave, now.domain) == (was.rollout, was.server, was.wave, was.domain)
    assert now.life == was.life + anew
    assert all(now.attempt(step) >= was.attempt(step) for step in ALL_STEPS), "no token is used again"
    if anew:
        assert (now.state, now.begun) == ("pending", ())
        assert all(now.attempt(i.step) > i.attempt for i in was.begun), "its old tokens stand for what was destroyed"
        return
    assert now.begun[: len(was.begun)] == was.begun, "what was begun is never forgotten"
    if len(now.begun) > len(was.begun):
        assert now.begun[-1] == now.intent and now.intent.step == was.step and was.direction == "forward"
    if was.terminal and now.state != was.state:
        assert type(event).__name__ in BY_A_PERSON, "what has ended moves for a person only"
    if was.state == "held" and now.state != "held":
        assert type(event).__name__ in BY_A_PERSON
    if was.direction == "undo":
        assert now.direction == "undo" or type(event).__name__ == "Settled", "the way back has no way back"
        assert was.remaining == tuple(s for s in reversed(STEPS) if was.has_begun(s) and s in was.remaining)
    if now.direction == "undo" and was.direction == "forward" and was.begun and not now.terminal:
        assert now.remaining == tuple(step for step in reversed(STEPS) if was.has_begun(step)), "all that was begun"
    if isinstance(event, Began) and event.intent.step == RETIRE:
        assert was.ailing is None, "A is all that users have while B ails"
    if isinstance(event, Undone):
        assert was.undoing == was.step, "nothing is undone that was not announced"
        assert now.remaining == was.remaining[1:] if not now.terminal else len(was.remaining) == 1
    if was.beyond_return:
        assert now.state == was.state and now.beyond_return, "A is ended, or about to be: it cannot be had back"
    assert now.old_gone >= was.old_gone
    assert now.old_lost >= was.old_lost or now.by_hand
    if isinstance(event, Shifted):
        moved = None if was.deadline is None else was.deadline + event.seconds
        freed = replace(was, state="running", wait=None, why="", deadline=now.deadline)
        assert now == replace(was, deadline=moved) or (now == freed and was.wait is not None and was.wait.refused)


def check_record(u: Upgrade) -> None:
    assert not u.flaw
    assert u.traffic
    if u.state == "pending":
        assert (u.intent, u.begun, u.wait, u.deadline, u.step) == (None, (), None, None, STEPS[0])
    if u.state in ("running", "waiting", "held"):
        assert u.remaining and u.remaining[0] == u.step
    if u.state == "waiting":
        assert u.wait is not None, "it is known what for, and until when"
    if u.settled:
        assert (u.wait, u.intent, u.remaining) == (None, None, ())
    if u.intent is not None:
        assert u.intent == u.begun[-1]
    if u.intent is None and u.direction == "forward":
        late = u.state == "held" or (u.wait is not None and not u.wait.refused)
        assert u.deadline is None or late, "what has neither begun nor waits for what it needs cannot be late"
    if u.direction == "undo":
        assert not u.has_begun(RETIRE)
    assert len({i.token for i in u.begun}) == len(u.begun), "each intent has its own token"
    in_an_agenda = due_of(replace(u, retain_until=u.retain_until or AT), now=AT, grace=5.0) is not None
    assert in_an_agenda != (u.state in ("pending", "held") or u.settled), "it is found again, or waits for somebody"


def test_every_record_answers_every_event_with_a_record_or_with_a_sentence() -> None:
    found, _ = explored()
    stages = {(u.state, u.step, u.direction) for u in found.values()}
    under_way = {(s, step, d) for s in ("running", "waiting", "held") for step in STEPS for d in get_args(Direction)}
    assert stages >= under_way, "every step of either direction is reached"
    assert {u.state for u in found.values()} == set(get_args(State)), "every state is reached"


def test_every_event_applies_somewhere_and_not_everywhere() -> None:
    found, edges = explored()
    applies = {kind: {e.shapes[0] for e in edges if isinstance(e.event, kind)} for kind in KINDS}
    assert all(applies.values()), [kind.__name__ for kind, where in applies.items() if not where]
    assert all(len(where) < len(found) for where in applies.values())


def test_whatever_happens_nothing_is_forgotten_reused_or_taken_back() -> None:
    for edge in explored()[1]:
        check_edge(edge)


def test_every_record_is_found_again_or_waits_for_a_person() -> None:
    for u in explored()[0].values():
        check_record(u)


def test_from_everywhere_there_is_a_way_to_the_end() -> None:
    found, edges = explored()
    before: dict[Any, set[Any]] = {}
    for edge in edges:
        before.setdefault(edge.shapes[1], set()).add(edge.shapes[0])
    ends = [key for key, u in found.items() if u.settled]
    reached = set(ends)
    while ends:
        for earlier in before.get(ends.pop(), set()) - reached:
            reached.add(earlier)
            ends.append(earlier)
    assert reached == set(found)


def test_without_a_person_everything_under_way_ends_or_asks_for_one() -> None:
    """Whatever goes wrong: an effect that is tried, waited for, refused and turned back comes to an end."""
    found, edges = explored()
    progress: dict[Any, set[Any]] = {}
    for edge in edges:
        person = type(edge.event).__name__ in BY_A_PERSON and not (
            isinstance(edge.event, TurnedBack) and not edge.event.asked
        )
        if not person:
            progress.setdefault(edge.shapes[0], set()).add(edge.shapes[1])
    for key, u in found.items():
        if u.state not in ("running", "waiting"):
            continue
        seen, to_do = {key}, [key]
        while to_do:
            for follower in progress.get(to_do.pop(), set()) - seen:
                seen.add(follower)
                to_do.append(follower)
        assert any(found[each].terminal or found[each].state == "held" for each in seen), u


EVERY_STAGE = [
    Upgrade(rollout="r", server="s", wave=0, state=state, step=step, direction=direction)
    for state in get_args(State)
    for step in ALL_STEPS
    for direction in get_args(Direction)
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_that_no_history_leads_to_is_refused_and_never_acted_upon(kind: type[Any]) -> None:
    assert sum(bool(u.flaw) for u in EVERY_STAGE) > len(EVERY_STAGE) // 2
    for u in EVERY_STAGE:
        for event in variants(kind, u):
            try:
                now = u.after(event)
            except (IllegalTransition, PointOfNoReturn) as refused:
                told = refused.message
            else:
                assert not u.flaw and not now.flaw
                continue
            assert u.server in told and ("makes no sense" in told) == bool(u.flaw)


@pytest.mark.parametrize("life", [-1, 0, 10**15])
def test_a_record_of_a_life_that_nobody_could_have_asked_for_is_refused(life: int) -> None:
    """Each name of a former life is looked for: an edited record must not fill a worker's memory with them."""
    assert Upgrade(rollout="r", server="s", wave=0, life=life).flaw == f"in its life {life}"


@pytest.mark.parametrize("seed", range(10))
def test_a_hundred_random_histories_a_seed_keep_every_rule(seed: int) -> None:
    """With attempts, deadlines and lives as they add up over a long life, which the shapes above leave out."""
    rng = random.Random(seed)
    for _ in range(100):
        u = FIRST
        now = AT
        for _ in range(60):
            now += rng.random() * 100
            event = hoped_for(u, now) if rng.random() < 0.6 else any_event(u, now, rng)
            after = answer(u, event)
            if after is None:
                continue
            check_edge(Edge(was=u, event=event, now=after))
            check_record(after)
            if isinstance(event, Released) and after.deadline is not None:
                assert after.limit is not None and after.deadline == now + after.limit, "its time, and not more"
            u = after


def any_event(u: Upgrade, now: float, rng: random.Random) -> Event:
    kind = rng.choice(KINDS)
    hints = get_type_hints(kind, vars(module))
    given = {field.name: rng.choice(list(values_of(hints[field.name], u))) for field in fields(kind)}
    made: Event = kind(**{name: now if name in ("at", "again") else value for name, value in given.items()})
    return made


def hoped_for(u: Upgrade, now: float) -> Event:
    """What comes next when all goes well."""
    if u.state == "pending":
        return module.Admitted(at=now)
    if u.state == "held" or (u.terminal and u.state != "upgraded"):
        return Released(at=now)
    if u.direction == "undo":
        return module.UndoBegan(deadline=now + 60) if u.undoing != u.step else Undone(at=now)
    if u.intent is None:
        attempt = u.attempt(u.step)
        made = Intent(step=u.step, attempt=attempt, rung=0, token=f"{u.step}{attempt}.{u.life}", name="n", at=now)
        return module.Began(intent=made, deadline=now + 60)
    return module.Finished(result={}, at=now, retain_until=now + 50)


def test_stumbling_is_counted_and_waiting_begins_to_count_anew() -> None:
    u = FIRST.after(hoped_for(FIRST, AT))
    u = u.after(hoped_for(u, AT))
    for n in range(1, 4):
        u = u.after(Stumbled(why="no answer", at=AT + n))
        assert u.tries == n
    assert u.after(Stumbled(why="busy", at=AT, counts=False)).tries == 3
    assert u.after(module.Waits(wait=Waiting(reason="starts", at=AT))).tries == 0
