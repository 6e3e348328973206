"""The story of a rollout, told by the real parts in virtual time."""

from __future__ import annotations

from dataclasses import replace

from orchestrator import operations
from orchestrator.domain.plan import make_plan
from tasks import keys
from tasks.survey import look
from tests.support.runner import PORT, running


def test_every_server_is_replaced_and_its_old_one_kept_stopped() -> None:
    with running(["web-1", "web-2", "web-3"]) as r:
        r.finish()
        assert r.record().state == "succeeded"
        assert r.serving() == {"web-1.g2", "web-2.g2", "web-3.g2"}
        assert {r.cloud.things[name].view.state for name in ("web-1", "web-2", "web-3")} == {"stopped"}
        assert not r.made_twice()


def test_a_file_that_still_names_old_servers_is_told_the_new_ones() -> None:
    with running(["web-1", "web-2"]) as r:
        r.until(lambda: r.upgrade("web-1").state == "upgraded" and r.upgrade("web-2").results.get("provision"))
        new = r.upgrade("web-1").results["provision"]["server"]
        forged = r.cloud.server("forged").id
        thing = r.cloud.things[forged]
        tags = {keys.MANAGED: "1", keys.ROLLOUT: r.rollout, keys.SERVER: "web-1"}
        thing.view = replace(thing.view, tags=tags)
        for state in ("stopped", "terminated"):
            old = r.cloud.things["web-1"]
            old.view = replace(old.view, state=state)
            first, second = (server.problem for server in look(r.world, r.fleet).servers)
            told = f"web-1 is its old server: the rollout {r.rollout} has put {new} in its place"
            assert first == f"{told}; name that in the fleet file"
            assert "old server" not in second


def test_a_bad_new_server_is_set_aside_while_the_old_one_serves() -> None:
    with running(["web-1", "web-2"]) as r:
        r.until(lambda: r.upgrade("web-1").step == "poll_readiness")
        address = r.upgrade("web-1").results["provision"]["address"]
        r.sites.fails(address, PORT, status=500)
        r.until(lambda: r.upgrade("web-1").terminal)
        assert r.upgrade("web-1").state == "failed"
        assert "500" in r.upgrade("web-1").cause
        assert "web-1" in r.serving()
        assert len(r.alive("target")) <= 1
        r.until(lambda: r.record().state == "paused")


def test_the_old_server_is_ended_when_its_time_is_up() -> None:
    with running(
        ["web-1"],
        retain={"old_servers": "60s"},
    ) as r:
        r.finish()
        r.until(lambda: r.record().closed)
        assert r.cloud.things["web-1"].view.state == "terminated"
        assert not r.alive("image")
        assert r.store.owner_of(f"{r.fleet.lane}/web-1") is None


def test_a_server_that_died_by_itself_is_never_said_to_serve() -> None:
    with running(["web-1", "web-2"]) as r:
        r.until(lambda: r.upgrade("web-1").step == "poll_readiness")
        made = r.cloud.things[r.upgrade("web-1").results["provision"]["server"]]
        r.sites.fails(made.view.address, PORT, status=500)
        old = r.cloud.things["web-1"]
        old.view = replace(old.view, state="stopped")
        r.until(lambda: r.upgrade("web-1").state == "held")
        assert "does not serve" in r.upgrade("web-1").why
        assert r.store.tally(r.rollout).by_state.get("failed", 0) == 0
        old.view = replace(old.view, state="running")
        operations.retry(r.store, r.rollout, ["web-1"], actor="test")
        r.until(lambda: r.upgrade("web-1").state == "failed")
        assert "web-1" in r.serving()


def test_what_a_provider_cannot_make_anew_is_told_before_anything_is_made() -> None:
    with running(["web-1", "web-2"]) as r:
        r.cloud.obstacles["web-2"] = ("it belongs to a group", "its zone has no such type")
        blockers = make_plan(r.fleet, look(r.world, r.fleet)).blockers
        assert [each for each in blockers if "web-2" in each and "belongs to a group; its zone has no" in each]
        assert not any("web-1" in each for each in blockers)


def test_a_server_that_boots_is_waited_for_without_a_message() -> None:
    with running(["web-1"]) as r:
        r.until(lambda: "provision" in r.upgrade("web-1").results)
        u = r.upgrade("web-1")
        assert (u.state, u.step, u.intent) == ("waiting", "poll_readiness", None)
        assert u.wait is not None and u.wait.observe is not None
        assert "is starting" in u.why
        r.finish()
        ran = [result for task, result in r.history if task == "tasks.poll_readiness"]
        assert [result.get("step") for result in ran] == ["done"]


def test_one_that_never_boots_is_late_though_its_step_has_not_begun() -> None:
    with running(["web-1"], rollout={"waves": ["rest"], "deadlines": {"poll_readiness": "100s"}}) as r:
        r.until(lambda: "provision" in r.upgrade("web-1").results)
        began = r.clock()
        made = r.cloud.things[r.upgrade("web-1").results["provision"]["server"]]
        made.ready_at = 1e12
        r.until(lambda: r.upgrade("web-1").terminal)
        assert 100 <= r.clock() - began < 120
        assert r.upgrade("web-1").state == "failed"
        assert "poll_readiness did not finish in time" in r.upgrade("web-1").cause
        assert "web-1" in r.serving()


def test_one_that_boots_while_its_rollout_is_paused_has_all_its_time_afterwards() -> None:
    with running(["web-1"], rollout={"waves": ["rest"], "deadlines": {"poll_readiness": "100s"}}) as r:
        r.until(lambda: "provision" in r.upgrade("web-1").results)
        operations.pause(r.store, r.rollout, actor="test")
        r.until(lambda: "paused" in r.upgrade("web-1").why)
        r.clock.now += 3600
        operations.resume(r.store, r.rollout, actor="test")
        r.finish()
        assert r.upgrade("web-1").state == "upgraded"
