"""The audit log as it grows, to any number of readers: one read of the store for all that follow a rollout here."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
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


class Live:
    """Of one process and its event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tails: dict[tuple[str, Told], _Tail] = {}
        self._threads = ThreadPoolExecutor(MOST + 4, thread_name_prefix="live")

    def full(self, rollout: str, told: Told = told) -> bool:
        return len(self._tails) >= MOST and (rollout, told) not in self._tails

    async def _call(self, read: Callable[P, R], *args: P.args, **how: P.kwargs) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(read, *args, **how))

    async def follow(self, rollout: str, after: str, told: Told = told) -> AsyncGenerator[bytes, None]:
        """Every event after that id, each once and in order, for as long as somebody listens. `told` writes them, once
        for all that follow with the same."""
        key = (rollout, told)
        if key not in self._tails:
            since = await self._call(self._store.last_event, rollout)
            self._tails.setdefault(key, _Tail(since=since, told=told))
        tail = self._tails[key]
        tail.readers += 1
        if tail.task is None:
            tail.task = asyncio.create_task(self._grow(rollout, tail))
        try:
            while True:
                if found := await self._next(rollout, tail, after):
                    yield b"".join(event for _, event in found)
                    after = found[-1][0]
        finally:
            tail.readers -= 1
            if not tail.readers and tail.task is not None:
                tail.task.cancel()
                if self._tails.get(key) is tail:
                    del self._tails[key]

    async def _next(self, rollout: str, tail: _Tail, after: str) -> Sequence[tuple[str, bytes]]:
        if place(after) < place(tail.since):  # older than what is kept
            found = await self._read(rollout, after)
            if not found:  # the store has lost its end
                await asyncio.sleep(AGAIN)
            return [(entry.id, tail.told(entry)) for entry in found]
        async with tail.news:
            await tail.news.wait_for(lambda: place(tail.last) > place(after))
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


async def while_let_in(
    events: AsyncGenerator[bytes, None], still: Callable[[], Awaitable[bool]]
) -> AsyncGenerator[bytes, None]:
    """The events, until whoever reads them is no longer let in: that is asked every `CHECKED_EVERY` seconds, and before
    the next event then. As long as it cannot be known nothing is told."""
    loop = asyncio.get_running_loop()
    checked = loop.time()
    coming: asyncio.Task[bytes] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(events))
            await asyncio.wait({coming}, timeout=max(0.0, checked + CHECKED_EVERY - loop.time()))
            if loop.time() - checked >= CHECKED_EVERY:
                try:
                    if not await still():
                        return
                except ChangeoverError as error:
                    log.warning("token unread", why=error.message)
                    await asyncio.sleep(AGAIN)
                    continue
                checked = loop.time()
            if coming.done():
                event, coming = coming.result(), None
                yield event
    finally:
        if coming is not None:
            coming.cancel()
        else:
            await events.aclose()
