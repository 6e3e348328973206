"""A whole rollout of servers that are made as stacks: real workers and processes, AWS' protocols over the wire."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from orchestrator import operations
from simcloud.faults import Fault
from tests.integration.test_aws_rollout import Fleet, stage
from tests.support.aws import REGION, TEMPLATE
from tests.support.local_host import until
from tests.support.rights import held_to_its_policy

UPGRADED = ("web-1", "web-2", "web-3")
CROWDED = "web-4"


def crowd(fleet: Fleet) -> None:
    """One more server, in a zone where there is no room for the new type: its stack fails."""
    zone = f"{REGION}b"
    nic = {"DeviceIndex": 0, "SubnetId": fleet.network.subnets[zone], "Groups": [fleet.network.group]}
    fleet.add(CROWDED, NetworkInterfaces=[nic])
    fleet.cloud.ledgers.capacity[zone, "t3.medium"] = 0


@pytest.mark.timeout(500)
@pytest.mark.parametrize("faults", [0.0, 0.1], ids=["calm", "a tenth of all answers faulty"])
def test_stacks_take_over_from_servers_and_go_when_these_come_back(tmp_path: Path, faults: float) -> None:
    settings = {"provider": "cloudformation", "template": str(TEMPLATE)}
    with stage(tmp_path, servers=3, prepare=crowd, **settings) as (fleet, run):
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
        found = {u.server: u for u in run.view().upgrades}
        assert {name: found[name].state for name in fleet.ids} == {
            **dict.fromkeys(UPGRADED, "upgraded"),
            CROWDED: "failed",
        }
        assert "sufficient t3.medium capacity" in found[CROWDED].why
        states = fleet.states()
        assert {states[fleet.ids[name]] for name in UPGRADED} <= {"stopping", "stopped"}
        assert states[fleet.ids[CROWDED]] == "running"
        until(lambda: len(fleet.cloud.billable()["stack"]) == len(UPGRADED), "the stack that failed is gone")
        stacks = fleet.cloud.billable()["stack"]
        assert sorted(tags["changeover:server"] for tags in stacks.values()) == list(UPGRADED)
        assert {found[name].results["provision"]["server"] for name in UPGRADED} == set(stacks)
        if not faults:
            asked = {name: times for name, times in made.items() if name.startswith("cloudformation:")}
            assert sum(asked.values()) / len(fleet.ids) <= 12, asked

        operations.rollback(run.plane.store, run.id, actor="ann")
        run.until("the way back", lambda view: view.rollout.state == "rolled_back")
        states = fleet.states()
        assert {states[id] for id in fleet.ids.values()} == {"running"}
        until(lambda: not fleet.cloud.billable()["stack"], "no stack is left")
        whole = fleet.cloud.billable()
        assert set(whole["instance"]) == set(fleet.ids.values())
        assert len(whole["volume"]) == len(fleet.ids)
        assert set(whole["image"]) == {fleet.network.image}
