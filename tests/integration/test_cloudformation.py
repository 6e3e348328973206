"""Servers that are stacks: what goes into them, what happens when they fail, and what is told of what is left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from providers import Key, errors
from providers.compute import Image, Server, Size
from providers.compute.cloudformation import CloudFormationCompute
from providers.rights import policies
from simcloud.cloud import Network, SimCloud
from simcloud.faults import Fault
from tests.contract.worlds import new_key
from tests.support.aws import REGION, ROLE, TEMPLATE, credentials, launch, wire

GIB = 1024**3
SMALL = Size(memory=2 * GIB, disk=8 * GIB, type="t3.small")
MEDIUM = Size(memory=4 * GIB, disk=30 * GIB, type="t3.medium")


class Stage:
    def __init__(self, cloud: SimCloud, folder: Path) -> None:
        self.cloud, self.folder = cloud, folder
        self.network: Network = cloud.network(region=REGION)
        self.wire = wire(cloud)
        self.compute = self.anew()

    def anew(self, **settings: str) -> CloudFormationCompute:
        return CloudFormationCompute(
            {"region": REGION, "endpoint": self.cloud.url, "template": str(TEMPLATE), **settings}
        )

    def template(self, *changes: tuple[str, str]) -> str:
        """The path of the example's template, changed."""
        body = TEMPLATE.read_text()
        for was, now in changes:
            assert was in body
            body = body.replace(was, now)
        path = self.folder / "server.template"
        path.write_text(body)
        return str(path)

    def becomes(self, id: str, state: str) -> Any:
        def there() -> Any:
            found: dict[str, Server | Image] = {**self.compute.servers([id]), **self.compute.images([id])}
            return found[id] if id in found and found[id].state == state else None

        return self.until(there)

    def until(self, true: Any, seconds: float = 20.0) -> Any:
        end = time.monotonic() + seconds
        while not (found := true()):
            assert time.monotonic() < end, "it never came"
            time.sleep(0.05)
        return found

    def old(self, **tags: str) -> str:
        id = launch(self.cloud, self.network, tags=tags)
        self.becomes(id, "running")
        return id

    def image(self, old: str) -> str:
        made = self.compute.ensure_image(new_key(), source=old)
        self.becomes(made.id, "available")
        return made.id

    def made(self, key: Key | None = None, *, size: Size = SMALL, state: str = "running") -> Server:
        """A server of ours, and a new A of which it was made."""
        old = self.old(team="blue", Name="web-1")
        made = self.compute.ensure_server(key or new_key(), image=self.image(old), like=old, size=size)
        found: Server = self.becomes(made.id, state)
        return found

    def stacks(self) -> list[str]:
        return list(self.cloud.billable()["stack"])

    def instance_of(self, name: str) -> str:
        told = self.wire.read("cloudformation", "describe_stacks", StackName=name)["Stacks"][0]["Outputs"]
        return next(str(each["OutputValue"]) for each in told if each["OutputKey"] == "InstanceId")

    def asked(self, action: str) -> int:
        return self.cloud.calls[f"cloudformation:{action}"]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with credentials(), SimCloud(machines=False) as cloud:
        yield Stage(cloud, tmp_path)


def test_a_stack_gets_what_its_template_asks_for_and_the_tags_of_the_old_server(stage: Stage) -> None:
    old = launch(
        stage.cloud,
        stage.network,
        tags={"team": "blue", "Name": "web-1", "kubernetes.io/cluster/a": "owned", "consul-join": "web"},
        NetworkInterfaces=[
            {"DeviceIndex": 0, "SubnetId": list(stage.network.subnets.values())[1], "Groups": [stage.network.group]}
        ],
    )
    stage.becomes(old, "running")
    stage.compute = stage.anew(leave_tags="consul-*", **{"parameters.Owner": "ops"})
    key, image = new_key(**{"changeover:role": "target"}), stage.image(old)
    made = stage.compute.ensure_server(key, image=image, like=old, size=MEDIUM)
    assert (made.id, made.state, made.size) == (key.name, "pending", MEDIUM)
    now = stage.becomes(made.id, "running")
    assert now.size == MEDIUM
    raw = stage.wire.read("ec2", "describe_instances", InstanceIds=[stage.instance_of(made.id)])
    (instance,) = raw["Reservations"][0]["Instances"]
    assert instance["SubnetId"] == list(stage.network.subnets.values())[1]
    assert [each["GroupId"] for each in instance["SecurityGroups"]] == [stage.network.group]
    tags = {each["Key"]: each["Value"] for each in instance["Tags"]}
    assert (tags["team"], tags["Name"], tags["owner"], tags["changeover:role"]) == ("blue", "web-1", "ops", "target")
    assert not {"kubernetes.io/cluster/a", "consul-join"} & set(tags)
    assert stage.cloud.billable()["stack"][key.name]["changeover:managed"] == "1"


def test_a_stack_of_somebody_else_or_of_another_template_is_never_adopted(stage: Stage) -> None:
    old = stage.old()
    image, theirs, ours = stage.image(old), new_key(), new_key()
    values = {
        "ImageId": image,
        "InstanceType": "t3.small",
        "SubnetId": next(iter(stage.network.subnets.values())),
        "SecurityGroupIds": stage.network.group,
        "DiskSize": "8",
    }
    stage.wire.write(
        "cloudformation",
        "create_stack",
        StackName=theirs.name,
        TemplateBody=TEMPLATE.read_text(),
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in values.items()],
    )
    with pytest.raises(errors.Conflict):
        stage.compute.ensure_server(theirs, image=image, like=old, size=SMALL)
    with pytest.raises(errors.GuardRefused):
        stage.compute.terminate(theirs.name)
    stage.compute.ensure_server(ours, image=image, like=old, size=SMALL)
    before = stage.compute.recipe()
    stage.compute = stage.anew(template=stage.template(("A web server", "Another web server")))
    assert stage.compute.recipe() != before
    with pytest.raises(errors.Conflict):
        stage.compute.ensure_server(ours, image=image, like=old, size=SMALL)


def test_a_stack_that_fails_is_a_failed_server_with_the_first_reason_and_is_deleted(stage: Stage) -> None:
    stage.cloud.ledgers.capacity[f"{REGION}a", "t3.medium"] = 0
    key = new_key(mark="failed")
    failed = stage.made(key, size=MEDIUM, state="failed")
    assert "Server: Resource handler returned message" in failed.reason
    assert "sufficient t3.medium capacity" in failed.reason
    stage.until(lambda: "ROLLBACK_COMPLETE" in stage.compute.servers([failed.id])[failed.id].reason)
    assert [thing.id for thing in stage.compute.inventory({"mark": "failed"})] == [key.name]
    for call in (stage.compute.stop, stage.compute.start):
        with pytest.raises(errors.NotFound):
            call(key.name)
    stage.compute.terminate(key.name)
    stage.compute.terminate(key.name)
    stage.until(lambda: not stage.stacks())
    stage.compute.terminate(key.name)
    assert stage.compute.inventory({"mark": "failed"}) == []


def test_a_key_whose_failed_stack_is_gone_makes_no_other(stage: Stage) -> None:
    stage.cloud.stacks.failing["Server"] = "as asked for"
    old, key = stage.old(), new_key()
    image = stage.image(old)
    stage.compute.ensure_server(key, image=image, like=old, size=SMALL)
    stage.becomes(key.name, "failed")
    stage.compute.terminate(key.name)
    stage.until(lambda: not stage.stacks())
    with pytest.raises(errors.Refused):
        stage.compute.ensure_server(key, image=image, like=old, size=SMALL)


def test_a_stack_is_deleted_while_it_is_being_made(stage: Stage) -> None:
    old, key = stage.old(), new_key()
    image = stage.image(old)
    stage.cloud.timings.pending = 30
    made = stage.compute.ensure_server(key, image=image, like=old, size=SMALL)
    assert stage.becomes(made.id, "pending").reason == "its stack is being made"
    with pytest.raises(errors.NotYetVisible):
        stage.compute.stop(made.id)
    stage.compute.terminate(made.id)
    stage.until(lambda: not stage.stacks())
    assert {tags.get("changeover:managed") for tags in stage.cloud.billable()["instance"].values()} == {None}


def test_what_cannot_be_deleted_is_told_and_asked_for_again(stage: Stage) -> None:
    made = stage.made(new_key(mark="stuck"))
    instance = stage.instance_of(made.id)
    stage.cloud.stacks.stuck["Server"] = "it is in use"
    stage.compute.terminate(made.id)
    failed = stage.becomes(made.id, "failed")
    assert failed.address == made.address
    assert [thing.id for thing in stage.compute.inventory({"mark": "stuck"})] == [made.id]
    with pytest.raises(errors.Busy) as told:
        stage.compute.terminate(made.id)
    assert "Server: it is in use" in failed.reason
    for words in (failed.reason, str(told.value)):
        assert f"left: AWS::EC2::Instance {instance}" in words
    stage.becomes(made.id, "failed")
    stage.compute.tag(made.id, {"phase": "quarantine"})
    stage.compute.stop(made.id, given={"phase": "quarantine"})
    stage.cloud.stacks.stuck.clear()
    with pytest.raises(errors.Busy):
        stage.compute.terminate(made.id)
    stage.becomes(made.id, "terminated")
    stage.until(lambda: not stage.stacks())


def test_a_server_that_somebody_has_terminated_leaves_a_stack_to_be_deleted(stage: Stage) -> None:
    made = stage.made(new_key(mark="alone"))
    stage.wire.write("ec2", "terminate_instances", InstanceIds=[stage.instance_of(made.id)])
    failed = stage.becomes(made.id, "failed")
    assert f"its stack {made.id} is left" in failed.reason
    assert [thing.id for thing in stage.compute.inventory({"mark": "alone"})] == [made.id]
    with pytest.raises(errors.NotFound):
        stage.compute.stop(made.id)
    stage.compute.terminate(made.id, given={"phase": "quarantine"})
    stage.until(lambda: not stage.stacks())
    assert stage.compute.inventory({"mark": "alone"}) == []


def test_what_outlives_its_stack_is_found_and_ended(stage: Stage) -> None:
    kind = "Type: AWS::EC2::Instance"
    stage.compute = stage.anew(template=stage.template((kind, f"{kind}\n    UpdateReplacePolicy: Delete")))
    made = stage.made(new_key(mark="kept"))
    (stack,) = stage.cloud.stacks.all.values()
    stack.template["Resources"]["Server"]["DeletionPolicy"] = "Retain"  # as an update by somebody else would
    stage.wire.write("cloudformation", "delete_stack", StackName=made.id)
    stage.until(lambda: not stage.stacks())
    compute = stage.anew()
    assert compute.servers([made.id])[made.id].state == "running"
    assert [thing.id for thing in compute.inventory({"mark": "kept"})] == [made.id]
    compute.stop(made.id)
    compute.terminate(made.id)
    stage.becomes(made.id, "terminated")
    assert compute.inventory({"mark": "kept"}) == []


def test_the_server_of_a_stack_never_ends_behind_its_stack_s_back(stage: Stage) -> None:
    made = stage.made()
    instance = stage.instance_of(made.id)
    with pytest.raises(errors.GuardRefused, match=made.id):
        stage.compute.terminate(instance)
    stage.wire.write("ec2", "modify_instance_attribute", InstanceId=instance, DisableApiTermination={"Value": True})
    with pytest.raises(errors.GuardRefused):
        stage.compute.terminate(made.id)
    assert not stage.asked("DeleteStack"), "its other resources would have gone first"


def test_a_protected_stack_is_deleted_by_nobody(stage: Stage) -> None:
    made = stage.made()
    stage.compute.protect(made.id, True)
    with pytest.raises(errors.GuardRefused):
        stage.wire.write("cloudformation", "delete_stack", StackName=made.id)
    stage.compute.protect(made.id, False)
    stage.compute.terminate(made.id)
    stage.becomes(made.id, "terminated")


def test_a_stack_of_ours_can_be_the_old_server_and_its_instance_by_that_name_alone(stage: Stage) -> None:
    old = stage.made()
    instance = stage.instance_of(old.id)
    assert stage.compute.obstacles([old.id], sizes=[MEDIUM]) == {}
    told = stage.anew().obstacles([instance, old.id], sizes=[MEDIUM])
    assert told == {instance: [f"{instance} is in our stack {old.id}: write that as its id"]}
    stranger = stage.old(**{"aws:cloudformation:stack-name": "theirs"})
    assert "CloudFormation stack theirs" in stage.compute.obstacles([stranger], sizes=[MEDIUM])[stranger][0]
    key, image = new_key(), stage.compute.ensure_image(new_key(), source=old.id)
    stage.becomes(image.id, "available")
    new = stage.compute.ensure_server(key, image=image.id, like=old.id, size=MEDIUM)
    assert stage.becomes(new.id, "running").size == MEDIUM
    stage.compute.tag(old.id, {"changeover:disposable": "1"})
    stage.compute.terminate(old.id)
    stage.becomes(old.id, "terminated")
    stage.until(lambda: stage.stacks() == [new.id])


def test_many_stacks_are_looked_at_in_one_call_and_complete_ones_in_none(stage: Stage) -> None:
    old = stage.old()
    image = stage.image(old)
    keys = [new_key() for _ in range(5)]
    for key in keys:
        stage.compute.ensure_server(key, image=image, like=old, size=SMALL)
    before = stage.asked("DescribeStacks")
    assert len(stage.compute.servers([key.name for key in keys])) == len(keys)
    assert stage.asked("DescribeStacks") == before + 1
    for key in keys:
        stage.becomes(key.name, "running")
    before = stage.asked("DescribeStacks")
    assert {each.state for each in stage.compute.servers([key.name for key in keys]).values()} == {"running"}
    assert stage.asked("DescribeStacks") == before


@pytest.mark.parametrize("more", [{"code": "Throttling", "http": 400}, {"code": "InternalFailure"}, {"drop": True}])
def test_trouble_makes_no_second_stack(stage: Stage, more: dict[str, Any]) -> None:
    old, key = stage.old(), new_key()
    image = stage.image(old)
    stage.cloud.troubles.add(Fault(service="cloudformation", action="CreateStack", after=True, **more))
    with pytest.raises((errors.Throttled, errors.Transient)):
        stage.compute.ensure_server(key, image=image, like=old, size=SMALL)
    assert stage.compute.ensure_server(key, image=image, like=old, size=SMALL).id == key.name
    assert stage.stacks() == [key.name]


def test_a_stack_that_shows_late_is_waited_for(stage: Stage) -> None:
    old, key = stage.old(), new_key()
    image = stage.image(old)
    stage.cloud.timings.lag = 1.0
    for compute in (stage.anew(), stage.compute):  # to both CloudFormation says the same for the same token
        assert compute.ensure_server(key, image=image, like=old, size=SMALL).state == "pending"
    with pytest.raises(errors.NotYetVisible):  # and nothing of the sort to whoever asks with another one
        stage.compute.ensure_server(replace(key, token=new_key().token), image=image, like=old, size=SMALL)
    for call in (stage.compute.terminate, stage.compute.stop):
        with pytest.raises(errors.NotYetVisible):
            call(key.name)
    stage.becomes(key.name, "running")


@pytest.mark.parametrize("looks", [1, 2])
def test_a_stack_that_comes_to_show_between_two_looks_is_adopted(stage: Stage, looks: int) -> None:
    """As when another worker's call for the same key is answered in the middle of this one."""
    old, key = stage.old(), new_key()
    image = stage.image(old)
    stage.anew().ensure_server(key, image=image, like=old, size=SMALL)
    stage.becomes(key.name, "running")
    unseen = Fault(
        action="DescribeStacks", code="ValidationError", message="Stack does not exist", http=400, count=looks
    )
    stage.cloud.troubles.add(unseen)
    if looks == 2:
        with pytest.raises(errors.NotYetVisible):
            stage.compute.ensure_server(key, image=image, like=old, size=SMALL)
    assert stage.compute.ensure_server(key, image=image, like=old, size=SMALL).state == "running"
    assert stage.stacks() == [key.name]


def test_a_template_in_s3_is_read_and_a_long_one_is_named(stage: Stage) -> None:
    stage.wire.write("s3", "create_bucket", Bucket="shop", CreateBucketConfiguration={"LocationConstraint": REGION})
    for comment in ("", "# long\n" * 10_000):
        stage.wire.write("s3", "put_object", Bucket="shop", Key="a/server", Body=TEMPLATE.read_text() + comment)
        stage.compute = stage.anew(template="s3://shop/a/server")
        stage.made()
    stage.compute = stage.anew(template="s3://shop/none")
    with pytest.raises((errors.NotFound, errors.Refused)):
        stage.compute.recipe()


@pytest.mark.parametrize(
    ("changes", "settings", "said"),
    [
        ([("\n  InstanceType:\n    Type: String", "")], {}, "no parameter InstanceType"),
        ([("  PrivateIp:\n    Value: !GetAtt Server.PrivateIp\n", "")], {}, "no output PrivateIp"),
        ([], {"parameters.Colour": "blue"}, "no parameter Colour"),
        ([("    Default: shop\n", "")], {}, "its parameter Owner has no default"),
        ([("Type: AWS::EC2::Instance", "Type: AWS::EC2::Instance\n    DeletionPolicy: Retain")], {}, "outlive"),
        ([("Resources:", "Things:")], {}, "no Resources"),
        ([("Resources:", "Resources: [")], {}, "neither YAML nor JSON"),
    ],
)
def test_a_template_that_will_not_do_is_told_before_anything_is_made(
    stage: Stage, changes: list[tuple[str, str]], settings: dict[str, str], said: str
) -> None:
    old = stage.old()
    image = stage.image(old)
    compute = stage.anew(template=stage.template(*changes), **settings)
    assert said in " ".join(compute.obstacles([old], sizes=[SMALL])[old])
    (finding,) = [each for each in compute.examine([old], sizes=[SMALL], at_once=1) if "template" in each.name]
    assert not finding.ok
    with pytest.raises(errors.Refused, match=said):
        compute.ensure_server(new_key(), image=image, like=old, size=SMALL)
    assert not stage.asked("CreateStack")


def test_the_doctor_reads_the_template_and_asks_for_capabilities(stage: Stage) -> None:
    def told(**settings: str) -> Any:
        found = stage.anew(**settings).examine([], sizes=[SMALL], at_once=1)
        return next(each for each in found if each.name.startswith("template "))

    assert told().ok
    assert "ImageId, InstanceType" in told().detail
    role = "\n  Role: {Type: AWS::IAM::Role, Properties: {AssumeRolePolicyDocument: {}}}\n\nOutputs:"
    path = stage.template(("\n\nOutputs:", role))
    assert "CAPABILITY_IAM" in told(template=path).fix
    assert told(template=path, capabilities="CAPABILITY_IAM").ok
    assert "every worker needs the template" in told(template="/nowhere/at/all").detail
    assert "write an absolute path" in told(template="server.yaml").detail


def test_settings_that_are_none_are_refused(stage: Stage) -> None:
    with pytest.raises(errors.Refused, match="user_data"):
        stage.anew(user_data="empty")
    with pytest.raises(errors.Refused, match="needs a template"):
        stage.anew(template="")


def test_a_size_without_a_type_or_too_small_a_disk_is_refused(stage: Stage) -> None:
    old = stage.old()
    image = stage.image(old)
    for size in (replace(SMALL, type=""), replace(SMALL, disk=GIB), replace(SMALL, type="m6g.large")):
        with pytest.raises(errors.Refused):
            stage.compute.ensure_server(new_key(), image=image, like=old, size=size)
    assert not stage.asked("CreateStack")


def test_a_role_with_the_policy_that_is_printed_can_do_all_that_is_done(stage: Stage) -> None:
    old = stage.old(**{"changeover-fleet": "shop"})
    compute = stage.compute = stage.anew(role=ROLE)
    (mine, _) = policies(compute.rights([old], fleet="shop"))
    stage.cloud.policies[ROLE] = mine["policy"]
    assert compute.obstacles([old], sizes=[SMALL]) == {}
    assert all(each.ok for each in compute.examine([old], sizes=[SMALL], at_once=1))
    key, image = new_key(), stage.image(old)
    compute.ensure_server(key, image=image, like=old, size=SMALL)
    stage.becomes(key.name, "running")
    compute.tag(key.name, {"changeover:undoing": "r1"})
    compute.protect(key.name, True)
    compute.protect(key.name, False)
    compute.stop(key.name)
    stage.cloud.stacks.stuck["Server"] = "it is in use"
    compute.terminate(key.name)
    stage.becomes(key.name, "failed")
    stage.cloud.stacks.stuck.clear()
    with pytest.raises(errors.Busy):
        compute.terminate(key.name)
    stage.until(lambda: not stage.stacks())
    assert len({name for name in stage.cloud.calls if name.startswith("cloudformation:")}) == 7
