"""Target groups, as the simulated AWS tells of them: what goes wrong there, and what a member is called."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from providers.errors import (
    Conflict,
    GuardRefused,
    NotFound,
    QuotaExceeded,
    Refused,
    Throttled,
    Transient,
    Unauthorized,
)
from providers.traffic import Guard, Member, MemberView
from providers.traffic.elbv2 import Elbv2Traffic
from simcloud.cloud import Network, SimCloud
from simcloud.faults import Fault
from tests.support.aws import (
    PORT,
    REGION,
    address_of,
    at_once,
    attributes,
    balanced,
    credentials,
    gathers,
    launch,
    register,
    wire,
)

NO_GUARD = Guard(min_healthy=0)
ILL = ("Target.ResponseCodeMismatch", "Health checks failed with these codes: [503]")


class Stage:
    """A network, a target group `shop-web` that a balancer leads to, and a clock that a test may move."""

    def __init__(self, cloud: SimCloud) -> None:
        self.cloud, self.network = cloud, cloud.network(region=REGION)
        self.group = balanced(cloud, self.network, "shop-web")
        self.late = 0.0
        self.traffic = self.anew()

    def anew(self, **pools: Any) -> Elbv2Traffic:
        """As another process sees it."""
        known = pools or {"web": {"backend": "shop-web", "port": PORT}}
        settings = {"region": REGION, "endpoint": self.cloud.url, "pools": known}
        return Elbv2Traffic(settings, clock=lambda: time.time() + self.late)

    def server(self, *, zone: int = 0, tags: dict[str, str] | None = None) -> str:
        nic = {"DeviceIndex": 0, "SubnetId": list(self.network.subnets.values())[zone], "Groups": [self.network.group]}
        id = launch(self.cloud, self.network, tags=tags or {}, NetworkInterfaces=[nic])
        self.until(
            lambda: wire(self.cloud).read("ec2", "describe_instance_status", InstanceIds=[id])["InstanceStatuses"]
        )
        return id

    def serving(self, count: int = 2) -> list[str]:
        ids = [self.server() for _ in range(count)]
        for id in ids:
            register(self.cloud, self.group, id)
        self.until(lambda: all(view.state == "serving" for view in self.traffic.members("web")))
        return ids

    def member(self, name: str, id: str) -> Member:
        return Member(name=name, address=address_of(self.cloud, id), port=PORT)

    def view(self, name: str, *, pool: str = "web", by: Elbv2Traffic | None = None) -> MemberView:
        return (by or self.traffic).proven([(pool, name)])[pool, name]

    def bring_in(self, member: Member) -> None:
        self.until(lambda: self.traffic.add("web", member).state == "serving")
        assert self.view(member.name).actionable is False

    def until(self, true: Callable[[], Any], seconds: float = 60.0) -> Any:
        end = time.monotonic() + seconds
        while not (found := true()):
            assert time.monotonic() < end, "it never came"
            time.sleep(0.05)
        return found

    def tags(self, id: str) -> dict[str, str]:
        return dict(self.cloud.billable()["instance"][id])

    def targets(self) -> list[tuple[str, str]]:
        told = wire(self.cloud).read("elbv2", "describe_target_health", TargetGroupArn=self.group)
        return [(e["Target"]["Id"], e["TargetHealth"]["State"]) for e in told["TargetHealthDescriptions"]]


@pytest.fixture
def stage() -> Iterator[Stage]:
    with credentials(), SimCloud(machines=False) as cloud:
        yield Stage(cloud)


def test_who_was_there_before_is_called_by_its_id_and_a_new_one_by_its_name(stage: Stage) -> None:
    old = stage.serving()
    new = stage.server()
    stage.bring_in(stage.member("web-1.g2", new))
    there = {view.name: view.address for view in stage.anew().members("web")}
    assert there == {**{id: address_of(stage.cloud, id) for id in old}, "web-1.g2": address_of(stage.cloud, new)}
    assert stage.tags(new) == {"changeover:member": "web-1.g2"}, "of its way in nothing is left"


def test_a_late_call_for_a_former_one_finds_nothing(stage: Stage) -> None:
    stage.serving()
    new = stage.server()
    stage.bring_in(stage.member("web-1.g3", new))
    assert stage.traffic.remove("web", "web-1.g2", guard=NO_GUARD, cut=True).state == "absent"
    assert stage.view("web-1.g3").state == "serving"
    gone = Member(name="web-1.g2", address="127.66.99.99", port=PORT)
    view = stage.traffic.add("web", gone)
    assert (view.state, view.detail) == ("absent", "no instance has the address 127.66.99.99")
    with pytest.raises(Conflict, match=r"web-1\.g3"):
        stage.traffic.add("web", stage.member("web-1.g2", new))


def test_one_name_is_one_instance_s(stage: Stage) -> None:
    stage.serving()
    first, second = stage.server(), stage.server()
    stage.bring_in(stage.member("web-1.g2", first))
    stage.until(lambda: stage.traffic.remove("web", "web-1.g2", guard=NO_GUARD, cut=False).state == "absent")
    with pytest.raises(Conflict, match=first):
        stage.traffic.add("web", stage.member("web-1.g2", second))
    copied = [{"Key": "changeover:member", "Value": "web-1.g2"}]
    wire(stage.cloud).write("ec2", "create_tags", Resources=[second], Tags=copied)
    for id in (first, second):
        register(stage.cloud, stage.group, id)
    view = stage.view("web-1.g2", by=stage.anew())
    assert view.state == "down" and first in view.detail and second in view.detail
    with pytest.raises(Conflict, match="changeover:member"):
        stage.anew().remove("web", "web-1.g2", guard=NO_GUARD, cut=False)


def test_what_the_balancer_says_of_it_is_told_in_words(stage: Stage) -> None:
    first, second = stage.serving()
    stage.cloud.groups.ill[first] = ILL
    stage.until(lambda: stage.view(first).state == "down")
    detail = stage.view(first).detail
    assert "status that the group does not expect" in detail and "[503]" in detail and ILL[0] in detail
    with pytest.raises(GuardRefused, match="no other is healthy"):
        stage.traffic.remove("web", second, guard=NO_GUARD, cut=True)
    (found,) = [each for each in stage.traffic.examine() if not each.ok]
    assert first in found.detail and "[503]" in found.detail


def test_a_zone_that_its_balancer_does_not_serve_is_refused_before_anything_is_changed(stage: Stage) -> None:
    one = Network(vpc=stage.network.vpc, subnets=dict(list(stage.network.subnets.items())[:1]), group="", image="")
    balanced(stage.cloud, one, "one-zone", users=8091)
    traffic = stage.anew(web={"backend": "one-zone", "port": PORT})
    id = stage.server(zone=1)
    with pytest.raises(Refused, match=r"does not serve eu-west-1b.*enable a subnet"):
        traffic.add("web", stage.member("web-1.g2", id))
    assert stage.tags(id) == {} and traffic.members("web") == []


def test_a_group_that_nothing_leads_to_is_refused(stage: Stage) -> None:
    unused = {"Name": "unused", "Protocol": "HTTP", "Port": PORT, "VpcId": stage.network.vpc}
    wire(stage.cloud).write("elbv2", "create_target_group", **unused)
    id = stage.server()
    traffic = stage.anew(web={"backend": "unused", "port": PORT})
    with pytest.raises(Refused, match="no listener leads to it"):
        traffic.add("web", stage.member("web-1.g2", id))
    assert [found.detail for found in traffic.examine() if not found.ok] == ["no listener leads to it"]


def test_a_stopped_instance_joins_nothing(stage: Stage) -> None:
    id = stage.server()
    wire(stage.cloud).write("ec2", "stop_instances", InstanceIds=[id])
    member = stage.member("web-1.g2", id)
    stage.until(lambda: stage.traffic.add("web", member).detail == "it is stopped")
    assert stage.targets() == []


@pytest.mark.parametrize("action", ["RegisterTargets", "CreateTags", "DeleteTags"])
def test_an_answer_that_is_lost_on_the_way_in_changes_nothing(stage: Stage, action: str) -> None:
    new = stage.server()
    stage.cloud.troubles.add(Fault(action=action, after=True, drop=True))
    before = stage.cloud.calls["elbv2:DescribeTargetHealth"]
    stage.traffic.add("web", stage.member("web-1.g2", new))
    assert stage.cloud.calls["elbv2:DescribeTargetHealth"] - before == 2, "once before, and once after the change"
    stage.bring_in(stage.member("web-1.g2", new))
    assert stage.targets() == [(new, "healthy")]
    assert stage.tags(new) == {"changeover:member": "web-1.g2"}


@pytest.mark.parametrize("action", ["DeregisterTargets", "CreateTags", "DeleteTags"])
def test_an_answer_that_is_lost_on_the_way_out_changes_nothing(stage: Stage, action: str) -> None:
    first, second = stage.serving()
    stage.cloud.troubles.add(Fault(action=action, after=True, drop=True))
    seen: list[str] = []
    stage.until(
        lambda: seen.append(stage.traffic.remove("web", first, guard=NO_GUARD, cut=False).state) or seen[-1] == "absent"
    )
    assert set(seen) == {"draining", "absent"}
    assert stage.targets() == [(second, "healthy")] and stage.tags(first) == {}


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("Throttling", 400, Throttled),
        ("ServiceUnavailable", 503, Transient),
        ("TooManyTargets", 400, QuotaExceeded),
        ("TooManyRegistrationsForTargetId", 400, QuotaExceeded),
        ("AccessDenied", 403, Unauthorized),
    ],
)
def test_what_elbv2_refuses_is_told_in_our_words(stage: Stage, code: str, status: int, kind: type[Exception]) -> None:
    new = stage.member("web-1.g2", stage.server())
    stage.cloud.troubles.add(Fault(service="elbv2", action="RegisterTargets", code=code, http=status, count=-1))
    with pytest.raises(kind) as refused:
        stage.traffic.add("web", new)
    assert refused.value.code == code and refused.value.request_id  # type: ignore[attr-defined] # all of ours have both


def test_who_was_taken_out_comes_back_if_the_others_fell_at_that_moment(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = stage.serving()
    real = stage.traffic._aws.write

    def write(service: str, operation: str, **params: Any) -> Any:
        """The other falls while this call is on its way."""
        if operation == "deregister_targets":
            stage.cloud.groups.ill[second] = ILL
            stage.until(lambda: (second, "unhealthy") in stage.targets())
        return real(service, operation, **params)

    monkeypatch.setattr(stage.traffic._aws, "write", write)
    with pytest.raises(GuardRefused, match=f"{first} stays"):
        stage.traffic.remove("web", first, guard=Guard(min_healthy=1, serving=(second,)), cut=False)
    stage.until(lambda: (first, "healthy") in stage.targets())
    assert stage.view(first).state == "serving" and stage.tags(first) == {}


def test_slow_start_is_waited_for(stage: Stage) -> None:
    attributes(stage.cloud, stage.group, {"slow_start.duration_seconds": "30"})
    stage.serving()
    new = stage.member("web-1.g2", stage.server())
    stage.traffic.add("web", new)
    stage.until(lambda: stage.view("web-1.g2").actionable)
    assert "its slow start begins" in stage.view("web-1.g2").detail
    view = stage.traffic.add("web", new)
    assert (view.state, view.actionable) == ("joining", False) and "s more until it has its full share" in view.detail
    stage.cloud.groups.ill[stage.targets()[-1][0]] = ILL
    stage.until(lambda: stage.view("web-1.g2").state == "down")
    stage.cloud.groups.ill.clear()
    stage.until(lambda: stage.view("web-1.g2").state == "joining")
    stage.late = 31.0
    assert stage.view("web-1.g2").actionable
    assert (stage.traffic.add("web", new).state, stage.view("web-1.g2").actionable) == ("serving", False)


def test_another_process_goes_on_where_one_was_cut_off(stage: Stage) -> None:
    first, _ = stage.serving()
    assert stage.traffic.remove("web", first, guard=NO_GUARD, cut=False).state == "draining"
    stage.until(lambda: stage.view(first, by=stage.anew()).state == "leaving")
    assert {view.name: view.state for view in stage.anew().members("web")}[first] == "leaving"
    assert stage.anew().remove("web", first, guard=NO_GUARD, cut=False).state == "absent"
    assert stage.view(first, by=stage.anew()).state == "absent" and stage.tags(first) == {}


def test_a_target_whose_instance_was_terminated_can_be_waited_for(stage: Stage) -> None:
    first, _ = stage.serving()
    wire(stage.cloud).write("ec2", "terminate_instances", InstanceIds=[first])
    assert stage.view(first, by=stage.anew()).state == "draining"
    stage.until(lambda: stage.view(first).state == "absent")


def test_a_group_of_addresses_is_changed_by_addresses(stage: Stage) -> None:
    balanced(stage.cloud, stage.network, "by-ip", users=8091, TargetType="ip")
    traffic = stage.anew(web={"backend": "by-ip", "port": PORT})
    first, second = stage.server(), stage.server()
    old = stage.member(address_of(stage.cloud, first), first)
    new = stage.member("web-1.g2", second)
    for member in (old, new):
        stage.until(lambda member=member: traffic.add("web", member).state == "serving")
    assert {view.name for view in traffic.members("web")} == {old.address, "web-1.g2"}
    stage.until(lambda: traffic.remove("web", old.name, guard=Guard(min_healthy=1), cut=False).state == "absent")
    assert [view.name for view in traffic.members("web")] == ["web-1.g2"]
    with pytest.raises(Conflict, match="has port 81"):
        traffic.add("web", Member(name="web-2.g2", address=old.address, port=81))


def test_a_group_at_two_ports_is_two_pools(stage: Stage) -> None:
    pools = {"web": {"backend": "shop-web", "port": PORT}, "admin": {"backend": stage.group, "port": 9090}}
    traffic = stage.anew(**pools)
    first, second = stage.serving()
    assert traffic.members("admin") == []
    address = address_of(stage.cloud, first)
    register(stage.cloud, stage.group, first, port=9090)
    stage.until(lambda: [view.state for view in traffic.members("admin")] == ["serving"])
    assert len(traffic.members("web")) == 2
    assert traffic.elsewhere([address]) == {}
    assert stage.traffic.elsewhere([address]) == {address: ["target group shop-web at port 9090"]}
    with pytest.raises(GuardRefused):
        traffic.remove("admin", first, guard=NO_GUARD, cut=True)
    stage.until(lambda: traffic.remove("web", first, guard=NO_GUARD, cut=True).state == "absent")
    assert [view.name for view in traffic.members("admin")] == [first]
    assert [view.name for view in traffic.members("web")] == [second]


def test_users_of_a_group_that_the_file_does_not_name_are_found(stage: Stage) -> None:
    first, second = stage.serving()
    other = balanced(stage.cloud, stage.network, "other", users=8091, port=7000)
    stage.cloud.page = 1
    register(stage.cloud, other, first, port=7000)
    both = [address_of(stage.cloud, id) for id in (first, second)]
    assert stage.traffic.elsewhere(both) == {both[0]: ["target group other at port 7000"]}


def test_a_doctor_tells_what_the_group_is_like(stage: Stage) -> None:
    stage.serving()
    told = {"stickiness.enabled": "true", "slow_start.duration_seconds": "60"}
    attributes(stage.cloud, stage.group, told)
    found = " ".join(each.detail for each in stage.traffic.examine())
    for words in ("drains for 1 s", "slow start takes 60 s", "stickiness (lb_cookie)", "HTTP /health every 30 s"):
        assert words in found
    assert all(each.ok for each in stage.traffic.examine())
    attributes(stage.cloud, stage.group, {"deregistration_delay.timeout_seconds": "0"})
    (ill,) = [each for each in stage.traffic.examine() if not each.ok]
    assert "deregistration delay" in ill.fix
    lost = stage.anew(web={"backend": "nowhere", "port": PORT})
    assert [each.ok for each in lost.examine()] == [False]
    with pytest.raises(NotFound, match="no target group nowhere"):
        lost.members("web")


def test_many_are_looked_at_in_two_calls_a_look(stage: Stage) -> None:
    balanced(stage.cloud, stage.network, "shop-api", users=8091)
    pools = {"web": {"backend": "shop-web", "port": PORT}, "api": {"backend": "shop-api", "port": PORT}}
    traffic = stage.anew(**pools)
    ids = stage.serving(12)
    wanted = [(pool, name) for pool in pools for name in [*ids, "web-1.g2"]]
    traffic.proven(wanted)
    before = Counter(stage.cloud.calls)
    for _ in range(3):
        views = traffic.proven(wanted)
        assert [views["web", id].state for id in ids] == ["serving"] * 12
        assert [views["api", id].state for id in ids] == ["absent"] * 12
    made = Counter(stage.cloud.calls) - before
    assert made == {"elbv2:DescribeTargetHealth": 6, "ec2:DescribeInstances": 3}


def test_those_who_come_at_the_same_moment_are_one_call_and_so_are_those_who_leave(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    born = [{"changeover:member": f"web-{number}.g2"} for number in range(3)]
    old, new = stage.serving(), [stage.server(tags=tags) for tags in (*born, {}, {}, {})]
    members = [stage.member(f"web-{number}.g2", id) for number, id in enumerate(new)]
    gathers(monkeypatch)
    before = Counter(stage.cloud.calls)
    at_once(6, lambda number: stage.traffic.add("web", members[number]))
    stage.until(lambda: all(stage.view(member.name).state == "serving" for member in members))
    at_once(6, lambda number: stage.traffic.add("web", members[number]))
    made = Counter(stage.cloud.calls) - before
    assert (made["elbv2:RegisterTargets"], made["ec2:CreateTags"], made["ec2:DeleteTags"]) == (1, 1 + 3, 1)
    assert {state for _, state in stage.targets()} == {"healthy"}
    assert all(stage.tags(id) == {"changeover:member": member.name} for id, member in zip(new, members, strict=True))

    before = Counter(stage.cloud.calls)
    guard = Guard(min_healthy=2, serving=tuple(old))
    gone = at_once(6, lambda number: stage.traffic.remove("web", members[number].name, guard=guard, cut=False))
    assert {view.state for view in gone} <= {"draining", "leaving"}
    stage.until(lambda: all(stage.view(member.name).state == "leaving" for member in members))
    at_once(6, lambda number: stage.traffic.remove("web", members[number].name, guard=guard, cut=False))
    made = Counter(stage.cloud.calls) - before
    assert (made["elbv2:DeregisterTargets"], made["ec2:CreateTags"], made["ec2:DeleteTags"]) == (1, 1, 1)
    assert sorted(id for id, _ in stage.targets()) == sorted(old)


def test_of_those_who_leave_at_the_same_moment_no_more_go_than_may(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = stage.serving(5)
    gathers(monkeypatch)
    told = at_once(5, lambda number: stage.traffic.remove("web", ids[number], guard=Guard(min_healthy=3), cut=False))
    refused = [one for one in told if isinstance(one, GuardRefused)]
    assert len(refused) == 3 and "only 2 others are healthy" in str(refused[0])
    assert [state for _, state in stage.targets() if state != "draining"] == ["healthy"] * 3


def test_one_who_cannot_come_or_leave_holds_up_none_of_the_others(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, _ = stage.serving(3)
    new = [stage.server() for _ in range(3)]
    members = [stage.member(f"web-{number}.g2", id) for number, id in enumerate(new)]
    members.append(Member(name="web-9.g2", address="127.66.99.99", port=PORT))
    members.append(Member(name="web-8.g2", address=address_of(stage.cloud, second), port=PORT))
    gathers(monkeypatch)
    real = stage.traffic._aws.write

    def write(service: str, operation: str, **params: Any) -> Any:
        """EC2 refuses a call of several for one of them."""
        if operation == "create_tags" and new[0] in params["Resources"]:
            raise Unauthorized("not that one", code="UnauthorizedOperation")
        return real(service, operation, **params)

    monkeypatch.setattr(stage.traffic._aws, "write", write)
    told = at_once(5, lambda number: stage.traffic.add("web", members[number]))
    assert [type(one) for one in told] == [Unauthorized, MemberView, MemberView, MemberView, Conflict]
    assert told[3].state == "absent"
    stage.until(lambda: {state for _, state in stage.targets()} == {"healthy"})
    assert {id for id, _ in stage.targets()} >= {new[1], new[2]}
    guard = Guard(min_healthy=1)
    told = at_once(2, lambda number: stage.traffic.remove("web", [first, "web-7"][number], guard=guard, cut=False))
    assert told[0].state in ("draining", "leaving") and told[1].state == "absent"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"region": REGION, "speed": 1},
        {"region": REGION, "poll": 0},
        {"region": REGION, "pools": {"web": {"backend": "x"}}},
        {"region": REGION, "pools": {pool: {"backend": "x", "port": 1} for pool in ("a", "b")}},
    ],
)
def test_settings_that_are_none_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        Elbv2Traffic(settings)
