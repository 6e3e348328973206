"""Workers that end, are ended, or stall in the middle of a call: others go on within moments, not after a lease."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.messaging import make_app
from orchestrator.settings import Settings
from tests.support.control_plane import ControlPlane, Run, control_plane
from tests.support.valkey import running_valkey
from workers.watchdog import STALLED as STALLED_CODE

pytestmark = pytest.mark.timeout(300)  # a busy machine takes its time
STALLED = Path(__file__).with_name("stalled_worker.py")
LEASE = 60.0
SLOW = 4.0  # seconds of a call at the cloud
SOON = 20.0  # seconds: a worker's start, on a busy machine; far from a lease


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with running_valkey() as valkey:
        folder = tmp_path_factory.mktemp("plane")
        with control_plane(folder, redis=valkey.url, lease=LEASE, stall=3.0) as made:
            yield made


def caught_in_a_call(plane: ControlPlane) -> tuple[Run, str, int]:
    """A run of one server whose worker is in the middle of a slow call; that worker's name and process."""
    run = plane.fleet(servers=1)
    run.operator.fault("ensure_image", "slow", seconds=SLOW)
    run.apply()
    owner: list[str] = []

    def caught() -> bool:
        row = plane.store.row(run.id, "web-1")
        owner[:] = [row.owner] if row is not None and row.owner and not run.operator.left() else []
        return bool(owner)

    plane.until("a worker in the call", caught)
    name, _, process = owner[0].partition(":")[0].partition("/")
    return run, name, int(process)


def ended(plane: ControlPlane, name: str, process: int, *, seconds: float) -> float:
    began = time.monotonic()
    plane.until(f"the end of {name}", lambda: plane.supervisor.pids().get(name) != process, seconds=seconds)
    return time.monotonic() - began


def test_told_to_end_in_a_call_it_finishes_the_call_and_gives_its_lease_back(plane: ControlPlane) -> None:
    run, name, process = caught_in_a_call(plane)
    plane.said.clear()
    plane.supervisor.kill_worker(signal.SIGTERM, name=name)
    assert ended(plane, name, process, seconds=30) < SLOW + SOON
    assert any(f"{name} ended by itself with exit code 0" in line for line in plane.said), plane.said
    assert not any("freed for the others" in line for line in plane.said), "it had given its lease back by itself"
    run.until("another's work", lambda view: view.upgrades[0].step != "create_image", seconds=SOON)
    run.finish()


@pytest.mark.parametrize("twice", [False, True], ids=["SIGKILL", "SIGTERM twice"])
def test_ended_at_once_in_a_call_its_lease_is_given_back_by_who_reaps_it(plane: ControlPlane, twice: bool) -> None:
    run, name, process = caught_in_a_call(plane)
    plane.said.clear()
    if twice:
        plane.supervisor.kill_worker(signal.SIGTERM, name=name)
        time.sleep(0.2)  # two of the same signal at once may be one
    plane.supervisor.kill_worker(signal.SIGTERM if twice else signal.SIGKILL, name=name)
    assert ended(plane, name, process, seconds=30) < SLOW
    plane.until("its lease given back", lambda: any("1 upgrade of" in line for line in plane.said), seconds=SOON)
    run.until("another's work", lambda view: view.upgrades[0].step != "create_image", seconds=SOON)
    run.finish()


def test_a_worker_that_takes_no_message_any_more_ends_itself(tmp_path: Path) -> None:
    with running_valkey() as valkey:
        settings = Settings(redis_url=valkey.url, state_dir=tmp_path)
        given = {"CHANGEOVER_REDIS_URL": valkey.url, "CHANGEOVER_STALL": "2", "CHANGEOVER_STATE_DIR": str(tmp_path)}
        worker = subprocess.Popen(
            [sys.executable, "-P", str(STALLED), "--name", "w1"], cwd=tmp_path, env={**os.environ, **given}
        )
        try:
            with make_app(settings) as app:
                end = time.monotonic() + 90
                while worker.poll() is None and time.monotonic() < end:
                    app.send_task("tasks.observe", kwargs={"lane": "none", "ticket": "t"}, ignore_result=True)
                    time.sleep(0.2)
            assert worker.poll() == STALLED_CODE
        finally:
            worker.kill()
            worker.wait()
