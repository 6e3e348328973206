"""The audit log as it grows, to any number of readers: one read of the store for all that follow a rollout here."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from typing import ParamSpec, TypeVar

import structlog
from sse_starlette import ServerSentEvent

from orchestrator import schema
from orchestrator.errors import ChangeoverError
from orchestrator.store import AuditEntry, Store

BLOCK = 2.0  # seconds of one wait for news
AGAIN = 1.0  # seconds until a store that does not answer is asked again
KEPT = 2000  # newest events that are kept for who is a little behind
PAGE = 500
MOST = 64  # rollouts that are followed at once in one process
CHECKED_EVERY = 10.0  # seconds between two looks whether who follows still may
P = ParamSpec("P")
R = TypeVar("R")
Told = Callable[[AuditEntry], bytes]
log = structlog.get_logger(__name__)


def place(id: str) -> tuple[int, int]:
    """An id of a stream, so that they compare."""
    first, _, second = id.partition("-")
    return int(first), int(second or 0)


def told(entry: AuditEntry) -> bytes:
    """As it goes over the wire: written once, for however many read it."""
    body = {"schema": "changeover/v1/event", **schema.event(entry)}
    return ServerSentEvent(json.dumps(body), id=entry.id).encode()


@dataclass(kw_only=True)
class _Tail:
    """The newest events of one rollout, as `told` writes them. All after `since` are in `events`."""

    since: str
    told: Told
    events: deque[tuple[str, bytes]] = field(default_factory=deque)
    news: asyncio.Condition = field(default_factory=asyncio.Condition)
    readers: int = 0
    task: asyncio.Task[None] | None = None

    @property
    def last(self) -> str:
        return self.events[-1][0] if self.events else self.since


@dataclass(kw_only=True)
class Door:
    """By which some came in to follow events: `key` says that it is the same for all of them, `still` whether it lets
    them in, asked in a thread."""

    key: str
    still: Callable[[], bool]


@dataclass(kw_only=True)
class _Open:
    door: Door
    readers: int = 0
    shut: bool = False
    task: asyncio.Task[None] | None = None


class Live:
    """Of one process and its event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tails: dict[tuple[str, Told], _Tail] = {}
        self._doors: dict[str, _Open] = {}
        self._threads = ThreadPoolExecutor(MOST + 4, thread_name_prefix="live")

    def full(self, rollout: str, told: Told = told) -> bool:
        return len(self._tails) >= MOST and (rollout, told) not in self._tails

    async def _call(self, read: Callable[P, R], *args: P.args, **how: P.kwargs) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(read, *args, **how))

    async def follow(self, rollout: str, after: str, door: Door, told: Told = told) -> AsyncGenerator[bytes, None]:
        """Every event after that id, each once and in order, for as long as somebody listens and is let in. `told`
        writes them, once for all that follow with the same."""
        key = (rollout, told)
        if key not in self._tails:
            since = await self._call(self._store.last_event, rollout)
            self._tails.setdefault(key, _Tail(since=since, told=told))
        tail = self._tails[key]
        tail.readers += 1
        if tail.task is None:
            tail.task = asyncio.create_task(self._grow(rollout, tail))
        open = self._doors.setdefault(door.key, _Open(door=door))
        open.readers += 1
        if open.task is None:
            open.task = asyncio.create_task(self._guard(open))
        try:
            while not open.shut:
                if (found := await self._next(rollout, tail, after, open)) and not open.shut:
                    yield b"".join(event for _, event in found)
                    after = found[-1][0]
        finally:
            open.readers -= 1
            if not open.readers and open.task is not None:
                open.task.cancel()
                if self._doors.get(door.key) is open:
                    del self._doors[door.key]
            tail.readers -= 1
            if not tail.readers and tail.task is not None:
                tail.task.cancel()
                if self._tails.get(key) is tail:
                    del self._tails[key]

    async def _guard(self, open: _Open) -> None:
        """Looks every `CHECKED_EVERY` seconds whether they are still let in, once for all that came in by the same
        door, and sends them off if not."""
        while not open.shut:
            await asyncio.sleep(CHECKED_EVERY)
            try:
                open.shut = not await self._call(open.door.still)
            except Exception as error:  # which is not to keep a door open that has been shut
                log.warning("token unread", why=str(error))
        for tail in list(self._tails.values()):
            async with tail.news:
                tail.news.notify_all()

    async def _next(self, rollout: str, tail: _Tail, after: str, open: _Open) -> Sequence[tuple[str, bytes]]:
        if place(after) < place(tail.since):  # older than what is kept
            found = await self._read(rollout, after)
            if not found:  # the store has lost its end
                await asyncio.sleep(AGAIN)
            return [(entry.id, tail.told(entry)) for entry in found]
        async with tail.news:
            await tail.news.wait_for(lambda: open.shut or place(tail.last) > place(after))
        if place(after) < place(tail.since):
            return ()
        newer = list(takewhile(lambda each: place(each[0]) > place(after), reversed(tail.events)))
        return newer[::-1]

    async def _grow(self, rollout: str, tail: _Tail) -> None:
        while True:
            try:
                found = await self._call(self._store.events, rollout, after=tail.last, limit=PAGE, block=BLOCK)
            except Exception as error:  # whatever it is: those who follow would wait for ever
                log.warning("events unread", rollout=rollout, why=str(error))
                await asyncio.sleep(AGAIN)
                continue
            if not found:
                continue
            async with tail.news:
                tail.events.extend((entry.id, tail.told(entry)) for entry in found)
                while len(tail.events) > KEPT:
                    tail.since = tail.events.popleft()[0]
                tail.news.notify_all()

    async def _read(self, rollout: str, after: str) -> Sequence[AuditEntry]:
        while True:
            try:
                return await self._call(self._store.events, rollout, after=after, limit=PAGE)
            except ChangeoverError as error:
                log.warning("events unread", rollout=rollout, why=error.message)
                await asyncio.sleep(AGAIN)
