"""Elastic IPs of EC2: a pool is one address at one port, and its only member is the instance that it leads to.

It can be moved, and nothing more: the moment it leads to B, every connection that is open at A through it is cut. So a
fleet file has to say that this is wanted. What EC2 cannot tell is noted in a tag of the address itself for each member,
`changeover:member:NAME` = `INSTANCE PRIVATE-ADDRESS PHASE`. A PHASE is `joining`, or `told T`: at T (epoch seconds) EC2
was told to lead the address there. An instance without a note is called by its id.

In: noted; found well at its own port; noted as told; told; and it serves once EC2 shows it there. EC2 may show for a
while what was before. Until it shows whom it was told last, nobody serves for certain, and nobody leaves. A is
`leaving` from then on, without any session, until B was seen to serve at the moment in which A is removed.

No call can move an address only if it is still where it was seen. Who was told last is noted before the call, so a
caller that stood still in between finds afterwards that somebody else was told later, and gives the address back.
"""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from providers import Caps, Finding
from providers.clients import iam
from providers.clients.aws import SETTINGS, aws
from providers.errors import Busy, Conflict, GuardRefused, NotFound, ProviderError, Refused, Transient, Unauthorized
from providers.rights import Rights
from providers.traffic import Guard, Member, MemberView, PoolCounters
from providers.traffic.health import Health, Place

BATCH = 200  # values of one filter
LAG = 30.0  # seconds for which EC2 may show what was before
TRIES = 3  # an advance is read and decided anew when an answer was lost
POLL = 1.0  # seconds between looks
NOTE = "changeover:member:"
_OURS = SETTINGS | {"pools", "check", "open_connections"}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,99}")  # with NOTE before it, a tag's key
_BACKEND = re.compile(r"eipalloc-[A-Za-z0-9-]{1,64}")
_TOLD = re.compile(r"(i-[0-9a-f]{8,32}) ([0-9.]{7,15}) (?:joining|told ([1-9][0-9]{0,11}\.[0-9]{3}))")
_ALIVE = ["pending", "running", "stopping", "stopped"]
CHOICE = (
    "traffic settings: an Elastic IP is moved in one go, which cuts every connection that is open through it: write "
    "open_connections: cut if that is what you want; elbv2 and haproxy let them end"
)
Raw = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Note:
    """`told`: when EC2 was told that this instance has the address (epoch seconds); None while it is to come."""

    instance: str
    address: str
    told: float | None = None

    @property
    def text(self) -> str:
        """The value of the tag."""
        return f"{self.instance} {self.address} " + ("joining" if self.told is None else f"told {self.told:.3f}")


@dataclass(frozen=True, kw_only=True)
class Look:
    """One address, read once. `instance` and `private` are where EC2 shows it; empty where it leads nowhere. `wrong`:
    why it can be no pool, if so; `id` is empty where it is no more. What follows from it is decided here."""

    id: str
    ip: str
    port: int
    instance: str
    private: str
    interface: str
    notes: Mapping[str, Note]
    now: float
    wrong: str = ""

    @property
    def holder(self) -> str:
        """The name of whoever EC2 shows it at."""
        mine = (name for name, note in sorted(self.notes.items()) if note.instance == self.instance)
        return next(mine, self.instance)

    @property
    def told(self) -> str:
        """The name of whoever EC2 was last told to lead it to."""
        told = [(note.told, name) for name, note in self.notes.items() if note.told is not None]
        return max(told)[1] if told else ""

    @property
    def doubt(self) -> str:
        """Why nobody knows where it leads: EC2 was told so a moment ago, and shows it elsewhere."""
        told = self.told
        if not told or told == self.holder:
            return ""
        since = self.now - (self.notes[told].told or 0.0)
        return f"EC2 was told to lead {self.ip} to {told}, and does not show it yet" if since < LAG else ""

    def names(self) -> list[str]:
        """All members: who is noted, and who has the address."""
        return sorted({*self.notes, *([self.holder] if self.instance else [])})

    def place(self, name: str) -> Place | None:
        """Address and port of this member; None for one that is unknown."""
        if self.instance and name == self.holder:
            return self.private, self.port
        note = self.notes.get(name)
        return (note.address, self.port) if note is not None else None

    def asked(self, name: str) -> Place | None:
        """Where this member is asked how it is; None for one that is neither there nor to come."""
        note = self.notes.get(name)
        gone = name != self.holder and note is not None and note.told is not None
        return None if gone else self.place(name)

    def view(self, name: str, ill: str) -> MemberView:
        """`ill`: why it is not well, as its check says; empty if it is."""
        place = self.place(name)
        if place is None:
            return MemberView(name=name, address="", port=0, state="absent", detail=self.wrong)
        view = MemberView(name=name, address=place[0], port=self.port, state="joining", detail=ill)
        if self.wrong:
            return replace(view, state="down", detail=self.wrong)
        if self.doubt and name in (self.holder, self.told):  # a restored one is to say so again: the last word counts
            return replace(view, detail=self.doubt, actionable=name == self.holder)
        if name == self.holder:
            return replace(view, state="down" if ill else "serving")
        if self.notes[name].told is None:
            return replace(view, actionable=not ill)
        return replace(view, state="leaving", actionable=True, detail="nothing leads to it any more")


class ElasticIpTraffic:
    """Settings: those of `providers.clients.aws` (`region` and the like), `open_connections: cut`, `pools` ({pool:
    {backend: ALLOCATION ID, port: NUMBER}}) and `check` (`tcp`, `none` or a path, asked of a server's own
    address; default tcp). An address is one pool, and leads to the first private address of an instance."""

    def __init__(self, settings: Mapping[str, Any], *, clock: Callable[[], float] = time.time) -> None:
        if unknown := sorted(set(settings) - _OURS):
            raise Refused(f"traffic settings: unknown {', '.join(unknown)}; known: {', '.join(sorted(_OURS))}")
        if settings.get("region") in (None, "", "default"):
            raise Refused("traffic settings: elastic_ip needs a region: write settings: {region: eu-west-1}")
        if settings.get("open_connections") != "cut":
            raise Refused(CHOICE)
        self._pools = _pools(settings.get("pools") or {})
        self._health = Health(settings.get("check", "tcp"))
        self._aws = aws({name: value for name, value in settings.items() if name in SETTINGS})
        self._clock = clock

    @property
    def caps(self) -> Caps:
        return Caps(
            batch=BATCH,
            additive=False,
            drains=False,
            takes_turns=False,
            restores_at_once=False,
            poll=POLL,
            notes=(
                "an Elastic IP moves at once: every connection that is open through it is cut when it goes to B, and "
                "again when a rollback takes it back (open_connections: cut)",
                "EC2 cannot move an address under a condition: where it leads is looked at right before and right "
                "after, and it is given back if somebody else was given it in between",
            ),
        )

    def lane(self, pool: str) -> str:
        self._where(pool)
        return f"elastic_ip:{self._aws.lane}"

    # -- looking ------------------------------------------------------------------------------------------------------

    def members(self, pool: str) -> Sequence[MemberView]:
        look = _right(self._look(pool))
        return tuple(self._views({pool: look}, [(pool, name) for name in look.names()]).values())

    def proven(self, wanted: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], MemberView]:
        return self._views(self._looks({pool for pool, _ in wanted}), wanted)

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
        """Other Elastic IPs of the same instances: each may have several, at further private addresses."""
        looks = self._looks(self._pools).values()
        found = [
            raw for some in _batched(sorted(set(addresses))) for raw in self._described("private-ip-address", some)
        ]
        # An address is used again in another network, where these servers are not.
        networks = {raw.get("VpcId") for raw in found if raw["InstanceId"] in {look.instance for look in looks}}
        ours = {raw["InstanceId"]: raw["PrivateIpAddress"] for raw in found if raw.get("VpcId") in networks}
        more: dict[str, list[str]] = {}
        for some in _batched(sorted(ours)):
            for raw in self._addresses("instance-id", some):
                if raw["AllocationId"] not in {look.id for look in looks}:
                    more.setdefault(ours[raw["InstanceId"]], []).append(f"the Elastic IP {raw['PublicIp']}")
        return more

    def _where(self, pool: str) -> tuple[str, int]:
        try:
            return self._pools[pool]
        except KeyError:
            raise NotFound(f"no pool is called {pool!r}; the fleet file has {', '.join(sorted(self._pools))}") from None

    def _look(self, pool: str) -> Look:
        return self._looks([pool])[pool]

    def _looks(self, pools: Collection[str]) -> dict[str, Look]:
        """One DescribeAddresses for 200 of them: a filter leaves out what is not there."""
        where = {pool: self._where(pool) for pool in pools}
        wanted = sorted({backend for backend, _ in where.values()})
        told = {raw["AllocationId"]: raw for some in _batched(wanted) for raw in self._addresses("allocation-id", some)}
        now = self._clock()
        found = {backend: told.get(backend, {"PublicIp": backend, "Gone": self._aws.lane}) for backend in wanted}
        return {pool: _read(found[backend], port, now) for pool, (backend, port) in where.items()}

    def _views(
        self, looks: Mapping[str, Look], wanted: Collection[tuple[str, str]]
    ) -> dict[tuple[str, str], MemberView]:
        places = {pair: looks[pair[0]].asked(pair[1]) for pair in wanted}
        ill = self._health.ask({place for place in places.values() if place is not None})
        return {
            (pool, name): looks[pool].view(name, ill[place] if place is not None else "")
            for (pool, name), place in places.items()
        }

    def _view(self, look: Look, name: str) -> MemberView:
        return self._views({"": look}, [("", name)])["", name]

    def _addresses(self, key: str, values: Sequence[str]) -> Sequence[Raw]:
        filters = [{"Name": key, "Values": list(values)}]
        return tuple(self._aws.read("ec2", "describe_addresses", Filters=filters)["Addresses"])

    def _described(self, key: str, values: Sequence[str]) -> Iterator[Raw]:
        """Instances that were not terminated; nobody else answers to an address."""
        filters = [{"Name": key, "Values": list(values)}, {"Name": "instance-state-name", "Values": _ALIVE}]
        for reservation in self._aws.pages("ec2", "describe_instances", "Reservations", Filters=filters):
            yield from reservation["Instances"]

    # -- in -----------------------------------------------------------------------------------------------------------

    def add(self, pool: str, member: Member) -> MemberView:
        _valid(member.name)
        address = _address(member)
        return self._advance(lambda: self._add(pool, replace(member, address=address)))

    restore = add

    def _add(self, pool: str, member: Member) -> MemberView:
        look, name = _right(self._look(pool)), member.name
        if member.port != look.port:
            raise Conflict(f"{name} has port {member.port}, pool {pool} has {look.port}: an address has all ports")
        known = look.place(name)
        if known is not None and known[0] != member.address:
            raise Conflict(f"{name} of {look.ip} is {known[0]}, not {member.address}")
        if known is None and look.private == member.address:
            raise Conflict(f"{member.address} of {look.ip} is {look.holder}, not {name}")
        view = self._view(look, name)
        if view.state in ("serving", "down"):
            return view
        if view.state == "joining" and name in look.notes:
            return view if self._ill(look, member) else self._move(pool, look, member)
        instance = self._instance(look, member)
        if isinstance(instance, str):
            return MemberView(name=name, address="", port=0, state="absent", detail=instance)
        note = Note(instance=instance["InstanceId"], address=member.address)
        self._tag(look, name, note)
        return self._view(replace(look, notes={**look.notes, name: note}), name)

    def _ill(self, look: Look, member: Member) -> str:
        place = (member.address, look.port)
        return self._health.ask([place])[place]

    def _move(self, pool: str, look: Look, member: Member) -> MemberView:
        """EC2 is told, and looked at again right afterwards."""
        name = member.name
        if look.instance and name != look.holder and member.instead_of and look.holder not in member.instead_of:
            raise Conflict(
                f"{look.ip} leads to {look.holder}, which is none of those whose place {name} takes: somebody else has "
                "moved it, and it stays there"
            )
        instance = self._instance(look, member)
        if isinstance(instance, str):
            return replace(self._view(look, name), actionable=False, detail=instance)
        last = look.notes[look.told].told or 0.0 if look.told else 0.0
        told = round(max(self._clock(), last + 0.001), 3)  # as it is written; later than any before, whatever the clock
        self._tag(look, name, Note(instance=instance["InstanceId"], address=member.address, told=told))
        self._aws.write(
            "ec2",
            "associate_address",
            AllocationId=look.id,
            NetworkInterfaceId=_interface(instance),
            PrivateIpAddress=member.address,
            AllowReassociation=bool(look.interface or look.doubt),  # else whoever was given it meanwhile keeps it
        )
        after = self._look(pool)
        later = after.notes.get(after.told)
        if later is not None and (later.told or 0.0) > told:
            self._move(pool, after, Member(name=after.told, address=later.address, port=look.port))
            raise Conflict(f"{look.ip} was given to {after.told} while {name} was on its way: {after.told} keeps it")
        return self._view(after, name)

    def _instance(self, look: Look, member: Member) -> Raw | str:
        """The instance that this member is; in words, why it cannot have the address now. `Refused` if never."""
        note = look.notes.get(member.name)
        known = member.name if member.name.startswith("i-") else note.instance if note is not None else ""
        found = [
            raw
            for raw in self._described("private-ip-address", [member.address])
            if raw.get("PrivateIpAddress") == member.address and known in ("", raw["InstanceId"])
        ]
        if len(found) > 1 and look.instance:  # the same address in several networks: it is in that of the other one
            networks = {raw.get("VpcId") for raw in self._described("instance-id", [look.instance])}
            found = [raw for raw in found if raw.get("VpcId") in networks]
        if len(found) > 1:
            ids = ", ".join(sorted(raw["InstanceId"] for raw in found))
            raise Conflict(f"{member.address} is the first private address of {ids}: which one is {member.name}?")
        if not found:
            return f"no instance has the address {member.address}"
        (instance,) = found
        state = instance["State"]["Name"]
        if state != "running":
            return f"it is {state}"
        for raw in self._addresses("private-ip-address", [member.address]):
            if raw.get("InstanceId") == instance["InstanceId"] and raw["AllocationId"] != look.id:
                raise Refused(f"{member.name} has the Elastic IP {raw['PublicIp']} already, and would lose it")
        return instance

    # -- out ----------------------------------------------------------------------------------------------------------

    def remove(self, pool: str, name: str, *, guard: Guard, cut: bool) -> MemberView:  # noqa: ARG002 - see there
        """As promised; the one that the address leads to stays until another has it, `cut` or not."""
        _valid(name)
        return self._advance(lambda: self._remove(pool, name, guard))

    def _remove(self, pool: str, name: str, guard: Guard) -> MemberView:
        look = self._look(pool)
        note = look.notes.get(name)
        if look.place(name) is None:
            return look.view(name, "")
        served = note is None or note.told is not None or name == look.holder
        if served and look.doubt:
            raise Busy(look.doubt)
        if served:
            self._refuse_unless(guard, look, name)
        assert note is not None  # of the holder, which stays, alone there may be none
        tag = {"Key": NOTE + name, "Value": note.text}  # gone only if it still says so
        self._aws.write("ec2", "delete_tags", Resources=[look.id], Tags=[tag])
        return self._view(self._look(pool), name)

    def _refuse_unless(self, guard: Guard, look: Look, leaving: str) -> None:
        holder = self._view(look, look.holder) if look.instance else None
        up = {look.holder} if holder is not None and holder.state == "serving" and look.holder != leaving else set()
        why = ""
        if missing := [other for other in guard.serving if other not in up]:
            why = f"{', '.join(missing)} does not serve"
        elif len(up) < guard.min_healthy:
            why = f"{len(up)} others serve, {guard.min_healthy} are needed"
        elif look.holder == leaving:
            why = "it leads there, until another one takes its place"
        if why:
            ill = f" ({holder.detail})" if holder is not None and holder.detail else ""
            raise GuardRefused(f"{leaving} stays at {look.ip}: {why}{ill}")

    # -- changing -----------------------------------------------------------------------------------------------------

    def _advance(self, act: Callable[[], MemberView]) -> MemberView:
        """An answer that was lost says nothing: it is looked at and decided anew, and telling EC2 twice is once."""
        trouble: ProviderError = Busy("never tried")
        for _ in range(TRIES):
            try:
                return act()
            except Transient as error:
                if not error.ambiguous:
                    raise
                trouble = error
        raise trouble

    def _tag(self, look: Look, name: str, note: Note) -> None:
        tags = [{"Key": NOTE + name, "Value": note.text}]
        self._aws.write("ec2", "create_tags", Resources=[look.id], Tags=tags)

    # -- a doctor's questions -----------------------------------------------------------------------------------------

    def reaches(self, pool: str, zone: str, /) -> str:  # noqa: ARG002 - an address leads to any zone of its region
        return ""

    def examine(self) -> Sequence[Finding]:
        return [finding for pool in sorted(self._pools) for finding in self._examined(pool)]

    def rights(self, *, fleet: str) -> Sequence[Rights]:  # noqa: ARG002 - the addresses are named one by one
        place = self._aws.place
        ours = [iam.arn(place, "ec2", f"elastic-ip/{backend}") for backend, _ in sorted(self._pools.values())]
        to = [iam.arn(place, "ec2", f"{kind}/*") for kind in ("instance", "network-interface")]
        changes = ["ec2:AssociateAddress", "ec2:CreateTags", "ec2:DeleteTags"]
        return iam.rights(
            place,
            [
                iam.allow("Look", ["ec2:DescribeAddresses", "ec2:DescribeInstances"]),
                iam.allow("MoveTheAddresses", changes, ours),
                iam.allow("MoveThemTo", ["ec2:AssociateAddress"], to),
            ],
        )

    def _examined(self, pool: str) -> Iterator[Finding]:
        name = f"Elastic IP {self._where(pool)[0]}"
        try:
            look = self._look(pool)
            found = list(self._described("instance-id", [look.instance])) if look.instance else []
            view = self._view(look, look.holder)
            missing = self._forbidden(look)
        except ProviderError as error:
            yield Finding(name=name, ok=False, detail=str(error), fix="mend it, or name another one in the fleet file")
            return
        fix = ""
        if look.wrong or not found:
            said, fix = look.wrong or f"{look.ip} leads to no instance", "associate it with the server, or leave it out"
        elif look.private != found[0].get("PrivateIpAddress"):
            said = f"{look.ip} leads to a further private address of {look.instance}, which a new server does not have"
            fix = f"associate it with {found[0].get('PrivateIpAddress')}"
        elif view.state != "serving":
            said, fix = f"{look.ip} leads to {look.holder}: {view.detail}", "bring it up"
        else:
            said = f"{look.ip} leads to {look.holder} at {look.private}"
        yield Finding(name=name, ok=not fix, detail=said, fix=fix)
        cut = "every connection that is open through it is cut when it moves, to B and on the way back"
        yield Finding(name=f"{name}: a move", ok=True, detail=cut)
        if missing:
            said = f"these credentials may not {', '.join(missing)}"
            yield Finding(name=f"{name}: changes", ok=False, detail=said, fix="changeover doctor FILE --policy")

    def _forbidden(self, look: Look) -> list[str]:
        """What these credentials may not do to it, by AWS' own dry runs."""
        tag = {"Resources": [look.id], "Tags": [{"Key": f"{NOTE}may-it", "Value": "1"}]}
        asked: dict[str, Mapping[str, Any]] = {"create_tags": tag, "delete_tags": tag}
        if look.interface and not look.wrong:
            where = {"NetworkInterfaceId": look.interface, "PrivateIpAddress": look.private}
            asked["associate_address"] = {"AllocationId": look.id, **where, "AllowReassociation": False}
        return [
            "ec2:" + "".join(word.capitalize() for word in operation.split("_"))
            for operation, params in asked.items()
            if not self._may(operation, params)
        ]

    def _may(self, operation: str, params: Mapping[str, Any]) -> bool:
        try:
            self._aws.dry_run("ec2", operation, **params)
        except Unauthorized:
            return False
        except (Refused, NotFound, Busy, GuardRefused):  # allowed, and not possible just now
            return True
        return True


def _read(raw: Raw, port: int, now: float) -> Look:
    notes: dict[str, Note] = {}
    for tag in raw.get("Tags") or ():
        said = _TOLD.fullmatch(tag["Value"])
        name = tag["Key"].removeprefix(NOTE)
        if tag["Key"].startswith(NOTE) and said is not None and _NAME.fullmatch(name):
            told = float(said[3]) if said[3] else None
            notes[name] = Note(instance=said[1], address=said[2], told=told)
    ip, wrong = raw["PublicIp"], ""
    if "Gone" in raw:
        wrong = f"there is no Elastic IP {ip} in {raw['Gone']}"
    elif raw.get("ServiceManaged"):
        wrong = f"{ip} belongs to {raw['ServiceManaged']}, which manages it: it is no server's"
    elif raw.get("AssociationId") and not raw.get("InstanceId"):
        wrong = (
            f"{ip} is at the network interface {raw.get('NetworkInterfaceId', '')}, which belongs to no instance (a "
            "NAT gateway, a balancer): it is no server's"
        )
    return Look(
        id=raw.get("AllocationId", ""),
        ip=ip,
        port=port,
        instance=raw.get("InstanceId") or "",
        private=raw.get("PrivateIpAddress") or "",
        interface=raw.get("NetworkInterfaceId") or "",
        notes=notes,
        now=now,
        wrong=wrong,
    )


def _right(look: Look) -> Look:
    if look.wrong:
        raise Refused(look.wrong) if look.id else NotFound(look.wrong)
    return look


def _interface(instance: Raw) -> str:
    """The network interface of its first private address."""
    first = (
        nic["NetworkInterfaceId"]
        for nic in instance["NetworkInterfaces"]
        if nic["PrivateIpAddress"] == instance["PrivateIpAddress"]
    )
    return str(next(first))


def _batched(values: Sequence[str]) -> Iterator[Sequence[str]]:
    return (values[start : start + BATCH] for start in range(0, len(values), BATCH))


def _valid(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise Refused(f"{name!r} is no name of a member")


def _address(member: Member) -> str:
    try:
        return str(ipaddress.IPv4Address(member.address))
    except ValueError:
        raise Refused(f"{member.name} has the address {member.address!r}, which is no IPv4 address") from None


def _pools(pools: object) -> dict[str, tuple[str, int]]:
    """Pool to (allocation id, port)."""
    known: dict[str, tuple[str, int]] = {}
    for pool, said in pools.items() if isinstance(pools, Mapping) else ():
        one = said if isinstance(said, Mapping) else {}
        backend, port = one.get("backend", pool), one.get("port")
        if not isinstance(backend, str) or not isinstance(port, int) or not _BACKEND.fullmatch(backend):
            raise Refused(f"traffic settings: pool {pool!r} must be {{backend: eipalloc-..., port: NUMBER}}")
        known[pool] = (backend, port)
    backends = [backend for backend, _ in known.values()]
    if twice := sorted({backend for backend in backends if backends.count(backend) > 1}):
        raise Refused(f"traffic settings: several pools are the Elastic IP {twice[0]}: all its ports move together")
    return known
