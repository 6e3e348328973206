"""An authoritative name server in this process, with a secondary that lags: it takes signed updates (RFC 2136) and lies
as real ones do."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import dns.tsig
import dns.update

from tests.support.haproxy import own_address

ZONE = "shop.test."
SECRET = "c2VjcmV0IG9mIHRoZSB0ZXN0cyBvZiBDaGFuZ2VvdmVy"
KEY = dns.tsig.Key("changeover.", SECRET, "hmac-sha256")
NONE, ANY = dns.rdataclass.NONE, dns.rdataclass.ANY
Sets = dict[tuple[dns.name.Name, dns.rdatatype.RdataType], tuple[int, frozenset[str]]]


@dataclass
class Zone:
    """What is in it now, and all that was, for a secondary that is late. `before` is called ahead of each update, as
    another writer. `lost`: so many answers to updates are never sent, their effect happens. `refuses`: to update."""

    sets: Sets = field(default_factory=dict)
    past: list[tuple[float, Sets]] = field(default_factory=list)
    updates: int = 0
    refuses: bool = False
    lost: int = 0
    before: Callable[[], None] = lambda: None
    lock: threading.RLock = field(default_factory=threading.RLock)

    def put(self, name: str, type: str, ttl: int, *values: str) -> None:
        """As its owner would, by hand."""
        with self.lock:
            key = (dns.name.from_text(name, dns.name.from_text(ZONE)), dns.rdatatype.from_text(type))
            rest = {other: found for other, found in self.sets.items() if other != key}
            self._become({**rest, key: (ttl, frozenset(values))} if values else rest)

    def get(self, name: str, type: str = "A") -> tuple[int, set[str]]:
        with self.lock:
            key = (dns.name.from_text(name, dns.name.from_text(ZONE)), dns.rdatatype.from_text(type))
            ttl, values = self.sets.get(key, (0, frozenset()))
            return ttl, set(values)

    def at(self, moment: float) -> Sets:
        with self.lock:
            for since, sets in reversed(self.past):
                if since <= moment:
                    return sets
            return self.past[0][1] if self.past else self.sets

    def update(self, message: Any) -> dns.rcode.Rcode:
        """RFC 2136, section 3: all or nothing."""
        with self.lock:
            expected: dict[tuple[dns.name.Name, dns.rdatatype.RdataType], frozenset[str]] = {}
            for rrset in message.prerequisite:  # one for each record
                if (wrong := self._prerequisite(rrset)) is not None:
                    return wrong
                if rrset.deleting is None:
                    key = (rrset.name, rrset.rdtype)
                    expected[key] = expected.get(key, frozenset()) | _values(rrset)
            if any(self.sets.get(key, (0, frozenset()))[1] != values for key, values in expected.items()):
                return dns.rcode.NXRRSET
            sets = dict(self.sets)
            for rrset in message.update:
                self._apply(sets, rrset)
            self._become({key: value for key, value in sets.items() if value[1]})
            self.updates += 1
            return dns.rcode.NOERROR

    def _prerequisite(self, rrset: Any) -> dns.rcode.Rcode | None:
        found = self.sets.get((rrset.name, rrset.rdtype))
        if rrset.deleting == NONE:
            return dns.rcode.YXRRSET if found else None
        return None if found else dns.rcode.NXRRSET

    def _apply(self, sets: Sets, rrset: Any) -> None:
        key = (rrset.name, rrset.rdtype)
        kind = rrset.deleting if rrset.deleting is not None else rrset.rdclass
        if kind == ANY:
            sets.pop(key, None)
        elif kind == NONE:
            ttl, values = sets.get(key, (0, frozenset()))
            sets[key] = (ttl, values - _values(rrset))
        elif (rrset.name, dns.rdatatype.CNAME) not in sets:  # else ignored, without a word (3.4.2.2)
            sets[key] = (rrset.ttl, sets.get(key, (0, frozenset()))[1] | _values(rrset))

    def _become(self, sets: Sets) -> None:
        self.sets = sets
        self.past.append((time.monotonic(), sets))
        del self.past[:-1000]


def _values(rrset: Any) -> frozenset[str]:
    return frozenset(rdata.to_text() for rdata in rrset)


@dataclass
class NameServer:
    """One server of the zone. `lag`: seconds that it is behind; only one without is the primary. `silent`: it answers
    nobody. `lame`: it answers without authority."""

    zone: Zone
    primary: bool = True
    lag: float = 0.0
    silent: bool = False
    lame: bool = False
    address: str = field(default_factory=own_address)
    port: int = 0

    @property
    def where(self) -> str:
        return f"{self.address}:{self.port}"

    def answer(self, wire: bytes) -> bytes | None:
        if self.silent:
            return None
        try:
            query = dns.message.from_wire(wire, keyring={KEY.name: KEY})
        except dns.tsig.BadSignature:
            return _bad_key(wire, dns.rcode.BADSIG)
        except dns.message.UnknownTSIGKey:
            return _bad_key(wire, dns.rcode.BADKEY)
        if query.opcode() == dns.opcode.UPDATE:
            return self._update(query)
        reply = dns.message.make_response(query)
        if not self.lame:
            reply.flags |= dns.flags.AA
        name, kind = query.question[0].name, query.question[0].rdtype
        sets = self.zone.at(time.monotonic() - self.lag)
        for one in (kind, dns.rdatatype.CNAME):
            if found := sets.get((name, one)):
                reply.answer.append(
                    dns.rrset.from_text_list(name, found[0], "IN", dns.rdatatype.to_text(one), found[1])
                )
                break
        else:
            reply.set_rcode(dns.rcode.NOERROR if any(key[0] == name for key in sets) else dns.rcode.NXDOMAIN)
        return reply.to_wire()

    def _update(self, query: Any) -> bytes | None:
        reply = dns.message.make_response(query)
        if not query.had_tsig or not self.primary or self.zone.refuses:
            reply.set_rcode(dns.rcode.REFUSED)
            return reply.to_wire()
        self.zone.before()
        reply.set_rcode(self.zone.update(query))
        if self.zone.lost:
            self.zone.lost -= 1
            return None
        return reply.to_wire()


def _bad_key(wire: bytes, error: dns.rcode.Rcode) -> bytes:
    """NOTAUTH, with a TSIG record that has an error and no signature (RFC 8945, 5.3.2)."""
    number, flags = struct.unpack("!HH", wire[:4])
    head = struct.pack("!HHHHHH", number, (flags & 0x7800) | 0x8000 | dns.rcode.NOTAUTH, 0, 0, 0, 1)
    now = int(time.time())
    signed = struct.pack("!HIHHHHH", now >> 32, now & 0xFFFFFFFF, 300, 0, number, error, 0)
    data = dns.name.from_text("hmac-sha256.").to_wire() + signed
    name = dns.message.from_wire(wire, keyring=False).keyname
    return head + name.to_wire() + struct.pack("!HHIH", dns.rdatatype.TSIG, ANY, 0, len(data)) + data


@contextlib.contextmanager
def serving(server: NameServer) -> Iterator[NameServer]:
    """It answers, by UDP and TCP on one port that the system chose."""

    class Datagram(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            wire, link = self.request
            if (answer := server.answer(wire)) is not None:
                if len(answer) > 1232:
                    short = dns.message.make_response(dns.message.from_wire(wire))
                    short.flags |= dns.flags.TC
                    answer = short.to_wire()
                link.sendto(answer, self.client_address)

    class Stream(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError, EOFError):
                while head := self.request.recv(2, socket.MSG_WAITALL):
                    wire = self.request.recv(struct.unpack("!H", head)[0], socket.MSG_WAITALL)
                    if (answer := server.answer(wire)) is None:
                        return
                    self.request.sendall(struct.pack("!H", len(answer)) + answer)

    class Tcp(socketserver.ThreadingTCPServer):
        daemon_threads = True
        request_queue_size = 128

    class Udp(socketserver.ThreadingUDPServer):
        daemon_threads = True

    with Tcp((server.address, 0), Stream) as tcp, Udp((server.address, tcp.server_address[1]), Datagram) as udp:
        server.port = tcp.server_address[1]
        for each in (tcp, udp):
            threading.Thread(target=each.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield server
        finally:
            tcp.shutdown()
            udp.shutdown()


class Names:
    """The zone `shop.test` at a primary and a secondary."""

    def __init__(self, zone: Zone, primary: NameServer, secondary: NameServer) -> None:
        self.zone, self.primary, self.secondary = zone, primary, secondary
        self.put, self.get = zone.put, zone.get

    def settings(self, pools: dict[str, int], **changes: Any) -> dict[str, Any]:
        return {**settings(self.primary.where, self.secondary.where, pools), **changes}


def settings(primary: str, secondary: str, pools: dict[str, int]) -> dict[str, Any]:
    """What the provider is given; `pools` with their ports."""
    return {
        "zone": ZONE,
        "primary": primary,
        "servers": f"{primary} {secondary}",
        "key_name": "changeover",
        "key_secret": SECRET,
        "ttl": 1,
        "margin": 0,
        "pools": {pool: {"backend": pool, "port": port} for pool, port in pools.items()},
    }


@contextlib.contextmanager
def names(*, lag: float = 0.0) -> Iterator[Names]:
    zone = Zone()
    zone.put("@", "SOA", 60, "ns1.shop.test. admin.shop.test. 1 60 60 60 30")
    with serving(NameServer(zone)) as primary, serving(NameServer(zone, primary=False, lag=lag)) as secondary:
        yield Names(zone, primary, secondary)
