"""Leases that could not be given back since the store did not answer. Each would hold up others until it ends: this
process lives, so nobody frees it in its place."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

import structlog

from orchestrator.errors import Unreachable, UnsafeStore

log = structlog.get_logger()
Give = Callable[[], object]


class Owed:
    """Any thread may use it. `lasts`: seconds after which such a lease has ended by itself."""

    def __init__(self, *, monotonic: Callable[[], float], lasts: float) -> None:
        self._monotonic = monotonic
        self._lasts = lasts
        self._lock = threading.Lock()
        self._due: deque[tuple[float, Give]] = deque()

    def give_back(self, give: Give) -> None:
        """Now, or else later."""
        try:
            give()
        except (Unreachable, UnsafeStore) as error:
            log.warning("not given back yet", error=str(error))
            self.later(give)

    def later(self, give: Give) -> None:
        """What is known to be impossible now."""
        with self._lock:
            self._due.append((self._monotonic() + self._lasts, give))

    def settle(self) -> None:
        """Gives back what is owed, as far as the store answers."""
        for _ in range(len(self._due)):
            with self._lock:
                if not self._due:
                    return
                until, give = self._due.popleft()
            if self._monotonic() >= until:
                continue
            try:
                give()
            except (Unreachable, UnsafeStore) as error:
                with self._lock:
                    self._due.append((until, give))
                if isinstance(error, Unreachable):
                    return
