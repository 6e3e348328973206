"""Which loopback address a server gets."""

from __future__ import annotations

import hashlib
import ipaddress
import random
import socket
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path

from providers.errors import NoCapacity, Refused


def default_network(state: Path) -> str:
    """A /16 between 127.64 and 127.191 that follows from the folder, so that two hosts seldom share one."""
    return f"127.{64 + hashlib.sha256(str(state).encode()).digest()[0] % 128}.0.0/16"


def bindable(address: str, port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((address, port))
        except OSError:
            return False
    return True


_LISTENS = "0A"
# Established, half open or half closed (include/net/tcp_states.h). TIME_WAIT is over: nobody waits for an answer.
_OPEN = frozenset({"01", "03", "04", "05", "08", "09", "0B"})


def listeners() -> Mapping[str, Mapping[int, int]]:
    """TCP ports with a listener, by the exact address that they listen on, and how many connections are open there. One
    look costs as much as a hundred."""
    found: dict[str, dict[int, int]] = defaultdict(dict)
    opened: Counter[tuple[str, int]] = Counter()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split(None, 4)
        if words[3] != _LISTENS and words[3] not in _OPEN:
            continue
        host, _, number = words[1].partition(":")
        address, port = socket.inet_ntoa(bytes.fromhex(host)[::-1]), int(number, 16)
        if words[3] == _LISTENS:
            found[address][port] = 0
        else:
            opened[address, port] += 1
    return {address: {port: opened[address, port] for port in sorted(ports)} for address, ports in found.items()}


class Addresses:
    """Hands out addresses in order from a place chosen by chance, so that an address is not soon used again."""

    def __init__(self, network: str) -> None:
        try:
            self.network = ipaddress.IPv4Network(network)
        except ValueError as error:
            raise Refused(f"network {network!r}: {error}") from None
        if not self.network.subnet_of(ipaddress.IPv4Network("127.0.0.0/8")) or self.network.prefixlen > 24:
            raise Refused(f"network {network!r}: must be a /24 or larger within 127.0.0.0/8")
        self._next = random.randrange(self.network.num_addresses)  # noqa: S311  chance against collisions, not for secrecy

    def take(self, used: Collection[str], port: int) -> str:
        """An address that is none of the used ones and on which nobody listens. `NoCapacity` if there is none."""
        refused, taken = 0, listeners()
        for _ in range(self.network.num_addresses):
            address = self.network[self._next]
            self._next = (self._next + 1) % self.network.num_addresses
            if address.packed[3] in (0, 255) or str(address) in used:
                continue
            if str(address) not in taken and bindable(str(address), port):
                return str(address)
            refused += 1
            if refused >= 64:
                raise NoCapacity(f"port {port} is taken on 64 addresses of {self.network}: who listens on all of them?")
        raise NoCapacity(f"no address of {self.network} is left")
