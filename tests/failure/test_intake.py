"""What anybody may put into a queue, and a worker that outlives it."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from tests.support.valkey import RunningValkey, celery_url, running_valkey

WORKER = Path(__file__).with_name("intake_worker.py")


def message(body: Any = None, **head: Any) -> str:
    """One of Celery's own, with other things in its head."""
    text = json.dumps([["forged"], {}, {}] if body is None else body)
    return json.dumps(
        {
            "body": base64.b64encode(text.encode()).decode(),
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": {"task": "note", "id": "forged", "lang": "py", **head},
            "properties": {
                "delivery_tag": f"tag-{time.monotonic_ns()}",
                "delivery_info": {"exchange": "", "routing_key": "celery"},
                "body_encoding": "base64",
            },
        }
    )


FORGED: dict[str, str | bytes] = {
    "a list for a task's name": message(task=["note"]),
    "nothing for a task's name": message(task=None),
    "an unknown task": message(task="os.system"),
    "a mapping for an id": message(id={"a": 1}),
    "a text for its time limits": message(timelimit="soon"),
    "a mapping for its end": message(expires={}),
    "no arguments": message(body=5),
    "arguments of another kind": message(body=[[], {"epoch": [1]}, {}]),
    "a chain of numbers": message(body=[["forged"], {}, {"chain": [5]}]),
    "no head": json.dumps({"body": "e30=", "properties": {"delivery_tag": "x", "delivery_info": {}}}),
    "no properties": json.dumps({"body": "e30="}),
    "a list": "[1]",
    "no JSON": "garbage",
    "no text": b"\xff\xfe\x00",
    "a list in a list, and so on": "[" * 100_000,
    "nothing": b"",
}


def wait_for(what: str, condition: Callable[[], bool], *, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {seconds} s"
        time.sleep(0.02)


@pytest.fixture
def broker() -> Iterator[RunningValkey]:
    with running_valkey() as valkey:
        yield valkey


def started(broker: RunningValkey, marks: Path, mode: str) -> subprocess.Popen[str]:
    """A worker that has worked."""
    command = [sys.executable, "-P", str(WORKER), celery_url(broker.url), str(marks), mode]
    with (marks / "log").open("w") as log:
        worker = subprocess.Popen(command, cwd=marks, stderr=log, stdout=log, text=True)
    send(broker, "first")
    wait_for("the first task", (marks / "first").exists)
    return worker


def send(broker: RunningValkey, mark: str) -> None:
    with Celery("intake", broker=celery_url(broker.url), set_as_current=False) as sender:
        sender.send_task("note", args=[mark])


def forge(broker: RunningValkey, what: str | bytes) -> None:
    with redis.Redis.from_url(broker.url) as raw:
        raw.lpush("celery", what)


def test_a_worker_outlives_whatever_is_in_its_queue(broker: RunningValkey, tmp_path: Path) -> None:
    worker = started(broker, tmp_path, "guarded")
    try:
        for number, (name, what) in enumerate(FORGED.items()):
            forge(broker, what)
            send(broker, str(number))
            wait_for(f"a task after {name}", (tmp_path / str(number)).exists)
            assert worker.poll() is None, name
    finally:
        worker.kill()
        worker.wait()


@pytest.mark.parametrize("name", ["a list for a task's name", "no JSON"])
def test_without_the_guard_one_message_ends_a_worker(broker: RunningValkey, tmp_path: Path, name: str) -> None:
    worker = started(broker, tmp_path, "bare")
    try:
        forge(broker, FORGED[name])
        worker.wait(timeout=15)
    finally:
        worker.kill()
        worker.wait()
