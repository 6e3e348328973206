"""A file that happens to be called `tasks.py` never runs in place of ours."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from orchestrator.store.redis import RedisStore

STRAY = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\nraise SystemExit('the stray module ran')\n"


@pytest.fixture
def folder_with_a_stray(tmp_path: Path) -> Path:
    for name in ("tasks.py", "celeryconfig.py"):
        (tmp_path / name).write_text(STRAY)
    return tmp_path


def environment(valkey_url: str, namespace: str, **more: str) -> dict[str, str]:
    ours = {"CHANGEOVER_REDIS_URL": valkey_url, "CHANGEOVER_NAMESPACE": namespace, "CHANGEOVER_CONCURRENCY": "1"}
    return {**os.environ, **ours, **more}


@pytest.mark.parametrize("path", ["", "."])
def test_a_worker_started_beside_a_stray_tasks_module_runs_ours(
    folder_with_a_stray: Path, valkey_url: str, path: str
) -> None:
    namespace = f"stray-{uuid.uuid4().hex[:8]}"
    worker = subprocess.Popen(
        [sys.executable, "-m", "workers", "--name", "w1"],
        cwd=folder_with_a_stray,
        env=environment(valkey_url, namespace, PYTHONPATH=path),
        stderr=subprocess.PIPE,
        text=True,
    )
    store = RedisStore(valkey_url, namespace=namespace, connections=2)
    try:
        end = time.monotonic() + 40
        while "w1" not in store.workers():
            assert worker.poll() is None, worker.communicate()[1]
            assert time.monotonic() < end, "the worker was never ready"
            time.sleep(0.05)
        assert not (folder_with_a_stray / "ran").exists()
    finally:
        store.close()
        worker.terminate()  # not killed: it takes its empty folder along
        worker.communicate(timeout=40)


def test_a_worker_refuses_a_stranger_on_pythons_path(
    folder_with_a_stray: Path, valkey_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (folder_with_a_stray / "tasks.py").write_text("")
    refused = subprocess.run(
        [sys.executable, "-P", "-m", "workers"],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        env=environment(valkey_url, "stray", PYTHONPATH=str(folder_with_a_stray)),
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert refused.returncode == 1
    assert f"`tasks` is {folder_with_a_stray / 'tasks.py'}, not the package in" in refused.stderr
