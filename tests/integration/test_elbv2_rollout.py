"""A whole rollout of EC2 instances behind two target groups: real workers, AWS' protocols over the wire, and users who
never stop asking the balancers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator import operations
from providers.clients.aws import Aws
from simcloud.cloud import SimCloud
from simcloud.faults import Fault
from tests.support.aws import PORT, REGION, ROLE, balanced, credentials, launch, register, wire
from tests.support.control_plane import ControlPlane, Run, control_plane
from tests.support.local_host import until
from tests.support.rights import held_to_its_policy
from tests.support.runner import fleet_file
from tests.support.users import Users

GROUPS = {"web": 8090, "api": 8091}  # and where users reach the balancer of each
DELAY = 2


class Fleet:
    """Instances in both groups, and users at both balancers."""

    def __init__(self, cloud: SimCloud, *, servers: int) -> None:
        self.cloud, network = cloud, cloud.network(region=REGION)
        self.groups = {
            name: balanced(cloud, network, f"shop-{name}", delay=DELAY, users=users) for name, users in GROUPS.items()
        }
        names = [f"web-{number}" for number in range(1, servers + 1)]
        self.ids = {
            name: launch(cloud, network, tags={"Name": name, "team": "blue", "changeover-fleet": "shop"})
            for name in names
        }
        for group in self.groups.values():
            for id in self.ids.values():
                register(cloud, group, id)
        until(lambda: all(len(self.healthy(name)) == servers for name in GROUPS), "the fleet serves")

    @property
    def elb(self) -> Aws:
        return wire(self.cloud)

    def healthy(self, name: str) -> set[str]:
        told = self.elb.read("elbv2", "describe_target_health", TargetGroupArn=self.groups[name])
        found = told["TargetHealthDescriptions"]
        return {each["Target"]["Id"] for each in found if each["TargetHealth"]["State"] == "healthy"}

    def states(self) -> dict[str, str]:
        pages = self.elb.pages("ec2", "describe_instances", "Reservations")
        return {each["InstanceId"]: each["State"]["Name"] for page in pages for each in page["Instances"]}

    def users(self) -> Users:
        balancers = self.cloud.balancers
        assert balancers is not None
        until(lambda: len(balancers.places) == len(GROUPS), "the balancers listen")
        by_port = {at[1]: at for at in balancers.places.values()}
        return Users({name: by_port[port] for name, port in GROUPS.items()})

    def on(self, plane: ControlPlane, **rollout: Any) -> Run:
        there = {"endpoint": self.cloud.url, "role": ROLE}
        fleet = fleet_file(
            list(self.ids),
            "aws",
            provider={"name": "aws", "region": REGION, "settings": there},
            target={"size": {"memory": "4GiB", "disk": "16GiB", "type": "t3.medium"}},
            servers=[{"name": name, "id": id, "pools": list(GROUPS)} for name, id in self.ids.items()],
            traffic={
                "provider": "elbv2",
                "settings": {"region": REGION, "poll": 1, **there},
                "pools": {name: {"port": PORT, "min_healthy": 2, "backend": f"shop-{name}"} for name in GROUPS},
            },
            checks={"smoke": {"requests": [{"url": "http://shop.test/health"}], "passes": 2, "every": "200ms"}},
            rollout={
                "waves": [1, "rest"],
                "bake": "1s",
                "soak": "1s",
                "max_in_flight": 2,
                "poll": "1s",
                "back_off": "500ms",
                "attempts": 20,
                "drain": {"deadline": "60s", "quiet": "0s"},
                **rollout,
            },
        )
        return Run(plane, fleet, None)


@contextmanager
def stage(tmp_path: Path, *, servers: int) -> Iterator[tuple[Fleet, ControlPlane]]:
    with credentials(), SimCloud(port=PORT) as cloud:
        fleet = Fleet(cloud, servers=servers)
        with control_plane(tmp_path, lease=20.0) as plane:
            yield fleet, plane


def upgraded(fleet: Fleet, run: Run) -> set[str]:
    """Ids of the new servers, each of which serves in both groups, alone."""
    run.until("the end", lambda view: view.rollout.ended, seconds=500)
    assert {u.server: u.state for u in run.view().upgrades} == dict.fromkeys(fleet.ids, "upgraded")
    new = {u.results["provision"]["server"] for u in run.view().upgrades}
    for name in GROUPS:
        assert fleet.healthy(name) == new
    return new


@pytest.mark.timeout(900)
def test_servers_in_two_target_groups_are_replaced_and_put_back_without_one_failed_request(tmp_path: Path) -> None:
    with stage(tmp_path, servers=3) as (fleet, plane):
        users = fleet.users()
        run = fleet.on(plane)
        held_to_its_policy(fleet.cloud, plane.store, plane.ask, run.fleet, plane.supervisor)
        waiter = operations.Waiter(sleep=plane.supervisor.step)
        checks = operations.doctor(plane.store, plane.ask, run.fleet, dev=True, waiter=waiter)
        assert [check for check in checks if not check.ok] == []
        run.apply()
        new = upgraded(fleet, run)
        time.sleep(1)
        users.stop()
        assert users.failures == []
        for name in GROUPS:
            assert set(users.served[name]) == new | set(fleet.ids.values()), "each of them has served users"
        states = fleet.states()
        assert {states[id] for id in fleet.ids.values()} <= {"stopping", "stopped"}
        tags = [fleet.cloud.billable()["instance"][id] for id in [*new, *fleet.ids.values()]]
        assert not [key for each in tags for key in each if key.startswith("changeover:pool:")], "no note is left"

        users = fleet.users()
        operations.rollback(plane.store, run.id, actor="test")
        run.until("the way back", lambda view: view.rollout.state == "rolled_back", seconds=500)
        users.stop()
        assert users.failures == []
        for name in GROUPS:
            assert fleet.healthy(name) == set(fleet.ids.values())


@pytest.mark.timeout(900)
def test_a_tenth_of_all_answers_faulty_costs_no_request_and_leaves_nothing_over(tmp_path: Path) -> None:
    with stage(tmp_path, servers=3) as (fleet, plane):
        users = fleet.users()
        run = fleet.on(plane).apply()
        common = {"rate": 0.05, "count": -1}
        fleet.cloud.troubles.add(Fault(code="ServiceUnavailable", http=503, **common))
        fleet.cloud.troubles.add(Fault(after=True, drop=True, **common))
        fleet.cloud.troubles.limit("elbv2:*", size=40, refill=10)
        run.until("the end", lambda view: view.rollout.ended, seconds=700)
        fleet.cloud.troubles.clear()
        new = upgraded(fleet, run)
        users.stop()
        assert users.failures == []
        there = fleet.cloud.billable()["instance"]
        assert set(there) == new | set(fleet.ids.values()), "no orphan"
