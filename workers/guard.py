"""Keeps a worker alive when the broker dies under a message that it has not acknowledged yet.

kombu closes its channel and then gives such messages back through a connection that is already gone. That raises
`AttributeError: 'NoneType' object has no attribute 'hostname'`, which nobody above catches, and the process exits.
A connection error at the same place is caught, and the worker connects again.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

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
    """From now on a closed channel raises a connection error. Twice is once. Raises `UntestedKombu`."""
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
        return unguarded(channel, asynchronous)  # type: ignore[no-untyped-call]  # kombu has no types here

    _create_client.guarded = True  # type: ignore[attr-defined]  # a mark on our own function, read a few lines above
    transport.Channel._create_client = _create_client  # type: ignore[method-assign]  # replacing it is the point
