"""The user's own template of CloudFormation, of which each new server is made: read, and what is wrong with it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from providers.clients.aws import Aws
from providers.clients.cloudformation import INSTANCE_ID, PRIVATE_IP
from providers.errors import Refused

INLINE, WHOLE = 51_200, 1_048_576  # bytes that a call carries, and that one in S3 may have ("CloudFormation quotas")
NEEDED = ("ImageId", "InstanceType")
# What is filled in where a template asks for it: each server's own, which no fleet file could say for all of them.
OWN = ("SubnetId", "SecurityGroupIds", "AvailabilityZone", "DiskSize")


@dataclass(frozen=True, kw_only=True)
class Template:
    """`at` is where it was read, `url` what CloudFormation reads instead of a body that is too long for a call."""

    at: str
    body: str
    url: str
    parameters: Mapping[str, Mapping[str, Any]]
    outputs: Sequence[str]
    retained: Sequence[str]

    @property
    def digest(self) -> str:
        """SHA-256 of the body, in hex."""
        return hashlib.sha256(self.body.encode()).hexdigest()

    @property
    def source(self) -> Mapping[str, str]:
        """As a call names it."""
        return {"TemplateURL": self.url} if self.url else {"TemplateBody": self.body}

    def faults(self, fixed: Sequence[str]) -> list[str]:
        """Why no server can be made of it with these parameters from the fleet file, one line each."""
        asked = self.parameters
        lines = [f"it has no parameter {name}" for name in NEEDED if name not in asked]
        lines += [f"it has no output {name}" for name in (INSTANCE_ID, PRIVATE_IP) if name not in self.outputs]
        lines += [f"it has no parameter {name}, which the fleet file fills in" for name in fixed if name not in asked]
        filled = {*NEEDED, *OWN, *fixed}
        lines += [
            f"its parameter {name} has no default, and the fleet file says nothing of it (`parameters.{name}`)"
            for name, each in asked.items()
            if name not in filled and "Default" not in each
        ]
        lines += [f"{name} would outlive its stack: its DeletionPolicy keeps it" for name in self.retained]
        return [f"{self.at}: {line}" for line in lines]


def read_template(aws: Aws, where: str) -> Template:
    """`where`: an absolute path on the worker, or s3://BUCKET/KEY. `Refused` for what is no template."""
    url = ""
    if where.startswith("s3://"):
        bucket, _, key = where.removeprefix("s3://").partition("/")
        if not bucket or not key:
            raise Refused(f"{where}: write s3://BUCKET/KEY")
        raw, version = aws.object(bucket, key)
        if len(raw) > INLINE:
            url = f"https://{bucket}.s3.{aws.place.region}.amazonaws.com/{key}"
            url += f"?versionId={version}" if version else ""
    elif where.startswith("/"):
        try:
            raw = Path(where).read_bytes()
        except OSError as error:
            raise Refused(f"{where}: {error.strerror}: every worker needs the template there") from None
        if len(raw) > INLINE:
            raise Refused(f"{where} has {len(raw)} bytes, and a call carries {INLINE}: put it into S3")
    else:
        raise Refused(f"{where!r} is no place of a template: write an absolute path on the workers, or s3://BUCKET/KEY")
    if len(raw) > WHOLE:
        raise Refused(f"{where} has {len(raw)} bytes, a template has {WHOLE} at most")
    return parsed(where, raw, url)


def parsed(at: str, raw: bytes, url: str = "") -> Template:
    try:
        body = raw.decode()
        told = yaml.load(body, Loader=_Loader)  # noqa: S506 - it makes nothing but what SafeLoader makes
    except (UnicodeDecodeError, yaml.YAMLError, ValueError) as error:
        raise Refused(f"{at} is neither YAML nor JSON: {error}") from None
    if not isinstance(told, dict) or not isinstance(told.get("Resources"), dict):
        raise Refused(f"{at} has no Resources: it is no template")
    resources, parameters = _mappings(told["Resources"]), _mappings(told.get("Parameters"))
    return Template(
        at=at,
        body=body,
        url=url,
        parameters=parameters,
        outputs=tuple(_mappings(told.get("Outputs"))),
        retained=tuple(
            name for name, each in resources.items() if str(each.get("DeletionPolicy", "")).startswith("Retain")
        ),
    )


def _mappings(told: Any) -> dict[str, Mapping[str, Any]]:
    return {str(name): each for name, each in told.items() if isinstance(each, dict)} if isinstance(told, dict) else {}


class _Loader(yaml.SafeLoader):
    """The short forms of functions (`!Ref x`) are read as their arguments: nothing here asks what they come to."""


def _argument(loader: _Loader, _name: str, node: yaml.Node) -> Any:
    match node:
        case yaml.SequenceNode():
            return loader.construct_sequence(node, deep=True)
        case yaml.MappingNode():
            return loader.construct_mapping(node, deep=True)
        case _:
            return node.value


_Loader.add_multi_constructor("!", _argument)
