"""The simulated AWS in tests: whose credentials reach it, and servers that were there before."""

from __future__ import annotations

import http.client
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import pytest

from providers.clients import rounds
from providers.clients.aws import Aws, place_of
from providers.errors import Busy, ProviderError
from simcloud.cloud import Network, SimCloud

REGION = "eu-west-1"
POLICY = Path(__file__).parents[2] / "docs" / "aws-policy.json"
TEMPLATE = Path(__file__).parents[2] / "examples" / "aws-cloudformation.template"
ROLE = "arn:aws:iam::123456789012:role/changeover"  # of the workers, where they are held to a policy
PORT = 8080  # where the sites of the instances listen


@contextmanager
def credentials() -> Iterator[None]:
    """Some, and none of the files or services that this machine may have."""
    mine = {
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLEEXAMPLE00",
        "AWS_SECRET_ACCESS_KEY": "example",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/nowhere",
        "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
    }
    before = {name: os.environ.get(name) for name in mine}
    os.environ.update(mine)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def gathers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a worker that has much to do."""
    monkeypatch.setattr(rounds._Process, "crowd", SimpleNamespace(busy=99, threads=100, coming=0, patience=9.0))
    monkeypatch.setattr(rounds, "PAUSE", 0.5)


def at_once(count: int, act: Callable[[int], Any]) -> list[Any]:
    """What becomes of that many threads that act at the same moment: what each hears, or is refused with."""
    start = threading.Barrier(count)

    def one(number: int) -> Any:
        start.wait(30)
        try:
            return act(number)
        except ProviderError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


_wires: WeakKeyDictionary[SimCloud, Aws] = WeakKeyDictionary()


def wire(cloud: SimCloud, **more: str) -> Aws:
    """Calls as an operator makes them, beside the product. One of a cloud, since each client takes its time to make."""
    if more or cloud not in _wires:
        made = Aws(place_of({"region": REGION, "endpoint": cloud.url, **more}))
        return made if more else _wires.setdefault(cloud, made)
    return _wires[cloud]


def launch(cloud: SimCloud, network: Network, *, tags: Mapping[str, str] | None = None, **more: Any) -> str:
    """The id of a new instance that nobody made by a key."""
    nic = {"DeviceIndex": 0, "SubnetId": next(iter(network.subnets.values())), "Groups": [network.group]}
    named = [{"Key": name, "Value": value} for name, value in (tags or {}).items()]
    request = {
        "ImageId": network.image,
        "InstanceType": "t3.small",
        "MinCount": 1,
        "MaxCount": 1,
        "NetworkInterfaces": [nic],
        **({"TagSpecifications": [{"ResourceType": "instance", "Tags": named}]} if named else {}),
        **more,
    }
    return str(wire(cloud).write("ec2", "run_instances", **request)["Instances"][0]["InstanceId"])


def address_of(cloud: SimCloud, id: str) -> str:
    told = wire(cloud).read("ec2", "describe_instances", InstanceIds=[id])
    return str(told["Reservations"][0]["Instances"][0]["PrivateIpAddress"])


def balanced(
    cloud: SimCloud, network: Network, name: str, *, delay: int = 1, port: int = PORT, users: int = 8090, **more: Any
) -> str:
    """The ARN of a new target group at that port of its targets, which a balancer of its name leads users to."""
    elb = wire(cloud)
    made = elb.write(
        "elbv2",
        "create_target_group",
        **{
            "Name": name,
            "Protocol": "HTTP",
            "Port": port,
            "VpcId": network.vpc,
            "HealthCheckPath": "/health",
            "HealthyThresholdCount": 2,
            "UnhealthyThresholdCount": 2,
            **more,
        },
    )
    arn = str(made["TargetGroups"][0]["TargetGroupArn"])
    attributes(cloud, arn, {"deregistration_delay.timeout_seconds": str(delay)})
    subnets = list(network.subnets.values())
    made = elb.write("elbv2", "create_load_balancer", Name=name, Subnets=subnets)
    elb.write(
        "elbv2",
        "create_listener",
        LoadBalancerArn=made["LoadBalancers"][0]["LoadBalancerArn"],
        Protocol="HTTP",
        Port=users,
        DefaultActions=[{"Type": "forward", "TargetGroupArn": arn}],
    )
    return arn


def attributes(cloud: SimCloud, group: str, told: Mapping[str, str]) -> None:
    pairs = [{"Key": key, "Value": value} for key, value in told.items()]
    wire(cloud).write("elbv2", "modify_target_group_attributes", TargetGroupArn=group, Attributes=pairs)


def register(cloud: SimCloud, group: str, id: str, *, port: int = PORT) -> None:
    """As soon as it runs: none is registered before."""
    end = time.monotonic() + 20
    while True:
        try:
            wire(cloud).write("elbv2", "register_targets", TargetGroupArn=group, Targets=[{"Id": id, "Port": port}])
        except Busy:
            assert time.monotonic() < end, f"{id} does not run"
            time.sleep(0.05)
        else:
            return


def elastic_ip(cloud: SimCloud, id: str, *, member: str = "") -> tuple[str, str]:
    """A new Elastic IP that leads to that instance, as soon as it runs: its allocation id, and itself. `member`: the
    name that a note gives the instance."""
    ec2 = wire(cloud)
    made = ec2.write("ec2", "allocate_address", Domain="vpc")
    end = time.monotonic() + 20
    while not (told := ec2.read("ec2", "describe_instance_status", InstanceIds=[id])["InstanceStatuses"]):
        assert time.monotonic() < end, f"{id} does not run: {told}"
        time.sleep(0.05)
    ec2.write("ec2", "associate_address", AllocationId=made["AllocationId"], InstanceId=id)
    if member:
        tag = {"Key": f"changeover:member:{member}", "Value": f"{id} {address_of(cloud, id)} told 1.000"}
        ec2.write("ec2", "create_tags", Resources=[made["AllocationId"]], Tags=[tag])
    return str(made["AllocationId"]), str(made["PublicIp"])


def answers(address: str, port: int) -> bool:
    link = http.client.HTTPConnection(address, port, timeout=5)
    try:
        link.request("GET", "/health")
        return link.getresponse().status == 200
    except OSError:
        return False
    finally:
        link.close()
