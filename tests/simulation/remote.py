"""What lies between a process and everything else: time passes there, calls fail there, and processes die there.

A process is killed, or frozen, only where it would wait for something outside of it: between two such moments nobody
else can see a difference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from providers import Key
from providers.errors import ProviderError
from tests.simulation.cloud import FAKES
from tests.simulation.faults import MAKING, PROVIDER, RAISED, READING, STORE, Faults
from tests.simulation.invariants import Invariants
from tests.simulation.scheduler import Scheduler
from tests.simulation.trace import Trace

PROCESS: Final = ("crash", "freeze")
STORE_SECONDS: Final = 0.002
CALL_SECONDS: Final = 0.05
# These only read, several in a row: mostly nothing happens between them. Before what follows from them it may.
PEEKS: Final = frozenset(
    {
        "confirmed",
        "document",
        "due",
        "due_lanes",
        "frozen",
        "last_event",
        "ledger",
        "open_rollouts",
        "queue_wait",
        "reopen",
        "rollout",
        "rollouts",
        "row",
        "rows",
        "sightings",
        "tally",
    }
)
LATEST: Final = 60.0  # seconds after which the cloud has done what it ever will of a call


class Wire:
    """`die` kills the running process; `lease` is what a frozen one sleeps beyond. Until `throttled_until` the cloud
    throttles everybody, until `away_until` the store answers nobody."""

    def __init__(
        self,
        scheduler: Scheduler,
        faults: Faults,
        checks: Invariants,
        trace: Trace,
        *,
        lease: float,
        die: Callable[[], None],
    ) -> None:
        self.scheduler = scheduler
        self.faults = faults
        self.checks = checks
        self.trace = trace
        self.lease = lease
        self.die = die
        self.throttled_until = 0.0
        self.away_until = 0.0

    def travel(self, place: str, seconds: float) -> None:
        """To there. The process may die on the way, or be frozen and arrive late."""
        kind = self.faults.one_of(PROCESS, place)
        delay = self.scheduler.random.expovariate(1 / seconds)
        if kind:
            self.trace.add(kind, place)
            if kind == "crash":
                self.scheduler.sleep(delay)
                self.die()
            delay += self.lease * self.scheduler.random.uniform(0.5, 3.0)
        self.scheduler.sleep(delay)

    def point(self, place: str) -> None:
        """One of the journal's own points."""
        if self.faults.strikes("crash at a point", place):
            self.trace.add("crash at a point", place)
            self.die()


class RemoteStore:
    """The store as a process reaches it."""

    def __init__(self, inner: Any, wire: Wire) -> None:
        self._inner = inner
        self._wire = wire

    def now(self) -> float:
        now: float = self._inner.now()
        return now

    def __getattr__(self, name: str) -> Any:
        wire, place = self._wire, f"store.{name}"
        act = getattr(self._inner, name)
        checked = getattr(wire.checks, f"stored_{name}", None)

        seldom = name in PEEKS

        def call(*args: Any, **kwargs: Any) -> Any:
            if not seldom or wire.scheduler.random.random() < 0.1:
                wire.travel(place, STORE_SECONDS)
            if wire.scheduler.now < wire.away_until:
                raise RAISED["store away"](place)
            kind = wire.faults.one_of(STORE, place)
            if kind == "store away":
                wire.trace.add(kind, place)
                raise RAISED[kind](place)
            answer = act(*args, **kwargs)
            if checked is not None:
                wire.trace.add(place, args, answer)
                checked(answer, *args, **kwargs)
            if kind:
                wire.trace.add(kind, place)
                raise RAISED[kind](place)
            return answer

        self.__dict__[name] = call
        return call


class RemoteProvider:
    """A provider as a process reaches it."""

    def __init__(self, role: str, inner: Any, wire: Wire) -> None:
        self._role = role
        self._inner = inner
        self._wire = wire
        self.caps = inner.caps
        self.lane = getattr(inner, "lane", None)

    def __getattr__(self, name: str) -> Any:
        getattr(self._inner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._call(name, args, kwargs)

        self.__dict__[name] = call
        return call

    def _call(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        wire, place, reads = self._wire, f"{self._role}.{name}", name in READING
        wire.travel(place, CALL_SECONDS)
        if not reads and wire.faults.strikes("crash in a call", place):
            wire.trace.add("crash in a call", place)
            self._later(name, args, kwargs)
            wire.die()
        if wire.scheduler.now < wire.throttled_until:
            raise RAISED["throttled"](place)
        kind = wire.faults.one_of(PROVIDER, place)
        if kind:
            if kind in ("no capacity", "refused") and (name not in MAKING or self._has_made(args)):
                kind = "throttled"  # a cloud that has made something by that key answers with it
            elif kind in ("answer lost", "late effect") and reads:
                kind = "no answer"
            wire.trace.add(kind, place)
            if kind == "late effect":
                self._later(name, args, kwargs)
                wire.scheduler.sleep(10.0)
            if kind != "answer lost":
                raise RAISED[kind](place)
        answer = self._happens(name, args, kwargs, late=False)
        if kind:
            raise RAISED[kind](place)
        return answer

    def _has_made(self, args: tuple[Any, ...]) -> bool:
        return isinstance(args[0], Key) and args[0].token in self._inner.cloud.made

    def _later(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """It happens some time after, and nobody hears of it."""

        def happens() -> None:
            try:
                self._happens(name, args, kwargs, late=True)
            except ProviderError as error:
                self._wire.trace.add(f"late {self._role}.{name}", args, repr(error))

        self._wire.scheduler.at(self._wire.scheduler.random.uniform(0.0, LATEST), happens)

    def _happens(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, late: bool) -> Any:
        if name in READING:
            return getattr(self._inner, name)(*args, **kwargs)
        checks = self._wire.checks
        before = checks.before(name, args)
        answer = getattr(self._inner, name)(*args, **kwargs)
        self._wire.trace.add(f"{'late ' if late else ''}{self._role}.{name}", args, answer)
        checks.done(name, args, kwargs, answer, before, late=late)
        return answer


def finder(wire: Wire) -> Callable[[Any, str, Mapping[str, Any]], Any]:
    """What a world finds its providers by."""

    def find(role: Any, _name: str, settings: Mapping[str, Any]) -> Any:
        return RemoteProvider(role, wire.checks.evidence.watched(role, FAKES[role](settings)), wire)

    return find
