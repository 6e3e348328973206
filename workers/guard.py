"""Keeps a worker alive when the broker dies under a message that it has not acknowledged yet.

kombu closes its channel and then gives such messages back through a connection that is already gone. That raises
`AttributeError: 'NoneType' object has no attribute 'hostname'`, which nobody above catches, and the process exits.
A connection error at the same place is caught, and the worker connects again.

And when somebody puts into a queue what is no message at all: kombu takes it out, cannot read it, and the error ends
the process, once for each of them.

At the same place kombu makes a new client of redis-py for each publish, acknowledgement and delivery, several a
message, which is a fifth of a worker's processor time. One is kept a channel, for as long as its pool lives: a client
holds nothing but the pool, and any thread may use it. Its connections are handed out as ours are.
"""

from __future__ import annotations

import logging
from importlib.metadata import version
from queue import Empty
from typing import Any

from orchestrator.store.connecting import KeptPool

log = logging.getLogger(__name__)

TESTED_KOMBU = "5.7.0"


class UntestedKombu(RuntimeError):
    """The guard reaches into kombu's inside, and this version of it was never tried."""

    def __init__(self, found: str) -> None:
        super().__init__(
            f"kombu {found} is installed, but the guard against a dying broker was tested with {TESTED_KOMBU} only. "
            f"Install kombu=={TESTED_KOMBU}, or run tests/failure/test_kombu_guard.py with {found} and change "
            f"TESTED_KOMBU in workers/guard.py"
        )
        self.found = found


def apply() -> None:
    """From now on a closed channel raises a connection error, and what is no message is dropped. Twice is once. Raises
    `UntestedKombu`."""
    found = version("kombu")
    if found != TESTED_KOMBU:
        raise UntestedKombu(found)

    from kombu.transport import redis as transport
    from redis.exceptions import ConnectionError as RedisConnectionError

    unguarded = transport.Channel._create_client
    if getattr(unguarded, "guarded", False):
        return

    def _create_client(channel: Any, asynchronous: bool = False) -> Any:
        connection = getattr(channel, "connection", None)
        if connection is None or getattr(connection, "client", None) is None:
            raise RedisConnectionError("the channel is closed")
        if asynchronous:
            return unguarded(channel, asynchronous)  # type: ignore[no-untyped-call]  # kombu has no types here
        kept = getattr(channel, "kept_client", None)
        if kept is None or kept.connection_pool is not channel.pool:
            kept = channel.kept_client = unguarded(channel)  # type: ignore[no-untyped-call]  # kombu has no types here
        return kept

    def _get_pool(channel: Any, asynchronous: bool = False) -> Any:
        if asynchronous:
            return unkept(channel, asynchronous)  # type: ignore[no-untyped-call]  # nor here
        return KeptPool(**channel._connparams())

    unkept = transport.Channel._get_pool
    transport.Channel._get_pool = _get_pool  # type: ignore[method-assign]  # those of sentinels have their own
    _create_client.guarded = True  # type: ignore[attr-defined]  # a mark on our own function, read a few lines above
    transport.Channel._create_client = _create_client  # type: ignore[method-assign]  # replacing it is the point
    unread = transport.Channel._brpop_read

    def _brpop_read(channel: Any, **options: Any) -> Any:
        try:
            return unread(channel, **options)  # type: ignore[no-untyped-call]  # kombu has no types here
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            # Not from a task's message, whose errors end in `workers.intake`. It is out of the queue already, and was
            # in no other place yet.
            log.warning("what was in the queue is no message, and was dropped: %s", type(error).__name__)
            raise Empty from None

    transport.Channel._brpop_read = _brpop_read  # type: ignore[method-assign, assignment]  # replacing it is the point
