"""A rollout in one thread and virtual time: the real decisions, steps, journal, observer and coordinator over a cloud
in memory. Messages lie in a list, so that a test may lose, repeat or reorder them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from orchestrator.coordinator import Coordinator
from orchestrator.dispatch import Message
from orchestrator.domain.fleet import Fleet
from orchestrator.domain.plan import make_plan
from orchestrator.domain.rollout import Rollout
from orchestrator.domain.upgrade import Upgrade
from orchestrator.store import Store
from orchestrator.store.memory import MemoryStore
from providers.compute.fake import FakeCloud, FakeCompute
from providers.guest.fake import FakeGuest
from providers.probe.fake import FakeProbe, FakeSites
from providers.traffic import MemberView
from providers.traffic.fake import FakeTraffic
from tasks import BODIES, QUESTIONS, observe, patrol
from tasks.step import Ran, run
from tasks.survey import look
from tasks.world import World

PORT = 8080


class Crashed(BaseException):
    """The worker is gone, in the middle of whatever it did. No `except Exception` sees it, as none sees a SIGKILL."""


FAKES: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "compute": FakeCompute,
    "guest": FakeGuest,
    "traffic": FakeTraffic,
    "probe": FakeProbe,
}


def _fake(role: str, _name: str, settings: Mapping[str, Any]) -> Any:
    """What `providers.find` would find, without reading every installed package for each of a thousand runs."""
    return FAKES[role](settings)


@dataclass
class Clock:
    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def fleet_file(
    names: list[str], world: str, *, min_healthy: int = 1, switch: str = "balancer", **changes: Any
) -> Fleet:
    """A fleet of fake servers in one pool behind that kind of switch; `changes` replace whole parts of it."""
    whole: dict[str, Any] = {
        "version": 1,
        "fleet": "shop",
        "provider": {"name": "fake", "settings": {"world": world, "sites": world}},
        "target": {"size": {"memory": "2GiB", "disk": "20GiB"}},
        "servers": [{"name": name, "pools": ["web"]} for name in names],
        "traffic": {
            "provider": "fake",
            "settings": {"world": world, "switch": switch},
            "pools": {"web": {"port": PORT, "min_healthy": min_healthy}},
        },
        "checks": {
            "smoke": {"requests": [{"url": "http://shop.test/health"}], "passes": 2, "every": "1s", "probe": "fake"}
        },
        "state": "stateless",
        "rollout": {
            "waves": ["rest"],
            "bake": "0s",
            "soak": "1s",
            "max_in_flight": 10,
            "poll": "1s",
            "drain": {"deadline": "30s", "quiet": "1s"},
        },
    }
    return Fleet.model_validate_json(json.dumps({**whole, **changes}))


@dataclass
class Runner:
    """One fleet, one rollout, one queue. `crash` is asked at every crash point of the steps."""

    fleet: Fleet
    cloud: FakeCloud
    sites: FakeSites
    clock: Clock
    store: Store
    crash: Callable[[str], None] = lambda _point: None
    queue: list[list[Message]] = field(default_factory=list)
    looks: list[tuple[str, str]] = field(default_factory=list)
    history: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    rollout: str = "r1"
    patrols: list[str] = field(default_factory=list)
    patrolling: bool = False  # whether the pools are looked after
    find: Callable[[Any, str, Mapping[str, Any]], Any] = _fake

    def __post_init__(self) -> None:
        self.world = World(
            store=self.store,
            publish=self.queue.append,
            worker="w",
            lease=10.0,
            grace=5.0,
            monotonic=self.clock,
            spread=lambda: 0.5,
            crash=lambda point: self.crash(point),  # noqa: PLW0108 - tests replace it later
            find=self.find,
        )
        self.coordinator = Coordinator(
            store=self.store,
            publish=self.queue.append,
            observe=lambda lane, ticket: self.looks.append((lane, ticket)),
            patrol=lambda rollout, _ticket: self.patrols.append(rollout),
            monotonic=self.clock,
            grace=5.0,
            name="c",
        )
        plan = make_plan(self.fleet, look(self.world, self.fleet))
        assert not plan.blockers, plan.blockers
        self.store.put_document("spec", self.rollout, {"plan": asdict(plan)})
        rollout = Rollout(
            id=self.rollout,
            plan=plan.id,
            fleet=self.fleet.fleet,
            created_at=self.clock(),
            created_by="test",
            waves=plan.waves,
            max_in_flight=self.fleet.rollout.max_in_flight,
            allowed_failures=self.fleet.rollout.budget.allowed(len(self.fleet.servers)),
            bake=self.fleet.rollout.bake,
            on_abort=self.fleet.rollout.on_abort,
        )
        upgrades = [
            Upgrade(rollout=self.rollout, server=name, wave=wave)
            for wave, names in enumerate(plan.waves)
            for name in names
        ]
        self.store.create(rollout, upgrades, locks=self.fleet.locks)

    # -- moving ---------------------------------------------------------------------------------------------------

    def deliver(self, messages: list[Message]) -> Ran | None:
        """One message's work; the rest of its chain is queued as Celery would. None if the worker crashed."""
        message, rest = messages[0], messages[1:]
        undo = message["task"].startswith("tasks.undo_")
        step = message["task"].removeprefix("tasks.").removeprefix("undo_")
        try:
            ran = run(self.world, BODIES[step], step, undo=undo, **message["kwargs"])
        except Crashed:
            return None
        self.history.append((message["task"], ran.result))
        if ran.goes_on and rest:
            self.queue.append(rest)
        return ran

    def turn(self) -> None:
        """Everything that is due now: looks, the coordinator, one message."""
        self.coordinator.tick()
        while self.looks:
            lane, ticket = self.looks.pop(0)
            observe.run(self.world, BODIES, lane=lane, ticket=ticket)
        while self.patrols:
            rollout = self.patrols.pop(0)
            if self.patrolling:
                self.patrol(rollout)
        if self.queue:
            self.deliver(self.queue.pop(0))

    def patrol(self, rollout: str) -> None:
        with suppress(Crashed):
            patrol.run(self.world, rollout=rollout)

    def until(self, done: Callable[[], bool], *, limit: int = 5000) -> None:
        """Go on, letting time pass when nothing is queued, until it is so."""
        for _ in range(limit):
            if done():
                return
            done_so_far = len(self.history)
            self.turn()
            if self.queue:
                continue
            if len(self.history) > done_so_far:  # which has woken the coordinator
                self.clock.now += 0.01
                continue
            due = self.store.next_due()
            longest = 2 if self.patrolling else 30
            self.clock.now = max(self.clock.now + 0.01, min(due or self.clock.now + 1, self.clock.now + longest))
        raise AssertionError(f"not done after {limit} turns: {self.upgrades()}")

    def finish(self) -> None:
        """Until the rollout has ended."""
        self.until(lambda: self.record().ended)

    def ask(self, task: str, *, request: str, **about: Any) -> None:
        """What a worker would answer to a question, at once."""
        QUESTIONS[task](self.world, request=request, **about)

    # -- looking --------------------------------------------------------------------------------------------------

    def record(self) -> Rollout:
        found = self.store.rollout(self.rollout)
        assert found is not None
        return found

    def upgrade(self, server: str) -> Upgrade:
        row = self.store.row(self.rollout, server)
        assert row is not None
        return row.upgrade

    def upgrades(self) -> dict[str, tuple[str, str, str]]:
        return {
            row.upgrade.server: (row.upgrade.state, row.upgrade.step, row.upgrade.why)
            for row in self.store.rows(self.rollout)
        }

    def members(self) -> dict[str, MemberView]:
        return dict(self.cloud.pools["web"])

    def serving(self) -> set[str]:
        return {name for name, view in self.members().items() if view.state == "serving"}

    def alive(self, role: str) -> list[str]:
        """Ids of what we made and what still costs money."""
        return [
            thing.view.id
            for thing in self.cloud.things.values()
            if thing.view.tags.get("changeover:role") == role and thing.view.state != "terminated"
        ]

    def made_twice(self) -> list[str]:
        return [token for token, times in self.cloud.made.items() if times > 1]


@contextmanager
def running(
    names: list[str] | None = None, *, store: Store | None = None, recipe: str = "", **changes: Any
) -> Iterator[Runner]:
    """A runner over a cloud with those servers, all in the pool and answering."""
    clock = Clock()
    world = uuid.uuid4().hex
    cloud = FakeCloud.named[world] = FakeCloud(image_seconds=3.0, ready_seconds=5.0, clock=clock, recipe=recipe)
    sites = FakeProbe.registry[world] = FakeSites()
    names = names or ["web-1", "web-2"]
    cloud.pools["web"] = {}
    for name in names:
        server = cloud.server(name)
        cloud.pools["web"][name] = MemberView(name=name, address=server.address, port=PORT, state="serving")
    for number in range(
        100 + 20 * len(names)
    ):  # in the order in which the cloud gives addresses: enough for any retries
        sites.passes(f"127.80.{number // 250}.{number % 250 + 1}", PORT)
    try:
        yield Runner(
            fleet=fleet_file(names, world, **changes),
            cloud=cloud,
            sites=sites,
            clock=clock,
            store=store or MemoryStore(clock),
        )
    finally:
        FakeCloud.named.pop(world, None)
        FakeProbe.registry.pop(world, None)
