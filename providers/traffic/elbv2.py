"""Target groups of AWS' load balancers (ELBv2): a pool is a group at one port, a member is one of its targets.

ELBv2 knows instances, or addresses, and ports. What it cannot tell is noted in tags of the instances themselves:

- `changeover:member`: the member's name. A target without it is called by its id.
- `changeover:pool:GROUP:PORT`: how far it has come. `joining`: registered by us, and never seen healthy there; `warming
  T`: healthy, with less than its share until T (slow start; epoch seconds); `leaving`: taken out after it had served.
  Written before the target is registered or deregistered, and gone when it serves, or has left.

In: noted, registered, found healthy by the balancer itself; then it serves. Out, while the others are healthy: noted,
deregistered; `draining` for the group's deregistration delay; then `leaving`, until somebody who can see its
connections says so by removing it once more.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from providers import Caps, Finding
from providers.clients import iam
from providers.clients.aws import SETTINGS, aws
from providers.clients.rounds import Rounds
from providers.errors import Busy, Conflict, GuardRefused, NotFound, ProviderError, Refused, Transient
from providers.rights import Rights
from providers.traffic import Guard, Member, MemberView, PoolCounters
from providers.traffic.elbv2_look import (
    HOPELESS,
    MEMBER,
    NAME,
    Group,
    Instance,
    Look,
    Raw,
    Target,
    check_of,
    instance_of,
    listed,
    place_of,
    refuse_if_hopeless,
    target_of,
    unreached,
    with_health,
)

BATCH = 200  # values of one filter of DescribeInstances
POLL = 5  # seconds between looks: a balancer checks its targets every 5 to 300 s
TRIES = 3  # an advance is read and decided anew when an answer was lost
FRESH = 60.0  # seconds for which a group, and who has no name, is remembered
NAMED = 3600.0  # seconds for which a name is: it changes only while it is noted how far its instance has come
_OURS = SETTINGS | {"pools", "poll"}


class Elbv2Traffic:
    """Settings: those of `providers.clients.aws` (`region` and the like), `pools` ({pool: {backend: NAME or ARN of a
    target group, port: NUMBER}}) and `poll` (seconds between looks, default 5).

    A member's address is the private one of an instance in the group's network. A group may stand under several pools,
    with another port in each. What is not an EC2 instance can be shown and removed, not added.
    """

    def __init__(self, settings: Mapping[str, Any], *, clock: Callable[[], float] = time.time) -> None:
        if unknown := sorted(set(settings) - _OURS):
            raise Refused(f"traffic settings: unknown {', '.join(unknown)}; known: {', '.join(sorted(_OURS))}")
        if settings.get("region") in (None, "", "default"):
            raise Refused("traffic settings: elbv2 needs a region: write settings: {region: eu-west-1}")
        poll = settings.get("poll", POLL)
        if isinstance(poll, bool) or not isinstance(poll, int) or not 1 <= poll <= 60:
            raise Refused(f"traffic settings: poll is 1 to 60 (seconds, without a unit), not {poll!r}")
        self._poll = float(poll)
        self._pools = _pools(settings.get("pools") or {})
        self._aws = aws({name: value for name, value in settings.items() if name in SETTINGS})
        self._clock = clock
        self._lock = threading.Lock()
        self._groups: dict[str, tuple[float, Group]] = {}  # backend -> until when it is believed
        self._instances: dict[tuple[str, str], tuple[float, Instance]] = {}  # (network, target id)
        # What threads want to know at the same moment is asked once: a target's health by group, a note by place.
        self._healths = Rounds(lambda arns: {arn: self._asked_health(arn) for arn in arns})
        self._notes = Rounds(self._asked_notes)

    @property
    def caps(self) -> Caps:
        return Caps(
            batch=BATCH,
            counts_sessions=False,
            restores_at_once=False,
            poll=self._poll,
            notes=(
                "ELBv2 cannot deregister under a condition: who is healthy is looked at right before and right after, "
                "and A is registered again if the others fell in between",
                "what still runs at A when its target group's deregistration delay is over is cut by the balancer",
                "an A that is taken back has to pass the balancer's health check before it gets requests again",
            ),
        )

    def lane(self, pool: str) -> str:
        backend, _ = self._where(pool)
        return f"elbv2:{self._aws.lane}/{backend}"

    # -- looking ------------------------------------------------------------------------------------------------------

    def members(self, pool: str) -> Sequence[MemberView]:
        return self._look(pool).views()

    def proven(self, wanted: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], MemberView]:
        looks = self._looks([pool for pool, _ in wanted])
        return {(pool, name): looks[pool].view(name) for pool, name in wanted}

    idle = proven

    def counters(self, pool: str) -> PoolCounters | None:
        self._where(pool)
        return None

    def prepare(self, pool: str, _name: str) -> float:
        self._where(pool)
        return 0.0

    def settled(self, pool: str, _name: str) -> None:
        self._where(pool)

    def elsewhere(self, addresses: Collection[str]) -> Mapping[str, Sequence[str]]:
        known = [self._group(backend) for backend, _ in self._pools.values()]
        ports = {(self._group(backend).arn, port) for backend, port in self._pools.values()}
        networks = {group.vpc for group in known}
        ids = {
            each.id: each.address
            for vpc in networks
            for some in _batched(sorted(set(addresses)))
            for each in self._described(vpc, "private-ip-address", some)
        }
        found: dict[str, list[str]] = {}
        for raw in self._aws.pages("elbv2", "describe_target_groups", "TargetGroups"):
            if raw.get("TargetType") not in ("instance", "ip") or raw.get("VpcId") not in networks:
                continue
            for told in self._health(raw["TargetGroupArn"]):
                id, port = told["Target"]["Id"], int(told["Target"]["Port"])
                address = ids.get(id, id)
                if address in addresses and (raw["TargetGroupArn"], port) not in ports and _registered(told):
                    found.setdefault(address, []).append(f"target group {raw['TargetGroupName']} at port {port}")
        return found

    def _where(self, pool: str) -> tuple[str, int]:
        try:
            return self._pools[pool]
        except KeyError:
            raise NotFound(f"no pool is called {pool!r}; the fleet file has {listed(sorted(self._pools))}") from None

    def _look(self, pool: str) -> Look:
        return self._looks([pool])[pool]

    def _looks(self, pools: Iterable[str]) -> dict[str, Look]:
        """One DescribeTargetHealth for each group, and one DescribeInstances for what is noted; more only for instances
        that were never seen before."""
        where = {pool: self._where(pool) for pool in dict.fromkeys(pools)}
        groups = {backend: self._group(backend) for backend, _ in where.values()}
        healths = self._healths({group.arn for group in groups.values()}) if groups else {}
        told = {backend: healths[group.arn] for backend, group in groups.items()}
        noted = self._noted({pool: (groups[backend], port) for pool, (backend, port) in where.items()})
        for backend, group in groups.items():
            self._get_to_know(group, {each["Target"]["Id"] for each in told[backend]})
        return {
            pool: self._read(pool, groups[backend], port, told[backend], noted[pool])
            for pool, (backend, port) in where.items()
        }

    def _health(self, arn: str) -> Sequence[Raw]:
        """As it was after this call began."""
        return self._healths([arn])[arn]

    def _asked_health(self, arn: str) -> Sequence[Raw]:
        answer = self._aws.read("elbv2", "describe_target_health", TargetGroupArn=arn)
        return tuple(answer["TargetHealthDescriptions"])

    def _noted(self, pools: Mapping[str, tuple[Group, int]]) -> Mapping[str, Mapping[str, Instance]]:
        """Per pool and target id: the instances of which it is noted how far they have come."""
        keys = {pool: place_of(group, port) for pool, (group, port) in pools.items()}
        if not keys:
            return {}
        marked = self._notes(set(keys.values()))
        for noted in marked.values():
            for instance, vpc in noted:
                self._remember(vpc, instance)
        return {
            pool: {
                (instance.address if group.by_address else instance.id): instance
                for instance, vpc in marked[keys[pool]]
                if vpc == group.vpc
            }
            for pool, (group, _) in pools.items()
        }

    def _asked_notes(self, places: Collection[str]) -> Mapping[str, Sequence[tuple[Instance, str]]]:
        """By place: of which instances it is noted how far they have come there, each with its network."""
        marked = [
            found
            for some in _batched(sorted(places))
            for found in self._described_in([{"Name": "tag-key", "Values": list(some)}])
        ]
        return {place: [found for found in marked if place in found[0].marks] for place in places}

    def _get_to_know(self, group: Group, ids: Collection[str]) -> None:
        now = time.monotonic()
        with self._lock:
            known = {id for id in ids if self._instances.get((group.vpc, id), (0.0, None))[0] > now}
        by = "private-ip-address" if group.by_address else "instance-id"
        for some in _batched(sorted(set(ids) - known)):
            for instance in self._described(group.vpc, by, some):
                self._remember(group.vpc, instance)

    def _remember(self, vpc: str, instance: Instance) -> None:
        until = time.monotonic() + (NAMED if instance.member else FRESH)
        with self._lock:
            for id in (instance.id, instance.address):
                self._instances[vpc, id] = (until, instance)

    def _cached(self, vpc: str, id: str) -> Instance | None:
        with self._lock:
            return self._instances.get((vpc, id), (0.0, None))[1]

    def _described(self, vpc: str, by: str, values: Sequence[str]) -> Iterator[Instance]:
        """Those that were not terminated; nobody else answers to an address."""
        filters = [{"Name": by, "Values": list(values)}, {"Name": "vpc-id", "Values": [vpc]}]
        return (instance for instance, _ in self._described_in(filters))

    def _described_in(self, filters: Sequence[Raw]) -> Iterator[tuple[Instance, str]]:
        alive = {"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]}
        pages = self._aws.pages("ec2", "describe_instances", "Reservations", Filters=[*filters, alive], MaxResults=1000)
        for reservation in pages:
            for raw in reservation["Instances"]:
                yield instance_of(raw), raw.get("VpcId", "")

    def _read(self, pool: str, group: Group, port: int, told: Sequence[Raw], noted: Mapping[str, Instance]) -> Look:
        place = place_of(group, port)
        targets = []
        for each in told:
            id = each["Target"]["Id"]
            if int(each["Target"].get("Port", group.port)) == port:
                known = noted.get(id) or self._cached(group.vpc, id)
                targets.append(target_of(id, port, each, known, noted[id].marks[place] if id in noted else ""))
        there = {each.id for each in targets}
        targets += [
            target_of(id, port, {}, instance, instance.marks[place])
            for id, instance in noted.items()
            if id not in there
        ]
        return Look(pool=pool, group=group, port=port, targets=tuple(targets), now=self._clock())

    def _again(self, look: Look, changed: Target) -> Look:
        """The group once more, right after one of its targets was changed: who is called how, and what is noted of
        them, is as before. One call."""
        told = {each["Target"]["Id"]: each for each in self._health(look.group.arn) if _at(each, look)}
        known = {**{each.id: each for each in look.targets}, changed.id: changed}
        targets = [
            with_health(known[id], told.get(id, {}))
            if id in known
            else target_of(id, look.port, told[id], self._cached(look.group.vpc, id), "")
            for id in known.keys() | told.keys()
        ]
        return replace(look, targets=tuple(targets), now=self._clock())

    def _group(self, backend: str) -> Group:
        now = time.monotonic()
        until, group = self._groups.get(backend, (0.0, None))
        if group is None or until <= now:
            group = self._load(backend)
            self._groups[backend] = (now + FRESH, group)
        return group

    def _load(self, backend: str) -> Group:
        asked = {"TargetGroupArns": [backend]} if backend.startswith("arn:") else {"Names": [backend]}
        try:
            (raw,) = self._aws.read("elbv2", "describe_target_groups", **asked)["TargetGroups"]
        except NotFound as error:
            raise NotFound(f"there is no target group {backend} in {self._aws.lane}", code=error.code) from None
        if raw.get("TargetType", "instance") not in ("instance", "ip"):
            raise Refused(f"the targets of {raw['TargetGroupName']} are of the type {raw['TargetType']}: no servers")
        arn, balancers = raw["TargetGroupArn"], tuple(raw.get("LoadBalancerArns") or ())
        attributes = self._aws.read("elbv2", "describe_target_group_attributes", TargetGroupArn=arn)["Attributes"]
        zones: frozenset[str] = frozenset()
        if balancers:
            found = self._aws.read("elbv2", "describe_load_balancers", LoadBalancerArns=list(balancers))
            enabled = [{zone["ZoneName"] for zone in each["AvailabilityZones"]} for each in found["LoadBalancers"]]
            zones = frozenset(set.intersection(*enabled)) if enabled else zones
        return Group(
            arn=arn,
            name=raw["TargetGroupName"],
            vpc=raw.get("VpcId", ""),
            by_address=raw.get("TargetType") == "ip",
            port=int(raw["Port"]),
            check=check_of(raw),
            balancers=balancers,
            zones=zones,
            attributes={each["Key"]: each["Value"] for each in attributes},
        )

    # -- in -----------------------------------------------------------------------------------------------------------

    def add(self, pool: str, member: Member) -> MemberView:
        _valid(member.name)
        address = _address(member)
        return self._advance(lambda: self._add(self._look(pool), replace(member, address=address)))

    restore = add

    def _add(self, look: Look, member: Member) -> MemberView:
        group, place = look.group, place_of(look.group, look.port)
        if member.port != look.port:
            raise Conflict(f"{member.name} has port {member.port}, pool {look.pool} has {look.port}")
        target = look.find(member.name)
        there = next((each for each in look.targets if each.address == member.address), None)
        if target is not None and target.address != member.address:
            raise Conflict(f"{member.name} of target group {group.name} is {target.address}, not {member.address}")
        if there is not None and there.name != member.name:
            raise Conflict(f"{member.address} of target group {group.name} is {there.name}, not {member.name}")
        if target is not None and target.registered:
            if target.reason in HOPELESS:
                raise Refused(f"{member.name} is {target.state} in target group {group.name}: {target.detail}")
            return self._settle(look, target)
        instance = next(self._described(group.vpc, "private-ip-address", [member.address]), None)
        if instance is None or instance.state != "running":
            why = f"no instance has the address {member.address}" if instance is None else f"it is {instance.state}"
            return MemberView(name=member.name, address="", port=0, state="absent", detail=why)
        refuse_if_hopeless(group, instance)
        tags = self._name(group, instance, member.name)
        known = replace(instance, member=tags.get(MEMBER, instance.member))
        comes_back = target is not None and target.state == "draining" and target.mark != "joining"
        if comes_back:  # what it was serving goes on
            self._unmark(instance.id, place)
        else:
            self._tag(instance.id, {**tags, place: "joining"})
        self._remember(group.vpc, known)
        id = instance.address if group.by_address else instance.id
        changed = target_of(id, look.port, {}, known, "" if comes_back else "joining")
        self._registers(group, changed)
        after = self._again(look, changed)
        now = after.find(member.name)
        if now is None or not now.registered:
            raise Transient(f"{member.name} was registered in {group.name}, and is not there", ambiguous=True)
        return self._settle(after, now)

    def _settle(self, look: Look, target: Target) -> MemberView:
        """What is noted of one that is registered, brought up to date."""
        place = place_of(look.group, look.port)
        ready = target.state == "healthy" and target.mark in ("joining", "warming") and target.until <= look.now
        if ready and target.mark == "joining" and look.group.warm:
            until = float(round(look.now + look.group.warm))
            self._tag(target.instance, {place: f"warming {until:.0f}"})
            target = replace(target, mark="warming", until=until)
        elif ready or target.mark == "leaving":
            self._unmark(target.instance, place)
            target = replace(target, mark="", until=0.0)
        return look.with_target(target).view(target.name)

    def _name(self, group: Group, instance: Instance, name: str) -> Mapping[str, str]:
        """The tags by which the instance has this name; none where it has it already, or is called so without one."""
        mine = instance.member or (instance.address if group.by_address else instance.id)
        if mine == name:
            return {}
        if instance.member:
            raise Conflict(
                f"{instance.id} is {instance.member} already, not {name}: remove its tag {MEMBER} if it is not"
            )
        others = [each.id for each in self._described(group.vpc, f"tag:{MEMBER}", [name]) if each.id != instance.id]
        if others:
            raise Conflict(f"{name} is the instance {listed(others)}, not {instance.id}")
        return {MEMBER: name}

    def _registers(self, group: Group, target: Target) -> None:
        targets = [{"Id": target.id, "Port": target.port}]
        self._aws.write("elbv2", "register_targets", TargetGroupArn=group.arn, Targets=targets)

    # -- out ----------------------------------------------------------------------------------------------------------

    def remove(self, pool: str, name: str, *, guard: Guard, cut: bool) -> MemberView:  # noqa: ARG002 - see there
        """As promised; the balancer ends what still runs when the deregistration delay is over, and not before: `cut`
        waits for it all the same."""
        _valid(name)
        return self._advance(lambda: self._remove(self._look(pool), name, guard))

    def _remove(self, look: Look, name: str, guard: Guard) -> MemberView:
        target, place = look.find(name), place_of(look.group, look.port)
        view = look.view(name)
        if target is None or view.state == "absent":
            if target is not None:
                self._unmark(target.instance, place)  # it was taken back before it had served
            return view
        if not target.never_served:
            look.refuse_unless(guard, target)
        if not target.registered:
            if view.actionable:
                self._unmark(target.instance, place)
                return MemberView(name=name, address="", port=0, state="absent")
            return view
        if not target.never_served and target.instance:
            self._tag(target.instance, {place: "leaving"})
            target = replace(target, mark="leaving", until=0.0)
        return self._deregister(look, target, guard)

    def _deregister(self, look: Look, target: Target, guard: Guard) -> MemberView:
        """Out, and looked at right afterwards: the others may have fallen between the look and the call, or we may have
        stood still there. Then it is registered again."""
        group, lost = look.group, None
        try:
            targets = [{"Id": target.id, "Port": target.port}]
            self._aws.write("elbv2", "deregister_targets", TargetGroupArn=group.arn, Targets=targets)
        except Transient as error:
            if not error.ambiguous:
                raise
            lost = error  # what is there now says whether it happened
        after = self._again(look, target)
        now = after.find(target.name)
        if now is not None and now.registered:
            why = f"{target.name} was deregistered from {group.name}, and is still there"
            raise lost or Transient(why, ambiguous=True)
        if not target.never_served:
            try:
                after.refuse_unless(guard, target)
            except GuardRefused:
                self._registers(group, target)
                if target.instance:
                    self._unmark(target.instance, place_of(group, look.port))
                raise
        return after.view(target.name)

    # -- changing -----------------------------------------------------------------------------------------------------

    def _advance(self, act: Callable[[], MemberView]) -> MemberView:
        """An answer that was lost says nothing: what is there now says whether it happened."""
        trouble: ProviderError = Busy("never tried")
        for _ in range(TRIES):
            try:
                return act()
            except Transient as error:
                if not error.ambiguous:
                    raise
                trouble = error
        raise trouble

    def _tag(self, instance: str, tags: Mapping[str, str]) -> None:
        told = [{"Key": key, "Value": value} for key, value in tags.items()]
        self._aws.write("ec2", "create_tags", Resources=[instance], Tags=told)

    def _unmark(self, instance: str, place: str) -> None:
        self._aws.write("ec2", "delete_tags", Resources=[instance], Tags=[{"Key": place}])

    # -- a doctor's questions -----------------------------------------------------------------------------------------

    def reaches(self, pool: str, zone: str) -> str:
        backend, _ = self._where(pool)
        return unreached(self._group(backend), zone)

    def examine(self) -> Sequence[Finding]:
        return [finding for pool in sorted(self._pools) for finding in self._examined(pool)]

    def rights(self, *, fleet: str) -> Sequence[Rights]:
        place = self._aws.place
        groups = [
            backend
            if backend.startswith("arn:")
            else iam.arn(place, "elasticloadbalancing", f"targetgroup/{backend}/*")
            for backend in sorted({backend for backend, _ in self._pools.values()})
        ]
        look = ["LoadBalancers", "TargetGroupAttributes", "TargetGroups", "TargetHealth"]
        changes = ["elasticloadbalancing:DeregisterTargets", "elasticloadbalancing:RegisterTargets"]
        return iam.rights(
            place,
            [
                iam.allow(
                    "Look", ["ec2:DescribeInstances", *(f"elasticloadbalancing:Describe{each}" for each in look)]
                ),
                iam.allow("SendUsers", changes, groups),
                iam.allow(
                    "ChangeTheFleet",
                    ["ec2:CreateTags", "ec2:DeleteTags"],
                    iam.arn(place, "ec2", "instance/*"),
                    StringEquals=iam.of_fleet(fleet),
                ),
            ],
        )

    def _examined(self, pool: str) -> Iterator[Finding]:
        backend, port = self._where(pool)
        self._groups.pop(backend, None)
        name = f"target group {backend.rpartition('targetgroup/')[2].partition('/')[0]}"
        try:
            look = self._look(pool)
        except ProviderError as error:
            yield Finding(name=name, ok=False, detail=str(error), fix="mend it, or name another one in the fleet file")
            return
        group = look.group
        ill = [f"{one.name} is {one.state}: {one.detail}" for one in look.targets if one.registered and not one.serves]
        leads = (
            f"{len(group.balancers)} balancer{'' if len(group.balancers) == 1 else 's'}, {listed(sorted(group.zones))}"
        )
        if not group.balancers:
            yield Finding(name=name, ok=False, detail="no listener leads to it", fix="let a listener forward to it")
        elif ill:
            yield Finding(name=name, ok=False, detail="; ".join(ill[:5]), fix="bring them up, or deregister them")
        else:
            yield Finding(name=name, ok=True, detail=f"all targets at port {port} are healthy; {leads}; {group.check}")
        said = [f"whoever is taken out drains for {group.delay:.0f} s"]
        if group.warm:
            said.append(f"slow start takes {group.warm:.0f} s, and A stays until it is over")
        if group.attributes.get("stickiness.enabled") == "true":
            kind = group.attributes.get("stickiness.type", "")
            said.append(
                f"stickiness ({kind}): users who are bound to A stay there until it drains, then go to any other"
            )
        yield Finding(
            name=f"{name}: leaving",
            ok=group.delay > 0,
            detail="; ".join(said),
            fix="" if group.delay > 0 else "give it a deregistration delay as long as your longest request",
        )


def _at(told: Raw, look: Look) -> bool:
    return int(told["Target"].get("Port", look.group.port)) == look.port


def _registered(told: Raw) -> bool:
    return str(told["TargetHealth"]["State"]) != "draining"


def _batched(values: Sequence[str]) -> Iterator[Sequence[str]]:
    return (values[start : start + BATCH] for start in range(0, len(values), BATCH))


def _valid(name: str) -> None:
    if not NAME.fullmatch(name):
        raise Refused(f"{name!r} is no name of a member")


def _address(member: Member) -> str:
    try:
        return str(ipaddress.ip_address(member.address))
    except ValueError:
        raise Refused(f"{member.name} has the address {member.address!r}, which is no IP address") from None


def _pools(pools: object) -> dict[str, tuple[str, int]]:
    """Pool to (target group, port)."""
    known: dict[str, tuple[str, int]] = {}
    for pool, said in pools.items() if isinstance(pools, Mapping) else ():
        one = said if isinstance(said, Mapping) else {}
        group, port = one.get("backend", pool), one.get("port")
        if not isinstance(group, str) or isinstance(port, bool) or not isinstance(port, int):
            raise Refused(f"traffic settings: pool {pool!r} must be {{backend: NAME or ARN, port: NUMBER}}")
        known[pool] = (group, port)
    if twice := sorted({group for group, port in known.values() if list(known.values()).count((group, port)) > 1}):
        raise Refused(f"traffic settings: several pools are the target group {twice[0]} at one port; say it once")
    return known
