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
from typing import Any, TypeVar

from providers import Caps, Finding
from providers.clients import iam
from providers.clients.aws import SETTINGS, aws
from providers.clients.rounds import Rounds, own
from providers.errors import Busy, Conflict, GuardRefused, NotFound, ProviderError, Refused, Throttled, Transient
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
from providers.traffic.joint import Coming, Going, Said

BATCH = 200  # values of one filter of DescribeInstances
POLL = 5  # seconds between looks: a balancer checks its targets every 5 to 300 s
TRIES = 3  # an advance is read and decided anew when an answer was lost
GROUP = 300.0  # seconds for which what a group is like is remembered
FRESH = 60.0  # seconds for which it is who has no name
NAMED = 3600.0  # seconds for which a name is: it changes only while it is noted how far its instance has come
BY_ADDRESS = "private-ip-address"
_OURS = SETTINGS | {"pools", "poll"}
Q = TypeVar("Q", Coming, Going)
T = TypeVar("T")


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
        # What they want to be changed in a pool, too: one look, and one call, are for all of them.
        self._comings: Rounds[Coming, Said] = Rounds(lambda asked: self._by_pool(asked, self._add))
        self._goings: Rounds[Going, Said] = Rounds(lambda asked: self._by_pool(asked, self._remove))

    @property
    def caps(self) -> Caps:
        return Caps(
            batch=BATCH,
            counts_sessions=False,
            restores_at_once=False,
            decides_together=True,
            member_tag=MEMBER,
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
            for each in self._described(vpc, BY_ADDRESS, some)
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
        by = BY_ADDRESS if group.by_address else "instance-id"
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

    def _again(self, look: Look, changed: Iterable[Target]) -> Look:
        """The group once more, right after these of its targets were changed: who is called how, and what is noted of
        them, is as before. One call."""
        told = {each["Target"]["Id"]: each for each in self._health(look.group.arn) if _at(each, look)}
        known = {each.id: each for each in (*look.targets, *changed)}
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
            self._groups[backend] = (now + GROUP, group)
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
        self._where(pool)
        return own(self._comings, Coming(pool=pool, member=replace(member, address=_address(member))))

    restore = add

    def _add(self, look: Look, asked: Sequence[Coming]) -> dict[Coming, Said]:
        """All of them, of one pool."""
        said: dict[Coming, Said] = {}
        ready: dict[Coming, Target] = {}
        new: list[Coming] = []
        for each in asked:
            try:
                target = _place_of(look, each.member)
            except ProviderError as error:
                said[each] = error
                continue
            if target is None or not target.registered:
                new.append(each)
            elif target.reason in HOPELESS:
                why = f"{each.member.name} is {target.state} in target group {look.group.name}: {target.detail}"
                said[each] = Refused(why)
            else:
                ready[each] = target
        if new:
            look, come = self._bring(look, new, said)
            ready |= come
        return {**said, **self._settle(look, ready)}

    def _bring(
        self, look: Look, asked: Sequence[Coming], said: dict[Coming, Said]
    ) -> tuple[Look, dict[Coming, Target]]:
        """Noted and registered, all those that can be: the group as it is then, and them in it. What is to be said of
        the others goes into `said`."""
        group, place = look.group, place_of(look.group, look.port)
        come: dict[Coming, Target] = {}
        back: list[str] = []
        notes: dict[str, Mapping[str, str]] = {}
        for each, instance in self._standing(group, asked, said).items():
            target = look.find(each.member.name)
            name = {MEMBER: each.member.name} if _called(group, instance) != each.member.name else {}
            comes_back = target is not None and target.state == "draining" and target.mark != "joining"
            if comes_back:  # what it was serving goes on
                back.append(instance.id)
            else:
                notes[instance.id] = {**name, place: "joining"}
            known = replace(instance, member=name.get(MEMBER, instance.member))
            self._remember(group.vpc, known)
            id = instance.address if group.by_address else instance.id
            come[each] = target_of(id, look.port, {}, known, "" if comes_back else "joining")
        if not come:
            return look, {}
        self._unmark(back, place)
        self._tag(notes)
        self._registers(group, come.values())
        after = self._again(look, come.values())
        there = {each: after.find(each.member.name) for each in come}
        if lost := [each.member.name for each, target in there.items() if target is None or not target.registered]:
            raise Transient(f"{listed(lost)}: registered in {group.name}, and not there", ambiguous=True)
        return after, {each: target for each, target in there.items() if target is not None}

    def _standing(self, group: Group, asked: Sequence[Coming], said: dict[Coming, Said]) -> dict[Coming, Instance]:
        """The instances that run at these addresses and may have these names."""
        wanted = sorted({each.member.address for each in asked})
        at = {one.address: one for some in _batched(wanted) for one in self._described(group.vpc, BY_ADDRESS, some)}
        found: dict[Coming, Instance] = {}
        for each in asked:
            name, address = each.member.name, each.member.address
            instance = at.get(address)
            if instance is None or instance.state != "running":
                why = f"no instance has the address {address}" if instance is None else f"it is {instance.state}"
                said[each] = MemberView(name=name, address="", port=0, state="absent", detail=why)
                continue
            try:
                refuse_if_hopeless(group, instance)
            except Refused as error:
                said[each] = error
                continue
            found[each] = instance
        unnamed = {each.member.name for each, instance in found.items() if _called(group, instance) != each.member.name}
        others: dict[str, list[str]] = {}
        for some in _batched(sorted(unnamed)):
            for one in self._described(group.vpc, f"tag:{MEMBER}", some):
                others.setdefault(one.member, []).append(one.id)
        for each, instance in list(found.items()):
            name = each.member.name
            why = ""
            if name in unnamed and instance.member:
                why = f"{instance.id} is {instance.member} already, not {name}: remove its tag {MEMBER} if it is not"
            elif rest := [id for id in others.get(name, ()) if id != instance.id]:
                why = f"{name} is the instance {listed(rest)}, not {instance.id}"
            if why:
                del found[each]
                said[each] = Conflict(why)
        return found

    def _settle(self, look: Look, ready: Mapping[Coming, Target]) -> dict[Coming, Said]:
        """What is noted of those that are registered, brought up to date."""
        place = place_of(look.group, look.port)
        warming: list[Target] = []
        served: list[Target] = []
        for target in ready.values():
            due = target.state == "healthy" and target.mark in ("joining", "warming") and target.until <= look.now
            if due and target.mark == "joining" and look.group.warm:
                until = float(round(look.now + look.group.warm))
                warming.append(replace(target, mark="warming", until=until))
            elif due or target.mark == "leaving":
                served.append(replace(target, mark="", until=0.0))
        self._tag({target.instance: {place: f"warming {target.until:.0f}"} for target in warming})
        self._unmark([target.instance for target in served], place)
        for target in (*warming, *served):
            look = look.with_target(target)
        return {each: look.view(target.name) for each, target in ready.items()}

    def _registers(self, group: Group, targets: Iterable[Target]) -> None:
        self._surely("elbv2", "register_targets", TargetGroupArn=group.arn, Targets=_listed_once(targets))

    # -- out ----------------------------------------------------------------------------------------------------------

    def remove(self, pool: str, name: str, *, guard: Guard, cut: bool) -> MemberView:
        """As promised; the balancer ends what still runs when the deregistration delay is over, and not before: `cut`
        waits for it all the same."""
        _valid(name)
        self._where(pool)
        return own(self._goings, Going(pool=pool, name=name, guard=guard, cut=cut))

    def _remove(self, look: Look, asked: Sequence[Going]) -> dict[Going, Said]:
        """All of them, of one pool. Each is decided as if those before it had left already."""
        place = place_of(look.group, look.port)
        said: dict[Going, Said] = {}
        leaving: dict[Going, Target] = {}
        over: list[str] = []
        for each in asked:
            try:
                target, view = look.find(each.name), look.view(each.name)
                if target is None or view.state == "absent":
                    said[each] = view
                    over += [target.instance] if target is not None else []  # it was taken back before it had served
                    continue
                if not target.never_served:
                    look.refuse_unless(each.guard, target, besides={one.id for one in leaving.values()})
            except ProviderError as error:
                said[each] = error
                continue
            if target.registered:
                leaving[each] = target if target.never_served else replace(target, mark="leaving", until=0.0)
                continue
            said[each] = view
            if view.actionable:
                over.append(target.instance)
                said[each] = MemberView(name=each.name, address="", port=0, state="absent")
        self._unmark(over, place)
        noted = [target for target in leaving.values() if target.mark == "leaving" and target.instance]
        self._tag({target.instance: {place: "leaving"} for target in noted})
        return {**said, **(self._deregister(look, leaving) if leaving else {})}

    def _deregister(self, look: Look, leaving: Mapping[Going, Target]) -> dict[Going, Said]:
        """Out, and looked at right afterwards: the others may have fallen between the look and the call, or we may have
        stood still there. Then those who relied on them are registered again."""
        group, lost = look.group, None
        try:
            targets = _listed_once(leaving.values())
            self._aws.write("elbv2", "deregister_targets", TargetGroupArn=group.arn, Targets=targets)
        except Transient as error:
            if not error.ambiguous:
                raise
            lost = error  # what is there now says whether it happened
        after = self._again(look, leaving.values())
        there = {each: after.find(each.name) for each in leaving}
        if still := [each.name for each, target in there.items() if target is not None and target.registered]:
            why = f"{listed(still)}: deregistered from {group.name}, and still there"
            raise lost or Transient(why, ambiguous=True)
        said: dict[Going, Said] = {}
        again: list[Target] = []
        for each, target in leaving.items():
            try:
                if not target.never_served:
                    after.refuse_unless(each.guard, target)
                said[each] = after.view(each.name)
            except GuardRefused as error:
                again.append(target)
                said[each] = error
        if again:
            self._registers(group, again)
            self._unmark([target.instance for target in again], place_of(group, look.port))
        return said

    # -- changing -----------------------------------------------------------------------------------------------------

    def _by_pool(self, asked: Collection[Q], act: Callable[[Look, Sequence[Q]], Mapping[Q, Said]]) -> dict[Q, Said]:
        """What threads of this process want to be changed at the same moment, decided on one look at each pool."""
        said: dict[Q, Said] = {}
        for pool in sorted({each.pool for each in asked}):
            said |= self._together([each for each in asked if each.pool == pool], act)
        return said

    def _together(self, asked: Sequence[Q], act: Callable[[Look, Sequence[Q]], Mapping[Q, Said]]) -> dict[Q, Said]:
        """What is wrong with one is not to hold up the others: where all were refused, each is asked for alone."""
        try:
            return dict(self._advance(lambda: act(self._look(asked[0].pool), asked)))
        except ProviderError as error:
            if len(asked) == 1 or isinstance(error, (Throttled, Transient)):
                return dict.fromkeys(asked, error)
        return {each: said for one in asked for each, said in self._together([one], act).items()}

    def _advance(self, act: Callable[[], T]) -> T:
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

    def _tag(self, notes: Mapping[str, Mapping[str, str]]) -> None:
        """By instance. Those of which the same is noted take one call."""
        alike: dict[tuple[tuple[str, str], ...], list[str]] = {}
        for instance, tags in notes.items():
            alike.setdefault(tuple(sorted(tags.items())), []).append(instance)
        for told, instances in alike.items():
            pairs = [{"Key": key, "Value": value} for key, value in told]
            self._surely("ec2", "create_tags", Resources=sorted(instances), Tags=pairs)

    def _unmark(self, instances: Collection[str], place: str) -> None:
        if known := sorted(filter(None, instances)):
            self._surely("ec2", "delete_tags", Resources=known, Tags=[{"Key": place}])

    def _surely(self, service: str, operation: str, **params: Any) -> None:
        """A call that made twice is as made once: where its answer was lost it is made again, which takes less than to
        look at everything anew."""
        try:
            self._aws.write(service, operation, **params)
        except Transient as error:
            if not error.ambiguous:
                raise
            self._aws.write(service, operation, **params)

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


def _place_of(look: Look, member: Member) -> Target | None:
    """The target that this member is, if it is one. `Conflict` where it cannot be."""
    group = look.group
    if member.port != look.port:
        raise Conflict(f"{member.name} has port {member.port}, pool {look.pool} has {look.port}")
    target = look.find(member.name)
    there = next((each for each in look.targets if each.address == member.address), None)
    if target is not None and target.address != member.address:
        raise Conflict(f"{member.name} of target group {group.name} is {target.address}, not {member.address}")
    if there is not None and there.name != member.name:
        raise Conflict(f"{member.address} of target group {group.name} is {there.name}, not {member.name}")
    return target


def _listed_once(targets: Iterable[Target]) -> Sequence[Raw]:
    return [{"Id": id, "Port": port} for id, port in dict.fromkeys((each.id, each.port) for each in targets)]


def _called(group: Group, instance: Instance) -> str:
    """The name that the instance has as a member: its own, or the one that its target is called by without one."""
    return instance.member or (instance.address if group.by_address else instance.id)


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
