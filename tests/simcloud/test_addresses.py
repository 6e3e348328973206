"""Elastic IPs of the simulated cloud: as AWS has them where plain moto does not, and as users meet them.

Sources: the API references of AssociateAddress, DescribeAddresses and DisassociateAddress; "Elastic IP addresses" and
"Eventual consistency" of the EC2 user guide.
"""

from __future__ import annotations

import http.client
import socket
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from simcloud.faults import Fault
from tests.simcloud.conftest import Sim
from tests.simcloud.test_corrections import ask, refused

Check = Callable[[Sim], None]
CHECKS: list[Check] = []


def check(made: Check) -> Check:
    CHECKS.append(made)
    return made


def allocate(sim: Sim) -> tuple[str, str]:
    made = sim.client("ec2").allocate_address(Domain="vpc")
    return made["AllocationId"], made["PublicIp"]


def shown(sim: Sim, id: str) -> Any:
    return sim.client("ec2").describe_addresses(Filters=[{"Name": "allocation-id", "Values": [id]}])["Addresses"][0]


def interface(sim: Sim, id: str) -> str:
    return str(sim.instance(id)["NetworkInterfaces"][0]["NetworkInterfaceId"])


def associate(sim: Sim, id: str, instance: str, **more: Any) -> None:
    sim.client("ec2").associate_address(AllocationId=id, NetworkInterfaceId=interface(sim, instance), **more)


@check
def an_address_moves_without_being_asked_whether_it_may(sim: Sim) -> None:
    (id, _), first, second = allocate(sim), sim.running(), sim.running()
    associate(sim, id, first)
    associate(sim, id, second)
    assert shown(sim, id)["NetworkInterfaceId"] == interface(sim, second)


@check
def an_address_at_a_network_interface_is_at_its_instance(sim: Sim) -> None:
    (id, _), first = allocate(sim), sim.running()
    associate(sim, id, first)
    assert shown(sim, id)["InstanceId"] == first


@check
def an_instance_that_lost_its_address_shows_it_no_more(sim: Sim) -> None:
    (id, ip), first, second = allocate(sim), sim.running(), sim.running()
    for instance in (first, second):
        associate(sim, id, instance, AllowReassociation=True)
    assert sim.instance(second)["PublicIpAddress"] == ip
    assert sim.instance(first).get("PublicIpAddress") != ip


@check
def an_instance_that_gets_another_address_loses_the_one_it_has(sim: Sim) -> None:
    (old, _), (new, _), instance = allocate(sim), allocate(sim), sim.running()
    associate(sim, old, instance)
    associate(sim, new, instance)
    assert shown(sim, new)["NetworkInterfaceId"] == interface(sim, instance)
    assert "AssociationId" not in shown(sim, old)


@check
def whoever_is_terminated_has_no_address(sim: Sim) -> None:
    (id, _), instance = allocate(sim), sim.running()
    associate(sim, id, instance)
    sim.client("ec2").terminate_instances(InstanceIds=[instance])
    assert "AssociationId" not in shown(sim, id)


@check
def an_instance_that_does_not_run_yet_gets_none(sim: Sim) -> None:
    sim.cloud.timings.pending = 30
    (id, _), instance = allocate(sim), sim.launch()
    with refused("InvalidInstanceID"):
        sim.client("ec2").associate_address(AllocationId=id, InstanceId=instance)


@check
def what_describe_calls_tell_may_be_late(sim: Sim) -> None:
    (id, _), instance = allocate(sim), sim.running()
    sim.cloud.timings.telling = 0.3
    associate(sim, id, instance)
    tags = [{"Key": "team", "Value": "blue"}]
    sim.client("ec2").create_tags(Resources=[id], Tags=tags)
    before = shown(sim, id)
    assert "AssociationId" not in before and not before.get("Tags")
    sim.until(lambda: (now := shown(sim, id)).get("InstanceId") == instance and now["Tags"] == tags)


@check
def what_connects_to_an_address_reaches_its_instance(sim: Sim) -> None:
    (id, ip), instance = allocate(sim), sim.running()
    associate(sim, id, instance)
    sim.until(lambda: reached(ip, sim.cloud.port) == instance, seconds=3)


@pytest.mark.parametrize("holds", CHECKS, ids=lambda each: each.__name__)
def test_the_simulated_cloud_does_as_aws(real: Sim, holds: Check) -> None:
    holds(real)


@pytest.mark.parametrize("holds", CHECKS, ids=lambda each: each.__name__)
def test_plain_moto_does_not(plain: Sim, holds: Check) -> None:
    with pytest.raises((AssertionError, ClientError, KeyError)):
        holds(plain)


def reached(ip: str, port: int) -> str:
    """Which instance answers there; empty if none does."""
    try:
        return ask((ip, port), "/index.html")[1]
    except (OSError, http.client.HTTPException):
        return ""


def is_cut(link: http.client.HTTPConnection) -> bool:
    """Whether its user finds that out."""
    try:
        ask(("", 0), "/index.html", link=link)
    except (ConnectionError, http.client.HTTPException):
        return True
    return False


def test_who_says_that_it_may_not_be_moved_is_refused_where_it_leads_elsewhere(simulated: Sim) -> None:
    (id, _), first, second = allocate(simulated), simulated.running(), simulated.running()
    for _ in range(2):
        associate(simulated, id, first, AllowReassociation=False)
    with refused("Resource.AlreadyAssociated"):
        associate(simulated, id, second, AllowReassociation=False)
    assert shown(simulated, id)["InstanceId"] == first


def test_a_move_whose_reply_is_lost_is_made(simulated: Sim) -> None:
    (id, _), first, second = allocate(simulated), simulated.running(), simulated.running()
    associate(simulated, id, first)
    simulated.cloud.troubles.add(Fault(action="AssociateAddress", after=True, drop=True))
    with pytest.raises(Exception, match="Connection"):
        associate(simulated, id, second)
    assert shown(simulated, id)["InstanceId"] == second


def test_a_move_cuts_its_users_and_tells_the_instance_nothing(real: Sim) -> None:
    (id, ip), first, second = allocate(real), real.running(), real.running()
    machines, port = real.cloud.machines, real.cloud.port
    assert machines is not None
    associate(real, id, first)
    real.until(lambda: reached(ip, port) == first)
    link = http.client.HTTPConnection(ip, port, timeout=20)
    assert ask((ip, port), "/index.html", link=link) == (200, first)
    associate(real, id, second)
    real.until(lambda: is_cut(link))
    link.close()
    assert reached(ip, port) == second
    assert real.cloud.addresses.moves[-1].cut == 1
    where = socket.inet_aton(str(real.instance(first)["PrivateIpAddress"]))
    own = f" {int.from_bytes(where, 'little'):08X}:{port:04X} "
    told = machines.run(first, "cat /proc/net/tcp", seconds=10)[1]
    open_there = [line for line in told.splitlines() if own in line and line.split()[3] == "01"]
    assert len([line for line in open_there if line.split()[1].startswith(own.strip())]) == 1, "to its own kernel it is"
    machines.stop(second)
    assert reached(ip, port) == ""
