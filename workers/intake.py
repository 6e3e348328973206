"""Takes messages in, and outlives every one of them; and tells of them, some at a time.

Whoever may write to the broker may write anything. A message whose head is not Celery's (a list for a task's name, a
mapping for an id) raises in the middle of the consumer's loop; the worker ends, and since the message was never
acknowledged it is delivered again, to end the next one. Here it is told of and dropped, as Celery does itself with a
body that it cannot read. What matters is in the record, and its chain is sent again when it is due.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from celery.worker.consumer import Consumer
from vine import promise as vine_promise

from workers import parked
from workers.sent import SENT

CONSUMER = f"{__name__}:Intake"
GATHER = 0.5  # seconds for which events are gathered: Flower shows them a moment later
GATHERED = 250  # events that are sent at once, whatever the time


class Intake(Consumer):  # type: ignore[misc] # celery has no types
    """Celery's consumer; `CONSUMER` is how its setting `worker_consumer` names it."""

    def update_strategies(self) -> None:
        super().update_strategies()
        parked.trace(self.app, self)
        SENT.consumer = self

    def create_task_handler(self, promise: Any = vine_promise) -> Callable[[Any], None]:
        take = super().create_task_handler(promise)
        lost = (*self.connection_errors, *self.connection.channel_errors)

        def on_task_received(message: Any) -> None:
            try:
                take(message)
            except lost:
                raise
            except Exception as error:  # whatever it was, it is this message's failure and nobody else's
                self._drop(message, error)

        return on_task_received

    def _drop(self, message: Any, error: Exception) -> None:
        if message.acknowledged:
            return
        self.on_decode_error(message, error)

    _flush_at = 0.0  # monotonic seconds of the next sending

    def on_send_event_buffered(self) -> None:
        """Events are gathered for a moment. Celery sends them with the next turn of its loop, so one by one under any
        load but the fullest, and a sending costs as much as taking a message in. Any thread may call this."""
        now = time.monotonic()
        # A time rather than a mark: should the timer be lost with its connection, a later event sets another.
        dispatcher = self.event_dispatcher  # none for a moment, when its connection is lost and another is made
        if self.hub and dispatcher is not None and now >= self._flush_at:
            self._flush_at = now + GATHER
            dispatcher.buffer_limit = GATHERED
            self.hub.call_soon(self.hub.call_later, GATHER, self._flush_events)

    def shutdown(self) -> None:
        """What nobody has sent yet goes before the connection does."""
        self._flush_events()
        super().shutdown()
