"""What a worker notes in the broker of the messages that it holds, on a real one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kombu import Queue
from kombu.asynchronous import Hub, get_event_loop, set_event_loop
from kombu.connection import Connection
from kombu.transport import redis as transport

from tests.support.valkey import celery_url, running_valkey
from workers import guard, taken

_connect: Any = Connection
_queue: Any = Queue


class Worker:
    """A loop, and a channel that takes messages as a worker's does."""

    def __init__(self, connection: Any) -> None:
        self.hub: Any = Hub()
        set_event_loop(self.hub)
        self.channel = connection.channel()
        self._queue = _queue("work", channel=self.channel)
        self._queue.declare()
        self._producer = connection.Producer(self.channel)
        with self.channel.conn_or_acquire() as client:
            self.broker: Any = client

    def take(self) -> Any:
        self._producer.publish({"n": 1}, routing_key="work")
        return self._queue.get(no_ack=False)

    def noted(self) -> int:
        assert self.broker.hlen("unacked") == self.broker.zcard("unacked_index")
        return int(self.broker.hlen("unacked"))

    def turn(self, done: Callable[[], bool], *, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end
            self.hub.run_once()


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    for name in ("_create_client", "_get_pool", "_brpop_read", "QoS"):  # put back what is replaced
        monkeypatch.setattr(transport.Channel, name, getattr(transport.Channel, name))
    guard.apply()
    taken.apply()
    former = get_event_loop()
    with running_valkey() as valkey, _connect(celery_url(valkey.url)) as connection:
        made = Worker(connection)
        try:
            yield made
        finally:
            made.hub.close()
            set_event_loop(former)


def test_a_message_that_is_acknowledged_within_a_moment_is_never_noted(worker: Worker) -> None:
    for _ in range(5):
        worker.take().ack()
    kept = worker.take()
    worker.turn(lambda: worker.noted() == 1)
    assert worker.broker.info("commandstats")["cmdstat_zadd"]["calls"] == 1
    assert worker.broker.hkeys("unacked") == [kept.delivery_tag.encode()]


def test_what_was_noted_is_taken_back_when_it_is_acknowledged(worker: Worker) -> None:
    messages = [worker.take() for _ in range(3)]
    worker.turn(lambda: worker.noted() == 3)
    messages[1].ack()
    worker.turn(lambda: worker.noted() == 2)
    messages[0].ack()
    messages[2].ack()
    worker.turn(lambda: worker.noted() == 0)


def test_a_channel_that_closes_gives_back_what_it_has_not_noted_yet(worker: Worker) -> None:
    done, held, other = worker.take(), worker.take(), worker.take()
    done.ack()
    assert worker.noted() == 0
    worker.channel.close()
    worker.hub.run_once()
    assert worker.noted() == 0
    back = [worker.broker.lindex("work", place).decode() for place in range(worker.broker.llen("work"))]
    assert len(back) == 2
    assert all(any(tag in text for text in back) for tag in (held.delivery_tag, other.delivery_tag))


def test_a_channel_that_closes_takes_back_its_note_of_what_was_acknowledged_last(worker: Worker) -> None:
    message = worker.take()
    worker.turn(lambda: worker.noted() == 1)
    message.ack()
    worker.channel.close()
    assert (worker.noted(), worker.broker.llen("work")) == (0, 0)


@pytest.mark.parametrize("noted", [False, True])
def test_a_message_that_is_handed_back_is_in_the_queue_again(worker: Worker, noted: bool) -> None:
    message = worker.take()
    if noted:
        worker.turn(lambda: worker.noted() == 1)
    message.requeue()
    assert (worker.noted(), worker.broker.llen("work")) == (0, 1)


def test_a_message_that_is_refused_is_gone(worker: Worker) -> None:
    worker.take().reject()
    assert (worker.noted(), worker.broker.llen("work")) == (0, 0)
