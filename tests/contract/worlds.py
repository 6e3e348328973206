"""What a world must offer so that the contract of its compute provider can be tested."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, Protocol

from providers import Key
from providers.compute import Compute, Size
from providers.compute.aws import AwsCompute
from providers.compute.cloudformation import CloudFormationCompute
from providers.compute.fake import FakeCloud, FakeCompute
from providers.compute.local import LocalCompute
from providers.fake_host import Operator
from providers.probe.fake import FakeSites
from simcloud.cloud import SimCloud
from simcloud.faults import Fault
from tests.support.aws import REGION, TEMPLATE, credentials, launch
from tests.support.fake_cloud import running_cloud
from tests.support.local_host import MIB, SITE, LocalHost
from tests.support.lossy import LossyWire


class ComputeWorld(Protocol):
    """`size` suits an image of any server of this world; `bigger` is larger in everything."""

    compute: Compute
    size: Size
    bigger: Size

    def server(self, tags: Mapping[str, str] | None = None) -> str:
        """The id of a new server that runs and that nobody made by a key."""
        ...

    def settle(self, id: str, state: str) -> None:
        """Returns once that server or image is in the state, after as much of the world's time as it takes."""
        ...

    def lose_next_answer(self) -> None:
        """The next call that changes something happens, and its answer does not come back."""
        ...


def new_key(**tags: str) -> Key:
    token = uuid.uuid4().hex * 2
    return Key(token=token, name=f"co-{token[:40]}", tags={"changeover:managed": "1", **tags})


class LocalWorld:
    size = Size(memory=256 * MIB, disk=16 * MIB)
    bigger = Size(memory=512 * MIB, disk=32 * MIB)

    def __init__(self, host: LocalHost, wire: LossyWire) -> None:
        self._host, self._wire = host, wire
        self.compute: Compute = LocalCompute({"host": str(wire.path)})

    def server(self, tags: Mapping[str, str] | None = None) -> str:
        made = self._host.client.create_server(
            name=f"web-{uuid.uuid4().hex[:8]}",
            command=[sys.executable, "-S", str(SITE), "{address}", "{port}"],
            port=8080,
            size=self.size,
            tags=tags,
        )
        self._host.becomes(made["id"], "running")
        return str(made["id"])

    def settle(self, id: str, state: str) -> None:
        self._host.becomes(id, state)

    def lose_next_answer(self) -> None:
        self._wire.lose_next()


@contextmanager
def local_world() -> Iterator[ComputeWorld]:
    with LocalHost() as host, LossyWire(host.folder / "lossy.sock", host.client.socket) as wire:
        yield LocalWorld(host, wire)


class FakeWorld:
    """The fake cloud, in this process or in its own: `operator` says which."""

    size = Size(memory=256 * MIB, disk=16 * MIB)
    bigger = Size(memory=512 * MIB, disk=32 * MIB)

    def __init__(self, compute: Compute, operator: Operator, lose: Callable[[], None]) -> None:
        self.compute, self._operator, self._lose = compute, operator, lose

    def server(self, tags: Mapping[str, str] | None = None) -> str:
        made = self._operator.server(f"web-{uuid.uuid4().hex[:8]}")
        self.compute.tag(made.id, tags or {})
        return made.id

    def settle(self, id: str, state: str) -> None:
        end = time.monotonic() + 20
        while True:
            found = {**self.compute.servers([id]), **self.compute.images([id])}
            if found[id].state == state:
                return
            assert time.monotonic() < end, f"{id} is {found[id].state}"
            time.sleep(0.005)

    def lose_next_answer(self) -> None:
        self._lose()


TIMES = {"image_ms": 20, "ready_ms": 20}


@contextmanager
def fake_world() -> Iterator[ComputeWorld]:
    settings = {"world": uuid.uuid4().hex, **TIMES}
    compute = FakeCompute(settings)
    lost: list[Literal["after"]] = []
    compute.cloud.fault = lambda name: lost.pop() if lost and name.startswith("ensure_") else ""
    yield FakeWorld(compute, Operator(compute.cloud, FakeSites()), lambda: lost.append("after"))
    del FakeCloud.named[str(settings["world"])]


@contextmanager
def fake_world_of_its_own() -> Iterator[ComputeWorld]:
    with running_cloud() as running:
        compute = FakeCompute(running.settings("contract", **TIMES))
        operator = running.operator("contract", **TIMES)
        yield FakeWorld(compute, operator, lambda: operator.fault("ensure_*", "silent"))


class AwsWorld:
    """EC2 of a simulated cloud, reached over the wire."""

    size = Size(memory=2048 * MIB, disk=8 * 1024 * MIB, type="t3.small")
    bigger = Size(memory=4096 * MIB, disk=16 * 1024 * MIB, type="t3.medium")

    def __init__(self, cloud: SimCloud, compute: Compute) -> None:
        self._cloud, self._network = cloud, cloud.network(region=REGION)
        self.compute = compute

    def server(self, tags: Mapping[str, str] | None = None) -> str:
        id = launch(self._cloud, self._network, tags=tags or {})
        self.settle(id, "running")
        return id

    def settle(self, id: str, state: str) -> None:
        end = time.monotonic() + 20
        while True:
            found = {**self.compute.servers([id]), **self.compute.images([id])}
            if id in found and found[id].state == state:
                return
            assert time.monotonic() < end, f"{id} is {found.get(id)}"
            time.sleep(0.05)

    def lose_next_answer(self) -> None:
        self._cloud.troubles.add(Fault(service="*", after=True, drop=True, writes=True))


@contextmanager
def aws_world() -> Iterator[ComputeWorld]:
    with credentials(), SimCloud(machines=False) as cloud:
        yield AwsWorld(cloud, AwsCompute({"region": REGION, "endpoint": cloud.url}))


@contextmanager
def cloudformation_world() -> Iterator[ComputeWorld]:
    """The same, where a server is a stack."""
    with credentials(), SimCloud(machines=False) as cloud:
        settings = {"region": REGION, "endpoint": cloud.url, "template": str(TEMPLATE)}
        yield AwsWorld(cloud, CloudFormationCompute(settings))
