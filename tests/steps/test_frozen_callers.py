"""A worker is frozen right before a call that changes something, everybody else goes on, and then the call is made.
No lease can stop it: the resource itself must refuse it, or it must do no harm. No call is named here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from typing import Any

import pytest
import structlog

from orchestrator import operations
from orchestrator.domain.upgrade import Upgrade
from providers.compute import Server
from providers.errors import ProviderError
from tasks import step
from tasks.world import Turn, World
from tests.support.outcome import SERVER, Watch, ends_well, journey, settle, turn_back, up
from tests.support.runner import FAKES, Crashed, Runner

# Making something late is another matter: it is found by its tags, and ended.
LOOKS = ("lane", "servers", "images", "inventory", "proven", "idle", "members", "counters", "facts", "check", "compare")
MAKES = ("ensure_image", "ensure_server")
WHO = "test"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


class Freezer:
    """Stands between the steps and their providers. The call of that number is not made, and its worker not heard of
    again; `late` makes it."""

    def __init__(self, r: Runner, index: int) -> None:
        self.r, self.left = r, index
        self.made: list[str] = []
        self.frozen = ""
        self._call: Callable[[], Any] | None = None
        r.world._found.clear()
        r.world._providers.clear()
        r.world.find = lambda role, _name, settings: _Behind(FAKES[role](settings), self)

    def called(self, name: str, call: Callable[[], Any]) -> Any:
        if name in LOOKS or name in MAKES:
            return call()
        self.made.append(name)
        self.left -= 1
        if self.left == -1:
            self.frozen, self._call = name, call
            raise Crashed
        return call()

    def late(self) -> None:
        if self._call is not None:
            with suppress(ProviderError):
                self._call()
            self._call = None


class _Behind:
    def __init__(self, provider: Any, freezer: Freezer) -> None:
        self._provider, self._freezer = provider, freezer

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._provider, name)
        if not callable(found):
            return found
        return lambda *args, **kwargs: self._freezer.called(name, lambda: found(*args, **kwargs))


@cache
def calls(direction: str) -> tuple[str, ...]:
    with journey(direction) as (r, _):
        freezer = Freezer(r, 10**9)
        settle(r)
        return tuple(freezer.made)


def indices(direction: str) -> list[Any]:
    return [pytest.param(n, id=f"{n}-{name}") for n, name in enumerate(calls(direction))]


def patrolled(r: Runner) -> None:
    for _ in range(4):
        r.patrol(r.rollout)
        r.clock.now += 1


def until_frozen(r: Runner, freezer: Freezer) -> None:
    r.until(lambda: bool(freezer.frozen) or r.upgrade(SERVER).settled)


def back(r: Runner, freezer: Freezer, direction: str) -> Upgrade:
    """To the end of a rollback, with the call still to come; or to A's end, where that has been decided."""
    until_frozen(r, freezer)
    if direction == "forward" and not r.upgrade(SERVER).beyond_return:
        turn_back(r)
    settle(r)
    return r.upgrade(SERVER)


@pytest.mark.parametrize("direction", ["forward", "undo"])
def test_there_are_calls_to_come_late(direction: str) -> None:
    assert {"add" if direction == "forward" else "restore", "remove"} <= set(calls(direction))


def _late_after_a_rollback(index: int, direction: str) -> None:
    with journey(direction) as (r, watch):
        freezer = Freezer(r, index)
        u = back(r, freezer, direction)
        freezer.late()
        watch.look("after the late call")
        patrolled(r)
        ends_well(r, watch)
        if u.state != "upgraded":
            as_it_was(r)


def as_it_was(r: Runner) -> None:
    """A carries nothing that hinders anybody from stopping or ending it."""
    view = r.cloud.things[SERVER].view
    assert isinstance(view, Server)
    assert not view.protected and "changeover:phase" not in view.tags and "changeover:disposable" not in view.tags


@pytest.mark.parametrize("index", indices("forward"))
def test_a_call_of_the_way_forward_that_comes_after_the_rollback_does_no_harm(index: int) -> None:
    _late_after_a_rollback(index, "forward")


@pytest.mark.parametrize("index", indices("undo"))
def test_a_call_of_the_way_back_that_comes_after_its_end_does_no_harm(index: int) -> None:
    _late_after_a_rollback(index, "undo")


@pytest.mark.parametrize("moment", ["while the old one drains", "when it is upgraded"])
@pytest.mark.parametrize(
    ("direction", "index"),
    [pytest.param(d, n, id=f"{d}-{n}-{name}") for d in ("forward", "undo") for n, name in enumerate(calls(d))],
)
def test_a_call_of_a_former_life_does_no_harm_in_the_next(direction: str, index: int, moment: str) -> None:
    with journey("undo" if direction == "undo" else "forward") as (r, watch):
        freezer = Freezer(r, index)
        u = back(r, freezer, direction)
        if u.state == "upgraded":
            return  # frozen at A's end, from which nothing comes back
        operations.retry(r.store, r.rollout, [SERVER], actor=WHO)
        if moment == "while the old one drains":
            r.until(lambda: r.upgrade(SERVER).step == "drain_old" and r.upgrade(SERVER).intent is not None)
            freezer.late()
        r.until(lambda: r.upgrade(SERVER).state in ("upgraded", "held"))
        assert r.upgrade(SERVER).state == "upgraded", r.upgrade(SERVER).why
        freezer.late()
        watch.look("after the late call")
        patrolled(r)
        assert up(r) == set(r.members()) == {f"{SERVER}.g3"}
        assert r.cloud.things[SERVER].view.state == "stopped", "whoever keeps a server stopped wants it to stay so"
        assert not watch.dark, watch.dark[0]


def test_a_protection_of_somebody_else_is_there_before_and_after() -> None:
    with journey("forward") as (r, watch):
        r.until(lambda: r.upgrade(SERVER).step == "drain_old")
        r.world.compute(r.fleet).protect(SERVER, True)
        r.until(lambda: "protected" in r.upgrade(SERVER).why)
        turn_back(r)
        settle(r)
        view = r.cloud.things[SERVER].view
        assert isinstance(view, Server) and view.protected and "changeover:phase" not in view.tags
        assert up(r) == {SERVER} and not watch.dark


def test_a_server_that_was_rolled_back_is_as_it_was() -> None:
    with journey("undo") as (r, watch):
        settle(r)
        ends_well(r, watch)
        as_it_was(r)
        assert isinstance(watch, Watch)


def test_a_call_begins_with_half_of_the_lease_left_though_its_intent_came_at_the_lease_s_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker stands still between its claim and its intent, and the store takes that in the lease's last moment."""
    with journey("forward") as (r, watch):
        left: list[float] = []
        honest = step._announce

        def late(world: World, body: step.Step, turn: Turn) -> str | None:
            r.clock.now += world.lease - 0.01
            return honest(world, body, turn)

        def look(point: str) -> None:
            if ".before " in point:
                left.append(r.store.rows(r.rollout)[0].lease_until - r.clock())

        monkeypatch.setattr(step, "_announce", late)
        r.crash = look
        r.until(lambda: r.upgrade(SERVER).step != "create_image")
        assert left and min(left) >= r.world.lease / 2
        monkeypatch.undo()
        settle(r)
        ends_well(r, watch)
