"""Real workers, a real coordinator, and what else `changeover up` runs, over a given Redis and a cloud that is faked in
a process of its own."""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator import operations
from orchestrator.domain.fleet import Fleet
from orchestrator.errors import ChangeoverError
from orchestrator.messaging import make_app
from orchestrator.settings import Settings
from orchestrator.store.redis import RedisStore
from orchestrator.supervisor import Supervisor, start
from tests.support.fake_cloud import RunningCloud, running_cloud
from tests.support.runner import fleet_file

PORT = 8080
PATIENCE = 180.0  # seconds: a failover on a busy machine takes its time


class ControlPlane:
    """`said` is what the supervisor told. Any number of rollouts may run on it."""

    def __init__(self, supervisor: Supervisor, cloud: RunningCloud, said: list[str]) -> None:
        self.supervisor, self.cloud, self.said = supervisor, cloud, said
        settings = supervisor.settings
        self.store = RedisStore(settings.store_url(), namespace=settings.namespace, connections=4)
        self.ask = operations.celery_asker(make_app(settings))

    def fleet(self, *, servers: int = 3, **rollout: Any) -> Run:
        """A fleet in a world of its own; `rollout` replaces parts of the fleet file's `rollout`."""
        world = uuid.uuid4().hex[:12]
        operator = self.cloud.operator(world)
        names = [f"web-{number}" for number in range(1, servers + 1)]
        for name in names:
            operator.server(name, pools={"web": PORT})
        there = self.cloud.settings(world, image_ms=500, ready_ms=1500)
        policy = {"waves": ["rest"], "bake": "0s", "soak": "1s", "max_in_flight": 10, "poll": "500ms"}
        policy |= {"drain": {"deadline": "30s", "quiet": "0s"}, **rollout}
        fleet = fleet_file(
            names,
            world,
            provider={"name": "fake", "account": world, "settings": there},
            traffic={"provider": "fake", "settings": there, "pools": {"web": {"port": PORT, "min_healthy": 1}}},
            rollout=policy,
        )
        return Run(self, fleet, operator)

    def until(self, what: str, done: Callable[[], bool], *, seconds: float = PATIENCE) -> None:
        """Keeps the parts running meanwhile. A Redis that is away is no answer, and is asked again."""
        end = time.monotonic() + seconds
        last = ""
        while time.monotonic() < end:
            self.supervisor.step(0.05)
            try:
                if done():
                    return
            except ChangeoverError as error:
                last = str(error)
        raise AssertionError(f"{what} did not happen within {seconds:g} s. {last} {self.said[-5:]}")


class Run:
    """One rollout of one fleet."""

    def __init__(self, plane: ControlPlane, fleet: Fleet, operator: Any) -> None:
        self.plane, self.fleet, self.operator = plane, fleet, operator
        self.id = ""

    def apply(self) -> Run:
        plane = self.plane
        waiter = operations.Waiter(sleep=plane.supervisor.step)
        self.id = operations.apply(plane.store, plane.ask, self.fleet, agreed=None, actor="test", waiter=waiter).id
        return self

    def view(self) -> operations.View:
        return operations.view(self.plane.store, self.id)

    def until(self, what: str, done: Callable[[operations.View], bool], *, seconds: float = PATIENCE) -> None:
        seen: list[operations.View] = []

        def look() -> bool:
            seen[:] = [self.view()]
            return done(seen[0])

        try:
            self.plane.until(what, look, seconds=seconds)
        except AssertionError as error:
            states = [(u.server, u.state, u.step, u.why) for view in seen for u in view.upgrades]
            raise AssertionError(f"{error}: {states}") from None

    def under_way(self, step: str = "poll_readiness") -> None:
        """A server has begun that step, and not all have ended."""
        self.until(f"a server at {step}", lambda view: any(u.has_begun(step) for u in view.upgrades))
        assert not self.view().rollout.ended

    def finish(self) -> None:
        """Every server is upgraded; nothing was made twice, and there is one new server for each."""
        self.until("the end", lambda view: view.rollout.ended)
        assert {u.server: u.state for u in self.view().upgrades} == {s.name: "upgraded" for s in self.fleet.servers}
        self.made_once(len(self.fleet.servers))

    def made_once(self, servers: int) -> None:
        made = self.operator.made()
        assert set(made.values()) == {1}, made
        assert len(made) == 2 * servers, "an image and a server each"


@contextmanager
def control_plane(
    tmp_path: Path,
    *,
    workers: int = 2,
    flower: bool = False,
    redis: str = "",
    broker: str = "",
    results: str = "",
    **settings: Any,
) -> Iterator[ControlPlane]:
    """`settings` replace those of `Settings`."""
    given = {"lease": 5.0, "grace": 2.0, "concurrency": 4, **settings}
    state = Path(tempfile.mkdtemp(prefix="state-", dir=tmp_path))
    found = Settings(redis_url=redis, broker_url=broker, result_url=results, state_dir=state, **given)
    said: list[str] = []
    with running_cloud() as cloud:
        supervisor = start(found, workers=workers, with_flower=flower, say=said.append)
        try:
            supervisor.wait_ready(90)
            yield ControlPlane(supervisor, cloud, said)
        finally:
            supervisor.stop(now=True)
