"""What the providers that ask AWS call, read from their own source, and what they declare that they need."""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, cast

from orchestrator import operations
from orchestrator.domain.fleet import Fleet
from orchestrator.store import Store
from providers import Role, find
from providers.rights import Rights, policies
from simcloud.cloud import SimCloud
from tests.support.aws import ROLE, credentials

SERVICES = {"elbv2": "elasticloadbalancing", "service-quotas": "servicequotas"}
CLIENT = "providers.clients.aws"
CALLS = ("read", "write", "_surely", "pages", "dry_run")


def aws_providers() -> dict[str, EntryPoint]:
    """role.name -> those whose modules lead to the client of AWS."""
    points = [point for role in ("compute", "guest", "traffic") for point in entry_points(group=f"changeover.{role}")]
    ours = {f"{point.group.rpartition('.')[2]}.{point.name}": point for point in points}
    return {name: point for name, point in ours.items() if CLIENT in modules(point.module)}


@cache
def modules(name: str) -> frozenset[str]:
    """That module and all of `providers` that it imports, however far away."""
    found, new = set[str](), {name}
    while new:
        found |= new
        new = {each for module in new for each in _imported(module)} - found
    return frozenset(found)


def called(name: str) -> set[str]:
    """Actions of IAM that calls in the module and what it imports (but for the client itself) need by their names."""
    return {action for module in modules(name) - {CLIENT} for action in _called(module)}


def _called(module: str) -> Iterator[str]:
    for node in ast.walk(_tree(module)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr not in CALLS:
            continue
        told = [each.value for each in node.args[:2] if isinstance(each, ast.Constant) and isinstance(each.value, str)]
        if len(told) == 2:
            service, operation = told
            camel = "".join(word.capitalize() for word in operation.split("_"))
            yield f"{SERVICES.get(service, service)}:{camel.replace('Aws', 'AWS')}"


def _imported(module: str) -> Iterator[str]:
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("providers"):
            yield str(node.module)
            inner = (f"{node.module}.{each.name}" for each in node.names)
            yield from (each for each in inner if _file(each) is not None)


@cache
def _tree(module: str) -> ast.Module:
    file = _file(module)
    assert file is not None, module
    return ast.parse(file.read_text())


@cache
def _file(module: str) -> Path | None:
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    return Path(found.origin) if found is not None and found.origin else None


# Every provider that asks AWS, as a fleet file may name it. Words in capitals are for a reader to replace.
EVERYWHERE = {"region": "*", "endpoint": "http://127.0.0.1:1"}  # where nobody answers: nothing can be looked up
BUCKET, STACKS = "BUCKET-OF-THE-TEMPLATE", "arn:aws:iam::*:role/ROLE-OF-THE-STACKS"
GROUP, ZONE = "GROUP-OF-THE-FLEET", {"zone": "example.com", "zone_id": "ID-OF-THE-ZONE"}
FLEETS: Mapping[str, Mapping[str, Any]] = {
    "compute.aws": EVERYWHERE,
    "compute.cloudformation": {**EVERYWHERE, "template": f"s3://{BUCKET}/*", "stack_role": STACKS},
    "guest.aws": EVERYWHERE,
    "guest.cloudformation": EVERYWHERE,
    "traffic.elastic_ip": {
        **EVERYWHERE,
        "open_connections": "cut",
        "pools": {"web": {"backend": "eipalloc-OF-THE-FLEET", "port": 80}},
    },
    "traffic.elbv2": {**EVERYWHERE, "pools": {"web": {"backend": GROUP, "port": 80}}},
    "traffic.route53": {**EVERYWHERE, **ZONE, "pools": {"web": {"backend": "www", "port": 80}}},
}


def declared(name: str) -> Sequence[Rights]:
    """What the provider of that role and name says that it needs for its fleet there."""
    role, _, provider = name.partition(".")
    made = find(cast(Role, role), provider, FLEETS[name])
    ids = [["i-0123456789abcdef0"]] if role == "compute" else []
    return cast(Sequence[Rights], made.rights(*ids, fleet="SHOP"))


def held_to_its_policy(cloud: SimCloud, store: Store, ask: operations.Asker, fleet: Fleet, supervisor: Any) -> None:
    """From now on the workers may do at the simulated AWS what the doctor says that they need, and nothing else."""
    waiter = operations.Waiter(sleep=supervisor.step)
    told = operations.needed_rights(store, ask, fleet, waiter)
    cloud.policies |= {each["who"]: each["policy"] for each in told}
    assert ROLE in cloud.policies


def shipped() -> Mapping[str, Any]:
    """The policy of `docs/aws-policy.json`: that of a fleet that uses all of them."""
    with credentials():
        (whole,) = policies(rights for name in aws_providers() for rights in declared(name))
    return cast(Mapping[str, Any], whole["policy"])


if __name__ == "__main__":  # python -m tests.support.rights > docs/aws-policy.json
    sys.stdout.write(json.dumps(shipped(), indent=2) + "\n")
