"""The policy that the doctor prints: it holds all that is called and no more, and AWS would let us work by it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from providers import errors
from providers.compute import Size
from providers.compute.aws import AwsCompute
from providers.rights import Rights, policies
from providers.traffic.route53 import Route53Traffic
from simcloud.cloud import SimCloud
from tests.contract.worlds import new_key
from tests.support.aws import POLICY, REGION, ROLE, credentials, launch, wire
from tests.support.local_host import until
from tests.support.rights import aws_providers, called, declared, shipped

GIB = 1024**3
SMALL = Size(memory=2 * GIB, disk=8 * GIB, type="t3.small")
FLEET = {"changeover-fleet": "shop"}
# Needed by no call of that name there: a role is given; a stack has tags; templates are read in S3.
IMPLIED = {"iam:PassRole", "cloudformation:TagResource", "s3:GetObject", "s3:GetObjectVersion"}
# Never refused by AWS (STS API reference, GetCallerIdentity); asked for the policy itself alone, where it may be; and
# only for a zone without its id.
UNASKED = {"sts:GetCallerIdentity", "iam:GetInstanceProfile", "route53:ListHostedZonesByName"}
STACKS = {"cloudformation:DescribeStackEvents", "cloudformation:DescribeStackResources"}
OTHERS = {"guest.cloudformation": STACKS}  # in a module that it shares, and never called for it


@pytest.mark.parametrize("name", sorted(aws_providers()))
def test_a_provider_declares_all_that_it_calls_and_nothing_else(name: str) -> None:
    with credentials():
        needs = {action for rights in declared(name) for each in rights.statements for action in each["Action"]}
    calls = called(aws_providers()[name].module) - OTHERS.get(name, set())
    assert needs - IMPLIED - UNASKED == calls - UNASKED


def test_the_policy_that_is_shipped_is_the_one_that_is_printed() -> None:
    told = "python -m tests.support.rights > docs/aws-policy.json"
    assert json.loads(POLICY.read_text()) == shipped(), told


def test_a_zone_without_an_id_is_looked_for() -> None:
    with credentials():
        traffic = Route53Traffic({"zone": "example.com", "pools": {"web": {"backend": "www", "port": 80}}})
        (rights,) = traffic.rights(fleet="shop")
    look, _, change = rights.statements
    assert "route53:ListHostedZonesByName" in look["Action"]
    names = change["Condition"]["ForAllValues:StringEquals"]["route53:ChangeResourceRecordSetsNormalizedRecordNames"]
    assert names == ["_changeover.www.example.com", "www.example.com"]


def test_each_has_a_policy_of_its_own_and_what_several_need_is_said_once() -> None:
    def one(*actions: str, **more: Any) -> Mapping[str, Any]:
        return {"Sid": "A", "Effect": "Allow", "Action": list(actions), "Resource": "*", **more}

    where = {"Condition": {"Bool": {"x": "true"}}}
    told = policies(
        [
            Rights(who="a", statements=[one("s:B"), one("s:C", **where)]),
            Rights(who="b", statements=[one("s:A")]),
            Rights(who="a", statements=[one("s:A", "s:B")]),
            Rights(who="c", statements=[]),
        ]
    )
    assert [(each["who"], [s["Action"] for s in each["policy"]["Statement"]]) for each in told] == [
        ("a", [["s:A", "s:B"], ["s:C"]]),
        ("b", [["s:A"]]),
    ]


# -- AWS, which holds the role to it -----------------------------------------------------------------------------------


class Stage:
    def __init__(self, cloud: SimCloud) -> None:
        self.cloud, self.network, self.wire = cloud, cloud.network(region=REGION), wire(cloud)
        self.compute = AwsCompute({"region": REGION, "endpoint": cloud.url, "role": ROLE})
        self.profile()

    def profile(self) -> None:
        trust = json.dumps({"Version": "2012-10-17", "Statement": []})
        self.wire.write("iam", "create_role", RoleName="servers-of-the-shop", AssumeRolePolicyDocument=trust)
        self.wire.write("iam", "create_instance_profile", InstanceProfileName="web")
        told = {"InstanceProfileName": "web", "RoleName": "servers-of-the-shop"}
        self.wire.write("iam", "add_role_to_instance_profile", **told)

    def server(self, tags: Mapping[str, str], **more: Any) -> str:
        id = launch(self.cloud, self.network, tags=tags, IamInstanceProfile={"Name": "web"}, **more)
        until(lambda: self.compute.servers([id])[id].state == "running", "it runs")
        return id

    def obey(self, *ids: str, without: str = "") -> Mapping[str, Any]:
        """The role may what it says that it needs, but for one action."""
        (mine, workers) = policies(self.compute.rights(ids, fleet="shop"))
        assert (mine["who"], workers["policy"]["Statement"][0]["Resource"]) == (ROLE, ROLE)
        statements = [
            {**each, "Action": [action for action in each["Action"] if action != without]}
            for each in mine["policy"]["Statement"]
        ]
        self.cloud.policies[ROLE] = {"Statement": statements}
        return {each["Sid"]: each for each in statements}


@pytest.fixture
def stage() -> Iterator[Stage]:
    with credentials(), SimCloud(machines=False) as cloud:
        yield Stage(cloud)


def test_a_role_with_that_policy_can_do_all_that_a_rollout_does(stage: Stage) -> None:
    old = stage.server(FLEET)
    told = stage.obey(old)
    assert told["GiveTheRoleOfTheFleet"]["Resource"] == ["arn:aws:iam::123456789012:role/servers-of-the-shop"]
    assert told["ChangeTheFleet"]["Resource"] == f"arn:aws:ec2:{REGION}:*:instance/*"
    compute, key = stage.compute, new_key()
    assert compute.obstacles([old], sizes=[SMALL]) == {}
    assert [each for each in compute.examine([old], sizes=[SMALL], at_once=1) if not each.ok] == []
    image = compute.ensure_image(new_key(), source=old)
    until(lambda: compute.taken(image.id), "its moment has passed")
    until(lambda: compute.images([image.id])[image.id].state == "available", "the image is made")
    new = compute.ensure_server(key, image=image.id, like=old, size=SMALL)
    until(lambda: compute.servers([new.id])[new.id].state == "running", "it runs")
    compute.tag(old, {"changeover:undoing": "r1", "team": None})
    compute.stop(old)
    until(lambda: compute.servers([old])[old].state == "stopped", "it has stopped")
    compute.protect(old, True)
    compute.start(old)
    compute.protect(old, False)
    with pytest.raises(errors.GuardRefused):
        compute.terminate(old)
    compute.tag(old, {"changeover:disposable": "1"})
    compute.terminate(old)
    compute.delete_image(image.id)
    compute.terminate(new.id)
    assert stage.cloud.billable()["image"].keys() == {stage.network.image}
    with pytest.raises(errors.Unauthorized):
        wire(stage.cloud, role=ROLE).write("ec2", "deregister_image", ImageId=stage.network.image)


def test_that_role_can_do_nothing_to_servers_of_others(stage: Stage) -> None:
    old, other, bare = stage.server(FLEET), stage.server({"changeover-fleet": "blog"}), stage.server({})
    stage.obey(old)
    compute = stage.compute
    for id in (other, bare):
        with pytest.raises(errors.Unauthorized):
            compute.stop(id)
        with pytest.raises(errors.Unauthorized):
            compute.tag(id, {"a": "b"})
        with pytest.raises(errors.Unauthorized):
            compute.protect(id, True)
        with pytest.raises(errors.Unauthorized):
            compute.ensure_image(new_key(), source=id)
    (line, *_) = compute.obstacles([bare], sizes=[SMALL])[bare]
    assert f"for servers with the tag changeover-fleet ({bare} has none)" in line


def test_a_server_that_is_not_given_up_cannot_be_terminated_whoever_asks(stage: Stage) -> None:
    old = stage.server(FLEET)
    stage.obey(old)
    role = wire(stage.cloud, role=ROLE)
    role.dry_run("ec2", "stop_instances", InstanceIds=[old])
    with pytest.raises(errors.Unauthorized):
        role.dry_run("ec2", "terminate_instances", InstanceIds=[old])
    stage.compute.tag(old, {"changeover:disposable": "1"})
    role.dry_run("ec2", "terminate_instances", InstanceIds=[old])


@pytest.mark.parametrize(
    "action",
    [
        "ec2:CreateImage",
        "ec2:RunInstances",
        "ec2:CreateTags",
        "ec2:DeleteTags",
        "ec2:StopInstances",
        "ec2:StartInstances",
        "ec2:ModifyInstanceAttribute",
        "iam:PassRole",
    ],
)
def test_what_the_policy_lacks_is_told_before_anything_is_made(stage: Stage, action: str) -> None:
    old = stage.server(FLEET)
    stage.obey(old, without=action)
    lines = stage.compute.obstacles([old], sizes=[SMALL])[old]
    asked = {"iam:PassRole": "ec2:RunInstances"}.get(action, action)
    assert any(f"may not {asked} (UnauthorizedOperation)" in line for line in lines)
    assert "doctor FILE --policy" in lines[0]


def test_keys_that_encrypt_the_volumes_may_be_used_and_no_others(stage: Stage) -> None:
    key = "arn:aws:kms:eu-west-1:123456789012:key/11111111-2222-3333-4444-555555555555"
    disk = {"VolumeSize": 8, "Encrypted": True, "KmsKeyId": key}
    old = stage.server(FLEET, BlockDeviceMappings=[{"DeviceName": "/dev/sda1", "Ebs": disk}])
    told = stage.obey(old)
    assert (told["UseTheKeysOfTheVolumes"]["Resource"], told["LendThemToEC2"]["Resource"]) == ([key], [key])


def test_who_may_not_look_at_roles_gets_a_policy_with_a_word_to_fill_in(stage: Stage) -> None:
    old = stage.server(FLEET)
    stage.obey(old)  # which does not let it ask for profiles
    stage.compute = AwsCompute({"region": REGION, "endpoint": stage.cloud.url, "role": ROLE})
    told = stage.obey(old)
    assert told["GiveTheRoleOfTheFleet"]["Resource"] == ["arn:aws:iam::*:role/ROLE-OF-THE-SERVERS"]


def test_servers_without_a_role_need_none_to_be_given(stage: Stage) -> None:
    old = launch(stage.cloud, stage.network, tags=FLEET)
    assert "GiveTheRoleOfTheFleet" not in stage.obey(old)
