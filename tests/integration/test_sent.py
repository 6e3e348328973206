"""What a worker sends is told with its other events."""

from __future__ import annotations

import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery import Celery

from orchestrator.messaging import make_app
from orchestrator.settings import Settings
from tests.support.redis_servers import wait_for
from tests.support.valkey import RunningValkey, running_valkey
from workers import sent

WORKER = Path(__file__).with_name("sent_worker.py")


# -- by hand -----------------------------------------------------------------------------------------------------------


class Told:
    """Stands for a worker's consumer, and for its dispatcher."""

    def __init__(self) -> None:
        self.event_dispatcher: Any = self
        self.events: list[tuple[str, dict[str, Any]]] = []

    def send(self, type: str, **fields: Any) -> None:
        self.events.append((type, fields))


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Celery:
    """One that sends to nobody but this process."""
    monkeypatch.setattr(sent.SENT, "consumer", None)
    app = Celery("sent", broker="memory://", set_as_current=False)
    app.conf.update(task_send_sent_event=True, task_default_queue=uuid.uuid4().hex)
    sent.apply(app)
    return app


def messages(app: Celery, queue: str | None = None) -> list[str]:
    """The ids of what is in its queue."""
    with app.connection_for_read() as connection:
        found = connection.SimpleQueue(queue or app.conf.task_default_queue)
        ids = []
        while found.qsize():
            message = found.get(timeout=10)
            ids.append(message.headers["id"])
            message.ack()
        return ids


def test_what_is_sent_is_told_by_the_consumers_dispatcher(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told()
    monkeypatch.setattr(sent.SENT, "consumer", told)
    app.send_task("step", args=["web-1"], task_id="one")
    ((kind, fields),) = told.events
    assert kind == "task-sent"
    assert (fields["uuid"], fields["name"], fields["queue"]) == ("one", "step", app.conf.task_default_queue)
    assert messages(app) == ["one"]


@pytest.mark.parametrize("consumer", [None, SimpleNamespace(), SimpleNamespace(event_dispatcher=None)])
def test_without_somebody_to_tell_it_the_message_goes_all_the_same(
    app: Celery, monkeypatch: pytest.MonkeyPatch, consumer: object
) -> None:
    monkeypatch.setattr(sent.SENT, "consumer", consumer)
    app.send_task("step", task_id="one")
    told = Told()
    monkeypatch.setattr(sent.SENT, "consumer", told)  # the worker has come, and its connection
    app.send_task("step", task_id="two")
    assert messages(app) == ["one", "two"]
    assert [fields["uuid"] for _, fields in told.events] == ["two"]


# -- a real worker -----------------------------------------------------------------------------------------------------


@pytest.fixture
def valkey() -> Iterator[RunningValkey]:
    with running_valkey() as running:
        yield running


class Listener:
    """Hears what workers tell, until it is ended."""

    def __init__(self, app: Celery) -> None:
        self.events: list[dict[str, Any]] = []
        self._connection: Any = app.connection_for_read()
        self._receiver: Any = app.events.Receiver(self._connection, handlers={"*": self.events.append})
        self._thread = threading.Thread(target=self._receiver.capture, kwargs={"wakeup": False}, daemon=True)
        self._thread.start()

    def heard(self, kind: str) -> list[str]:
        """The ids of the tasks of which the worker told that."""
        return [each["uuid"] for each in tuple(self.events) if each["type"] == kind and each["hostname"] == "w1@here"]

    def close(self) -> None:
        self._receiver.should_stop = True
        self._thread.join(30)
        assert not self._thread.is_alive()
        self._connection.release()


@pytest.fixture
def heard(valkey: RunningValkey, tmp_path: Path) -> Iterator[Listener]:
    """A listener who was there before the worker was."""
    listener = Listener(make_app(Settings(redis_url=valkey.url, state_dir=tmp_path)))
    try:
        with redis.Redis.from_url(valkey.url) as raw:
            wait_for("somebody who listens", lambda: raw.pubsub_numpat() == 1)
        with (tmp_path / "log").open("w") as log:
            worker = subprocess.Popen(
                [sys.executable, "-P", str(WORKER), valkey.url, str(tmp_path)], cwd=tmp_path, stderr=log, stdout=log
            )
        try:
            yield listener
        finally:
            worker.kill()
            worker.wait()
    finally:
        listener.close()


def test_each_step_of_a_chain_is_told_once_by_the_worker_that_sends_it(
    heard: Listener, valkey: RunningValkey, tmp_path: Path
) -> None:
    app = make_app(Settings(redis_url=valkey.url, state_dir=tmp_path))
    steps = [app.signature("step", args=[mark], immutable=True).set(task_id=mark) for mark in ("one", "two", "three")]
    (steps[0] | steps[1] | steps[2]).apply_async()
    app.send_task("begin", args=["other"], task_id="begin")
    for each in ("one", "two", "three", "begin", "other"):
        wait_for(f"the end of {each}", lambda each=each: each in heard.heard("task-succeeded"), seconds=60)  # type: ignore[misc] # of its lambda
    # A worker tells in the order in which it happened: nothing of them is to come.
    assert sorted(heard.heard("task-sent")) == ["other", "three", "two"]
    names = {each["uuid"]: each["name"] for each in heard.events if each["type"] == "task-sent"}
    assert {names[step] for step in ("two", "three", "other")} == {"step"}
    assert all((tmp_path / mark).exists() for mark in ("one", "two", "three", "other"))
    app.close()
