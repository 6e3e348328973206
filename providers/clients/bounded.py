"""A socket whose waits end together: a peer that sends a byte a second must not hold whoever asks for ever."""

from __future__ import annotations

import socket
import time
from typing import Any


class Bounded(socket.socket):
    """Every wait at it ends by `until`, or with `TimeoutError`, however many there are of them: a time-out of `socket`
    itself begins anew with each byte that arrives."""

    _until = float("inf")  # by the monotonic clock

    def within(self, seconds: float) -> None:
        """What follows has that long, all in all."""
        self._until = time.monotonic() + seconds

    def connect(self, address: Any) -> None:
        self._wait_no_longer()
        super().connect(address)

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        self._wait_no_longer()
        return super().recv_into(*args, **kwargs)

    def send(self, *args: Any, **kwargs: Any) -> int:
        self._wait_no_longer()
        return super().send(*args, **kwargs)

    def sendall(self, *args: Any, **kwargs: Any) -> None:
        self._wait_no_longer()  # which bounds all of it, as `socket` promises
        super().sendall(*args, **kwargs)

    def _wait_no_longer(self) -> None:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self.settimeout(left)
