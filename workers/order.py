"""Takes one message in so many from the far end of the queue, however much lies before it.

kombu takes what has the highest priority, always. While a hundred servers are in their last steps, who was admitted in
the meantime would not begin its first one before all of these are through: its place in flight would lie idle for
seconds, and then the next hundred would begin, and end, in the same moment. So servers in flight finish first, three of
four times, and those behind them do not stand still.
"""

from __future__ import annotations

import time
from typing import Any

from kombu.transport import redis as transport

EVERY = 4  # of so many takings one asks for the lowest priority first


def apply() -> None:
    """From now on the channels of this process take them like this. Twice is once."""
    plain = transport.Channel._brpop_start
    if getattr(plain, "in_order", False):
        return

    def _brpop_start(channel: Any, timeout: Any = None) -> None:
        channel.takings = getattr(channel, "takings", 0) + 1
        queues = channel.takings % EVERY == 0 and channel._queue_cycle.consume(len(channel.active_queues))
        if not queues:
            plain(channel, timeout)  # type: ignore[no-untyped-call]  # kombu has no types here
            return
        *others, last = channel.priority_steps
        keys = [channel._q_for_pri(queue, priority) for priority in (last, *others) for queue in queues]
        # As kombu does it, whose own order is in the middle of it.
        channel._in_poll = channel.client.connection
        channel._brpop_sent_at = time.monotonic()
        channel.client.connection.send_command("BRPOP", *keys, timeout or channel.brpop_timeout or 0)

    _brpop_start.in_order = True  # type: ignore[attr-defined]  # a mark on our own function, read a few lines above
    transport.Channel._brpop_start = _brpop_start  # type: ignore[method-assign]  # replacing it is the point
