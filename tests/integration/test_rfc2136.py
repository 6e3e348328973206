"""Names as pools over name servers that lie as real ones do; where BIND 9 is installed, over a real primary and its
secondary, too."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import pytest

from providers.errors import Busy, Conflict, GuardRefused, NotFound, Refused, Transient, Unauthorized
from providers.traffic import Guard, Member, MemberView, Traffic
from providers.traffic.rfc2136 import Rfc2136Traffic
from tests.support.bind import bind
from tests.support.haproxy import Loop, Site, own_address, until
from tests.support.nameserver import Names, names

NO_GUARD = Guard(min_healthy=0)
A, B, C = "192.0.2.1", "192.0.2.2", "192.0.2.3"  # nobody is there: these tests ask no server whether it is well


class Server(Protocol):
    def put(self, name: str, type: str, ttl: int, *values: str) -> None: ...

    def get(self, name: str, type: str = "A") -> tuple[int, set[str]]: ...

    def settings(self, pools: dict[str, int], **changes: Any) -> dict[str, Any]: ...


@pytest.fixture(scope="module")
def real() -> Iterator[Server]:
    with bind() as server:
        yield server


@pytest.fixture
def liar() -> Iterator[Names]:
    with names(lag=0.05) as server:
        yield server


@pytest.fixture(params=["in process", "BIND"])
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue("liar" if request.param == "in process" else "real")
    return found


def traffic_of(server: Server, name: str, **changes: Any) -> Rfc2136Traffic:
    return Rfc2136Traffic(server.settings({name: 80}, **{"check": "none", **changes}))


def look(traffic: Traffic, pool: str, name: str) -> MemberView:
    return traffic.proven([(pool, name)])[pool, name]


def bring_in(traffic: Traffic, pool: str, member: Member, *, back: bool = False) -> None:
    act = traffic.restore if back else traffic.add
    until(lambda: act(pool, member).state == "serving", what=f"{member.name} serves", seconds=30)


def take_out(traffic: Traffic, pool: str, name: str, guard: Guard = NO_GUARD) -> None:
    def gone() -> bool:
        return traffic.remove(pool, name, guard=guard, cut=False).state == "absent"

    until(gone, what=f"{name} is out", seconds=30)


def the_new(address: str = B, name: str = "web-1.g2") -> Member:
    return Member(name=name, address=address, port=80)


# -- the way there and back, at a server in this process and at BIND 9 ------------------------------------------------


@pytest.mark.parametrize("addresses", ["many", "one"])
def test_there_and_back_leaves_the_zone_as_it_was(server: Server, addresses: str) -> None:
    name = f"back-{addresses}"
    server.put(name, "A", 3, A)
    traffic = traffic_of(server, name, addresses=addresses)
    old = Member(name=A, address=A, port=80)
    until(lambda: not traffic.members(name)[0].detail, what="all agree", seconds=30)
    assert traffic.prepare(name, "web-1.g2") > 0
    assert server.get(name) == (1, {A}), "low, and otherwise the same"
    bring_in(traffic, name, the_new())
    assert server.get(name) == (1, {A, B} if addresses == "many" else {B})
    take_out(traffic, name, A, Guard(min_healthy=1, serving=("web-1.g2",)))
    assert server.get(name) == (1, {B})
    bring_in(traffic, name, old, back=True)
    take_out(traffic, name, "web-1.g2", Guard(min_healthy=1, serving=(A,)))
    traffic.settled(name, "web-1.g2")
    assert server.get(name) == (3, {A})
    assert server.get(f"_changeover.{name}", "TXT")[1] == set()


def test_the_ttl_is_low_for_one_old_ttl_before_anybody_comes(server: Server) -> None:
    server.put("slow", "A", 3, A)
    traffic = traffic_of(server, "slow")
    began = time.monotonic()
    left = traffic.prepare("slow", "web-1.g2")
    assert 2 <= left <= 3
    view = traffic.add("slow", the_new())
    assert (view.state, view.actionable) == ("joining", False)
    bring_in(traffic, "slow", the_new())
    assert time.monotonic() - began >= 3
    assert traffic.prepare("slow", "web-1.g2") == 0
    traffic.prepare("slow", "web-2.g2")
    traffic.settled("slow", "web-1.g2")
    assert server.get("slow")[0] == 1, "somebody still needs it low"
    traffic.settled("slow", "web-2.g2")
    assert server.get("slow")[0] == 3


def test_an_alias_is_refused_with_what_to_name_instead(server: Server) -> None:
    server.put("alias", "CNAME", 60, "elsewhere.test.")
    traffic = traffic_of(server, "alias")
    for call in (lambda: traffic.members("alias"), lambda: traffic.add("alias", the_new())):
        with pytest.raises(Refused, match=r"alias \(CNAME\) of elsewhere\.test\."):
            call()
    assert not traffic.examine()[0].ok


def test_addresses_of_the_other_kind_are_refused(server: Server) -> None:
    server.put("both", "A", 1, A)
    server.put("both", "AAAA", 1, "2001:db8::1")
    traffic = traffic_of(server, "both")
    with pytest.raises(Refused, match="AAAA records besides"):
        traffic.members("both")
    with pytest.raises(Refused, match="AAAA records besides"):
        traffic.prepare("both", "web-1.g2")


@pytest.mark.parametrize(
    "changes",
    [{"key_secret": "d3Jvbmc="}, {"key_name": "nobody"}, {"key_name": None, "key_secret": None}],
    ids=["wrong secret", "unknown key", "no key"],
)
def test_a_key_that_is_not_accepted_changes_nothing_and_says_so(server: Server, changes: dict[str, Any]) -> None:
    server.put("locked", "A", 1, A)
    settings = {**server.settings({"locked": 80}, check="none"), **changes}
    traffic = Rfc2136Traffic({what: value for what, value in settings.items() if value is not None})
    with pytest.raises(Unauthorized) as refused:
        traffic.add("locked", the_new())
    assert "d3Jvbmc=" not in str(refused.value)
    assert server.get("locked") == (1, {A})
    updates = next(found for found in traffic.examine() if found.name.endswith("updates"))
    assert not updates.ok and updates.fix


def test_twenty_writers_lose_nothing_of_each_other_nor_of_a_stranger(server: Server) -> None:
    """Each replaces its own server: ten in one name, ten in names of their own. Somebody else changes other records."""
    olds = [f"192.0.2.{number}" for number in range(10, 30)]
    server.put("crowd", "A", 1, *olds[:10])
    for number in range(10, 20):
        server.put(f"own-{number}", "A", 1, olds[number])
    pools = {"crowd": 80} | {f"own-{number}": 80 for number in range(10, 20)}
    stop, theirs = threading.Event(), [0]

    def stranger() -> None:
        while not stop.is_set():
            server.put(f"theirs-{theirs[0]}", "A", 60, C)
            theirs[0] += 1

    def swap(number: int) -> None:
        pool = "crowd" if number < 10 else f"own-{number}"
        traffic = Rfc2136Traffic(server.settings(pools, check="none"))
        new = the_new(f"198.51.100.{number + 1}", f"web-{number}.g2")
        patient(lambda: traffic.add(pool, new).state == "serving")
        patient(lambda: traffic.remove(pool, olds[number], guard=NO_GUARD, cut=False).state == "absent")

    writer = threading.Thread(target=stranger)
    writer.start()
    try:
        with ThreadPoolExecutor(20) as crowd:
            list(crowd.map(swap, range(20)))
    finally:
        stop.set()
        writer.join()
    assert server.get("crowd")[1] == {f"198.51.100.{number + 1}" for number in range(10)}
    for number in range(10, 20):
        assert server.get(f"own-{number}")[1] == {f"198.51.100.{number + 1}"}
    assert theirs[0] > 0
    assert all(server.get(f"theirs-{number}") == (60, {C}) for number in range(theirs[0]))


def patient(act: Callable[[], bool]) -> None:
    """As a step does it: who is busy comes again."""

    def once() -> bool:
        try:
            return act()
        except Busy:
            return False

    until(once, seconds=60)


def test_a_doctor_says_what_the_ttl_means(server: Server) -> None:
    server.put("fresh", "A", 3600, A)
    traffic = traffic_of(server, "fresh")
    until(lambda: all(found.ok for found in traffic.examine()), what="all agree", seconds=30)
    assert any("3600 s: it is lowered to 1 s" in found.detail for found in traffic.examine())
    assert server.get("fresh") == (3600, {A})
    assert server.get("_changeover.fresh", "TXT")[1] == set()


def test_a_key_that_may_not_change_this_name_is_found_by_the_doctor(real: Server) -> None:
    real.put("foreign", "A", 60, A)
    traffic = traffic_of(real, "foreign", key_name="stranger")
    updates = next(found for found in traffic.examine() if found.name.endswith("updates"))
    assert not updates.ok and "update-policy" in updates.fix


# -- lies -------------------------------------------------------------------------------------------------------------


def test_a_member_serves_when_the_last_name_server_says_so(liar: Names) -> None:
    liar.secondary.lag = 1.0
    liar.put("web", "A", 1, A)
    traffic = traffic_of(liar, "web")
    began = time.monotonic()
    traffic.add("web", the_new())
    view = traffic.add("web", the_new())
    assert (view.state, view.actionable) == ("joining", False)
    assert f"{liar.secondary.where} still answers" in view.detail
    bring_in(traffic, "web", the_new())
    assert time.monotonic() - began >= 1.0


def test_a_member_drains_from_when_the_last_name_server_forgets_it(liar: Names) -> None:
    liar.secondary.lag = 1.0
    liar.put("web", "A", 1, A, B)
    until(lambda: liar.secondary.lag and not traffic_of(liar, "web").members("web")[0].detail)
    traffic = traffic_of(liar, "web")
    began = time.monotonic()
    take_out(traffic, "web", A)
    assert time.monotonic() - began >= 2.0, "the lag, and the TTL from then on"


def test_a_name_server_that_does_not_answer_holds_up_who_comes_and_nobody_else(
    liar: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("providers.clients.dns.ASK_SECONDS", 0.2)
    liar.put("web", "A", 1, A)
    liar.secondary.silent = True
    traffic = traffic_of(liar, "web")
    assert look(traffic, "web", A).state == "serving"
    for _ in range(3):
        view = traffic.add("web", the_new())
    assert view.state == "joining" and "no answer" in view.detail
    assert not next(found for found in traffic.examine() if found.name.endswith("servers")).ok
    liar.secondary.silent = False
    bring_in(traffic, "web", the_new())


def test_a_primary_that_does_not_answer_is_no_empty_pool(liar: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("providers.clients.dns.ASK_SECONDS", 0.2)
    liar.put("web", "A", 1, A)
    liar.primary.silent = True
    with pytest.raises(Transient) as trouble:
        traffic_of(liar, "web").members("web")
    assert not trouble.value.ambiguous


def test_an_answer_without_authority_counts_for_nothing(liar: Names) -> None:
    liar.put("web", "A", 1, A)
    liar.primary.lame = True
    with pytest.raises(Refused, match="no authority"):
        traffic_of(liar, "web").members("web")


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_lost_answer_is_read_back_and_the_change_made_once(liar: Names, lost: int) -> None:
    liar.put("web", "A", 1, A)
    traffic = traffic_of(liar, "web")
    liar.zone.lost = lost
    bring_in(traffic, "web", the_new())
    assert liar.get("web") == (1, {A, B})
    assert liar.zone.updates == 3, "noted, in, seen everywhere"
    assert liar.zone.lost == 0


def test_another_writer_in_between_loses_nothing(liar: Names) -> None:
    liar.put("web", "A", 1, A)
    traffic = traffic_of(liar, "web")
    there = [A]

    def another() -> None:
        if len(there) < 3:
            there.append(f"203.0.113.{len(there)}")
            liar.put("web", "A", 1, *liar.get("web")[1], there[-1])

    liar.zone.before = another
    bring_in(traffic, "web", the_new())
    assert liar.get("web") == (1, {B, *there})


def test_somebody_who_never_stops_is_waited_for(liar: Names) -> None:
    liar.put("web", "A", 1, A)
    count = iter(range(1, 250))
    liar.zone.before = lambda: liar.put("web", "A", 1, A, f"203.0.113.{next(count)}")
    with pytest.raises(Busy):
        traffic_of(liar, "web").add("web", the_new())


def test_an_update_that_was_ignored_without_a_word_is_noticed(liar: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where an alias has come between the look and the update."""
    liar.put("web", "A", 1, A)
    traffic = traffic_of(liar, "web")
    traffic.add("web", the_new())
    monkeypatch.setattr(liar.zone, "update", lambda _message: 0)
    with pytest.raises(Transient, match="is as before"):
        traffic.add("web", the_new())


def test_a_refused_update_says_what_to_allow(liar: Names) -> None:
    liar.put("web", "A", 1, A)
    liar.zone.refuses = True
    with pytest.raises(Unauthorized, match=r"web\.shop\.test\. A and _changeover\.web\.shop\.test\. TXT"):
        traffic_of(liar, "web").add("web", the_new())


def test_a_name_that_has_become_an_alias_harms_no_other(liar: Names) -> None:
    liar.put("web", "A", 1, A)
    liar.put("api", "A", 1, B)
    traffic = Rfc2136Traffic(liar.settings({"web": 80, "api": 80}, check="none"))
    bring_in(traffic, "web", the_new())
    liar.put("web", "A", 1)
    liar.put("web", "CNAME", 1, "elsewhere.test.")
    seen = traffic.proven([("web", "web-1.g2"), ("web", A), ("api", B)])
    assert [view.state for view in seen.values()] == ["down", "absent", "serving"]
    assert "alias" in seen["web", "web-1.g2"].detail


def test_a_ttl_that_was_raised_meanwhile_is_waited_for_and_put_back(liar: Names) -> None:
    liar.put("web", "A", 2, A)
    traffic = traffic_of(liar, "web")
    until(lambda: traffic.prepare("web", "web-1.g2") == 0)
    liar.put("web", "A", 3, A)
    traffic.add("web", the_new())
    assert not traffic.add("web", the_new()).actionable
    assert liar.get("web") == (1, {A})
    bring_in(traffic, "web", the_new())
    traffic.settled("web", "web-1.g2")
    assert liar.get("web") == (3, {A, B})


def test_one_address_is_never_two_and_never_none(liar: Names) -> None:
    liar.put("db", "A", 1, A)
    traffic = traffic_of(liar, "db", addresses="one")
    bring_in(traffic, "db", the_new())
    bring_in(traffic, "db", Member(name=A, address=A, port=80), back=True)
    take_out(traffic, "db", "web-1.g2", Guard(min_healthy=1, serving=(A,)))
    key = next(key for key in liar.zone.sets if str(key[0]).startswith("db."))
    seen = [values for _, sets in liar.zone.past if (values := sets.get(key, (0, frozenset({"unborn"})))[1])]
    assert {len(values) for values in seen} == {1}
    assert liar.get("db") == (1, {A})


def test_one_address_that_is_several_is_refused(liar: Names) -> None:
    liar.put("db", "A", 1, A, B)
    with pytest.raises(Refused, match="addresses: one"):
        traffic_of(liar, "db", addresses="one").members("db")


def test_a_note_that_somebody_has_deleted_costs_a_name_and_no_request(liar: Names) -> None:
    liar.put("web", "A", 1, A)
    traffic = traffic_of(liar, "web")
    bring_in(traffic, "web", the_new())
    liar.put("_changeover.web", "TXT", 30, '"somebody\'s own words"')
    assert look(traffic, "web", "web-1.g2").state == "absent"
    assert {view.name for view in traffic.members("web")} == {A, B}
    assert traffic.add("web", the_new()).state == "serving"
    assert '"somebody\'s own words"' in liar.get("_changeover.web", "TXT")[1]


def test_an_address_known_by_another_name_is_a_conflict(liar: Names) -> None:
    liar.put("web", "A", 1, A)
    traffic = traffic_of(liar, "web")
    bring_in(traffic, "web", the_new())
    with pytest.raises(Conflict, match=r"known as web-1\.g2"):
        traffic.add("web", the_new(B, "web-2.g2"))
    with pytest.raises(Conflict, match="DNS knows no ports"):
        traffic.add("web", Member(name="web-3.g2", address=C, port=81))


def test_a_member_that_is_not_well_holds_the_others_in(liar: Names) -> None:
    loop = Loop()
    try:
        well, ill = Site(loop, "well"), Site(loop, "ill")
        liar.put("web", "A", 1, well.address, own_address())
        traffic = Rfc2136Traffic(liar.settings({"web": well.port}))
        with pytest.raises(GuardRefused, match="last one that serves"):
            traffic.remove("web", well.address, guard=NO_GUARD, cut=False)
        assert ill.address not in liar.get("web")[1]
    finally:
        loop.close()


def test_a_name_without_an_address_is_no_pool(liar: Names) -> None:
    with pytest.raises(NotFound, match="has no address"):
        traffic_of(liar, "empty").members("empty")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"zone": None}, "zone must be said"),
        ({"zone": "a..b"}, "no DNS name"),
        ({"primary": "192.0.2.53:99999"}, "port"),
        ({"primary": "-x"}, "no name server"),
        ({"key_secret": "not base64!"}, "no base64"),
        ({"key_algorithm": "rot13"}, "none of"),
        ({"key_name": None}, "both"),
        ({"type": "MX"}, "A or AAAA"),
        ({"ttl": 0}, "ttl is 1"),
        ({"ttl": True}, "ttl is 1"),
        ({"check": "ping"}, "tcp, none or a path"),
        ({"addresses": "two"}, "many or one"),
        ({"colour": "blue"}, "unknown 'colour'"),
        ({"pools": {"a": {"backend": "x", "port": 1}, "b": {"backend": "x", "port": 1}}}, "several pools"),
    ],
)
def test_bad_settings_are_refused_with_the_reason(liar: Names, changes: dict[str, Any], why: str) -> None:
    settings = {**liar.settings({"web": 80}), **changes}
    with pytest.raises(Refused, match=why):
        Rfc2136Traffic({what: value for what, value in settings.items() if value is not None})


def test_a_name_outside_of_the_zone_is_refused(liar: Names) -> None:
    settings = liar.settings({}) | {"pools": {"web": {"backend": "www.example.com.", "port": 80}}}
    with pytest.raises(Refused, match="not in the zone"):
        Rfc2136Traffic(settings).members("web")
