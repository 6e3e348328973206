"""EC2, as the simulated AWS tells of it: what goes into a clone, and what happens when things go wrong."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from providers import Key, errors
from providers.compute import Image, Server, Size
from providers.compute.aws import AwsCompute
from providers.errors import Throttled, Transient
from simcloud.cloud import Network, SimCloud
from simcloud.ec2 import ec2
from simcloud.faults import Fault
from tests.contract.worlds import new_key
from tests.support.aws import REGION, at_once, credentials, gathers, launch, wire

GIB = 1024**3
SMALL = Size(memory=2 * GIB, disk=8 * GIB, type="t3.small")
MEDIUM = Size(memory=4 * GIB, disk=30 * GIB, type="t3.medium")
KEY = "arn:aws:kms:eu-west-1:123456789012:key/11111111-2222-3333-4444-555555555555"


class Stage:
    def __init__(self, cloud: SimCloud) -> None:
        self.cloud = cloud
        self.network: Network = cloud.network(region=REGION)
        self.compute = self.anew()
        self.wire = wire(cloud)

    def anew(self, **settings: Any) -> AwsCompute:
        """As another process sees it: with no memory of what this one did."""
        return AwsCompute({"region": REGION, "endpoint": self.cloud.url, **settings})

    def becomes(self, id: str, state: str) -> Server | Image:
        def there() -> Any:
            found = {**self.compute.servers([id]), **self.compute.images([id])}
            return found[id] if id in found and found[id].state == state else None

        return self.until(there)

    def until(self, true: Any, seconds: float = 20.0) -> Any:
        end = time.monotonic() + seconds
        while not (found := true()):
            assert time.monotonic() < end, "it never came"
            time.sleep(0.05)
        return found

    def server(self, **more: Any) -> str:
        id = launch(self.cloud, self.network, **more)
        self.becomes(id, "running")
        return id

    def image(self, old: str) -> str:
        made = self.compute.ensure_image(new_key(), source=old)
        self.becomes(made.id, "available")
        return made.id

    def template(self, id: str) -> dict[str, Any]:
        told = self.wire.read("ec2", "get_launch_template_data", InstanceId=id)["LaunchTemplateData"]
        return dict(told)

    def calls(self) -> int:
        return sum(self.cloud.calls.values())

    def made(self, kind: str, key: Key) -> list[str]:
        """Ids of what carries this key's name, from the cloud's own tables."""
        table = self.cloud.billable()[kind]
        return [id for id, tags in table.items() if tags.get("changeover:name") == key.name]


@pytest.fixture
def stage() -> Iterator[Stage]:
    with credentials(), SimCloud(machines=False) as cloud:
        yield Stage(cloud)


def profile(stage: Stage) -> str:
    stage.wire.write("iam", "create_instance_profile", InstanceProfileName="web")
    return "web"


def test_a_clone_has_all_that_the_old_server_had(stage: Stage) -> None:
    nic = {"DeviceIndex": 0, "SubnetId": list(stage.network.subnets.values())[1], "Groups": [stage.network.group]}
    root = {"VolumeSize": 10, "VolumeType": "gp3", "Iops": 4000, "Throughput": 250, "DeleteOnTermination": False}
    data = {"VolumeSize": 5, "VolumeType": "io2", "Iops": 500, "Encrypted": True, "KmsKeyId": KEY}
    old = stage.server(
        tags={"team": "blue", "kubernetes.io/cluster/a": "owned", "consul-join": "web", "Name": "web-1"},
        NetworkInterfaces=[nic],
        KeyName=stage.wire.write("ec2", "create_key_pair", KeyName="ops")["KeyName"],
        IamInstanceProfile={"Name": profile(stage)},
        UserData="#!/bin/sh\necho hello\n",
        MetadataOptions={"HttpTokens": "required", "HttpPutResponseHopLimit": 3},
        Monitoring={"Enabled": True},
        EbsOptimized=True,
        CreditSpecification={"CpuCredits": "unlimited"},
        InstanceInitiatedShutdownBehavior="stop",
        DisableApiTermination=True,
        BlockDeviceMappings=[{"DeviceName": "/dev/sda1", "Ebs": root}, {"DeviceName": "/dev/sdf", "Ebs": data}],
    )
    compute = stage.anew(leave_tags="consul-*, nothing")
    made = compute.ensure_server(new_key(), image=stage.image(old), like=old, size=MEDIUM)
    stage.becomes(made.id, "running")
    was, now = stage.template(old), stage.template(made.id)
    for name in ("KeyName", "IamInstanceProfile", "UserData", "MetadataOptions", "Monitoring", "EbsOptimized"):
        assert now[name] == was[name], name
    assert base64.b64decode(now["UserData"]) == b"#!/bin/sh\necho hello\n"
    assert now["CreditSpecification"] == {"CpuCredits": "unlimited"}
    assert now["InstanceType"] == "t3.medium"
    assert (now["DisableApiTermination"], now["DisableApiStop"]) == (False, False)
    (there,) = now["NetworkInterfaces"]
    assert (there["SubnetId"], there["Groups"]) == (nic["SubnetId"], nic["Groups"])
    disks = {each["DeviceName"]: each["Ebs"] for each in now["BlockDeviceMappings"]}
    assert {name: ebs["VolumeSize"] for name, ebs in disks.items()} == {"/dev/sda1": 25, "/dev/sdf": 5}
    assert (disks["/dev/sda1"]["Iops"], disks["/dev/sda1"]["Throughput"]) == (4000, 250)
    assert (disks["/dev/sdf"]["VolumeType"], disks["/dev/sdf"]["Iops"]) == ("io2", 500)
    assert (disks["/dev/sdf"]["Encrypted"], disks["/dev/sdf"]["KmsKeyId"]) == (True, KEY)
    assert all(ebs["DeleteOnTermination"] for ebs in disks.values())
    tags = compute.servers([made.id])[made.id].tags
    assert {name: tags.get(name) for name in ("team", "Name", "kubernetes.io/cluster/a", "consul-join")} == {
        "team": "blue",
        "Name": "web-1",
        "kubernetes.io/cluster/a": None,
        "consul-join": None,
    }


def test_volumes_are_filled_at_the_rate_that_is_wanted(stage: Stage) -> None:
    old = stage.server()
    image = stage.image(old)
    rates = {}
    for said in ({}, {"volume_initialization_rate": 200}):
        made = stage.anew(**said).ensure_server(new_key(), image=image, like=old, size=SMALL)
        told = stage.wire.read(
            "ec2", "describe_volumes", Filters=[{"Name": "attachment.instance-id", "Values": [made.id]}]
        )
        rates[len(said)] = [each.get("VolumeInitializationRate") for each in told["Volumes"]]
    assert rates == {0: [None], 1: [200]}
    for wrong in (99, 301, "200", True):
        with pytest.raises(errors.Refused, match="100 to 300"):
            stage.anew(volume_initialization_rate=wrong)


def test_user_data_stays_behind_where_that_is_wanted(stage: Stage) -> None:
    old = stage.server(UserData="#!/bin/sh\n")
    made = stage.anew(user_data="empty").ensure_server(new_key(), image=stage.image(old), like=old, size=SMALL)
    assert "UserData" not in stage.template(made.id)


def test_a_type_that_cannot_burst_is_asked_for_without_credits(stage: Stage) -> None:
    old = stage.server(CreditSpecification={"CpuCredits": "unlimited"})
    size = Size(memory=8 * GIB, disk=8 * GIB, type="m5.large")
    made = stage.compute.ensure_server(new_key(), image=stage.image(old), like=old, size=size)
    assert "CreditSpecification" not in stage.template(made.id)


@pytest.mark.parametrize(
    ("size", "why"),
    [
        (Size(memory=2 * GIB, disk=8 * GIB, type="t4g.small"), "arm64"),
        (Size(memory=4 * GIB, disk=8 * GIB, type="t3.small"), "2048 MiB of memory, 4096 MiB are asked for"),
        (Size(memory=2 * GIB, disk=8 * GIB, type="t3.enormous"), "knows no type t3.enormous"),
        (Size(memory=2 * GIB, disk=8 * GIB), "needs the type"),
        (Size(memory=2 * GIB, disk=4 * GIB, type="t3.small"), "needs 8 GiB of disk"),
    ],
)
def test_a_size_that_does_not_fit_is_refused_before_anything_is_made(stage: Stage, size: Size, why: str) -> None:
    old = stage.server()
    image = stage.image(old)
    with pytest.raises(errors.Refused, match=why):
        stage.compute.ensure_server(new_key(), image=image, like=old, size=size)
    assert stage.cloud.calls["ec2:RunInstances"] == 1  # the one that made the old one
    if size.disk >= 8 * GIB:
        assert why in "; ".join(stage.compute.obstacles([old], sizes=[size])[old])


def test_a_type_that_the_zone_does_not_have_is_told_beforehand(stage: Stage) -> None:
    old = stage.server()
    size = Size(memory=1 * GIB, disk=8 * GIB, type="mac1.metal")
    assert "is not offered in eu-west-1a" in "; ".join(stage.compute.obstacles([old], sizes=[size])[old])


@pytest.mark.parametrize(
    ("tag", "why"),
    [
        ("aws:autoscaling:groupName", "belongs to the Auto Scaling group"),
        ("aws:cloudformation:stack-name", "belongs to the CloudFormation stack"),
        ("karpenter.sh/nodepool", "belongs to the Karpenter node pool"),
    ],
)
def test_a_server_that_somebody_else_looks_after_is_refused(stage: Stage, tag: str, why: str) -> None:
    old, other = stage.server(), stage.server()
    ec2("123456789012", REGION).create_tags([old], {tag: "theirs"})  # nobody may write such a tag by a call
    with pytest.raises(errors.Refused, match=why):
        stage.compute.ensure_image(new_key(), source=old)
    assert stage.cloud.billable()["image"].keys() == {stage.network.image}
    found = stage.compute.obstacles([old, other], sizes=[SMALL])
    assert set(found) == {old} and why in found[old][0]


@pytest.mark.parametrize("action", ["CreateImage", "RunInstances", "StopInstances", "CreateTags"])
def test_a_permission_that_is_missing_is_told_before_anything_is_made(stage: Stage, action: str) -> None:
    old, other = stage.server(), stage.server()
    before = stage.cloud.billable()
    assert stage.compute.obstacles([old, other], sizes=[SMALL]) == {}
    stage.cloud.troubles.add(Fault(service="ec2", action=action, code="UnauthorizedOperation", http=403))
    found = stage.compute.obstacles([old, other], sizes=[SMALL])
    assert set(found) == {old, other}
    assert all(f"may not ec2:{action} (UnauthorizedOperation)" in "; ".join(each) for each in found.values())
    assert stage.cloud.billable() == before
    assert {each.state for each in stage.compute.servers([old, other]).values()} == {"running"}


def test_a_worker_killed_between_the_call_and_the_record_is_succeeded_by_one_that_adopts(stage: Stage) -> None:
    old = stage.server()
    image_key, key = new_key(), new_key()
    image = stage.compute.ensure_image(image_key, source=old)
    assert stage.anew().ensure_image(image_key, source=old).id == image.id
    stage.becomes(image.id, "available")
    assert stage.anew().ensure_image(image_key, source=old).state == "available"
    server = stage.compute.ensure_server(key, image=image.id, like=old, size=SMALL)
    assert stage.anew().ensure_server(key, image=image.id, like=old, size=SMALL).id == server.id
    assert (stage.made("image", image_key), stage.made("instance", key)) == ([image.id], [server.id])


def test_what_does_not_show_yet_is_made_once_all_the_same(stage: Stage) -> None:
    """The lookup finds nothing: EC2's own token and name are what holds."""
    old = stage.server()
    image = stage.image(old)
    stage.cloud.timings.lag = 60.0
    image_key, key = new_key(), new_key()
    stage.compute.ensure_image(image_key, source=old)
    with pytest.raises(errors.NotYetVisible):
        stage.anew().ensure_image(image_key, source=old)
    made = [each.ensure_server(key, image=image, like=old, size=SMALL) for each in (stage.compute, stage.anew())]
    assert made[0].id == made[1].id
    with pytest.raises(errors.NotYetVisible):
        stage.compute.terminate(made[0].id)
    assert len(stage.made("image", image_key)) == len(stage.made("instance", key)) == 1


def test_a_lost_answer_and_an_old_server_that_changed_meanwhile_still_make_one(stage: Stage) -> None:
    old, key = stage.server(), new_key()
    image = stage.image(old)
    stage.cloud.timings.lag = 3.0
    stage.cloud.troubles.add(Fault(service="ec2", action="RunInstances", after=True, drop=True))
    with pytest.raises(Transient):
        stage.compute.ensure_server(key, image=image, like=old, size=SMALL)
    stage.compute.tag(old, {"team": "green"})
    made = again(lambda: stage.compute.ensure_server(key, image=image, like=old, size=SMALL))
    assert stage.made("instance", key) == [made.id]


def test_five_hundreds_and_lost_answers_leave_nothing_twice(stage: Stage) -> None:
    old = stage.server()
    stage.cloud.troubles.add(Fault(service="ec2", code="InternalError", http=500, rate=0.2, count=-1))
    stage.cloud.troubles.add(Fault(service="ec2", after=True, drop=True, rate=0.2, count=-1, writes=True))
    keys = [(new_key(), new_key()) for _ in range(8)]

    def go(pair: tuple[Key, Key]) -> None:
        image_key, key = pair
        image = again(lambda: stage.compute.ensure_image(image_key, source=old))
        stage.until(lambda: again(lambda: stage.compute.images([image.id]))[image.id].state == "available")
        again(lambda: stage.compute.ensure_server(key, image=image.id, like=old, size=SMALL))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(go, keys))
    for image_key, key in keys:
        assert len(stage.made("image", image_key)) == len(stage.made("instance", key)) == 1


def again(call: Any) -> Any:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            return call()
        except (Transient, Throttled, errors.NotYetVisible):
            time.sleep(0.05)
    raise AssertionError("it never got through")


def test_a_throttle_storm_stays_within_what_was_asked(stage: Stage) -> None:
    """One look for a hundred servers is one call a table, and a refused write is sent once."""
    old = stage.server()
    stage.cloud.troubles.limit("ec2:*", size=0, refill=0.0)
    before = stage.calls()
    for call in (lambda: stage.compute.stop(old), lambda: stage.compute.ensure_image(new_key(), source=old)):
        with pytest.raises(Throttled) as refused:
            call()
        assert (refused.value.code, bool(refused.value.request_id)) == ("RequestLimitExceeded", True)
    assert stage.calls() - before == 4  # each look is tried twice by the SDK, and nothing is written


def test_a_hundred_servers_are_looked_at_in_three_calls_and_then_in_two(stage: Stage) -> None:
    more = {"MinCount": 100, "MaxCount": 100}
    launch(stage.cloud, stage.network, **more)
    ids = list(stage.cloud.billable()["instance"])
    assert len(ids) == 100
    stage.until(lambda: {each.state for each in stage.compute.servers(ids).values()} == {"running"})
    for compute, calls in ((stage.compute, 2), (stage.anew(), 4)):  # a fresh one reads volumes and types as well
        before = stage.calls()
        assert len(compute.servers(ids)) == 100
        assert stage.calls() - before == calls


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (lambda cloud: cloud.ledgers.capacity.update({("eu-west-1a", "t3.small"): 1}), errors.NoCapacity),
        (lambda cloud: cloud.ledgers.vcpus.update({("123456789012", REGION): 2}), errors.QuotaExceeded),
    ],
    ids=["no room", "quota"],
)
def test_no_room_and_no_quota_are_told_apart_and_leave_nothing(stage: Stage, spoil: Any, kind: type[Exception]) -> None:
    old, key = stage.server(), new_key()
    image = stage.image(old)
    spoil(stage.cloud)
    with pytest.raises(kind):
        stage.compute.ensure_server(key, image=image, like=old, size=SMALL)
    assert stage.made("instance", key) == []


def test_a_clone_can_be_in_another_subnet_and_zone_of_its_network(stage: Stage) -> None:
    subnets = stage.network.subnets
    near, far = subnets[f"{REGION}a"], subnets[f"{REGION}b"]
    other = stage.wire.write("ec2", "create_subnet", VpcId=stage.network.vpc, CidrBlock="127.66.255.0/28")
    third = other["Subnet"]["SubnetId"]
    inside = [{"DeviceIndex": n, "SubnetId": at, "Groups": [stage.network.group]} for n, at in enumerate((near, third))]
    old = stage.server(NetworkInterfaces=inside)
    told = stage.compute.subnets(old, among=[far, near])
    assert [(each.id, each.zone) for each in told] == [(near, f"{REGION}a"), (far, f"{REGION}b")]
    assert [each.free for each in told] == [250, 251]
    image, size = stage.image(old), replace(SMALL, subnet=far)
    made = stage.compute.ensure_server(new_key(), image=image, like=stage.server(), size=size)
    (nic,) = stage.template(made.id)["NetworkInterfaces"]
    assert nic["SubnetId"] == far
    assert stage.compute.subnets(made.id, among=[])[0].free == 250
    two = launch_interfaces(stage, old, image, far)
    assert two == {0: far, 1: third}, "the second one is where it was"


def launch_interfaces(stage: Stage, old: str, image: str, subnet: str) -> dict[int, str]:
    made = stage.compute.ensure_server(new_key(), image=image, like=old, size=replace(SMALL, subnet=subnet))
    return {nic["DeviceIndex"]: nic["SubnetId"] for nic in stage.template(made.id)["NetworkInterfaces"]}


def test_a_subnet_that_is_not_of_the_network_is_refused(stage: Stage) -> None:
    old = stage.server()
    other = stage.cloud.network(region=REGION)
    strange = next(iter(other.subnets.values()))
    with pytest.raises(errors.Refused, match=f"the subnet {strange} is in {other.vpc}, {old} in {stage.network.vpc}"):
        stage.compute.subnets(old, among=[strange])
    with pytest.raises(errors.Refused, match="there is no subnet subnet-0123456789abcdef0"):
        stage.compute.subnets(old, among=["subnet-0123456789abcdef0"])


def test_a_subnet_without_addresses_has_no_room_and_another_attempt_finds_some(stage: Stage) -> None:
    full = stage.wire.write("ec2", "create_subnet", VpcId=stage.network.vpc, CidrBlock="127.66.255.0/28")
    full = full["Subnet"]["SubnetId"]
    nic = {"DeviceIndex": 0, "SubnetId": full, "Groups": [stage.network.group]}
    ids = [stage.server(NetworkInterfaces=[nic], MinCount=11, MaxCount=11)]
    image, key = stage.image(ids[0]), new_key()
    with pytest.raises(errors.NoCapacity, match="not enough free addresses") as refused:
        stage.compute.ensure_server(key, image=image, like=ids[0], size=SMALL)
    assert refused.value.code == "InsufficientFreeAddressesInSubnet" and stage.made("instance", key) == []
    own, spare = stage.compute.subnets(ids[0], among=[next(iter(stage.network.subnets.values()))])
    assert (own.free, spare.free) == (0, 251)
    size = replace(SMALL, subnet=spare.id)
    assert stage.compute.ensure_server(new_key(), image=image, like=ids[0], size=size).state == "pending"


def test_a_stopped_server_may_find_no_room_to_start_in(stage: Stage) -> None:
    old = stage.server()
    stage.compute.stop(old)
    stage.becomes(old, "stopped")
    stage.cloud.timings.stopping = 30
    other = stage.server()
    stage.compute.stop(other)
    with pytest.raises(errors.Busy):
        stage.compute.start(other)
    stage.cloud.ledgers.capacity["eu-west-1a", "t3.small"] = 0
    with pytest.raises(errors.NoCapacity):
        stage.compute.start(old)


def test_those_who_are_to_stop_at_the_same_moment_are_one_call_and_nobody_holds_up_the_others(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [stage.server() for _ in range(6)]
    stage.compute.protect(ids[0], on=True)
    gathers(monkeypatch)
    before = stage.cloud.calls["ec2:StopInstances"]
    none = {"changeover:returned": None}
    assert at_once(3, lambda number: stage.compute.stop(ids[number + 3], given=none)) == [None] * 3
    assert stage.cloud.calls["ec2:StopInstances"] - before == 1
    stage.compute.tag(ids[1], {"changeover:returned": "since"})
    told = at_once(4, lambda number: stage.compute.stop([*ids[:3], "i-00000000"][number], given=none))
    assert [type(one) for one in told] == [errors.GuardRefused, errors.GuardRefused, type(None), errors.NotFound]
    there = stage.compute.servers(ids)
    assert [there[id].state in ("stopping", "stopped") for id in ids] == [False, False, True, True, True, True]


def test_a_server_runs_once_its_checks_pass_and_has_failed_when_they_go_on_failing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.cloud.timings.checks = 600.0
    id = launch(stage.cloud, stage.network)
    stage.until(lambda: "initializing" in stage.compute.servers([id])[id].reason)
    assert stage.compute.servers([id])[id].state == "pending"
    stage.cloud.timings.checks = 0.0
    stage.becomes(id, "running")
    stage.cloud.ledgers.impaired.add(id)
    assert "impaired" in stage.becomes(id, "pending").reason
    monkeypatch.setattr("providers.compute.aws.GRACE", 0.0)
    assert "the instance status check is impaired" in stage.becomes(id, "failed").reason


def test_an_image_that_failed_says_why(stage: Stage) -> None:
    made = stage.compute.ensure_image(new_key(), source=stage.server())
    ec2("123456789012", REGION).amis[made.id].failed = "the snapshot is broken"
    assert stage.becomes(made.id, "failed").reason == "the snapshot is broken"


def test_snapshots_go_with_their_image_and_those_left_over_a_second_time(stage: Stage) -> None:
    tables = ec2("123456789012", REGION)
    old = stage.server()
    before = set(tables.snapshots)
    image = stage.image(old)
    (snapshot,) = set(tables.snapshots) - before
    assert tables.tags[snapshot]["changeover:managed"] == "1"
    stage.compute.delete_image(image)
    assert set(tables.snapshots) == before
    image = stage.image(old)
    stage.wire.write("ec2", "deregister_image", ImageId=image)  # by somebody else: its snapshot stays
    assert set(tables.snapshots) != before
    stage.compute.delete_image(image)
    assert set(tables.snapshots) == before


def test_an_image_of_somebody_else_stays(stage: Stage) -> None:
    with pytest.raises(errors.GuardRefused):
        stage.compute.delete_image(stage.network.image)
    assert stage.network.image in stage.cloud.billable()["image"]


def test_the_inventory_is_read_to_its_last_page(stage: Stage) -> None:
    stage.cloud.page = 2
    old = stage.server()
    image = stage.image(old)
    ids = {stage.compute.ensure_server(new_key(mark="many*"), image=image, like=old, size=SMALL).id for _ in range(5)}
    stage.compute.ensure_server(new_key(mark="many more"), image=image, like=old, size=SMALL)
    assert {each.id for each in stage.compute.inventory({"mark": "many*"})} == ids


def test_another_account_is_reached_by_its_role(stage: Stage) -> None:
    role = "arn:aws:iam::222222222222:role/changeover-target"
    network = stage.cloud.network(account="222222222222", region=REGION)
    there = stage.anew(role=role, external_id="shop-7", account="222222222222")
    id = str(
        wire(stage.cloud, role=role).write(
            "ec2",
            "run_instances",
            ImageId=network.image,
            InstanceType="t3.small",
            MinCount=1,
            MaxCount=1,
            SubnetId=next(iter(network.subnets.values())),
        )["Instances"][0]["InstanceId"]
    )
    stage.until(lambda: there.servers([id])[id].state == "running")
    assert stage.compute.servers([id]) == {}
    wrong = stage.anew(role=role, account="333333333333")
    with pytest.raises(errors.Unauthorized, match="belong to the account 222222222222"):
        wrong.obstacles([id], sizes=[SMALL])
    with pytest.raises(errors.Unauthorized):
        wrong.ensure_image(new_key(), source=id)
    stage.cloud.revoke_credentials()  # they are asked for anew
    assert there.servers([id])[id].state == "running"


def test_a_setting_that_is_none_is_refused() -> None:
    with pytest.raises(errors.Refused, match="unknown zone"):
        AwsCompute({"region": REGION, "zone": "a"})
    with pytest.raises(errors.Refused, match="keep or empty"):
        AwsCompute({"region": REGION, "user_data": "no"})


def test_nobody_who_has_no_fleet_at_aws_imports_its_sdk() -> None:
    code = "import json, sys, tasks, workers.app, providers; print(json.dumps(sorted(sys.modules)))"
    ended = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert {"boto3", "botocore", "moto", "simcloud"} & set(json.loads(ended.stdout)) == set()


def test_an_image_is_taken_once_a_snapshot_of_each_volume_has_begun_and_many_ask_in_one_call(stage: Stage) -> None:
    stage.cloud.timings.image = 60.0
    disks = [{"DeviceName": name, "Ebs": {"VolumeSize": 10}} for name in ("/dev/sda1", "/dev/sdf")]
    olds = [stage.server(BlockDeviceMappings=disks) for _ in range(2)]
    images = [stage.compute.ensure_image(new_key(), source=old) for old in olds]
    assert [image.adopted for image in images] == [False, False]
    snapshots = ec2("123456789012", REGION).snapshots
    late = next(id for id, one in snapshots.items() if one.from_ami == images[0].id)
    kept = snapshots.pop(late)
    assert [stage.compute.taken(image.id) for image in images] == [False, True]
    snapshots[late] = kept
    before = stage.cloud.calls["ec2:DescribeSnapshots"]
    with ThreadPoolExecutor(20) as pool:
        assert all(pool.map(lambda number: stage.compute.taken(images[number % 2].id), range(40)))
    assert stage.cloud.calls["ec2:DescribeSnapshots"] - before <= 20, "who asks meanwhile shares the next"
    assert {stage.compute.images([image.id])[image.id].state for image in images} == {"pending"}
    with pytest.raises(errors.NotFound):
        stage.anew().taken("ami-00000000000000000")
