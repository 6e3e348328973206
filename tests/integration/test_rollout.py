"""A whole rollout, nothing faked: real servers, HAProxy, Valkey, Celery workers and users; and workers are killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import redis

from orchestrator import operations
from orchestrator.fleet_file import load
from providers.traffic import Guard
from providers.traffic.haproxy import HAProxyTraffic
from tests.support.local_host import until
from tests.support.shop import shop


@pytest.mark.timeout(300)
def test_killed_workers_cost_no_server_and_no_request(tmp_path: Path) -> None:
    with shop(tmp_path, servers=4) as whole:
        whole.apply()
        killed: set[tuple[str, str]] = set()

        def kill(view: operations.View) -> None:
            """One worker for the first server that is seen in each step: the one that has it in hand, if any."""
            for row in whole.store.rows(whole.id):
                step = row.upgrade.step
                if row.owner and (step, "") not in killed and row.upgrade.direction == "forward":
                    killed.add((step, ""))
                    whole.supervisor.kill_worker(signal.SIGKILL, name=row.owner.partition("/")[0])
                    return

        view = whole.until_ended(kill)
        assert {u.server: u.state for u in view.upgrades} == dict.fromkeys(whole.scene.names, "upgraded")
        assert whole.ours() == sorted(whole.scene.names)
        assert len(whole.scene.host.images()) == len(whole.scene.names)
        seen, held = whole.scene.dismiss_users()
        assert seen["failed"] == 0, seen["failures"]
        assert held.stored == seen["orders"]["sent"] and held.repeated == 0
        assert killed, "a worker was caught at work"


@pytest.mark.timeout(300)
def test_a_rollback_of_everything_leaves_the_fleet_as_it_was(tmp_path: Path) -> None:
    with shop(tmp_path, servers=3) as whole:
        before = sorted(server["id"] for server in whole.scene.host.servers())
        whole.apply()
        asked: list[str] = []

        def turn_back(view: operations.View) -> None:
            states = [u.state for u in view.upgrades]
            if not asked and states.count("upgraded") >= 1 and any(u.step == "swap" for u in view.upgrades):
                asked.append(operations.rollback(whole.store, whole.id, actor="test").rollout.id)

        view = whole.until_ended(turn_back)
        assert view.rollout.state == "rolled_back", view.rollout
        assert {u.state for u in view.upgrades} <= {"rolled_back", "pending"}
        host = whole.scene.host
        # A terminated server is gone or going: its process has its grace.
        until(lambda: sorted(server["id"] for server in host.servers()) == before, "only the old servers are left")
        assert {server["state"] for server in host.servers()} == {"running"}
        assert not host.images()
        seen, _ = whole.scene.dismiss_users()
        assert seen["failed"] == 0, seen["failures"]


@pytest.mark.timeout(300)
def test_a_new_server_that_a_late_call_takes_out_is_put_back_and_nobody_notices(tmp_path: Path) -> None:
    with shop(tmp_path, servers=2) as whole:
        whole.apply()
        view = whole.until_ended()
        assert view.rollout.state == "succeeded" and not view.rollout.closed
        fleet = load(whole.scene.fleet_file())
        pools = {name: {"backend": pool.backend or name} for name, pool in fleet.traffic.pools.items()}
        traffic = HAProxyTraffic({**fleet.traffic.settings, "pools": pools})
        (pool,) = pools
        new = sorted(member.name for member in traffic.members(pool))[0]
        until(
            lambda: traffic.remove(pool, new, guard=Guard(min_healthy=1), cut=False).state == "absent",
            "it is taken out",
        )

        def back() -> bool:
            whole.supervisor.step(0.05)
            served = traffic.proven([(pool, new)])[pool, new].state == "serving"
            return served and not operations.find(whole.store, whole.id).alarm

        until(back, "it serves again", seconds=60)
        assert {u.state for u in operations.view(whole.store, whole.id).upgrades} == {"upgraded"}
        seen, _ = whole.scene.dismiss_users()
        assert seen["failed"] == 0, seen["failures"]


def test_nothing_of_a_shop_is_left_behind(tmp_path: Path) -> None:
    with shop(tmp_path, servers=1) as whole:
        short = whole.scene.short
        pids = [*whole.supervisor.pids().values(), int((short / "host" / "host.pid").read_text())]
    assert not short.exists()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.timeout(300)
def test_a_rollout_goes_on_though_redis_forgot_everything(tmp_path: Path) -> None:
    """Records, messages and all: what there is, is told from the servers, the images and HAProxy."""
    with shop(tmp_path, servers=4) as whole:
        whole.apply()
        fleet = load(whole.scene.fleet_file())
        forgotten: list[str] = []

        def forget(view: operations.View) -> None:
            states = {u.state for u in view.upgrades}
            if forgotten or "upgraded" not in states or not any(u.step == "swap" for u in view.upgrades):
                return
            with redis.Redis.from_url(whole.supervisor.settings.store_url()) as raw:
                raw.flushall()
            found, made = operations.rebuild(
                whole.store, whole.ask, fleet, rollout="", act=True, actor="test", waiter=whole.waiter
            )
            assert made is not None and made.id == whole.id and made.state == "paused"
            forgotten.extend(f"{p.upgrade.server}: {p.found} -> {p.resumes}" for p in found.positions)
            operations.resume(whole.store, whole.id, actor="test")

        view = whole.until_ended(forget)
        assert forgotten
        assert {u.server: u.state for u in view.upgrades} == dict.fromkeys(whole.scene.names, "upgraded"), forgotten
        assert whole.ours() == sorted(whole.scene.names)
        assert len(whole.scene.host.images()) == len(whole.scene.names)
        seen, held = whole.scene.dismiss_users()
        assert seen["failed"] == 0, seen["failures"]
        assert held.stored == seen["orders"]["sent"] and held.repeated == 0
