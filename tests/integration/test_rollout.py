"""A whole rollout, nothing faked: real servers, HAProxy, Valkey, Celery workers and users; and workers are killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from orchestrator import operations
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


def test_nothing_of_a_shop_is_left_behind(tmp_path: Path) -> None:
    with shop(tmp_path, servers=1) as whole:
        short = whole.scene.short
        pids = [*whole.supervisor.pids().values(), int((short / "host" / "host.pid").read_text())]
    assert not short.exists()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
