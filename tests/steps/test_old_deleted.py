"""Somebody else deletes the old server while it is in our hands: its new one serves, and goes on serving."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import structlog

from orchestrator import operations, words
from orchestrator.errors import PointOfNoReturn
from providers.compute import Server
from tasks import step
from tests.support.outcome import Watch, up
from tests.support.runner import Runner, running

WHO = "ann"
SWITCHES = pytest.mark.parametrize("switch", ["balancer", "names", "one"])
MOMENTS = ["soak", "drain", "stop"]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


@contextmanager
def fleet(*, switch: str = "balancer", retain: str = "1h", least: int = 1, **policy: Any) -> Iterator[Runner]:
    """Two servers, looked after; at least so many serve all the while."""
    rollout = {"waves": ["rest"], "bake": "0s", "soak": "5s", "drain": {"deadline": "30s", "quiet": "1s"}, **policy}
    names = ["web-1", "web-2"] if switch != "one" else ["web-1"]
    with running(names, switch=switch, rollout=rollout, retain={"old_servers": retain}) as r:
        r.patrolling = True
        watch = Watch(r, least=least)
        yield r
        assert not watch.dark, watch.dark[0]


def delete(r: Runner, id: str = "web-1") -> None:
    thing = r.cloud.things[id]
    assert isinstance(thing.view, Server)
    thing.view = replace(thing.view, state="terminated")


def delete_at(r: Runner, moment: str) -> None:
    def crash(point: str) -> None:
        if moment == "stop" and point == "drain_old.before compute.stop" and r.cloud.get("web-1"):
            delete(r)

    r.crash = crash
    if moment == "soak":
        r.until(lambda: "since" in r.upgrade("web-1").notes)
        delete(r)
    elif moment == "drain":
        r.until(lambda: r.upgrade("web-1").step == "drain_old" and "drained_by" in r.upgrade("web-1").notes)
        delete(r)


def events(r: Runner, kind: str) -> list[Any]:
    return [entry for entry in operations.events(r.store, r.rollout) if entry.event == kind]


def b_dies(r: Runner) -> None:
    delete(r, r.upgrade("web-1").results["provision"]["server"])


@SWITCHES
@pytest.mark.parametrize("moment", MOMENTS)
def test_an_old_server_that_somebody_has_deleted_is_no_reason_to_leave_the_new_one(moment: str, switch: str) -> None:
    with fleet(switch=switch, least=0 if switch == "one" else 1) as r:
        delete_at(r, moment)
        r.until(lambda: r.record().ended)
        u = r.upgrade("web-1")
        assert (r.record().state, u.state, u.direction) == ("succeeded", "upgraded", "forward")
        assert not events(r, "TurnedBack") and not events(r, "Held") and not r.record().stop
        assert "web-1.g2" in up(r) and "web-1" not in r.members()
        assert "the old one is gone" in u.traffic
        done = next(e for e in events(r, "Finished") if e.server == "web-1" and e.detail["step"] == "drain_old")
        assert "gone" in words.happened(done) and "can be put back" in words.happened(done)
        assert words.where(u) == "old server gone" and "rollback" not in words.next_for(r.record(), u)
        assert [i.state for i in r.store.ledger(r.rollout) if i.key == "old:web-1"] == ["deleted"]


def test_a_rollback_of_a_server_whose_old_one_is_gone_is_refused_and_the_others_go_back() -> None:
    with fleet() as r:
        delete_at(r, "drain")
        r.until(lambda: r.record().ended)
        with pytest.raises(PointOfNoReturn, match="is gone") as refused:
            operations.rollback_server(r.store, r.rollout, "web-1", actor=WHO)
        assert "the new server of web-1 serves" in refused.value.traffic
        assert refused.value.next == f"changeover show {r.rollout}"
        operations.rollback(r.store, r.rollout, actor=WHO)
        r.until(lambda: r.record().state == "rolled_back")
        assert up(r) == {"web-1.g2", "web-2"}
        r.until(lambda: r.record().closed)
        assert up(r) == {"web-1.g2", "web-2"}


def test_the_image_of_an_old_server_that_is_gone_is_kept_for_its_time_and_nobody_takes_it_for_an_orphan() -> None:
    with fleet(retain="2h") as r:
        delete_at(r, "drain")
        r.until(lambda: r.record().ended)
        end = r.clock() + 7000
        for _ in range(3):
            operations.gc(r.store, r.ask, lambda: r.queue.append, collect=True, grace=5.0)
            until = r.clock() + 1000
            r.until(lambda: r.clock() >= until)  # noqa: B023 - asked in this very round
        r.until(lambda: r.clock() >= end)
        assert len(r.alive("image")) == 2 and not r.store.sightings() and not r.record().closed
        r.until(lambda: r.record().closed)
        assert r.alive("image") == [] and up(r) == {"web-1.g2", "web-2.g2"}
        assert {i.state for i in r.store.ledger(r.rollout) if i.kind != "server"} == {"deleted"}


def test_a_new_server_that_fails_when_its_old_one_is_gone_is_a_matter_for_a_person() -> None:
    with fleet(waves=[1, "rest"], bake="60s") as r:
        delete_at(r, "drain")
        r.until(lambda: r.upgrade("web-1").state == "upgraded")
        b_dies(r)
        r.until(lambda: bool(operations.view(r.store, r.rollout).alarms))
        end = r.clock() + 4000
        r.until(lambda: r.clock() >= end)
        u = r.upgrade("web-1")
        assert u.state == "upgraded" and u.asks_person and r.record().alarm
        assert "image" in u.keeps_old and len(r.alive("image")) == 1, "it is all that is left of the old server"
        assert "does not serve" in u.traffic and "the old one is gone" in u.traffic
        operations.settle(
            r.store, r.ask, r.rollout, "web-1", serving="new", because="made anew", unchecked=True, actor=WHO
        )
        assert r.upgrade("web-1").old_gone and [i.state for i in r.store.ledger(r.rollout) if i.key == "old:web-1"] == [
            "deleted"
        ]


@pytest.mark.parametrize("moment", ["soak", "drain", "kept"])
def test_a_rollback_to_an_old_server_that_nobody_knew_to_be_gone_is_held_and_the_new_one_stays(
    moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "UNDO_DEADLINE", 120.0)
    with fleet(soak="60s") as r:
        if moment == "kept":
            r.until(lambda: r.upgrade("web-1").state == "upgraded")
            delete(r)
        else:
            delete_at(r, moment)
        operations.rollback_server(r.store, r.rollout, "web-1", actor=WHO)
        r.until(lambda: r.upgrade("web-1").state == "held")
        u = r.upgrade("web-1")
        assert "the old server web-1 is gone" in u.why, u.why
        assert f"changeover settle {r.rollout} web-1 --serving new" in u.why
        assert "stays in" in u.traffic and "web-1.g2" in up(r)
        operations.retry(r.store, r.rollout, ["web-1"], actor=WHO)
        r.until(lambda: r.upgrade("web-1").state == "held" and r.clock() > 0)
        assert "web-1.g2" in up(r)
        if "web-1" not in r.members():
            operations.settle(
                r.store, r.ask, r.rollout, "web-1", serving="new", because="A is gone", unchecked=False, actor=WHO
            )
            assert "web-1.g2" in up(r) and r.upgrade("web-1").old_gone


@pytest.mark.parametrize("noticed", [True, False], ids=["noticed", "not noticed"])
def test_an_alarm_is_not_over_before_one_of_the_two_serves_again(noticed: bool) -> None:
    with fleet() as r:
        if noticed:
            delete_at(r, "drain")
        r.until(lambda: r.record().ended)
        delete(r)
        b_dies(r)
        r.until(lambda: bool(operations.view(r.store, r.rollout).alarms))
        if noticed:
            with pytest.raises(PointOfNoReturn):
                operations.rollback_server(r.store, r.rollout, "web-1", actor=WHO)
        else:
            operations.rollback_server(r.store, r.rollout, "web-1", actor=WHO)
            r.until(lambda: r.upgrade("web-1").state == "held")
            assert "does not serve as it must" in r.upgrade("web-1").traffic
        end = r.clock() + 200
        r.until(lambda: r.clock() >= end)
        assert r.record().alarm and not events(r, "alarm over")
        new = r.upgrade("web-1").results["provision"]["server"]
        thing = r.cloud.things[new]
        assert isinstance(thing.view, Server)
        thing.view = replace(thing.view, state="running")
        r.until(lambda: not r.record().alarm)
        assert len(events(r, "alarm over")) == 1
        assert "web-1.g2" in up(r)
