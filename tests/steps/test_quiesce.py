"""A stands still round the moment of its image, and never for longer than it must."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest
import structlog

from providers import errors
from providers.compute.fake import Fault
from tests.support.outcome import SERVER, ends_well, journey, settle, turn_back
from tests.support.runner import Runner


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


def before(r: Runner, act: Callable[[str], Fault | None]) -> None:
    """Asked before every call of a provider."""
    asked = r.cloud.fault
    r.cloud.fault = lambda name: act(name) or asked(name)


def frozen(r: Runner) -> bool:
    return r.cloud.frozen(SERVER) is not None


@pytest.mark.parametrize(
    "error",
    [
        errors.Refused("no"),
        errors.Throttled("slow down", retry_after=3.0),
        errors.Transient("no answer", ambiguous=True),
        errors.Unauthorized("who are you"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_becomes_of_the_image_its_server_is_let_go_at_once(error: Exception) -> None:
    with journey("forward") as (r, _):
        seen: list[bool] = []

        def act(name: str) -> Fault | None:
            if name == "ensure_image":
                seen.append(frozen(r))
                raise error
            return None

        before(r, act)
        r.until(lambda: bool(seen))
        at = r.clock()
        assert seen == [True], "it was asked for while nothing was written"
        assert not frozen(r)
        assert r.clock() == at, "and nobody had to wait for a watchdog"


def test_an_image_whose_answer_was_lost_is_thrown_away_for_one_that_is_known_to_be_whole() -> None:
    with journey("forward") as (r, watch):
        lost: list[Fault] = ["after"]
        before(r, lambda name: lost.pop() if name == "ensure_image" and lost else None)
        settle(r)
        u = ends_well(r, watch)
        assert (u.state, u.attempt("create_image")) == ("upgraded", 1)
        assert len(r.cloud.moments) == 2


def test_a_look_that_fails_costs_no_attempt() -> None:
    with journey("forward") as (r, watch):
        left = [errors.Throttled("slow down", retry_after=1.0), errors.Transient("no answer", ambiguous=False)]

        def act(name: str) -> Fault | None:
            if name == "taken" and left:
                raise left.pop()
            return None

        before(r, act)
        settle(r)
        assert ends_well(r, watch).attempt("create_image") == 0


def test_a_time_that_is_too_short_is_told_and_the_old_server_serves_on() -> None:
    with journey("forward") as (r, watch):

        def act(name: str) -> Fault | None:
            if name == "taken" and (on := r.cloud.frozen(SERVER)) is not None:
                on.until = r.clock() + 0.1
            return None

        before(r, act)
        settle(r)
        u = ends_well(r, watch)
        assert u.state == "failed"
        assert "quiesce.timeout" in u.cause


def test_a_server_that_cannot_be_told_any_more_releases_itself_and_holds_up_no_undo() -> None:
    with journey("forward") as (r, watch):

        def act(name: str) -> Fault | None:
            if name == "release":
                raise errors.Transient("its agent is silent", ambiguous=False)
            return None

        before(r, act)
        r.until(lambda: frozen(r))
        turn_back(r)
        r.until(lambda: "watchdog" in r.upgrade(SERVER).why)
        settle(r)
        assert ends_well(r, watch).state == "rolled_back"


def test_a_freeze_of_a_worker_that_is_gone_is_no_part_of_the_next_one_s_image() -> None:
    """Its image was asked for in a freeze that nobody saw the end of."""
    with journey("forward") as (r, watch):
        left = ["here"]

        def act(name: str) -> Fault | None:
            if name == "ensure_image" and left:
                left.pop()
                r.clock.now += 60.0  # its worker stands still, its lease ends, and so does the freeze
            return None

        before(r, act)
        settle(r)
        assert ends_well(r, watch).state == "upgraded"
