"""The same faults behind a switch that is like names in DNS: it has to be prepared, what it once said is believed for a
while, and it sees no sessions. With `one`, the new server takes the old one's place in one go."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import pytest
import structlog

from orchestrator.domain.upgrade import Released
from tasks import step
from tests.steps import test_every_step as every
from tests.support import outcome
from tests.support.outcome import SERVER, Watch, ends_well, journey, settle, tell
from tests.support.runner import Runner, running

DIRECTIONS = pytest.mark.parametrize("direction", ["forward", "undo"])


@pytest.fixture(autouse=True, params=["names", "one"], scope="module")
def _behind_names(request: pytest.FixtureRequest) -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "UNDO_DEADLINE", 60.0)
        patch.setattr(outcome, "SWITCH", request.param)
        found = (every.points, every.calls, every.deliveries)
        for each in found:
            each.cache_clear()
        yield
        for each in found:
            each.cache_clear()
    structlog.reset_defaults()


def everywhere(direction: str) -> range:
    return range(len(every.points(direction)))


@DIRECTIONS
def test_a_worker_may_die_at_any_point(direction: str) -> None:
    every.die_at(everywhere(direction), direction)


@DIRECTIONS
def test_its_successor_may_die_there_too(direction: str) -> None:
    every.die_at(everywhere(direction)[::2], direction, times=2, redeliver=True)


@DIRECTIONS
def test_any_message_may_be_lost(direction: str) -> None:
    every.test_any_message_may_be_lost(direction)


def test_every_message_may_come_twice() -> None:
    every.test_every_message_may_come_twice()


@pytest.mark.parametrize("dies", [False, True], ids=["worker goes on", "worker dies"])
def test_it_may_be_turned_back_at_any_point(dies: bool) -> None:
    every.turn_back_at(everywhere("forward"), dies=dies)


@pytest.mark.parametrize("fault", list(every.FAULTS))
@DIRECTIONS
def test_a_call_that_fails_once_ends_well(direction: str, fault: str) -> None:
    """Every call of the traffic switch."""
    traffic = {"add", "restore", "remove", "proven", "idle", "prepare", "settled", "facts"}
    for index, (_, call) in enumerate(every.calls(direction)):
        if call not in traffic:
            continue
        with journey(direction) as (r, watch):
            every.fail_at(r, index, fault)
            settle(r)
            end = ends_well(r, watch)
            if fault in every.HARMLESS:
                assert end.state == every.wanted(direction), (fault, call, end.cause)


def test_it_waits_until_the_old_ttl_has_passed_and_that_is_not_the_steps_own_time() -> None:
    with journey("forward") as (r, watch):
        r.until(lambda: r.upgrade(SERVER).step == "swap" and bool(r.upgrade(SERVER).intent))
        ready = min(r.cloud.prepared["web"].values())
        r.until(lambda: "swap" in r.upgrade(SERVER).results)
        assert r.upgrade(SERVER).results["swap"]["since"] >= ready
        settle(r)
        ends_well(r, watch)


def test_an_old_server_stays_until_its_own_connections_have_ended() -> None:
    with journey("forward") as (r, watch):
        _hold(r, 2)
        r.until(lambda: "2 connections" in r.upgrade(SERVER).why)
        assert r.cloud.things[SERVER].view.state == "running"
        left = r.clock()
        r.clock.now += 5
        _hold(r, 0)
        settle(r)
        assert ends_well(r, watch).results["drain_old"]["retain_until"] > left + 60


def test_a_person_is_asked_about_connections_that_do_not_end() -> None:
    policy = {"waves": ["rest"], "bake": "0s", "soak": "1s", "drain": {"deadline": "30s", "quiet": "1s"}}
    with running([SERVER], switch=outcome.SWITCH, rollout=policy, retain={"old_servers": "60s"}) as r:
        watch = Watch(r)
        _hold(r, 1)
        r.until(lambda: r.upgrade(SERVER).state == "held")
        assert "1 connection" in r.upgrade(SERVER).why
        assert "no name leads there any more" in r.upgrade(SERVER).why
        _hold(r, 0)
        tell(r, Released(at=r.store.now()))
        settle(r)
        assert ends_well(r, watch).state == "upgraded"


def test_what_a_name_has_said_is_believed_before_the_old_server_stops() -> None:
    with journey("forward") as (r, watch):
        r.until(lambda: ("web", SERVER) in r.cloud.believed)
        believed = r.cloud.believed["web", SERVER]
        r.until(lambda: r.cloud.things[SERVER].view.state != "running")
        assert r.clock() >= believed
        settle(r)
        ends_well(r, watch)


def _hold(r: Runner, sessions: int) -> None:
    """So many requests are in flight at the old server."""
    pool = r.cloud.pools["web"]
    pool[SERVER] = replace(pool[SERVER], sessions=sessions)
