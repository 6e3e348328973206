"""Questions of many threads, asked together: one is under way, and whoever comes meanwhile shares the next."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from typing import Generic, TypeVar

T = TypeVar("T")


class Rounds(Generic[T]):
    """`ask` is given the names that several threads want to know, and answers for each of them."""

    def __init__(self, ask: Callable[[Collection[str]], Mapping[str, T]]) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._next: _Round[T] | None = None

    def __call__(self, names: Collection[str]) -> Mapping[str, T]:
        """Each name, as it was after this call began. Raises what the round has raised."""
        with self._lock:
            mine = self._next = self._next or _Round()
            mine.names |= set(names)
        with self._asking:
            if not mine.done:
                with self._lock:
                    self._next = None
                try:
                    mine.found = self._ask(mine.names)
                except Exception as error:
                    mine.error = error
                mine.done = True
        if mine.error is not None:
            raise mine.error
        return {name: mine.found[name] for name in names}


class _Round(Generic[T]):
    def __init__(self) -> None:
        self.names: set[str] = set()
        self.done = False
        self.found: Mapping[str, T] = {}
        self.error: Exception | None = None
