"""What the doctor says of an account at the simulated AWS, before anything is made there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from providers import Finding
from providers.compute import Size
from providers.compute.aws import AwsCompute
from providers.guest.aws import AwsGuest
from simcloud.cloud import SimCloud
from simcloud.faults import Fault
from tests.support.aws import REGION, credentials, launch, wire
from tests.support.local_host import until

GIB = 1024**3
MEDIUM = Size(memory=4 * GIB, disk=8 * GIB, type="t3.medium")  # 2 processors, as t3.small has
ACCOUNT = "123456789012"


class Stage:
    def __init__(self, cloud: SimCloud) -> None:
        self.cloud, self.network = cloud, cloud.network(region=REGION)

    def fleet(self, servers: int) -> list[str]:
        launch(self.cloud, self.network, MinCount=servers, MaxCount=servers)
        return list(self.cloud.billable()["instance"])

    def subnet(self, block: str) -> str:
        told = {"VpcId": self.network.vpc, "CidrBlock": block, "AvailabilityZone": f"{REGION}a"}
        return str(wire(self.cloud).write("ec2", "create_subnet", **told)["Subnet"]["SubnetId"])

    def doctor(
        self,
        ids: Sequence[str],
        *,
        size: Size = MEDIUM,
        at_once: int = 10,
        among: Sequence[str] = (),
        **settings: str,
    ) -> Sequence[Finding]:
        compute = AwsCompute({"region": REGION, "endpoint": self.cloud.url, **settings})
        return compute.examine(ids, sizes=[size], at_once=at_once, among=among)

    def said(self, about: str, ids: Sequence[str], **more: Any) -> Finding:
        (found,) = [each for each in self.doctor(ids, **more) if about in each.name]
        return found


@pytest.fixture
def stage() -> Iterator[Stage]:
    with credentials(), SimCloud(machines=False) as cloud:
        yield Stage(cloud)


def test_it_says_who_one_is(stage: Stage) -> None:
    ids = stage.fleet(1)
    said = stage.said("eu-west-1", ids, account=ACCOUNT)
    assert said.ok and said.detail == f"account {ACCOUNT}, as arn:aws:sts::{ACCOUNT}:user/moto"
    (wrong,) = stage.doctor(ids, account="999999999999")
    assert not wrong.ok and "belong to the account 123456789012, the fleet file says 999999999999" in wrong.detail
    stage.cloud.troubles.add(Fault(service="sts", code="InvalidClientTokenId", http=403, count=-1))
    (nobody,) = AwsCompute({"region": REGION, "endpoint": stage.cloud.url, "role": "arn:aws:iam::1:role/r"}).examine(
        ids, sizes=[MEDIUM], at_once=1
    )
    assert not nobody.ok and "whose credentials" in nobody.fix


def test_processors_are_counted_against_the_quota_and_those_in_use(stage: Stage) -> None:
    ids = stage.fleet(4)
    launch(stage.cloud, stage.network, InstanceType="m5.large")  # somebody else's counts as well
    name, quotas = "processors", stage.cloud.ledgers.vcpus
    assert stage.said(name, ids).ok, "nobody has changed the quota: the default holds"
    quotas[ACCOUNT, REGION] = 18
    said = stage.said(name, ids, at_once=10)
    assert said.ok and said.detail.startswith("10 of 18 are in use") and "8 more at its peak" in said.detail
    quotas[ACCOUNT, REGION] = 14
    said = stage.said(name, ids, at_once=10)
    assert not said.ok and "L-1216C47A" in said.fix and "ask for 18" in said.fix
    assert said.fix.endswith("or set rollout.max_in_flight to 2")
    assert stage.said(name, ids, at_once=2).ok
    large = Size(memory=8 * GIB, disk=8 * GIB, type="m5.xlarge")
    said = stage.said(name, ids, size=large, at_once=1)
    assert not said.ok and "max_in_flight" not in said.fix, "at the end all are larger, however slowly they come"


def test_what_the_quota_lets_through_is_what_can_be_launched(stage: Stage) -> None:
    ids = stage.fleet(2)
    stage.cloud.ledgers.vcpus[ACCOUNT, REGION] = 6
    said = stage.said("processors", ids, at_once=1)
    assert said.ok and "takes 2 more" in said.detail
    launch(stage.cloud, stage.network, InstanceType="t3.medium")
    assert not stage.said("processors", ids, at_once=1).ok


def test_addresses_are_counted_in_each_subnet_with_those_that_stopped_servers_keep(stage: Stage) -> None:
    subnet = stage.subnet("127.66.255.0/28")
    launch(
        stage.cloud, stage.network, NetworkInterfaces=[{"DeviceIndex": 0, "SubnetId": subnet}], MinCount=5, MaxCount=5
    )
    ids = list(stage.cloud.billable()["instance"])
    said = stage.said(f"addresses of {subnet}", ids)
    assert said.ok and said.detail.startswith(f"6 free in {subnet}, the new servers take 5")
    launch(
        stage.cloud, stage.network, NetworkInterfaces=[{"DeviceIndex": 0, "SubnetId": subnet}], MinCount=2, MaxCount=2
    )
    said = stage.said(f"addresses of {subnet}", ids)
    assert not said.ok and said.detail.startswith("4 free") and "free 1 in eu-west-1a" in said.fix
    spare, far = stage.subnet("127.66.254.0/28"), stage.network.subnets[f"{REGION}b"]
    assert not stage.said(f"addresses of {subnet}", ids, among=[far]).ok, "another zone is another matter"
    said = stage.said(f"addresses of {subnet}", ids, among=[far, spare])
    assert said.ok and said.detail.endswith("11 more in other subnets of eu-west-1a")


def test_what_may_not_be_read_is_told_and_hides_nothing_else(stage: Stage) -> None:
    ids = stage.fleet(1)
    stage.cloud.troubles.add(Fault(service="servicequotas", code="AccessDeniedException", http=400, count=-1))
    stage.cloud.troubles.add(Fault(action="DescribeSubnets", code="UnauthorizedOperation", http=403, count=-1))
    told = {each.name: each.ok for each in stage.doctor(ids)}
    assert [told.pop("aws: default/eu-west-1"), *told.values()] == [True, False, False]


def test_an_agent_that_is_not_online_is_named_page_after_page() -> None:
    with credentials(), SimCloud() as cloud:
        cloud.page = 2
        stage = Stage(cloud)
        ids = stage.fleet(5)
        guest = AwsGuest({"region": REGION, "endpoint": cloud.url})
        until(lambda: guest.examine(ids)[0].ok, "all agents are online")
        assert guest.examine(ids)[0].detail == "5 are online"
        wire(cloud).write("ec2", "stop_instances", InstanceIds=ids[:1])
        (said,) = guest.examine([*ids, "i-0123456789abcdef0"])
        assert not said.ok and f"{ids[0]} was ConnectionLost" in said.detail
        assert "1 never registered (i-0123456789abcdef0)" in said.detail and "AmazonSSMManagedInstanceCore" in said.fix
