"""ELBv2 as moto answers it, put right: a target is an id and a port, its health is what a real request finds, and it
drains for as long as its group says.

Sources of AWS' own behaviour: the API references of RegisterTargets, DeregisterTargets, DescribeTargetHealth and
TargetHealth; "Target groups", "Health checks" and "Register targets" of the guide of Application Load Balancers.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

from moto.core.responses import ActionResult, EmptyResult
from moto.elbv2.exceptions import ELBClientError, TargetGroupNotFoundError
from moto.elbv2.models import FakeHealthStatus, elbv2_backends
from moto.elbv2.responses import ELBV2Response

if TYPE_CHECKING:
    from simcloud.cloud import SimCloud

PAGE = 400  # target groups in one answer
MOST = 1000  # targets of a group
DELAY = "deregistration_delay.timeout_seconds"
# Where an address may be that is no instance's: RFC 1918 and RFC 6598.
OUTSIDE = tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")))
REGISTERING = ("Elb.RegistrationInProgress", "Target registration is in progress")
CHECKING = ("Elb.InitialHealthChecking", "Initial health checks in progress")


@dataclass
class Target:
    """One target of a group. `verdict` and what was `said` are of its checks; times are of the cloud's clock: `since`
    it is registered, `used` from when on requests come, `left` when it was taken out, `gone` when it has drained."""

    id: str
    port: int
    since: float
    verdict: str = "initial"
    reason: str = ""
    said: str = ""
    passes: int = 0
    fails: int = 0
    used: float = inf
    left: float = inf
    gone: float = inf

    @property
    def draining(self) -> bool:
        return self.gone < inf

    def checked(self, trouble: tuple[str, str] | None, *, passes: int, fails: int, used: float) -> None:
        """What a check has found. The first that passes ends the beginning; after that it takes `passes` in a row to be
        healthy again, and always `fails` to be unhealthy."""
        if trouble is None:
            self.passes, self.fails = self.passes + 1, 0
            if self.verdict == "initial" or (self.verdict == "unhealthy" and self.passes >= passes):
                self.verdict, self.reason, self.said, self.used = "healthy", "", "", used
        else:
            self.passes, self.fails = 0, self.fails + 1
            if self.verdict != "unhealthy" and self.fails >= fails:
                self.verdict, self.used = "unhealthy", inf
            if self.verdict == "unhealthy":
                self.reason, self.said = trouble


class Groups:
    """The targets of all groups of one cloud. Whoever calls holds the cloud's lock."""

    def __init__(self, cloud: SimCloud) -> None:
        self._cloud = cloud
        self._targets: dict[str, dict[tuple[str, int], Target]] = {}
        self.reserved: set[str] = set()  # addresses of the balancers themselves
        self.ill: dict[str, tuple[str, str]] = {}  # target id -> reason and words of a check that fails as asked for
        self._instances: dict[str, Any] = {}  # those that were looked for, by id: moto has them in a list

    def of(self, arn: str) -> dict[tuple[str, int], Target]:
        return self._targets.setdefault(arn, {})

    def all(self) -> Iterator[tuple[Any, Target]]:
        """(group, target) of those that are registered."""
        for account in elbv2_backends.values():
            for backend in account.values():
                for arn, group in list(backend.target_groups.items()):
                    self.sweep(group)
                    for target in self.of(arn).values():
                        if not target.draining:
                            yield group, target

    def sweep(self, group: Any) -> list[Target]:
        """Forgets who has drained, whom it returns; an instance that was terminated begins to."""
        now, there, over = self._cloud.now(), self.of(group.arn), []
        for key, target in list(there.items()):
            if not target.draining and self.state(group, target) in ("shutting-down", "terminated", "gone"):
                self.leave(group, target)
            if now >= target.gone:
                over.append(there.pop(key))
        return over

    def leave(self, group: Any, target: Target) -> None:
        target.left = self._cloud.now()
        target.gone = target.left + float(group.attributes[DELAY])

    def state(self, group: Any, target: Target) -> str:
        """Of the instance; `running` for what is none."""
        if group.target_type != "instance":
            return "running"
        instance = self.instance(group, target.id)
        return str(instance.state) if instance is not None else "gone"

    def instance(self, group: Any, id: str) -> Any:
        if id not in self._instances:
            found = {each.id: each for each in group.ec2_backend.all_instances()}
            if id not in found:
                return None
            self._instances |= found
        return self._instances[id]

    def address(self, group: Any, target: Target) -> str:
        if group.target_type != "instance":
            return target.id
        instance = self.instance(group, target.id)
        return str(instance.private_ip) if instance is not None else ""

    def zone(self, group: Any, target: Target) -> str:
        """`all` for an address outside of the network."""
        if group.target_type == "instance":
            instance = self.instance(group, target.id)
            return str(instance.placement.zone) if instance is not None else ""
        subnets = group.ec2_backend.describe_subnets()
        at = ipaddress.ip_address(target.id)
        inside = (
            each for each in subnets if each.vpc_id == group.vpc_id and at in ipaddress.ip_network(each.cidr_block)
        )
        return next((str(each.availability_zone) for each in inside), "all")

    def balancers(self, group: Any) -> list[Any]:
        """Those whose listeners lead to the group."""
        backend = elbv2_backends[group.account_id][group.region_name]
        return [each for each in backend.load_balancers.values() if group.arn in _leads_to(backend, each)]

    def unusable(self, group: Any, target: Target) -> tuple[str, str] | None:
        """Why no request comes to it, whatever its checks say."""
        used_by = self.balancers(group)
        if not used_by:
            return "Target.NotInUse", "Target group is not configured to receive traffic from the load balancer"
        zone = self.zone(group, target)
        if zone != "all" and all(zone not in {e.zone_name for e in each.availability_zones} for each in used_by):
            return (
                "Target.NotInUse",
                "Target is in an Availability Zone that is not enabled for the load balancer",
            )
        if target.id in self.reserved:
            return "Target.IpUnusable", "The target IP address is reserved for use by a load balancer"
        if (state := self.state(group, target)) != "running":
            return "Target.InvalidState", f"Target is in the {state} state"
        return None

    def health(self, group: Any, target: Target) -> tuple[str, str | None, str | None]:
        """State, reason and words, as DescribeTargetHealth tells them."""
        if target.draining:
            return "draining", "Target.DeregistrationInProgress", "Target deregistration is in progress"
        if (why := self.unusable(group, target)) is not None:
            return "unused", *why
        if not group.health_check_enabled:
            return "unavailable", "Target.HealthCheckDisabled", "Health checks are disabled for this target group"
        if target.verdict == "initial":
            begun = self._cloud.now() - target.since >= self._cloud.timings.registering
            return "initial", *(CHECKING if begun else REGISTERING)
        return target.verdict, target.reason or None, target.said or None

    def receive(self, group: Any) -> list[Target]:
        """To whom a new request may go: those that are healthy, a moment late as AWS' own nodes are; everybody where
        nobody is healthy."""
        now, lag = self._cloud.now(), self._cloud.timings.propagation
        there = [each for each in self.of(group.arn).values() if not self.unusable(group, each)]
        well = [each for each in there if now >= each.used and (not each.draining or now < each.left + lag)]
        return well or [each for each in there if not each.draining]


def _leads_to(backend: Any, balancer: Any) -> set[str]:
    actions = [action for listener in balancer.listeners.values() for action in listener.default_actions]
    actions += [
        action
        for listener in balancer.listeners.values()
        for rule in listener.rules.values()
        for action in rule.actions
    ]
    return {arn for action in actions for arn in backend._get_target_group_arns_from(action_data=action.data)}


class CorrectedELBv2(ELBV2Response):
    cloud: SimCloud

    def register_targets(self) -> EmptyResult:
        group, groups = self._group(), self.cloud.groups
        asked = self._asked(group)
        if not asked:
            raise ELBClientError("ValidationError", "At least one target must be specified")
        for id, _ in asked:
            self._registrable(group, id)
        there = groups.of(group.arn)
        if len(there.keys() | set(asked)) > MOST:
            raise ELBClientError("TooManyTargets", f"The maximum number of targets has been reached: {MOST}")
        for id, port in asked:
            if (id, port) not in there or there[id, port].draining:
                there[id, port] = Target(id=id, port=port, since=self.cloud.now())
        self.cloud.balancing()
        return EmptyResult()

    def _registrable(self, group: Any, id: str) -> None:
        if group.target_type == "ip":
            try:
                at = ipaddress.ip_address(id)
            except ValueError:
                raise ELBClientError("ValidationError", f"The IP address '{id}' is not a valid IPv4 address") from None
            own = ipaddress.ip_network(group.ec2_backend.get_vpc(group.vpc_id).cidr_block)
            if not any(at in block for block in (own, *OUTSIDE)):
                raise ELBClientError(
                    "InvalidTarget",
                    f"The IP address '{id}' is not within a range of IP addresses that are valid for registering",
                )
            return
        instance = self.cloud.groups.instance(group, id)
        if instance is None or instance.vpc_id != group.vpc_id:
            raise ELBClientError("InvalidTarget", f"The following targets are not in the target group VPC: '{id}'")
        if instance.state != "running":
            raise ELBClientError(
                "InvalidTarget", f"The following targets are not in a running state and cannot be registered: '{id}'"
            )

    def deregister_targets(self) -> EmptyResult:
        group, groups = self._group(), self.cloud.groups
        for key in self._asked(group):
            target = groups.of(group.arn).get(key)
            if target is not None and not target.draining:
                groups.leave(group, target)
        return EmptyResult()

    def describe_target_health(self) -> ActionResult:
        group, groups = self._group(), self.cloud.groups
        groups.sweep(group)
        there = groups.of(group.arn)
        asked = self._asked(group) if self._get_param("Targets", []) else list(there)
        told = []
        for id, port in asked:
            target = there.get((id, port))
            if target is None:
                said: tuple[str, str | None, str | None] = (
                    "unused",
                    "Target.NotRegistered",
                    "Target is not registered to the target group",
                )
            else:
                said = groups.health(group, target)
            told.append(FakeHealthStatus(id, port, self._checked_port(group, port), *said))  # type: ignore[arg-type] # a number, as AWS tells it
        return ActionResult({"TargetHealthDescriptions": told})

    @staticmethod
    def _checked_port(group: Any, port: int) -> str:
        return str(port) if group.health_check_port == "traffic-port" else str(group.health_check_port)

    def describe_target_groups(self) -> ActionResult:
        found: Sequence[Any] = list(
            self.elbv2_backend.describe_target_groups(
                self._get_param("LoadBalancerArn"),
                self._get_param("TargetGroupArns", []),
                self._get_param("Names", []),
            )
        )
        for group in found:
            group.load_balancer_arns = [each.arn for each in self.cloud.groups.balancers(group)]
        start = int(self._get_param("Marker") or 0)
        end = start + min(int(self._get_param("PageSize") or PAGE), PAGE, self.cloud.page)
        more = {"NextMarker": str(end)} if end < len(found) else {}
        return ActionResult({"TargetGroups": found[start:end], **more})

    def create_listener(self) -> ActionResult:
        made = super().create_listener()
        self.cloud.balancing()
        return made

    def _group(self) -> Any:
        group = self.elbv2_backend.target_groups.get(self._get_param("TargetGroupArn"))
        if group is None:
            raise TargetGroupNotFoundError()
        return group

    def _asked(self, group: Any) -> list[tuple[str, int]]:
        """Ids and ports; who names no port means that of the group."""
        told: Sequence[Mapping[str, Any]] = self._get_param("Targets", [])
        return [(str(each["Id"]), int(each.get("Port") or group.port)) for each in told]
