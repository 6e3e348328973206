"""A new server that dies on the threshold of its pools goes back within a minute; one that only stumbles comes in."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import structlog

from providers.compute import Server
from providers.compute.fake import Fault
from providers.errors import Transient
from providers.traffic import MemberView
from providers.traffic.fake import FakeTraffic
from tests.support.outcome import Watch
from tests.support.runner import PORT, Runner, running

SERVER, NEW = "web-1", "web-1.g2"
MINUTE = 60.0


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


def change(r: Runner, **fields: object) -> None:
    thing = r.cloud.things[r.upgrade(SERVER).results["provision"]["server"]]
    assert isinstance(thing.view, Server)
    thing.view = replace(thing.view, **fields)  # type: ignore[arg-type] # a field of a server


def stops(r: Runner) -> None:
    change(r, state="stopped")


def is_gone(r: Runner) -> None:
    del r.cloud.things[r.upgrade(SERVER).results["provision"]["server"]]


def starts_anew(r: Runner) -> None:
    """And its application does not come up with it."""
    change(r, boot="another")
    falls_silent(r)
    r.sites.fails(str(r.upgrade(SERVER).results["smoke_test"]["address"]), PORT)


def falls_silent(r: Runner) -> None:
    """The machine runs, and nothing on it answers the balancer."""
    r.cloud.sick.add(str(r.upgrade(SERVER).results["smoke_test"]["address"]))


def proven_once(r: Runner) -> None:
    """As a real balancer has it that had found B up, and made it ready, before anybody looked."""
    address = str(r.upgrade(SERVER).results["smoke_test"]["address"])
    r.cloud.pools["web"][NEW] = MemberView(name=NEW, address=address, port=PORT, state="serving")


def at_the_threshold(r: Runner) -> None:
    r.until(lambda: r.upgrade(SERVER).step == "swap")


def wait(r: Runner, seconds: float) -> None:
    end = r.clock() + seconds
    r.until(lambda: r.clock() >= end)


def turned_back_after(r: Runner) -> float:
    start = r.clock()
    r.until(lambda: r.upgrade(SERVER).direction == "undo")
    return r.clock() - start


@pytest.mark.parametrize("ill", [stops, is_gone, starts_anew])
@pytest.mark.parametrize("was_up", [False, True])
def test_a_new_server_that_dies_before_it_serves_goes_back_within_a_minute(
    ill: Callable[[Runner], None], was_up: bool
) -> None:
    with running([SERVER, "web-2"]) as r:
        watch = Watch(r, least=2)
        at_the_threshold(r)
        if was_up:
            proven_once(r)
        ill(r)
        assert turned_back_after(r) < MINUTE
        cause = r.upgrade(SERVER).cause
        assert cause.startswith(
            ("web-1's new server never served: its server ", "smoke test of web-1's new server, made")
        )
        r.until(lambda: r.upgrade(SERVER).terminal)
        assert SERVER in r.serving() and NEW not in r.members()
        assert not watch.dark


@pytest.mark.parametrize("soak", ["0s", "30s"])
@pytest.mark.parametrize("fails_first", [False, True])
def test_one_that_has_started_anew_since_its_smoke_test_is_tested_again_before_users_are_sent(
    fails_first: bool, soak: str
) -> None:
    policy = {"waves": ["rest"], "bake": "0s", "soak": soak, "poll": "1s"}
    with running([SERVER, "web-2"], rollout=policy, retain={"old_servers": "24h"}) as r:
        at_the_threshold(r)
        where = str(r.upgrade(SERVER).results["smoke_test"]["address"]), PORT
        change(r, boot="another")
        if fails_first:
            good = r.sites.ask(where)
            r.sites.answers(*where, replace(good, status=503), good)
        before = r.sites.calls[where]
        r.until(lambda: NEW in r.members())
        assert r.sites.calls[where] - before == 2 + fails_first, "as often in a row as ever"
        r.until(lambda: r.upgrade(SERVER).state == "upgraded")
        assert r.upgrade(SERVER).results["swap"]["boot"] == "another"
        r.patrolling = True
        del r.cloud.pools["web"][NEW]
        r.until(lambda: NEW in r.serving())
        assert r.upgrade(SERVER).ailing is None or not r.upgrade(SERVER).ailing.looks


def test_one_whose_smoke_test_still_counts_is_not_asked_again() -> None:
    with running([SERVER, "web-2"]) as r:
        at_the_threshold(r)
        before = r.sites.calls.total()
        r.until(lambda: {SERVER, "web-2"}.isdisjoint(r.members()))
        assert r.sites.calls.total() - before <= 2, "at most what the other's own test has left"


def test_one_that_runs_and_is_down_in_the_balancer_goes_back_within_a_minute() -> None:
    with running([SERVER, "web-2"]) as r:
        at_the_threshold(r)
        proven_once(r)
        falls_silent(r)
        assert 20 < turned_back_after(r) < MINUTE, "not for a flap"
        assert r.upgrade(SERVER).cause.startswith(f"{NEW} is down in web before it has served")


@pytest.mark.parametrize("seconds", [1.0, 5.0, 20.0])
def test_one_that_is_down_for_a_moment_before_it_serves_comes_in(seconds: float) -> None:
    with running([SERVER, "web-2"]) as r:
        at_the_threshold(r)
        proven_once(r)
        falls_silent(r)
        wait(r, seconds)
        r.cloud.sick.clear()
        r.until(lambda: r.record().state == "succeeded")


def test_one_that_takes_long_to_be_proven_and_runs_is_waited_for() -> None:
    with running([SERVER, "web-2"]) as r:
        at_the_threshold(r)
        falls_silent(r)
        wait(r, 200)
        assert r.upgrade(SERVER).step == "swap" and r.upgrade(SERVER).direction == "forward"
        assert r.cloud.calls["servers"] < 60, "it is asked after now and then"
        r.cloud.sick.clear()
        r.until(lambda: r.record().state == "succeeded")


def test_a_cloud_that_does_not_answer_makes_nobody_dead() -> None:
    with running([SERVER, "web-2"]) as r:
        at_the_threshold(r)
        falls_silent(r)
        r.until(lambda: "wanted" in r.upgrade(SERVER).notes)

        def away(name: str) -> Fault:
            if name == "servers":
                raise Transient("no answer", ambiguous=False)
            return ""

        r.cloud.fault = away
        wait(r, 100)
        assert r.upgrade(SERVER).direction == "forward"
        r.cloud.sick.clear()
        r.until(lambda: r.upgrade(SERVER).state == "upgraded")


def test_a_balancer_that_knows_its_members_by_a_tag_finds_it_on_a_new_server(monkeypatch: pytest.MonkeyPatch) -> None:
    caps = FakeTraffic.caps.fget
    assert caps is not None
    by_tag = property(lambda traffic: replace(caps(traffic), member_tag="shop:member"))
    monkeypatch.setattr(FakeTraffic, "caps", by_tag)
    with running([SERVER]) as r:
        r.finish()
        assert [thing.view.tags.get("shop:member") for thing in r.cloud.things.values()].count(NEW) == 1
        assert r.serving() == {NEW}
