"""A whole rollout in which each process comes to Redis as its own user, with the rights of deploy/redis/users.acl."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator.settings import Settings
from tests.support.control_plane import ControlPlane
from tests.support.fake_cloud import running_cloud
from tests.support.redis_servers import free_port, wait_for
from tests.support.redis_users import Guarded, guarded_redis

pytestmark = pytest.mark.debian
PACE = {"CHANGEOVER_LEASE": "5", "CHANGEOVER_GRACE": "2", "CHANGEOVER_CONCURRENCY": "4"}


def given(guarded: Guarded, user: str) -> dict[str, str]:
    """As docker-compose.yml gives it: an address without a secret, and a file with one."""
    return {
        "CHANGEOVER_REDIS_URL": f"redis://{user}@127.0.0.1:{guarded.port}/0",
        "CHANGEOVER_REDIS_PASSWORD_FILE": str(guarded.secrets / f"redis-{user}"),
        **PACE,
    }


@contextmanager
def process(guarded: Guarded, tmp_path: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    user = words[0]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CHANGEOVER_")}
    state = tmp_path / f"state-{user}"
    start = "import sys; from orchestrator.cli import main; sys.exit(main())"
    with (tmp_path / f"{user}.log").open("ab") as log:
        running = subprocess.Popen(
            [sys.executable, "-P", "-c", start, *words],
            env={**inherited, **given(guarded, user), "CHANGEOVER_STATE_DIR": str(state)},
            cwd=tmp_path,
            stderr=log,
        )
    try:
        yield running
    finally:
        running.kill()
        running.wait()


@pytest.mark.timeout(240)
def test_a_rollout_goes_through_with_each_process_as_its_own_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as running:
        guarded = running.enter_context(guarded_redis(tmp_path))
        cloud = running.enter_context(running_cloud())
        port = str(free_port())
        password = str(guarded.secrets / "flower")
        parts = [
            running.enter_context(process(guarded, tmp_path, *words))
            for words in (
                ("worker", "--name", "w1"),
                ("worker", "--name", "w2"),
                ("coordinator",),
                ("coordinator",),
                ("flower", "--port", port, "--password-file", password),
            )
        ]
        for name, value in given(guarded, "api").items():
            monkeypatch.setenv(name, value)
        settings = Settings.load().model_copy(update={"state_dir": tmp_path})
        plane = ControlPlane(SimpleNamespace(settings=settings, step=time.sleep), cloud, [])
        wait_for("two workers", lambda: len(plane.store.workers()) == 2, seconds=60)

        rollout = plane.fleet(servers=3).apply()
        rollout.under_way()
        parts[0].terminate()  # it gives back what it holds, and tells Flower and the others
        rollout.finish()
        plane.store.freeze(True, actor="test", reason="a look")
        plane.store.freeze(False, actor="test")

        found = Flower(int(port), Path(password).read_text().strip())
        wait_for("the worker in Flower", lambda: "w2@" in found.page("/api/workers?refresh=1"), seconds=60)
        wait_for("the tasks in Flower", lambda: "web-3:6:drain_old" in found.page("/api/tasks"), seconds=60)
        found.page("/broker")
        for part in parts:
            part.terminate()
        assert [part.wait(60) for part in parts] == [0, 0, 0, 0, 0]
        assert guarded.refusals() == []


class Flower:
    """What it answers whoever has the password."""

    def __init__(self, port: int, password: str) -> None:
        import base64

        self._port, self._secret = port, base64.b64encode(f"changeover:{password}".encode()).decode()

    def page(self, path: str) -> str:
        import urllib.request

        request = urllib.request.Request(f"http://127.0.0.1:{self._port}{path}")
        request.add_header("Authorization", f"Basic {self._secret}")
        with urllib.request.urlopen(request, timeout=20) as found:
            return str(found.read().decode())
