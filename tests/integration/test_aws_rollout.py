"""A whole rollout of EC2 instances behind HAProxy: real workers, real processes, and AWS' protocols over the wire."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from simcloud.cloud import SimCloud
from simcloud.faults import Fault
from tests.support.aws import REGION, ROLE, credentials, launch, wire
from tests.support.control_plane import ControlPlane, Run, control_plane
from tests.support.haproxy import CHECK, HAProxy
from tests.support.local_host import until
from tests.support.rights import held_to_its_policy
from tests.support.runner import fleet_file


@dataclass(frozen=True, kw_only=True)
class Member:
    """As HAProxy's configuration names a server."""

    name: str
    address: str
    port: int


class Fleet:
    """Instances that run and serve behind an HAProxy."""

    def __init__(self, cloud: SimCloud, *, servers: int) -> None:
        self.cloud = cloud
        self.network = cloud.network(region=REGION)
        self.ids: dict[str, str] = {}
        self.members: list[Member] = []
        for number in range(1, servers + 1):
            self.add(f"web-{number}")

    def add(self, name: str, **more: Any) -> str:
        tags = {"Name": name, "team": "blue", "changeover-fleet": "shop"}
        self.ids[name] = launch(self.cloud, self.network, tags=tags, **more)
        self.members.append(self._member(name, self.ids[name]))
        return self.ids[name]

    def _member(self, name: str, id: str) -> Member:
        told = wire(self.cloud).read("ec2", "describe_instances", InstanceIds=[id])
        return Member(name=name, address=told["Reservations"][0]["Instances"][0]["PrivateIpAddress"], port=8080)

    def states(self) -> Mapping[str, str]:
        pages = wire(self.cloud).pages("ec2", "describe_instances", "Reservations")
        return {each["InstanceId"]: each["State"]["Name"] for page in pages for each in page["Instances"]}

    def on(self, plane: ControlPlane, haproxy: HAProxy, *, provider: str, **more: str) -> Run:
        """`more`: settings of the provider."""
        settings = {"socket": haproxy.socket, "config": str(haproxy.config), "check": CHECK.removeprefix("check ")}
        fleet = fleet_file(
            list(self.ids),
            "aws",
            provider={
                "name": provider,
                "region": REGION,
                "settings": {"endpoint": self.cloud.url, "role": ROLE, **more},
            },
            target={"size": {"memory": "4GiB", "disk": "16GiB", "type": "t3.medium"}},
            servers=[{"name": name, "id": id, "pools": ["web"]} for name, id in self.ids.items()],
            traffic={
                "provider": "haproxy",
                "settings": settings,
                "pools": {"web": {"port": 8080, "min_healthy": 1}},
            },
            checks={
                "guest": {"like_old": ["index.html"], "disk_free": "1GiB", "memory_free": "1GiB"},
                "smoke": {"requests": [{"url": "http://shop.test/health"}], "passes": 2, "every": "100ms"},
            },
            rollout={
                "waves": ["rest"],
                "bake": "0s",
                "soak": "1s",
                "max_in_flight": 10,
                "poll": "1s",
                "back_off": "500ms",
                "attempts": 20,
                "drain": {"deadline": "30s", "quiet": "0s"},
                "budget": {"before_swap": 1},
            },
        )
        return Run(plane, fleet, None)


@contextmanager
def stage(
    tmp_path: Path,
    *,
    servers: int,
    provider: str = "aws",
    prepare: Callable[[Fleet], None] = lambda _: None,
    **settings: str,
) -> Iterator[tuple[Fleet, Run]]:
    with credentials(), SimCloud() as cloud:
        fleet = Fleet(cloud, servers=servers)
        prepare(fleet)
        until(lambda: set(fleet.states().values()) == {"running"}, "the fleet runs")
        members: Any = fleet.members
        with HAProxy(*members) as haproxy:
            haproxy.all_up()
            with control_plane(tmp_path) as plane:
                yield fleet, fleet.on(plane, haproxy, provider=provider, **settings)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("faults", [0.0, 0.1], ids=["calm", "a tenth of all answers faulty"])
def test_ec2_servers_are_replaced_and_nothing_is_left_over(tmp_path: Path, faults: float) -> None:
    servers = 4
    with stage(tmp_path, servers=servers) as (fleet, run):
        held_to_its_policy(fleet.cloud, run.plane.store, run.plane.ask, run.fleet, run.plane.supervisor)
        run.apply()
        if faults:
            common = {"rate": faults / 2, "count": -1}
            fleet.cloud.troubles.add(Fault(code="InternalError", http=500, **common))
            fleet.cloud.troubles.add(Fault(after=True, drop=True, **common))
        before = Counter(fleet.cloud.calls)
        run.until("the end", lambda view: view.rollout.ended)
        made = Counter(fleet.cloud.calls) - before
        fleet.cloud.troubles.clear()
        assert {u.server: u.state for u in run.view().upgrades} == dict.fromkeys(fleet.ids, "upgraded")
        states = fleet.states()
        assert {states[id] for id in fleet.ids.values()} <= {"stopping", "stopped"}
        new = {id: tags for id, tags in fleet.cloud.billable()["instance"].items() if id not in fleet.ids.values()}
        assert sorted(tags["changeover:server"] for tags in new.values()) == sorted(fleet.ids)
        assert {(tags["Name"], tags["team"]) for tags in new.values()} == {(name, "blue") for name in fleet.ids}
        images = [tags for tags in fleet.cloud.billable()["image"].values() if "changeover:managed" in tags]
        assert sorted(tags["changeover:server"] for tags in images) == sorted(fleet.ids)
        assert len(fleet.cloud.billable()["volume"]) == 2 * servers
        if not faults:
            assert sum(made.values()) / servers <= 40, made
