"""Elastic IPs: as EC2 answers for them, put right where moto is wrong, and on the wire.

Each is a real address of this machine, at the port of the machines' sites. What connects there is passed on to the
instance that it is associated with. When it is moved, what is open through it is cut for the user; the instance that it
has left is told nothing, as in AWS: its own kernel goes on counting connections that are none any more.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from moto.core.responses import ActionResult
from moto.ec2.exceptions import EC2ClientError, InvalidAllocationIdError, ResourceAlreadyAssociatedError
from moto.ec2.responses import EC2Response
from moto.ec2.utils import add_tag_specification, random_eip_association_id

from simcloud.machines import claim_block

if TYPE_CHECKING:
    from simcloud.cloud import SimCloud

FILTERS = {
    "allocation-id": "AllocationId",
    "association-id": "AssociationId",
    "instance-id": "InstanceId",
    "network-interface-id": "NetworkInterfaceId",
    "private-ip-address": "PrivateIpAddress",
    "public-ip": "PublicIp",
}


@dataclass(frozen=True, kw_only=True)
class Move:
    """`at` (monotonic seconds) the address leads to another instance, or nowhere; `cut` connections were open."""

    at: float
    ip: str
    to: str
    cut: int


class Addresses:
    """What describe calls tell of each, which may be late, and where each leads, in a thread of its own until `close`.
    `moves`: each change of where users get to."""

    def __init__(self, cloud: SimCloud) -> None:
        self._cloud = cloud
        self._block, self._claim = claim_block()
        self._given = 0
        self._told: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}
        self.moves: list[Move] = []
        self._leads: dict[str, str] = {}
        self._flights: dict[str, dict[asyncio.Task[None], asyncio.StreamWriter]] = {}  # users' ends
        self._left: list[asyncio.StreamWriter] = []  # ends at instances that nobody has told
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._claim.close()

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._left:
            writer.transport.abort()

    # -- what is told -------------------------------------------------------------------------------------------------

    def fresh(self) -> str:
        """An address that nobody else on this machine has, with somebody who listens there."""
        self._given += 1
        ip = f"127.67.{self._block}.{self._given}"
        if self._cloud.machines is not None:
            asyncio.run_coroutine_threadsafe(self._listen(ip), self._loop).result(30)
        return ip

    def note(self, address: Any) -> None:
        """It has changed: describe calls tell so from now on, or later."""
        now = self._cloud.now()
        history = self._told.setdefault(address.allocation_id, [])
        if not history:
            history.append((now - self._cloud.timings.telling, {**_described(address), "Tags": []}))
        history.append((now, _described(address)))
        to = address.private_ip_address or ""
        if self._cloud.machines is not None:
            self._loop.call_soon_threadsafe(
                self._loop.call_later, self._cloud.timings.propagation, self._lead, address.public_ip, to
            )

    def told(self, address: Any) -> Mapping[str, Any]:
        until = self._cloud.now() - self._cloud.timings.telling
        history = self._told.get(address.allocation_id, [])
        known = [said for at, said in history if at <= until]
        return known[-1] if known else history[0][1] if history else _described(address)

    # -- where users get to -------------------------------------------------------------------------------------------

    def _lead(self, ip: str, to: str) -> None:
        if self._leads.get(ip, "") == to:
            return
        self._leads[ip] = to
        cut = self._flights.pop(ip, {})
        for task, writer in cut.items():
            task.cancel()  # before it sees that the user has gone, and says so to the instance
            writer.transport.abort()
        self.moves.append(Move(at=time.monotonic(), ip=ip, to=to, cut=len(cut)))

    async def _listen(self, ip: str) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = cast("asyncio.Task[None]", asyncio.current_task())
            self._tasks.add(task)
            flights = self._flights.setdefault(ip, {})
            flights[task] = writer
            try:
                with suppress(OSError, EOFError, asyncio.CancelledError):
                    await self._pass_on(ip, reader, writer)
            finally:
                flights.pop(task, None)
                self._tasks.discard(task)
                writer.transport.abort()

        self._servers.append(await asyncio.start_server(serve, ip, self._cloud.port))

    async def _pass_on(self, ip: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to = self._leads.get(ip, "")
        if not to:
            return
        back, forth = await asyncio.open_connection(to, self._cloud.port)
        try:
            await asyncio.gather(_pump(reader, forth), _pump(back, writer))
        finally:
            if self._leads.get(ip) == to:
                forth.transport.abort()
            else:
                self._left.append(forth)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while part := await reader.read(65536):
        writer.write(part)
        await writer.drain()
    with suppress(OSError):
        writer.write_eof()


def _described(address: Any) -> dict[str, Any]:
    said = {
        "PublicIp": address.public_ip,
        "AllocationId": address.allocation_id,
        "Domain": "vpc",
        "NetworkBorderGroup": address.ec2_backend.region_name,
        "Tags": [{"Key": tag["key"], "Value": tag["value"]} for tag in address.get_tags()],
    }
    if address.eni is None:
        return said
    owner = {"InstanceId": address.instance.id} if address.instance is not None else {}
    return {
        **said,
        **owner,
        "AssociationId": address.association_id,
        "NetworkInterfaceId": address.eni.id,
        "NetworkInterfaceOwnerId": address.ec2_backend.account_id,
        "PrivateIpAddress": address.private_ip_address,
    }


def freed(cloud: SimCloud, instance: Any) -> None:
    """Whoever is terminated has none any more."""
    for address in instance.ec2_backend.addresses:
        if address.instance is instance:
            _free(cloud, address)


def _free(cloud: SimCloud, address: Any) -> None:
    if address.eni is not None:
        address.eni.public_ip = None
    address.instance = address.eni = address.association_id = None
    cloud.addresses.note(address)


class CorrectedAddresses(EC2Response):
    cloud: SimCloud

    def allocate_address(self) -> ActionResult:
        self.error_on_dryrun()
        tags = add_tag_specification(self._get_param("TagSpecifications", []))
        made = self.ec2_backend.allocate_address("vpc", address=self.cloud.addresses.fresh(), tags=tags)
        self.cloud.addresses.note(made)
        said = {"PublicIp": made.public_ip, "Domain": "vpc", "AllocationId": made.allocation_id}
        return ActionResult(said)

    def associate_address(self) -> ActionResult:
        backend, id = self.ec2_backend, self._get_param("AllocationId")
        (address,) = backend.address_by_allocation([id])
        eni, private = self._interface()
        instance = eni.instance
        if instance is not None and instance.state not in ("running", "stopped"):
            raise EC2ClientError(
                "InvalidInstanceID",
                f"The {instance.state} instance '{instance.id}' is not in a valid state for this operation.",
            )
        there = (address.eni, address.private_ip_address)
        if there == (eni, private):
            self.error_on_dryrun()
            return ActionResult({"AssociationId": address.association_id})
        if address.eni is not None and not self._get_bool_param("AllowReassociation", True):
            raise ResourceAlreadyAssociatedError(id)
        self.error_on_dryrun()
        for other in backend.addresses:
            if other is not address and (other.eni, other.private_ip_address) == (eni, private):
                _free(self.cloud, other)  # an instance loses the address that it has there
        if address.eni is not None:
            address.eni.public_ip = None
        address.eni, address.instance = eni, instance
        address.association_id = random_eip_association_id()
        eni.public_ip = address.public_ip
        self.cloud.addresses.note(address)
        return ActionResult({"AssociationId": address.association_id})

    def _interface(self) -> tuple[Any, str]:
        """The network interface and private address that the call means."""
        if interface := self._get_param("NetworkInterfaceId"):
            eni = self.ec2_backend.get_network_interface(interface)
        else:
            instance = self.ec2_backend.get_instance(self._get_param("InstanceId"))
            if instance.state == "terminated" or not instance.nics:
                raise EC2ClientError("InvalidInstanceID", f"The instance '{instance.id}' is not in a valid state")
            if len(instance.nics) > 1:
                raise EC2ClientError(
                    "InvalidInstanceID",
                    f"There are multiple interfaces attached to instance '{instance.id}'. Please specify an interface "
                    "ID for the operation instead.",
                )
            eni = instance.nics[0]
        private = self._get_param("PrivateIpAddress") or eni.private_ip_address
        if private != eni.private_ip_address:
            raise EC2ClientError(
                "InvalidParameterValue", f"{private} is no private address of {eni.id} that this cloud knows"
            )
        return eni, private

    def disassociate_address(self) -> ActionResult:
        id = self._get_param("AssociationId")
        (address,) = self.ec2_backend.address_by_association([id])
        self.error_on_dryrun()
        _free(self.cloud, address)
        return ActionResult({"Return": True})

    def describe_addresses(self) -> ActionResult:
        self.error_on_dryrun()
        told = [self.cloud.addresses.told(each) for each in self.ec2_backend.addresses]
        for given, key in (("AllocationIds", "AllocationId"), ("PublicIps", "PublicIp")):
            if wanted := self._get_param(given, []):
                if unknown := set(wanted) - {each[key] for each in told}:
                    raise InvalidAllocationIdError(sorted(unknown)[0])
                told = [each for each in told if each[key] in wanted]
        for name, values in self._filters_from_querystring().items():
            told = [each for each in told if _fits(each, name, values)]
        return ActionResult({"Addresses": told})

    def create_tags(self) -> ActionResult:
        answer = super().create_tags()
        self._note_tagged()
        return answer

    def delete_tags(self) -> ActionResult:
        answer = super().delete_tags()
        self._note_tagged()
        return answer

    def _note_tagged(self) -> None:
        tagged = self._get_param("Resources", [])
        for address in self.ec2_backend.addresses:
            if address.allocation_id in tagged:
                self.cloud.addresses.note(address)


def _fits(told: Mapping[str, Any], name: str, values: Any) -> bool:
    tags = {tag["Key"]: tag["Value"] for tag in told["Tags"]}
    if name == "tag-key":
        return any(key in values for key in tags)
    if name.startswith("tag:"):
        return tags.get(name.removeprefix("tag:")) in values
    return told.get(FILTERS[name]) in values
