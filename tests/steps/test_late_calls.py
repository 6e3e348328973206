"""Calls whose answer nobody heard: what they make comes late, and is found all the same."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import structlog

from orchestrator import operations
from orchestrator.domain.steps import STEPS
from orchestrator.domain.upgrade import Stumbled
from orchestrator.errors import Unreachable
from providers import errors
from providers.compute.fake import FakeCompute
from tasks import patrol, step, world
from tests.simulation.loss import bring_back, keep
from tests.support.outcome import SERVER, Watch, ends_well, journey, settle, turn_back
from tests.support.runner import Crashed, Runner, running

CALLS: Mapping[str, str] = {"create_image": "ensure_image", "provision": "ensure_server"}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


def test_every_step_that_makes_something_is_tried_here() -> None:
    assert set(CALLS) == set(step.MAKES) <= set(STEPS)


@pytest.mark.parametrize("after", [0.0, 3.0, 12.0, 24.9])
@pytest.mark.parametrize("name", list(CALLS))
def test_what_is_made_after_the_undo_has_looked_is_undone_too(
    name: str, after: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker asks, and is gone; somebody turns back; the provider does what it was asked at its own time."""
    with journey("forward") as (r, watch):
        late = _ask_and_die(r, CALLS[name], monkeypatch)
        r.until(lambda: bool(late))
        turn_back(r)
        r.until(lambda: r.upgrade(SERVER).undoing == name)
        at = r.clock() + after
        r.until(lambda: r.clock() >= at or r.upgrade(SERVER).terminal)
        assert not r.upgrade(SERVER).terminal, "it was given up while the call could still come"
        late[0]()
        settle(r)
        assert ends_well(r, watch).state == "rolled_back"


@pytest.mark.parametrize("name", list(CALLS))
def test_what_the_undo_finds_by_its_name_is_not_waited_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with journey("forward") as (r, watch):
        late = _ask_and_die(r, CALLS[name], monkeypatch)
        r.until(lambda: bool(late))
        late[0]()
        turn_back(r)
        r.until(lambda: r.upgrade(SERVER).undoing == name)
        began = r.clock()
        settle(r)
        assert ends_well(r, watch).state == "rolled_back"
        assert r.clock() - began < 5


@pytest.mark.parametrize("error", [errors.Refused, errors.NoCapacity])
@pytest.mark.parametrize("name", list(CALLS))
def test_what_was_refused_for_good_is_not_waited_for(
    name: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: Any, **_kwargs: Any) -> Any:
        raise error("no")

    monkeypatch.setattr(FakeCompute, CALLS[name], refuse)
    with running([SERVER]) as r:
        r.until(lambda: r.upgrade(SERVER).undoing == name)
        began = r.clock()
        r.until(lambda: r.upgrade(SERVER).terminal)
        assert r.clock() - began < 5
        assert len(r.upgrade(SERVER).intents(name)) == r.fleet.rollout.attempts


@pytest.mark.parametrize("name", list(CALLS))
def test_what_is_made_late_by_an_attempt_that_was_refused_to_another_is_undone_too(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever took over from the one that was cut off heard "no", and went on with a new attempt."""
    with journey("forward") as (r, watch):
        late = _ask_and_die(r, CALLS[name], monkeypatch)
        r.until(lambda: bool(late))
        _refused_once(CALLS[name], monkeypatch)
        r.until(lambda: r.upgrade(SERVER).attempt(name) == 1 and len(r.upgrade(SERVER).intents(name)) == 2)
        turn_back(r)
        r.until(lambda: r.upgrade(SERVER).undoing == name)
        at = r.clock() + 5
        r.until(lambda: r.clock() >= at or r.upgrade(SERVER).terminal)
        late[0]()
        settle(r)
        assert ends_well(r, watch).state == "rolled_back"


@pytest.mark.parametrize(
    "how", ["paused and resumed", "looked after", "Redis away", "cut off for longer than its lease", "poisoned"]
)
@pytest.mark.parametrize("name", list(CALLS))
def test_that_a_call_was_not_answered_is_never_forgotten(name: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows whether it will take effect; the next one with its token is refused, another attempt made. Whatever
    comes between, the undo waits for it."""
    with journey("forward") as (r, watch):
        honest = getattr(FakeCompute, CALLS[name])
        late: list[Callable[[], Any]] = []
        refused: list[str] = []

        def ask(compute: FakeCompute, *args: Any, **kwargs: Any) -> Any:
            if not late:
                late.append(lambda: honest(compute, *args, **kwargs))
                if how == "cut off for longer than its lease":
                    r.clock.now += 1.5 * r.world.lease
                elif how != "Redis away":
                    raise Crashed
                raise errors.Transient("no answer", ambiguous=True)
            if not refused:
                refused.append("no")
                raise errors.NoCapacity("no room")
            return honest(compute, *args, **kwargs)

        monkeypatch.setattr(FakeCompute, CALLS[name], ask)
        commit, away = r.store.commit, []

        def committing(*args: Any, **kwargs: Any) -> Any:
            if late and not away and how == "Redis away":
                away.append("once")
                raise Unreachable("away for a moment")
            return commit(*args, **kwargs)

        monkeypatch.setattr(r.store, "commit", committing)
        r.until(lambda: bool(late))
        _meanwhile(r, how)
        r.until(lambda: len(r.upgrade(SERVER).intents(name)) == 2)
        turn_back(r)
        r.until(lambda: r.upgrade(SERVER).undoing == name)
        at = r.clock() + 5
        r.until(lambda: r.clock() >= at or r.upgrade(SERVER).terminal)
        late[0]()
        settle(r)
        assert ends_well(r, watch).state == "rolled_back"


def _meanwhile(r: Runner, how: str) -> None:
    """What happens between the end of that worker and the next try."""
    if how == "paused and resumed":
        _until_its_lease_ends(r)
        operations.pause(r.store, r.rollout, actor="a person")
        operations.resume(r.store, r.rollout, actor="a person")
    elif how == "looked after":
        _until_its_lease_ends(r)
        row = r.store.row(r.rollout, SERVER)
        assert row is not None
        with pytest.MonkeyPatch.context() as patch:  # what it puts right is another matter: it commits something
            patch.setattr(patrol, "_act", lambda *_: (Stumbled(why="put right", at=r.clock()), step.Extras()))
            assert patrol._mend(r.world, r.record(), row, [], []) is not None
    elif how == "poisoned":
        for number in range(2):
            _until_its_lease_ends(r)
            row = r.store.row(r.rollout, SERVER)
            assert row is not None and r.store.take(row, owner=f"w{number}/1:x", lease=10.0) is not None
        r.until(lambda: r.upgrade(SERVER).state == "held")
        operations.retry(r.store, r.rollout, [SERVER], actor="a person")


def _until_its_lease_ends(r: Runner) -> None:
    row = r.store.row(r.rollout, SERVER)
    assert row is not None
    r.clock.now = max(r.clock.now, row.lease_until + 0.01)


@pytest.mark.parametrize("name", list(CALLS))
def test_what_is_made_late_by_a_former_attempt_does_not_outlive_the_way_forward(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with journey("forward") as (r, watch):
        late = _ask_and_die(r, CALLS[name], monkeypatch)
        r.until(lambda: bool(late))
        _refused_once(CALLS[name], monkeypatch)
        r.until(lambda: "provision" in r.upgrade(SERVER).results)
        late[0]()
        settle(r)
        assert ends_well(r, watch).state == "upgraded"


@pytest.mark.parametrize("name", list(CALLS))
def test_what_an_attempt_made_that_the_store_has_forgotten_is_ended(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt is refused and the next one is made, all in the second that Redis loses; the first is repeated."""
    with journey("forward") as (r, watch):
        _refused_once(CALLS[name], monkeypatch)
        kept: list[Any] = []
        back: list[int] = []

        def lose_a_second(point: str) -> None:
            if point == f"{name}.announced" and not kept:
                kept.append(keep(r.store))
            if point == f"{name}.after compute.{CALLS[name]}" and not back:
                back.append(r.upgrade(SERVER).attempt(name))
                bring_back(r.store, kept[0])

        r.crash = lose_a_second
        r.until(lambda: bool(back))
        assert back == [1] and r.upgrade(SERVER).attempt(name) == 0
        r.until(lambda: r.upgrade(SERVER).has_begun("poll_readiness"))
        assert len(r.alive("target")) == len(r.alive("image")) == 1
        settle(r)
        assert ends_well(r, watch).state == "upgraded"


def _refused_once(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next of these calls is refused for good."""
    asked, told = getattr(FakeCompute, call), []

    def refuse(*args: Any, **kwargs: Any) -> Any:
        if not told:
            told.append("no")
            raise errors.NoCapacity("no room")
        return asked(*args, **kwargs)

    monkeypatch.setattr(FakeCompute, call, refuse)


def test_an_unanswered_call_of_long_ago_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with running([SERVER]) as r:
        watch, late = Watch(r), _ask_and_die(r, "ensure_image", monkeypatch)
        r.until(lambda: bool(late))
        r.until(lambda: r.upgrade(SERVER).state == "upgraded")
        assert r.upgrade(SERVER).doubted
        r.clock.now += 30
        turn_back(r)
        r.until(lambda: r.upgrade(SERVER).direction == "undo")
        began = r.clock()
        settle(r)
        assert ends_well(r, watch).state == "rolled_back"
        assert r.clock() - began < 15


@pytest.mark.parametrize("word", ["claim", "intent", "renew"])
def test_a_worker_that_stood_still_before_its_call_does_not_make_it(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the store's word that the upgrade is its own, and wakes up when that has long ceased to hold."""
    if word == "renew":
        monkeypatch.setattr(world, "CONFIRMED", -1.0)  # every call asks once more
    with journey("forward") as (r, watch):
        honest, froze = getattr(r.store, word), []

        def freeze(*args: Any, **kwargs: Any) -> Any:
            answer = honest(*args, **kwargs)
            if not froze:
                froze.append(r.upgrade(SERVER).step)
                r.clock.now += 1.5 * r.world.lease
            return answer

        monkeypatch.setattr(r.store, word, freeze)
        r.until(lambda: bool(froze))
        assert r.cloud.calls.get(CALLS[froze[0]], 0) == 0, "it has called without knowing that it may"
        settle(r)
        assert ends_well(r, watch).state == "upgraded"


def _ask_and_die(r: Runner, call: str, monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], Any]]:
    """The first of these calls does not take effect yet, and its worker is gone; what it would have done."""
    honest, kept = getattr(FakeCompute, call), []

    def ask(compute: FakeCompute, *args: Any, **kwargs: Any) -> Any:
        if kept:
            return honest(compute, *args, **kwargs)
        kept.append(lambda: honest(compute, *args, **kwargs))
        raise Crashed

    monkeypatch.setattr(FakeCompute, call, ask)
    return kept
