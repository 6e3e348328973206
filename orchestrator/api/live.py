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
Place = tuple[int, int]
log = structlog.get_logger(__name__)


def place(id: str) -> Place:
    """An id of a stream, so that they compare."""
    first, _, second = id.partition("-")
    return int(first), int(second or 0)


def _id(place: Place) -> str:
    return f"{place[0]}-{place[1]}"


def told(entry: AuditEntry) -> bytes:
    """As it goes over the wire: written once, for however many read it."""
    body = {"schema": "changeover/v1/event", **schema.event(entry)}
    return ServerSentEvent(json.dumps(body), id=entry.id).encode()


@dataclass(kw_only=True)
class _Tail:
    """The newest events of one rollout, as `told` writes them. All after `since` are in `events`. `newest`: those that
    came together last, joined once for all who have the one before them, which is `before`. `news` is set when there
    is something to see, and made anew."""

    since: Place
    told: Told
    events: deque[tuple[Place, bytes]] = field(default_factory=deque)
    before: Place = (0, 0)
    newest: bytes = b""
    news: asyncio.Event = field(default_factory=asyncio.Event)
    readers: int = 0
    task: asyncio.Task[None] | None = None

    @property
    def last(self) -> Place:
        return self.events[-1][0] if self.events else self.since

    def grow(self, found: Sequence[AuditEntry]) -> None:
        self.before = self.last
        written = [(place(entry.id), self.told(entry)) for entry in found]
        self.newest = b"".join(event for _, event in written)
        self.events.extend(written)
        while len(self.events) > KEPT:
            self.since = self.events.popleft()[0]
        self.wake()

    def wake(self) -> None:
        self.news.set()
        self.news = asyncio.Event()


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
        """Every event after that id, each once and in order, those that came together as one chunk; for as long as
        somebody listens and is let in. `told` writes them, once for all that follow with the same."""
        key = (rollout, told)
        if key not in self._tails:
            since = place(await self._call(self._store.last_event, rollout))
            self._tails.setdefault(key, _Tail(since=since, told=told))
        tail = self._tails[key]
        tail.readers += 1
        if tail.task is None:
            tail.task = asyncio.create_task(self._grow(rollout, tail))
        open = self._doors.setdefault(door.key, _Open(door=door))
        open.readers += 1
        if open.task is None:
            open.task = asyncio.create_task(self._guard(open))
        seen = place(after)
        try:
            while not open.shut:
                chunk, seen = await self._next(rollout, tail, seen, open)
                if chunk and not open.shut:
                    yield chunk
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
        for tail in self._tails.values():
            tail.wake()

    async def _next(self, rollout: str, tail: _Tail, seen: Place, open: _Open) -> tuple[bytes, Place]:
        """What comes after what was seen, if anything has by now, and what has been seen then."""
        if seen < tail.since:  # older than what is kept
            found = await self._read(rollout, _id(seen))
            if not found:  # the store has lost its end
                await asyncio.sleep(AGAIN)
                return b"", seen
            return b"".join(map(tail.told, found)), place(found[-1].id)
        while tail.last <= seen:
            if open.shut:
                return b"", seen
            await tail.news.wait()
        if seen == tail.before:
            return tail.newest, tail.last
        if seen < tail.since:
            return b"", seen
        newer = [event for _, event in takewhile(lambda each: each[0] > seen, reversed(tail.events))]
        return b"".join(reversed(newer)), tail.last

    async def _grow(self, rollout: str, tail: _Tail) -> None:
        while True:
            try:
                found = await self._call(self._store.events, rollout, after=_id(tail.last), limit=PAGE, block=BLOCK)
            except Exception as error:  # whatever it is: those who follow would wait for ever
                log.warning("events unread", rollout=rollout, why=str(error))
                await asyncio.sleep(AGAIN)
                continue
            if found:
                tail.grow(found)

    async def _read(self, rollout: str, after: str) -> Sequence[AuditEntry]:
        while True:
            try:
                return await self._call(self._store.events, rollout, after=after, limit=PAGE)
            except ChangeoverError as error:
                log.warning("events unread", rollout=rollout, why=error.message)
                await asyncio.sleep(AGAIN)
