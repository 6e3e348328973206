"""What every traffic provider promises. A new one joins `WORLDS` and is held to all of it."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytest

from providers.compute.fake import FakeCloud
from providers.errors import Conflict, GuardRefused, NotFound, Refused
from providers.fake_host import Operator
from providers.probe.fake import FakeSites
from providers.traffic import Guard, Member, MemberView, Traffic
from providers.traffic.elastic_ip import ElasticIpTraffic
from providers.traffic.elbv2 import Elbv2Traffic
from providers.traffic.fake import FakeTraffic
from providers.traffic.rfc2136 import Rfc2136Traffic
from providers.traffic.route53 import Route53Traffic
from simcloud.cloud import SimCloud, Timings
from tests.support.aws import PORT, REGION, address_of, answers, balanced, credentials, elastic_ip, launch, register
from tests.support.fake_cloud import running_cloud
from tests.support.haproxy import HAProxy, Loop, Site, Visit, stage
from tests.support.nameserver import Names, names
from tests.support.route53 import Zone, hosted_zone

POOL = "web"
NO_GUARD = Guard(min_healthy=0)


class World(Protocol):
    """A balancer with one pool `web`, in which `a` and `c` serve, or `a` alone where the switch is not additive. `new`
    can serve and is not in the pool."""

    @property
    def traffic(self) -> Traffic: ...

    def member(self, name: str) -> Member: ...

    def heal(self, name: str, *, healthy: bool) -> None:
        """From now on the balancer's check of this server passes, or fails."""
        ...

    def hold(self, name: str) -> Callable[[], None]:
        """A user's request is in flight at this server until the returned function is called."""
        ...

    def request(self) -> None:
        """One user's request that is answered well."""
        ...

    def pass_time(self) -> None:
        """Lets a little of the world's time go by."""
        ...


class HAProxyWorld:
    def __init__(self, haproxy: HAProxy, sites: dict[str, Site]) -> None:
        self._haproxy, self._sites = haproxy, {name.lower(): site for name, site in sites.items()}
        self._visits: list[Visit] = []
        self.traffic: Traffic = haproxy.traffic(pools={POOL: {"backend": POOL}})

    def member(self, name: str) -> Member:
        site = self._sites[name]
        return Member(name=name, address=site.address, port=site.port)

    def heal(self, name: str, *, healthy: bool) -> None:
        self._sites[name].healthy = healthy

    def hold(self, name: str) -> Callable[[], None]:
        site = self._sites[name]
        for _ in range(10):
            before, visit = site.served, Visit(self._haproxy.users)
            self._visits.append(visit)
            visit.ask("/slow")
            end = time.monotonic() + 0.3
            while time.monotonic() < end:
                if site.served > before:
                    return site.release
                time.sleep(0.005)
        raise AssertionError(f"no request reached {name}")

    def request(self) -> None:
        visit = Visit(self._haproxy.users)
        self._visits.append(visit)
        visit.ask("/")
        assert visit.answer()[0] == 200

    def pass_time(self) -> None:
        time.sleep(0.05)

    def close(self) -> None:
        for visit in self._visits:
            visit.close()


@contextlib.contextmanager
def haproxy_world() -> Iterator[World]:
    with stage("a", "c", "NEW") as (haproxy, sites, _):
        world = HAProxyWorld(haproxy, sites)
        try:
            yield world
        finally:
            world.close()


class FakeWorld:
    """The fake balancer, in this process or in its own: `operator` says which."""

    def __init__(self, traffic: Traffic, operator: Operator) -> None:
        self.traffic, self._operator = traffic, operator
        pools = {"a": {POOL: 8080}, "c": {POOL: 8080}, "new": {}}
        self._addresses = {name: operator.server(name, pools=pool).address for name, pool in pools.items()}

    def member(self, name: str) -> Member:
        return Member(name=name, address=self._addresses[name], port=8080)

    def heal(self, name: str, *, healthy: bool) -> None:
        self._operator.health(self._addresses[name], healthy)

    def hold(self, name: str) -> Callable[[], None]:
        self._operator.session(POOL, name, 1)
        return lambda: self._operator.session(POOL, name, 0)

    def request(self) -> None: ...

    def pass_time(self) -> None: ...


@contextlib.contextmanager
def fake_world() -> Iterator[World]:
    world = uuid.uuid4().hex
    traffic = FakeTraffic({"world": world, "pools": {POOL: {}}})
    yield FakeWorld(traffic, Operator(traffic.cloud, FakeSites()))
    del FakeCloud.named[world]


@contextlib.contextmanager
def fake_world_of_its_own() -> Iterator[World]:
    with running_cloud() as running:
        traffic = FakeTraffic(running.settings("contract", pools={POOL: {}}))
        yield FakeWorld(traffic, running.operator("contract"))


class NamesWorld:
    """A name of which each member is an address, at name servers of which one is late."""

    def __init__(
        self,
        zone: Names | Zone,
        sites: dict[str, Site],
        made: Callable[[dict[str, Any]], Traffic],
        there: tuple[str, ...] = ("a", "c"),
        weighted: bool = False,
    ) -> None:
        self._sites = sites
        port = sites["a"].port
        for site in sites.values():
            site.stop()
            site.port = port
            site.start()
        known = {name: sites[name].address for name in there}
        if weighted:
            assert isinstance(zone, Zone)
            for name, address in known.items():
                zone.put(POOL, "A", 1, address, SetIdentifier=name, Weight=100)
        else:
            zone.put(POOL, "A", 1, *known.values())
        zone.put(f"_changeover.{POOL}", "TXT", 30, *(f'"member {n} {a} serving 0"' for n, a in known.items()))
        style: dict[str, Any] = {"addresses": "many" if len(there) > 1 else "one"}
        if weighted:
            style = {"addresses": "weighted", "canary_seconds": 0}
        self.traffic: Traffic = made(zone.settings({POOL: port}, check="/health", **style))
        until(self, lambda: self.traffic.members(POOL)[0].detail == "")

    def member(self, name: str) -> Member:
        site = self._sites[name]
        return Member(name=name, address=site.address, port=site.port)

    def heal(self, name: str, *, healthy: bool) -> None:
        self._sites[name].healthy = healthy

    def hold(self, name: str) -> Callable[[], None]:
        visit = Visit((self._sites[name].address, self._sites[name].port))
        visit.ask("/slow")

        def end() -> None:
            self._sites[name].release()
            visit.close()

        return end

    def request(self) -> None: ...

    def pass_time(self) -> None:
        time.sleep(0.05)


@contextlib.contextmanager
def names_world() -> Iterator[World]:
    loop = Loop()
    try:
        with names(lag=0.05) as zone:
            yield NamesWorld(zone, {name: Site(loop, name) for name in ("a", "c", "new")}, Rfc2136Traffic)
    finally:
        loop.close()


@contextlib.contextmanager
def name_of_one_world() -> Iterator[World]:
    loop = Loop()
    try:
        with names(lag=0.05) as zone:
            yield NamesWorld(zone, {name: Site(loop, name) for name in ("a", "new")}, Rfc2136Traffic, there=("a",))
    finally:
        loop.close()


@contextlib.contextmanager
def route53_world() -> Iterator[World]:
    loop = Loop()
    try:
        with hosted_zone() as zone:
            yield NamesWorld(zone, {name: Site(loop, name) for name in ("a", "c", "new")}, Route53Traffic)
    finally:
        loop.close()


@contextlib.contextmanager
def weighted_world() -> Iterator[World]:
    loop = Loop()
    try:
        with hosted_zone() as zone:
            sites = {name: Site(loop, name) for name in ("a", "c", "new")}
            yield NamesWorld(zone, sites, Route53Traffic, weighted=True)
    finally:
        loop.close()


class TargetGroupWorld:
    """A target group of a simulated cloud, whose targets are real processes that it really asks."""

    def __init__(self, cloud: SimCloud) -> None:
        network = cloud.network(region=REGION)
        self._cloud, self._ids = cloud, {}
        for name in ("a", "c", "new"):
            self._ids[name] = launch(cloud, network, tags={"changeover:member": name} if name != "new" else {})
        group = balanced(cloud, network, POOL, delay=1)
        self._addresses = {name: address_of(cloud, id) for name, id in self._ids.items()}
        pools = {POOL: {"backend": POOL, "port": PORT}}
        self.traffic: Traffic = Elbv2Traffic({"region": REGION, "endpoint": cloud.url, "pools": pools, "poll": 1})
        for name in ("a", "c"):
            register(cloud, group, self._ids[name])
        until(self, lambda: all(view.state == "serving" for view in self.traffic.members(POOL)))
        until(self, lambda: answers(self._addresses["new"], PORT))

    def member(self, name: str) -> Member:
        return Member(name=name, address=self._addresses[name], port=PORT)

    def _file(self, name: str, what: str) -> Path:
        assert self._cloud.machines is not None
        return self._cloud.machines.folder(self._ids[name]) / what

    def heal(self, name: str, *, healthy: bool) -> None:
        if healthy:
            self._file(name, "sick").unlink()
        else:
            self._file(name, "sick").touch()

    def hold(self, name: str) -> Callable[[], None]:
        hold = self._file(name, "hold")
        hold.touch()
        visit = Visit((self._addresses[name], PORT))
        visit.ask("/slow")

        def end() -> None:
            hold.unlink()
            visit.close()

        return end

    def request(self) -> None: ...

    def pass_time(self) -> None:
        time.sleep(0.05)


@contextlib.contextmanager
def target_group_world() -> Iterator[World]:
    with credentials(), SimCloud(timings=Timings(registering=1.0), port=PORT) as cloud:
        yield TargetGroupWorld(cloud)


class AddressWorld(TargetGroupWorld):
    """An Elastic IP of a simulated cloud, by which users really reach the process that it leads to."""

    def __init__(self, cloud: SimCloud) -> None:
        network = cloud.network(region=REGION)
        self._cloud = cloud
        self._ids = {name: launch(cloud, network) for name in ("a", "new")}
        self._addresses = {name: address_of(cloud, id) for name, id in self._ids.items()}
        id, self._ip = elastic_ip(cloud, self._ids["a"], member="a")
        pools = {POOL: {"backend": id, "port": PORT}}
        settings = {"region": REGION, "endpoint": cloud.url, "open_connections": "cut", "check": "/health"}
        self.traffic: Traffic = ElasticIpTraffic({**settings, "pools": pools})
        until(self, lambda: all(answers(address, PORT) for address in self._addresses.values()))
        until(self, lambda: answers(self._ip, PORT))

    def hold(self, name: str) -> Callable[[], None]:
        hold = self._file(name, "hold")
        hold.touch()
        visit = Visit((self._ip, PORT))
        visit.ask("/slow")

        def end() -> None:
            hold.unlink()
            visit.close()

        return end


@contextlib.contextmanager
def address_world() -> Iterator[World]:
    with credentials(), SimCloud(port=PORT) as cloud:
        yield AddressWorld(cloud)


WORLDS: dict[str, Callable[[], AbstractContextManager[World]]] = {
    "elastic_ip": address_world,
    "elbv2": target_group_world,
    "fake": fake_world,
    "fake in a process of its own": fake_world_of_its_own,
    "haproxy": haproxy_world,
    "rfc2136": names_world,
    "rfc2136, one address": name_of_one_world,
    "route53": route53_world,
    "route53, weighted": weighted_world,
}


@pytest.fixture(params=sorted(WORLDS))
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with WORLDS[request.param]() as made:
        yield made


def present(world: World) -> set[str]:
    """Who serves at the beginning."""
    return {"a", "c"} if world.traffic.caps.additive else {"a"}


def yield_to_new(world: World) -> None:
    """Where the new one takes the old one's place, nobody leaves before."""
    if not world.traffic.caps.additive:
        bring_in(world, "new")


def view_of(world: World, name: str) -> MemberView:
    return world.traffic.proven([(POOL, name)])[POOL, name]


def until(world: World, true: Callable[[], bool], *, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"still not: {world.traffic.members(POOL)}"
        world.pass_time()


def bring_in(world: World, name: str, *, again: bool = False) -> list[MemberView]:
    """Does what the views say, and nothing else: looks, and advances where a view is actionable."""
    advance = world.traffic.restore if again else world.traffic.add
    views = [advance(POOL, world.member(name))]

    def step() -> bool:
        view = view_of(world, name)
        views.append(view)
        if view.actionable:
            views.append(advance(POOL, world.member(name)))
        return views[-1].state == "serving" and not views[-1].actionable

    until(world, step)
    return views


def take_out(world: World, name: str, *, guard: Guard = NO_GUARD, cut: bool = False) -> list[str]:
    states: list[str] = []

    def step() -> bool:
        states.append(world.traffic.remove(POOL, name, guard=guard, cut=cut).state)
        return states[-1] == "absent"

    until(world, step)
    return states


def test_the_members_of_a_pool_are_those_that_serve(world: World) -> None:
    views = {view.name: view for view in world.traffic.members(POOL)}
    assert {name: view.state for name, view in views.items()} == dict.fromkeys(present(world), "serving")
    a = world.member("a")
    assert (views["a"].address, views["a"].port) == (a.address, a.port)


def test_an_unknown_pool_is_not_found(world: World) -> None:
    with pytest.raises(NotFound):
        world.traffic.members("nowhere")


def test_a_pool_lives_in_one_lane(world: World) -> None:
    assert world.traffic.lane(POOL)
    assert world.traffic.lane(POOL) == world.traffic.lane(POOL)


def test_a_new_member_joins_before_it_serves(world: World) -> None:
    views = bring_in(world, "new")
    states = [view.state for view in views]
    assert states[0] == "joining"
    assert states == sorted(states, key=["joining", "serving"].index)
    assert "new" in {view.name for view in world.traffic.members(POOL)}


def test_a_member_that_is_not_healthy_never_serves(world: World) -> None:
    world.heal("new", healthy=False)
    for _ in range(15):
        assert world.traffic.add(POOL, world.member("new")).state == "joining"
        world.pass_time()
    assert not view_of(world, "new").actionable
    world.heal("new", healthy=True)
    bring_in(world, "new")


def test_adding_a_member_that_serves_changes_nothing(world: World) -> None:
    for _ in range(3):
        assert world.traffic.add(POOL, world.member("a")).state == "serving"
        assert view_of(world, "a").state == "serving"


def test_the_name_of_another_address_is_a_conflict(world: World) -> None:
    a, new = world.member("a"), world.member("new")
    with pytest.raises(Conflict):
        world.traffic.add(POOL, Member(name="a", address=new.address, port=new.port))
    assert (view_of(world, "a").address, view_of(world, "a").state) == (a.address, "serving")


def test_an_addition_that_was_abandoned_can_be_taken_back(world: World) -> None:
    world.traffic.add(POOL, world.member("new"))
    assert "draining" not in take_out(world, "new")
    assert view_of(world, "new").state == "absent"
    bring_in(world, "new")


def test_a_member_that_fails_its_check_is_down_and_comes_back(world: World) -> None:
    world.heal("a", healthy=False)
    until(world, lambda: view_of(world, "a").state == "down")
    world.heal("a", healthy=True)
    until(world, lambda: view_of(world, "a").state == "serving")


def test_an_old_member_leaves_when_the_new_one_serves(world: World) -> None:
    bring_in(world, "new")
    rest = present(world) - {"a"} | {"new"}
    take_out(world, "a", guard=Guard(min_healthy=len(rest), serving=("new",)))
    assert {view.name for view in world.traffic.members(POOL)} == rest
    assert world.traffic.remove(POOL, "a", guard=NO_GUARD, cut=False).state == "absent"


@pytest.mark.parametrize(
    "guard",
    [Guard(min_healthy=2), Guard(min_healthy=0, serving=("new",)), Guard(min_healthy=1, serving=("c", "nobody"))],
    ids=["too few", "not proven", "unknown"],
)
@pytest.mark.parametrize("cut", [False, True])
def test_a_guard_that_does_not_hold_changes_nothing(world: World, guard: Guard, cut: bool) -> None:
    world.heal("new", healthy=False)
    world.traffic.add(POOL, world.member("new"))
    with pytest.raises(GuardRefused):
        world.traffic.remove(POOL, "a", guard=guard, cut=cut)
    assert view_of(world, "a").state == "serving"


def test_the_last_member_that_serves_stays(world: World) -> None:
    for other in present(world) - {"a"}:
        take_out(world, other)
    with pytest.raises(GuardRefused):
        world.traffic.remove(POOL, "a", guard=NO_GUARD, cut=True)
    assert view_of(world, "a").state == "serving"


def test_a_member_leaves_only_when_its_last_request_ended(world: World) -> None:
    if not world.traffic.caps.counts_sessions:
        pytest.skip("this switch does not see sessions")
    if not world.traffic.caps.drains:
        pytest.skip("here requests end when somebody else takes the place")
    yield_to_new(world)
    end = world.hold("a")
    for _ in range(3):
        view = world.traffic.remove(POOL, "a", guard=NO_GUARD, cut=False)
        assert (view.state, view.actionable) == ("draining", False)
        assert view.sessions >= 1
    idle = world.traffic.idle([(POOL, "a")])[POOL, "a"]
    assert (idle.state, idle.actionable) == ("draining", False)
    end()
    until(world, lambda: world.traffic.idle([(POOL, "a")])[POOL, "a"].actionable)
    take_out(world, "a")
    assert world.traffic.idle([(POOL, "a")])[POOL, "a"].state == "absent"


def test_without_a_count_a_member_leaves_when_nobody_is_sent_to_it_any_more(world: World) -> None:
    if world.traffic.caps.counts_sessions:
        pytest.skip("this switch sees sessions")
    end = world.hold("a")
    yield_to_new(world)
    began = time.monotonic()
    view = world.traffic.remove(POOL, "a", guard=NO_GUARD, cut=True)
    assert (view.state, view.sessions) == ("draining", 0)

    def leaving() -> bool:
        view = world.traffic.idle([(POOL, "a")])[POOL, "a"]
        if view.state == "draining" and view.actionable:
            assert world.traffic.remove(POOL, "a", guard=NO_GUARD, cut=True).state == "draining"
        return view.state == "leaving"

    until(world, leaving)
    assert time.monotonic() - began >= 1, "the TTL"
    assert world.traffic.idle([(POOL, "a")])[POOL, "a"].actionable
    end()
    assert take_out(world, "a") == ["absent"]


def test_where_nothing_drains_a_member_that_lost_its_place_has_no_session_left(world: World) -> None:
    if world.traffic.caps.drains:
        pytest.skip("here requests may end")
    end = world.hold("a")
    yield_to_new(world)
    view = world.traffic.idle([(POOL, "a")])[POOL, "a"]
    assert (view.state, view.sessions, view.actionable) == ("leaving", 0, True)
    with pytest.raises(GuardRefused):
        world.traffic.remove(POOL, "a", guard=Guard(min_healthy=1, serving=("c",)), cut=True)
    assert take_out(world, "a", guard=Guard(min_healthy=1, serving=("new",))) == ["absent"]
    end()


def test_where_one_takes_the_place_of_another_it_takes_no_stranger_s(world: World) -> None:
    if world.traffic.caps.additive:
        pytest.skip("here they stand beside each other")
    mine = replace(world.member("new"), instead_of=("b",))

    def strange() -> bool:
        try:
            world.traffic.add(POOL, mine)
        except Conflict as refused:
            return "a" in str(refused)
        return False

    until(world, strange)
    assert view_of(world, "a").state == "serving"
    until(world, lambda: world.traffic.add(POOL, replace(mine, instead_of=("b", "a"))).state == "serving")


def test_a_pool_is_prepared_for_a_member_and_settled_afterwards(world: World) -> None:
    before = [replace(view, detail="") for view in world.traffic.members(POOL)]
    until(world, lambda: world.traffic.prepare(POOL, "new") == 0)
    assert [replace(view, detail="") for view in world.traffic.members(POOL)] == before
    bring_in(world, "new")
    if not world.traffic.caps.additive:
        bring_in(world, "a", again=True)
    take_out(world, "new")
    for _ in range(2):
        world.traffic.settled(POOL, "new")
    assert [replace(view, detail="") for view in world.traffic.members(POOL)] == before


def test_a_server_of_these_pools_alone_gets_users_from_nowhere_else(world: World) -> None:
    assert world.traffic.elsewhere([world.member(name).address for name in ("a", "new")]) == {}


def test_a_doctor_finds_a_good_switch_well(world: World) -> None:
    assert [found for found in world.traffic.examine() if not found.ok] == []
    assert all(each.who and each.statements for each in world.traffic.rights(fleet="shop"))


def test_a_cut_does_not_wait(world: World) -> None:
    end = world.hold("a")
    yield_to_new(world)
    world.traffic.remove(POOL, "a", guard=NO_GUARD, cut=False)
    take_out(world, "a", cut=True)
    end()


def test_a_draining_member_is_restored_at_once(world: World) -> None:
    end = world.hold("a")
    yield_to_new(world)
    world.traffic.remove(POOL, "a", guard=NO_GUARD, cut=False)
    view = world.traffic.restore(POOL, world.member("a"))
    assert view.state == ("serving" if world.traffic.caps.restores_at_once else "joining")
    bring_in(world, "a", again=True)
    end()


def test_a_removed_member_is_restored_through_its_proof(world: World) -> None:
    yield_to_new(world)
    take_out(world, "a")
    assert bring_in(world, "a", again=True)[0].state == "joining"


def test_many_are_looked_at_in_one_go(world: World) -> None:
    wanted = [(POOL, name) for name in ("a", "c", "new", "nobody")]
    for look in (world.traffic.proven, world.traffic.idle):
        found = look(wanted)
        states = {key: found[key].state for key in wanted}
        assert states == {(POOL, n): "serving" if n in present(world) else "absent" for _, n in wanted}
        assert [found[key].name for key in wanted] == [name for _, name in wanted]
    assert world.traffic.proven([]) == {}


def test_counters_only_grow_within_an_epoch(world: World) -> None:
    before = world.traffic.counters(POOL)
    if before is None:
        pytest.skip("this balancer does not count")
    for _ in range(3):
        world.request()

    def counted() -> bool:
        now = world.traffic.counters(POOL)
        assert now is not None
        assert now.epoch == before.epoch
        return now.requests == before.requests + 3 and now.failed == before.failed

    until(world, counted)


@pytest.mark.parametrize("name", ["", "a b", "a\nb", "a;b", "a/b"])
def test_a_name_that_is_no_name_is_refused(world: World, name: str) -> None:
    new = world.member("new")
    with pytest.raises(Refused):
        world.traffic.add(POOL, Member(name=name, address=new.address, port=new.port))
    with pytest.raises(Refused):
        world.traffic.remove(POOL, name, guard=NO_GUARD, cut=False)
    assert len(world.traffic.members(POOL)) == len(present(world))
