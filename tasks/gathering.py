"""What many threads of a worker ask a provider at the same moment is one call.

A look at servers takes a hundred ids as well as one, and clouds count calls: twenty upgrades that come to the same step
together would use up twenty. Only looks are gathered; whatever changes something stays a call of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from providers.compute import Compute, Image, Server
from providers.errors import Transient

LONGEST = 60.0  # seconds that a thread waits for a call which another one makes: above any call's own time-out
Question = TypeVar("Question")
Answer = TypeVar("Answer")


class _Round(Generic[Question, Answer]):
    def __init__(self) -> None:
        self.questions: list[Question] = []
        self.done = threading.Event()
        self.answer: Answer | None = None
        self.error: Exception = Transient("the call for this has not ended", ambiguous=False)


class Together(Generic[Question, Answer]):
    """Puts the questions of one `window` (seconds) at once, at most so many of them."""

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
    """What of `providers.compute.Compute` may be asked together. Of a server it may lack what a provider tells only of
    one that is looked at alone (`protected`)."""

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
        return [thing for thing in self._marked.ask(tags) if tags.items() <= thing.tags.items()]

    def _all_marked(self, asked: Sequence[Mapping[str, str]]) -> Sequence[Server | Image]:
        """What carries the tags that some have asked for in common. Those who have nothing in common, as two rollouts,
        are asked for apart: what carries no tag at all is all that there is in the account."""
        common: list[Mapping[str, str]] = []
        for tags in asked:
            for place, others in enumerate(common):
                if both := {name: value for name, value in others.items() if tags.get(name) == value}:
                    common[place] = both
                    break
            else:
                common.append(tags)
        found = {(type(thing), thing.id): thing for tags in common for thing in self._compute.inventory(tags)}
        return list(found.values())
