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
from orchestrator.errors import Unreachable, UnsafeStore
from orchestrator.messaging import make_app
from orchestrator.settings import Settings
from orchestrator.store.redis import RedisStore
from orchestrator.supervisor import Supervisor, start
from tests.support.fake_cloud import RunningCloud, running_cloud
from tests.support.runner import fleet_file

PORT = 8080
PATIENCE = 100.0


class ControlPlane:
    """`step` keeps the parts running; it is called from the main thread, by every wait of this class."""

    def __init__(self, supervisor: Supervisor, fleet: Fleet, operator: Any, said: list[str]) -> None:
        self.supervisor, self.fleet, self.operator, self.said = supervisor, fleet, operator, said
        settings = supervisor.settings
        self.store = RedisStore(settings.store_url(), namespace=settings.namespace, connections=4)
        self.ask = operations.celery_asker(make_app(settings))
        self.id = ""

    def apply(self) -> str:
        waiter = operations.Waiter(sleep=self.supervisor.step)
        self.id = operations.apply(self.store, self.ask, self.fleet, agreed=None, actor="test", waiter=waiter).id
        return self.id

    def until(self, what: str, done: Callable[[operations.View], bool], *, seconds: float = PATIENCE) -> None:
        """A Redis that is away meanwhile is no answer, and is asked again."""
        end = time.monotonic() + seconds
        view: operations.View | None = None
        away = ""
        while time.monotonic() < end:
            self.supervisor.step(0.05)
            try:
                view = operations.view(self.store, self.id)
            except (Unreachable, UnsafeStore) as error:
                away = str(error)
                continue
            if done(view):
                return
        states = [] if view is None else [(u.server, u.state, u.step, u.why) for u in view.upgrades]
        raise AssertionError(f"{what} did not happen within {seconds:g} s: {states} {away} {self.said[-5:]}")

    def finish(self) -> None:
        """Every server is upgraded; nothing was made twice, and there is one new server for each."""
        self.until("the end", lambda view: view.rollout.ended)
        view = operations.view(self.store, self.id)
        assert {u.server: u.state for u in view.upgrades} == {s.name: "upgraded" for s in self.fleet.servers}
        self.made_once()

    def made_once(self) -> None:
        made = self.operator.made()
        assert set(made.values()) == {1}, made
        assert len(made) == 2 * len(self.fleet.servers), "an image and a server each"


@contextmanager
def control_plane(
    tmp_path: Path,
    *,
    servers: int = 3,
    workers: int = 2,
    flower: bool = False,
    redis: str = "",
    broker: str = "",
    results: str = "",
    rollout: dict[str, Any] | None = None,
    cloud: RunningCloud | None = None,
    **settings: Any,
) -> Iterator[ControlPlane]:
    """`rollout` replaces parts of the fleet file's `rollout`; `settings` those of `Settings`."""
    if cloud is None:
        with running_cloud() as made:
            options: dict[str, Any] = {"servers": servers, "workers": workers, "flower": flower, "redis": redis}
            options |= {"broker": broker, "results": results, "rollout": rollout, "cloud": made, **settings}
            with control_plane(tmp_path, **options) as plane:
                yield plane
        return
    world = uuid.uuid4().hex[:12]
    operator = cloud.operator(world)
    names = [f"web-{number}" for number in range(1, servers + 1)]
    for name in names:
        operator.server(name, pools={"web": PORT})
    there = cloud.settings(world, image_ms=300, ready_ms=300)
    policy = {"waves": ["rest"], "bake": "0s", "soak": "1s", "max_in_flight": 10, "poll": "500ms"}
    policy |= {"drain": {"deadline": "30s", "quiet": "0s"}, **(rollout or {})}
    fleet = fleet_file(
        names,
        world,
        provider={"name": "fake", "settings": there},
        traffic={"provider": "fake", "settings": there, "pools": {"web": {"port": PORT, "min_healthy": 1}}},
        rollout=policy,
    )
    given = {"lease": 5.0, "grace": 2.0, "concurrency": 4, **settings}
    state = tempfile.mkdtemp(prefix="state-", dir=tmp_path)
    found = Settings(redis_url=redis, broker_url=broker, result_url=results, state_dir=Path(state), **given)
    said: list[str] = []
    supervisor = start(found, workers=workers, with_flower=flower, say=said.append)
    try:
        supervisor.wait_ready(90)
        yield ControlPlane(supervisor, fleet, operator, said)
    finally:
        supervisor.stop(now=True)
