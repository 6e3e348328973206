"""Names in a zone that takes dynamic updates (RFC 2136), as BIND, Knot, PowerDNS and Windows do.

Updates are signed with a TSIG key and go to the primary alone; what serves is what every authoritative server answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import dns.name

from providers import Finding
from providers.clients.dns import Change, Nameservers, Records, Server, key_from, server_from
from providers.errors import ProviderError, Refused
from providers.traffic.health import LOOKS_AT_ONCE
from providers.traffic.names import (
    NOTE_TTL,
    PREFIX,
    AddressSet,
    Found,
    NameTraffic,
    named_settings,
    servers_finding,
    ttl_finding,
)

_SETTINGS = frozenset({"zone", "primary", "servers", "key_name", "key_secret", "key_algorithm"})


class Rfc2136Zone:
    """`servers`: all that are authoritative, the primary first of all. `type`: `A` or `AAAA`."""

    def __init__(self, servers: Nameservers, *, type: str) -> None:
        self.servers, self.type = servers, type

    @property
    def lane(self) -> str:
        return f"dns:{self.servers.zone}@{self.servers.primary}"

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max_workers=LOOKS_AT_ONCE, thread_name_prefix="dns")

    def check(self, name: str) -> None:
        where, other = self.servers.name(name), "AAAA" if self.type == "A" else "A"
        if wrong := _wrong(where, self.servers.ask(self.servers.primary, where, self.type)):
            raise Refused(wrong)
        if self.servers.ask(self.servers.primary, where, other).values:
            raise Refused(
                f"{where} has {other} records besides: they would go on leading to servers that have left. Only "
                f"{self.type} is moved here; take the {other} records out, or give them a name of their own"
            )

    def look(self, names: Collection[str], *, ahead: bool = False) -> Mapping[str, Found]:  # noqa: ARG002 - see there
        """Every server about every name, side by side."""
        servers = self.servers.servers()
        primary = servers[0]
        where = {name: self.servers.name(name) for name in names}
        asked = [(name, server) for name in names for server in servers]
        answers = dict(zip(asked, self._threads.map(lambda one: self._ask(one[1], where[one[0]]), asked), strict=True))
        notes = dict(
            zip(
                names,
                self._threads.map(lambda name: self.servers.ask(primary, _beside(where[name]), "TXT"), names),
                strict=True,
            )
        )
        found = {}
        for name in names:
            here = answers[name, primary]
            if isinstance(here, ProviderError):
                raise here
            found[name] = Found(
                here=AddressSet(addresses=here.values, ttl=here.ttl if here.values else 0),
                wrong=_wrong(where[name], here),
                notes=notes[name].values,
                everywhere={
                    str(server): str(seen)
                    if isinstance(seen, ProviderError)
                    else AddressSet(addresses=seen.values, ttl=seen.ttl)
                    for server in servers
                    for seen in (answers[name, server],)
                },
            )
        return found

    def change(self, name: str, was: Found, to: AddressSet, notes: frozenset[str]) -> bool:
        where = self.servers.name(name)
        return self.servers.change(
            [
                Change(
                    name=where,
                    type=self.type,
                    was=Records(values=was.here.addresses, ttl=was.here.ttl),
                    to=Records(values=to.addresses, ttl=to.ttl),
                ),
                Change(
                    name=_beside(where),
                    type="TXT",
                    was=Records(values=was.notes, ttl=NOTE_TTL),
                    to=Records(values=notes, ttl=NOTE_TTL),
                ),
            ]
        )

    def examine(self, name: str, *, low: int) -> Sequence[Finding]:
        where = self.servers.name(name)
        title = f"name {where}"
        try:
            self.check(name)
            found = self.look([name])[name]
        except ProviderError as error:
            return [Finding(name=title, ok=False, detail=str(error), fix="mend the zone, or the settings")]
        fix = "each of them must answer this worker as the primary does: look at `servers`, notify, ACLs"
        servers = servers_finding(title, found, "the primary", fix=fix)
        return [servers, self._key_accepted(where, title, found), ttl_finding(title, found, low)]

    def _key_accepted(self, where: dns.name.Name, title: str, found: Found) -> Finding:
        beside = _beside(where)
        notes = Records(values=found.notes or frozenset({"doctor"}), ttl=NOTE_TTL)
        now = Records(values=found.here.addresses, ttl=found.here.ttl)
        try:
            self.servers.try_key([(where, self.type, now), (beside, "TXT", notes)])
        except ProviderError as error:
            fix = f"let the key change {where} {self.type} and {beside} TXT (BIND: update-policy)"
            return Finding(name=f"{title}: updates", ok=False, detail=str(error), fix=fix)
        return Finding(name=f"{title}: updates", ok=True, detail=f"{self.servers.primary} takes our key")

    def _ask(self, server: Server, where: dns.name.Name) -> Records | ProviderError:
        try:
            return self.servers.ask(server, where, self.type)
        except ProviderError as error:
            return error


def _wrong(where: dns.name.Name, found: Records) -> str:
    if not found.alias:
        return ""
    return (
        f"{where} is an alias (CNAME) of {found.alias} and has no addresses of its own: a name server takes an address "
        f"for it without an error and ignores it. Name {found.alias} in the fleet file instead"
    )


def _beside(where: dns.name.Name) -> dns.name.Name:
    """Where the notes of that name are."""
    return dns.name.from_text(PREFIX, origin=where)


class Rfc2136Traffic(NameTraffic):
    """Settings: `zone`, `primary` (address, or address:port, of the server that takes updates), `servers` (all that
    answer users, blank-separated; left out, those that the zone's NS records name), `key_name`, `key_secret` (base64,
    by reference) and `key_algorithm` (default hmac-sha256) of a TSIG key, `type` (A or AAAA), `ttl` (seconds, as long
    as a way back is open; default 30), `margin` (seconds beyond each TTL, default 5), `check` (how a server is asked
    whether it is well: `tcp`, the default, `none`, or a path), `addresses` (`many`, or `one` where two addresses must
    never stand side by side). A pool's `backend` is its name, relative to the zone unless it ends in a dot."""

    def __init__(self, settings: Mapping[str, Any], *, clock: Callable[[], float] = time.time) -> None:
        said = named_settings(settings, also=_SETTINGS)
        for needed in ("zone", "primary"):
            if not isinstance(settings.get(needed), str):
                raise Refused(f"traffic settings: {needed} must be said")
        servers = Nameservers(
            settings["zone"],
            primary=server_from(settings["primary"]),
            servers=[server_from(one) for one in str(settings.get("servers", "")).split()],
            key=key_from(settings),
        )
        self._dns = Rfc2136Zone(servers, type=said.type)
        super().__init__(self._dns, clock=clock, **said.rest)
