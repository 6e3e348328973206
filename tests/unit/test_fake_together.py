"""What threads ask the fake cloud for at the same moment is one call, and what is refused to one is refused to no
other: its balancer, guests and servers are as those of clouds whose calls take many."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from providers.clients import rounds
from providers.compute import Compute
from providers.compute.fake import FakeCloud, FakeCompute
from providers.errors import Conflict, GuardRefused, NotFound, ProviderError
from providers.fake_host import Operator
from providers.guest import Guest
from providers.guest.fake import FakeGuest
from providers.probe.fake import FakeSites
from providers.traffic import Guard, Member, Traffic
from providers.traffic.fake import FakeTraffic
from tests.support.fake_cloud import running_cloud

MANY = 6
NAMES = [f"web-{number}" for number in range(MANY)]


class Stage:
    """Servers that serve in one pool, and the providers of one worker."""

    def __init__(self, settings: Mapping[str, Any], operator: Any) -> None:
        self.operator = operator
        self.addresses = {name: operator.server(name, pools={"web": 80}).address for name in NAMES}
        self.compute: Compute = FakeCompute(settings)
        self.guest: Guest = FakeGuest(settings)
        self.traffic: Traffic = FakeTraffic(settings)

    def calls(self, name: str) -> int:
        return int(self.operator.calls().get(name, 0))


@pytest.fixture(params=["in this process", "in its own"])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    world = uuid.uuid4().hex
    if request.param == "in its own":
        with running_cloud() as cloud:
            yield Stage(cloud.settings(world), cloud.operator(world))
    else:
        yield Stage({"world": world}, Operator(FakeCloud.of({"world": world}), FakeSites()))
        del FakeCloud.named[world]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], Any]], dict[str, Any]]:
    """What each of the servers' threads hears that comes with all the others."""

    def hear(ask: Callable[[str], Any], name: str) -> Any:
        try:
            return ask(name)
        except ProviderError as error:
            return type(error)

    def ask_all(ask: Callable[[str], Any]) -> dict[str, Any]:
        crowd = SimpleNamespace(busy=MANY, coming=1, patience=30.0, threads=MANY)
        monkeypatch.setattr(rounds._Process, "crowd", crowd)
        with ThreadPoolExecutor(MANY) as pool:
            return dict(zip(NAMES, pool.map(lambda name: hear(ask, name), NAMES), strict=True))

    return ask_all


Ask = Callable[[Callable[[str], Any]], dict[str, Any]]


def test_those_who_leave_together_leave_enough_behind(stage: Stage, at_once: Ask) -> None:
    guard = Guard(min_healthy=4)
    heard = at_once(lambda name: stage.traffic.remove("web", name, guard=guard, cut=False).state)
    assert sorted(heard.values(), key=str) == [*[GuardRefused] * 4, *["draining"] * 2]
    assert stage.calls("remove") == 1
    serving = [view.name for view in stage.traffic.members("web") if view.state == "serving"]
    assert sorted(serving) == sorted(name for name, said in heard.items() if said is GuardRefused)


def test_one_whose_guard_names_a_leaving_one_stays(stage: Stage, at_once: Ask) -> None:
    """Each is decided as those before it have left, whoever came first."""
    first, second = NAMES[:2]
    relies = {first: (second,), second: (first,)}

    def leave(name: str) -> str:
        guard = Guard(min_healthy=1, serving=relies.get(name, ()))
        asked = name if name in relies else f"no-{name}"
        return stage.traffic.remove("web", asked, guard=guard, cut=False).state

    heard = at_once(leave)
    assert {heard[first], heard[second]} == {"draining", GuardRefused}
    assert {heard[name] for name in NAMES[2:]} == {"absent"}
    assert stage.calls("remove") == 1


def test_those_who_come_together_come_in_but_for_the_one_that_is_another(stage: Stage, at_once: Ask) -> None:
    def come(name: str) -> str:
        address = stage.addresses[name]
        known_as = "web-1" if name == "web-0" else f"{name}.g2"
        return stage.traffic.add("web", Member(name=known_as, address=address, port=80)).state

    heard = at_once(come)
    assert heard.pop("web-0") is Conflict
    assert set(heard.values()) == {"joining"}
    assert stage.calls("add") == 1


def test_servers_are_stopped_together_but_for_the_protected_and_the_gone(stage: Stage, at_once: Ask) -> None:
    stage.compute.protect("web-1", True)
    stage.compute.tag("web-2", {"changeover:returned": "r1"})
    heard = at_once(
        lambda name: stage.compute.stop("gone" if name == "web-0" else name, given={"changeover:returned": None})
    )
    assert heard == {"web-0": NotFound, "web-1": GuardRefused, "web-2": GuardRefused, **dict.fromkeys(NAMES[3:])}
    assert stage.calls("stop") == 1
    states = {id: server.state for id, server in stage.compute.servers(NAMES).items()}
    assert states == {**dict.fromkeys(NAMES[:3], "running"), **dict.fromkeys(NAMES[3:], "stopped")}


def test_a_look_inside_many_servers_is_one_and_one_that_does_not_answer_harms_no_other(
    stage: Stage, at_once: Ask
) -> None:
    stage.compute.stop("web-0")
    heard = at_once(lambda name: [facts.server for facts in stage.guest.facts([name], paths=["/etc"]).values()])
    assert heard == {"web-0": [], **{name: [name] for name in NAMES[1:]}}
    assert stage.calls("facts") == 1
