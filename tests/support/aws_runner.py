"""The runner of tests/steps over the simulated AWS: one thread, its own providers, instances that are processes, and
time as it passes."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from orchestrator.store.memory import MemoryStore
from providers import find
from simcloud.cloud import Network, SimCloud
from tests.support.aws import PORT, REGION, balanced, launch, register, wire
from tests.support.runner import Clock, Runner, fleet_file

STEP = 0.2  # seconds that are waited for at once
USERS = iter(range(8100, 8999))  # where users reach a balancer: each its own


class RealClock:
    """A clock that is set forward by waiting, a little each time."""

    def __call__(self) -> float:
        return time.time()

    @property
    def now(self) -> float:
        return time.time()

    @now.setter
    def now(self, wanted: float) -> None:
        time.sleep(min(STEP, max(0.0, wanted - time.time())))


class Site:
    """One server of a fleet in a target group, beside another one that is nobody's business."""

    def __init__(self, cloud: SimCloud, network: Network) -> None:
        self.cloud, self.name = cloud, f"shop-{uuid.uuid4().hex[:8]}"  # of the group, and of the server
        self.group = balanced(cloud, network, self.name, delay=1, users=next(USERS))
        self.network = network
        self.old, self.beside = self.server(self.name), self.server("beside")
        self.until_healthy(self.old, self.beside)

    def server(self, name: str) -> str:
        id = launch(self.cloud, self.network, tags={"Name": name})
        register(self.cloud, self.group, id)
        return id

    def until_healthy(self, *ids: str) -> None:
        end = time.monotonic() + 60
        while not set(ids) <= self.healthy():
            assert time.monotonic() < end, self.targets()
            time.sleep(0.05)

    def targets(self) -> Mapping[str, str]:
        told = wire(self.cloud).read("elbv2", "describe_target_health", TargetGroupArn=self.group)
        return {e["Target"]["Id"]: e["TargetHealth"]["State"] for e in told["TargetHealthDescriptions"]}

    def healthy(self) -> set[str]:
        return {id for id, state in self.targets().items() if state == "healthy"}

    def made(self, rollout: str) -> Mapping[str, list[str]]:
        """What that rollout has made and what costs something, by AWS' own tables."""
        return {
            kind: [id for id, tags in things.items() if tags.get("changeover:rollout") == rollout]
            for kind, things in self.cloud.billable().items()
        }

    def state(self, id: str) -> str:
        told = wire(self.cloud).read("ec2", "describe_instances", InstanceIds=[id])
        return str(told["Reservations"][0]["Instances"][0]["State"]["Name"])


@contextmanager
def aws_running(cloud: SimCloud, network: Network, **changes: Any) -> Iterator[tuple[Runner, Site]]:
    """A rollout of that one server. `changes` are of the part `rollout` of its file."""
    site = Site(cloud, network)
    settings = {"endpoint": cloud.url}
    fleet = fleet_file(
        [site.name],
        "aws",
        provider={"name": "aws", "region": REGION, "settings": settings},
        target={"size": {"memory": "4GiB", "disk": "16GiB", "type": "t3.medium"}},
        servers=[{"name": site.name, "id": site.old, "pools": ["web"]}],
        traffic={
            "provider": "elbv2",
            "settings": {"region": REGION, "poll": 1, **settings},
            "pools": {"web": {"port": PORT, "min_healthy": 1, "backend": site.name}},
        },
        checks={"smoke": {"requests": [{"url": "http://shop.test/health"}], "passes": 2, "every": "100ms"}},
        rollout={
            "waves": ["rest"],
            "bake": "0s",
            "soak": "1s",
            "poll": "200ms",
            "back_off": "200ms",
            "attempts": 20,
            "drain": {"deadline": "30s", "quiet": "0s"},
            **changes,
        },
    )
    clock = RealClock()
    runner = Runner(
        fleet=fleet,
        cloud=cast(Any, cloud),
        sites=cast(Any, None),
        clock=cast(Clock, clock),
        store=MemoryStore(clock),
        find=find,
        rollout=uuid.uuid4().hex[:12],
        patrolling=True,
    )
    runner.world.lease, runner.world.late = 3.0, 1.0
    try:
        yield runner, site
    finally:
        cloud.troubles.clear()
