"""Ends a worker that could work and does not.

What connects a worker to its broker has been seen to stop taking messages for good, without an error: after a lost
connection, after somebody told it by remote control to consume no more, with a loop that hangs in a call. Nobody but
the worker can tell that from an idle one, and it would hold its place for ever. So it looks itself whether messages
wait; while some do, it must start one now and then. Else it gives its leases back and ends, and whoever keeps it
running (`changeover up`, systemd, Kubernetes) starts it anew.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import structlog
from celery import signals

STALLED = 71  # exit code
LOOKS = 12  # in the time that it may stall

log = structlog.get_logger()


class Watchdog:
    """`waiting` counts the messages in the queue, and may raise; `release` gives the leases back. `patience`: seconds
    in which messages wait all the time and none is started, before it ends."""

    def __init__(
        self,
        *,
        waiting: Callable[[], int],
        release: Callable[[], object],
        patience: float,
        monotonic: Callable[[], float] = time.monotonic,
        exit: Callable[[int], object] = os._exit,
    ) -> None:
        self._waiting = waiting
        self._release = release
        self._patience = patience
        self._monotonic = monotonic
        self._exit = exit
        self._moved = monotonic()

    def watch(self) -> None:
        """Begins with the first message that the worker could take."""
        signals.task_prerun.connect(self.started, weak=False)
        signals.worker_ready.connect(self._begin, weak=False)

    def started(self, **_: object) -> None:
        """A message was taken up."""
        self._moved = self._monotonic()

    def look(self) -> None:
        """Once. A broker that does not answer is not the worker's stall: it may begin when that is back."""
        try:
            waiting = self._waiting()
        except Exception:  # whatever the broker answers, or that it does not
            waiting = 0
        if not waiting:
            self._moved = self._monotonic()
            return
        still = self._monotonic() - self._moved
        if still < self._patience:
            return
        log.error("worker", was="ready", now="stalled", waiting=waiting, seconds=round(still, 1))
        try:
            self._release()
        finally:
            self._exit(STALLED)

    def _begin(self, **_: object) -> None:
        self.started()
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def _run(self) -> None:
        while True:
            time.sleep(self._patience / LOOKS)
            self.look()
