"""Authoritative name servers, each asked directly, and changed by RFC 2136 updates with prerequisites.

No resolver and no cache is between: a question goes to one server and says that it wants no recursion, and an answer
without the AA flag counts for nothing. An update names the whole record sets that it expects (RFC 2136, 2.4.2), so that
it is a compare-and-swap: it happens whole, or not at all. Prerequisites do not compare a TTL.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.resolver
import dns.rrset
import dns.tsig
import dns.update

from providers.errors import Refused, Transient, Unauthorized

ASK_SECONDS, CHANGE_SECONDS = 2.0, 5.0
# How long the zone's own list of its servers is believed.
SERVERS_SECONDS = 60.0
_PAYLOAD = 1232
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_ALGORITHMS = ("hmac-sha256", "hmac-sha384", "hmac-sha512", "hmac-sha224", "hmac-sha1", "hmac-md5")
_LOST = (dns.rcode.NXRRSET, dns.rcode.YXRRSET, dns.rcode.NXDOMAIN, dns.rcode.YXDOMAIN)


@dataclass(frozen=True, kw_only=True)
class Server:
    """One authoritative name server, by address."""

    address: str
    port: int = 53

    def __str__(self) -> str:
        if self.port == 53:
            return self.address
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class Records:
    """One record set, as text without its owner. `ttl` in seconds. `alias`: where the name leads if it is a CNAME."""

    values: frozenset[str] = frozenset()
    ttl: int = 0
    alias: str = ""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One record set, as it must be found and as it becomes. Without values: none."""

    name: dns.name.Name
    type: str
    was: Records
    to: Records


class Nameservers:
    """One zone's name servers. `primary` takes the updates; `servers`, if given, are all that answer users, instead of
    those that the zone names. Thread-safe: each question has a socket of its own."""

    def __init__(
        self, zone: str, *, primary: Server, servers: Sequence[Server] = (), key: dns.tsig.Key | None = None
    ) -> None:
        self.zone = zone_name(zone)
        self.primary = primary
        self._given = tuple(dict.fromkeys((primary, *servers))) if servers else ()
        self._key = key
        self._found: tuple[float, tuple[Server, ...]] = (0.0, ())

    def name(self, text: str) -> dns.name.Name:
        """The name, read as relative to the zone unless it ends in a dot. `Refused` if it is outside of it."""
        return name_in(self.zone, text)

    def servers(self) -> tuple[Server, ...]:
        """All that answer users with authority; the primary is the first. Those that the zone itself names (NS), at
        their addresses, unless the settings say them. `Transient` if that cannot be found out."""
        if self._given:
            return self._given
        at, found = self._found
        if found and time.monotonic() - at < SERVERS_SECONDS:
            return found
        listed = self.ask(self.primary, self.zone, "NS").values
        if not listed:
            raise Refused(f"{self.primary} names no name server for {self.zone}: say them in `servers`")
        addresses = [address for host in sorted(listed) for address in self._addresses(dns.name.from_text(host))]
        found = tuple(dict.fromkeys((self.primary, *(Server(address=address) for address in addresses))))
        self._found = (time.monotonic(), found)
        return found

    def _addresses(self, host: dns.name.Name) -> list[str]:
        """Of one name server. One that cannot be resolved is an error: an unasked server may answer with anything."""
        if host.is_subdomain(self.zone):
            own = self.ask(self.primary, host, "A").values | self.ask(self.primary, host, "AAAA").values
            if own:
                return sorted(own)
        try:
            found = socket.getaddrinfo(host.to_text(omit_final_dot=True), 53, type=socket.SOCK_DGRAM)
        except OSError as error:
            raise Transient(f"the name server {host} of {self.zone} has no address: {error}", ambiguous=False) from None
        return sorted({str(one[4][0]) for one in found})

    def ask(self, server: Server, name: dns.name.Name, type: str, *, resolver: bool = False) -> Records:
        """What this server itself has at that name. `Transient` if it does not answer, `Refused` if it has no authority
        over the zone. `resolver`: what it has heard of others, with the rest of its TTL, is taken too."""
        kind = dns.rdatatype.from_text(type)
        flags = dns.flags.RD if resolver else 0
        query = dns.message.make_query(name, kind, flags=flags, use_edns=0, payload=_PAYLOAD)
        where = f"{server} about {name} {type}"
        try:
            try:
                answer, _ = dns.query.udp_with_fallback(
                    query, server.address, timeout=ASK_SECONDS, port=server.port, ignore_unexpected=True
                )
            except dns.exception.Timeout:  # a datagram may be lost
                answer = dns.query.tcp(query, server.address, timeout=ASK_SECONDS, port=server.port)
        except (dns.exception.DNSException, OSError, EOFError) as error:
            raise Transient(f"no answer from {where}: {_said(error)}", ambiguous=False) from None
        code = answer.rcode()
        if code in (dns.rcode.SERVFAIL, dns.rcode.FORMERR, dns.rcode.NOTIMP):
            raise Transient(f"{where}: {dns.rcode.to_text(code)}", ambiguous=False)
        known = code in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN)
        if not known or not (resolver or answer.flags & dns.flags.AA):
            said = "no authority" if code == dns.rcode.NOERROR else dns.rcode.to_text(code)
            raise Refused(f"{where}: {said}. It must serve the zone {self.zone} and answer this worker")
        alias = answer.get_rrset(dns.message.ANSWER, name, dns.rdataclass.IN, dns.rdatatype.CNAME)
        if alias is not None and kind != dns.rdatatype.CNAME:
            return Records(ttl=alias.ttl, alias=alias[0].to_text())
        found = answer.get_rrset(dns.message.ANSWER, name, dns.rdataclass.IN, kind)
        if found is None:
            return Records()
        return Records(values=frozenset(_text(one) for one in found), ttl=found.ttl)

    def change(self, changes: Sequence[Change]) -> bool:
        """All of it at the primary, or nothing: False if a record set was not as expected. True is to be read back: an
        address beside an alias is ignored without a word (RFC 2136, 3.4.2.2). `Unauthorized` if the key is unknown,
        wrong or not allowed to; `Transient`, ambiguous, if the answer was lost: then read."""
        update = dns.update.UpdateMessage(self.zone)
        for one in changes:
            kind = dns.rdatatype.from_text(one.type)
            if one.was.values:
                update.present(one.name, *(_rdata(kind, value) for value in sorted(one.was.values)))
            else:
                update.absent(one.name, kind)
            if one.was == one.to:
                continue
            if one.to.values:
                update.replace(one.name, one.to.ttl, *(_rdata(kind, value) for value in sorted(one.to.values)))
            else:
                update.delete(one.name, kind)
        return self._send(update, " and ".join(f"{one.name} {one.type}" for one in changes))

    def try_key(self, there: Sequence[tuple[dns.name.Name, str, Records]]) -> None:
        """Ask to add what is there already, if a record set exists that never does: whoever may not change these names
        is refused (`Unauthorized`), as far as the server looks at permissions first. Changes nothing."""
        update = dns.update.UpdateMessage(self.zone)
        update.present(dns.name.from_text("_changeover-never", origin=self.zone), dns.rdatatype.TXT)
        for name, type, records in there:
            kind = dns.rdatatype.from_text(type)
            update.add(name, records.ttl, *(_rdata(kind, value) for value in sorted(records.values)))
        if self._send(update, " and ".join(f"{name} {type}" for name, type, _ in there)):
            raise Refused(f"{self.primary} took an update whose prerequisite does not hold: it is no server to trust")

    def _send(self, update: dns.update.UpdateMessage, what: str) -> bool:
        if self._key is not None:
            update.use_tsig(self._key)
        server = self.primary
        try:
            answer = dns.query.tcp(update, server.address, timeout=CHANGE_SECONDS, port=server.port)
        except ConnectionRefusedError as error:
            raise Transient(f"{server} does not take the update of {what}: {error}", ambiguous=False) from None
        except dns.tsig.PeerError as error:
            why = f"{server} refuses the key: {_said(error)}"
            raise Unauthorized(f"{why}. Check key_name, key_secret, key_algorithm and both clocks") from None
        except (dns.exception.DNSException, OSError, EOFError) as error:
            raise Transient(f"{server} has not answered the update of {what}: {_said(error)}", ambiguous=True) from None
        code = answer.rcode()
        said = f"{server} answers {dns.rcode.to_text(code)} to the update of {what}"
        if code == dns.rcode.NOERROR:
            return True
        if code in _LOST:
            return False
        if code == dns.rcode.SERVFAIL:
            raise Transient(said, ambiguous=True)
        if code in (dns.rcode.REFUSED, dns.rcode.NOTAUTH):
            signed = f"the key {self._key.name}" if self._key is not None else "an update without a key"
            raise Unauthorized(f"{said}: it must be the primary of {self.zone} and let {signed} change that")
        raise Refused(said)


def resolved_ns(zone: dns.name.Name, resolver: Server | None) -> set[str]:
    """The name servers of the zone to which the world is sent, by way of the zones above it; none if nobody is. Asked
    of that resolver, or of this machine's own. `Transient` if it does not answer."""
    try:
        ask = dns.resolver.Resolver(configure=resolver is None)
        if resolver is not None:
            ask.nameservers, ask.port = [resolver.address], resolver.port
        told = ask.resolve(zone, dns.rdatatype.NS, lifetime=CHANGE_SECONDS, search=False)
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
        return set()
    except (dns.exception.DNSException, OSError, EOFError) as error:
        raise Transient(f"no resolver knows who serves {zone}: {_said(error)}", ambiguous=False) from None
    return {str(one.target).rstrip(".").lower() for one in told}


def own_resolvers() -> tuple[Server, ...]:
    """Those that this machine asks."""
    try:
        return tuple(Server(address=str(one)) for one in dns.resolver.Resolver().nameservers)
    except dns.exception.DNSException as error:
        raise Transient(f"this machine has no resolver: {_said(error)}", ambiguous=False) from None


def key_from(settings: Mapping[str, Any]) -> dns.tsig.Key | None:
    """The TSIG key of `key_name`, `key_secret` (base64) and `key_algorithm`; None without any. Says nothing of the
    secret, whatever is wrong with it."""
    name, secret = settings.get("key_name"), settings.get("key_secret")
    if name is None and secret is None:
        return None
    if not isinstance(name, str) or not isinstance(secret, str):
        raise Refused("traffic settings: a key needs both key_name and key_secret")
    algorithm = settings.get("key_algorithm", _ALGORITHMS[0])
    if algorithm not in _ALGORITHMS:
        raise Refused(f"traffic settings: key_algorithm {algorithm!r} is none of {', '.join(_ALGORITHMS)}")
    try:
        return dns.tsig.Key(dns.name.from_text(name), secret, algorithm)
    except (dns.exception.DNSException, ValueError):
        raise Refused("traffic settings: key_name is no DNS name, or key_secret no base64") from None


def server_from(text: object) -> Server:
    """`192.0.2.53`, `192.0.2.53:5353`, `2001:db8::53`, `[2001:db8::53]:5353`, or a host name in the place of the
    address."""
    if not isinstance(text, str):
        raise Refused(f"traffic settings: a name server is written as its address, not {text!r}")
    host, port = text, "53"
    if match := re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](?::([0-9]{1,5}))?", text):
        host, port = match[1], match[2] or port
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise Refused(f"traffic settings: {text!r} has no port of a name server")
    try:
        return Server(address=str(ipaddress.ip_address(host)), port=int(port))
    except ValueError:
        pass
    if not _HOST.fullmatch(host):
        raise Refused(f"traffic settings: {text!r} is no name server")
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        raise Transient(f"the name server {host} has no address: {error}", ambiguous=False) from None
    return Server(address=str(found[0][4][0]), port=int(port))


def name_in(zone: dns.name.Name, text: str) -> dns.name.Name:
    """The name that is meant, relative to the zone unless it ends in a dot. `Refused` if it is none, or not in it."""
    try:
        name = dns.name.from_text(text, origin=zone)
    except dns.exception.DNSException as error:
        raise Refused(f"{text!r} is no DNS name: {error}") from None
    if not name.is_subdomain(zone):
        raise Refused(f"{name} is not in the zone {zone}")
    return name


def zone_name(text: str) -> dns.name.Name:
    """`Refused` for what is no name."""
    try:
        return dns.name.from_text(text)
    except dns.exception.DNSException as error:
        raise Refused(f"traffic settings: the zone {text!r} is no DNS name: {error}") from None


def _rdata(kind: dns.rdatatype.RdataType, value: str) -> dns.rdata.Rdata:
    text = f'"{value}"' if kind == dns.rdatatype.TXT else value
    return dns.rdata.from_text(dns.rdataclass.IN, kind, text)


def _text(rdata: Any) -> str:
    if rdata.rdtype == dns.rdatatype.TXT:
        return b"".join(rdata.strings).decode("ascii", "backslashreplace")
    return str(rdata.to_text())


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__
