"""What a target group tells of one pool, and what follows from it. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from providers.errors import Conflict, GuardRefused, Refused
from providers.traffic import Guard, MemberView

MEMBER, PLACE = "changeover:member", "changeover:pool"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,127}")
Raw = Mapping[str, Any]
Mark = Literal["", "joining", "warming", "leaving"]

# What a reason code means (API reference of ELBv2, TargetHealth), and what to do about those that no time mends.
REASONS: Mapping[str, str] = {
    "Elb.RegistrationInProgress": "the balancer is only taking it in",
    "Elb.InitialHealthChecking": "the balancer has not asked it often enough yet",
    "Elb.InternalError": "the balancer cannot say, for a trouble of its own",
    "Target.ResponseCodeMismatch": "it answers the health check with a status that the group does not expect",
    "Target.Timeout": "it does not answer the health check in time: it is slow, or a security group is in the way",
    "Target.FailedHealthChecks": "the balancer cannot connect to it, or does not understand its answer",
    "Target.DeregistrationInProgress": "it has until the group's deregistration delay is over",
    "Target.NotRegistered": "it is not in the group",
    "Target.NotInUse": "no listener leads to the group, or the balancer does not serve its zone: enable a subnet of"
    " that zone at the balancer, or let a listener forward to the group",
    "Target.InvalidState": "its instance is stopped or terminated",
    "Target.IpUnusable": "its address belongs to a load balancer: register the address of a server",
    "Target.HealthCheckDisabled": "the group's health checks are off, so nobody can tell who is well: enable them",
}
HOPELESS = frozenset({"Target.NotInUse", "Target.IpUnusable", "Target.HealthCheckDisabled"})


@dataclass(frozen=True, kw_only=True)
class Group:
    """A target group. `by_address`: its targets are addresses, not instances. `warm`: seconds of slow start; `delay`:
    seconds for which who was taken out drains."""

    arn: str
    name: str
    vpc: str
    by_address: bool
    port: int
    check: str
    balancers: tuple[str, ...]
    zones: frozenset[str]
    attributes: Mapping[str, str] = field(default_factory=dict)

    @property
    def warm(self) -> float:
        return float(self.attributes.get("slow_start.duration_seconds", 0))

    @property
    def delay(self) -> float:
        return float(self.attributes.get("deregistration_delay.timeout_seconds", 300))


@dataclass(frozen=True, kw_only=True)
class Instance:
    """What EC2 says of who stands behind a target. `member` is empty if it has no name; `marks`: by tag."""

    id: str
    address: str
    zone: str
    state: str
    member: str
    marks: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Target:
    """One target of a group at the pool's port, or an instance that has left it and is noted. `state` is ELBv2's own
    word, empty for the latter."""

    id: str
    name: str
    address: str
    port: int
    state: str
    mark: Mark = ""
    until: float = 0.0  # epoch seconds until which it is warming
    reason: str = ""
    said: str = ""
    instance: str = ""

    @property
    def registered(self) -> bool:
        return self.state not in ("", "draining")

    @property
    def serves(self) -> bool:
        return self.state == "healthy" and not self.said

    @property
    def never_served(self) -> bool:
        return self.mark == "joining" and self.state != "healthy"

    @property
    def detail(self) -> str:
        if not self.reason and not self.said:
            return ""
        return f"{REASONS.get(self.reason, self.reason)} ({', '.join(filter(None, (self.said, self.reason)))})"


@dataclass(frozen=True, kw_only=True)
class Look:
    """One pool, read. Pure: what follows from it is decided here."""

    pool: str
    group: Group
    port: int
    targets: tuple[Target, ...]
    now: float

    def find(self, name: str) -> Target | None:
        """`Conflict` where several have that name: who copied the tag has to say which."""
        found = [each for each in self.targets if each.name == name]
        if len(found) > 1:
            raise Conflict(
                f"{name} is the name of {listed(e.id for e in found)} in {self.group.name}: remove {MEMBER} at one"
            )
        return found[0] if found else None

    def with_target(self, target: Target) -> Look:
        """With what was just noted of that one."""
        return replace(self, targets=tuple(target if each.id == target.id else each for each in self.targets))

    def view(self, name: str) -> MemberView:
        found = [each for each in self.targets if each.name == name]
        if not found:
            return MemberView(name=name, address="", port=0, state="absent")
        if len(found) > 1:
            why = f"several targets have this name: {listed(each.id for each in found)}"
            return MemberView(name=name, address=found[0].address, port=self.port, state="down", detail=why)
        return self._view(found[0])

    def views(self) -> list[MemberView]:
        views = (self.view(name) for name in dict.fromkeys(each.name for each in self.targets))
        return [view for view in views if view.state != "absent"]

    def _view(self, one: Target) -> MemberView:
        view = MemberView(name=one.name, address=one.address, port=one.port, state="joining", detail=one.detail)
        match one.state, one.mark:
            case "", "leaving":
                return replace(view, state="leaving", actionable=True, detail="the balancer has let go of it")
            case "", _:
                return MemberView(name=one.name, address="", port=0, state="absent")
            case "draining", "joining":
                return replace(view, state="leaving")
            case "draining", _:
                return replace(view, state="draining")
            case "initial", _:
                return view
            case "healthy", _ if one.said:  # the balancer has turned away from its zone
                return replace(view, state="down")
            case "healthy", "joining" if self.group.warm:
                return replace(view, actionable=True, detail="it is healthy, and its slow start begins")
            case "healthy", "warming" if (left := one.until - self.now) > 0:
                return replace(view, detail=f"slow start: {left:.0f} s more until it has its full share")
            case "healthy", mark:
                return replace(view, state="serving", actionable=mark in ("joining", "warming"))
            case _, "joining":
                return view
            case _:
                return replace(view, state="down")

    def refuse_unless(self, guard: Guard, leaving: Target, *, besides: Collection[str] = ()) -> None:
        """By what the balancer finds healthy, apart from the one that leaves, and those targets that leave with it."""
        others = {one.name for one in self.targets if one.serves and one.id != leaving.id and one.id not in besides}
        missing = [self.view(name) for name in guard.serving if name not in others]
        why = ""
        if missing:
            seen = (f"{view.name} ({view.state}{f': {view.detail}' if view.detail else ''})" for view in missing)
            why = f"not healthy there: {', '.join(seen)}"
        elif len(others) < guard.min_healthy:
            why = f"only {len(others)} others are healthy, {guard.min_healthy} are needed"
        elif not others and leaving.registered:  # also where it is ill: a balancer without a healthy target uses all
            why = "no other is healthy"
        if why:
            raise GuardRefused(f"{leaving.name} stays in target group {self.group.name}: {why}")


def target_of(id: str, port: int, told: Raw, known: Instance | None, mark: str) -> Target:
    word, _, until = mark.partition(" ")
    target = Target(
        id=id,
        name=(known.member if known is not None else "") or id,
        address=(known.address if known is not None else "") or (id if not id.startswith("i-") else ""),
        port=port,
        state="",
        mark=word if word in ("joining", "warming", "leaving") else "",  # type: ignore[arg-type] # one of three
        until=float(until) if until.isdigit() else 0.0,
        instance=known.id if known is not None else "",
    )
    return with_health(target, told)


def with_health(target: Target, told: Raw) -> Target:
    """As DescribeTargetHealth tells it now; an empty answer: it is not in the group."""
    health = told.get("TargetHealth", {})
    override = (told.get("AdministrativeOverride") or {}).get("State", "")
    said = str(health.get("Description", ""))
    if override.startswith("zonal_shift"):
        said = f"the balancer has shifted away from its zone: {override}"
    return replace(target, state=str(health.get("State", "")), reason=str(health.get("Reason", "")), said=said)


def instance_of(raw: Raw) -> Instance:
    tags = {each["Key"]: each["Value"] for each in raw.get("Tags") or ()}
    member = tags.get(MEMBER, "")
    return Instance(
        id=raw["InstanceId"],
        address=raw.get("PrivateIpAddress", ""),
        zone=raw.get("Placement", {}).get("AvailabilityZone", ""),
        state=raw["State"]["Name"],
        member=member if NAME.fullmatch(member) else "",
        marks={key: value for key, value in tags.items() if key.startswith(f"{PLACE}:")},
    )


def refuse_if_hopeless(group: Group, instance: Instance) -> None:
    """What no time mends: told before anything is changed."""
    why = ""
    if not group.balancers:
        why = "no listener leads to it: nobody would ever be sent there. Let a listener forward to it"
    else:
        why = unreached(group, instance.zone, f", where {instance.id} is,")
    if why:
        raise Refused(f"target group {group.name}: {why}")


def unreached(group: Group, zone: str, who: str = "") -> str:
    """Why nobody is sent to targets in that zone; empty where users are."""
    if not group.zones or zone in group.zones:
        return ""
    return (
        f"its balancer does not serve {zone}{who} but {listed(sorted(group.zones))}: enable a subnet of that zone at "
        "the balancer"
    )


def place_of(group: Group, port: int) -> str:
    return f"{PLACE}:{group.name}:{port}"


def check_of(raw: Raw) -> str:
    """How the balancer asks its targets, in words."""
    protocol = raw.get("HealthCheckProtocol", "")
    what = f"{protocol} {raw.get('HealthCheckPath', '')}".strip()
    if protocol not in ("HTTP", "HTTPS"):
        what += " (which proves an open port only)"
    every, fails = raw.get("HealthCheckIntervalSeconds", 0), raw.get("UnhealthyThresholdCount", 0)
    return f"checked by {what} every {every} s, down after {fails} failures"


def listed(words: Iterable[str]) -> str:
    return ", ".join(words) or "none"
