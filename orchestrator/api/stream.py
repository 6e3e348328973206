"""An answer that goes on for as long as there are events: server-sent events, each chunk sent as it is given.

As sse-starlette's EventSourceResponse, which sends the same, but with nothing round a chunk but its sending: a time
limit for each of them, its lock and its log took half of what it costs to tell many readers one event. Who does not
read is sent off by the server's `Protocol`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator
from datetime import UTC, datetime

from sse_starlette import ServerSentEvent
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

PING = 12.0  # seconds, and up to `SPREAD` more: many come in the same moment, after a cut, and their pings are not to
SPREAD = 6.0
_END = {"type": "http.response.body", "body": b"", "more_body": False}


class Stream(Response):
    """Ends with `events`, which are closed in any case, or when the client leaves."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "Connection": "keep-alive", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if scope["method"] == "HEAD":
            await self._events.aclose()
            await send(_END)
            return
        beside = [asyncio.create_task(_until_it_leaves(receive)), asyncio.create_task(_ping(send))]
        telling = asyncio.create_task(self._tell(send))
        try:
            await asyncio.wait((telling, *beside), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (telling, *beside):
                task.cancel()
            await asyncio.gather(telling, *beside, return_exceptions=True)
            await self._events.aclose()
        if not telling.cancelled():
            telling.result()
            await send(_END)

    async def _tell(self, send: Send) -> None:
        async for chunk in self._events:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})


async def _until_it_leaves(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _ping(send: Send) -> None:
    """For proxies, which end what is silent for long."""
    every = PING + secrets.randbelow(1000) / 1000 * SPREAD
    while True:
        await asyncio.sleep(every)
        ping = ServerSentEvent(comment=f"ping - {datetime.now(UTC)}").encode()
        await send({"type": "http.response.body", "body": ping, "more_body": True})
