"""What the simulated cloud does as AWS does, and plain moto does not: each check holds there, and fails here.

The sources of AWS' own behaviour are its API references: EC2 RunInstances, CreateImage, DescribeInstanceStatus,
TerminateInstances, DeregisterImage, "Ensuring idempotency", "Troubleshoot instance launch issues"; ELBv2
RegisterTargets, DeregisterTargets, DescribeTargetHealth, TargetHealth.
"""

from __future__ import annotations

import http.client
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
def a_quota_of_processors_is_told(sim: Sim) -> None:
    asked = {"ServiceCode": "ec2", "QuotaCode": "L-1216C47A"}
    quotas = sim.client("service-quotas")
    with refused("NoSuchResourceException"):  # nobody has changed it
        quotas.get_service_quota(**asked)
    assert quotas.get_aws_default_service_quota(**asked)["Quota"]["Value"] > 0
    sim.cloud.ledgers.vcpus["123456789012", "eu-west-1"] = 3
    assert quotas.get_service_quota(**asked)["Quota"]["Value"] == 3


def free(sim: Sim) -> int:
    told = sim.client("ec2").describe_subnets(SubnetIds=[sim.network.subnets[sim.zone]])
    return int(told["Subnets"][0]["AvailableIpAddressCount"])


@check
def an_address_is_taken_until_its_instance_is_terminated(sim: Sim) -> None:
    before = free(sim)
    nic = {"DeviceIndex": 0, "SubnetId": sim.network.subnets[sim.zone]}
    id = sim.running(NetworkInterfaces=[nic])
    sim.client("ec2").stop_instances(InstanceIds=[id])
    sim.until(lambda: sim.instance(id)["State"]["Name"] == "stopped")
    assert free(sim) == before - 1
    sim.client("ec2").terminate_instances(InstanceIds=[id])
    assert free(sim) == before


@check
def a_subnet_without_free_addresses_says_so(sim: Sim) -> None:
    vpc = sim.client("ec2").describe_subnets(SubnetIds=[sim.network.subnets[sim.zone]])["Subnets"][0]["VpcId"]
    made = sim.client("ec2").create_subnet(VpcId=vpc, CidrBlock="127.66.255.0/28", AvailabilityZone=sim.zone)
    subnet = made["Subnet"]["SubnetId"]
    assert made["Subnet"]["AvailableIpAddressCount"] == 11
    sim.launch(SubnetId=subnet, MinCount=11, MaxCount=11)
    with refused("InsufficientFreeAddressesInSubnet"):
        sim.launch(SubnetId=subnet)


@check
def an_agent_that_never_was_is_not_told_of(sim: Sim) -> None:
    ssm = sim.client("ssm")
    filters = [{"Key": "InstanceIds", "Values": [sim.running()]}]
    assert ssm.describe_instance_information(Filters=filters, MaxResults=50)["InstanceInformationList"] == []


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
def a_volume_is_initialized_at_a_rate_that_there_is_and_tells_it(sim: Sim) -> None:
    image = sim.image(sim.running(), "to-be-read")

    def at(rate: int) -> str:
        return sim.launch(
            ImageId=image,
            BlockDeviceMappings=[{"DeviceName": "/dev/sda1", "Ebs": {"VolumeInitializationRate": rate}}],
        )

    with refused("InvalidParameterValue"):
        at(301)
    filters = [{"Name": "attachment.instance-id", "Values": [at(200)]}]
    (found,) = sim.client("ec2").describe_volumes(Filters=filters)["Volumes"]
    assert found["VolumeInitializationRate"] == 200


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


class Group:
    """A target group, and a balancer whose listener leads to it."""

    def __init__(self, sim: Sim, *, used: bool = True, zones: int = 2, kind: str = "instance", delay: int = 30) -> None:
        self.sim, self.elb = sim, sim.client("elbv2")
        made = self.elb.create_target_group(
            Name="web",
            Protocol="HTTP",
            Port=8080,
            VpcId=sim.network.vpc,
            TargetType=kind,
            HealthCheckPath="/health",
            HealthyThresholdCount=2,
            UnhealthyThresholdCount=2,
        )
        self.arn = made["TargetGroups"][0]["TargetGroupArn"]
        told = [{"Key": "deregistration_delay.timeout_seconds", "Value": str(delay)}]
        self.elb.modify_target_group_attributes(TargetGroupArn=self.arn, Attributes=told)
        self.listener = ""
        if used:
            subnets = list(sim.network.subnets.values())[:zones]
            balancer = self.elb.create_load_balancer(Name="shop", Subnets=subnets)["LoadBalancers"][0]
            listener = self.elb.create_listener(
                LoadBalancerArn=balancer["LoadBalancerArn"],
                Protocol="HTTP",
                Port=8090,
                DefaultActions=[{"Type": "forward", "TargetGroupArn": self.arn}],
            )
            self.listener = listener["Listeners"][0]["ListenerArn"]

    def register(self, *ids: str, **more: Any) -> None:
        self.elb.register_targets(TargetGroupArn=self.arn, Targets=[{"Id": id, **more} for id in ids])

    def deregister(self, *ids: str, **more: Any) -> None:
        self.elb.deregister_targets(TargetGroupArn=self.arn, Targets=[{"Id": id, **more} for id in ids])

    def health(self, *ids: str) -> list[tuple[str, str]]:
        """States and reasons."""
        more = {"Targets": [{"Id": id} for id in ids]} if ids else {}
        told = self.elb.describe_target_health(TargetGroupArn=self.arn, **more)["TargetHealthDescriptions"]
        return [(each["TargetHealth"]["State"], each["TargetHealth"].get("Reason", "")) for each in told]

    def becomes(self, state: str, reason: str = "") -> None:
        self.sim.until(lambda: self.health() == [(state, reason)])


@check
def a_target_is_registered_before_it_is_asked_and_asked_before_it_is_healthy(sim: Sim) -> None:
    sim.cloud.timings.registering, sim.cloud.timings.health = 0.5, 30
    group, id = Group(sim), sim.running()
    group.register(id)
    assert group.health() == [("initial", "Elb.RegistrationInProgress")]
    group.becomes("healthy")


@check
def a_target_that_answers_wrongly_is_unhealthy_and_says_why(sim: Sim) -> None:
    trouble = ("Target.ResponseCodeMismatch", "Health checks failed with these codes: [503]")
    group, id = Group(sim), sim.running()
    group.register(id)
    group.becomes("healthy")
    sim.cloud.groups.ill[id] = trouble
    group.becomes("unhealthy", "Target.ResponseCodeMismatch")
    del sim.cloud.groups.ill[id]
    group.becomes("healthy")


@check
def a_target_drains_for_as_long_as_its_group_says(sim: Sim) -> None:
    group, id = Group(sim, delay=1), sim.running()
    group.register(id)
    group.becomes("healthy")
    group.deregister(id)
    assert group.health() == [("draining", "Target.DeregistrationInProgress")]
    sim.until(lambda: group.health() == [])
    assert group.health(id) == [("unused", "Target.NotRegistered")]


@check
def a_target_that_drains_begins_anew_when_it_is_registered_again(sim: Sim) -> None:
    sim.cloud.timings.registering = 0.5
    group, id = Group(sim), sim.running()
    group.register(id)
    group.becomes("healthy")
    group.deregister(id)
    group.register(id)
    assert group.health() == [("initial", "Elb.RegistrationInProgress")]
    group.becomes("healthy")


@check
def whoever_is_no_target_is_deregistered_without_complaint(sim: Sim) -> None:
    group = Group(sim)
    group.deregister(sim.running())
    assert group.health() == []


@check
def an_instance_is_a_target_at_each_of_its_ports(sim: Sim) -> None:
    group, id = Group(sim), sim.running()
    group.register(id, Port=8080)
    group.register(id, Port=8081)
    assert len(group.health()) == 2
    group.deregister(id, Port=8081)
    told = group.elb.describe_target_health(TargetGroupArn=group.arn)["TargetHealthDescriptions"]
    states = {each["Target"]["Port"]: each["TargetHealth"]["State"] for each in told}
    assert states[8081] == "draining" and states[8080] != "draining"


@check
def a_target_of_a_group_that_nothing_leads_to_is_unused(sim: Sim) -> None:
    group = Group(sim, used=False)
    group.register(sim.running())
    assert group.health() == [("unused", "Target.NotInUse")]


@check
def a_target_in_a_zone_that_its_balancer_does_not_serve_is_unused(sim: Sim) -> None:
    group = Group(sim, zones=1)
    group.register(sim.running(SubnetId=sim.network.subnets["eu-west-1b"]))
    assert group.health() == [("unused", "Target.NotInUse")]


@check
def an_address_that_the_balancer_itself_has_is_unusable(sim: Sim) -> None:
    group = Group(sim, kind="ip")
    group.register("10.1.2.3", AvailabilityZone="all")
    balancers = sim.cloud.balancers
    address = "127.66.1.250" if balancers is None else sim.until(lambda: balancers.places.get(group.listener))[0]
    group.deregister("10.1.2.3")
    group.register(address)
    assert ("unused", "Target.IpUnusable") in group.health()


@check
def an_address_that_is_neither_of_the_network_nor_private_is_refused(sim: Sim) -> None:
    with refused("InvalidTarget"):
        Group(sim, kind="ip").register("8.8.8.8")


@check
def an_instance_that_does_not_exist_is_refused(sim: Sim) -> None:
    with refused("InvalidTarget"):
        Group(sim).register("i-00000000000000000")


@check
def an_instance_that_was_terminated_drains_by_itself(sim: Sim) -> None:
    group, id = Group(sim, delay=1), sim.running()
    group.register(id)
    group.becomes("healthy")
    sim.client("ec2").terminate_instances(InstanceIds=[id])
    assert group.health() == [("draining", "Target.DeregistrationInProgress")]
    sim.until(lambda: group.health() == [])


@check
def target_groups_come_in_pages(sim: Sim) -> None:
    for name in ("a", "b", "c"):
        sim.client("elbv2").create_target_group(Name=name, Protocol="TCP", Port=1, VpcId=sim.network.vpc)
    pages = list(sim.client("elbv2").get_paginator("describe_target_groups").paginate(PageSize=2))
    assert [len(page["TargetGroups"]) for page in pages] == [2, 1]


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


def ask(place: tuple[str, int], path: str, *, link: http.client.HTTPConnection | None = None) -> tuple[int, str]:
    """Status, and which instance has answered."""
    mine = link or http.client.HTTPConnection(*place, timeout=20)
    try:
        mine.request("GET", path)
        answer = mine.getresponse()
        answer.read()
        return answer.status, answer.getheader("X-Served-By", "")
    finally:
        if link is None:
            mine.close()


def test_users_are_passed_on_to_those_that_are_healthy(real: Sim) -> None:
    group, ids = Group(real, delay=1), [real.running() for _ in range(2)]
    balancers, machines = real.cloud.balancers, real.cloud.machines
    assert balancers is not None and machines is not None
    place = real.until(lambda: balancers.places.get(group.listener))
    assert ask(place, "/index.html") == (503, ""), "nobody is there"
    group.register(*ids)
    real.until(lambda: group.health() == [("healthy", "")] * 2)
    link = http.client.HTTPConnection(*place, timeout=20)
    seen: set[tuple[int, str]] = set()
    real.until(lambda: seen.add(ask(place, "/index.html", link=link)) or len(seen) == 2)
    assert seen == {(200, id) for id in ids}
    link.close()

    (machines.folder(ids[0]) / "sick").touch()
    real.until(lambda: ("unhealthy", "Target.ResponseCodeMismatch") in group.health())
    assert {ask(place, "/index.html") for _ in range(20)} == {(200, ids[1])}
    (machines.folder(ids[1]) / "sick").touch()
    real.until(lambda: group.health() == [("unhealthy", "Target.ResponseCodeMismatch")] * 2)
    real.until(lambda: ask(place, "/index.html")[1] == ids[0], seconds=30)  # nobody is healthy: all are asked


def test_what_runs_at_a_target_that_drains_may_end_until_its_time_is_up(real: Sim) -> None:
    group, id = Group(real, delay=2), real.running()
    assert real.cloud.balancers is not None and real.cloud.machines is not None
    group.register(id)
    group.becomes("healthy")
    place = real.until(lambda: real.cloud.balancers and real.cloud.balancers.places.get(group.listener))
    hold = real.cloud.machines.folder(id) / "hold"
    with ThreadPoolExecutor(2) as users:
        for ends in (True, False):
            group.register(id)
            group.becomes("healthy")
            real.until(lambda: ask(place, "/index.html")[0] == 200)
            hold.touch()
            answer = users.submit(ask, place, "/slow")
            real.until(lambda: real.cloud.balancers and any(real.cloud.balancers._flights.values()))
            group.deregister(id)
            if ends:
                hold.unlink()
                assert answer.result(20) == (200, id)
                real.until(lambda: ask(place, "/index.html")[0] == 503)
            else:
                assert answer.result(20) == (502, ""), "it is cut"
            real.until(lambda: group.health() == [])


def test_a_target_where_nobody_listens_fails_its_checks(real: Sim) -> None:
    group, id = Group(real), real.running()
    assert real.cloud.machines is not None
    group.register(id)
    group.becomes("healthy")
    real.cloud.machines.stop(id)
    group.becomes("unhealthy", "Target.FailedHealthChecks")
    real.client("ec2").stop_instances(InstanceIds=[id])
    group.becomes("unused", "Target.InvalidState")
