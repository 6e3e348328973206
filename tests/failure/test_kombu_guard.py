"""What the guard is for, shown on a real broker: the crash without it, and the reconnect with it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from celery import Celery

from orchestrator.embedded import valkey_server
from workers import guard

WORKER = Path(__file__).with_name("kombu_guard_worker.py")


def wait_for(what: str, condition: Callable[[], bool], *, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {seconds} s"
        time.sleep(0.02)


class Broker:
    """A Valkey that can be killed and started again with what it had."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "s"
        self.url = f"redis+socket://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        options = ["--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.folder), "--appendonly", "yes"]
        self.process = subprocess.Popen([str(valkey_server()), *options], stdout=subprocess.DEVNULL)
        wait_for("the broker's socket", self.socket.exists)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def broker() -> Iterator[Broker]:
    with tempfile.TemporaryDirectory(prefix="co-") as folder:
        broker = Broker(Path(folder))
        broker.start()
        yield broker
        broker.kill()


def run_until_the_broker_dies(broker: Broker, marks: Path, mode: str) -> subprocess.Popen[str]:
    """A worker that holds one unacknowledged message below its prefetch limit, with the broker just killed."""
    command = [sys.executable, "-P", str(WORKER), broker.url, str(marks), mode]
    with (marks / "log").open("w") as log:
        worker = subprocess.Popen(command, cwd=marks, stderr=log, stdout=log, text=True)
    with Celery("guard", broker=broker.url, set_as_current=False) as sender:
        sender.send_task("nap", args=["first", 1.5])
        wait_for("the first nap", (marks / "first").exists)
    broker.kill()
    return worker


def end(worker: subprocess.Popen[str]) -> None:
    worker.kill()
    worker.wait()


def test_without_the_guard_a_worker_ends_when_its_broker_dies(broker: Broker, tmp_path: Path) -> None:
    worker = run_until_the_broker_dies(broker, tmp_path, "bare")
    try:
        with suppress(subprocess.TimeoutExpired):
            worker.wait(timeout=15)
        assert worker.returncode == 1
        assert "'NoneType' object has no attribute 'hostname'" in (tmp_path / "log").read_text()
    finally:
        end(worker)


def test_with_the_guard_a_worker_reconnects_and_works_on(broker: Broker, tmp_path: Path) -> None:
    worker = run_until_the_broker_dies(broker, tmp_path, "guarded")
    try:
        wait_for("the loss of the connection", lambda: "Trying to re-establish" in (tmp_path / "log").read_text())
        broker.start()
        with Celery("guard", broker=broker.url, set_as_current=False) as sender:
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
