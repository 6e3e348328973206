"""What many threads of a worker ask a provider at the same moment is one call.

A look at servers takes a hundred ids as well as one, and clouds count calls: twenty upgrades that come to the same step
together would use up twenty. Only looks are gathered here; whatever changes something stays a call of its own, unless
the provider decides for all who come within a moment (`Caps.decides_together`): these have their turn together.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import inf
from typing import Generic, Protocol, TypeVar

from providers.clients import rounds
from providers.compute import Compute, Image, Server
from providers.errors import Transient

LONGEST = 60.0  # seconds that a thread waits for a call which another one makes: above any call's own time-out
Tag = tuple[str, str]
Question = TypeVar("Question")
Answer = TypeVar("Answer")


class _Round(Generic[Question, Answer]):
    def __init__(self) -> None:
        self.questions: list[Question] = []
        self.done = threading.Event()
        self.answer: Answer | None = None
        self.error: Exception = Transient("the call for this has not ended", ambiguous=False)


class Together(Generic[Question, Answer]):
    """Puts the questions of one `window` (seconds, and longer while others may still come) at once, at most so many of
    them."""

    def __init__(self, put: Callable[[Sequence[Question]], Answer], *, window: float, most: int) -> None:
        self._put = put
        self._window = window
        self._most = most
        self._lock = threading.Lock()
        self._open: _Round[Question, Answer] | None = None

    def ask(self, question: Question) -> Answer:
        """The answer to all of them, asked for after this question had come. Raises what the call has raised."""
        with self._lock:
            mine = self._open
            first = mine is None or len(mine.questions) >= self._most
            if mine is None or first:
                mine = self._open = _Round()
            mine.questions.append(question)
        if first:
            self._answer(mine)
        elif not mine.done.wait(LONGEST):
            raise Transient(f"the call for this has not ended within {LONGEST:g} s", ambiguous=False)
        if mine.answer is None:
            raise mine.error
        return mine.answer

    def _answer(self, mine: _Round[Question, Answer]) -> None:
        try:
            try:
                time.sleep(self._window)
                rounds.linger(lambda: len(mine.questions))
            finally:  # even if this thread is ended: a round that stays open takes the next ones in, and never ends
                with self._lock:
                    if self._open is mine:
                        self._open = None
            mine.answer = self._put(mine.questions)
        except Exception as error:  # for everybody who has asked
            mine.error = error
        finally:
            mine.done.set()


class Looks(Protocol):
    """What of `providers.compute.Compute` may be asked together."""

    def servers(self, ids: Sequence[str]) -> Mapping[str, Server]: ...

    def inventory(self, tags: Mapping[str, str]) -> Sequence[Server | Image]: ...


class Gathering:
    """A compute provider of which the threads of this process look at single servers together, and ask together what
    carries some tags."""

    def __init__(self, compute: Compute, *, window: float) -> None:
        self._compute = compute
        self._servers = Together(compute.servers, window=window, most=compute.caps.batch)
        self._marked = Together(self._all_marked, window=window, most=compute.caps.batch)

    def servers(self, ids: Sequence[str]) -> Mapping[str, Server]:
        if len(ids) != 1:
            return self._compute.servers(ids)
        found = self._servers.ask(ids[0])
        return {id: found[id] for id in ids if id in found}

    def inventory(self, tags: Mapping[str, str]) -> Sequence[Server | Image]:
        if not tags:
            return self._compute.inventory(tags)
        found = self._marked.ask(tags)
        fewest = min((found.get(tag, ()) for tag in tags.items()), key=len)
        return [thing for thing in fewest if tags.items() <= thing.tags.items()]

    def _all_marked(self, asked: Sequence[Mapping[str, str]]) -> Mapping[Tag, Sequence[Server | Image]]:
        """What carries the tags that some have asked for in common, by each tag that is asked for. Those who have
        nothing in common, as two rollouts, are asked for apart: what carries no tag at all is all that there is in the
        account."""
        common: list[Mapping[str, str]] = []
        for tags in asked:
            for place, others in enumerate(common):
                if both := {name: value for name, value in others.items() if tags.get(name) == value}:
                    common[place] = both
                    break
            else:
                common.append(tags)
        found = {(type(thing), thing.id): thing for tags in common for thing in self._compute.inventory(tags)}
        # Of a thousand servers everyone looks through its own few things.
        wanted = {tag for tags in asked for tag in tags.items()}
        by_tag: dict[Tag, list[Server | Image]] = {}
        for thing in found.values():
            for tag in wanted & thing.tags.items():
                by_tag.setdefault(tag, []).append(thing)
        return by_tag


class Crowd:
    """The threads of this worker that are at work on a step: see `providers.clients.rounds.Crowd`."""

    def __init__(self, patience: float = 0.0, threads: float = inf) -> None:
        self.patience = patience
        self.threads = threads
        self._lock = threading.Lock()
        self.busy = 0
        self.coming = 0

    @contextmanager
    def working(self) -> Iterator[None]:
        self._count(1, 1)
        try:
            yield
        finally:
            self._count(-1, -1)

    @contextmanager
    def asking(self) -> Iterator[None]:
        """A provider, or for a turn, which may take its time: whoever does so is not waited for."""
        self._count(0, -1)
        try:
            yield
        finally:
            self._count(0, 1)

    def _count(self, busy: int, coming: int) -> None:
        with self._lock:
            self.busy += busy
            self.coming += coming


class SharedTurn:
    """A turn that several threads have together: it is taken by the first, others join for `open` seconds, and it is
    given back by the last."""

    def __init__(self, *, open: float) -> None:
        self._open = open
        self._changed = threading.Condition()
        self._taking = False
        self._inside = 0
        self._until = 0.0
        self._among = 0
        self._first = ""

    def join(self, among: int, take: Callable[[], None], *, owner: str, patience: float) -> bool:
        """True once in it, with nobody who is not `among` the same; False if that takes longer than `patience`
        seconds. Raises what `take` raises."""
        end = time.monotonic() + patience
        with self._changed:
            while self._taking or self._inside:
                if self._inside and self._among == among and time.monotonic() < self._until:
                    self._inside += 1
                    return True
                if not self._changed.wait(max(0.0, end - time.monotonic())) and time.monotonic() >= end:
                    return False
            self._taking = True
        taken = False
        try:
            take()
            taken = True
        finally:
            with self._changed:
                self._taking = False
                if taken:
                    self._inside, self._among, self._first = 1, among, owner
                    self._until = time.monotonic() + self._open
                self._changed.notify_all()
        return True

    def leave(self, give: Callable[[str], object]) -> None:
        """`give` is told who has taken it, where nobody is in it any more."""
        with self._changed:
            self._inside -= 1
            if self._inside:
                return
            self._taking = True  # nobody takes it before it is given back
        try:
            give(self._first)
        finally:
            with self._changed:
                self._taking = False
                self._changed.notify_all()
