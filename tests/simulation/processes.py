"""Who works: a broker that loses and doubles, workers that take its messages, coordinators, and a supervisor that gives
the leases of a dead worker back, sometimes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from kombu.exceptions import OperationalError

from orchestrator.coordinator import Coordinator
from orchestrator.dispatch import Message
from orchestrator.errors import ChangeoverError, Unreachable
from tasks import BODIES, QUESTIONS, observe, orphans, patrol
from tasks.step import run
from tasks.world import Spec, World
from tests.simulation.faults import RAISED
from tests.simulation.remote import RemoteStore, Wire, finder
from tests.simulation.scheduler import Actor, Scheduler

LEASE = 10.0
GRACE = 5.0
TRANSPORT = 0.003  # seconds a message takes
LONGEST_SLEEP = 2.0  # of a coordinator
SHORTEST_SLEEP = 0.4
SLOWER = 2.0  # times, when nothing new goes wrong any more
IDLE = 60.0  # of one that finds nothing to do


@dataclass
class Slot:
    """A worker process with one thread; `life` counts its restarts."""

    number: int
    life: int = 0
    world: World | None = None
    actor: Actor | None = None
    has: list[Message] | None = None

    @property
    def name(self) -> str:
        return f"w{self.number}.{self.life}"


# What workers do besides steps.
OTHERS: Mapping[str, Callable[..., Mapping[str, Any]]] = {
    "observe": partial(observe.run, steps=BODIES),
    "patrol": patrol.run,
    "scan": orphans.scan,
    **QUESTIONS,
}


class Plant:
    """Everybody who works for one store."""

    def __init__(self, wire: Wire, store: Any, specs: dict[str, Spec], *, workers: int, coordinators: int) -> None:
        self.wire = wire
        self.scheduler: Scheduler = wire.scheduler
        self.store = RemoteStore(store, wire)
        self.waiting: list[list[Message]] = []
        self.slots = [Slot(number) for number in range(workers)]
        self._specs = specs
        self._inner = store
        for slot in self.slots:
            self._start(slot)
        self._coordinators: dict[str, Actor] = {}
        for number in range(coordinators):
            self._coordinate(f"c{number}")

    # -- the broker -------------------------------------------------------------------------------------------------

    def publish(self, messages: list[Message]) -> None:
        """As Celery's: the chain is sent, and may be lost, doubled or late on its way."""
        place = messages[0]["task"].removeprefix("tasks.")
        self.wire.travel(f"publish {place}", TRANSPORT)
        if self.wire.faults.strikes("no broker", place):
            self.wire.trace.add("no broker", place)
            raise RAISED["no broker"](place)
        self._send(messages, place)

    def observe(self, lane: str, ticket: str) -> None:
        self._ask("observe", 0, lane=lane, ticket=ticket)

    def patrol(self, rollout: str, _ticket: str) -> None:
        self._ask("patrol", 0, rollout=rollout)

    def scan(self, lane: str) -> None:
        self._ask("scan", 9, lane=lane)

    def ask(self, task: str, *, request: str, **about: Any) -> None:
        """A question to the workers, as the command line asks it."""
        try:
            self._ask(task, 0, request=request, **about)
        except OperationalError as error:
            raise Unreachable(f"the broker does not take messages: {error}") from error

    def _ask(self, name: str, priority: int, **kwargs: Any) -> None:
        self.publish([Message(task=f"tasks.{name}", id=name, priority=priority, kwargs=kwargs)])

    def _send(self, messages: list[Message], place: str) -> None:
        random, faults = self.scheduler.random, self.wire.faults
        if faults.strikes("repeat", place):
            self.scheduler.at(random.uniform(5.0, 300.0), lambda: self._arrives(messages))
        if faults.strikes("lose", place):
            self.wire.trace.add("lose", place)
            return
        for _ in range(2 if faults.strikes("double", place) else 1):
            delay = random.expovariate(1 / TRANSPORT)
            if faults.strikes("delay", place):
                delay += random.uniform(0.1, 20.0)
            self.scheduler.at(delay, lambda: self._arrives(messages))

    def _arrives(self, messages: list[Message]) -> None:
        self.waiting.append(messages)
        self._hand_out()

    def flush(self) -> None:
        """The broker has lost everything."""
        self.waiting.clear()

    def _hand_out(self) -> None:
        """The most urgent first, and of those the oldest."""
        if not self.waiting:
            return
        free = [slot for slot in self.slots if slot.world is not None and slot.actor is None]
        while self.waiting and free:
            slot = free.pop(self.scheduler.random.randrange(len(free)))
            first = min(range(len(self.waiting)), key=lambda i: self.waiting[i][0]["priority"])
            self._takes(slot, self.waiting.pop(first))

    # -- workers ----------------------------------------------------------------------------------------------------

    def _start(self, slot: Slot) -> None:
        slot.life += 1
        slot.world = self.world(slot.name, drift=1000.0 * slot.number + 7.0 * slot.life)

    def world(self, name: str, *, drift: float = 0.0) -> World:
        """A worker's. Its monotonic clock began at some other time."""
        return World(
            store=self.store,  # type: ignore[arg-type] # everything that the store has, by name
            publish=self.publish,
            worker=name,
            lease=LEASE,
            grace=GRACE,
            monotonic=lambda: self.scheduler.now + drift,
            spread=self.scheduler.random.random,
            crash=self.wire.point,
            find=finder(self.wire),
            _specs=self._specs,
        )

    def _takes(self, slot: Slot, messages: list[Message]) -> None:
        slot.has = messages
        slot.actor = self.scheduler.spawn(slot.name, lambda: self._work(slot, messages))

    def _work(self, slot: Slot, messages: list[Message]) -> None:
        world = slot.world
        assert world is not None
        message = messages[0]
        name = message["task"].removeprefix("tasks.")
        undo = name.startswith("undo_")
        step = name.removeprefix("undo_")
        try:
            if name in OTHERS:
                answer = OTHERS[name](world, **message["kwargs"])
                self.wire.trace.add(f"ran {name}", *answer.items())
            else:
                ran = run(world, BODIES[step], step, undo=undo, **message["kwargs"])
                self.wire.trace.add(
                    f"ran {name}", message["kwargs"]["server"], _told(ran.result, ran.parked, ran.failed)
                )
                if ran.goes_on and messages[1:]:
                    self.publish(messages[1:])
        except (Unreachable, OperationalError) as error:
            self.wire.trace.add("gave up", name, error)
        slot.actor = slot.has = None
        self._hand_out()

    def died(self, actor: Actor) -> None:
        """The process of that actor is gone; it comes back after a while, and its message with luck."""
        random = self.scheduler.random
        self.wire.trace.add("died", actor.name)
        slot = next((slot for slot in self.slots if slot.actor is actor), None)
        if slot is not None:
            messages, name = slot.has, slot.name
            slot.world = slot.actor = slot.has = None
            if messages is not None and random.random() < 0.5:
                self.scheduler.at(random.uniform(0.5, 60.0), lambda: self._arrives(messages))
            if random.random() < 0.5:
                self.scheduler.at(random.uniform(0.1, 2.0), lambda: self._reaped(name))
            self.scheduler.at(random.uniform(0.2, 3.0), lambda: self._back(slot))
        elif actor.name in self._coordinators:
            self._coordinate(actor.name, after=random.uniform(0.2, 5.0))

    def _reaped(self, name: str) -> None:
        self._inner.release_owner(f"{name}/", died=True)
        self.wire.trace.add("reaped", name)

    def _back(self, slot: Slot) -> None:
        self._start(slot)
        self._hand_out()

    def stop(self) -> None:
        """Nobody coordinates any more; workers end what they have."""
        for actor in self._coordinators.values():
            self.scheduler.kill(actor)

    # -- coordinators -----------------------------------------------------------------------------------------------

    def _coordinate(self, name: str, *, after: float = 0.0) -> None:
        coordinator = Coordinator(
            store=self.store,  # type: ignore[arg-type] # everything that the store has, by name
            publish=self.publish,
            observe=self.observe,
            patrol=self.patrol,
            scan=self.scan,
            monotonic=lambda: self.scheduler.now + 5000.0,
            grace=GRACE,
            name=name,
        )
        self._coordinators[name] = self.scheduler.spawn(name, lambda: self._sweep(coordinator), after=after)

    def _sweep(self, coordinator: Coordinator) -> None:
        idle, seen = LONGEST_SLEEP, 0
        while True:
            try:
                coordinator.tick()
            except (ChangeoverError, OperationalError) as error:
                self.wire.trace.add("gave up", "tick", error)
            due = self._inner.next_due()
            pace = 1.0 if self.wire.faults.active else SLOWER
            # Where nothing happens, time is let pass more quickly.
            idle = LONGEST_SLEEP * pace if self.wire.checks.count > seen else min(IDLE, idle * 1.5)
            seen = self.wire.checks.count
            shortest = SHORTEST_SLEEP * pace
            self.scheduler.sleep(idle if due is None else min(idle, max(shortest, due - self.scheduler.now)))


def _told(result: Mapping[str, Any], parked: str, failed: str) -> str:
    return parked or failed or str(result.get("ignored", result.get("step", "")))
