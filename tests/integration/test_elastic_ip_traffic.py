"""What is particular to Elastic IPs, beyond the contract: notes, what EC2 tells late, who is frozen, who is refused."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from providers.errors import Busy, Conflict, GuardRefused, NotFound, ProviderError, Refused, Throttled, Unauthorized
from providers.traffic import Guard, Member, MemberView
from providers.traffic.elastic_ip import ElasticIpTraffic
from simcloud.cloud import ACCOUNT, SimCloud
from simcloud.ec2 import ec2
from simcloud.faults import Fault
from tests.support.aws import PORT, REGION, address_of, credentials, elastic_ip, launch, wire

NO_GUARD = Guard(min_healthy=0)


class Stage:
    """An address that leads to the instance `old`; `new` has none. Nobody is asked how it is."""

    def __init__(self, cloud: SimCloud) -> None:
        self.cloud, self.network, self.late = cloud, cloud.network(region=REGION), 0.0
        self.old, self.new = self.server(), self.server()
        self.id, self.ip = elastic_ip(cloud, self.old)
        self.until(lambda: self.running(self.new))
        self.traffic = self.anew()

    def anew(self, **settings: Any) -> ElasticIpTraffic:
        """As another process has it, `late` seconds later."""
        mine = {"region": REGION, "endpoint": self.cloud.url, "open_connections": "cut", "check": "none"}
        pools = {"web": {"backend": self.id, "port": PORT}}
        return ElasticIpTraffic({**mine, "pools": pools, **settings}, clock=lambda: time.time() + self.late)

    def server(self) -> str:
        return launch(self.cloud, self.network)

    def running(self, id: str) -> bool:
        return bool(wire(self.cloud).read("ec2", "describe_instance_status", InstanceIds=[id])["InstanceStatuses"])

    def until(self, true: Callable[[], Any], seconds: float = 60.0) -> Any:
        end = time.monotonic() + seconds
        while not (found := true()):
            assert time.monotonic() < end, "it never came"
            time.sleep(0.05)
        return found

    def member(self, name: str, id: str, **more: Any) -> Member:
        return Member(name=name, address=address_of(self.cloud, id), port=PORT, **more)

    @property
    def mine(self) -> Member:
        return self.member("web.g2", self.new, instead_of=(self.old, "web.g2"))

    @property
    def former(self) -> Member:
        return self.member(self.old, self.old, instead_of=(self.old, "web.g2"))

    def view(self, name: str) -> MemberView:
        return self.anew().proven([("web", name)])["web", name]

    def comes(self, member: Member) -> None:
        self.until(lambda: self.traffic.add("web", member).state == "serving")

    def leads(self) -> str:
        """To which instance, whatever describe calls tell."""
        there = ec2(ACCOUNT, REGION).addresses
        return str(next(each.instance_id for each in there if each.allocation_id == self.id))

    def shows_the_old_one(self) -> None:
        """As EC2 may do for a while after it was told otherwise."""
        wire(self.cloud).write("ec2", "associate_address", AllocationId=self.id, InstanceId=self.old)

    def notes(self) -> dict[str, str]:
        return {key: value for key, value in self.cloud.billable()["address"][self.id].items() if "changeover" in key}


@pytest.fixture
def stage() -> Iterator[Stage]:
    with credentials(), SimCloud(machines=False) as cloud:
        yield Stage(cloud)


def test_a_move_has_to_be_asked_for(stage: Stage) -> None:
    for said in ({"open_connections": ""}, {"open_connections": "keep"}):
        with pytest.raises(Refused, match="write open_connections: cut"):
            stage.anew(**said)


@pytest.mark.parametrize(
    "settings",
    [
        {"region": ""},
        {"speed": 1},
        {"check": "udp"},
        {"pools": {"web": {"backend": "203.0.113.7", "port": 80}}},
        {"pools": {"web": {"backend": "eipalloc-0a"}}},
        {"pools": {pool: {"backend": "eipalloc-0a", "port": port} for pool, port in (("a", 80), ("b", 81))}},
    ],
)
def test_settings_that_are_none_are_refused(stage: Stage, settings: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        stage.anew(**settings)


def test_it_leads_to_the_new_one_and_back_and_one_note_is_left(stage: Stage) -> None:
    assert [(view.name, view.state) for view in stage.traffic.members("web")] == [(stage.old, "serving")]
    stage.comes(stage.mine)
    assert (stage.leads(), stage.view(stage.old).state, stage.view("web.g2").state) == (stage.new, "absent", "serving")
    stage.comes(stage.former)
    assert (stage.leads(), stage.view("web.g2").state) == (stage.old, "leaving")
    gone = stage.anew().remove("web", "web.g2", guard=Guard(min_healthy=1, serving=(stage.old,)), cut=False)
    assert gone.state == "absent"
    assert list(stage.notes()) == [f"changeover:member:{stage.old}"]
    with pytest.raises(GuardRefused, match="until another one takes its place"):
        stage.traffic.remove("web", stage.old, guard=NO_GUARD, cut=True)


def test_until_ec2_shows_whom_it_was_told_last_nobody_serves_and_nobody_leaves(stage: Stage) -> None:
    stage.comes(stage.mine)
    stage.shows_the_old_one()
    view = stage.view("web.g2")
    assert (view.state, view.actionable) == ("joining", False) and "does not show it yet" in view.detail
    assert (stage.view(stage.old).state, stage.view(stage.old).actionable) == ("joining", True)
    for name in ("web.g2", stage.old):
        with pytest.raises(Busy, match="does not show it yet"):
            stage.traffic.remove("web", name, guard=NO_GUARD, cut=False)


def test_one_that_goes_back_at_once_is_told_last_though_ec2_never_showed_the_move(stage: Stage) -> None:
    stage.comes(stage.mine)
    stage.shows_the_old_one()
    told = stage.cloud.calls["ec2:AssociateAddress"]
    stage.comes(stage.former)
    assert stage.cloud.calls["ec2:AssociateAddress"] == told + 1, "what is shown may be what was before"
    assert (stage.view("web.g2").state, stage.view(stage.old).state) == ("leaving", "serving")


def test_whatever_describe_calls_tell_late_it_gets_there_and_back(stage: Stage) -> None:
    stage.cloud.timings.telling = 0.4
    for member, id in ((stage.mine, stage.new), (stage.former, stage.old)):
        stage.comes(member)
        assert stage.leads() == id
    stage.until(lambda: stage.traffic.remove("web", "web.g2", guard=Guard(min_healthy=1), cut=False).state == "absent")
    assert stage.leads() == stage.old


def test_after_a_while_what_ec2_shows_is_believed(stage: Stage) -> None:
    stage.comes(stage.mine)
    stage.shows_the_old_one()
    assert stage.view("web.g2").state == "joining"
    stage.late = 31.0
    assert (stage.view("web.g2").state, stage.view(stage.old).state) == ("leaving", "serving")


@pytest.mark.parametrize("action", ["AssociateAddress", "CreateTags", "DescribeAddresses", "DescribeInstances"])
@pytest.mark.parametrize("after", [True, False], ids=["made", "not made"])
def test_an_answer_that_is_lost_is_looked_up(stage: Stage, action: str, after: bool) -> None:
    stage.cloud.troubles.add(Fault(action=action, after=after, drop=True))
    stage.comes(stage.mine)
    assert stage.leads() == stage.new
    stage.comes(stage.former)
    stage.cloud.troubles.add(Fault(action="DeleteTags", after=after, drop=True))
    assert stage.traffic.remove("web", "web.g2", guard=NO_GUARD, cut=False).state == "absent"


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("RequestLimitExceeded", 503, Throttled),
        ("UnauthorizedOperation", 403, Unauthorized),
        ("Resource.AlreadyAssociated", 400, Busy),
    ],
)
def test_what_ec2_refuses_is_told_in_our_words(stage: Stage, code: str, status: int, kind: type[ProviderError]) -> None:
    stage.traffic.add("web", stage.mine)
    stage.cloud.troubles.add(Fault(action="AssociateAddress", code=code, http=status))
    with pytest.raises(kind) as refused:
        stage.traffic.add("web", stage.mine)
    assert refused.value.code == code and refused.value.request_id
    assert stage.leads() == stage.old


def test_a_caller_that_stood_still_before_its_call_gives_the_address_back(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.traffic.add("web", stage.mine)
    real, frozen = stage.traffic._aws.write, [True]

    def write(service: str, operation: str, **params: Any) -> Any:
        """Meanwhile somebody else turns back."""
        if operation == "associate_address" and frozen:
            frozen.clear()
            stage.until(lambda: stage.anew().restore("web", stage.former).state == "serving")
        return real(service, operation, **params)

    monkeypatch.setattr(stage.traffic._aws, "write", write)
    with pytest.raises(Conflict, match=f"{stage.old} keeps it"):
        stage.traffic.add("web", stage.mine)
    assert stage.leads() == stage.old
    assert stage.view(stage.old).state == "serving"


def test_an_address_that_somebody_else_has_moved_stays_there(stage: Stage) -> None:
    third = stage.server()
    stage.until(lambda: stage.running(third))
    stage.traffic.add("web", stage.mine)
    wire(stage.cloud).write("ec2", "associate_address", AllocationId=stage.id, InstanceId=third)
    with pytest.raises(Conflict, match=f"leads to {third}"):
        stage.traffic.add("web", stage.mine)
    assert stage.leads() == third
    assert stage.view(third).state == "serving"


def test_one_that_leads_nowhere_goes_to_whoever_comes_unless_somebody_is_faster(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    third = stage.server()
    stage.until(lambda: stage.running(third))
    wire(stage.cloud).write("ec2", "terminate_instances", InstanceIds=[stage.old])
    assert stage.traffic.members("web") == ()
    stage.traffic.add("web", stage.mine)
    real = stage.traffic._aws.write

    def write(service: str, operation: str, **params: Any) -> Any:
        if operation == "associate_address":
            real("ec2", "associate_address", AllocationId=stage.id, InstanceId=third)
        return real(service, operation, **params)

    with monkeypatch.context() as patched:
        patched.setattr(stage.traffic._aws, "write", write)
        with pytest.raises(Busy):
            stage.traffic.add("web", stage.mine)
    assert stage.leads() == third


def test_what_is_no_server_s_is_refused(stage: Stage) -> None:
    lone = wire(stage.cloud).write(
        "ec2", "create_network_interface", SubnetId=next(iter(stage.network.subnets.values()))
    )["NetworkInterface"]["NetworkInterfaceId"]
    wire(stage.cloud).write("ec2", "associate_address", AllocationId=stage.id, NetworkInterfaceId=lone)
    with pytest.raises(Refused, match="belongs to no instance"):
        stage.traffic.members("web")
    with pytest.raises(Refused, match="belongs to no instance"):
        stage.traffic.add("web", stage.mine)
    (found,) = [each for each in stage.traffic.examine() if not each.ok]
    assert lone in found.detail
    lost = stage.anew(pools={"web": {"backend": "eipalloc-0123456789abcdef0", "port": PORT}})
    with pytest.raises(NotFound, match="no Elastic IP eipalloc-0123456789abcdef0"):
        lost.members("web")
    assert not next(each.ok for each in lost.examine())


def test_one_that_has_an_address_already_keeps_it(stage: Stage) -> None:
    _, other = elastic_ip(stage.cloud, stage.new)
    with pytest.raises(Refused, match=f"has the Elastic IP {other} already"):
        stage.traffic.add("web", stage.mine)
    assert stage.traffic.elsewhere([stage.former.address]) == {}


def test_one_that_does_not_run_joins_nothing(stage: Stage) -> None:
    mine = stage.mine
    wire(stage.cloud).write("ec2", "stop_instances", InstanceIds=[stage.new])
    stage.until(lambda: stage.traffic.add("web", mine).detail == "it is stopped")
    wire(stage.cloud).write("ec2", "terminate_instances", InstanceIds=[stage.new])
    stage.until(lambda: stage.traffic.add("web", mine).detail.startswith("no instance has the address"))
    assert stage.leads() == stage.old and stage.notes() == {}


def test_many_are_looked_at_in_one_call(stage: Stage) -> None:
    second, _ = elastic_ip(stage.cloud, stage.new)
    pools = {"web": {"backend": stage.id, "port": PORT}, "api": {"backend": second, "port": PORT}}
    traffic = stage.anew(pools={**pools, "gone": {"backend": "eipalloc-0123456789abcdef0", "port": PORT}})
    stage.cloud.calls.clear()
    views = traffic.proven([("web", stage.old), ("api", stage.new), ("gone", "x")])
    assert [view.state for view in views.values()] == ["serving", "serving", "absent"], (
        "one that is gone harms no other"
    )
    assert dict(stage.cloud.calls) == {"ec2:DescribeAddresses": 1}


def test_a_doctor_says_what_a_move_does_and_what_the_policy_lacks(stage: Stage) -> None:
    said = " ".join(each.detail for each in stage.traffic.examine())
    assert f"{stage.ip} leads to {stage.old}" in said and "is cut when it moves" in said
    assert all(each.ok for each in stage.traffic.examine())
    stage.cloud.troubles.add(Fault(action="AssociateAddress", code="UnauthorizedOperation", http=403, count=-1))
    (found,) = [each for each in stage.traffic.examine() if not each.ok]
    assert "ec2:AssociateAddress" in found.detail
