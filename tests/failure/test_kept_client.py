"""One client of redis-py a channel, for as long as the channel's pool lives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from kombu.connection import Connection
from kombu.transport import redis as transport

from tests.support.valkey import celery_url, running_valkey
from workers import guard

_connect: Any = Connection  # kombu has no types here


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("_create_client", "_brpop_read"):  # put back what the guard replaces
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
