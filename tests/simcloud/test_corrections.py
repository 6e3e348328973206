"""What the simulated cloud does as AWS does, and plain moto does not: each check holds there, and fails here.

The sources of AWS' own behaviour are its API references: EC2 RunInstances, CreateImage, DescribeInstanceStatus,
TerminateInstances, DeregisterImage, "Ensuring idempotency", "Troubleshoot instance launch issues".
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from tests.simcloud.conftest import Sim

Check = Callable[[Sim], None]
CHECKS: list[Check] = []


def check(made: Check) -> Check:
    CHECKS.append(made)
    return made


@contextmanager
def refused(code: str) -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        told = error.response
    else:
        raise AssertionError(f"{code} was expected")
    assert told["Error"]["Code"] == code
    assert told["ResponseMetadata"]["RequestId"]


def asked(sim: Sim, **more: Any) -> dict[str, Any]:
    subnet = sim.network.subnets[sim.zone]
    return {"ImageId": sim.network.image, "InstanceType": "t3.small", "SubnetId": subnet, **more}


@check
def one_token_makes_one_instance(sim: Sim) -> None:
    token = uuid.uuid4().hex
    assert sim.launch(ClientToken=token) == sim.launch(ClientToken=token)


@check
def a_token_with_other_parameters_is_a_mismatch(sim: Sim) -> None:
    token = uuid.uuid4().hex
    sim.launch(ClientToken=token)
    with refused("IdempotentParameterMismatch"):
        sim.launch(ClientToken=token, InstanceType="t3.large")


@check
def a_token_whose_instance_was_terminated_tells_of_that_one(sim: Sim) -> None:
    token = uuid.uuid4().hex
    id = sim.launch(ClientToken=token)
    sim.client("ec2").terminate_instances(InstanceIds=[id])
    sim.until(lambda: sim.instance(id)["State"]["Name"] == "terminated")
    again = sim.client("ec2").run_instances(**asked(sim, ClientToken=token, MinCount=1, MaxCount=1))["Instances"][0]
    assert (again["InstanceId"], again["State"]["Name"]) == (id, "terminated")


@check
def instances_are_found_by_their_token(sim: Sim) -> None:
    token = uuid.uuid4().hex
    id = sim.launch(ClientToken=token)
    found = sim.client("ec2").describe_instances(Filters=[{"Name": "client-token", "Values": [token]}])
    assert [each["InstanceId"] for each in found["Reservations"][0]["Instances"]] == [id]


@check
def an_instance_is_pending_before_it_runs(sim: Sim) -> None:
    sim.cloud.timings.pending = 30
    assert sim.instance(sim.launch())["State"]["Name"] == "pending"


@check
def its_checks_pass_later_than_it_runs(sim: Sim) -> None:
    sim.cloud.timings.checks = 30
    id = sim.running()
    (status,) = sim.client("ec2").describe_instance_status(InstanceIds=[id])["InstanceStatuses"]
    assert status["InstanceStatus"]["Status"] == "initializing"


@check
def an_instance_stops_for_a_while(sim: Sim) -> None:
    sim.cloud.timings.stopping = 30
    id = sim.running()
    sim.client("ec2").stop_instances(InstanceIds=[id])
    assert sim.instance(id)["State"]["Name"] == "stopping"
    with refused("IncorrectInstanceState"):
        sim.client("ec2").start_instances(InstanceIds=[id])


@check
def an_instance_shuts_down_before_it_is_terminated(sim: Sim) -> None:
    sim.cloud.timings.shutting_down = 30
    id = sim.running()
    sim.client("ec2").terminate_instances(InstanceIds=[id])
    assert sim.instance(id)["State"]["Name"] == "shutting-down"


@check
def a_start_has_a_launch_time_of_its_own(sim: Sim) -> None:
    id = sim.running()
    before = sim.instance(id)["LaunchTime"]
    sim.client("ec2").stop_instances(InstanceIds=[id])
    sim.until(lambda: sim.instance(id)["State"]["Name"] == "stopped")
    sim.client("ec2").start_instances(InstanceIds=[id])
    assert sim.instance(id)["LaunchTime"] > before


@check
def a_terminated_instance_cannot_be_stopped(sim: Sim) -> None:
    id = sim.running()
    sim.client("ec2").terminate_instances(InstanceIds=[id])
    sim.until(lambda: sim.instance(id)["State"]["Name"] == "terminated")
    with refused("IncorrectInstanceState"):
        sim.client("ec2").stop_instances(InstanceIds=[id])


@check
def termination_protection_asked_for_at_launch_holds(sim: Sim) -> None:
    id = sim.running(DisableApiTermination=True)
    with refused("OperationNotPermitted"):
        sim.client("ec2").terminate_instances(InstanceIds=[id])
    assert sim.instance(id)["State"]["Name"] == "running"


@check
def an_image_is_pending_before_it_is_available(sim: Sim) -> None:
    id = sim.running()
    sim.cloud.timings.image = 30
    image = sim.client("ec2").create_image(InstanceId=id, Name="slow-image", NoReboot=True)["ImageId"]
    (found,) = sim.client("ec2").describe_images(ImageIds=[image])["Images"]
    assert found["State"] == "pending"


@check
def the_name_of_an_image_is_taken_once(sim: Sim) -> None:
    id = sim.running()
    sim.image(id, "the-name")
    with refused("InvalidAMIName.Duplicate"):
        sim.client("ec2").create_image(InstanceId=id, Name="the-name", NoReboot=True)


@check
def snapshots_are_tagged_with_their_image(sim: Sim) -> None:
    tags = [{"Key": "mine", "Value": "1"}]
    specs = [{"ResourceType": kind, "Tags": tags} for kind in ("image", "snapshot")]
    sim.image(sim.running(), "tagged", TagSpecifications=specs)
    found = sim.client("ec2").describe_snapshots(Filters=[{"Name": "tag:mine", "Values": ["1"]}])["Snapshots"]
    assert len(found) == 1


@check
def an_image_has_the_disks_of_its_instance(sim: Sim) -> None:
    more = [{"DeviceName": name, "Ebs": {"VolumeSize": size}} for name, size in (("/dev/sda1", 20), ("/dev/sdf", 5))]
    image = sim.image(sim.running(BlockDeviceMappings=more), "with-disks")
    (found,) = sim.client("ec2").describe_images(ImageIds=[image])["Images"]
    sizes = {each["DeviceName"]: each["Ebs"]["VolumeSize"] for each in found["BlockDeviceMappings"]}
    assert sizes == {"/dev/sda1": 20, "/dev/sdf": 5}


@check
def an_instance_of_an_image_has_its_disks_without_being_asked(sim: Sim) -> None:
    more = [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 20, "VolumeType": "gp3", "Throughput": 250}}]
    image = sim.image(sim.running(BlockDeviceMappings=more), "as-it-is")
    clone = sim.running(ImageId=image)
    filters = [{"Name": "attachment.instance-id", "Values": [clone]}]
    found = sim.client("ec2").describe_volumes(Filters=filters)["Volumes"]
    assert [(each["Size"], each["VolumeType"], each["Throughput"]) for each in found] == [(20, "gp3", 250)]


@check
def a_disk_smaller_than_its_snapshot_is_refused(sim: Sim) -> None:
    with refused("InvalidBlockDeviceMapping"):
        sim.launch(BlockDeviceMappings=[{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 2}}])


@check
def snapshots_go_with_their_image_where_that_is_asked_for(sim: Sim) -> None:
    image = sim.image(sim.running(), "to-go")
    before = len(sim.client("ec2").describe_snapshots(OwnerIds=["self"])["Snapshots"])
    sim.client("ec2").deregister_image(ImageId=image, DeleteAssociatedSnapshots=True)
    assert len(sim.client("ec2").describe_snapshots(OwnerIds=["self"])["Snapshots"]) == before - 1


@check
def nothing_is_launched_of_an_image_that_is_not_ready(sim: Sim) -> None:
    id = sim.running()
    sim.cloud.timings.image = 30
    image = sim.client("ec2").create_image(InstanceId=id, Name="not-ready", NoReboot=True)["ImageId"]
    with refused("InvalidAMIID.Unavailable"):
        sim.launch(ImageId=image)


@check
def a_type_of_another_architecture_is_refused(sim: Sim) -> None:
    with refused("InvalidParameterValue"):
        sim.launch(InstanceType="t4g.small")


@check
def a_type_that_a_zone_does_not_offer_is_refused(sim: Sim) -> None:
    with refused("Unsupported"):
        sim.launch(InstanceType="mac1.metal")


@check
def a_zone_without_room_says_so(sim: Sim) -> None:
    sim.cloud.ledgers.capacity[sim.zone, "t3.small"] = 1
    sim.launch()
    with refused("InsufficientInstanceCapacity"):
        sim.launch()


@check
def a_quota_of_processors_holds(sim: Sim) -> None:
    sim.cloud.ledgers.vcpus["123456789012", "eu-west-1"] = 3
    sim.launch()
    with refused("VcpuLimitExceeded"):
        sim.launch()


@check
def a_new_id_is_not_found_for_a_while(sim: Sim) -> None:
    sim.cloud.timings.lag = 30
    id = sim.launch()
    for call in ("describe_instances", "describe_instance_status", "terminate_instances"):
        with refused("InvalidInstanceID.NotFound"):
            getattr(sim.client("ec2"), call)(InstanceIds=[id])
    assert not sim.client("ec2").describe_instances(Filters=[{"Name": "instance-id", "Values": [id]}])["Reservations"]


@check
def no_more_than_a_hundred_are_asked_for_their_status_at_once(sim: Sim) -> None:
    with refused("InvalidParameterValue"):
        sim.client("ec2").describe_instance_status(InstanceIds=[f"i-{number:017x}" for number in range(101)])


@check
def tags_of_aws_cannot_be_written(sim: Sim) -> None:
    with refused("InvalidParameterValue"):
        sim.client("ec2").create_tags(Resources=[sim.running()], Tags=[{"Key": "aws:mine", "Value": "1"}])


@check
def a_template_of_an_instance_tells_all_of_it(sim: Sim) -> None:
    options = {"HttpTokens": "required", "HttpPutResponseHopLimit": 2}
    id = sim.running(UserData="#!/bin/sh\n", MetadataOptions=options, CreditSpecification={"CpuCredits": "unlimited"})
    told = sim.client("ec2").get_launch_template_data(InstanceId=id)["LaunchTemplateData"]
    assert told["MetadataOptions"]["HttpTokens"] == "required"
    assert told["CreditSpecification"] == {"CpuCredits": "unlimited"}
    assert told["UserData"]
    assert [each["DeviceName"] for each in told["BlockDeviceMappings"]] == ["/dev/sda1"]


@check
def a_kind_of_volume_takes_only_what_it_knows(sim: Sim) -> None:
    for ebs in ({"VolumeType": "gp2", "Iops": 900}, {"VolumeType": "io2"}, {"VolumeType": "gp2", "Throughput": 250}):
        with refused("InvalidParameterCombination"):
            sim.launch(BlockDeviceMappings=[{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 10, **ebs}}])


@check
def a_stopped_instance_may_find_no_room(sim: Sim) -> None:
    id = sim.running()
    sim.client("ec2").stop_instances(InstanceIds=[id])
    sim.until(lambda: sim.instance(id)["State"]["Name"] == "stopped")
    sim.cloud.ledgers.capacity[sim.zone, "t3.small"] = 0
    with refused("InsufficientInstanceCapacity"):
        sim.client("ec2").start_instances(InstanceIds=[id])


@check
def a_subnet_runs_out_of_addresses(sim: Sim) -> None:
    ec2 = sim.client("ec2")
    vpc = ec2.create_vpc(CidrBlock="127.66.0.0/16")["Vpc"]["VpcId"]
    small = ec2.create_subnet(VpcId=vpc, CidrBlock="127.66.255.0/28", AvailabilityZone=sim.zone)["Subnet"]["SubnetId"]
    for _ in range(11):
        sim.launch(SubnetId=small)
    with refused("InsufficientFreeAddressesInSubnet"):
        sim.launch(SubnetId=small)


@check
def agents_are_told_of(sim: Sim) -> None:
    assert sim.client("ssm").describe_instance_information()["InstanceInformationList"] == []


@check
def a_command_is_not_sent_where_no_agent_is_online(sim: Sim) -> None:
    with refused("InvalidInstanceId"):
        send(sim, [sim.running()])


@check
def a_command_goes_to_fifty_at_most(sim: Sim) -> None:
    with refused("ValidationException"):
        send(sim, [f"i-{number:017x}" for number in range(51)])


@check
def a_command_that_was_never_sent_has_no_answers(sim: Sim) -> None:
    with refused("InvocationDoesNotExist"):
        sim.client("ssm").list_command_invocations(CommandId="11111111-2222-3333-4444-555555555555")


def send(sim: Sim, ids: list[str]) -> str:
    told = {"commands": ["echo hello from $(cat /index.html)"]}
    made = sim.client("ssm").send_command(InstanceIds=ids, DocumentName="AWS-RunShellScript", Parameters=told)
    return str(made["Command"]["CommandId"])


@check
def answers_come_in_pages(sim: Sim) -> None:
    for _ in range(3):
        sim.launch()
    pages = list(sim.client("ec2").get_paginator("describe_volumes").paginate(MaxResults=2))
    assert [len(page["Volumes"]) for page in pages] == [2, 1]


@pytest.mark.parametrize("holds", CHECKS, ids=lambda each: each.__name__)
def test_the_simulated_cloud_does_as_aws(simulated: Sim, holds: Check) -> None:
    holds(simulated)


@pytest.mark.parametrize("holds", CHECKS, ids=lambda each: each.__name__)
def test_plain_moto_does_not(plain: Sim, holds: Check) -> None:
    with pytest.raises((AssertionError, ClientError, BotoCoreError, ResponseParserError, KeyError, ValueError)):
        holds(plain)


def a_command_really_runs(sim: Sim) -> None:
    id, ssm = sim.running(), sim.client("ssm")

    def online() -> bool:
        told = ssm.describe_instance_information(Filters=[{"Key": "InstanceIds", "Values": [id]}])
        return [each["PingStatus"] for each in told["InstanceInformationList"]] == ["Online"]

    sim.until(online)
    command = send(sim, [id])

    def answer() -> str:
        (told,) = ssm.list_command_invocations(CommandId=command, Details=True)["CommandInvocations"]
        return str(told["CommandPlugins"][0]["Output"])

    assert "hello from hello" in sim.until(answer)


def test_commands_run_on_the_machines_of_the_simulated_cloud(real: Sim) -> None:
    a_command_really_runs(real)


def test_and_on_nothing_with_plain_moto(plain: Sim) -> None:
    with pytest.raises((AssertionError, ClientError, ResponseParserError)):
        a_command_really_runs(plain)
