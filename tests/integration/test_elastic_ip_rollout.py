"""A whole rollout of EC2 instances behind Elastic IPs: real workers, AWS' protocols over the wire, and users who never
stop connecting to the addresses, beside some whose connections stay open."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator import operations
from simcloud.cloud import SimCloud
from simcloud.faults import Fault
from tests.support.aws import PORT, REGION, ROLE, answers, credentials, elastic_ip, launch, wire
from tests.support.control_plane import ControlPlane, Run, control_plane
from tests.support.local_host import until
from tests.support.rights import held_to_its_policy
from tests.support.runner import fleet_file

CUT = (ConnectionError, http.client.HTTPException)


class Users:
    """One of them connects to its address anew for each request; the other one keeps its connection."""

    def __init__(self, addresses: list[str]) -> None:
        self.failures: list[str] = []  # of those who connect anew
        self.cuts: list[str] = []  # of those who do not
        self.served: dict[str, set[str]] = {address: set() for address in addresses}
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._visit, args=(address, stays), daemon=True)
            for address in addresses
            for stays in (False, True)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _visit(self, address: str, stays: bool) -> None:
        link = http.client.HTTPConnection(address, PORT, timeout=30)
        while not self._stop.is_set():
            try:
                link.request("GET", "/index.html")
                answer = link.getresponse()
                assert (answer.status, answer.read()) == (200, b"hello\n")
                self.served[address].add(answer.getheader("X-Served-By", ""))
            except CUT as error:
                (self.cuts if stays else self.failures).append(f"{address}: {error!r}")
                link.close()
            if not stays:
                link.close()
            self._stop.wait(0.02)
        link.close()


class Fleet:
    """Instances with an Elastic IP each."""

    def __init__(self, cloud: SimCloud, *, servers: int) -> None:
        self.cloud, network = cloud, cloud.network(region=REGION)
        names = [f"web-{number}" for number in range(1, servers + 1)]
        tags = {"team": "blue", "changeover-fleet": "shop"}
        self.ids = {name: launch(cloud, network, tags={"Name": name, **tags}) for name in names}
        told = {name: elastic_ip(cloud, id) for name, id in self.ids.items()}
        self.allocations = {name: id for name, (id, _) in told.items()}
        self.addresses = {name: address for name, (_, address) in told.items()}
        until(lambda: all(answers(address, PORT) for address in self.addresses.values()), "the fleet serves")

    def leads(self) -> dict[str, str]:
        told = wire(self.cloud).read("ec2", "describe_addresses")["Addresses"]
        by_address = {each["PublicIp"]: each.get("InstanceId", "") for each in told}
        return {name: by_address[address] for name, address in self.addresses.items()}

    def states(self) -> dict[str, str]:
        pages = wire(self.cloud).pages("ec2", "describe_instances", "Reservations")
        return {each["InstanceId"]: each["State"]["Name"] for page in pages for each in page["Instances"]}

    def cut(self) -> int:
        """How many connections were open at all moves so far."""
        return sum(move.cut for move in self.cloud.addresses.moves)

    def on(self, plane: ControlPlane) -> Run:
        there = {"endpoint": self.cloud.url, "role": ROLE}
        fleet = fleet_file(
            list(self.ids),
            "aws",
            provider={"name": "aws", "region": REGION, "settings": there},
            target={"size": {"memory": "4GiB", "disk": "16GiB", "type": "t3.medium"}},
            servers=[{"name": name, "id": id, "pools": [name]} for name, id in self.ids.items()],
            traffic={
                "provider": "elastic_ip",
                "settings": {"region": REGION, "open_connections": "cut", "check": "/health", **there},
                "pools": {name: {"port": PORT, "backend": id} for name, id in self.allocations.items()},
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
            },
        )
        return Run(plane, fleet, None)


@contextmanager
def stage(tmp_path: Path, *, servers: int) -> Iterator[tuple[Fleet, ControlPlane]]:
    with credentials(), SimCloud(port=PORT) as cloud:
        fleet = Fleet(cloud, servers=servers)
        cloud.timings.telling = 0.3
        with control_plane(tmp_path, lease=20.0) as plane:
            yield fleet, plane


def upgraded(fleet: Fleet, run: Run) -> set[str]:
    """Ids of the new servers, to each of which its address leads."""
    run.until("the end", lambda view: view.rollout.ended, seconds=500)
    assert {u.server: u.state for u in run.view().upgrades} == dict.fromkeys(fleet.ids, "upgraded")
    new = {u.server: u.results["provision"]["server"] for u in run.view().upgrades}
    assert fleet.leads() == new
    return set(new.values())


@pytest.mark.timeout(900)
def test_addresses_move_to_new_servers_and_back_and_only_what_was_open_then_is_cut(tmp_path: Path) -> None:
    with stage(tmp_path, servers=2) as (fleet, plane):
        users = Users(list(fleet.addresses.values()))
        run = fleet.on(plane)
        held_to_its_policy(fleet.cloud, plane.store, plane.ask, run.fleet, plane.supervisor)
        waiter = operations.Waiter(sleep=plane.supervisor.step)
        checks = operations.doctor(plane.store, plane.ask, run.fleet, dev=True, waiter=waiter)
        assert [check for check in checks if not check.ok] == []
        assert sum("is cut when it moves" in check.detail for check in checks) == 2, "a doctor says so"
        caveats = operations.plan(plane.store, plane.ask, run.fleet, waiter).caveats
        assert any("every connection that is open through it is cut" in caveat for caveat in caveats), "and the plan"
        run.apply()
        new = upgraded(fleet, run)
        time.sleep(1)
        users.stop()
        # Who connects anew fails where the move meets it, and then reaches the new server.
        assert len(users.cuts) == 2
        assert len(users.failures) + len(users.cuts) <= fleet.cut()
        assert set().union(*users.served.values()) == new | set(fleet.ids.values())
        assert {fleet.states()[id] for id in fleet.ids.values()} <= {"stopping", "stopped"}

        before, users = fleet.cut(), Users(list(fleet.addresses.values()))
        operations.rollback(plane.store, run.id, actor="test")
        run.until("the way back", lambda view: view.rollout.state == "rolled_back", seconds=500)
        users.stop()
        assert fleet.leads() == fleet.ids
        assert len(users.cuts) == 2
        assert len(users.failures) + len(users.cuts) <= fleet.cut() - before
        assert len(fleet.cloud.addresses.moves) == 3 * len(fleet.ids), "there, to each new one, and back"


@pytest.mark.timeout(900)
def test_a_tenth_of_all_answers_faulty_moves_each_address_once_and_leaves_nothing_over(tmp_path: Path) -> None:
    with stage(tmp_path, servers=2) as (fleet, plane):
        run = fleet.on(plane).apply()
        common = {"rate": 0.05, "count": -1}
        fleet.cloud.troubles.add(Fault(code="ServiceUnavailable", http=503, **common))
        fleet.cloud.troubles.add(Fault(after=True, drop=True, **common))
        run.until("the end", lambda view: view.rollout.ended, seconds=700)
        fleet.cloud.troubles.clear()
        until(lambda: list(fleet.leads().values()) != [], "describe calls have caught up")
        new = upgraded(fleet, run)
        assert set(fleet.cloud.billable()["instance"]) == new | set(fleet.ids.values()), "no orphan"
        assert len(fleet.cloud.billable()["address"]) == len(fleet.ids)
        assert len(fleet.cloud.addresses.moves) == 2 * len(fleet.ids)
