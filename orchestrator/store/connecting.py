"""Clients of Redis by any address, and what its errors mean."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from orchestrator.addresses import Address
from orchestrator.errors import ChangeoverError, Unreachable, UnsafeStore

WAIT_FOR_ONE = 10.0  # seconds that a thread waits for one of its process' connections
ANSWER = 10.0  # seconds
CONNECT = 3.0
FRESH = 0.1  # seconds for which a connection that answered last is taken for one that answers


class Kept:
    """Beside a pool of redis-py's: hands out again as it is what was given back a moment ago.

    redis-py asks each connection whether something has come on it meanwhile, and counts it twice, which takes longer
    than a command. Here it does so with those that lay idle, whose server may have gone, and with those that ended or
    whose server is the master no more: what connects by itself comes to where it was, and asks no sentinel. A process
    that has forked must not use it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._wanting = 0  # threads that ask redis-py for one, and may wait for ours
        self._mutex = threading.Lock()
        super().__init__(*args, **options)

    def reset(self) -> None:
        """Forgets all of them, as redis-py does: it begins with this."""
        with self._mutex:
            self._kept: list[tuple[Any, float]] = []
        pool: Any = super()
        pool.reset()

    def get_connection(self, *_: Any, **__: Any) -> Any:
        with self._mutex:
            kept, at = self._kept.pop() if self._kept else (None, 0.0)
            if kept is not None and time.monotonic() - at < FRESH and self._is_good(kept):
                return kept
            self._wanting += 1
        pool: Any = super()
        try:
            if kept is not None:
                pool.release(kept)
            return pool.get_connection()
        finally:
            with self._mutex:
                self._wanting -= 1

    def release(self, connection: Any) -> None:
        with self._mutex:
            if not self._wanting:
                self._kept.append((connection, time.monotonic()))
                return
        pool: Any = super()
        pool.release(connection)

    def _is_good(self, connection: Any) -> bool:
        pool: Any = self
        return connection.is_connected and not connection.should_reconnect() and pool.owns_connection(connection)


class KeptPool(Kept, redis.ConnectionPool):
    """Connections without a limit but redis-py's own."""


class _BlockingPool(Kept, redis.BlockingConnectionPool):
    """As many connections as allowed are made; who wants one more waits."""


class _MasterPool(Kept, SentinelConnectionPool, redis.BlockingConnectionPool):
    """Connections to whom the sentinels call the master now. As many as allowed are made; who wants one more waits."""


class Client(redis.Redis):
    """redis-py's, with nothing round a command but its connection: what the other does there for repetitions, metrics
    and caches, none of which is used here, takes longer than the command.

    What was not read to its end is closed: its answer is yet to come, and whoever had the connection next would take it
    for theirs. Most connections do so themselves; those found by a sentinel do not."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        parse: Any = self.parse_response
        connection: Any = self.connection_pool.get_connection()
        try:
            try:
                connection.send_command(*args)
            except redis.exceptions.ConnectionError:  # it had ended: what got there is no whole command
                connection.disconnect()
                connection.connect()  # asks sentinels for the master, which sending alone does not
                connection.send_command(*args)
            return parse(connection, args[0], **options)
        except redis.exceptions.ResponseError:
            raise
        except BaseException:
            connection.disconnect()
            raise
        finally:
            self.connection_pool.release(connection)

    def ask_all(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """The answers of several commands, sent at once, as Redis gives them; of each that it refused, why."""
        connection: Any = self.connection_pool.get_connection()
        try:
            connection.send_packed_command(connection.pack_commands(commands))
            return [_answer(connection) for _ in commands]
        except BaseException:
            connection.disconnect()
            raise
        finally:
            self.connection_pool.release(connection)


def _answer(connection: Any) -> Any:
    try:
        return connection.read_response()
    except redis.exceptions.ResponseError as error:
        return error


def connect(address: Address, *, connections: int, answer: float = ANSWER) -> Any:
    """A client with a pool of its own, that tries nothing twice: what was not answered may have happened, and whoever
    called decides what to do then. `answer`: seconds to wait for one. Nothing is connected before it is needed."""
    # What it answers is Any: redis-py's types mix the answers of its asyncio twin.
    options: dict[str, Any] = {
        "max_connections": connections,
        "timeout": WAIT_FOR_ONE,
        "socket_timeout": answer,
        "health_check_interval": 25,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        **address.connection(),
    }
    return Client(connection_pool=_pool(address, options))


def _pool(address: Address, options: dict[str, Any]) -> Any:
    blocking: Any = _BlockingPool  # Any here and below: redis-py has no types for its pools
    if address.path:
        return blocking(connection_class=redis.UnixDomainSocketConnection, path=address.path, **options)
    options |= {"socket_connect_timeout": CONNECT, "socket_keepalive": True}
    if not address.master:
        host, port = address.hosts[0]
        kind = redis.Connection if address.tls is None else redis.SSLConnection
        return blocking(connection_class=kind, host=host, port=port, **options)
    sentinels: Any = Sentinel
    master_pool: Any = _MasterPool
    asked = {**address.sentinel(), "retry": Retry(NoBackoff(), 0)}
    known = sentinels(list(address.hosts), sentinel_kwargs=asked)
    return master_pool(address.master, known, ssl=address.tls is not None, **options)


class Told:
    """Says plainly what redis-py or a script complained of. Has no state: any thread may be inside."""

    def __init__(self, address: Address, *, whose: str = "Redis") -> None:
        self._address = address
        self._whose = whose

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, redis.exceptions.RedisError):
            raise plainly(error, self._address, whose=self._whose) from error
        if isinstance(error, OSError):
            gone = redis.exceptions.ConnectionError(str(error))
            raise plainly(gone, self._address, whose=self._whose) from error


def plainly(error: redis.exceptions.RedisError, address: Address, *, whose: str = "Redis") -> ChangeoverError:
    """What an error of redis-py means to whoever called."""
    text, who = str(error), f"{whose} at {address.where}"
    match error:
        case redis.exceptions.AuthenticationError() if "NOAUTH" in text or "Authentication required" in text:
            return Unreachable(f"{who} wants a password and was given none", next="set CHANGEOVER_REDIS_URL")
        case redis.exceptions.AuthenticationError():
            return Unreachable(f"{who} refused our password", next="set CHANGEOVER_REDIS_URL")
        case redis.exceptions.NoPermissionError():
            return Unreachable(f"{who} does not let our user do this: {text}", next="redis-cli ACL GETUSER")
        case redis.exceptions.BusyLoadingError():
            return Unreachable(f"{who} is still loading its data", next="try again")
        case redis.exceptions.TimeoutError():
            return Unreachable(
                f"{who} did not answer in time: {text}",
                traffic="every site goes on serving as it is; whether Redis did what was asked, it did not say",
                next=address.ping,
            )
        case redis.exceptions.ConnectionError():
            return Unreachable(f"{who} does not answer: {text}", next=address.ping)
    if "OOM " in text or "used memory > 'maxmemory'" in text:
        return UnsafeStore(f"{who} is full and refused it; nothing was changed", next=MORE_MEMORY)
    if "READONLY" in text or "read only replica" in text:
        return UnsafeStore(f"{who} is a replica that refuses writes", next="name the primary's address")
    if "MISCONF" in text:
        return UnsafeStore(f"{who} cannot write to its disk and refuses writes: {text}", next="redis-cli INFO")
    if "NOREPLICAS" in text:
        return UnsafeStore(f"{who} has too few replicas and refuses writes", next="redis-cli INFO")
    if "WRONGTYPE" in text or "GARBAGE" in text:
        return UnsafeStore(f"{who} holds something that is not ours: {text}", next="redis-cli TYPE <the key>")
    return UnsafeStore(f"{who} refused: {text}", next="redis-cli INFO")


MORE_MEMORY = "redis-cli CONFIG SET maxmemory <more>"
