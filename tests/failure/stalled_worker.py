"""A whole worker of ours that stops taking messages as soon as it is ready, without an error: as after a connection
that was lost and nobody noticed. Arguments as of `python -m workers`."""

import runpy
from typing import Any

from celery import signals

from orchestrator.settings import Settings


def _take_no_more(sender: Any, **_: Any) -> None:
    sender.call_soon(sender.cancel_task_queue, Settings.load().queue)


signals.worker_ready.connect(_take_no_more, weak=False)
runpy.run_module("workers", run_name="__main__")
