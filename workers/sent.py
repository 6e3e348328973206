"""Tells Flower of the messages that a worker sends with its other events, some at a time.

Celery tells of each in a publication of its own, which costs as much as the message does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery import Celery


class Sent:
    """Stands where an app that sends has its dispatcher of events; `consumer` is known once the worker is connected."""

    def __init__(self) -> None:
        self.consumer: Any = None

    def publish(self, type: str, fields: Mapping[str, Any], *_: Any, **__: Any) -> None:
        dispatcher = getattr(self.consumer, "event_dispatcher", None)
        if dispatcher is not None:  # else the connection is lost, and what is sent meanwhile is told by who takes it
            dispatcher.send(type, **fields)


SENT = Sent()


def apply(app: Celery) -> None:
    """From now on; before its first message."""
    app.amqp._event_dispatcher = SENT
