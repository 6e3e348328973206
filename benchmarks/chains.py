"""The peers on Celery, on the very settings of ours: a bare chain, and one that polls by `self.retry`."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import redis
from celery import Celery, chain, signals

from benchmarks import cloud
from benchmarks.figures import Figures
from benchmarks.machine import Commands, Load, Site, cpu, peak, site, wait_for
from benchmarks.rollout import EVERY, last_line, lines_of
from orchestrator import logs
from orchestrator.domain.steps import PRIORITY, STEPS
from orchestrator.messaging import make_app
from orchestrator.settings import Settings
from providers import Key
from providers.compute import Server, Size
from providers.compute.fake import FakeCompute
from providers.guest.fake import FakeGuest
from providers.probe import Expect, Request
from providers.probe.fake import FakeProbe
from providers.traffic import Guard, Member
from providers.traffic.fake import FakeTraffic

Kind = Literal["bare", "retry"]
DONE = "bench:done"  # the list that tells the feeder of `retry` that a server is finished
GiB = 1024**3


# -- the worker ------------------------------------------------------------------------------------------------------


def work() -> int:
    """The process that runs the peers' tasks: a worker started like the one of `workers/app.py`, but with nothing of
    ours inside Celery."""
    logs.configure("bench")
    signals.setup_logging.connect(_keep_logging)
    app = make_app(Settings())
    _register_bare(app)
    _register_retry(app)
    worker = app.Worker(
        hostname=f"bench@{socket.gethostname()}",
        pool="threads",
        concurrency=Settings().concurrency,
        loglevel="WARNING",
        quiet=True,
        without_mingle=True,
        without_gossip=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


def _keep_logging(**_: object) -> None: ...


def _register_bare(app: Celery) -> None:
    for step in STEPS:

        @app.task(name=f"bare.{step}")  # type: ignore[untyped-decorator] # celery has no types
        def empty(*, server: str) -> dict[str, str]:
            return {"step": "done", "server": server}


def _register_retry(app: Celery) -> None:
    """The same calls as ours, straight, each step waiting by `self.retry`. Nothing is recorded anywhere."""
    settings = {"world": cloud.WORLD, "sites": cloud.WORLD, "ports": [cloud.PORT], "pools": {cloud.POOL: {}}}
    world = Straight(settings)
    done = redis.Redis.from_url(Settings().store_url())

    def step(name: str, ready: Callable[[str], bool], every: float) -> None:
        @app.task(name=f"retry.{name}", bind=True, max_retries=None)  # type: ignore[untyped-decorator] # celery has no types
        def body(self: Any, *, server: str) -> dict[str, str]:
            if not ready(server):
                raise self.retry(countdown=every)
            if name == STEPS[-1]:
                done.rpush(DONE, server)
            return {"step": "done", "server": server}

    step("create_image", world.imaged, cloud.POLL)
    step("provision", world.provisioned, cloud.POLL)
    step("poll_readiness", world.is_ready, cloud.POLL)
    step("smoke_test", world.smoked, cloud.POLL)
    step("swap", world.swapped, cloud.BALANCER_POLL)
    step("drain_old", world.drained, cloud.BALANCER_POLL)


class Straight:
    """The way of a server without any record: each verb does or asks once, and says whether it is done. What was made
    is remembered in this process only."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._compute = FakeCompute(settings)
        self._guest = FakeGuest(settings)
        self._traffic = FakeTraffic(settings)
        self._probe = FakeProbe(settings)
        self._images: dict[str, str] = {}
        self._servers: dict[str, Server] = {}

    def imaged(self, server: str) -> bool:
        if server not in self._images:
            image = self._compute.ensure_image(_key(server, "image"), source=server)
            self._images[server] = image.id
            return image.state == "available"
        return self._compute.images([self._images[server]])[self._images[server]].state == "available"

    def provisioned(self, server: str) -> bool:
        size = Size(memory=2 * GiB, disk=20 * GiB)
        key, image = _key(server, "server"), self._images[server]
        self._servers[server] = self._compute.ensure_server(key, image=image, like=server, size=size)
        return True

    def is_ready(self, server: str) -> bool:
        id = self._servers[server].id
        return self._compute.servers([id])[id].state == "running" and id in self._guest.facts([id], paths=())

    def smoked(self, server: str) -> bool:
        request = Request(url="http://shop.test/health")
        return self._probe.check(self._servers[server].address, cloud.PORT, request, Expect()).passed

    def swapped(self, server: str) -> bool:
        member = Member(name=f"{server}.g2", address=self._servers[server].address, port=cloud.PORT)
        return self._traffic.add(cloud.POOL, member).state == "serving"

    def drained(self, server: str) -> bool:
        guard = Guard(min_healthy=1, serving=(f"{server}.g2",))
        if self._traffic.remove(cloud.POOL, server, guard=guard, cut=False).state != "absent":
            return False
        self._compute.stop(server)
        return True


def _key(server: str, what: str) -> Key:
    return Key(token=f"{what}/{server}", name=f"co-{what}-{server}", tags={"changeover:managed": "1"})


# -- who sends ---------------------------------------------------------------------------------------------------------


def feed(kind: Kind, *, servers: int, max_in_flight: int) -> None:
    """Publishes the chains. `retry` holds to the limit in flight; `bare` has nothing to wait for, and gets all."""
    settings = Settings()
    app = make_app(settings)
    redis_ = redis.Redis.from_url(settings.store_url())
    left = cloud.names(servers)[::-1]
    flying = 0
    while left or flying:
        while left and (kind == "bare" or flying < max_in_flight):
            _publish(app, kind, left.pop())
            flying += 1
        if kind == "bare":
            return
        if redis_.blpop([DONE], timeout=2) is not None:  # shorter than the socket's own time-out
            flying -= 1


def _publish(app: Celery, kind: Kind, server: str) -> None:
    chain(
        *(
            app.signature(f"{kind}.{step}", kwargs={"server": server}, immutable=True).set(
                task_id=f"bench:{server}:{place}:{step}:e1", priority=PRIORITY[step]
            )
            for place, step in enumerate(STEPS, start=1)
        ),
        app=app,
    ).apply_async()


# -- the measurement ---------------------------------------------------------------------------------------------------


def measure(kind: Kind, load: Load) -> Figures:
    limit = None if kind == "bare" else load.limit
    with site(CHANGEOVER_CONCURRENCY=str(load.threads)) as place:
        gauge = place.folder / "gauge"
        place.python("worker", "benchmarks.worker", "chains", *load.arguments(), "--gauge", str(gauge))
        wait_for(place, lambda: place.client(db=1).exists("_kombu.binding.changeover"), "the worker")
        time.sleep(1)
        commands = Commands(place.client())
        before = {name: cpu(pid) for name, pid in place.pids.items()}
        began = time.time()
        place.python(
            "feeder",
            *("benchmarks.feeder", kind, "--servers", str(load.servers)),
            *("--max-in-flight", str(load.max_in_flight)),
            *("--used", str(place.folder / "used")),
        )
        ended, unacked = _until_done(place, gauge, kind, load.servers, commands, seconds=120 + 5 * (limit or 30))
        records, others, scripts = commands.since()
        used = json.loads((place.folder / "used").read_text())
        lines = lines_of(gauge)
        return Figures(
            candidate=f"Celery chain, {'six empty tasks' if kind == 'bare' else 'self.retry'}",
            servers=load.servers,
            seconds=ended - began - used["start"],
            limit=limit,
            cpu={**{name: cpu(pid) - before.get(name, 0.0) for name, pid in place.pids.items()}, "feeder": used["cpu"]},
            memory={**{name: peak(pid) for name, pid in place.pids.items()}, "feeder": used["memory"]},
            commands=(records, others),
            scripts=scripts,
            calls=lines[-1]["calls"],
            unacked=unacked,
            busy=max(line["steps"] for line in lines),
        )


def _until_done(
    place: Site, gauge: Path, kind: Kind, servers: int, commands: Commands, *, seconds: float
) -> tuple[float, int]:
    """When the last task had ended, and the most messages that were held."""
    client: Any = place.client(db=1)
    end = time.monotonic() + seconds
    counted, unacked = 0.0, 0
    while True:
        held = int(client.hlen("unacked"))
        unacked = max(unacked, held)
        if time.monotonic() - counted > 1:
            counted = time.monotonic()
            commands.read()
            place.check()
        line = last_line(gauge)
        if (
            line["taken"].get(f"{kind}.{STEPS[-1]}", 0) >= servers
            and not held
            and not line["steps"]
            and not place.runs("feeder")
        ):
            return line["at"], unacked
        if time.monotonic() > end:
            raise RuntimeError(f"{servers} chains ({kind}) have not ended: {line['taken']}")
        time.sleep(EVERY)
