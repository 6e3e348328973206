"""Names in a zone that takes updates, at name servers that lie as real ones do, and at BIND 9 where it is installed.
What holds of every zone: test_names.py."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from providers.errors import Busy, Conflict, GuardRefused, Refused, Transient, Unauthorized
from providers.traffic import Guard, Member
from providers.traffic.rfc2136 import Rfc2136Traffic
from tests.support.bind import bind
from tests.support.haproxy import Loop, Site, own_address, until
from tests.support.nameserver import Names, names
from tests.support.pools import NO_GUARD, A, B, C, Server, bring_in, look, take_out, the_new


@pytest.fixture(scope="module")
def real() -> Iterator[Server]:
    with bind() as server:
        yield server


@pytest.fixture
def liar() -> Iterator[Names]:
    with names(lag=0.05) as server:
        yield server


@pytest.fixture(params=["in process", pytest.param("BIND", marks=pytest.mark.debian)])
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue("liar" if request.param == "in process" else "real")
    return found


def traffic_of(server: Server, name: str, **changes: Any) -> Rfc2136Traffic:
    return Rfc2136Traffic(server.settings({name: 80}, **{"check": "none", **changes}))


# -- the key, at a server in this process and at BIND 9 ---------------------------------------------------------------


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


@pytest.mark.debian
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
