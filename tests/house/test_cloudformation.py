"""What deploy/cloudformation promises: read by cfn-lint with AWS' own schemas, and compared with what it repeats.
AWS has run none of it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.addresses import parse
from orchestrator.api.serving import DRAIN
from orchestrator.flower import SAVE_EVERY_MS
from tests.support.redis_users import guarded_redis
from tests.support.validators import validator
from workers.lifecycle import WARM_SHUTDOWN

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "cloudformation"
PARTS = ("api", "coordinator", "worker", "flower")
# What docs/aws-policy.json leaves to be filled in, and the parameter that does it.
FILLED = {
    "SHOP": "Fleet",
    "ROLE-OF-THE-SERVERS": "ServersRole",
    "GROUP-OF-THE-FLEET": "TargetGroup",
    "eipalloc-OF-THE-FLEET": "Address",
    "ID-OF-THE-ZONE": "HostedZone",
    "www.example.com": "Name",
    "ROLE-OF-THE-STACKS": "StacksRole",
    "BUCKET-OF-THE-TEMPLATE": "TemplateBucket",
}
LONGEST_POLICY = 6144  # characters but white space: IAM's quota for a managed policy


class Loader(yaml.SafeLoader):
    """Knows the short forms of functions."""


def _function(loader: Loader, name: str, node: yaml.Node) -> Mapping[str, Any]:
    told: Any
    if isinstance(node, yaml.ScalarNode):
        told = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        told = loader.construct_sequence(node, deep=True)
    else:
        raise TypeError(f"!{name} of {node}")
    return {name if name == "Ref" else f"Fn::{name}": told}


Loader.add_multi_constructor("!", _function)


def read(text: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = yaml.load(text, Loader)  # a SafeLoader
    return found


@cache
def made() -> str:
    done = subprocess.run([FOLDER / "make-orchestrator"], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


def resources(kind: str) -> Mapping[str, Any]:
    """Of the orchestrator: their properties by name."""
    found = read(made())["Resources"]
    return {name: each["Properties"] for name, each in found.items() if each["Type"] == f"AWS::{kind}"}


def container(part: str) -> Mapping[str, Any]:
    (only,) = resources("ECS::TaskDefinition")[f"{part.capitalize()}Task"]["ContainerDefinitions"]
    return only  # type: ignore[no-any-return] # as YAML has it


@pytest.mark.debian
def test_cfn_lint_finds_nothing_in_either(tmp_path: Path) -> None:
    whole = tmp_path / "orchestrator.yaml"
    whole.write_text(made())
    words = [validator("cfn-lint"), whole, FOLDER / "target-account.yaml"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=110)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


# -- the role of an account whose servers are replaced -----------------------------------------------------------------


def target() -> Mapping[str, Any]:
    return read((FOLDER / "target-account.yaml").read_text())


def statements() -> Iterator[Mapping[str, Any]]:
    """With what docs/aws-policy.json has in the places of parameters."""
    back = {parameter: said for said, parameter in FILLED.items()}

    def plain(told: Any) -> Any:
        match told:
            case {"Ref": name}:
                return back[name]
            case {"Fn::Sub": text}:
                return re.sub(r"\$\{(\w+)\}", lambda found: back[found[1]], text)
            case dict():
                return {key: plain(each) for key, each in told.items()}
            case list():
                return [plain(each) for each in told]
        return told

    for each in target()["Resources"].values():
        if each["Type"] == "AWS::IAM::ManagedPolicy":
            yield from plain(each["Properties"]["PolicyDocument"]["Statement"])


def test_the_role_may_what_the_shipped_policy_allows_and_no_more() -> None:
    shipped = json.loads((ROOT / "docs" / "aws-policy.json").read_text())["Statement"]
    assert {each["Sid"]: each for each in statements()} == {each["Sid"]: each for each in shipped}


def test_only_the_orchestrator_comes_in_and_only_with_its_external_id() -> None:
    role = target()["Resources"]["Role"]["Properties"]
    assert role["AssumeRolePolicyDocument"]["Statement"] == [
        {
            "Effect": "Allow",
            "Principal": {"AWS": {"Ref": "Orchestrator"}},
            "Action": "sts:AssumeRole",
            "Condition": {"StringEquals": {"sts:ExternalId": {"Ref": "ExternalId"}}},
        }
    ]
    assert "Default" not in target()["Parameters"]["ExternalId"]


def test_no_policy_is_longer_than_iam_takes() -> None:
    for each in target()["Resources"].values():
        if each["Type"] == "AWS::IAM::ManagedPolicy":
            whole = json.dumps(each["Properties"]["PolicyDocument"], separators=(",", ":"))
            assert len(whole) < LONGEST_POLICY - 300, "names take the places of parameters"


# -- the orchestrator --------------------------------------------------------------------------------------------------


def test_each_part_has_in_elasticache_the_rights_that_it_has_in_any_redis(tmp_path: Path) -> None:
    told = {each["UserName"]: each["AccessString"] for each in resources("ElastiCache::User").values()}
    assert set(told) == {*PARTS, "default"}
    with guarded_redis(tmp_path) as guarded, guarded.client("admin") as admin:
        for part in PARTS:
            admin.execute_command("ACL", "SETUSER", f"new-{part}", *_rules(told[part]))
            ours, theirs = (dict(admin.acl_getuser(name)) for name in (f"new-{part}", part))
            for each in (ours, theirs):
                each.pop("passwords")
            assert ours == theirs
        admin.execute_command("ACL", "SETUSER", "nobody", *_rules(told["default"]))
        assert "off" in admin.acl_getuser("nobody")["flags"]


def _rules(text: str) -> list[str]:
    """As ACL SETUSER takes them: what is in brackets is one word."""
    return re.findall(r"\([^)]*\)|\S+", text)


def test_redis_evicts_nothing_and_has_a_replica_that_takes_over() -> None:
    (settings,) = resources("ElastiCache::ParameterGroup").values()
    assert settings["Properties"] == {"maxmemory-policy": "noeviction"}
    (redis,) = resources("ElastiCache::ReplicationGroup").values()
    assert redis["NumCacheClusters"] >= 2 and redis["AutomaticFailoverEnabled"] and redis["MultiAZEnabled"]
    assert redis["TransitEncryptionEnabled"] and redis["AtRestEncryptionEnabled"]
    assert read(made())["Resources"]["Redis"]["DeletionPolicy"] == "Snapshot"
    for part in (*PARTS, "cli"):
        (url,) = [each["Value"] for each in container(part)["Environment"] if each["Name"] == "CHANGEOVER_REDIS_URL"]
        address = parse(re.sub(r":\$\{[\w.]+Port\}", ":6379", re.sub(r"\$\{[\w.]+Address\}", "cache", url["Fn::Sub"])))
        assert address.tls is not None and address.kept_by == "replicas"
        user = "api" if part == "cli" else part
        assert address.username == user
        assert {"Name": "CHANGEOVER_REDIS_PASSWORD", "ValueFrom": {"Ref": f"{user.capitalize()}Password"}} in container(
            part
        )["Secrets"]


def test_workers_alone_may_anything_in_aws_but_take_in_people() -> None:
    roles = {name: each.get("TaskRoleArn") for name, each in resources("ECS::TaskDefinition").items()}
    assert {name: role for name, role in roles.items() if role} == {
        "WorkerTask": {"Fn::GetAtt": "WorkerRole.Arn"},
        "CliTask": {"Fn::GetAtt": "CliRole.Arn"},
    }
    (policy,) = resources("IAM::Role")["WorkerRole"]["Policies"]
    assert policy["PolicyDocument"]["Statement"] == [
        {"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": {"Ref": "TargetRoles"}}
    ]


def test_no_part_is_more_than_it_has_to_be_and_each_has_the_time_that_it_needs_to_end() -> None:
    user = re.search(r"^USER (\S+)$", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)
    volumes = re.search(r"^VOLUME (\[.*\])$", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)
    assert user is not None and volumes is not None
    for part in PARTS:
        told = container(part)
        assert told["User"] == user[1] and told["ReadonlyRootFilesystem"] is True
        assert told["LinuxParameters"]["Capabilities"] == {"Drop": ["ALL"]}
        assert {each["ContainerPath"] for each in told["MountPoints"]} == set(json.loads(volumes[1]))
    assert container("worker")["StopTimeout"] > WARM_SHUTDOWN
    assert container("api")["StopTimeout"] > DRAIN
    assert container("flower")["StopTimeout"] > SAVE_EVERY_MS / 1000
    assert all(
        each["NetworkConfiguration"]["AwsvpcConfiguration"]["AssignPublicIp"] == "DISABLED"
        for each in resources("ECS::Service").values()
    )


def test_the_entrance_hides_what_the_other_one_hides_and_speaks_tls() -> None:
    haproxy = (ROOT / "deploy" / "haproxy" / "haproxy.cfg").read_text()
    hidden = re.search(r"return status 404 .* \{ path,url_dec -m str (.*) \}", haproxy)
    assert hidden is not None
    rule = resources("ElasticLoadBalancingV2::ListenerRule")["HiddenRule"]
    (condition,) = rule["Conditions"]
    here = {path for path in hidden[1].split() if not path.startswith("/grafana/")}  # which is not here
    assert set(condition["PathPatternConfig"]["Values"]) == here
    assert [each["Protocol"] for each in resources("ElasticLoadBalancingV2::Listener").values()] == ["HTTPS"]
    assert rule["Priority"] < resources("ElasticLoadBalancingV2::ListenerRule")["FlowerRule"]["Priority"]
