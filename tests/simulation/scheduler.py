"""Virtual time. Each actor is a greenlet that sleeps where a real process would wait for an answer; who goes on next
follows from those times alone, and they come from one seed. Nothing here knows what is simulated."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from greenlet import getcurrent, greenlet

START = 1_000_000.0
ALONE = 20  # times that an actor goes on by itself before the scheduler looks whether all is done


class Crashed(BaseException):
    """The process is gone, in the middle of whatever it did. No `except Exception` sees it, as none sees a SIGKILL."""


class TooLong(AssertionError):
    """The simulation does not come to an end."""


@dataclass(eq=False)
class Actor:
    """A process, or one turn of one. `dead`: whatever it still tries has no effect."""

    name: str
    greenlet: greenlet
    dead: bool = False


class Scheduler:
    """`events` counts what has happened; `limit` of them and the simulation is said to hang."""

    def __init__(self, seed: int, *, limit: int) -> None:
        self.random = Random(seed)
        self.now = START
        self.events = 0
        self.limit = limit
        self.current: Actor | None = None
        self.failure: BaseException | None = None
        self._heap: list[tuple[float, int, Actor | Callable[[], None]]] = []
        self._alive: dict[Actor, None] = {}
        self._count = 0
        self._until = START
        self._alone = 0
        self._hub = getcurrent()

    def clock(self) -> float:
        return self.now

    def at(self, seconds: float, what: Actor | Callable[[], None]) -> None:
        """`what` happens, or that actor goes on, in so many seconds."""
        self._count += 1
        heapq.heappush(self._heap, (self.now + seconds, self._count, what))

    def spawn(self, name: str, body: Callable[[], None], *, after: float = 0.0) -> Actor:
        def run() -> None:
            try:
                body()
            except Crashed:
                pass
            finally:
                actor.dead = True
                del self._alive[actor]

        actor = Actor(name, greenlet(run))
        self._alive[actor] = None
        self.at(after, actor)
        return actor

    def sleep(self, seconds: float) -> None:
        """The running actor goes on in so many seconds. Raises `Crashed` if it died meanwhile."""
        actor = self.current
        assert actor is not None
        if actor.dead or self.failure is not None:
            raise Crashed
        self.events += 1
        then = self.now + seconds
        if self._alone < ALONE and then <= self._until and (not self._heap or then < self._heap[0][0]):
            self._alone += 1
            self.now = then  # nobody else would go before it
        else:
            self._alone = 0
            self.at(seconds, actor)
            self._hub.switch()
        if actor.dead:
            raise Crashed

    def kill(self, actor: Actor) -> None:
        """It is gone. Its `finally` clauses run and have no effect, since a dead actor has none."""
        if actor.dead:
            return
        actor.dead = True
        if actor is self.current:
            raise Crashed
        if not actor.greenlet:  # which has not begun
            del self._alive[actor]
            return
        before, self.current = self.current, actor
        actor.greenlet.parent = getcurrent()
        actor.greenlet.throw(Crashed)
        self.current = before

    def fail(self, why: BaseException) -> None:
        """The simulation ends with it, whatever the running actor makes of it."""
        if self.failure is None:
            self.failure = why

    def run(self, done: Callable[[], bool], *, seconds: float) -> bool:
        """Until it is so, for so many seconds at the most. Whether it became so."""
        self._until = self.now + seconds
        while not done():
            if not self._heap or self._heap[0][0] > self._until:
                self.now = self._until
                return False
            if self.events > self.limit:
                raise TooLong(f"no end after {self.events} events")
            self.now, _, what = heapq.heappop(self._heap)
            self.events += 1
            if not isinstance(what, Actor):
                what()
            elif not what.dead:
                self.current = what
                what.greenlet.switch()
                self.current = None
            if self.failure is not None:
                raise self.failure
        return True

    def close(self) -> None:
        """Nobody is left in the middle of anything."""
        self.failure = self.failure or Crashed()
        while self._alive:
            self.kill(next(iter(self._alive)))
