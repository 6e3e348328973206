"""In which order a worker takes what waits, on a real broker."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from kombu import Queue
from kombu.connection import Connection
from kombu.transport import redis as transport

from orchestrator.messaging import PRIORITIES
from tests.support.valkey import celery_url, running_valkey
from workers import order

_connect: Any = Connection
_queue: Any = Queue


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(transport.Channel, "_brpop_start", transport.Channel._brpop_start)  # put back what is replaced
    order.apply()
    options = {"priority_steps": PRIORITIES, "queue_order_strategy": "priority"}
    with running_valkey() as valkey, _connect(celery_url(valkey.url), transport_options=options) as made:
        yield made


def taken(connection: Any, priorities: list[int]) -> list[int]:
    """The priorities of messages in the order in which a consumer gets them."""
    got: list[int] = []
    channel = connection.channel()
    queue = _queue("work", channel=channel)
    queue.declare()
    producer = connection.Producer(channel)
    for priority in priorities:
        producer.publish({"n": priority}, routing_key="work", priority=priority)
    with connection.Consumer(
        [queue], channel=channel, callbacks=[lambda body, message: (got.append(body["n"]), message.ack())]
    ):
        while len(got) < len(priorities):
            connection.drain_events(timeout=10)
    return got


def test_three_of_four_are_the_nearest_to_their_end_and_the_fourth_is_not(connection: Any) -> None:
    got = taken(connection, [9] * 6 + [0] * 12)
    places = [place for place, priority in enumerate(got) if priority == 9]
    assert {after - before for before, after in pairwise(places[:4])} == {order.EVERY}


def test_between_them_the_order_is_by_priority(connection: Any) -> None:
    got = taken(connection, [6, 3, 6, 0, 3, 0])
    assert [each for each in got if each != 6] == [0, 0, 3, 3]


def test_applied_twice_it_is_the_same(connection: Any) -> None:
    order.apply()
    assert taken(connection, [9] * 2 + [0] * 6).count(9) == 2
