"""Whether an account and its networks have room for the new servers: processors by quota, addresses by subnet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from providers import Finding
from providers.clients.aws import Aws
from providers.compute import Subnet
from providers.errors import NotFound, ProviderError, Refused

BATCH = 200  # values of one filter
Raw = Mapping[str, Any]


@dataclass(frozen=True)
class Quota:
    """Of the processors (vCPUs) of all instances on demand that run, of some families of types."""

    code: str
    families: str


STANDARD = Quota("L-1216C47A", "Standard (A, C, D, H, I, M, R, T, Z)")
# By how a type's name begins, longest first ("On-Demand Instance quotas", EC2 user guide). Macs are hosts, and limited
# as such.
QUOTAS: tuple[tuple[str, Quota | None], ...] = (
    ("mac", None),
    ("hpc", Quota("L-F7808C92", "HPC")),
    ("inf", Quota("L-1945791B", "Inf")),
    ("trn", Quota("L-2C3B7624", "Trn")),
    ("dl", Quota("L-6E869C2A", "DL")),
    ("vt", Quota("L-DB2E81BA", "G and VT")),
    ("u-", Quota("L-43DA4232", "High Memory")),
    ("u6", Quota("L-43DA4232", "High Memory")),
    ("u7", Quota("L-43DA4232", "High Memory")),
    ("u8", Quota("L-43DA4232", "High Memory")),
    ("f", Quota("L-74FC7D96", "F")),
    ("g", Quota("L-DB2E81BA", "G and VT")),
    ("p", Quota("L-417A185B", "P")),
    ("x", Quota("L-7295265B", "X")),
)


def quota_of(type: str) -> Quota | None:
    """Which quota a type counts for; None for one that is not limited by processors."""
    return next((quota for begins, quota in QUOTAS if type.startswith(begins)), STANDARD)


def processors(kind: Raw) -> int:
    """vCPUs of a type, as DescribeInstanceTypes tells them: whatever an instance has switched off counts too."""
    return int(kind["VCpuInfo"]["DefaultVCpus"])


def peak(old: Sequence[int], new: int, at_once: int) -> int:
    """How many processors more than now run at the worst moment, with so many of the new kind for each of `old` (the
    processors of those that run and count for the same quota; 0 for one that does not), at most `at_once` under way.
    An old one that was replaced is stopped, and counts no
    more; the worst is if those go first that free the least."""
    kept = sorted(old, reverse=True)
    beside = (
        (done + min(at_once, len(kept) - done)) * new - sum(kept[len(kept) - done :]) for done in range(len(kept))
    )
    return max(beside, default=0)


def processors_left(
    aws: Aws, instances: Sequence[Raw], type: str, at_once: int, kinds: Callable[[set[str]], Mapping[str, Raw]]
) -> Finding:
    """`kinds`: what DescribeInstanceTypes says of types."""
    quota = quota_of(type)
    if quota is None:
        return Finding(name="aws: processors", ok=True, detail=f"{type} is not limited by processors")
    name = f"aws: processors of {quota.families} types"
    try:
        limit = int(_limit(aws, quota))
        running = list(_running(aws, quota))
    except ProviderError as error:
        return Finding(name=name, ok=False, detail=str(error), fix="let these credentials read quotas and instances")
    known = kinds({each["InstanceType"] for each in (*running, *instances)} | {type})
    used = sum(processors(known[each["InstanceType"]]) for each in running)
    old = [
        processors(known[each["InstanceType"]]) if quota_of(each["InstanceType"]) == quota else 0 for each in instances
    ]
    new = processors(known[type])
    needed = peak(old, new, at_once)
    said = f"{used} of {limit} are in use in {aws.lane}; this fleet takes {needed} more at its peak"
    if used + needed <= limit:
        return Finding(name=name, ok=True, detail=said)
    fewer = max((some for some in range(1, at_once) if used + peak(old, new, some) <= limit), default=0)
    ask = f"ask for {used + needed} (Service Quotas, EC2, {quota.code})"
    fix = f"{ask}, or set rollout.max_in_flight to {fewer}" if fewer else ask
    return Finding(name=name, ok=False, detail=said, fix=fix)


def _limit(aws: Aws, quota: Quota) -> float:
    """What holds in this account; where nobody ever changed it, AWS may know the default only."""
    asked = {"ServiceCode": "ec2", "QuotaCode": quota.code}
    try:
        told = aws.read("service-quotas", "get_service_quota", **asked)
    except NotFound:
        told = aws.read("service-quotas", "get_aws_default_service_quota", **asked)
    return float(told["Quota"]["Value"])


def _running(aws: Aws, quota: Quota) -> Iterator[Raw]:
    """All that count for it, whoever made them. Spot instances have quotas of their own."""
    up = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
    for reservation in aws.pages("ec2", "describe_instances", "Reservations", Filters=up, MaxResults=1000):
        for instance in reservation["Instances"]:
            if instance.get("InstanceLifecycle") != "spot" and quota_of(instance["InstanceType"]) == quota:
                yield instance


def subnets_of(aws: Aws, instance: Raw, among: Sequence[str]) -> list[Subnet]:
    """The instance's own subnet, then the others: all of one network. `Refused` where they are not."""
    own = str(instance["SubnetId"])
    wanted = list(dict.fromkeys((own, *among)))
    found = {each["SubnetId"]: each for some in _batched(wanted) for each in _subnets(aws, some)}
    for id in wanted:
        if id not in found:
            raise Refused(f"there is no subnet {id} in {aws.lane}")
        if found[id]["VpcId"] != instance["VpcId"]:
            raise Refused(
                f"the subnet {id} is in {found[id]['VpcId']}, {instance['InstanceId']} in {instance['VpcId']}"
            )
    return [
        Subnet(id=id, zone=found[id]["AvailabilityZone"], free=int(found[id]["AvailableIpAddressCount"]))
        for id in wanted
    ]


def addresses_left(aws: Aws, instances: Sequence[Raw], among: Sequence[str] = ()) -> list[Finding]:
    """Of each subnet that these instances are in: every new server needs as many there as its old one has, or in
    another one of `among` in that zone, and an old one that is stopped keeps its own until it is terminated."""
    needed = Counter[str]()
    for instance in instances:
        for nic in instance.get("NetworkInterfaces") or ():
            needed[nic["SubnetId"]] += len(nic.get("PrivateIpAddresses") or (nic,))
    wanted = sorted({*needed, *among})
    try:
        there = {each["SubnetId"]: each for some in _batched(wanted) for each in _subnets(aws, some)}
    except ProviderError as error:
        return [Finding(name="aws: addresses", ok=False, detail=str(error), fix="let these credentials read subnets")]
    free = {id: int(each["AvailableIpAddressCount"]) for id, each in there.items()}
    zones = {id: str(each["AvailabilityZone"]) for id, each in there.items()}
    short, spare = Counter[str](), Counter[str]()
    for id, zone in zones.items():
        short[zone] += max(0, needed[id] - free[id])
        spare[zone] += 0 if id in needed else free[id]
    found: list[Finding] = []
    for id in sorted(needed.keys() & free.keys()):
        zone = zones[id]
        said = f"{free[id]} free in {id}, the new servers take {needed[id]} while the old ones are kept"
        said += f"; {spare[zone]} more in other subnets of {zone}" if spare[zone] else ""
        ok = free[id] >= needed[id] or short[zone] <= spare[zone]
        fix = (
            f"free {short[zone] - spare[zone]} in {zone}, name another subnet of it (target.subnets), or replace fewer"
        )
        found.append(Finding(name=f"aws: addresses of {id}", ok=ok, detail=said, fix="" if ok else fix))
    return found


def _subnets(aws: Aws, ids: Sequence[str]) -> Iterator[Raw]:
    return aws.pages("ec2", "describe_subnets", "Subnets", Filters=[{"Name": "subnet-id", "Values": list(ids)}])


def _batched(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[start : start + BATCH] for start in range(0, len(ids), BATCH))
