"""What the simulated CloudFormation does as AWS does, and plain moto does not: each check holds there, and fails here.
moto's own needs cfn-lint and more (`pip install "moto[cloudformation]"`); where that is not there it answers nothing.

The sources of AWS' own behaviour: the API reference (CreateStack, DeleteStack, DescribeStacks, DescribeStackEvents,
UpdateTerminationProtection, ValidateTemplate), the user guide ("Stack failure options", "Stack status codes",
"Troubleshooting CloudFormation"). What a token does after its stack is gone is documented by the name of its error
alone.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from simcloud.faults import Fault
from tests.simcloud.conftest import Sim
from tests.simcloud.test_corrections import refused

BODY = (Path(__file__).parents[2] / "examples" / "aws-cloudformation.template").read_text()
Check = Callable[[Sim], None]
CHECKS: list[Check] = []


def check(made: Check) -> Check:
    CHECKS.append(made)
    return made


def create(sim: Sim, name: str = "", *, body: str = BODY, told: dict[str, str] | None = None, **more: Any) -> str:
    """The name of a new stack."""
    name = name or f"co-{uuid.uuid4().hex}"
    values = {
        "ImageId": sim.network.image,
        "InstanceType": "t3.small",
        "SubnetId": sim.network.subnets[sim.zone],
        "SecurityGroupIds": sim.network.group,
        "DiskSize": "20",
        **(told or {}),
    }
    sim.client("cloudformation").create_stack(
        StackName=name,
        TemplateBody=body,
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in values.items()],
        Tags=[{"Key": "team", "Value": "blue"}],
        **more,
    )
    return name


def stack(sim: Sim, name: str) -> Any:
    return sim.client("cloudformation").describe_stacks(StackName=name)["Stacks"][0]


def outputs(sim: Sim, name: str) -> dict[str, str]:
    return {each["OutputKey"]: each["OutputValue"] for each in stack(sim, name).get("Outputs", [])}


def becomes(sim: Sim, name: str, status: str) -> Any:
    assert sim.until(lambda: stack(sim, name)["StackStatus"] == status, seconds=10)
    return stack(sim, name)


def made(sim: Sim, name: str) -> str:
    """The id of its instance."""
    becomes(sim, name, "CREATE_COMPLETE")
    return outputs(sim, name)["InstanceId"]


def gone(sim: Sim, name: str) -> bool:
    try:
        stack(sim, name)
    except ClientError as error:
        told = error.response
    else:
        return False
    assert (told["Error"]["Code"], told["ResponseMetadata"]["HTTPStatusCode"]) == ("ValidationError", 400)
    assert told["Error"]["Message"] == f"Stack with id {name} does not exist"
    return True


def events(sim: Sim, name: str) -> list[tuple[str, str, str]]:
    """The first one first."""
    told = sim.client("cloudformation").describe_stack_events(StackName=name)["StackEvents"]
    return [(e["LogicalResourceId"], e["ResourceStatus"], e.get("ResourceStatusReason", "")) for e in reversed(told)]


@check
def a_stack_takes_its_time_and_tells_outputs_when_it_is_complete(sim: Sim) -> None:
    sim.cloud.timings.pending = 30
    name = create(sim)
    assert stack(sim, name)["StackStatus"] == "CREATE_IN_PROGRESS"
    assert outputs(sim, name) == {}


@check
def its_instance_is_as_its_properties_say(sim: Sim) -> None:
    name = create(sim)
    id = made(sim, name)
    instance = sim.instance(id)
    assert instance["State"]["Name"] == "running"
    assert instance["PrivateIpAddress"] == outputs(sim, name)["PrivateIp"]
    assert [group["GroupId"] for group in instance["SecurityGroups"]] == [sim.network.group]
    volume = sim.client("ec2").describe_volumes(Filters=[{"Name": "attachment.instance-id", "Values": [id]}])
    assert [(each["Size"], each["VolumeType"]) for each in volume["Volumes"]] == [(20, "gp3")]
    tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
    assert (tags["aws:cloudformation:stack-name"], tags["team"], tags["owner"]) == (name, "blue", "shop")


@check
def one_token_makes_one_stack(sim: Sim) -> None:
    token, name = uuid.uuid4().hex, f"co-{uuid.uuid4().hex}"
    create(sim, name, ClientRequestToken=token)
    create(sim, name, ClientRequestToken=token)


@check
def a_token_of_a_stack_that_is_gone_makes_no_other(sim: Sim) -> None:
    token, name = uuid.uuid4().hex, f"co-{uuid.uuid4().hex}"
    create(sim, name, ClientRequestToken=token)
    sim.client("cloudformation").delete_stack(StackName=name)
    assert sim.until(lambda: gone(sim, name))
    with refused("TokenAlreadyExistsException"):
        create(sim, name, ClientRequestToken=token)


@check
def a_stack_that_fails_rolls_back_and_says_why(sim: Sim) -> None:
    name = create(sim, told={"InstanceType": "t9.none"})
    becomes(sim, name, "ROLLBACK_COMPLETE")
    (failed,) = [reason for logical, status, reason in events(sim, name) if status == "CREATE_FAILED"]
    assert failed.startswith('Resource handler returned message: "')
    assert "t9.none" in failed
    with refused("AlreadyExistsException"):
        create(sim, name)
    sim.client("cloudformation").delete_stack(StackName=name)
    assert sim.until(lambda: gone(sim, name))


@check
def a_rollback_ends_what_was_made(sim: Sim) -> None:
    sim.cloud.stacks.failing["Server"] = "as asked for"
    name = create(sim)
    becomes(sim, name, "ROLLBACK_COMPLETE")
    found = sim.client("ec2").describe_instances(
        Filters=[{"Name": "tag:aws:cloudformation:stack-name", "Values": [name]}]
    )
    (instance,) = found["Reservations"][0]["Instances"]
    assert instance["State"]["Name"] == "terminated"
    assert ("Server", "DELETE_COMPLETE", "") in events(sim, name)


@check
def a_stack_that_is_not_to_roll_back_stays_as_it_failed(sim: Sim) -> None:
    name = create(sim, told={"InstanceType": "t9.none"}, OnFailure="DO_NOTHING")
    becomes(sim, name, "CREATE_FAILED")


@check
def a_stack_that_is_to_be_deleted_when_it_fails_is_gone(sim: Sim) -> None:
    name = create(sim, told={"InstanceType": "t9.none"}, OnFailure="DELETE")
    assert sim.until(lambda: gone(sim, name))


@check
def deletion_takes_its_time(sim: Sim) -> None:
    name = create(sim)
    becomes(sim, name, "CREATE_COMPLETE")
    sim.cloud.timings.shutting_down = 30
    sim.client("cloudformation").delete_stack(StackName=name)
    sim.client("cloudformation").delete_stack(StackName=name)
    assert stack(sim, name)["StackStatus"] == "DELETE_IN_PROGRESS"


@check
def what_cannot_be_deleted_is_told_and_deletion_may_be_asked_for_again(sim: Sim) -> None:
    name = create(sim)
    id = made(sim, name)
    change = sim.client("ec2").modify_instance_attribute
    change(InstanceId=id, DisableApiTermination={"Value": True})
    sim.client("cloudformation").delete_stack(StackName=name)
    assert "[Server]" in becomes(sim, name, "DELETE_FAILED")["StackStatusReason"]
    (left,) = sim.client("cloudformation").describe_stack_resources(StackName=name)["StackResources"]
    assert (left["ResourceStatus"], left["PhysicalResourceId"]) == ("DELETE_FAILED", id)
    assert "disableApiTermination" in left["ResourceStatusReason"]
    change(InstanceId=id, DisableApiTermination={"Value": False})
    sim.client("cloudformation").delete_stack(StackName=name)
    assert sim.until(lambda: gone(sim, name))
    assert sim.instance(id)["State"]["Name"] == "terminated"


@check
def a_protected_stack_is_not_deleted(sim: Sim) -> None:
    name = create(sim)
    becomes(sim, name, "CREATE_COMPLETE")
    client = sim.client("cloudformation")
    client.update_termination_protection(StackName=name, EnableTerminationProtection=True)
    with refused("ValidationError"):
        client.delete_stack(StackName=name)
    client.update_termination_protection(StackName=name, EnableTerminationProtection=False)
    client.delete_stack(StackName=name)
    assert sim.until(lambda: gone(sim, name))


@check
def what_others_use_cannot_be_deleted(sim: Sim) -> None:
    group = (
        "Resources:\n  Group:\n    Type: AWS::EC2::SecurityGroup\n"
        f"    Properties: {{GroupDescription: of the server, VpcId: {sim.network.vpc}}}\n"
    )
    body = BODY.replace("Resources:\n", group).replace("!Ref SecurityGroupIds", "[!GetAtt Group.GroupId]")
    name = create(sim, body=body)
    id = made(sim, name)
    (its,) = sim.instance(id)["SecurityGroups"]
    other = sim.running(SecurityGroupIds=[its["GroupId"]])
    sim.client("cloudformation").delete_stack(StackName=name)
    becomes(sim, name, "DELETE_FAILED")
    assert [logical for logical, status, _ in events(sim, name) if status == "DELETE_FAILED"] == ["Group", name]
    sim.client("ec2").terminate_instances(InstanceIds=[other])
    sim.until(lambda: sim.instance(other)["State"]["Name"] == "terminated")
    sim.client("cloudformation").delete_stack(StackName=name)
    assert sim.until(lambda: gone(sim, name))


@check
def what_is_to_be_retained_outlives_its_stack(sim: Sim) -> None:
    name = create(
        sim, body=BODY.replace("Type: AWS::EC2::Instance", "Type: AWS::EC2::Instance\n    DeletionPolicy: Retain")
    )
    id = made(sim, name)
    seen = sim.client("cloudformation").describe_stacks(StackName=name)["Stacks"][0]["StackId"]
    sim.client("cloudformation").delete_stack(StackName=name)
    assert sim.until(lambda: gone(sim, name))
    assert ("Server", "DELETE_SKIPPED", "") in events(sim, seen)
    assert sim.instance(id)["State"]["Name"] == "running"


@check
def parameters_are_compared_with_those_of_the_template(sim: Sim) -> None:
    with refused("ValidationError"):
        create(sim, told={"NoSuchThing": "x"})
    with refused("ValidationError"):
        create(sim, body=BODY.replace("Type: Number", "Type: Number\n  Other:\n    Type: String"))


@check
def a_template_that_makes_identities_needs_a_word(sim: Sim) -> None:
    role = "\n  Role: {Type: AWS::IAM::Role, Properties: {AssumeRolePolicyDocument: {}}}\n\nOutputs:"
    with refused("InsufficientCapabilitiesException"):
        create(sim, body=BODY.replace("\n\nOutputs:", role))


@check
def a_long_template_is_not_taken_inline(sim: Sim) -> None:
    with refused("ValidationError"):
        create(sim, body=BODY + "#" * 51200)


@check
def a_validated_template_tells_its_parameters(sim: Sim) -> None:
    told = sim.client("cloudformation").validate_template(TemplateBody=BODY)["Parameters"]
    assert {"ImageId", "InstanceType"} <= {each["ParameterKey"] for each in told}
    with refused("ValidationError"):
        sim.client("cloudformation").validate_template(TemplateBody="Resources: {}")


@check
def stacks_come_in_pages(sim: Sim) -> None:
    sim.cloud.page = 2
    names = {create(sim) for _ in range(5)}
    pages = list(sim.client("cloudformation").get_paginator("describe_stacks").paginate())
    assert len(pages) == 3
    assert {each["StackName"] for page in pages for each in page["Stacks"]} == names


@check
def a_stack_shows_late(sim: Sim) -> None:
    sim.cloud.timings.lag = 30
    name = create(sim)
    assert gone(sim, name)
    with refused("AlreadyExistsException"):
        create(sim, name)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_holds_on_the_simulated_cloud(simulated: Sim, check: Check) -> None:
    check(simulated)


@pytest.mark.skipif(find_spec("openapi_spec_validator") is None, reason="moto's own is not installed")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_fails_on_plain_moto(plain: Sim, check: Check) -> None:
    with pytest.raises((AssertionError, BotoCoreError, ClientError, ResponseParserError, LookupError, ValueError)):
        check(plain)


def test_an_answer_that_is_lost_leaves_one_stack(simulated: Sim) -> None:
    simulated.cloud.troubles.add(Fault(service="cloudformation", action="CreateStack", after=True, drop=True))
    token, name = uuid.uuid4().hex, f"co-{uuid.uuid4().hex}"
    with pytest.raises(BotoCoreError):
        create(simulated, name, ClientRequestToken=token)
    assert gone(simulated, "co-other")
    assert create(simulated, name, ClientRequestToken=token) == name
    assert list(simulated.cloud.billable()["stack"]) == [name]


def test_a_throttled_call_is_refused_in_the_words_of_the_service(simulated: Sim) -> None:
    simulated.cloud.troubles.limit("cloudformation:*", size=0, refill=0)
    with refused("Throttling"):
        create(simulated)


def test_the_instance_of_a_stack_is_a_real_process(real: Sim) -> None:
    assert real.cloud.machines is not None
    name = create(real)
    id = made(real, name)
    folder = real.cloud.machines.folder(id)
    assert folder.is_dir()
    real.client("cloudformation").delete_stack(StackName=name)
    assert real.until(lambda: gone(real, name))
    assert not folder.exists()
    assert not real.cloud.billable()["stack"]
