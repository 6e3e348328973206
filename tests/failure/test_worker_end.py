"""A worker that is told to end, once and twice."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery

from tests.support.valkey import celery_url, running_valkey

WORKER = Path(__file__).with_name("ending_worker.py")


@pytest.fixture
def broker() -> Iterator[str]:
    with running_valkey() as valkey:
        yield celery_url(valkey.url)


@pytest.fixture(params=[30.0])
def napping(request: pytest.FixtureRequest, broker: str, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker in the middle of a nap of three seconds, with one more message behind it. The parameter is how many
    seconds it has to end."""
    command = [sys.executable, "-P", str(WORKER), broker, str(tmp_path), str(request.param)]
    worker = subprocess.Popen(command, cwd=tmp_path)
    with Celery("ending", broker=broker, set_as_current=False) as sender:
        for mark in ("first", "second"):
            sender.send_task("nap", args=[mark, 3.0])
    end = time.monotonic() + 40
    while not (tmp_path / "first.begun").exists():
        assert worker.poll() is None
        assert time.monotonic() < end, "the first nap never began"
        time.sleep(0.02)
    yield worker
    worker.kill()
    worker.wait()


def left(broker: str) -> int:
    with Celery("ending", broker=broker, set_as_current=False).connection_for_read() as connection:
        return int(connection.default_channel.client.llen("celery"))


def test_told_once_it_finishes_what_it_has_and_leaves_the_rest_to_others(
    napping: subprocess.Popen[bytes], broker: str, tmp_path: Path
) -> None:
    napping.send_signal(signal.SIGTERM)
    assert napping.wait(20) == 0
    assert (tmp_path / "first.done").exists()
    assert not (tmp_path / "second.begun").exists()
    assert left(broker) == 1


def test_told_twice_it_ends_at_once(napping: subprocess.Popen[bytes], tmp_path: Path) -> None:
    while napping.poll() is None:  # two of the same signal at once may be one
        napping.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    assert napping.returncode == 70
    assert not (tmp_path / "first.done").exists()


@pytest.mark.parametrize("napping", [0.5], indirect=True)
def test_its_deadline_ends_it_whatever_still_runs(napping: subprocess.Popen[bytes], tmp_path: Path) -> None:
    napping.send_signal(signal.SIGTERM)
    assert napping.wait(20) == 70
    assert not (tmp_path / "first.done").exists()
