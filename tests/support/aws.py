"""The simulated AWS in tests: whose credentials reach it, and servers that were there before."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from providers.clients.aws import Aws, place_of
from simcloud.cloud import Network, SimCloud

REGION = "eu-west-1"
POLICY = Path(__file__).parents[2] / "docs" / "aws-policy.json"


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


def wire(cloud: SimCloud, **more: str) -> Aws:
    """Calls as an operator makes them, beside the product."""
    return Aws(place_of({"region": REGION, "endpoint": cloud.url, **more}))


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


def allowed() -> set[str]:
    """What the policy that we ship lets Changeover call."""
    told: set[str] = set()
    for statement in json.loads(POLICY.read_text())["Statement"]:
        actions = statement["Action"]
        told |= {actions} if isinstance(actions, str) else set(actions)
    return told
