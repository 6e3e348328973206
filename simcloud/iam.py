"""What a role may do, held to as IAM does: each resource that a call touches, with its tags and those it is given.

moto looks at the names of actions alone, and knows neither resources nor conditions. Of services that are not told of
here, the names of actions are all that counts here too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

from simcloud.ec2 import ec2

if TYPE_CHECKING:
    from simcloud.cloud import SimCloud

PREFIXES = {"elbv2": "elasticloadbalancing"}
KINDS = {
    "i": "instance",
    "ami": "image",
    "snap": "snapshot",
    "vol": "volume",
    "eni": "network-interface",
    "subnet": "subnet",
    "sg": "security-group",
    "eipalloc": "elastic-ip",
}
ALWAYS = ("sts:GetCallerIdentity",)
ANY = ""  # stands for a resource that is not told of: any that a statement names will do


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One thing that a call needs: an action at a resource, with what conditions may look at."""

    action: str
    resource: str = ANY
    context: Mapping[str, Any] = field(default_factory=dict)


def denied(
    cloud: SimCloud, *, key: str, account: str, region: str, service: str, action: str, path: str, body: bytes
) -> str:
    """The action that the role behind these credentials has no right to; empty where it has all, or has no policy."""
    policy = cloud.policies.get(_role(key)) if cloud.policies else None
    if policy is None:
        return ""
    asked = _Asking(cloud, account=account, region=region).of(service, action, path, body)
    return next((f"{each.action} on {each.resource or '*'}" for each in asked if not permits(policy, each)), "")


def _role(key: str) -> str:
    from moto.sts.models import sts_backends

    backends = (backend for account in sts_backends.values() for backend in account.values())
    roles = (role for backend in backends for role in backend.assumed_roles)
    return next((str(role.role_arn) for role in roles if role.access_key_id == key), "")


def permits(policy: Mapping[str, Any], asked: Asked) -> bool:
    """By statements that allow; those that deny are not known here."""
    if asked.action in ALWAYS:
        return True
    return any(
        any(fnmatchcase(asked.action, pattern) for pattern in _listed(each["Action"]))
        and (asked.resource == ANY or any(fnmatchcase(asked.resource, at) for at in _listed(each["Resource"])))
        and (asked.resource == ANY or _holds(each.get("Condition", {}), asked.context))
        for each in policy["Statement"]
    )


def _listed(value: str | Sequence[str]) -> Sequence[str]:
    return [value] if isinstance(value, str) else value


def _holds(condition: Mapping[str, Mapping[str, Any]], context: Mapping[str, Any]) -> bool:
    return all(
        _fits(operator, context.get(name), _listed(wanted))
        for operator, keys in condition.items()
        for name, wanted in keys.items()
    )


def _fits(operator: str, there: Any, wanted: Sequence[str]) -> bool:
    match operator:
        case "StringEquals" | "Bool":
            return there in wanted
        case "StringLike":
            return there is not None and any(fnmatchcase(there, pattern) for pattern in wanted)
        case "ForAllValues:StringEquals":
            return set(there or ()) <= set(wanted)
        case "ForAnyValue:StringEquals":
            return not set(there or ()).isdisjoint(wanted)
    raise ValueError(f"the condition {operator} is not known here")


class _Asking:
    def __init__(self, cloud: SimCloud, *, account: str, region: str) -> None:
        self._cloud, self._account, self._region = cloud, account, region
        self._ec2 = ec2(account, region)

    def of(self, service: str, action: str, path: str, body: bytes) -> Iterator[Asked]:
        name = f"{PREFIXES.get(service, service)}:{action}"
        match service:
            case "ec2":
                yield from self._of_ec2(action, {k: v[0] for k, v in parse_qs(body.decode()).items()})
            case "elbv2" if action in ("RegisterTargets", "DeregisterTargets"):
                yield Asked(action=name, resource=parse_qs(body.decode())["TargetGroupArn"][0])
            case "route53" if found := re.search(r"hostedzone/([^/]+)", unquote(path)):
                yield self._of_zone(name, found[1], body.decode())
            case "ssm" if action == "SendCommand":
                told = json.loads(body)
                yield Asked(action=name, resource=f"arn:aws:ssm:{self._region}::document/{told['DocumentName']}")
                for id in told["InstanceIds"]:
                    yield self._at(name, id)
            case "elbv2" | "route53" | "ssm" | "servicequotas":
                yield Asked(action=name, resource="*")
            case _:
                yield Asked(action=name)

    @staticmethod
    def _of_zone(name: str, zone: str, body: str) -> Asked:
        names = {each.rstrip(".").lower() for each in re.findall(r"<Name>([^<]*)</Name>", body)}
        context = {
            "route53:ChangeResourceRecordSetsActions": set(re.findall(r"<Action>([^<]*)</Action>", body)),
            "route53:ChangeResourceRecordSetsNormalizedRecordNames": names,
            "route53:ChangeResourceRecordSetsRecordTypes": set(re.findall(r"<Type>([^<]*)</Type>", body)),
        }
        return Asked(action=name, resource=f"arn:aws:route53:::hostedzone/{zone}", context=context)

    # -- EC2 ----------------------------------------------------------------------------------------------------------

    def _of_ec2(self, action: str, told: Mapping[str, str]) -> Iterator[Asked]:
        name = f"ec2:{action}"
        ids = [told[key] for key in told if re.fullmatch(r"(InstanceId|ResourceId)(\.\d+)?|ImageId|SnapshotId", key)]
        match action:
            case "RunInstances":
                yield from self._launch(name, told)
            case "CreateImage":
                yield self._at(name, told["InstanceId"])
                yield from self._made(name, told, ("image", "snapshot"))
            case "DeregisterImage":
                yield self._at(name, told["ImageId"])
                if told.get("DeleteAssociatedSnapshots") == "true":
                    of = [each.id for each in self._ec2.snapshots.values() if each.from_ami == told["ImageId"]]
                    yield from (self._at("ec2:DeleteSnapshot", id) for id in of)
            case "AssociateAddress":
                yield from (self._at(name, told[key]) for key in ("AllocationId", "NetworkInterfaceId") if key in told)
            case "CreateTags" | "DeleteTags":
                tags = _tags(told, "Tag")
                yield from (self._at(name, id, tags) for id in ids)
            case _ if action.startswith(("Describe", "Get")) or not ids:
                yield Asked(action=name, resource="*")
            case _:
                yield from (self._at(name, id) for id in ids)

    def _launch(self, name: str, told: Mapping[str, str]) -> Iterator[Asked]:
        yield self._at(name, told["ImageId"])
        for key, value in told.items():
            if re.search(r"(SubnetId|SecurityGroup(Id)?\.\d+|NetworkInterfaceId)$", key):
                yield self._at(name, value)
        if "KeyName" in told:
            yield Asked(action=name, resource=self._arn("key-pair", told["KeyName"]))
        yield from self._made(name, told, ("instance", "volume", "network-interface"))
        profile = told.get("IamInstanceProfile.Arn", told.get("IamInstanceProfile.Name", ""))
        for role in self._roles(profile.rpartition("/")[2]):
            to = {"iam:PassedToService": "ec2.amazonaws.com"}
            yield Asked(action="iam:PassRole", resource=role, context=to)

    def _roles(self, profile: str) -> list[str]:
        from moto.iam.models import iam_backends

        if not profile:
            return []
        return [str(role.arn) for role in iam_backends[self._account]["aws"].get_instance_profile(profile).roles]

    def _made(self, name: str, told: Mapping[str, str], kinds: Sequence[str]) -> Iterator[Asked]:
        """What comes to be has the tags that it is given, and to give any is a right of its own."""
        for kind in kinds:
            tags: dict[str, str] = {}
            for key in [key for key in told if re.fullmatch(r"TagSpecification\.\d+\.ResourceType", key)]:
                if told[key] == kind:
                    tags |= _tags(told, f"{key.rpartition('.')[0]}.Tag")
            given = {f"aws:RequestTag/{tag}": value for tag, value in tags.items()}
            yield Asked(action=name, resource=self._arn(kind, "*"), context=given)
            if tags:
                by = {**given, "ec2:CreateAction": name.partition(":")[2]}
                yield Asked(action="ec2:CreateTags", resource=self._arn(kind, "*"), context=by)

    def _at(self, name: str, id: str, given: Mapping[str, str] | None = None) -> Asked:
        kind = KINDS.get(id.partition("-")[0], "other")
        tags = {f"aws:ResourceTag/{tag}": value for tag, value in self._ec2.tags.get(id, {}).items()}
        asked = {f"aws:RequestTag/{tag}": value for tag, value in (given or {}).items()}
        return Asked(action=name, resource=self._arn(kind, id), context={**tags, **asked})

    def _arn(self, kind: str, id: str) -> str:
        account = "" if kind in ("image", "snapshot") else self._account
        return f"arn:aws:ec2:{self._region}:{account}:{kind}/{id}"


def _tags(told: Mapping[str, str], under: str) -> dict[str, str]:
    keys = {key: value for key, value in told.items() if re.fullmatch(rf"{re.escape(under)}\.\d+\.Key", key)}
    return {value: told.get(f"{key.removesuffix('Key')}Value", "") for key, value in keys.items()}
