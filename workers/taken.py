"""Notes in the broker which messages a worker holds: the ones that it holds for longer than a moment.

kombu notes each message as taken in a transaction of its own, and takes the note back in another one: a third of what a
worker's processor does for a step that takes a few milliseconds. Here notes are gathered for a moment. What was
acknowledged before its turn came is never written, and the rest goes in one transaction for all.

A worker that is killed within that moment takes the message along. Nothing counts on the note: it brings a message back
only after the visibility timeout of ten minutes, and a server whose message is lost is sent on again within seconds,
since it is due in the agenda of the records.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from kombu.asynchronous import get_event_loop
from kombu.transport import redis as transport
from kombu.transport import virtual

from workers.plain import dumps

MOMENT = 0.5  # seconds for which new messages are gathered before they are noted
SOON = 0.1  # seconds for which notes that are over are gathered


class Taken(transport.QoS):
    """Of one channel. It reaches into kombu's inside, like `workers.guard`, which refuses a version that was never
    tried."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]  # kombu has no types here
        self._lock = threading.Lock()  # a message may be acknowledged by any thread
        self._new: dict[str, float] = {}  # taken and not noted, with the time: epoch seconds
        self._over: set[str] = set()  # noted, and acknowledged since
        self._note_at = 0.0
        self._clear_at = 0.0

    def append(self, message: Any, delivery_tag: str) -> None:
        with self._lock:
            self._new[delivery_tag] = time.time()
        virtual.QoS.append(self, message, delivery_tag)
        now = time.monotonic()
        if now >= self._note_at:  # a time, no mark: should the timer be lost, the next message sets another
            self._note_at = now + MOMENT
            self._later(MOMENT, self._note)

    def ack(self, delivery_tag: str) -> None:
        with self._lock:
            noted = self._new.pop(delivery_tag, None) is None
            if noted:
                self._over.add(delivery_tag)
        virtual.QoS.ack(self, delivery_tag)
        now = time.monotonic()
        if noted and now >= self._clear_at:
            self._clear_at = now + SOON
            self._later(SOON, self._clear)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        self.write()
        super().reject(delivery_tag, requeue=requeue)  # type: ignore[no-untyped-call]  # nor here

    def restore_unacked(self, client: Any = None) -> None:
        """Each is given back by its note."""
        self.write()
        super().restore_unacked(client)  # type: ignore[no-untyped-call]  # nor here

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """At the end of a channel: nobody will come back for what has gathered, and a worker's last messages are
        acknowledged when its loop has ended."""
        with suppress(*self.channel.connection_errors):  # then there is nobody to be told
            self.write()
        super().restore_unacked_once(stderr)  # type: ignore[no-untyped-call]  # nor here

    def write(self) -> None:
        """All that has gathered, at once."""
        self._note()
        self._clear()

    def _note(self) -> None:
        with self._lock:
            new, self._new = self._new, {}
        known = {tag: self._delivered.get(tag) for tag in new}
        held = {tag: message for tag, message in known.items() if message is not None}
        if held:
            with self.pipe_or_acquire() as pipe:
                pipe.zadd(self.unacked_index_key, {tag: new[tag] for tag in held})
                pipe.hset(self.unacked_key, mapping={tag: _noted(message) for tag, message in held.items()})
                pipe.execute()

    def _clear(self) -> None:
        with self._lock:
            over, self._over = self._over, set()
        if over:
            with self.pipe_or_acquire() as pipe:
                pipe.zrem(self.unacked_index_key, *over)
                pipe.hdel(self.unacked_key, *over)
                pipe.execute()

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        def in_time() -> None:
            if not self.channel.closed:  # its connection may be gone, and what it held has been given back
                act()

        loop = get_event_loop()
        if loop is None:
            act()
        else:
            loop.call_soon(loop.call_later, seconds, in_time)


def _noted(message: Any) -> str:
    """As kombu writes it, who reads it again."""
    info = message.delivery_info
    return dumps([message._raw, info["exchange"], info["routing_key"]])


def apply() -> None:
    """From now on the channels of this process note what they hold like this."""
    transport.Channel.QoS = Taken
