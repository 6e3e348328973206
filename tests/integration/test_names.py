"""Names as pools, whatever changes their zone: name servers that lie as real ones do, BIND 9 where it is installed, and
Route 53 of the simulated cloud."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from providers.errors import NotFound, Refused
from providers.traffic import Guard, Member, Traffic
from providers.traffic.rfc2136 import Rfc2136Traffic
from providers.traffic.route53 import Route53Traffic
from tests.support.bind import bind
from tests.support.haproxy import until
from tests.support.nameserver import names
from tests.support.pools import NO_GUARD, A, B, C, Server, bring_in, patient, take_out, the_new
from tests.support.route53 import Zone, hosted_zone

KINDS: dict[str, Any] = {"in process": lambda: names(lag=0.05), "BIND": bind, "Route 53": hosted_zone}
KINDS["Route 53, private"] = partial(hosted_zone, private=True)


@pytest.fixture(scope="module", params=[pytest.param(k, marks=pytest.mark.debian) if k == "BIND" else k for k in KINDS])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with KINDS[request.param]() as made:
        yield made


def traffic_of(server: Server, *names: str, **changes: Any) -> Traffic:
    made = Route53Traffic if isinstance(server, Zone) else Rfc2136Traffic
    return made(server.settings(dict.fromkeys(names, 80), **{"check": "none", **changes}))


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
    assert any(not found.ok and "alias" in found.detail for found in traffic.examine())


def test_addresses_of_the_other_kind_are_refused(server: Server) -> None:
    server.put("both", "A", 1, A)
    server.put("both", "AAAA", 1, "2001:db8::1")
    traffic = traffic_of(server, "both")
    with pytest.raises(Refused, match="AAAA records besides"):
        traffic.members("both")
    with pytest.raises(Refused, match="AAAA records besides"):
        traffic.prepare("both", "web-1.g2")


def test_twenty_writers_lose_nothing_of_each_other_nor_of_a_stranger(server: Server) -> None:
    """Each replaces its own server: ten in one name, ten in names of their own. Somebody else changes other records."""
    olds = [f"192.0.2.{number}" for number in range(10, 30)]
    server.put("crowd", "A", 1, *olds[:10])
    for number in range(10, 20):
        server.put(f"own-{number}", "A", 1, olds[number])
    pools = ["crowd", *(f"own-{number}" for number in range(10, 20))]
    stop, theirs = threading.Event(), [0]

    def stranger() -> None:
        while not stop.is_set():
            server.put(f"theirs-{theirs[0]}", "A", 60, C)
            theirs[0] += 1

    def swap(number: int) -> None:
        pool = "crowd" if number < 10 else f"own-{number}"
        traffic = traffic_of(server, *pools)
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


def test_a_doctor_says_what_the_ttl_means(server: Server) -> None:
    server.put("fresh", "A", 3600, A)
    traffic = traffic_of(server, "fresh")
    until(lambda: all(found.ok for found in traffic.examine()), what="all agree", seconds=30)
    assert any("3600 s: it is lowered to 1 s" in found.detail for found in traffic.examine())
    assert server.get("fresh") == (3600, {A})
    assert server.get("_changeover.fresh", "TXT")[1] == set()


def test_a_name_without_an_address_is_no_pool(server: Server) -> None:
    with pytest.raises(NotFound, match="has no address"):
        traffic_of(server, "empty").members("empty")
