"""A whole rollout behind names in DNS: real servers of the local cloud, real workers, name servers that answer and lag
(of a zone that takes updates, and of Route 53 with the five requests a second that an account has), and users who look
a name up, keep the answer for its TTL, and connect."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator import operations
from orchestrator.domain.fleet import Fleet
from orchestrator.messaging import make_app
from orchestrator.settings import Settings
from orchestrator.store.redis import RedisStore
from orchestrator.supervisor import Supervisor, start
from providers.clients.dns import Nameservers, server_from
from tests.support.aws import ROLE
from tests.support.local_host import LocalHost
from tests.support.nameserver import SECRET, ZONE, names
from tests.support.pools import Server
from tests.support.rights import held_to_its_policy
from tests.support.route53 import Zone, hosted_zone

PORT = 8080
TTL = 3
PATIENCE = 280.0


@dataclass(frozen=True, kw_only=True)
class Dns:
    """A zone, and how a fleet file names what changes it. `servers`: all that users ask. `allowed`: what a doctor says
    of whoever may change it."""

    zone: Server
    provider: str
    servers: tuple[str, ...]
    allowed: str
    settings: Mapping[str, Any]


@contextmanager
def rfc2136(tmp_path: Path) -> Iterator[Dns]:
    secret = tmp_path / "dns.key"
    secret.write_text(SECRET)
    with names(lag=0.3) as zone:
        servers = zone.primary.where, zone.secondary.where
        settings = zone.settings({}, key_secret=f"file:{secret}")
        yield Dns(zone=zone, provider="rfc2136", servers=servers, allowed="takes our key", settings=settings)


@contextmanager
def route53(tmp_path: Path) -> Iterator[Dns]:
    with hosted_zone(spread=0.5, throttled=True) as zone:
        servers = tuple(zone.cloud.zones.servers.split())
        settings = zone.settings({}, role=ROLE)
        yield Dns(zone=zone, provider="route53", servers=servers, allowed="lets us change it", settings=settings)


KINDS: Mapping[str, Callable[[Path], AbstractContextManager[Dns]]] = {"RFC 2136": rfc2136, "Route 53": route53}


class Users:
    """Each asks one of the name servers, believes it for the TTL, and uses any of the addresses, with a connection of
    its own for each request: nothing hides an address where nobody is any more."""

    def __init__(self, servers: Sequence[str], hosts: list[str], *, count: int = 6) -> None:
        self.answered: dict[str, int] = {}
        self.failures: list[str] = []
        self._servers = [server_from(where) for where in servers]
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._visit, args=(hosts[number % len(hosts)], number), daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)

    def _visit(self, host: str, number: int) -> None:
        asked = Nameservers(ZONE, primary=self._servers[0], servers=self._servers)
        chance = random.Random(number)
        while not self._stop.is_set():
            found = asked.ask(chance.choice(self._servers), asked.name(host), "A")
            until = time.monotonic() + found.ttl
            if not found.values:
                self.failures.append(f"{host} has no address")
                return
            while time.monotonic() < until and not self._stop.is_set():
                address = chance.choice(sorted(found.values))
                link = http.client.HTTPConnection(address, PORT, timeout=10)
                try:
                    link.request("GET", "/")
                    answer = link.getresponse()
                    served = answer.read().decode().split()[0]
                    if answer.status != 200:
                        self.failures.append(f"{address}: {answer.status}")
                    self.answered[served] = self.answered.get(served, 0) + 1
                except (OSError, http.client.HTTPException) as error:
                    self.failures.append(f"{address}: {error!r}")
                finally:
                    link.close()
                self._stop.wait(0.02)


@contextmanager
def control_plane(tmp_path: Path) -> Iterator[Supervisor]:
    given = {"redis_url": "", "broker_url": "", "result_url": "", "state_dir": tmp_path / "state"}
    supervisor = start(Settings(**given, lease=20.0, concurrency=4), workers=2, with_flower=False)
    try:
        supervisor.wait_ready(90)
        yield supervisor
    finally:
        supervisor.stop()


def fleet_of(host: LocalHost, dns: Dns, ids: dict[str, str], *, one: bool) -> Fleet:
    """In one name together, or in a name each."""
    settings = {**dns.settings, "addresses": "one" if one else "many", "check": "/"}
    del settings["pools"]
    whole: dict[str, Any] = {
        "version": 1,
        "fleet": "shop",
        "provider": {"name": "local", "settings": host.settings},
        "target": {"size": {"memory": "320MiB", "disk": "24MiB"}},
        "servers": [{"name": name, "id": id, "pools": [name if one else "web"]} for name, id in ids.items()],
        "traffic": {
            "provider": dns.provider,
            "settings": settings,
            "pools": {name: {"port": PORT, "backend": f"{name}.shop.test."} for name in (ids if one else ["web"])},
        },
        "checks": {"smoke": {"requests": [{"url": "http://shop.test/"}], "passes": 2, "every": "200ms"}},
        "state": "stateless",
        "rollout": {
            "waves": ["rest"],
            "bake": "1s",
            "soak": "1s",
            "max_in_flight": 3,
            "poll": "500ms",
            "drain": {"deadline": "60s", "quiet": "500ms"},
        },
    }
    return Fleet.model_validate_json(json.dumps(whole))


def run(supervisor: Supervisor, fleet: Fleet, dns: Dns) -> tuple[RedisStore, str]:
    settings = supervisor.settings
    store = RedisStore(settings.store_url(), namespace=settings.namespace, connections=4)
    ask = operations.celery_asker(make_app(settings))
    waiter = operations.Waiter(sleep=supervisor.step)
    if isinstance(dns.zone, Zone):
        held_to_its_policy(dns.zone.cloud, store, ask, fleet, supervisor)
    checks = operations.doctor(store, ask, fleet, dev=True, waiter=waiter)
    assert [check for check in checks if not check.ok] == [], "a doctor finds it well"
    assert any(dns.allowed in check.detail for check in checks)
    id = operations.apply(store, ask, fleet, agreed=None, actor="test", waiter=waiter).id
    return store, id


def until_ended(supervisor: Supervisor, store: RedisStore, id: str) -> operations.View:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        supervisor.step(0.05)
        view = operations.view(store, id)
        if view.rollout.ended:
            return view
    raise AssertionError(f"not ended: {[(u.server, u.state, u.step, u.why) for u in view.upgrades]}")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("one", [False, True], ids=["one name of three servers", "a name each, of one address"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_fleet_behind_names_is_replaced_without_one_failed_request(tmp_path: Path, kind: str, one: bool) -> None:
    with LocalHost() as host, KINDS[kind](tmp_path) as dns:
        zone = dns.zone
        servers = {name: host.server(name) for name in ("web-1", "web-2", "web-3")}
        addresses = {name: server["address"] for name, server in servers.items()}
        if one:
            for name, address in addresses.items():
                zone.put(name, "A", TTL, address)
        else:
            zone.put("web", "A", TTL, *addresses.values())
        time.sleep(0.5)  # until the last server has it
        fleet = fleet_of(host, dns, {name: server["id"] for name, server in servers.items()}, one=one)
        hosts = list(servers) if one else ["web"]
        with control_plane(tmp_path) as supervisor:
            users = Users(dns.servers, hosts)
            try:
                store, id = run(supervisor, fleet, dns)
                view = until_ended(supervisor, store, id)
                time.sleep(1)
            finally:
                users.stop()
            assert {u.server: u.state for u in view.upgrades} == dict.fromkeys(servers, "upgraded"), view.upgrades
            new = {u.results["smoke_test"]["address"] for u in view.upgrades}
            assert users.failures == []
            assert set(users.answered) >= new | set(addresses.values()), "each of them has served users"
            assert set().union(*(zone.get(name)[1] for name in hosts)) == new
            states = {s["address"]: s["state"] for s in host.client.servers()}
            assert {states[address] for address in addresses.values()} == {"stopped"}
            assert {zone.get(name)[0] for name in hosts} == {1}, "low as long as there is a way back"

            operations.rollback(store, id, actor="test")
            users = Users(dns.servers, hosts)
            end = time.monotonic() + PATIENCE
            while operations.view(store, id).rollout.state != "rolled_back" and time.monotonic() < end:
                supervisor.step(0.05)
            users.stop()
            assert users.failures == []
            for name in hosts:
                there = {addresses[name]} if one else set(addresses.values())
                assert zone.get(name) == (TTL, there), "as it was, with its TTL"
                assert zone.get(f"_changeover.{name}", "TXT")[1] == set()
