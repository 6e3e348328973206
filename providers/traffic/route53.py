"""Names in a hosted zone of Route 53.

A change goes to Route 53 as one batch, DELETE of exactly what was there and CREATE of what is to be, which it makes
whole or not at all. It serves when Route 53 says that all its servers have it (INSYNC), and each server of the zone's
delegation, asked directly, answers so.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from typing import Any, get_args

import dns.name

from providers import Caps, Finding
from providers.clients import aws as wire
from providers.clients import iam
from providers.clients.aws import aws
from providers.clients.dns import Nameservers, Server, name_in, own_resolvers, resolved_ns, server_from, zone_name
from providers.clients.rounds import Rounds
from providers.clients.route53 import Action, HostedZone, RecordSet, hosted_zone
from providers.errors import Conflict, ProviderError, Refused, Transient
from providers.rights import Rights
from providers.traffic.batches import Batches, record_sets
from providers.traffic.health import LOOKS_AT_ONCE
from providers.traffic.names import (
    FULL,
    PREFIX,
    AddressSet,
    Found,
    NameTraffic,
    named_settings,
    servers_finding,
    ttl_finding,
)

_SETTINGS = frozenset({"zone", "zone_id", "servers", "resolver"}) | wire.SETTINGS
# Between looks: five requests a second are all that an account has.
POLL_SECONDS = 2.0
# A name of many servers is changed by as many threads at once; who comes late decides anew, which costs no request.
TRIES = 20
SERVERS_SECONDS = 300.0
SERVICE = "Route 53"
FINE = 20  # a weight of which a twentieth is still a whole number

_batches: dict[tuple[HostedZone, str, bool], Batches] = {}
_zones: dict[tuple[Batches, tuple[Server, ...]], Route53Zone] = {}
_lock = threading.Lock()


def zone_of(
    hosted: HostedZone, type: str, servers: tuple[Server, ...], clock: Callable[[], float], *, weighted: bool = False
) -> Route53Zone:
    """One of each in a process: whoever changes that zone, or looks at it, goes together."""
    with _lock:
        made = Batches(hosted, type=type, weighted=weighted, clock=clock)
        batches = _batches.setdefault((hosted, type, weighted), made)
        return _zones.setdefault((batches, servers), Route53Zone(batches, servers=servers))


class Route53Zone:
    """`servers`: all that answer users; without any, those that Route 53 has given the zone. Those of a private zone
    answer nobody but the resolvers of its VPCs: then these are asked, once Route 53 has told all its servers."""

    def __init__(self, batches: Batches, *, servers: Sequence[Server]) -> None:
        self.batches, self.hosted, self.type = batches, batches.hosted, batches.type
        self._given = tuple(servers)
        self._found: tuple[float, Nameservers | None] = (0.0, None)
        self._answers = Rounds(self._ask)

    @property
    def lane(self) -> str:
        return f"route53:{self.hosted.name}@{self.hosted.aws.place.account}"

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max_workers=LOOKS_AT_ONCE, thread_name_prefix="dns")

    def name(self, text: str) -> str:
        """As Route 53 has it: absolute, in lower case. `Refused` if it is outside of the zone."""
        return name_in(zone_name(self.hosted.name), text).to_text().lower()

    def servers(self) -> Nameservers:
        """All that are to be asked. `Transient` if one of them has no address."""
        at, found = self._found
        if found is None or time.monotonic() - at > SERVERS_SECONDS:
            all = self._given
            if not all and self.hosted.private:
                all = own_resolvers()
            all = all or tuple(map(_address_of, self.hosted.hosts()))
            found = Nameservers(self.hosted.name, primary=all[0], servers=all)
            self._found = (time.monotonic(), found)
        return found

    def check(self, name: str) -> None:
        where, other = self.name(name), "AAAA" if self.type == "A" else "A"
        state = self.batches.states([where])[where]
        if state.wrong:
            raise Refused(state.wrong)
        if state.other:
            raise Refused(
                f"{where} has {other} records besides: they would go on leading to servers that have left. Only "
                f"{self.type} is moved here; take the {other} records out, or give them a name of their own"
            )

    def look(self, names: Collection[str], *, ahead: bool = False) -> Mapping[str, Found]:
        """Route 53 about all of them at once, then every server about those that Route 53 says it has told all of."""
        where = {name: self.name(name) for name in names}
        states = self.batches.states(set(where.values()), ahead=ahead)
        going = {name: self.batches.under_way(states[at]) for name, at in where.items()}
        for name, at in where.items():
            if going[name] and self.batches.forgotten(states[at]):
                with contextlib.suppress(ProviderError):  # the next look finds it still to be done
                    self.batches.change(at, states[at].seen, states[at].seen)
        settled = {at for name, at in where.items() if not going[name]}
        answers = self._answers(settled) if settled else {}
        return {
            name: Found(
                here=states[at].here,
                notes=states[at].notes,
                wrong=states[at].wrong,
                everywhere={SERVICE: going[name]} if going[name] else self._as_there(answers[at], states[at].here),
            )
            for name, at in where.items()
        }

    def _as_there(self, said: Mapping[str, AddressSet | str], here: AddressSet) -> Mapping[str, AddressSet | str]:
        """What a resolver has heard counts as what is there, for the rest of its time."""
        if not self.hosted.private:
            return said
        return {
            server: here if isinstance(one, AddressSet) and here.explains(one) and one.ttl <= here.ttl else one
            for server, one in said.items()
        }

    def _ask(self, names: Collection[str]) -> Mapping[str, Mapping[str, AddressSet | str]]:
        """What each server says of each name, or why it does not."""
        servers, private = self.servers(), self.hosted.private
        asked = [(name, server) for name in names for server in servers.servers()]

        def answer(one: tuple[str, Server]) -> AddressSet | str:
            try:
                told = servers.ask(one[1], dns.name.from_text(one[0]), self.type, resolver=private)
            except ProviderError as error:
                return str(error)
            return AddressSet(addresses=told.values, ttl=told.ttl if told.values else 0)

        answers = dict(zip(asked, self._threads.map(answer, asked), strict=True))
        return {name: {str(server): answers[name, server] for server in servers.servers()} for name in names}

    def change(self, name: str, was: Found, to: AddressSet, notes: frozenset[str]) -> bool:
        return self.batches.change(self.name(name), (was.here, was.notes), (to, notes))

    # -- what a doctor asks -------------------------------------------------------------------------------------------

    def examine(self, name: str, *, low: int) -> Sequence[Finding]:
        where = self.name(name)
        title = f"name {where}"
        try:
            self.check(name)
            found = self.look([name])[name]
        except ProviderError as error:
            return [Finding(name=title, ok=False, detail=str(error), fix="mend the zone, or the settings")]
        fix = "each of them must answer this worker: look at `servers`, at the delegation, at what lies between"
        return [
            servers_finding(title, found, SERVICE, fix=fix),
            self._allowed(where, title),
            ttl_finding(title, found, low),
            *self._weights(title, found),
        ]

    def _weights(self, title: str, found: Found) -> Sequence[Finding]:
        if not (shares := sorted(found.here.shares, key=lambda one: one.id)):
            return ()
        detail = ", ".join(f"{one.id} {one.weight}" for one in shares)
        least = min(one.weight for one in shares)
        fix = f"give them weights of {FULL}, say: with {least} a new server gets a large part of all answers at once"
        return [Finding(name=f"{title}: weights", ok=least >= FINE, detail=detail, fix=fix if least < FINE else "")]

    def _allowed(self, where: str, title: str) -> Finding:
        """Asked for a batch that Route 53 can only refuse, since it deletes what was never there: whoever may not
        change these names is told that instead, and nothing changes in either case."""
        beside = f"{PREFIX}.{where}"
        never = RecordSet(name=beside, type="TXT", ttl=1, values=frozenset({f'"doctor {uuid.uuid4().hex}"'}))
        now = self.batches.states([where])[where].here
        there = record_sets(where, self.type, now)
        again: list[Any] = [(action, one) for action in get_args(Action) for one in there]
        fix = f"allow route53:ChangeResourceRecordSets on the zone for {where} {self.type} and {beside} TXT"
        try:
            self.hosted.submit([*again, ("DELETE", never)])
        except Conflict:
            return Finding(name=f"{title}: changes", ok=True, detail=f"{SERVICE} lets us change it")
        except ProviderError as error:
            return Finding(name=f"{title}: changes", ok=False, detail=str(error), fix=fix)
        return Finding(name=f"{title}: changes", ok=False, detail=f"{SERVICE} has deleted what was never there")

    def examine_zone(self, resolver: Server | None) -> Sequence[Finding]:
        title = f"zone {self.hosted.name}"
        try:
            self.hosted.aws.right_account()
            id = self.hosted.find()
            hosts = set() if self.hosted.private else set(self.hosted.hosts())
        except ProviderError as error:
            fix = "`zone`, `zone_id`, and whose credentials the workers have: see docs/dns.md"
            return [Finding(name=title, ok=False, detail=str(error), fix=fix)]
        there = Finding(name=title, ok=True, detail=f"hosted zone {id} of {self.hosted.aws.lane}")
        if self.hosted.private:
            said = f"private: asked of {', '.join(map(str, self.servers().servers()))}, as its VPCs ask"
            return [replace(there, detail=f"{there.detail}, {said}")]
        title = f"{title}: delegation"
        fix = f"let the registrar, or the zone above, name {', '.join(sorted(hosts))}"
        try:
            seen = resolved_ns(zone_name(self.hosted.name), resolver)
        except ProviderError as error:
            return [there, Finding(name=title, ok=False, detail=str(error), fix=fix)]
        strange = ", ".join(sorted(seen ^ hosts))
        if strange:
            said = (
                f"the world is sent to {', '.join(sorted(seen)) or 'nobody'}: another zone of that name than this one"
            )
            return [there, Finding(name=title, ok=False, detail=said, fix=fix)]
        return [there, Finding(name=title, ok=True, detail=f"the world is sent to {', '.join(sorted(hosts))}")]


def _address_of(host: str) -> Server:
    """One address of each server: they have several, of one machine room."""
    try:
        found = socket.getaddrinfo(host, 53, type=socket.SOCK_DGRAM)
    except OSError as error:
        raise Transient(f"the name server {host} has no address: {error}", ambiguous=False) from None
    addresses = sorted({(one[0] != socket.AF_INET, str(one[4][0])) for one in found})
    return Server(address=addresses[0][1])


class Route53Traffic(NameTraffic):
    """Settings: `zone`, or `zone_id` besides where several have that name; whose it is, as for the provider `aws`
    (`account`, `role`, `external_id`, `profile`, `endpoint`); `servers` (address:port each, blank-separated; left out,
    those that Route 53 has given the zone), `resolver` (who is asked for the delegation by the doctor; left out, this
    machine's own), and `type`, `ttl`, `margin`, `check`, `addresses` as for `rfc2136`; `addresses` may be `weighted`
    besides, with `canary` (percents) and `canary_seconds`. A pool's `backend` is its name, relative to the zone unless
    it ends in a dot."""

    def __init__(self, settings: Mapping[str, Any], *, clock: Callable[[], float] = time.time) -> None:
        said = named_settings(settings, also=_SETTINGS, weights=True)
        if not isinstance(settings.get("zone"), str):
            raise Refused("traffic settings: zone must be said")
        place = {what: value for what, value in settings.items() if what in wire.SETTINGS}
        account = aws({"region": "us-east-1", **place})
        hosted = hosted_zone(account, zone_name(settings["zone"]).to_text().lower(), str(settings.get("zone_id", "")))
        servers = tuple(server_from(one) for one in str(settings.get("servers", "")).split())
        weighted = said.rest["canary"] is not None
        self._route53 = zone_of(hosted, said.type, servers, clock, weighted=weighted)
        self._resolver = server_from(settings["resolver"]) if "resolver" in settings else None
        super().__init__(self._route53, tries=TRIES, clock=clock, **said.rest)

    @property
    def caps(self) -> Caps:
        return replace(super().caps, poll=POLL_SECONDS, takes_turns=False)

    def examine(self) -> Sequence[Finding]:
        """Of the zone, that it is there and the world is sent to it; then of each name."""
        return [*self._route53.examine_zone(self._resolver), *super().examine()]

    def rights(self, *, fleet: str) -> Sequence[Rights]:  # noqa: ARG002 - records have no tags
        """To change these names and the notes beside them, and no other of the zone."""
        hosted, names = self._route53.hosted, sorted(self._route53.name(name) for name, _ in self._pools.values())
        zone = iam.public(hosted.aws.place, "route53", f"hostedzone/{hosted.id or '*'}", region=False)
        find = ["route53:GetChange", *([] if hosted.id else ["route53:ListHostedZonesByName"])]
        changed = {
            "route53:ChangeResourceRecordSetsActions": sorted(get_args(Action)),
            "route53:ChangeResourceRecordSetsNormalizedRecordNames": sorted(
                each.rstrip(".") for name in names for each in (name, f"{PREFIX}.{name}")
            ),
            "route53:ChangeResourceRecordSetsRecordTypes": [self._route53.type, "TXT"],
        }
        return iam.rights(
            hosted.aws.place,
            [
                iam.allow("Look", find),
                iam.allow("LookAtTheZone", ["route53:GetHostedZone", "route53:ListResourceRecordSets"], zone),
                iam.allow(
                    "ChangeTheNamesOfTheFleet",
                    ["route53:ChangeResourceRecordSets"],
                    zone,
                    **{"ForAllValues:StringEquals": changed},
                ),
            ],
        )
