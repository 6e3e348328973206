"""A cloud in a process of its own, and a fleet in it to try things on: in each account instances in several zones, all
in one target group behind a balancer.

    python -m simcloud.fleet '{"accounts": {"111111111111": 3}}' < a pipe that stays open

Prints one line of JSON once all of them serve:

    {"endpoint", "servers": [{"name", "id", "address", "account", "zone"}],
     "pools": [{"account", "group", "host", "port"}]}

and ends with its standard input. Until then it does what is asked of it at `/sim/` of the endpoint. Every call of its
own has the credentials of a role in that account; what it counts begins when it says that it is ready.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from simcloud.cloud import Network, SimCloud, Timings
from simcloud.machines import LOOPBACK, Programs

PATIENCE = 120.0  # seconds for a fleet to serve, on a slow machine
NAME = "shop"  # of group and balancer in each account
KEY = {"aws_access_key_id": "AKIAEXAMPLEEXAMPLE00", "aws_secret_access_key": "example"}


@dataclass(frozen=True, kw_only=True)
class Wish:
    """`accounts`: how many servers each has. `port`: where their sites listen; `users`: where balancers do. `delay`:
    seconds that a target drains. `address`, `block`: see `simcloud.cloud.SimCloud`. `command` and `files`: see
    `simcloud.machines.Programs`. `timings`: see `simcloud.cloud.Timings`."""

    accounts: Mapping[str, int]
    region: str = "eu-west-1"
    zones: int = 2
    type: str = "t3.small"
    port: int = 8080
    users: int = 8090
    delay: int = 5
    address: str = "127.0.0.1"
    block: str = LOOPBACK
    command: tuple[str, ...] = ()
    files: str = ""
    timings: Mapping[str, float] = field(default_factory=dict)


def build(cloud: SimCloud, wish: Wish) -> Mapping[str, Any]:
    """The fleet, serving."""
    places = {
        account: cloud.network(account=account, region=wish.region, zones=wish.zones) for account in wish.accounts
    }
    groups = {account: _balanced(cloud, wish, account, network) for account, network in places.items()}
    servers: list[dict[str, str]] = []
    for account, count in wish.accounts.items():
        zones = list(places[account].subnets)
        for number in range(count):
            name, zone = f"web-{len(servers) + 1:03d}", zones[number % len(zones)]
            found = _launch(cloud, wish, account, places[account], name=name, zone=zone)
            servers.append({"name": name, "account": account, "zone": zone, **found})
    end = time.monotonic() + PATIENCE
    for account, group in groups.items():
        mine = [server["id"] for server in servers if server["account"] == account]
        _until(end, lambda account=account, mine=mine: _run(cloud, wish, account, mine))
        targets = [{"Id": id, "Port": wish.port} for id in mine]
        client(cloud, wish, account, "elbv2").register_targets(TargetGroupArn=group, Targets=targets)
    for account, group in groups.items():
        _until(end, lambda account=account, group=group: _well(cloud, wish, account, group))
    balancers = cloud.balancers
    assert balancers is not None
    _until(end, lambda: len(balancers.places) == len(groups))
    at = {arn.split(":")[4]: place for arn, place in balancers.places.items()}
    pools = [
        {"account": account, "group": group, "host": at[account][0], "port": at[account][1]}
        for account, group in groups.items()
    ]
    return {"endpoint": cloud.url, "region": wish.region, "servers": servers, "pools": pools}


_clients: dict[tuple[str, str], Any] = {}


def client(cloud: SimCloud, wish: Wish, account: str, service: str) -> Any:
    """With the credentials of a role in that account."""
    if (account, service) not in _clients:
        there = {"region_name": wish.region, "endpoint_url": cloud.url, "config": Config(proxies={})}
        sts = boto3.client("sts", **KEY, **there)
        role = f"arn:aws:iam::{account}:role/operator"
        given = sts.assume_role(RoleArn=role, RoleSessionName="operator")["Credentials"]
        mine = {
            "aws_access_key_id": given["AccessKeyId"],
            "aws_secret_access_key": given["SecretAccessKey"],
            "aws_session_token": given["SessionToken"],
        }
        _clients[account, service] = boto3.client(service, **mine, **there)
    return _clients[account, service]


def _launch(cloud: SimCloud, wish: Wish, account: str, network: Network, *, name: str, zone: str) -> Mapping[str, str]:
    nic = {"DeviceIndex": 0, "SubnetId": network.subnets[zone], "Groups": [network.group]}
    made = client(cloud, wish, account, "ec2").run_instances(
        ImageId=network.image,
        InstanceType=wish.type,
        MinCount=1,
        MaxCount=1,
        NetworkInterfaces=[nic],
        TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": name}]}],
    )["Instances"][0]
    return {"id": made["InstanceId"], "address": made["PrivateIpAddress"]}


def _balanced(cloud: SimCloud, wish: Wish, account: str, network: Network) -> str:
    elb = client(cloud, wish, account, "elbv2")
    group: str = elb.create_target_group(
        Name=NAME,
        Protocol="HTTP",
        Port=wish.port,
        VpcId=network.vpc,
        HealthCheckPath="/health",
        HealthCheckTimeoutSeconds=5,
        HealthyThresholdCount=2,
        UnhealthyThresholdCount=2,
    )["TargetGroups"][0]["TargetGroupArn"]
    delay = {"Key": "deregistration_delay.timeout_seconds", "Value": str(wish.delay)}
    elb.modify_target_group_attributes(TargetGroupArn=group, Attributes=[delay])
    made = elb.create_load_balancer(Name=NAME, Subnets=list(network.subnets.values()))
    elb.create_listener(
        LoadBalancerArn=made["LoadBalancers"][0]["LoadBalancerArn"],
        Protocol="HTTP",
        Port=wish.users,
        DefaultActions=[{"Type": "forward", "TargetGroupArn": group}],
    )
    return group


def _run(cloud: SimCloud, wish: Wish, account: str, ids: list[str]) -> bool:
    filters = [{"Name": "instance-id", "Values": ids}, {"Name": "instance-state-name", "Values": ["running"]}]
    pages = client(cloud, wish, account, "ec2").get_paginator("describe_instances").paginate(Filters=filters)
    return sum(len(each["Instances"]) for page in pages for each in page["Reservations"]) == len(ids)


def _well(cloud: SimCloud, wish: Wish, account: str, group: str) -> bool:
    told = client(cloud, wish, account, "elbv2").describe_target_health(TargetGroupArn=group)
    return {each["TargetHealth"]["State"] for each in told["TargetHealthDescriptions"]} == {"healthy"}


def _until(end: float, true: Any) -> None:
    while not true():
        if time.monotonic() > end:
            raise SystemExit(f"the fleet does not serve within {PATIENCE:g} s")
        time.sleep(0.1)


def main() -> None:
    told = json.loads(sys.argv[1])
    wish = Wish(**{**told, "command": tuple(told.get("command", ()))})
    files = Path(wish.files) if wish.files else None
    programs = Programs(command=wish.command, files=files) if wish.command else Programs(files=files)
    over = threading.Event()
    for which in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(which, lambda *_: over.set())
    timings = Timings(**wish.timings)
    with SimCloud(timings=timings, port=wish.port, programs=programs, address=wish.address, block=wish.block) as cloud:
        fleet = build(cloud, wish)
        cloud.calls.clear()
        cloud.keys.clear()
        sys.stdout.write(json.dumps(fleet) + "\n")
        sys.stdout.flush()
        threading.Thread(target=_end_with_input, args=(over,), daemon=True).start()
        over.wait()


def _end_with_input(over: threading.Event) -> None:
    sys.stdin.read()
    over.set()


if __name__ == "__main__":
    main()
