"""A worker's life: known to live, told to end, and an end that comes in bounded time."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from types import FrameType

import structlog
from celery import signals
from celery.worker import state

from orchestrator.errors import ChangeoverError
from orchestrator.store import Store

BEAT_EVERY = 3.0  # seconds
BEAT_TTL = 12.0
WARM_SHUTDOWN = 30.0  # as long as one body may go on starting calls
_HURRIED = 70  # exit code of an end that did not wait for what was running

log = structlog.get_logger()


class Lifecycle:
    """The first SIGTERM or SIGINT takes no new message and waits for what runs, which stops at its next call; the
    second, or the deadline, ends at once. `settle` is called every few seconds as long as the store answers."""

    def __init__(
        self,
        *,
        store: Store,
        name: str,
        settle: Callable[[], object] = lambda: None,
        exit: Callable[[int], object] = os._exit,
    ) -> None:
        self._store = store
        self._settle = settle
        self._name = name
        self._exit = exit
        self._info = {"pid": os.getpid(), "host": socket.gethostname(), "version": version("changeover")}
        self._ready = threading.Event()
        self._told = 0

    def watch(self) -> None:
        """From now on the store knows that this worker lives, once it takes messages."""
        signals.worker_ready.connect(self._is_ready, weak=False)
        threading.Thread(target=self._beat, name="beat", daemon=True).start()

    def handle_signals(self) -> None:
        for which in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(which, self._tell)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal that closes; who started us says when to end

    @property
    def ending(self) -> bool:
        """Whether it was told to end: what runs stops at its next call."""
        return self._told > 0

    def release(self) -> int:
        """Every lease of this process is free at once; how many there were."""
        try:
            return self._store.release_owner(f"{self._name}/{os.getpid()}:")
        except ChangeoverError as error:
            log.warning("leases could not be released", error=str(error))
            return 0

    def ended(self) -> None:
        """Nothing runs here any more: whatever lease is left is free. One may be left after a lost broker."""
        log.info("worker", was="ending", now="ended", released=self.release())

    def _is_ready(self, **_: object) -> None:
        log.info("worker", was="starting", now="ready", pid=os.getpid())
        self._ready.set()

    def _beat(self) -> None:
        self._ready.wait()
        lost = False
        while True:
            running = len(state.active_requests)
            try:
                self._store.beat(self._name, {**self._info, "running": running, "ending": self.ending}, ttl=BEAT_TTL)
                self._settle()
            except ChangeoverError as error:
                if not lost:
                    log.warning("store", was="reachable", now="lost", error=str(error))
                lost = True
            else:
                if lost:
                    log.info("store", was="lost", now="reachable")
                lost = False
            time.sleep(BEAT_EVERY)

    def _tell(self, signum: int, _frame: FrameType | None) -> None:
        self._told += 1
        if self._told > 1:
            # A thread may be in the middle of a call, and only the end of the process ends it. So the lease stays: who
            # reaps us frees it, or its time does.
            self._exit(_HURRIED)
            return
        state.should_stop = os.EX_OK
        threading.Thread(target=self._end_in_time, args=(signum,), name="deadline", daemon=True).start()

    def _end_in_time(self, signum: int) -> None:
        log.info(
            "worker", was="ready", now="ending", signal=signal.Signals(signum).name, running=len(state.active_requests)
        )
        time.sleep(WARM_SHUTDOWN)
        log.error("worker", was="ending", now="killed by its own deadline", running=len(state.active_requests))
        self._exit(_HURRIED)
