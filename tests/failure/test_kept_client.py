"""One client of redis-py a channel, for as long as its pool lives, and connections that are handed out again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from kombu.connection import Connection
from kombu.transport import redis as transport

from orchestrator.store.connecting import KeptPool
from tests.support.valkey import celery_url, running_valkey
from workers import guard

_connect: Any = Connection  # kombu has no types here


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("_create_client", "_get_pool", "_brpop_read"):  # put back what the guard replaces
        monkeypatch.setattr(transport.Channel, name, getattr(transport.Channel, name))
    guard.apply()
    with running_valkey() as valkey, _connect(celery_url(valkey.url)) as made:
        yield made


def test_a_channel_keeps_its_client_until_its_pool_ends(connection: Any) -> None:
    channel = connection.default_channel
    with channel.conn_or_acquire() as first, channel.conn_or_acquire() as second:
        assert first is second
        assert first.ping()
    channel._disconnect_pools()
    with channel.conn_or_acquire() as third:
        assert third is not first
        assert third.connection_pool is channel.pool
        assert third.ping()


def test_two_channels_do_not_share_a_client(connection: Any) -> None:
    one, other = connection.channel(), connection.channel()
    with one.conn_or_acquire() as first, other.conn_or_acquire() as second:
        assert first is not second


def test_what_is_sent_goes_by_connections_that_are_handed_out_again_and_what_is_awaited_does_not(
    connection: Any,
) -> None:
    channel = connection.default_channel
    assert isinstance(channel.pool, KeptPool)
    assert not isinstance(channel.async_pool, KeptPool)  # the loop watches those, and is told when one ends
    queue = connection.SimpleQueue("work")
    for number in range(3):
        queue.put({"n": number})
    assert len(channel.pool._in_use_connections) == 1  # as redis-py sees it, who was never given it back
    assert [queue.get(timeout=30).payload["n"] for _ in range(3)] == [0, 1, 2]


def test_who_is_told_to_all_hears_it_where_kombu_says(connection: Any) -> None:
    channel = connection.default_channel
    channel._disconnect_pools()
    assert channel.pool and channel.keyprefix_fanout == "/0."


def test_sentinels_lead_to_connections_of_their_own() -> None:
    assert transport.SentinelChannel._get_pool is not transport.Channel._get_pool
