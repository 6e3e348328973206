"""Pause, resume, abort and rollback at every point of a journey, twice and during each other; and an undo that cannot
go on asks a person. The points are found by watching a clean run: no step is named."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise, permutations
from typing import Any

import pytest
import structlog

from orchestrator import operations, words
from orchestrator.domain.steps import STEPS
from orchestrator.errors import Conflict, PointOfNoReturn
from orchestrator.operations import control
from providers.errors import Unauthorized
from tests.support.outcome import SERVER, Watch, up
from tests.support.runner import Crashed, Runner, running

WHO = "test"
OTHER = "web-2"
POLICY = {
    "waves": [1, 1],
    "bake": "5s",
    "soak": "1s",
    "poll": "1s",
    "drain": {"deadline": "30s", "quiet": "1s"},
}
RETAIN = {"old_servers": "60s"}
Verb = Callable[[Runner], Any]
VERBS: dict[str, Verb] = {
    "pause": lambda r: operations.pause(r.store, r.rollout, actor=WHO),
    "resume": lambda r: operations.resume(r.store, r.rollout, actor=WHO),
    "abort": lambda r: operations.abort(r.store, r.rollout, actor=WHO),
    "rollback": lambda r: operations.rollback(r.store, r.rollout, actor=WHO),
    "rollback server": lambda r: operations.rollback_server(r.store, r.rollout, SERVER, actor=WHO),
}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    monkeypatch.setattr(control, "LEASED", 0.0)  # whoever works stands still while we ask: nothing to wait for
    yield
    structlog.reset_defaults()


@cache
def states() -> tuple[tuple[str, str, str], ...]:
    """(state, direction, step) of each state that the first server is in, on its way there and back."""
    seen: list[tuple[str, str, str]] = []

    def note(r: Runner) -> bool:
        u = r.upgrade(SERVER)
        here = (u.state, u.direction, u.step)
        if here not in seen:
            seen.append(here)
        return False

    for back in (False, True):
        with running([SERVER, OTHER], rollout=POLICY, retain=RETAIN) as r:

            def over(r: Runner = r, back: bool = back) -> bool:
                note(r)
                if back and r.upgrade(SERVER).state == "upgraded":
                    VERBS["rollback"](r)
                return r.record().closed

            r.until(over)
    return tuple(seen)


def at(r: Runner, state: tuple[str, str, str]) -> None:
    """Until the first server is in it; the rollout is turned back where it is a state of the way back."""

    def there() -> bool:
        u = r.upgrade(SERVER)
        if state[1] == "undo" and u.state == "upgraded" and u.direction == "forward":
            VERBS["rollback"](r)
        return (u.state, u.direction, u.step) == state or r.record().closed

    r.until(there)


def ask(r: Runner, verb: str) -> str:
    """What came of it: done, so already, or refused with a way on."""
    try:
        return "done" if VERBS[verb](r).changed else "so already"
    except Conflict as refused:
        if not refused.next:
            raise AssertionError(f"{verb} is refused without a way on") from refused
        return "too late" if isinstance(refused, PointOfNoReturn) else "refused"


def to_the_end(r: Runner, watch: Watch) -> None:
    """However it was left: a person lets it go on, and it ends with each server served by exactly one of its two."""
    if r.record().state == "paused":
        r.until(lambda: r.upgrade(SERVER).state not in ("running",) or r.upgrade(SERVER).wait is not None)
        for _ in range(2):  # the first may tell what was not known
            if ask(r, "resume") == "done":
                break
            r.turn()
    r.until(lambda: r.record().ended)
    r.until(lambda: r.record().closed)
    assert not watch.dark, watch.dark[0]
    assert not r.made_twice()
    for name in (SERVER, OTHER):
        u, old = r.upgrade(name), r.cloud.things[name].view
        served = {f"{name}.g2"} if u.state == "upgraded" else {name}
        assert {m for m in r.members() if m.split(".")[0] == name} == served <= up(r), (name, u.state, r.members())
        assert old.state == ("terminated" if u.state == "upgraded" else "running")
    assert len(r.alive("target")) == sum(r.upgrade(name).state == "upgraded" for name in (SERVER, OTHER))
    assert r.alive("image") == []


IDS = ["-".join(state) for state in states()]


@pytest.mark.parametrize("state", states(), ids=IDS)
def test_every_verb_may_be_asked_twice_in_every_state(state: tuple[str, str, str]) -> None:
    for verb in VERBS:
        with running([SERVER, OTHER], rollout=POLICY, retain=RETAIN) as r:
            watch = Watch(r, least=2)
            at(r, state)
            first, before = ask(r, verb), (r.record(), r.upgrade(SERVER))
            second = ask(r, verb)
            assert second in (("so already",) if first == "done" else (first, "so already")), (verb, first, second)
            assert (r.record(), r.upgrade(SERVER)) == before
            to_the_end(r, watch)


@pytest.mark.parametrize("place", range(len(states())), ids=IDS)
def test_every_verb_may_follow_every_other(place: int) -> None:
    """A quarter of all pairs in each state: every pair in a quarter of the states."""
    state = states()[place]
    for one, other in list(permutations(VERBS, 2))[place % 4 :: 4]:
        with running([SERVER, OTHER], rollout=POLICY, retain=RETAIN) as r:
            watch = Watch(r, least=2)
            at(r, state)
            ask(r, one)
            for _ in range(3):
                r.turn()
                r.clock.now += 0.3
            ask(r, other)
            to_the_end(r, watch)


def test_the_states_are_all_there() -> None:
    found = states()
    assert {step for _, direction, step in found if direction == "forward"} >= set(STEPS)
    assert {step for _, direction, step in found if direction == "undo"} >= set(STEPS)
    assert all(one != other for one, other in pairwise(found))


@pytest.mark.parametrize("step", STEPS)
def test_an_undo_that_cannot_go_on_says_why_where_users_are_and_what_to_do(step: str) -> None:
    """No credentials for it at any call of that step's undo, until somebody has mended it."""
    with running([SERVER, OTHER], rollout=POLICY, retain=RETAIN) as r:
        watch, mended = Watch(r, least=2), False
        asked = r.cloud.fault

        def fault(name: str) -> Any:
            u = r.upgrade(SERVER)
            if not mended and (u.direction, u.step) == ("undo", step) and name not in ("proven", "idle"):
                raise Unauthorized(f"{name}: no credentials")
            return asked(name)

        r.cloud.fault = fault
        r.until(lambda: r.upgrade(SERVER).state == "upgraded")
        VERBS["rollback"](r)
        r.until(lambda: r.upgrade(SERVER).state in ("held", "rolled_back"))
        u = r.upgrade(SERVER)
        if u.state == "held":
            assert u.step == step and "no credentials" in u.why and u.traffic
            assert words.next_for(r.record(), u) == f"changeover retry {r.rollout} --server {SERVER}"
            died = iter([True])

            def crash(_point: str) -> None:
                if next(died, False):
                    raise Crashed  # and the next one goes on

            mended, r.crash = True, crash
            operations.retry(r.store, r.rollout, [SERVER], actor=WHO)
        to_the_end(r, watch)
        assert r.upgrade(SERVER).state == "rolled_back"
