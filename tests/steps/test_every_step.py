"""Every step, forward and back, without naming one: repeated, failed at every call, killed at every point, its message
lost, and turned round at every point. A new step is picked up by being in the table."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import structlog

from orchestrator.dispatch import Message
from orchestrator.domain.steps import STEPS, task_name
from orchestrator.errors import PointOfNoReturn
from providers import errors, traffic
from providers.compute.fake import Fault
from tasks import BODIES, keys, step
from tests.support.outcome import PATIENCE, SERVER, ends_well, journey, settle, turn_back
from tests.support.runner import Crashed, Runner

# A step in a direction. Nothing undoes what is not among the steps: the end of A.
CASES = [*((name, "forward") for name in BODIES), *((name, "undo") for name in STEPS)]
NAMES = [task_name(name, undo=direction == "undo").removeprefix("tasks.") for name, direction in CASES]
every_step = pytest.mark.parametrize(("name", "direction"), CASES, ids=NAMES)

FAULTS: dict[str, Callable[[], Exception] | None] = {
    "no answer": lambda: errors.Transient("no answer", ambiguous=False),
    "answer lost": None,  # the effect happens
    "throttled": lambda: errors.Throttled("slow down", retry_after=3.0),
    "busy": lambda: errors.Busy("another writer"),
    "not yet visible": lambda: errors.NotYetVisible("not yet"),
    "not found": lambda: errors.NotFound("not there"),
    "no capacity": lambda: errors.NoCapacity("no room"),
    "refused": lambda: errors.Refused("no"),
    "guard": lambda: errors.GuardRefused("users would be hurt"),
    "quota": lambda: errors.QuotaExceeded("enough"),
    "unauthorized": lambda: errors.Unauthorized("who are you"),
    "conflict": lambda: errors.Conflict("taken"),
    "a bug": lambda: RuntimeError("a bug"),
}
HARMLESS = ("no answer", "answer lost", "throttled", "busy", "not yet visible", "guard")


@pytest.fixture(autouse=True)
def _quiet_and_quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    monkeypatch.setattr(step, "UNDO_DEADLINE", 30.0)
    yield
    structlog.reset_defaults()


# -- what a clean run does: found by watching it ----------------------------------------------------------------------


@cache
def points(direction: str) -> tuple[tuple[str, str], ...]:
    """(step, point) of every point at which a worker can die, in the order of a clean run."""
    seen: list[tuple[str, str]] = []
    with journey(direction) as (r, watch):
        r.crash = lambda point: seen.append((r.upgrade(SERVER).step, point))
        settle(r)
        ends_well(r, watch)
    return tuple(seen)


@cache
def calls(direction: str) -> tuple[tuple[str, str], ...]:
    """(step, call) of every provider call, in the order of a clean run."""
    seen: list[tuple[str, str]] = []
    with journey(direction) as (r, watch):
        _before_calls(r, lambda name: seen.append((r.upgrade(SERVER).step, name)))
        settle(r)
        ends_well(r, watch)
    return tuple(seen)


@cache
def deliveries(direction: str) -> int:
    with journey(direction) as (r, _):
        done = len(r.history)
        settle(r)
        return len(r.history) - done


def _before_calls(r: Runner, act: Callable[[str], Fault | None]) -> None:
    asked = r.cloud.fault

    def fault(name: str) -> Fault:
        return act(name) or asked(name)

    r.cloud.fault = fault


def _where(found: tuple[tuple[str, str], ...], name: str) -> list[int]:
    return [index for index, (where, _) in enumerate(found) if where == name]


def wanted(direction: str) -> str:
    return "upgraded" if direction == "forward" else "rolled_back"


# -- repeat -----------------------------------------------------------------------------------------------------------


@every_step
def test_a_repeated_message_changes_nothing(name: str, direction: str) -> None:
    with journey(direction) as (r, watch):
        delivered = repeat_messages(r, task_name(name, undo=direction == "undo"))
        settle(r)
        assert ends_well(r, watch).state == wanted(direction)
        assert delivered
        _come_too_late(r, delivered)


def test_every_message_may_come_twice() -> None:
    for direction in ("forward", "undo"):
        with journey(direction) as (r, watch):
            delivered = repeat_messages(r, "tasks.")
            settle(r)
            assert ends_well(r, watch).state == wanted(direction)
            _come_too_late(r, delivered)


def repeat_messages(r: Runner, prefix: str) -> list[list[Message]]:
    """Deliver every message of that task a second time. Of a step that is done, or that waits for a time, the second
    changes nothing; one that looks or tries may do so once more."""
    original, delivered = r.deliver, []

    def deliver(messages: list[Message]) -> Any:
        ran = original(messages)
        if ran is None or not messages[0]["task"].startswith(prefix):
            return ran
        delivered.append(messages)
        before, queued = r.upgrade(SERVER), len(r.queue)
        original(messages)
        after = r.upgrade(SERVER)
        if before.wait is None or before.wait.observe is None:
            assert after == before, f"a second {messages[0]['task']} has changed {before} into {after}"
            assert len(r.queue) == queued, "a repeated message has sent the rest of its chain again"
        return ran

    r.deliver = deliver  # type: ignore[method-assign] # every delivery of the runner's loop comes by here
    return delivered


def _come_too_late(r: Runner, delivered: list[list[Message]]) -> None:
    before, made, members, asked = r.upgrade(SERVER), dict(r.cloud.made), r.members(), dict(r.cloud.calls)
    for messages in delivered:
        ran = Runner.deliver(r, messages)
        assert ran is not None and "ignored" in ran.result and not ran.goes_on
    assert (r.upgrade(SERVER), r.cloud.made, r.members(), r.cloud.calls) == (before, made, members, asked)


# -- fail -------------------------------------------------------------------------------------------------------------


@every_step
def test_a_call_that_fails_once_ends_well(name: str, direction: str) -> None:
    """Every third of all pairs of call and fault."""
    pairs = [(index, fault) for index in _where(calls(direction), name) for fault in FAULTS]
    for index, fault in pairs[len(name) % 3 :: 3]:
        with journey(direction) as (r, watch):
            fail_at(r, index, fault)
            settle(r)
            end = ends_well(r, watch)
            if fault in HARMLESS:
                assert end.state == wanted(direction), (fault, calls(direction)[index], end.cause)


@every_step
def test_a_call_that_goes_on_failing_ends_well(name: str, direction: str) -> None:
    """Every second of all pairs of a step's call and fault, for longer than any deadline."""
    found = sorted({call for where, call in calls(direction) if where == name})
    pairs = [(call, fault) for call in found for fault in FAULTS]
    for call, fault in pairs[len(name) % 4 :: 4]:
        with journey(direction) as (r, watch):
            mended = fail_for_long(r, name, direction, call, fault)
            settle(r, on_held=mended)
            ends_well(r, watch)


def fail_at(r: Runner, index: int, fault: str) -> None:
    count = iter(range(10**9))

    def act(_name: str) -> Fault | None:
        return _raise(fault) if next(count) == index else None

    _before_calls(r, act)


def fail_for_long(r: Runner, name: str, direction: str, call: str, fault: str) -> Callable[[], None]:
    """Until it was mended, or for a long time."""
    state: dict[str, float] = {}

    def act(asked: str) -> Fault | None:
        u = r.upgrade(SERVER)
        if (u.step, u.direction, asked) != (name, direction, call):
            return None
        return _raise(fault) if r.clock() < state.setdefault("until", r.clock() + PATIENCE) else None

    _before_calls(r, act)
    return lambda: state.update(until=0.0)


def _raise(fault: str) -> Fault:
    make = FAULTS[fault]
    if make is None:
        return "after"
    raise make()


# -- die --------------------------------------------------------------------------------------------------------------


@every_step
def test_a_worker_may_die_at_any_point(name: str, direction: str) -> None:
    die_at(_where(points(direction), name), direction)


@every_step
def test_its_successor_may_die_there_too(name: str, direction: str) -> None:
    """Every second point; and the broker delivers the message of the first once more."""
    die_at(_where(points(direction), name)[::2], direction, times=2, redeliver=True)


def die_at(indices: Iterable[int], direction: str, *, times: int = 1, redeliver: bool = False) -> None:
    for index in indices:
        with journey(direction) as (r, watch):
            crash_at(r, index, times=times, redeliver=redeliver)
            settle(r)
            assert ends_well(r, watch).state == wanted(direction)


def crash_at(r: Runner, index: int, *, times: int, redeliver: bool) -> None:
    """At that point of the run, and with `times` at the next occurrence of the same point."""
    left = {"skip": index, "times": times}
    target = ""

    def crash(point: str) -> None:
        nonlocal target
        if left["skip"] > 0:
            left["skip"] -= 1
            return
        target = target or point
        if left["times"] and point == target:
            left["times"] -= 1
            raise Crashed

    r.crash = crash
    if not redeliver:
        return
    original = r.deliver

    def deliver(messages: list[Message]) -> Any:
        ran = original(messages)
        if ran is None:
            r.queue.append(messages)
        return ran

    r.deliver = deliver  # type: ignore[method-assign] # every delivery of the runner's loop comes by here


# -- lose -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["forward", "undo"])
def test_any_message_may_be_lost(direction: str) -> None:
    for index in range(deliveries(direction)):
        with journey(direction) as (r, watch):
            lose_after(r, index.__eq__)
            settle(r)
            assert ends_well(r, watch).state == wanted(direction)


@pytest.mark.parametrize("direction", ["forward", "undo"])
def test_the_rest_of_every_chain_may_be_lost(direction: str) -> None:
    with journey(direction) as (r, watch):
        lose_after(r, lambda _n: True)
        settle(r)
        assert ends_well(r, watch).state == wanted(direction)


def lose_after(r: Runner, lost: Callable[[int], bool]) -> None:
    """Empty the queue after the deliveries that are chosen by their number."""
    original, count = r.deliver, iter(range(10**9))

    def deliver(messages: list[Message]) -> Any:
        ran = original(messages)
        if lost(next(count)):
            r.queue.clear()
        return ran

    r.deliver = deliver  # type: ignore[method-assign] # every delivery of the runner's loop comes by here


# -- turn back --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dies", [False, True], ids=["worker goes on", "worker dies"])
@pytest.mark.parametrize("name", list(BODIES))
def test_it_may_be_turned_back_at_any_point(name: str, dies: bool) -> None:
    turn_back_at(_where(points("forward"), name), dies=dies)


def turn_back_at(indices: Iterable[int], *, dies: bool) -> None:
    """While a worker is at that point; each message of the way back comes twice."""
    for index in indices:
        with journey("forward") as (r, watch):
            asked = _ask_at(r, index, dies=dies)
            repeat_messages(r, "tasks.undo_")
            settle(r)
            end = ends_well(r, watch)
            assert asked == (["too late"] if end.state == "upgraded" else ["in time"])
            assert (end.state == "upgraded") == end.beyond_return


def _ask_at(r: Runner, index: int, *, dies: bool) -> list[str]:
    count, asked = iter(range(10**9)), []

    def crash(_point: str) -> None:
        if next(count) != index:
            return
        try:
            turn_back(r)
            asked.append("in time")
        except PointOfNoReturn:
            asked.append("too late")
        if dies:
            raise Crashed

    r.crash = crash
    return asked


# -- the suite notices what it is there for ---------------------------------------------------------------------------


def _acts_when_undone(name: str) -> bool:
    return any(where == name for where, _ in calls("undo"))


@pytest.mark.parametrize("name", STEPS)
def test_the_suite_notices_an_undo_of_finished_steps_only(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not _acts_when_undone(name):
        return  # nothing to undo: this step has no effect
    body, honest = BODIES[name], BODIES[name].undo

    def lazy(turn: Any) -> Any:
        return honest(turn) if name in turn.upgrade.results else step.Done()

    found = _where(points("forward"), name)
    monkeypatch.setattr(body, "undo", lazy)
    with pytest.raises(AssertionError):
        turn_back_at(found, dies=True)


def test_the_suite_notices_a_random_token(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = keys.key

    def random(*args: Any, **kwargs: Any) -> Any:
        made = uuid.uuid4().hex
        # And the name with it: a second thing of a name of ours is ended as a stray.
        return replace(honest(*args, **kwargs), token=made, name=f"co-{made}")

    found = points("forward")
    monkeypatch.setattr(keys, "key", random)
    with pytest.raises(AssertionError):
        die_at(range(len(found)), "forward")


@pytest.mark.parametrize("name", STEPS)
def test_the_suite_notices_a_server_taken_out_before_its_successor_is_in(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, honest = BODIES[name], BODIES[name].do
    if not any(where == name and call == "add" for where, call in calls("forward")):
        return  # it lets nobody in

    def hasty(turn: Any, intent: Any) -> Any:
        seat = turn.server.seats[0]
        turn.traffic.remove(seat.pool, seat.name, guard=traffic.Guard(min_healthy=0), cut=True)
        return honest(turn, intent)

    found = len(points("forward"))
    monkeypatch.setattr(body, "do", hasty)
    with pytest.raises(AssertionError):
        die_at([found], "forward")  # nobody dies: there is no such point
