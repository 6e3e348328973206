"""One cloud: its clock, its tables, its machines, and the server that speaks for it."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from simcloud.faults import REQUESTS, Troubles
from simcloud.machines import LOOPBACK, Machines, Programs, claim_block

if TYPE_CHECKING:
    from simcloud.addresses import Addresses
    from simcloud.balancer import Balancers
    from simcloud.route53 import Zones

ACCOUNT = "123456789012"  # whoever has no role


@dataclass(kw_only=True)
class Timings:
    """How long things take, in seconds. `lag`: for so long after it was made an id is not found.
    `agent`: from running until the agent of Systems Manager is online. `change`: a change of record sets itself, and
    `spread`: until every name server knows of it (INSYNC; Route 53 says 60 in general). `registering`: until a balancer
    asks a target for the first time; `health`: between two checks of it; `propagation`: until it, or an Elastic IP,
    does as it is told. `telling`: for so long describe calls tell of an Elastic IP what was before. `stack`: what each
    resource of a stack takes, beside its own time."""

    image: float = 0.1
    pending: float = 0.05
    checks: float = 0.05
    stopping: float = 0.05
    shutting_down: float = 0.05
    agent: float = 0.05
    lag: float = 0.0
    change: float = 0.01
    spread: float = 0.1
    registering: float = 0.05
    health: float = 0.05
    propagation: float = 0.05
    telling: float = 0.0
    stack: float = 0.02


@dataclass(frozen=True, kw_only=True)
class Network:
    """What a fleet needs to begin with. A subnet for each zone."""

    vpc: str
    subnets: Mapping[str, str]
    group: str
    image: str


@dataclass
class Ledgers:
    """What AWS keeps in mind beside the resources themselves."""

    tokens: dict[tuple[str, str, str], tuple[str, str]] = field(default_factory=dict)  # -> fingerprint, reservation
    shows: dict[str, float] = field(default_factory=dict)  # id -> from when on describe calls show it
    capacity: dict[tuple[str, str], int] = field(default_factory=dict)  # (zone, type) -> how many may run there
    vcpus: dict[tuple[str, str], int] = field(default_factory=dict)  # (account, region) -> quota
    impaired: set[str] = field(default_factory=set)
    clones: dict[str, str] = field(default_factory=dict)  # instance -> the mode in which its clones come up
    commands: dict[str, Any] = field(default_factory=dict)  # of Systems Manager
    revoked: set[str] = field(default_factory=set)  # access keys


class SimCloud:
    """The cloud, served on `url` until `close`. One a process, since moto's tables are. `port`: where the machines'
    sites listen; `programs`: what they run, if not a small site of our own; without `machines` instances are entries in
    a table alone. `page`: how many a page of an answer holds at most. `address`: where it is served, and `block`: what
    the addresses of its machines begin with; others reach it if both are addresses of this host. With `corrected` off
    it is plain moto, for tests that show the difference."""

    alive: ClassVar[SimCloud | None] = None

    def __init__(
        self,
        *,
        timings: Timings | None = None,
        machines: bool = True,
        port: int = 8080,
        programs: Programs | None = None,
        page: int = 1000,
        address: str = "127.0.0.1",
        block: str = LOOPBACK,
        corrected: bool = True,
    ) -> None:
        if SimCloud.alive is not None:
            raise RuntimeError("one cloud a process: close the other one first")
        os.environ["MOTO_EC2_LOAD_DEFAULT_AMIS"] = "false"
        from moto.moto_api._internal.models import moto_api_backend

        from simcloud.cloudformation import Stacks
        from simcloud.elbv2 import Groups
        from simcloud.speed import hasten
        from simcloud.wire import serve

        hasten()
        moto_api_backend.reset()
        self.timings = timings or Timings()
        self.page, self.port = page, port
        self.address, self.block = address, block
        self.corrected = corrected
        self.troubles = Troubles()
        self.calls: Counter[str] = Counter()  # "service:Action" -> calls
        self.spoiled: dict[str, Counter[str]] = {how: Counter() for how in ("throttled", "lost", "refused")}
        self.keys: set[str] = set()  # access keys of whoever has called
        self.ledgers = Ledgers()
        self.policies: dict[str, Mapping[str, Any]] = {}  # role -> what it may; any other may all
        self.lock = threading.RLock()  # moto's tables are not safe to write from several threads
        self.folder = Path(tempfile.mkdtemp(prefix="simcloud-"))
        self.machines = Machines(self._under("machines"), port=port, programs=programs) if machines else None
        self.disks = self._under("disks")
        self.groups = Groups(self)
        self.stacks = Stacks()
        self.balancers: Balancers | None = None
        self._claims: list[socket.socket] = []
        if corrected:
            self.troubles.limit("route53:*", size=REQUESTS, refill=REQUESTS)
        self._stop = serve(self)
        SimCloud.alive = self

    url: str = ""

    @cached_property
    def zones(self) -> Zones:
        """Of Route 53, with the name servers that answer for them."""
        from simcloud.route53 import Zones

        return Zones(self)

    @cached_property
    def addresses(self) -> Addresses:
        """Elastic IPs, and where they lead."""
        from simcloud.addresses import Addresses

        return Addresses(self)

    def _under(self, name: str) -> Path:
        made = self.folder / name
        made.mkdir()
        return made

    def close(self) -> None:
        self._stop()
        if "zones" in self.__dict__:
            self.zones.close()
        if "addresses" in self.__dict__:
            self.addresses.close()
        if self.balancers is not None:
            self.balancers.close()
        if self.machines is not None:
            self.machines.close()
        for claim in self._claims:
            claim.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        SimCloud.alive = None

    def __enter__(self) -> SimCloud:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def balancing(self) -> None:
        """Balancers are at work from now on: none is before there is something to balance."""
        from simcloud.balancer import Balancers

        with self.lock:
            if self.balancers is None:
                self.balancers = Balancers(self)

    # -- time ---------------------------------------------------------------------------------------------------------

    @staticmethod
    def now() -> float:
        return time.monotonic()

    def visible(self, id: str) -> bool:
        """Whether describe calls show it already."""
        return self.now() >= self.ledgers.shows.get(id, 0.0)

    # -- what is there ------------------------------------------------------------------------------------------------

    def network(self, *, account: str = ACCOUNT, region: str = "eu-west-1", zones: int = 2) -> Network:
        """A VPC with a subnet in each of the first zones, and an image of 8 GiB to launch from."""
        from simcloud.ec2 import base_image, ec2

        with self.lock:
            backend = ec2(account, region)
            vpc = backend.create_vpc(f"{self.block}.0.0/16")
            subnets = {}
            for letter in "abcdef"[:zones]:
                number, claim = claim_block(self.block)
                self._claims.append(claim)
                zone = f"{region}{letter}"
                part = f"{self.block}.{number}.0/24"
                subnets[zone] = backend.create_subnet(vpc.id, part, availability_zone=zone).id
            group = backend.create_security_group("fleet", "fleet", vpc_id=vpc.id)
            return Network(vpc=vpc.id, subnets=subnets, group=group.id, image=base_image(self, backend).id)

    def billable(self, account: str = ACCOUNT, region: str = "eu-west-1") -> Mapping[str, Mapping[str, Any]]:
        """Everything that costs money, from the cloud's own tables: kind -> id -> tags."""
        from simcloud.ec2 import ec2

        with self.lock:
            backend = ec2(account, region)
            instances = {each.id: each for each in backend.all_instances() if each.state != "terminated"}
            tables = {
                "instance": instances,
                "image": backend.amis,
                "snapshot": backend.snapshots,
                "volume": backend.volumes,
                "address": {each.allocation_id: each for each in backend.addresses},
            }
            self.stacks.advance()
            told: dict[str, Mapping[str, Any]] = {
                kind: {id: {tag["key"]: tag["value"] for tag in thing.get_tags()} for id, thing in table.items()}
                for kind, table in tables.items()
            }
            return {**told, "stack": {each.name: each.tags for each in self.stacks.there(account, region)}}

    def revoke_credentials(self) -> None:
        """All credentials of roles that were given out so far are expired from now on."""
        from moto.sts.models import sts_backends

        accounts = [backend for account in sts_backends.values() for backend in account.values()]
        self.ledgers.revoked |= {role.access_key_id for backend in accounts for role in backend.assumed_roles}
