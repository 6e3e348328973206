"""The authoritative servers of a simulated DNS, on loopback: real ones, that are asked by UDP and TCP.

What each of them says comes from a function, so that every one can be late in its own way.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

_DATAGRAM = 1232
_TRIES = 50


@dataclass(frozen=True, kw_only=True)
class Answer:
    """`records`: type, TTL and values, of the type that was asked for or CNAME. None: there is no such name."""

    records: Sequence[tuple[str, int, Sequence[str]]] | None
    authority: bool = True


# What a server says about a name (lower case, with its dot) and a type. None: it does not serve that zone.
Ask = Callable[[str, str], Answer | None]


def answer(wire: bytes, ask: Ask) -> bytes | None:
    """The reply to one question. None for what is no DNS."""
    try:
        query = dns.message.from_wire(wire)
        question = query.question[0]
    except (dns.exception.DNSException, IndexError):
        return None
    reply = dns.message.make_response(query)
    told = ask(question.name.to_text().lower(), dns.rdatatype.to_text(question.rdtype))
    if told is None:
        reply.set_rcode(dns.rcode.REFUSED)
        return reply.to_wire()
    if told.authority:
        reply.flags |= dns.flags.AA
    if told.records is None:
        reply.set_rcode(dns.rcode.NXDOMAIN)
    for type, ttl, values in told.records or ():
        reply.answer.append(dns.rrset.from_text_list(question.name, ttl, "IN", type, list(values)))
    return reply.to_wire()


class NameServer:
    """One of them, until `close`."""

    def __init__(self, ask: Ask) -> None:
        class Datagram(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                wire, link = self.request
                told = answer(wire, ask)
                if told is not None and len(told) > _DATAGRAM:
                    cut = dns.message.make_response(dns.message.from_wire(wire))
                    cut.flags |= dns.flags.TC
                    told = cut.to_wire()
                if told is not None:
                    link.sendto(told, self.client_address)

        class Stream(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.request.settimeout(10)
                with contextlib.suppress(OSError, struct.error):
                    while head := self.request.recv(2, socket.MSG_WAITALL):
                        size = struct.unpack("!H", head)[0]
                        told = answer(self.request.recv(size, socket.MSG_WAITALL), ask)
                        if told is None:
                            return
                        self.request.sendall(struct.pack("!H", len(told)) + told)

        class Tcp(socketserver.ThreadingTCPServer):
            daemon_threads = True
            request_queue_size = 128

        self._servers = _both(lambda port: Tcp(("127.0.0.1", port), Stream), Datagram)
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def where(self) -> str:
        """address:port"""
        return f"127.0.0.1:{self._servers[0].server_address[1]}"

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


def _both(
    tcp: Callable[[int], socketserver.TCPServer], datagram: type[socketserver.BaseRequestHandler]
) -> tuple[socketserver.TCPServer, socketserver.UDPServer]:
    """One port of the system's choice, by TCP and UDP: somebody else may have it by one of them."""
    for _ in range(_TRIES):
        stream = tcp(0)
        try:
            return stream, socketserver.UDPServer(("127.0.0.1", int(stream.server_address[1])), datagram)
        except OSError:
            stream.server_close()
    raise OSError("no port is free by both TCP and UDP")
