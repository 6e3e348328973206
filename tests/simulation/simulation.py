"""One rollout from one seed."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from orchestrator import coordinator, ids, mending, operations
from orchestrator.domain import upgrade
from orchestrator.domain.rollout import Rollout
from orchestrator.domain.upgrade import Upgrade
from orchestrator.operations import control
from orchestrator.store import Row, memory, redis
from orchestrator.store.memory import MemoryStore
from orchestrator.store.redis import RedisStore
from providers.compute import fake as compute
from providers.compute.fake import FakeCloud
from providers.traffic import fake as traffic
from tasks import membership, observe, orphans, patrol, step
from tasks.world import Spec, World
from tests.simulation import loss, scenario
from tests.simulation.cloud import FAKES, Cloud
from tests.simulation.evidence import Evidence
from tests.simulation.faults import Faults
from tests.simulation.invariants import Invariants, Violated
from tests.simulation.people import ACTOR, People
from tests.simulation.processes import LEASE, Plant
from tests.simulation.quick import replace, without_collector
from tests.simulation.remote import LATEST, RemoteStore, Wire
from tests.simulation.scenario import ROLLOUT
from tests.simulation.scheduler import START, Scheduler
from tests.simulation.trace import Trace

EVENTS = 400_000  # in which every simulation comes to its end
PATIENCE = 6 * 3600.0  # seconds within which everything moves once the faults are over
UNDO_DEADLINE = 90.0
POLL = 2.0  # seconds between looks at a balancer
LOOKS = (0.0, 1000.0, 10.0, 90_000.0, 10.0)  # seconds between a person's looks for what is left over
TAIL = 60  # lines that a failure shows
ROUNDS = 40  # of a person who looks after what is left


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How it went. `rollout` is None if the store has lost it for good. `trace` is the same for the same seed, to the
    byte. `struck` counts what struck where."""

    seed: int
    rollout: Rollout | None
    upgrades: tuple[Upgrade, ...]
    story: Trace
    struck: Counter[tuple[str, str]]
    events: int
    checks: int
    seconds: float
    states: Counter[str] = field(default_factory=Counter)

    @property
    def trace(self) -> tuple[str, ...]:
        return tuple(self.story.lines())


class Failed(AssertionError):
    """A seed under which something does not hold; how to see it again, and what came before."""

    def __init__(self, seed: int, why: BaseException, trace: Sequence[str], store: str) -> None:
        tail = "\n".join(trace[-TAIL:])
        again = f".venv/bin/python -m tests.simulation {seed}" + ("" if store == "memory" else " --lua")
        super().__init__(f"seed {seed}: {type(why).__name__}: {why}\nreplay: {again}\n{tail}")
        self.seed = seed
        self.why = why
        self.trace = tuple(trace)


def simulate(
    seed: int,
    *,
    store: Callable[[Callable[[], float]], Any] | None = None,
    evidence: Path | None = None,
    patches: Sequence[AbstractContextManager[Any]] = (),
    calm: bool | None = None,
    lines: int | None = None,
) -> Outcome:
    """Runs the rollout of this seed to its end. Raises `Failed`.

    `store` makes the store, of a clock; the one in memory if left out. `evidence` is a folder for what an outsider
    could have seen. `patches` are entered first: a bug of the product, switched on by a test. `calm` True or False
    overrules the seed on whether anything goes wrong. Of the trace only the last `lines` are kept, or all.
    """
    with ExitStack() as stack:
        stack.enter_context(without_collector())
        for patch in patches:
            stack.enter_context(patch)
        simulation = stack.enter_context(_simulation(seed, store, evidence is not None, calm, lines))
        try:
            simulation.play()
            return simulation.outcome()
        except Exception as last:
            error = simulation.scheduler.failure or last
            kind = "memory" if store is None else "lua"
            raise Failed(seed, error, simulation.trace.lines(), kind) from error
        finally:
            simulation.scheduler.close()
            if evidence is not None:
                simulation.checks.evidence.write(evidence, simulation.store, ROLLOUT)


def on_redis(url: str, seed: int) -> Callable[[Callable[[], float]], RedisStore]:
    """What makes a store of Redis' own scripts there, in a namespace of this seed."""
    return lambda clock: RedisStore(url, namespace=f"simulation-{seed}-{secrets.token_hex(4)}", clock=clock)


@contextmanager
def _simulation(seed: int, store: Any, wanted: bool, calm: bool | None, lines: int | None) -> Iterator[Simulation]:
    simulation = Simulation(seed, store or MemoryStore, wanted=wanted, calm=calm, lines=lines)
    name = simulation.name
    FakeCloud.named[name] = simulation.cloud
    try:
        with ExitStack() as stack:
            for target, what in simulation.replaced():
                stack.enter_context(mock.patch.object(target, what[0], what[1]))
            yield simulation
    finally:
        FakeCloud.named.pop(name, None)


class Simulation:
    def __init__(self, seed: int, store: Any, *, wanted: bool, calm: bool | None, lines: int | None) -> None:
        self.seed = seed
        self.name = f"simulation-{seed}"
        self.scheduler = Scheduler(seed, limit=EVENTS)
        self.random = self.scheduler.random
        self.trace = Trace(self.scheduler, last=lines)
        self.calm = self.random.random() < 0.05 if calm is None else calm
        self.faults = Faults(self.random, calm=self.calm)
        self.cloud = Cloud(clock=self.scheduler.clock, random=self.random, later=self._later)
        self.fleet = scenario.draw_fleet(self.random, self.name)
        scenario.furnish(self.cloud, self.fleet)
        self.cloud.fates = scenario.draw_fates(self.random, self.fleet, self.faults.rates.get("bad B", 0.0))
        self.store = store(self.scheduler.clock)
        self.checks = Invariants(
            fleet=self.fleet,
            cloud=self.cloud,
            clock=self.scheduler.clock,
            fail=self.scheduler.fail,
            evidence=Evidence(self.fleet, self.cloud, wanted=wanted),
            store=self.store,
        )
        self.cloud.hides = lambda: self.faults.strikes("not yet visible", "of what was made")
        self.cloud.lingers = lambda: self.faults.strikes("endless request", "remove")
        self.cloud.hurt = self._hurt
        self.wire = Wire(self.scheduler, self.faults, self.checks, self.trace, lease=LEASE, die=self._die)
        self.specs: dict[str, Spec] = {}
        self.emptied = False
        self.retried: Counter[tuple[str, str]] = Counter()
        self.planner = World(
            store=self.store, publish=self._nobody, worker="planner", find=lambda role, _name, s: FAKES[role](s)
        )
        self.plant: Plant | None = None
        self.people = People(
            wire=self.wire,
            store=RemoteStore(self.store, self.wire),
            cloud=self.cloud,
            names=[server.name for server in self.fleet.servers],
            asked=bool(self.fleet.rollout.approvals),
            second_rollout=self._second,
            ask=self._ask,
        )

    def replaced(self) -> list[tuple[Any, tuple[str, Any]]]:
        """What of the product looks at the machine itself: its clock, its chance and its log; and what takes long."""
        log = _Log(self)
        chance = _Ids(self.random)
        return [
            (step, ("uuid", chance)),
            (coordinator, ("uuid", chance)),
            (patrol, ("uuid", chance)),
            *((module, ("log", log)) for module in (step, observe, patrol, orphans, coordinator, mending)),
            (control, ("time", self)),
            (ids, ("secrets", chance)),
            (step, ("UNDO_DEADLINE", UNDO_DEADLINE)),
            (membership, ("POLL", POLL)),
            *((module, ("replace", replace)) for module in (upgrade, memory, redis, step, compute, traffic)),
        ]

    # what `operations.control` finds in place of the module `time`
    def monotonic(self) -> float:
        return self.scheduler.now

    def sleep(self, seconds: float) -> None:
        self.scheduler.sleep(seconds)

    def _nobody(self, _messages: Any) -> None:
        raise AssertionError("a plan sends nothing")

    def _later(self, seconds: float, what: Callable[[], None]) -> None:
        self.scheduler.at(seconds, what)

    def _die(self) -> None:
        actor = self.scheduler.current
        assert actor is not None
        if self.plant is not None:
            self.plant.died(actor)
        self.scheduler.kill(actor)

    def _hurt(self, id: str, why: str) -> None:
        self.trace.add(f"is {why}", id)
        self.checks.evidence.outside(why, id)
        self.checks.touched.add(id)
        self.checks.taken(self.checks.server_of(id))
        self.checks.changed_by_outside()

    def _ask(self, task: str, *, request: str, **about: Any) -> None:
        assert self.plant is not None
        self.plant.ask(task, request=request, **about)

    def _second(self) -> None:
        scenario.start(self.planner, self.people.any_store, self.fleet, f"r{self.random.randrange(10**9)}")

    # -- the play ---------------------------------------------------------------------------------------------------

    def play(self) -> None:
        self.checks.evidence.began()
        scenario.start(self.planner, self.store, self.fleet)
        workers = self.random.randint(2, 5)
        self.plant = Plant(self.wire, self.store, self.specs, workers=workers, coordinators=self.random.randint(1, 2))
        self.faults.active = True
        self._cast()
        self.scheduler.run(self._now_and_then(self._all_closed), seconds=self.random.uniform(20.0, 400.0))
        self._calm_down()
        self._settle()
        if self._all_closed() and not self.emptied:
            self.checks.i4_nothing_is_left_but_what_came_late()
        self._tidy_up()
        if self.emptied:  # nobody could say where the servers stand, and nothing was touched
            self.checks.evidence.left_out(spec.name for spec in self.fleet.servers)
        else:
            self.checks.at_the_end()
        if self.calm:
            states = Counter(u.state for u in self.upgrades())
            # Where nobody approved a wave in time, it ends as it was told to, or as somebody then decides.
            late = any(a.within is not None and a.otherwise != "continue" for a in self.fleet.rollout.approvals)
            well = {"upgraded", "pending", "rolled_back"} if late else {"upgraded"}
            self.checks.must(set(states) <= well, "no reason to fail", f"nothing went wrong, and {states}")

    def _cast(self) -> None:
        """What happens once or a few times, at some moment of the storm."""
        rates, random, at = self.faults.rates, self.random, self.scheduler.at

        def times(kind: str, most: int = 1) -> int:
            return sum(random.random() < rates[kind] for _ in range(most)) if kind in rates else 0

        def moment() -> float:
            return random.expovariate(1 / 60.0)

        for _ in range(times("storm")):
            at(moment(), self._if_active(self._storm))
        for _ in range(times("store outage")):
            at(moment(), self._if_active(self._outage))
        for _ in range(times("store forgets", 3)):
            at(moment(), self._if_active(self._about_to_forget))
        for _ in range(times("store is emptied")):
            at(moment(), self._if_active(self._emptied))
        for _ in range(times("flush")):
            at(moment(), self._if_active(self._flush))
        for _ in range(times("people", 6)):
            self.scheduler.spawn("somebody", self._if_active(self.people.act), after=moment())
        for _ in range(times("hands", 3)):
            at(moment(), self._if_active(self.people.meddle))
        for server in self.fleet.servers:
            if random.random() < rates.get("A dies", 0.0):
                at(moment(), self._if_active(lambda old=server.name: self.cloud.dies(old)))

    def _if_active(self, what: Callable[[], None]) -> Callable[[], None]:
        return lambda: what() if self.faults.active else None

    def _storm(self) -> None:
        self.trace.add("storm")
        self.wire.throttled_until = self.scheduler.now + 120.0

    def _outage(self) -> None:
        self.trace.add("store outage")
        self.wire.away_until = self.scheduler.now + self.random.choice((1.0, 15.0, 90.0))

    def _flush(self) -> None:
        assert self.plant is not None
        self.trace.add("flush", len(self.plant.waiting))
        self.plant.flush()

    def _about_to_forget(self) -> None:
        kept, since = loss.keep(self.store), self.scheduler.now

        def forgets() -> None:
            self.trace.add("store forgets")
            loss.bring_back(self.store, kept)
            self.wire.away_until = max(self.wire.away_until, self.scheduler.now + self.random.choice((0.0, 0.5, 3.0)))
            self.checks.forget()
            self.checks.evidence.forgot(since)

        self.scheduler.at(self.random.uniform(0.0, 1.0), self._if_active(forgets))

    def _emptied(self) -> None:
        self.trace.add("store is emptied")
        loss.empty(self.store)
        self.checks.forget()
        self.checks.evidence.forgot(START)
        self.emptied = True
        self.specs.clear()

    def _calm_down(self) -> None:
        """Nothing new goes wrong. What is already on its way arrives."""
        self.trace.add("calm")
        self.faults.active = False
        self.wire.throttled_until = self.wire.away_until = 0.0
        self.scheduler.run(lambda: False, seconds=LATEST + 15.0)

    def _settle(self) -> None:
        """Somebody looks after what is left, as an operator would, until everything is at rest."""
        for _ in range(ROUNDS):
            helper = self.scheduler.spawn("helper", self._help)
            self.scheduler.run(lambda helper=helper: helper.dead, seconds=PATIENCE)
            self.scheduler.run(self._now_and_then(self._at_rest), seconds=PATIENCE)
            self.checks.must(self._at_rest(), "liveness", f"after {PATIENCE:g} s: {self._told()}")
            if self._all_closed():
                return
            if self._given_up():
                self.checks.evidence.given_up()
                return
        raise Violated(f"liveness: still not settled: {self._told()}")

    def _tidy_up(self) -> None:
        """Somebody looks for what is left over and lets it be collected, as often as that takes."""
        assert self.plant is not None
        self.plant.stop()
        world = self.plant.world("gc")
        for number, pause in enumerate(LOOKS):
            self.scheduler.spawn("gc", partial(self._collect, world, f"gc{number}"), after=pause)
            self.scheduler.run(lambda: False, seconds=pause + 600.0)

    def _collect(self, world: World, request: str) -> None:
        self.store.put_document("yes", request, {"lane": self.fleet.lane, "foreign": False}, ttl=600.0)
        answer = orphans.collect(world, request=request, lane=self.fleet.lane, act=True, foreign=False)
        self.trace.add("collected", *answer.items())

    def _help(self) -> None:
        people, store = self.people, self.people.any_store
        if self.emptied:
            self.emptied = not people.rebuild(self.fleet)
        people.does("unfreeze", lambda: operations.unfreeze(store, actor=ACTOR))
        for rollout in self.store.open_rollouts():
            rows = self.store.rows(rollout.id)
            held = [row.upgrade.server for row in rows if row.upgrade.state == "held"]
            ails = [row.upgrade.server for row in rows if row.upgrade.keeps_old]
            for server in (*held, *ails):
                self.retried[rollout.id, server] += 1
                if self.retried[rollout.id, server] > 4:
                    people.settle(rollout.id, server)
                elif self.retried[rollout.id, server] <= 2 and server in held:
                    people.does("retry", lambda r=rollout, s=server: operations.retry(store, r.id, [s], actor=ACTOR))
                else:
                    people.does(
                        "rollback server",
                        lambda r=rollout, s=server: operations.rollback_server(store, r.id, s, actor=ACTOR),
                    )
            if rollout.state == "awaiting_approval":
                for who in ("anna", "ben"):
                    people.does("approve", lambda r=rollout, w=who: operations.approve(store, r.id, who=w, actor=ACTOR))
            if rollout.state == "paused":
                verb = self.random.choice((operations.resume, operations.resume, operations.abort, operations.rollback))
                people.does(verb.__name__, lambda r=rollout, v=verb: v(store, r.id, actor=ACTOR))

    def _given_up(self) -> bool:
        """Somebody has tried several times, and it is still held with its reason."""
        for rollout in self.store.open_rollouts():
            if rollout.state in ("paused", "awaiting_approval"):
                return False
            for row in self.store.rows(rollout.id):
                if row.upgrade.asks_person and self.retried[rollout.id, row.upgrade.server] < 7:
                    return False
        return True

    def _now_and_then(self, done: Callable[[], bool]) -> Callable[[], bool]:
        """Whether it is so, not asked at every single event."""
        next_at = 0

        def asked() -> bool:
            nonlocal next_at
            if self.scheduler.events < next_at:
                return False
            next_at = self.scheduler.events + 40
            return done()

        return asked

    def _all_closed(self) -> bool:
        return not self.store.open_rollouts()

    def _at_rest(self) -> bool:
        """Nothing moves by itself any more."""
        for rollout in self.store.open_rollouts():
            if rollout.state in ("paused", "awaiting_approval"):
                continue
            rows = self.store.rows(rollout.id)
            asking = any(row.upgrade.asks_person for row in rows)
            moving = [r for r in rows if r.upgrade.state in ("running", "waiting")]
            kept = [r for r in rows if r.upgrade.state == "upgraded" and not r.upgrade.settled]
            retiring = [r for r in kept if not r.upgrade.keeps_old and not _refused(r)]
            pending = [r for r in rows if r.upgrade.state == "pending"]
            if moving or (pending and not asking and not rollout.ended) or retiring or not asking:
                return False
        return True

    def _told(self) -> str:
        return "; ".join(
            f"{rollout.id} is {rollout.state} ({rollout.why}): "
            + ", ".join(_where(row.upgrade) for row in self.store.rows(rollout.id))
            for rollout in self.store.open_rollouts()
        )

    def upgrades(self) -> tuple[Upgrade, ...]:
        return tuple(row.upgrade for row in self.store.rows(ROLLOUT))

    def outcome(self) -> Outcome:
        rollout = self.store.rollout(ROLLOUT)
        upgrades = self.upgrades()
        return Outcome(
            seed=self.seed,
            rollout=rollout,
            upgrades=upgrades,
            story=self.trace,
            struck=self.faults.struck,
            events=self.scheduler.events,
            checks=self.checks.count,
            seconds=self.scheduler.now,
            states=Counter(u.state for u in upgrades),
        )


def _where(u: Upgrade) -> str:
    return f"{u.server} {u.state} at {u.step} {u.direction} {u.why}"


def _refused(row: Row) -> bool:
    return row.upgrade.wait is not None and row.upgrade.wait.refused


@dataclass(frozen=True, kw_only=True)
class _Id:
    hex: str


class _Ids:
    """In place of the modules `uuid` and `secrets`."""

    def __init__(self, random: Any) -> None:
        self._random = random

    def uuid4(self) -> _Id:
        return _Id(hex=f"{self._random.getrandbits(128):032x}")

    def randbits(self, bits: int) -> int:
        return int(self._random.getrandbits(bits))


class _Log:
    """In place of a logger. What a step did not expect is a bug."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation

    def info(self, *_args: Any, **_more: Any) -> None: ...

    def warning(self, event: str, **more: Any) -> None:
        self._simulation.trace.add(f"warning: {event}", *more.values())

    def error(self, event: str, **more: Any) -> None:
        self._simulation.trace.add(f"error: {event}", more.get("error"))
        if self._simulation.checks.forgotten and str(more.get("error")).endswith(" is gone"):
            return  # read between a list of what there is and the store's forgetting of it
        self._simulation.checks.must(False, "unexpected", f"{event}: {more.get('error')}")
