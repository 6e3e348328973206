"""Clouds to try things on: the simulated one, and plain moto beside it for comparison."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import boto3
import pytest
from botocore.config import Config

from simcloud.cloud import Network, SimCloud, Timings

REGION = "eu-west-1"
SESSION = boto3.Session()


@dataclass(kw_only=True)
class Sim:
    """A cloud with a network, and clients of it that never repeat a call."""

    cloud: SimCloud
    network: Network
    _clients: dict[tuple[str, str, str], Any] = field(default_factory=dict)

    def client(self, service: str, *, region: str = REGION, key: str = "AKIAEXAMPLEEXAMPLE00", token: str = "") -> Any:
        if (service, region, key) not in self._clients:
            self._clients[service, region, key] = SESSION.client(
                service,
                region_name=region,
                endpoint_url=self.cloud.url,
                aws_access_key_id=key,
                aws_secret_access_key="example",
                aws_session_token=token or None,
                config=Config(retries={"total_max_attempts": 1}, connect_timeout=3, read_timeout=20),
            )
        return self._clients[service, region, key]

    @property
    def zone(self) -> str:
        return f"{REGION}a"

    def launch(self, **more: Any) -> str:
        """The id of a new instance."""
        whole = {"ImageId": self.network.image, "InstanceType": "t3.small", "MinCount": 1, "MaxCount": 1, **more}
        if "NetworkInterfaces" not in whole:
            whole.setdefault("SubnetId", self.network.subnets[self.zone])
        made = self.client("ec2").run_instances(**whole)
        return str(made["Instances"][0]["InstanceId"])

    def instance(self, id: str) -> Any:
        found = self.client("ec2").describe_instances(InstanceIds=[id])
        return found["Reservations"][0]["Instances"][0]

    def until(self, true: Callable[[], Any], *, seconds: float = 20.0) -> Any:
        end = time.monotonic() + seconds
        while not (found := true()):
            assert time.monotonic() < end, "it never came"
            time.sleep(0.05)
        return found

    def running(self, **more: Any) -> str:
        id = self.launch(**more)
        self.until(lambda: self.instance(id)["State"]["Name"] == "running")
        return id

    def image(self, id: str, name: str, **more: Any) -> str:
        made = self.client("ec2").create_image(InstanceId=id, Name=name, NoReboot=True, **more)["ImageId"]
        self.until(lambda: self.client("ec2").describe_images(ImageIds=[made])["Images"][0]["State"] == "available")
        return str(made)


def sim(*, corrected: bool, machines: bool = False, timings: Timings | None = None) -> Iterator[Sim]:
    with SimCloud(corrected=corrected, machines=machines, timings=timings) as cloud:
        yield Sim(cloud=cloud, network=cloud.network(region=REGION))


@pytest.fixture
def simulated() -> Iterator[Sim]:
    yield from sim(corrected=True)


@pytest.fixture
def plain() -> Iterator[Sim]:
    yield from sim(corrected=False)


@pytest.fixture
def real() -> Iterator[Sim]:
    """With machines."""
    yield from sim(corrected=True, machines=True)
