"""Tells Flower and the result backend why a step waits, without the story of a failure.

For a task that is to be retried Celery copies the frames it came through and prints them, source lines and all: five
times the processor time of what a step does to park itself, for a text in which nobody finds anything.
"""

from __future__ import annotations

from typing import Any

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from celery.app.trace import TraceInfo, build_tracer

from tasks import Parked


class Told(TraceInfo):  # type: ignore[misc]  # celery has no types
    """Celery's, but for what is parked."""

    def handle_retry(self, task: Any, req: Any, store_errors: bool = True, **more: Any) -> Any:
        reason = self.retval
        if not isinstance(reason, Parked):
            return super().handle_retry(task, req, store_errors=store_errors, **more)
        if store_errors:
            task.backend.mark_as_retry(req.id, reason.exc, "", request=req)
        return _without_frames(reason)


def _without_frames(reason: Parked) -> ExceptionInfo:
    """What Celery reads of an exception's story: who tells it, and no traceback."""
    told = ExceptionInfo.__new__(ExceptionInfo)
    told.type, told.exception, told.tb, told.traceback = Parked, ExceptionWithTraceback(reason, ""), None, ""
    return told


def trace(app: Any, consumer: Any) -> None:
    """Has every step of the app tell it like this."""
    for name, task in app.tasks.items():
        task.__trace__ = build_tracer(name, task, app.loader, consumer.hostname, Info=Told, app=app)
