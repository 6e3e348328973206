"""What people ask of a rollout while it runs, and what it does by itself when something goes wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import structlog

from orchestrator import operations
from orchestrator.domain.rollout import Rollout
from orchestrator.errors import IllegalTransition, PointOfNoReturn
from providers.compute import Server, Subnet
from providers.errors import Throttled
from tasks import survey
from tests.support.outcome import Watch, up
from tests.support.runner import Runner, running

WHO = "test"
THREE = ["web-1", "web-2", "web-3"]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


def policy(**changes: Any) -> dict[str, Any]:
    whole: dict[str, Any] = {
        "waves": ["rest"],
        "bake": "0s",
        "soak": "5s",
        "poll": "1s",
        "max_in_flight": 10,
        "drain": {"deadline": "30s", "quiet": "1s"},
    }
    return {**whole, **changes}


def states(r: Runner) -> dict[str, str]:
    return {name: state for name, (state, _, _) in r.upgrades().items()}


def at(r: Runner, server: str, step: str) -> Callable[[], bool]:
    """It works at that step: has begun it, or waits for what it needs first."""

    def there() -> bool:
        u = r.upgrade(server)
        return u.step == step and (u.intent is not None or u.wait is not None)

    return there


def begun_since(r: Runner, entry: str) -> list[tuple[str, str]]:
    """Intents, forward and back, that were granted after that entry of the audit log."""
    later = operations.events(r.store, r.rollout, after=entry)
    return [(e.server, e.event) for e in later if e.event in ("Began", "UndoBegan")]


def newest(r: Runner) -> str:
    return operations.events(r.store, r.rollout)[-1].id


def wait(r: Runner, seconds: float) -> None:
    end = r.clock() + seconds
    r.until(lambda: r.clock() >= end)


def back_at_a(r: Runner, *servers: str) -> None:
    """These are served by A alone, and nothing of ours is left of them."""
    for server in servers:
        assert server in up(r) and f"{server}.g2" not in r.members()
        assert r.cloud.things[server].view.state == "running"
        mine = [t.view for t in r.cloud.things.values() if t.view.tags.get("changeover:server") == server]
        assert all(view.state == "terminated" for view in mine), mine


def ended(r: Runner, state: str) -> Rollout:
    r.finish()
    assert r.record().state == state, r.record()
    return r.record()


# -- pause and freeze -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", range(1, 40, 4))
def test_after_a_pause_nothing_begins_and_after_it_everything_goes_on(turns: int) -> None:
    with running(THREE, rollout=policy()) as r:
        watch = Watch(r, least=3)
        for _ in range(turns):
            r.turn()
            r.clock.now += 0.4
        assert operations.pause(r.store, r.rollout, actor=WHO).changed
        mark = newest(r)
        wait(r, 700)
        assert begun_since(r, mark) == []
        assert not operations.pause(r.store, r.rollout, actor=WHO).changed
        operations.resume(r.store, r.rollout, actor=WHO)
        start = r.clock()
        ended(r, "succeeded")
        assert r.clock() - start < 60, "nobody slept on after the pause"
        assert not watch.dark
        assert all(len(r.upgrade(name).begun) == 6 for name in THREE), "no step was begun twice"
        assert not r.made_twice()


def test_deadlines_move_by_the_pause() -> None:
    with running(["web-1"], rollout=policy(deadlines={"create_image": "300s"})) as r:
        r.cloud.image_seconds = 200.0
        r.until(at(r, "web-1", "create_image"))
        was = r.upgrade("web-1").deadline
        operations.pause(r.store, r.rollout, actor=WHO)
        wait(r, 50)
        paused_at = r.record().paused_at
        assert was is not None and paused_at is not None
        pause = r.clock() - paused_at
        operations.resume(r.store, r.rollout, actor=WHO)
        assert r.upgrade("web-1").deadline == pytest.approx(was + pause)
        ended(r, "succeeded")


def test_a_resume_is_not_overtaken_by_those_it_wakes(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(["web-1"], rollout=policy()) as r:
        r.until(at(r, "web-1", "create_image"))
        operations.pause(r.store, r.rollout, actor=WHO)
        wait(r, 30)
        change = r.store.change

        def late(*args: Any, **kwargs: Any) -> Any:
            for _ in range(3):  # coordinator and workers are as quick as that
                r.turn()
            return change(*args, **kwargs)

        monkeypatch.setattr(r.store, "change", late)
        operations.resume(r.store, r.rollout, actor=WHO)
        monkeypatch.undo()
        start = r.clock()
        ended(r, "succeeded")
        assert r.clock() - start < 60


def test_a_freeze_stops_every_intent_forward_and_back() -> None:
    with running(THREE, rollout=policy()) as r:
        r.until(at(r, "web-1", "swap"))
        operations.rollback_server(r.store, r.rollout, "web-2", actor=WHO)
        operations.freeze(r.store, actor=WHO, reason="fire")
        mark = newest(r)
        wait(r, 100)
        assert begun_since(r, mark) == []
        assert any("frozen" in r.upgrade(name).why for name in THREE)
        operations.unfreeze(r.store, actor=WHO)
        ended(r, "failed")
        assert states(r) == {"web-1": "upgraded", "web-2": "rolled_back", "web-3": "upgraded"}
        back_at_a(r, "web-2")


@pytest.mark.parametrize("verb", ["none", "pause", "rollback"])
def test_a_night_of_freeze_leaves_a_short_log_and_its_end_wakes_everybody(verb: str) -> None:
    with running(THREE, rollout=policy()) as r:
        r.until(at(r, "web-1", "swap"))
        operations.rollback_server(r.store, r.rollout, "web-2", actor=WHO)
        operations.freeze(r.store, actor=WHO)
        if verb == "pause":
            operations.pause(r.store, r.rollout, actor=WHO)
        elif verb == "rollback":
            operations.rollback(r.store, r.rollout, actor=WHO)
        mark = newest(r)
        wait(r, 36_000)
        assert len(operations.events(r.store, r.rollout, after=mark)) < 300
        operations.unfreeze(r.store, actor=WHO)
        start = r.clock()
        r.until(lambda: r.upgrade("web-2").terminal if verb == "pause" else r.record().ended)
        assert r.clock() - start < 60
        back_at_a(r, "web-2")


def test_nobody_is_admitted_while_frozen() -> None:
    with running(THREE, rollout=policy()) as r:
        operations.freeze(r.store, actor=WHO)
        wait(r, 20)
        assert set(states(r).values()) == {"pending"}
        operations.unfreeze(r.store, actor=WHO)
        ended(r, "succeeded")


# -- abort ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "on_abort", "first"),
    [
        ("poll_readiness", "roll_back", "rolled_back"),
        ("poll_readiness", "finish", "rolled_back"),
        ("swap", "roll_back", "rolled_back"),
        ("swap", "finish", "upgraded"),
        ("drain_old", "roll_back", "rolled_back"),
        ("drain_old", "finish", "upgraded"),
    ],
)
def test_an_abort_undoes_what_was_begun_or_finishes_what_users_see(step: str, on_abort: str, first: str) -> None:
    with running(THREE, rollout=policy(waves=[1, "rest"], on_abort=on_abort), retain={"old_servers": "60s"}) as r:
        watch = Watch(r, least=3)
        r.until(at(r, "web-1", step))
        operations.abort(r.store, r.rollout, actor=WHO)
        assert not operations.abort(r.store, r.rollout, actor=WHO).changed
        ended(r, "aborted")
        assert states(r) == {"web-1": first, "web-2": "pending", "web-3": "pending"}
        assert not watch.dark
        if first == "rolled_back":
            back_at_a(r, "web-1")
        r.until(lambda: r.record().closed)
        assert r.store.owner_of(f"{r.fleet.lane}/web-1") is None


def test_a_paused_rollout_can_be_aborted() -> None:
    with running(THREE, rollout=policy()) as r:
        r.until(at(r, "web-1", "smoke_test"))
        operations.pause(r.store, r.rollout, actor=WHO)
        wait(r, 20)
        operations.abort(r.store, r.rollout, actor=WHO)
        start = r.clock()
        ended(r, "aborted")
        assert r.clock() - start < 60
        back_at_a(r, *THREE)


# -- roll back --------------------------------------------------------------------------------------------------------


def test_one_server_goes_back_after_its_old_one_was_stopped() -> None:
    with running(THREE, rollout=policy()) as r:
        watch = Watch(r, least=3)
        ended(r, "succeeded")
        assert r.cloud.things["web-2"].view.state == "stopped"
        assert operations.rollback_server(r.store, r.rollout, "web-2", actor=WHO).changed
        assert not operations.rollback_server(r.store, r.rollout, "web-2", actor=WHO).changed
        r.until(lambda: r.upgrade("web-2").terminal)
        assert not operations.rollback_server(r.store, r.rollout, "web-2", actor=WHO).changed
        assert states(r) == {"web-1": "upgraded", "web-2": "rolled_back", "web-3": "upgraded"}
        back_at_a(r, "web-2")
        assert not watch.dark


@pytest.mark.parametrize("turns", range(3, 45, 6))
def test_a_whole_rollout_goes_back_from_anywhere(turns: int) -> None:
    with running(THREE, rollout=policy(max_in_flight=2)) as r:
        watch = Watch(r, least=3)
        for _ in range(turns):
            r.turn()
            r.clock.now += 0.5
        operations.rollback(r.store, r.rollout, actor=WHO)
        assert not operations.rollback(r.store, r.rollout, actor=WHO).changed
        ended(r, "rolled_back")
        assert set(states(r).values()) <= {"rolled_back", "pending"}
        back_at_a(r, *THREE)
        assert not watch.dark
        r.until(lambda: r.record().closed)


def test_a_whole_rollout_goes_back_after_its_end() -> None:
    with running(THREE, rollout=policy(max_in_flight=1)) as r:
        watch = Watch(r, least=3)
        ended(r, "succeeded")
        operations.rollback(r.store, r.rollout, actor=WHO)
        flying = []

        def over() -> bool:
            flying.append(sum(state in ("running", "waiting") for state in states(r).values()))
            return r.record().state == "rolled_back"

        r.until(over)
        assert max(flying) == 1, "not more at a time than forward"
        back_at_a(r, *THREE)
        assert not watch.dark


def test_rollbacks_and_aborts_during_each_other_end_well() -> None:
    with running(THREE, rollout=policy()) as r:
        watch = Watch(r, least=3)
        r.until(at(r, "web-1", "swap"))
        operations.rollback_server(r.store, r.rollout, "web-1", actor=WHO)
        wait(r, 0.5)
        operations.abort(r.store, r.rollout, actor=WHO)
        wait(r, 0.5)
        operations.rollback(r.store, r.rollout, actor=WHO)
        operations.rollback_server(r.store, r.rollout, "web-3", actor=WHO)
        ended(r, "rolled_back")
        back_at_a(r, *THREE)
        assert not watch.dark


def test_what_was_rolled_back_can_be_tried_again() -> None:
    with running(["web-1", "web-2"], rollout=policy()) as r:
        r.until(at(r, "web-1", "swap"))
        operations.rollback_server(r.store, r.rollout, "web-1", actor=WHO)
        ended(r, "failed")
        operations.retry(r.store, r.rollout, ["web-1"], actor=WHO)
        ended(r, "succeeded")
        assert not r.made_twice()
        assert len(r.alive("target")) == 2


def test_after_the_point_of_no_return_there_is_no_way_back() -> None:
    with running(["web-1", "web-2"], rollout=policy(waves=[1, 1], bake="30s"), retain={"old_servers": "90s"}) as r:
        r.until(lambda: r.upgrade("web-1").old_gone)
        assert r.upgrade("web-2").state == "upgraded" and not r.upgrade("web-2").beyond_return
        with pytest.raises(PointOfNoReturn, match="web-1"):
            operations.rollback_server(r.store, r.rollout, "web-1", actor=WHO)
        operations.rollback(r.store, r.rollout, actor=WHO)
        r.until(lambda: r.record().closed)
        assert r.record().state == "rolled_back"
        assert states(r) == {"web-1": "upgraded", "web-2": "rolled_back"}
        back_at_a(r, "web-2")


def test_no_old_server_ends_while_its_rollout_is_paused_or_goes_back() -> None:
    with running(["web-1", "web-2"], rollout=policy(waves=[1, 1], bake="1h"), retain={"old_servers": "30s"}) as r:
        r.until(lambda: r.upgrade("web-1").state == "upgraded")
        operations.pause(r.store, r.rollout, actor=WHO)
        wait(r, 120)
        assert r.cloud.things["web-1"].view.state == "stopped"
        operations.rollback(r.store, r.rollout, actor=WHO)
        ended(r, "rolled_back")
        back_at_a(r, "web-1")


# -- budgets ----------------------------------------------------------------------------------------------------------


def fall_over(r: Runner, server: str) -> None:
    """The new server of that one dies."""
    made = r.upgrade(server).results["provision"]["server"]
    thing = r.cloud.things[made]
    assert isinstance(thing.view, Server)
    thing.view = replace(thing.view, state="stopped")


def test_the_first_failure_behind_a_swap_stops_the_rollout_and_takes_only_that_one_back() -> None:
    with running(THREE, rollout=policy(max_in_flight=2, waves=[2, "rest"])) as r:
        watch = Watch(r, least=2)
        r.until(lambda: "since" in r.upgrade("web-1").notes)
        fall_over(r, "web-1")
        r.until(lambda: r.upgrade("web-1").direction == "undo")
        mark = newest(r)
        assert r.record().stop, "set in the commit that counted it"
        r.until(lambda: r.upgrade("web-1").terminal and r.record().state == "paused")
        wait(r, 100)
        assert states(r)["web-1"] == "rolled_back" and states(r)["web-3"] == "pending"
        assert {server for server, event in begun_since(r, mark) if event == "Began"} == set()
        assert r.upgrade("web-2").direction == "forward"
        assert "web-1 failed behind its swap" in r.record().why
        back_at_a(r, "web-1")
        operations.resume(r.store, r.rollout, actor=WHO)
        ended(r, "failed")
        assert states(r) == {"web-1": "rolled_back", "web-2": "upgraded", "web-3": "upgraded"}
        assert not watch.dark


def test_a_failure_behind_a_swap_during_a_pause_is_told_before_anybody_may_resume() -> None:
    with running(THREE, rollout=policy(max_in_flight=1, soak="30s")) as r:
        r.until(lambda: "since" in r.upgrade("web-1").notes)
        operations.pause(r.store, r.rollout, actor=WHO, why="lunch")
        fall_over(r, "web-1")
        r.until(lambda: r.upgrade("web-1").direction == "undo")
        with pytest.raises(IllegalTransition, match="stopped while it was paused: web-1 failed behind its swap"):
            operations.resume(r.store, r.rollout, actor=WHO)
        assert r.record().stop, "nobody has forgiven what nobody had seen"
        r.until(lambda: "web-1 failed behind its swap" in r.record().why)
        assert r.record().state == "paused"
        r.until(lambda: r.upgrade("web-1").terminal)
        operations.resume(r.store, r.rollout, actor=WHO)
        ended(r, "failed")
        assert states(r) == {"web-1": "rolled_back", "web-2": "upgraded", "web-3": "upgraded"}


@pytest.mark.parametrize(("allowed", "state"), [(0, "paused"), (1, "failed")])
def test_more_failures_before_the_swap_than_allowed_pause_it(allowed: int, state: str) -> None:
    with running(THREE, rollout=policy(waves=[1, "rest"], budget={"before_swap": allowed})) as r:
        r.cloud.spoil = lambda source: "failed" if source == "web-1" else ""
        r.until(lambda: r.record().state in ("paused", "failed") and r.upgrade("web-1").terminal)
        assert r.record().state == state
        assert states(r)["web-1"] == "failed"
        back_at_a(r, "web-1")
        if state == "paused":
            assert "1 server failed before its swap, 0 are allowed" in r.record().why
            assert {states(r)["web-2"], states(r)["web-3"]} == {"pending"}
            operations.resume(r.store, r.rollout, actor=WHO)
            ended(r, "failed")
        assert {states(r)["web-2"], states(r)["web-3"]} == {"upgraded"}


def test_a_refused_new_server_leaves_nothing_when_the_next_attempt_succeeds() -> None:
    with running(["web-1"], rollout=policy()) as r:
        r.cloud.ready_seconds = 0.0
        spoiled = iter(["failed", "failed"])
        r.cloud.spoil = lambda _source: next(spoiled, "")
        ended(r, "succeeded")
        broken = [t.view for t in r.cloud.things.values() if t.view.state == "failed"]
        assert broken == [], "what refused attempts had made is gone"
        assert len(r.alive("target")) == 1 and r.upgrade("web-1").attempt("provision") == 2


def test_there_is_a_smaller_size_to_fall_back_to_and_a_retry_asks_for_the_first_again() -> None:
    sizes = {"size": {"memory": "4GiB", "disk": "20GiB"}, "fallback": [{"memory": "2GiB", "disk": "20GiB"}]}
    with running(["web-1"], rollout=policy(), target=sizes) as r:
        full = iter(range(1))

        def spoil(_source: str) -> str:
            return "failed" if next(full, None) is not None else ""

        r.cloud.ready_seconds, r.cloud.spoil = 0.0, spoil
        ended(r, "succeeded")
        assert [i.rung for i in r.upgrade("web-1").intents("provision")] == [0, 1]
        operations.rollback_server(r.store, r.rollout, "web-1", actor=WHO)
        r.until(lambda: r.upgrade("web-1").terminal)
    with running(["web-1"], rollout=policy(), target=sizes) as r:
        r.until(at(r, "web-1", "poll_readiness"))
        operations.rollback_server(r.store, r.rollout, "web-1", actor=WHO)
        ended(r, "failed")
        operations.retry(r.store, r.rollout, ["web-1"], actor=WHO)
        ended(r, "succeeded")
        assert [(i.attempt, i.rung) for i in r.upgrade("web-1").intents("provision")] == [(1, 0)]


NEAR, FAR = "near-2", "far-1"


def subnets(r: Runner, *, own: int, near: int, far: int) -> None:
    """Free addresses where A is, in another subnet of its zone, and in another zone."""
    free = {"": ("a", own), NEAR: ("a", near), FAR: ("b", far)}
    r.cloud.subnets = {id: Subnet(id=id, zone=zone, free=left) for id, (zone, left) in free.items()}


def places(r: Runner) -> list[tuple[str, str]]:
    intents = r.upgrade("web-1").intents("provision")
    return [(intent.params["subnet"], intent.params["type"]) for intent in intents]


LADDER = {
    "size": {"memory": "2GiB", "disk": "20GiB", "type": "large"},
    "fallback": [{"memory": "2GiB", "disk": "20GiB", "type": "other"}],
    "subnets": [NEAR, FAR],
}


def test_a_subnet_without_addresses_is_left_for_another_one_of_the_same_zone() -> None:
    with running(["web-1"], rollout=policy(), target=LADDER) as r:
        subnets(r, own=0, near=1, far=5)
        ended(r, "succeeded")
        assert places(r) == [(NEAR, "large")], "seen beforehand: no attempt was lost"
    with running(["web-1"], rollout=policy(), target=LADDER) as r:
        subnets(r, own=1, near=5, far=5)
        ended(r, "succeeded")
        assert places(r) == [("", "large")]


def test_what_a_zone_lacks_is_tried_in_every_size_there_and_in_another_zone_only_where_the_file_says_so() -> None:
    for zones, ladder in (
        ("same", [("", "large"), ("", "other"), ("", "other"), ("", "other"), ("", "other")]),
        ("any", [("", "large"), ("", "other"), (FAR, "large")]),
    ):
        with running(["web-1"], rollout=policy(), target={**LADDER, "zones": zones}) as r:
            subnets(r, own=9, near=9, far=9)
            r.cloud.capacity = {("a", "large"): 0, ("a", "other"): 0}
            r.until(lambda: r.upgrade("web-1").terminal)
            assert r.upgrade("web-1").state == ("failed" if zones == "same" else "upgraded")
            assert places(r) == ladder
            tokens = [intent.token for intent in r.upgrade("web-1").intents("provision")]
            assert len(set(tokens)) == len(tokens), "each is an attempt of its own"
            assert all(count == 1 for count in r.cloud.made.values())


def test_a_zone_where_nobody_would_be_sent_is_not_gone_to_and_the_plan_is_refused() -> None:
    with running(["web-1"], rollout=policy(), target={**LADDER, "zones": "any"}) as r:
        subnets(r, own=9, near=9, far=9)
        r.cloud.capacity = {("a", "large"): 0, ("a", "other"): 0}
        r.cloud.unreached = {("web", "b"): "its balancer does not serve b"}
        (server,) = survey.look(r.world, r.fleet).servers
        assert server.problem == f"the subnet {FAR}: its balancer does not serve b"
        r.until(lambda: r.upgrade("web-1").terminal)
        assert (r.upgrade("web-1").state, {subnet for subnet, _ in places(r)}) == ("failed", {""})


# -- waves ------------------------------------------------------------------------------------------------------------


def test_a_wave_begins_after_the_bake_of_the_one_before() -> None:
    with running([f"web-{n}" for n in range(1, 8)], rollout=policy(waves=[1, 2, "rest"], bake="40s")) as r:
        begun: dict[int, float] = {}
        done: dict[int, float] = {}

        def over() -> bool:
            for row in r.store.rows(r.rollout):
                u = row.upgrade
                if u.admitted_at is not None:
                    begun.setdefault(u.wave, u.admitted_at)
                if u.state == "upgraded":
                    done[u.wave] = u.ended_at or 0.0
            return r.record().ended

        r.until(over)
        assert [len(wave) for wave in r.record().waves] == [1, 2, 4]
        assert begun[1] - done[0] >= 40 and begun[2] - done[1] >= 40
        assert r.record().ended_at is not None and (r.record().ended_at or 0) - done[2] >= 40


def test_never_more_are_in_flight_than_allowed_with_two_coordinators() -> None:
    with running([f"web-{n}" for n in range(1, 8)], rollout=policy(max_in_flight=2)) as r:
        second = replace(r.coordinator, name="c2", _views={})
        flying: list[int] = []

        def over() -> bool:
            second.tick()
            flying.append(sum(state in ("running", "waiting", "held") for state in states(r).values()))
            return r.record().ended

        r.until(over)
        assert r.record().state == "succeeded" and max(flying) == 2
        assert not r.made_twice()


# -- deadlines --------------------------------------------------------------------------------------------------------


def test_a_step_that_is_out_of_time_again_and_again_ends_at_its_deadline() -> None:
    two = [{"url": "http://shop.test/health"}, {"url": "http://shop.test/cart"}]
    checks = {"smoke": {"requests": two, "passes": 1, "every": "1s", "probe": "fake"}}
    with running(["web-1"], rollout=policy(deadlines={"smoke_test": "120s"}), checks=checks) as r:

        def slow(point: str) -> None:
            if point.endswith("after probe.check"):
                r.clock.now += 31

        r.world.lease, r.crash = 600.0, slow
        r.until(at(r, "web-1", "smoke_test"))
        r.until(lambda: r.upgrade("web-1").direction == "undo", limit=200)
        assert "work are up" in r.upgrade("web-1").cause


def test_a_soak_is_no_part_of_the_time_that_a_swap_may_be_late_by() -> None:
    with running(["web-1"], rollout=policy(soak="2h", poll="30s")) as r:
        r.until(lambda: "since" in r.upgrade("web-1").notes)
        end = r.upgrade("web-1").notes["until"]
        once = iter([True])

        def fault(name: str) -> Any:
            if name == "proven" and r.clock() >= end and next(once, False):
                raise Throttled("slow down", retry_after=1.0)
            return ""

        r.cloud.fault = fault
        ended(r, "succeeded")


def test_a_new_server_that_dies_in_its_soak_is_noticed_at_once() -> None:
    with running(["web-1"], rollout=policy(soak="2h")) as r:
        r.until(lambda: "since" in r.upgrade("web-1").notes)
        fall_over(r, "web-1")
        start = r.clock()
        r.until(lambda: r.upgrade("web-1").direction == "undo")
        assert r.clock() - start < 30


@pytest.mark.parametrize("step", ["create_image", "provision"])
def test_a_server_that_is_gone_by_itself_is_a_matter_for_a_person(step: str) -> None:
    with running(THREE, rollout=policy(max_in_flight=1)) as r:

        def die(point: str) -> None:
            if point.startswith(f"{step}.before compute.ensure"):
                r.cloud.things.pop("web-1", None)

        r.crash = die
        r.until(lambda: r.upgrade("web-1").state == "held")
        assert "web-1 is gone" in r.upgrade("web-1").why
        assert r.store.tally(r.rollout).failed_before_swap == 0


# -- guards and drains ------------------------------------------------------------------------------------------------


def test_nobody_leaves_a_pool_that_would_have_too_few() -> None:
    with running(THREE, rollout=policy(max_in_flight=1), min_healthy=3) as r:
        watch = Watch(r, least=2)
        r.until(lambda: "since" in r.upgrade("web-1").notes)
        thing = r.cloud.things["web-2"]
        assert isinstance(thing.view, Server)
        alive, thing.view = thing.view, replace(thing.view, state="stopped")
        wait(r, 100)
        assert "web-1" in up(r), "the guard holds it where it is"
        assert "3 are wanted" in r.upgrade("web-1").why
        thing.view = alive
        ended(r, "succeeded")
        assert not watch.dark


def test_two_of_a_pool_of_two_are_replaced_without_ever_being_one() -> None:
    with running(["web-1", "web-2"], rollout=policy()) as r:
        watch = Watch(r, least=2)
        ended(r, "succeeded")
        assert up(r) == {"web-1.g2", "web-2.g2"} and not watch.dark


def busy(r: Runner, server: str, sessions: int) -> None:
    pool = r.cloud.pools["web"]
    pool[server] = replace(pool[server], sessions=sessions)


def test_at_the_drain_deadline_requests_are_kept_and_a_person_is_asked() -> None:
    with running(["web-1", "web-2"], rollout=policy(max_in_flight=1)) as r:
        busy(r, "web-1", 3)
        r.until(lambda: r.upgrade("web-1").state == "held")
        assert "web-1 still has 3 requests or connections after 30 s" in r.upgrade("web-1").why
        assert r.members()["web-1"].sessions == 3 and r.cloud.things["web-1"].view.state == "running"
        operations.retry(r.store, r.rollout, None, actor=WHO)
        wait(r, 10)
        assert r.upgrade("web-1").state == "waiting", "it has its time once more"
        busy(r, "web-1", 0)
        ended(r, "succeeded")


def test_what_is_held_at_its_drain_can_be_rolled_back() -> None:
    with running(["web-1", "web-2"], rollout=policy(max_in_flight=1)) as r:
        watch = Watch(r, least=2)
        busy(r, "web-1", 3)
        r.until(lambda: r.upgrade("web-1").state == "held")
        operations.rollback(r.store, r.rollout, actor=WHO)
        ended(r, "rolled_back")
        back_at_a(r, "web-1")
        assert r.members()["web-1"].sessions == 3, "nobody was cut"
        assert not watch.dark


def test_at_the_drain_deadline_requests_are_cut_where_the_file_says_so() -> None:
    drain = {"deadline": "30s", "quiet": "1s", "at_deadline": "cut"}
    with running(["web-1"], rollout=policy(drain=drain)) as r:
        busy(r, "web-1", 3)
        ended(r, "succeeded")
        log = [e for e in operations.events(r.store, r.rollout) if e.after.get("step") == "drain_old"]
        draining = next(e for e in log if e.event == "Waits")
        assert draining.detail["reason"] == "web-1 is draining, 3 sessions left"
        assert r.upgrade("web-1").ended_at == pytest.approx(draining.at + 30, abs=1)
