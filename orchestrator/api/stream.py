"""An answer that goes on for as long as there are events."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator

from sse_starlette import EventSourceResponse
from starlette.types import Message, Send

PING = 12.0  # seconds, and up to `SPREAD` more: many come in the same moment, after a cut, and their pings are not to
SPREAD = 6.0


class Stream(EventSourceResponse):
    """Server-sent events, each chunk of `events` sent as it is given. A chunk has no time limit of its own, which costs
    as much as its sending: who does not read is sent off by the server's `Protocol`."""

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(events, ping=PING + secrets.randbelow(1000) / 1000 * SPREAD)

    async def _send_with_timeout(self, send: Send, message: Message) -> None:
        await send(message)
