"""Questions of many threads, asked together: one is under way, and whoever comes meanwhile shares the next."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Generic, Protocol, TypeVar

from providers.errors import ProviderError

PAUSE = 0.25  # seconds without another one, after which those who were woken together have all come
AGAIN = 0.02  # seconds between two looks at who may still come
Q = TypeVar("Q", bound=Hashable)
T = TypeVar("T")


class Crowd(Protocol):
    """The threads of this process that may come to a provider with the same question. `busy`: all that are at work;
    `coming`: those of them that are in no call of a provider now. `patience`: seconds for which they are waited for.
    `threads`: how many there are."""

    @property
    def patience(self) -> float: ...

    @property
    def threads(self) -> float: ...

    @property
    def busy(self) -> int: ...

    @property
    def coming(self) -> int: ...


class _Process:
    crowd: Crowd | None = None


def gather(crowd: Crowd | None) -> None:
    """From now on a round of this process stays open for those who may still come: who was woken together comes
    together, and on a busy machine one after another. It costs one who is at work alone nothing, and others a moment,
    which is little beside a step."""
    _Process.crowd = crowd


def linger(come: Callable[[], int], *, pause: float | None = None) -> None:
    """Returns as soon as nobody else is to be expected; `come`: how many have come by now. `pause`: seconds for which a
    free thread is waited for, with which others of those that were woken together may be about to come; `PAUSE` if it
    is None."""
    pause = PAUSE if pause is None else pause
    crowd, count = _Process.crowd, come()
    first = last = time.monotonic()
    while crowd is not None and count < crowd.busy:
        now = time.monotonic()
        full = crowd.busy >= crowd.threads  # and who is in a call comes to nothing else before its answer
        if now >= first + crowd.patience or (crowd.coming <= 0 and (full or now >= last + pause)):
            return
        time.sleep(AGAIN)
        if (seen := come()) != count:
            count, last = seen, time.monotonic()


class Rounds(Generic[Q, T]):
    """`ask` is given what several threads want to know, and answers for each of it. `pause`: see `linger`."""

    def __init__(self, ask: Callable[[Collection[Q]], Mapping[Q, T]], *, pause: float | None = None) -> None:
        self._ask = ask
        self._pause = pause
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._next: _Round[Q, T] | None = None

    def __call__(self, questions: Collection[Q]) -> Mapping[Q, T]:
        """Each of them, as it was after this call began. Raises what the round has raised."""
        with self._lock:
            mine = self._next = self._next or _Round()
            mine.questions |= set(questions)
            mine.askers += 1
        with self._asking:
            if not mine.done:
                linger(lambda: mine.askers, pause=self._pause)
                with self._lock:
                    self._next = None
                try:
                    mine.found = self._ask(mine.questions)
                except Exception as error:
                    mine.error = error
                mine.done = True
        if mine.error is not None:
            raise mine.error
        return {each: mine.found[each] for each in questions}


def own(rounds: Rounds[Q, T | ProviderError], asked: Q) -> T:
    """What the round says of this one, which may be an error of its own."""
    said = rounds([asked])[asked]
    if isinstance(said, ProviderError):
        raise said
    return said


def each(act: Callable[[Q], T], asked: Collection[Q]) -> dict[Q, T | ProviderError]:
    """Each of them in turn: what is refused to one is refused to no other."""
    said: dict[Q, T | ProviderError] = {}
    for one in asked:
        try:
            said[one] = act(one)
        except ProviderError as error:
            said[one] = error
    return said


class _Round(Generic[Q, T]):
    def __init__(self) -> None:
        self.askers = 0
        self.questions: set[Q] = set()
        self.done = False
        self.found: Mapping[Q, T] = {}
        self.error: Exception | None = None
