"""The pools of an open rollout are looked after: what late calls, restarts and people undo there is put right, and a
new server that fares badly goes back by itself or is told to a person."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import structlog

from orchestrator import operations
from orchestrator.domain.upgrade import SURE
from orchestrator.errors import Conflict, Unreachable
from orchestrator.store import Claim, Users
from providers.compute import Server
from providers.errors import Transient
from providers.traffic import MemberView, PoolCounters
from providers.traffic.fake import FakeTraffic
from tasks import swap
from tests.support.outcome import Watch, up
from tests.support.runner import PORT, Crashed, Runner, running

WHO = "test"
TWO = ["web-1", "web-2"]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


def policy(**changes: Any) -> dict[str, Any]:
    whole: dict[str, Any] = {
        "waves": ["rest"],
        "bake": "0s",
        "soak": "1s",
        "poll": "1s",
        "drain": {"deadline": "30s", "quiet": "1s"},
    }
    return {**whole, **changes}


@contextmanager
def patrolled(names: list[str] = TWO, *, retain: str = "10h", least: int = 2, **rollout: Any) -> Iterator[Runner]:
    with running(names, rollout=policy(**rollout), retain={"old_servers": retain}) as r:
        r.patrolling = True
        watch = Watch(r, least=least)
        yield r
        assert not watch.dark, watch.dark[0]


def wait(r: Runner, seconds: float) -> None:
    end = r.clock() + seconds
    r.until(lambda: r.clock() >= end)


def made(r: Runner, server: str) -> str:
    return str(r.upgrade(server).results["provision"]["server"])


def change(r: Runner, id: str, **fields: Any) -> None:
    thing = r.cloud.things[id]
    assert isinstance(thing.view, Server)
    thing.view = replace(thing.view, **fields)


def events(r: Runner, kind: str) -> list[Any]:
    return [entry for entry in operations.events(r.store, r.rollout) if entry.event == kind]


@pytest.mark.parametrize("trouble", [Unreachable("Redis does not answer"), ValueError("no sense")], ids=repr)
def test_trouble_at_one_server_leaves_no_lease_and_keeps_the_patrol_from_no_other(trouble: Exception) -> None:
    with patrolled(least=0) as r:
        r.until(lambda: r.record().state == "succeeded")
        del r.cloud.pools["web"]["web-1.g2"], r.cloud.pools["web"]["web-2.g2"]
        honest = r.store.renew

        def renew(claim: Claim, *, lease: float) -> Claim:
            if claim.server == "web-1":
                raise trouble
            return honest(claim, lease=lease)

        r.store.renew = renew  # type: ignore[method-assign] # no answer for one of them
        r.patrol(r.rollout)
        assert set(r.members()) == {"web-2.g2"}
        row = r.store.row(r.rollout, "web-1")
        assert row is not None
        assert not row.owner
        r.store.renew = honest  # type: ignore[method-assign] # and it is over
        r.patrol(r.rollout)
        assert set(r.members()) == {"web-1.g2", "web-2.g2"}


# -- put right --------------------------------------------------------------------------------------------------------


def test_a_new_server_that_was_taken_out_is_put_back() -> None:
    with patrolled(least=1) as r:
        r.until(lambda: r.record().state == "succeeded")
        del r.cloud.pools["web"]["web-1.g2"]
        start = r.clock()
        r.until(lambda: "web-1.g2" in up(r) and r.upgrade("web-1").ailing is None)
        assert r.clock() - start < 60
        wait(r, 100)
        assert r.upgrade("web-1").state == "upgraded" and not r.record().alarm
        assert events(r, "Ailed")[0].detail["repaired"] == [
            {"pool": "web", "name": "web-1.g2", "was": "absent", "now": "joining"}
        ]
        assert r.upgrade("web-1").retain_until is not None and r.cloud.things["web-1"].view.state == "stopped"


@pytest.mark.parametrize("answers", [True, False], ids=["it answers", "it does not answer"])
def test_a_new_server_is_not_compared_with_an_old_one_that_we_have_stopped(answers: bool) -> None:
    smoke = {
        "requests": [{"url": "http://shop.test/health", "same_as_old": True}],
        "passes": 2,
        "every": "1s",
        "probe": "fake",
    }
    with running(TWO, rollout=policy(), retain={"old_servers": "10h"}, checks={"smoke": smoke}) as r:
        r.patrolling = True
        old = [str(r.members()[name].address) for name in TWO]
        for address in old:
            r.sites.passes(address, PORT)
        r.until(lambda: r.record().state == "succeeded")
        wait(r, swap.FRESH + 60)
        assert {r.cloud.things[name].view.state for name in TWO} == {"stopped"}
        for address in old:
            r.sites.fails(address, PORT)
        if not answers:
            r.sites.fails(r.members()["web-1.g2"].address, PORT, status=500)
        del r.cloud.pools["web"]["web-1.g2"]
        if answers:
            r.until(lambda: "web-1.g2" in up(r) and r.upgrade("web-1").ailing is None)
            assert not any("smoke test" in str(entry.detail) for entry in events(r, "Ailed"))
        else:
            r.until(lambda: bool(events(r, "Ailed")))
            assert "its smoke test fails now" in r.upgrade("web-1").ailing.why  # type: ignore[union-attr] # it ails


def test_an_old_server_that_comes_back_into_the_pool_is_taken_out() -> None:
    with patrolled() as r:
        r.until(lambda: r.record().state == "succeeded")
        old = r.cloud.things["web-1"].view
        assert isinstance(old, Server)
        r.cloud.pools["web"]["web-1"] = MemberView(name="web-1", address=old.address, port=PORT, state="serving")
        r.until(lambda: "web-1" not in r.members())
        assert events(r, "Repaired")[0].server == "web-1"


def test_after_a_rollback_the_old_server_is_put_back_and_a_late_new_one_taken_out() -> None:
    with patrolled(least=1, waves=[1, 1]) as r:
        r.until(lambda: r.upgrade("web-1").state == "upgraded")
        operations.rollback_server(r.store, r.rollout, "web-1", actor=WHO)
        operations.pause(r.store, r.rollout, actor=WHO)
        r.until(lambda: r.upgrade("web-1").state == "rolled_back")
        del r.cloud.pools["web"]["web-1"]
        gone = str(r.upgrade("web-1").results["provision"]["address"])
        r.cloud.pools["web"]["web-1.g2"] = MemberView(name="web-1.g2", address=gone, port=PORT, state="joining")
        r.until(lambda: up(r) == {"web-1", "web-2"} == set(r.members()))


def test_what_is_not_ours_is_never_touched() -> None:
    with patrolled() as r:
        other = r.cloud.server("db-1")
        theirs = MemberView(name="db-1", address=other.address, port=PORT, state="draining", sessions=2)
        r.until(lambda: r.record().state == "succeeded")
        r.cloud.pools["web"] |= {"db-1": theirs}
        wait(r, 300)
        assert r.members()["db-1"] == theirs


def test_a_pending_server_is_its_operators_own() -> None:
    with patrolled(waves=[1, 1], bake="1h", least=1) as r:
        r.until(lambda: r.upgrade("web-1").state == "upgraded")
        del r.cloud.pools["web"]["web-2"]
        wait(r, 300)
        assert "web-2" not in r.members() and not events(r, "Repaired")


def test_nothing_is_put_right_while_everything_is_frozen() -> None:
    with patrolled(least=1) as r:
        r.until(lambda: r.record().state == "succeeded")
        operations.freeze(r.store, actor=WHO)
        del r.cloud.pools["web"]["web-1.g2"]
        wait(r, 200)
        assert "web-1.g2" not in r.members()
        operations.unfreeze(r.store, actor=WHO)
        r.until(lambda: "web-1.g2" in up(r))


@pytest.mark.parametrize("missing", ["web-1.g2", "web-1"])
def test_the_one_that_users_rely_on_is_back_before_the_other_leaves(missing: str) -> None:
    """Both are wrong at once: B is out and A is in, or the other way round."""
    with patrolled(least=1, waves=[1, 1]) as r:
        r.until(lambda: r.upgrade("web-1").state == "upgraded")
        operations.pause(r.store, r.rollout, actor=WHO)
        if missing == "web-1":
            operations.rollback_server(r.store, r.rollout, "web-1", actor=WHO)
            r.until(lambda: r.upgrade("web-1").state == "rolled_back")
        present = "web-1" if missing == "web-1.g2" else "web-1.g2"
        address = r.cloud.server("stands in").address
        r.cloud.pools["web"][present] = MemberView(name=present, address=address, port=PORT, state="serving")
        del r.cloud.pools["web"][missing]
        order: list[set[str]] = []

        def over() -> bool:
            order.append(set(r.members()))
            return missing in up(r) and present not in r.members()

        r.until(over)
        assert all(present in members for members in order if missing not in members)


# -- a new server that ails -------------------------------------------------------------------------------------------


def dies(r: Runner) -> None:
    change(r, made(r, "web-1"), state="stopped")


def is_gone(r: Runner) -> None:
    del r.cloud.things[made(r, "web-1")]


def restarts(r: Runner) -> None:
    """It comes back as another boot, and out of the pool: nobody has tested that one."""
    change(r, made(r, "web-1"), boot="7")
    del r.cloud.pools["web"]["web-1.g2"]


ILLS = [dies, is_gone, restarts]


@pytest.mark.parametrize("ill", ILLS)
@pytest.mark.parametrize("moment", ["bake", "others of its wave are under way"])
def test_a_new_server_that_fails_before_its_bake_is_over_goes_back(ill: Callable[[Runner], None], moment: str) -> None:
    baking = moment == "bake"
    with patrolled(
        ["web-1", "web-2", "web-3"], least=2, waves=[1 if baking else 2, "rest"], bake="60s", max_in_flight=1
    ) as r:
        r.until(lambda: r.upgrade("web-1").state == "upgraded" and (not baking or r.record().state == "baking"))
        ill(r)
        r.until(lambda: r.upgrade("web-1").direction == "undo")
        assert r.record().stop.startswith("web-1 failed behind its swap")
        assert "web-1.g2" not in up(r), "nobody has put back what nobody had tested"
        r.until(lambda: r.upgrade("web-1").terminal and r.record().state == "paused")
        assert r.upgrade("web-1").state == "rolled_back" and "web-1" in up(r)
        assert r.store.tally(r.rollout).failed_after_swap == 1
        assert r.upgrade("web-3").state == "pending"


def test_a_bake_is_not_over_while_a_new_server_is_in_doubt() -> None:
    with patrolled(waves=[1, 1], bake="6s", least=1) as r:
        r.until(lambda: r.record().state == "baking")
        until = r.record().bake_until
        assert until is not None
        r.until(lambda: r.clock() >= until - 2.5)
        dies(r)
        r.until(lambda: r.upgrade("web-1").direction == "undo")
        r.until(lambda: r.upgrade("web-1").terminal)
        assert r.upgrade("web-2").state == "pending" and r.upgrade("web-1").state == "rolled_back"


@pytest.mark.parametrize("ill", ILLS)
def test_a_new_server_that_fails_while_the_old_one_is_kept_is_told_to_a_person(ill: Callable[[Runner], None]) -> None:
    with patrolled(least=1) as r:
        r.until(lambda: r.record().state == "succeeded")
        ill(r)
        r.until(lambda: (a := r.upgrade("web-1").ailing) is not None and a.sure)
        wait(r, 600)
        view = operations.view(r.store, r.rollout)
        assert r.upgrade("web-1").state == "upgraded" and r.record().state == "succeeded"
        assert [u.server for u in view.alarms] == ["web-1"]
        assert r.record().alarm.startswith("web-1: web-1.g2 is ") and "making sure" not in r.record().alarm
        assert len(events(r, "Ailed")) <= SURE + 1, "told once, not for ever"
        assert "web-1.g2" not in up(r)
        operations.rollback_server(r.store, r.rollout, "web-1", actor=WHO)
        r.until(lambda: r.upgrade("web-1").state == "rolled_back" and not r.record().alarm)
        assert "web-1" in up(r)


def test_an_alarm_ends_when_the_new_server_serves_again() -> None:
    with patrolled(least=1) as r:
        r.until(lambda: r.record().state == "succeeded")
        dies(r)
        r.until(lambda: bool(operations.view(r.store, r.rollout).alarms))
        change(r, made(r, "web-1"), state="running")
        r.until(lambda: not r.record().alarm)
        assert r.upgrade("web-1").ailing is None
        assert [e.event for e in events(r, "alarm over")] == ["alarm over"]


def test_a_balancer_that_does_not_answer_makes_nobody_ill_or_well() -> None:
    with patrolled(waves=[1, 1], bake="60s", least=1) as r:
        r.until(lambda: r.record().state == "baking")

        def fault(name: str) -> Any:
            if name == "proven":
                raise Transient("no answer", ambiguous=False)
            return ""

        was, r.cloud.fault = r.cloud.fault, fault
        wait(r, 40)
        r.cloud.fault = was
        r.until(lambda: r.record().state == "succeeded")
        assert not events(r, "Ailed")


# -- the old server is kept on as long as the new one ails -------------------------------------------------------------


def kept_beyond_its_time(r: Runner, ill: Callable[[Runner], None]) -> None:
    """B has fallen ill while A was kept, and A's time is up by ten minutes."""
    r.until(lambda: r.record().state == "succeeded")
    ill(r)
    until = r.upgrade("web-1").retain_until
    assert until is not None
    r.until(lambda: r.clock() >= until + 600)


def begun(r: Runner, server: str) -> list[str]:
    return [e.detail["step"] for e in events(r, "Began") if e.server == server]


@pytest.mark.parametrize("ill", ILLS)
def test_an_old_server_outlives_its_time_while_its_new_one_ails_and_says_why(ill: Callable[[Runner], None]) -> None:
    with patrolled(retain="20m", least=1) as r:
        kept_beyond_its_time(r, ill)
        u = r.upgrade("web-1")
        assert "retire" not in begun(r, "web-1") and r.cloud.things["web-1"].view.state == "stopped"
        assert u.tries == 0 and u.keeps_old == u.why and "web-1.g2 is " in u.why
        asked = [e for e in events(r, "Stumbled") if e.server == "web-1"]
        assert 1 <= len(asked) <= 3, "every five minutes, and not at every turn"
        assert r.upgrade("web-2").old_gone, "the others do not wait for it"
        assert not r.record().closed
        found = operations.gc(r.store, r.ask, lambda: r.queue.append, collect=True, grace=5.0)
        assert found.kept_on == {(r.rollout, "web-1"): u.keeps_old}
        assert not found.due and not found.sent
        operations.rollback_server(r.store, r.rollout, "web-1", actor=WHO)
        r.until(lambda: r.record().closed)
        assert r.upgrade("web-1").state == "rolled_back" and "web-1" in up(r)


def test_an_old_server_that_was_kept_on_goes_when_its_new_one_serves_again() -> None:
    with patrolled(retain="20m", least=1) as r:
        kept_beyond_its_time(r, dies)
        change(r, made(r, "web-1"), state="running")
        r.until(lambda: r.upgrade("web-1").old_gone and r.record().closed)
        assert "web-1.g2" in up(r)


def test_a_new_server_that_died_a_moment_ago_keeps_its_old_one_though_no_patrol_has_seen_it() -> None:
    with patrolled(retain="20m", least=1) as r:
        r.until(lambda: r.record().state == "succeeded")
        until = r.upgrade("web-1").retain_until
        assert until is not None
        r.until(lambda: r.clock() >= until - 0.5)
        r.patrolling = False
        dies(r)
        wait(r, 300)
        assert r.upgrade("web-1").ailing is None and "retire" not in begun(r, "web-1")
        assert "the old server of web-1 is kept on: web-1.g2 is down" in r.upgrade("web-1").why
        r.patrolling = True
        r.until(lambda: bool(r.upgrade("web-1").keeps_old))
        change(r, made(r, "web-1"), state="running")
        r.until(lambda: r.record().closed)


@pytest.mark.parametrize("serving", ["new", "old"])
def test_a_person_may_settle_a_server_whose_new_one_ails(serving: Any) -> None:
    with patrolled(retain="20m", least=1) as r:
        kept_beyond_its_time(r, dies)

        def settle(*, unchecked: bool) -> operations.Answer:
            return operations.settle(
                r.store, r.ask, r.rollout, "web-1", serving=serving, because="seen", unchecked=unchecked, actor=WHO
            )

        with pytest.raises(Conflict, match="does not serve"):
            settle(unchecked=False)
        settle(unchecked=True)
        r.until(lambda: r.record().closed)
        u = r.upgrade("web-1")
        assert u.state == ("upgraded" if serving == "new" else "rolled_back") and u.by_hand and not u.flaw
        assert r.cloud.things["web-1"].view.state == "stopped", "what is left is the person's to end"
        [item] = [i for i in r.store.ledger(r.rollout) if i.key == "old:web-1"]
        assert item.state == ("retained" if serving == "new" else "live") and item.until is None


# -- it does no harm --------------------------------------------------------------------------------------------------


def test_an_old_server_is_never_ended_before_its_time_whatever_becomes_of_a_patrol() -> None:
    with patrolled(retain="20m", least=1) as r:
        r.until(lambda: r.record().state == "succeeded")
        until = r.upgrade("web-1").retain_until
        assert until is not None

        def crash(point: str) -> None:
            if point.startswith("patrol."):
                raise Crashed

        r.crash = crash
        del r.cloud.pools["web"]["web-1.g2"]
        wait(r, 300)
        r.crash = lambda _point: None
        r.until(lambda: "web-1.g2" in up(r))
        r.until(lambda: r.upgrade("web-1").old_gone)
        assert r.clock() >= until
        begun = next(e for e in events(r, "Began") if e.server == "web-1" and e.detail["step"] == "retire")
        assert begun.at >= until


@pytest.mark.parametrize("every", [1, 2, 3])
def test_patrols_at_every_turn_and_dying_ones_change_no_outcome(every: int) -> None:
    with patrolled(["web-1", "web-2", "web-3"], least=3, retain="30s") as r:
        turn, count, deaths = r.turn, iter(range(10**9)), iter(range(10**9))

        def turned() -> None:
            turn()
            if next(count) % every == 0:
                r.patrol(r.rollout)

        def crash(point: str) -> None:
            if point.startswith("patrol.") and next(deaths) % 3 == 0:
                raise Crashed

        r.turn, r.crash = turned, crash  # type: ignore[method-assign] # the runner's own loop is to be patrolled as well
        r.until(lambda: r.upgrade("web-1").state == "upgraded")
        operations.rollback_server(r.store, r.rollout, "web-1", actor=WHO)
        r.until(lambda: r.record().closed)
        assert up(r) == {"web-1", "web-2.g2", "web-3.g2"} == set(r.members())
        assert not r.made_twice() and not events(r, "Ailed")


def test_what_users_have_seen_is_counted_from_the_plan_on(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[PoolCounters | Exception | None] = [PoolCounters(requests=1000, failed=5, epoch="1")]

    def counters(_switch: FakeTraffic, _pool: str) -> PoolCounters | None:
        if isinstance(counted[0], Exception):
            raise counted[0]
        return counted[0]

    monkeypatch.setattr(FakeTraffic, "counters", counters)
    with patrolled() as r:
        counted[0] = PoolCounters(requests=1700, failed=6, epoch="1")
        r.patrol(r.rollout)
        known = Users(requests=700, failed=1, at=r.clock.now)
        assert r.store.users(r.rollout) == known
        trouble: list[PoolCounters | Exception | None] = [
            PoolCounters(requests=3, failed=0, epoch="2"),  # it was started anew
            Transient("no answer", ambiguous=False),
            None,
        ]
        for counted[0] in trouble:
            r.clock.now += 5
            r.patrol(r.rollout)
            assert r.store.users(r.rollout) == known


def test_where_a_switch_does_not_count_nobody_is_told_anything() -> None:
    with patrolled() as r:
        r.patrol(r.rollout)
        assert r.store.users(r.rollout) is None
