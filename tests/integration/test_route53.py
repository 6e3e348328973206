"""Names at Route 53 of the simulated cloud, over the wire: what holds of every zone is in test_names.py."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from providers.clients import route53 as client
from providers.errors import Busy, GuardRefused, NotFound, Refused, Throttled, Transient, Unauthorized
from providers.traffic import Guard, Member, Traffic
from providers.traffic import route53 as provider
from providers.traffic.route53 import Route53Traffic
from simcloud.faults import Fault
from simcloud.route53 import InvalidChangeBatch
from tests.support.aws import wire
from tests.support.haproxy import until
from tests.support.pools import A, B, C, bring_in, look, patient, take_out, the_new
from tests.support.route53 import ZONE, Zone, hosted_zone

CHANGE = "ChangeResourceRecordSets"


@pytest.fixture
def zone() -> Iterator[Zone]:
    with hosted_zone() as made:
        yield made


def traffic_of(server: Zone, /, *names: str, **changes: Any) -> Traffic:
    return Route53Traffic(server.settings(dict.fromkeys(names, 80), **{"check": "none", **changes}))


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes everything from now on as a worker in another process sees it."""

    def forget() -> None:
        for module, name in ((client, "_zones"), (client, "_paces"), (provider, "_batches"), (provider, "_zones")):
            monkeypatch.setattr(module, name, {})

    return forget


def batches(zone: Zone, monkeypatch: pytest.MonkeyPatch) -> list[Sequence[Any]]:
    """All that are sent from now on."""
    sent: list[Sequence[Any]] = []
    change = zone.cloud.zones.change

    def noted(id: str, moto: Any, changes: Sequence[Any]) -> str:
        sent.append(changes)
        return change(id, moto, changes)

    monkeypatch.setattr(zone.cloud.zones, "change", noted)
    return sent


def ours(sent: Sequence[Sequence[Any]]) -> list[Sequence[Any]]:
    return [one for one in sent if any("_changeover" in each["ResourceRecordSet"]["Name"] for each in one)]


# -- many at once -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [True, False], ids=["in one name", "in a name each"])
def test_twenty_swaps_at_once_are_few_changes_and_nothing_of_a_stranger_is_lost(
    zone: Zone, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    olds = [f"192.0.2.{number}" for number in range(1, 21)]
    news = [f"198.51.100.{number}" for number in range(1, 21)]
    pools = ["web"] * 20 if together else [f"web-{number}" for number in range(20)]
    for pool in set(pools):
        zone.put(pool, "A", 1, *(olds if together else [olds[pools.index(pool)]]))
    sent = batches(zone, monkeypatch)
    stop, theirs = threading.Event(), [0]

    def stranger() -> None:
        while not stop.is_set():
            zone.put(f"theirs-{theirs[0]}", "A", 60, C)
            theirs[0] += 1
            time.sleep(0.05)

    def swap(number: int) -> None:
        traffic = traffic_of(zone, *dict.fromkeys(pools))
        new = the_new(news[number], f"web-{number}.g2")
        patient(lambda: traffic.add(pools[number], new).state == "serving")
        guard = Guard(min_healthy=1 if together else 0, serving=(new.name,))
        patient(lambda: traffic.remove(pools[number], olds[number], guard=guard, cut=False).state == "absent")

    writer = threading.Thread(target=stranger)
    writer.start()
    try:
        with ThreadPoolExecutor(20) as crowd:
            list(crowd.map(swap, range(20)))
    finally:
        stop.set()
        writer.join()
    for pool in set(pools):
        assert zone.get(pool)[1] == (set(news) if together else {news[pools.index(pool)]})
    assert theirs[0] > 0
    assert all(zone.get(f"theirs-{number}") == (60, {C}) for number in range(theirs[0]))
    assert max(map(len, sent)) < 100
    assert len(ours(sent)) <= 60, "of twenty swaps, each of which changes its name six times and has three ids noted"


def test_a_batch_stays_below_the_quotas(zone: Zone, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"web-{number}" for number in range(40)]
    for name in names:
        zone.put(name, "A", 1, A)
    sent = batches(zone, monkeypatch)
    traffic = traffic_of(zone, *names)
    with ThreadPoolExecutor(40) as crowd:
        list(crowd.map(lambda name: traffic.prepare(name, "web-1.g2"), names))
        list(crowd.map(lambda name: patient(lambda: traffic.add(name, the_new()).state == "serving"), names))
    assert all(zone.get(name) == (1, {A, B}) for name in names)
    assert max(map(len, sent)) <= 96
    assert sum(len(one) > 50 for one in sent) >= 3, "they went together"


def test_what_is_refused_for_one_name_is_not_refused_for_the_others(
    zone: Zone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where one record set is protected: AWS refuses the whole batch."""
    names = [f"web-{number}" for number in range(8)]
    for name in names:
        zone.put(name, "A", 1, A)
    traffic = traffic_of(zone, *names)
    change = zone.cloud.zones.change

    def protected(id: str, moto: Any, changes: Sequence[Any]) -> str:
        if any(one["ResourceRecordSet"]["Name"].startswith("web-3.") for one in changes):
            raise InvalidChangeBatch("web-3.shop.test. A is protected: ask the network team")
        return change(id, moto, changes)

    monkeypatch.setattr(zone.cloud.zones, "change", protected)

    def add(name: str) -> str:
        try:
            patient(lambda: traffic.add(name, the_new()).state == "serving")
        except Refused as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(8) as crowd:
        said = dict(zip(names, crowd.map(add, names), strict=True))
    assert "ask the network team" in said.pop("web-3")
    assert set(said.values()) == {""}
    assert zone.get("web-3") == (1, {A})


def test_whose_name_somebody_has_changed_decides_anew_and_the_others_are_made(
    zone: Zone, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"web-{number}" for number in range(4)]
    for name in names:
        zone.put(name, "A", 1, A)
    traffic = traffic_of(zone, *names)
    for name in names:
        traffic.add(name, the_new())
    change, once = zone.cloud.zones.change, [True]

    def before(id: str, moto: Any, changes: Sequence[Any]) -> str:
        if once and any(one["ResourceRecordSet"]["Name"].startswith("web-2.") for one in changes):
            once.clear()
            kept = zone.cloud.timings.change
            zone.cloud.timings.change = 0.0
            values = [{"Action": "UPSERT", "ResourceRecordSet": record("web-2", A, C)}]
            change(id, moto, values)
            zone.cloud.timings.change = kept
        return change(id, moto, changes)

    monkeypatch.setattr(zone.cloud.zones, "change", before)
    with ThreadPoolExecutor(4) as crowd:
        list(crowd.map(lambda name: patient(lambda: traffic.add(name, the_new()).state == "serving"), names))
    assert not once
    assert zone.get("web-2") == (1, {A, B, C})
    assert all(zone.get(name) == (1, {A, B}) for name in names if name != "web-2")


def record(name: str, *values: str, ttl: int = 1) -> dict[str, Any]:
    records = [{"Value": value} for value in values]
    return {"Name": f"{name}.{ZONE}", "Type": "A", "TTL": ttl, "ResourceRecords": records}


def test_a_guard_holds_though_all_leave_at_once(zone: Zone) -> None:
    zone.put("web", "A", 1, A, B, C)
    traffic = traffic_of(zone, "web")

    def leave(address: str) -> bool:
        try:
            patient(lambda: traffic.remove("web", address, guard=Guard(min_healthy=1), cut=False).state == "absent")
        except GuardRefused:
            return False
        return True

    with ThreadPoolExecutor(3) as crowd:
        gone = list(crowd.map(leave, (A, B, C)))
    assert sorted(gone) == [False, True, True]
    assert len(zone.get("web")[1]) == 1


# -- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_lost_answer_is_read_back_and_the_change_made_once(
    zone: Zone, monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    monkeypatch.setattr("providers.traffic.batches.NOTED_SECONDS", 0.3)
    zone.put("web", "A", 1, A)
    traffic = traffic_of(zone, "web")
    zone.cloud.troubles.add(Fault(service="route53", action=CHANGE, after=True, drop=True, count=lost))
    bring_in(traffic, "web", the_new())
    assert zone.get("web") == (1, {A, B})
    assert not [line for line in zone.get("_changeover.web", "TXT")[1] if "?" in line]


def test_a_change_that_never_arrived_is_made_after_all(zone: Zone) -> None:
    zone.put("web", "A", 1, A)
    zone.cloud.troubles.add(Fault(service="route53", action=CHANGE, code="ServiceUnavailable", http=503, count=2))
    bring_in(traffic_of(zone, "web"), "web", the_new())
    assert zone.get("web") == (1, {A, B})


def test_one_who_comes_while_another_change_is_made_waits(zone: Zone, elsewhere: Any) -> None:
    """PriorRequestNotComplete, of workers in two processes."""
    zone.cloud.timings.change = 0.3
    names = ["web-1", "web-2"]
    for name in names:
        zone.put(name, "A", 1, A)
        time.sleep(0.3)
    workers = []
    for name in names:
        elsewhere()
        workers.append((traffic_of(zone, *names), name))
    with ThreadPoolExecutor(2) as crowd:
        list(crowd.map(lambda one: patient(lambda: one[0].add(one[1], the_new()).state == "serving"), workers))
    assert all(zone.get(name) == (1, {A, B}) for name in names)


def test_two_processes_in_one_name_lose_nothing_of_each_other(zone: Zone, elsewhere: Any) -> None:
    zone.put("web", "A", 1, A)
    workers = []
    for number in range(3):
        elsewhere()
        member = the_new(f"198.51.100.{number + 1}", f"web-{number}.g2")
        workers.append((traffic_of(zone, "web"), member))
    with ThreadPoolExecutor(3) as crowd:
        list(crowd.map(lambda one: patient(lambda: one[0].add("web", one[1]).state == "serving"), workers))
    assert zone.get("web")[1] == {A, "198.51.100.1", "198.51.100.2", "198.51.100.3"}


def test_nobody_serves_while_route_53_still_tells_its_servers(zone: Zone, elsewhere: Any) -> None:
    zone.put("web", "A", 1, A)
    traffic = traffic_of(zone, "web")
    zone.cloud.timings.spread = 2.0
    traffic.add("web", the_new())
    began = time.monotonic()
    view = traffic.add("web", the_new())
    assert (view.state, view.actionable) == ("joining", False)
    assert "PENDING" in view.detail
    elsewhere()
    view = look(traffic_of(zone, "web"), "web", "web-1.g2")
    assert (view.state, view.actionable) == ("joining", False)
    assert "PENDING, change C" in view.detail, "any worker knows which change to ask about"
    bring_in(traffic_of(zone, "web"), "web", the_new())
    assert time.monotonic() - began >= 2.0


def test_a_change_whose_maker_died_before_its_id_was_noted_is_found_out_about(
    zone: Zone, elsewhere: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    zone.put("web", "A", 1, A)
    traffic = traffic_of(zone, "web")
    traffic.add("web", the_new())
    monkeypatch.setattr("providers.traffic.batches.NOTED_SECONDS", 0.5)
    with monkeypatch.context() as dying:
        dying.setattr("providers.traffic.batches.Batches._made", lambda *_: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            traffic.add("web", the_new())
    assert zone.get("web") == (1, {A, B})
    assert any("spread ?" in line for line in zone.get("_changeover.web", "TXT")[1])
    elsewhere()
    bring_in(traffic_of(zone, "web"), "web", the_new())
    assert zone.get("web") == (1, {A, B})


def test_a_name_server_that_answers_otherwise_holds_up_who_comes(zone: Zone) -> None:
    zone.put("web", "A", 1, A)
    strange = zone.cloud.zones.resolver  # answers without authority
    traffic = traffic_of(zone, "web", servers=f"{zone.cloud.zones.servers} {strange}")
    traffic.add("web", the_new())
    view = traffic.add("web", the_new())
    assert view.state == "joining" and strange in view.detail
    servers = next(found for found in traffic.examine() if found.name.endswith("servers"))
    assert not servers.ok and strange in servers.detail


def test_who_may_not_change_it_is_told_so_and_so_is_the_doctor(zone: Zone) -> None:
    zone.put("web", "A", 1, A)
    traffic = traffic_of(zone, "web")
    said = "User: changeover is not authorized to perform: route53:ChangeResourceRecordSets"
    zone.cloud.troubles.add(
        Fault(service="route53", action=CHANGE, code="AccessDenied", message=said, http=403, count=-1)
    )
    with pytest.raises(Unauthorized, match="not authorized to perform"):
        traffic.add("web", the_new())
    finding = next(found for found in traffic.examine() if found.name.endswith("changes"))
    assert not finding.ok and "_changeover.web.shop.test. TXT" in finding.fix
    assert zone.get("web") == (1, {A})


def test_the_quota_of_the_account_holds_up_and_fails_nothing(elsewhere: Any) -> None:
    """Two processes, and five requests a second for both."""
    with hosted_zone(throttled=True) as zone:
        names = [f"web-{number}" for number in range(6)]
        for name in names:
            until(lambda name=name: put_in_time(zone, name), seconds=30)  # type: ignore[misc] # bound at once
        workers = []
        for name in names[::3]:
            elsewhere()
            workers.append((traffic_of(zone, *names), names.index(name)))

        def swap(one: tuple[Traffic, int]) -> None:
            traffic, first = one
            for name in names[first : first + 3]:
                comes(traffic, name)

        began = zone.cloud.troubles.throttled
        with ThreadPoolExecutor(2) as crowd:
            list(crowd.map(swap, workers))
        assert all(zone.get(name) == (1, {A, B}) for name in names)
        assert zone.cloud.troubles.throttled > began, "it was tight"


def put_in_time(zone: Zone, name: str) -> bool:
    try:
        zone.put(name, "A", 1, A)
    except Throttled:
        return False
    return True


def comes(traffic: Traffic, name: str) -> None:
    """As a step does it: who is told to come again does."""

    def once() -> bool:
        try:
            return traffic.add(name, the_new()).state == "serving"
        except (Busy, Throttled):
            time.sleep(0.5)
            return False

    until(once, seconds=100)


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"SetIdentifier": "one", "Weight": 10}, "weighted"),
        ({"SetIdentifier": "one", "Region": "eu-west-1"}, "latency"),
        ({"SetIdentifier": "one", "Failover": "PRIMARY"}, "failover"),
        ({"SetIdentifier": "one", "GeoLocation": {"ContinentCode": "EU"}}, "geolocation"),
        ({"SetIdentifier": "one", "MultiValueAnswer": True}, "multivalue"),
        ({"HealthCheckId": "11111111-2222-3333-4444-555555555555"}, "health check"),
    ],
)
def test_record_sets_that_are_more_than_a_name_with_values_are_refused(
    zone: Zone, more: dict[str, Any], said: str
) -> None:
    zone.put("web", "A", 1, A, **more)
    traffic = traffic_of(zone, "web")
    for call in (
        lambda: traffic.members("web"),
        lambda: traffic.prepare("web", "web-1.g2"),
        lambda: traffic.add("web", the_new()),
    ):
        with pytest.raises(Refused, match=f"{said}.*plain name of their own"):
            call()
    assert [found for found in traffic.examine() if said in found.detail and not found.ok]


# -- weighted ----------------------------------------------------------------------------------------------------------


def weighted(zone: Zone, *shares: tuple[str, int, str], name: str = "web", ttl: int = 1) -> None:
    """As its owner has made it: identifier, weight and address of each."""
    for id, weight, address in shares:
        zone.put(name, "A", ttl, address, SetIdentifier=id, Weight=weight)


def canary(zone: Zone, *names: str, **changes: Any) -> Traffic:
    settings = {"addresses": "weighted", "canary": "5 25", "canary_seconds": 0, **changes}
    return traffic_of(zone, *names, **settings)


def of_a(name: str = "web-1.g2", address: str = B, *, instead: str = A) -> Member:
    return Member(name=name, address=address, port=80, instead_of=(instead, name))


def shares_seen(zone: Zone, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, int]]:
    """The weights after each change from now on, by their identifiers."""
    seen: list[dict[str, int]] = []
    change = zone.cloud.zones.change

    def noted(id: str, moto: Any, changes: Sequence[Any]) -> str:
        made = change(id, moto, changes)
        now = {id: weight for id, (weight, _, _) in zone.weights("web").items()}
        if not seen or seen[-1] != now:
            seen.append(now)
        return made

    monkeypatch.setattr(zone.cloud.zones, "change", noted)
    return seen


def test_a_new_server_gets_a_twentieth_then_a_quarter_then_all_and_the_old_one_leaves(
    zone: Zone, monkeypatch: pytest.MonkeyPatch
) -> None:
    weighted(zone, ("blue", 100, A), ("third", 40, C))
    seen, traffic = shares_seen(zone, monkeypatch), canary(zone, "web")
    assert {view.name: view.state for view in traffic.members("web")} == {A: "serving", C: "serving"}
    bring_in(traffic, "web", of_a())
    take_out(traffic, "web", A, Guard(min_healthy=1, serving=("web-1.g2",)))
    others = {"blue": 100, "third": 40}
    steps = [{**others, "web-1.g2": weight} for weight in (5, 25, 100)]
    assert seen[-5:] == [others, *steps, {"third": 40, "web-1.g2": 100}]
    assert zone.weights("web") == {"third": (40, 1, C), "web-1.g2": (100, 1, B)}


def test_each_step_lasts_its_time_and_is_no_full_member_until_the_last(zone: Zone) -> None:
    weighted(zone, ("blue", 100, A))
    traffic = canary(zone, "web", canary=10, canary_seconds=2)
    until(lambda: (traffic.add("web", of_a()), zone.weights("web").get("web-1.g2", (0,))[0] == 10)[1])
    until(lambda: "10 of 100 of its weight for" in traffic.add("web", of_a()).detail)
    view = look(traffic, "web", "web-1.g2")
    assert (view.state, view.actionable) == ("joining", False)
    with pytest.raises(GuardRefused, match=r"does not serve: web-1\.g2"):
        traffic.remove("web", A, guard=Guard(min_healthy=1, serving=("web-1.g2",)), cut=False)
    began = time.monotonic()
    bring_in(traffic, "web", of_a())
    assert time.monotonic() - began > 1
    assert zone.weights("web")["web-1.g2"][0] == 100


@pytest.mark.parametrize("reached", [5, 25, 100])
def test_from_every_step_there_is_a_way_back_to_the_old_one_alone(zone: Zone, reached: int) -> None:
    weighted(zone, ("blue", 100, A), ttl=3)
    before = zone.weights("web")
    traffic = canary(zone, "web")
    traffic.prepare("web", "web-1.g2")

    def at_that_step() -> bool:
        return traffic.add("web", of_a()) is not None and zone.weights("web").get("web-1.g2", (0,))[0] >= reached

    until(at_that_step, seconds=30)
    take_out(traffic, "web", "web-1.g2", Guard(min_healthy=1, serving=(A,)))
    traffic.settled("web", "web-1.g2")
    assert zone.weights("web") == before, "its weight, its identifier and its TTL"
    assert zone.get("_changeover.web", "TXT")[1] == set()


def test_an_old_server_that_drains_gets_back_what_it_had_at_once(zone: Zone, monkeypatch: pytest.MonkeyPatch) -> None:
    weighted(zone, ("blue", 100, A))
    traffic = canary(zone, "web", ttl=30)
    zone.put("web", "A", 30, A, SetIdentifier="blue", Weight=100)
    bring_in(traffic, "web", of_a())
    guard = Guard(min_healthy=1, serving=("web-1.g2",))
    until(lambda: traffic.remove("web", A, guard=guard, cut=False).state == "draining")
    assert set(zone.weights("web")) == {"web-1.g2"}
    seen = shares_seen(zone, monkeypatch)
    bring_in(traffic, "web", Member(name=A, address=A, port=80), back=True)
    assert seen[0] == {"web-1.g2": 100, "blue": 100}, "without a step in between"


def test_an_old_server_that_had_left_comes_back_as_it_was(zone: Zone) -> None:
    weighted(zone, ("the blue one", 80, A), ttl=2)
    before, traffic = zone.weights("web"), canary(zone, "web")
    traffic.prepare("web", "web-1.g2")
    bring_in(traffic, "web", of_a())
    take_out(traffic, "web", A, Guard(min_healthy=1, serving=("web-1.g2",)))
    assert zone.weights("web") == {"web-1.g2": (80, 1, B)}
    bring_in(traffic, "web", Member(name=A, address=A, port=80, instead_of=(A, "web-1.g2")), back=True)
    take_out(traffic, "web", "web-1.g2", Guard(min_healthy=1, serving=(A,)))
    traffic.settled("web", "web-1.g2")
    assert zone.weights("web") == before
    assert zone.get("_changeover.web", "TXT")[1] == set()


def test_a_weight_that_somebody_changes_meanwhile_is_neither_lost_nor_overwritten(
    zone: Zone, monkeypatch: pytest.MonkeyPatch
) -> None:
    weighted(zone, ("blue", 100, A), ("third", 40, C))
    change, put = zone.cloud.zones.change, [50, 60, 70]

    def before(id: str, moto: Any, changes: Sequence[Any]) -> str:
        if put:
            kept, zone.cloud.timings.change = zone.cloud.timings.change, 0.0
            theirs = {**record("web", C), "SetIdentifier": "third", "Weight": put.pop(0)}
            change(id, moto, [{"Action": "UPSERT", "ResourceRecordSet": theirs}])
            zone.cloud.timings.change = kept
        return change(id, moto, changes)

    monkeypatch.setattr(zone.cloud.zones, "change", before)
    traffic = canary(zone, "web")
    patient(lambda: traffic.add("web", of_a()).state == "serving")
    assert not put
    assert zone.weights("web") == {"blue": (100, 1, A), "third": (70, 1, C), "web-1.g2": (100, 1, B)}


def test_a_canary_that_ails_is_down_and_gets_no_more(zone: Zone, monkeypatch: pytest.MonkeyPatch) -> None:
    weighted(zone, ("blue", 100, A))
    traffic: Any = canary(zone, "web", canary=5)
    ill: set[str] = set()
    monkeypatch.setattr(traffic._health, "ask", lambda asked: {one: "503" if one[0] in ill else "" for one in asked})
    until(lambda: (traffic.add("web", of_a()), zone.weights("web").get("web-1.g2", (0,))[0] == 5)[1])
    ill.add(B)
    for _ in range(5):
        view = traffic.add("web", of_a())
        assert view.state in ("joining", "down")
    until(lambda: traffic.add("web", of_a()).state == "down")
    assert "5 of 100" in look(traffic, "web", "web-1.g2").detail
    assert zone.weights("web")["web-1.g2"][0] == 5
    take_out(traffic, "web", "web-1.g2", Guard(min_healthy=1, serving=(A,)))
    assert set(zone.weights("web")) == {"blue"}


@pytest.mark.parametrize(
    ("shares", "why"),
    [
        ([{"values": (A,)}], "plain record set"),
        ([{"values": (A, C), "SetIdentifier": "blue", "Weight": 9}], "2 addresses"),
        ([{"values": (A,), "SetIdentifier": one, "Weight": 9} for one in ("blue", "green")], "two record sets"),
        ([{"values": (A,), "SetIdentifier": "blue", "Weight": 0}], "weights of 0 alone"),
        ([{"values": (A,), "SetIdentifier": "blue", "Region": "eu-west-1"}], "latency"),
        ([{"values": (A,), "SetIdentifier": "blue", "Weight": 9, "HealthCheckId": "1" * 36}], "weighted"),
        ([{"values": (A,), "SetIdentifier": "b" * 128, "Weight": 9}], "too long"),
    ],
)
def test_a_name_that_is_not_weighted_server_by_server_is_refused(
    zone: Zone, shares: list[dict[str, Any]], why: str
) -> None:
    for one in shares:
        more = {key: value for key, value in one.items() if key != "values"}
        zone.put("web", "A", 60, *one["values"], **more)
    traffic = canary(zone, "web")
    for call in (lambda: traffic.members("web"), lambda: traffic.add("web", of_a())):
        with pytest.raises(Refused, match=why):
            call()
    assert [found for found in traffic.examine() if why in found.detail and not found.ok]


def test_a_server_whose_weight_is_0_is_no_member_and_is_left_alone(zone: Zone) -> None:
    weighted(zone, ("blue", 100, A), ("spare", 0, C))
    traffic = canary(zone, "web")
    assert [view.name for view in traffic.members("web")] == [A]
    bring_in(traffic, "web", of_a())
    assert zone.weights("web")["spare"] == (0, 1, C)


def test_the_doctor_tells_weights_and_that_small_ones_are_no_canary(zone: Zone) -> None:
    weighted(zone, ("blue", 100, A), name="well")
    weighted(zone, ("blue", 1, A), name="small")
    traffic = canary(zone, "well", "small")
    until(lambda: not [found for found in traffic.examine() if "well" in found.name and not found.ok])
    told = {found.name: found for found in traffic.examine()}
    assert told["name well.shop.test.: weights"].detail == "blue 100"
    assert not told["name small.shop.test.: weights"].ok


def test_an_alias_to_a_load_balancer_is_refused_with_what_to_do(zone: Zone) -> None:
    target = {
        "HostedZoneId": "Z32O12XQLNTSW2",
        "DNSName": "lb.eu-west-1.elb.amazonaws.com.",
        "EvaluateTargetHealth": False,
    }
    zone.put("web", "A", 0, AliasTarget=target)
    with pytest.raises(Refused, match=r"alias of lb\.eu-west-1\.elb\.amazonaws\.com\..*target groups"):
        traffic_of(zone, "web").members("web")


def test_zones_that_cannot_be_meant_are_refused(zone: Zone) -> None:
    with pytest.raises(NotFound, match=r"no hosted zone other\.test\."):
        traffic_of(zone, "web", zone="other.test").members("web")
    calls = wire(zone.cloud)
    second = calls.write("route53", "create_hosted_zone", Name=ZONE, CallerReference="second")["HostedZone"]["Id"]
    second_id = second.rpartition("/")[2]
    zone.put("web", "A", 1, A)
    with pytest.raises(Refused, match=r"several hosted zones shop\.test\..*zone_id"):
        traffic_of(zone, "web").members("web")
    id = zone.id.rpartition("/")[2]
    assert traffic_of(zone, "web", zone_id=id).members("web")[0].name == A
    with pytest.raises(NotFound, match="has no address"):
        traffic_of(zone, "web", zone_id=second_id).members("web")
    with pytest.raises(Refused, match=r"is shop\.test\., not other\.test\."):
        traffic_of(zone, "web", zone="other.test", zone_id=id).members("web")


def test_a_zone_that_is_public_and_private_is_to_be_named_by_its_id(zone: Zone) -> None:
    zone.put("web", "A", 1, A)
    private = Zone(zone.cloud, private=True)
    private.put("web", "A", 1, B)
    with pytest.raises(Refused, match=r"several hosted zones.*\(private\)"):
        traffic_of(zone, "web").members("web")
    ids = {one: one.id.rpartition("/")[2] for one in (zone, private)}
    assert traffic_of(zone, "web", zone_id=ids[zone]).members("web")[0].name == A
    traffic = traffic_of(private, "web", zone_id=ids[private])
    until(lambda: [view.detail for view in traffic.members("web")] == [""])
    assert traffic.members("web")[0].name == B
    assert [found for found in traffic.examine() if not found.ok] == []


def test_a_doctor_tells_that_the_world_is_sent_to_another_zone(zone: Zone) -> None:
    zone.put("web", "A", 1, A)
    traffic = traffic_of(zone, "web")
    until(lambda: not [found for found in traffic.examine() if not found.ok])
    zone.cloud.zones.delegated[ZONE] = ["ns1.elsewhere.example."]
    found = next(found for found in traffic.examine() if found.name.endswith("delegation"))
    assert not found.ok and "ns1.elsewhere.example" in found.detail and "awsdns" in found.fix


def test_a_doctor_changes_nothing(zone: Zone) -> None:
    zone.put("web", "A", 300, A)
    traffic = traffic_of(zone, "web")
    until(lambda: not [found for found in traffic.examine() if not found.ok])
    assert any("300 s: it is lowered to 1 s" in found.detail for found in traffic.examine())
    assert zone.get("web") == (300, {A})
    assert zone.get("_changeover.web", "TXT") == (0, set())


def test_notes_that_somebody_has_written_by_hand_are_left_as_they_are(zone: Zone) -> None:
    zone.put("web", "A", 1, A)
    theirs = {'"two" "strings"', '"a \\"quoted\\" word"', '"spread a rumour"'}
    zone.put("_changeover.web", "TXT", 300, *theirs)
    traffic = traffic_of(zone, "web")
    bring_in(traffic, "web", the_new())
    take_out(traffic, "web", "web-1.g2")
    assert {line for line in zone.get("_changeover.web", "TXT")[1] if not line.startswith('"spread C')} == theirs


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"zone": None}, "zone must be said"),
        ({"zone": "a..b"}, "no DNS name"),
        ({"servers": "-x"}, "no name server"),
        ({"type": "MX"}, "A or AAAA"),
        ({"ttl": 0}, "ttl is 1"),
        ({"colour": "blue"}, "unknown 'colour'"),
        ({"primary": "192.0.2.53"}, "unknown 'primary'"),
        ({"addresses": "two"}, "many or one or weighted"),
        ({"canary": 5}, "canary needs addresses: weighted"),
        ({"addresses": "weighted", "canary": "25 5"}, "that rise"),
        ({"addresses": "weighted", "canary": 100}, "from 1 to 99"),
        ({"addresses": "weighted", "canary": "half"}, "from 1 to 99"),
        ({"addresses": "weighted", "canary_seconds": -1}, "canary_seconds is 0"),
    ],
)
def test_bad_settings_are_refused_with_the_reason(zone: Zone, changes: dict[str, Any], why: str) -> None:
    settings = {**zone.settings({"web": 80}), **changes}
    with pytest.raises(Refused, match=why):
        Route53Traffic({what: value for what, value in settings.items() if value is not None})


def test_a_member_of_another_kind_of_address(zone: Zone) -> None:
    zone.put("web", "AAAA", 1, "2001:db8::1")
    traffic = traffic_of(zone, "web", type="AAAA")
    bring_in(traffic, "web", Member(name="web-1.g2", address="2001:0DB8:0::2", port=80))
    assert zone.get("web", "AAAA") == (1, {"2001:db8::1", "2001:db8::2"})


def test_an_endpoint_that_does_not_answer_is_told_and_changes_nothing(zone: Zone) -> None:
    zone.put("web", "A", 1, A)
    zone.cloud.troubles.add(Fault(service="route53", action="List*", drop=True, count=-1))
    with pytest.raises(Transient):
        traffic_of(zone, "web").members("web")
    zone.cloud.troubles.clear()
    assert zone.get("web") == (1, {A})
