"""What the guard is for, shown on a real broker: the crash without it, and the reconnect with it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from celery import Celery

from tests.support.valkey import RunningValkey, celery_url, running_valkey
from workers import guard

WORKER = Path(__file__).with_name("kombu_guard_worker.py")


def wait_for(what: str, condition: Callable[[], bool], *, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {seconds} s"
        time.sleep(0.02)


@pytest.fixture
def broker() -> Iterator[RunningValkey]:
    with running_valkey() as valkey:
        yield valkey


def run_until_the_broker_dies(broker: RunningValkey, marks: Path, mode: str) -> subprocess.Popen[str]:
    """A worker that holds one unacknowledged message below its prefetch limit, with the broker just killed."""
    command = [sys.executable, "-P", str(WORKER), celery_url(broker.url), str(marks), mode]
    with (marks / "log").open("w") as log:
        worker = subprocess.Popen(command, cwd=marks, stderr=log, stdout=log, text=True)
    with Celery("guard", broker=celery_url(broker.url), set_as_current=False) as sender:
        sender.send_task("nap", args=["first", 1.5])
        wait_for("the first nap", (marks / "first").exists)
    broker.kill()
    return worker


def end(worker: subprocess.Popen[str]) -> None:
    worker.kill()
    worker.wait()


def test_without_the_guard_a_worker_ends_when_its_broker_dies(broker: RunningValkey, tmp_path: Path) -> None:
    worker = run_until_the_broker_dies(broker, tmp_path, "bare")
    try:
        with suppress(subprocess.TimeoutExpired):
            worker.wait(timeout=15)
        assert worker.returncode == 1
        assert "'NoneType' object has no attribute 'hostname'" in (tmp_path / "log").read_text()
    finally:
        end(worker)


def test_with_the_guard_a_worker_reconnects_and_works_on(broker: RunningValkey, tmp_path: Path) -> None:
    worker = run_until_the_broker_dies(broker, tmp_path, "guarded")
    try:
        wait_for("the loss of the connection", lambda: "Trying to re-establish" in (tmp_path / "log").read_text())
        broker.start()
        with Celery("guard", broker=celery_url(broker.url), set_as_current=False) as sender:
            sender.send_task("nap", args=["second", 0])
            wait_for("the second nap", (tmp_path / "second").exists)
        assert worker.poll() is None
        assert "AttributeError" not in (tmp_path / "log").read_text()
    finally:
        end(worker)


def test_the_guard_refuses_a_kombu_that_it_was_not_tested_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "version", lambda _: "5.8.1")
    with pytest.raises(guard.UntestedKombu, match=r"kombu 5\.8\.1 is installed.*kombu==5\.7\.0"):
        guard.apply()
