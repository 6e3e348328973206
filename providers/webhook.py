"""One POST to an address that somebody configured, and nowhere else.

A URL is only a name, and a name leads wherever its owner says. It is resolved once; every address that it has must be a
public one, or in a network that was named; the connection goes to that very address, with the name in SNI, Host and
certificate. No redirect is followed and no proxy of the environment asked.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpcore2

from providers.errors import Refused, Transient
from providers.probe import rules
from providers.probe.http import Pin, trust

LIMIT = 64 * 1024  # bytes of an answer that are read
TIMEOUT = 10.0  # seconds for all of it but the name's resolution
Resolve = Callable[[str, int], Sequence[str]]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, kw_only=True)
class Answered:
    status: int
    body: bytes


def resolve(host: str, port: int) -> Sequence[str]:
    """Every address of that name. Raises `Transient`."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Transient(
            f"{host} has no address: {getattr(error, 'strerror', None) or error}", ambiguous=False
        ) from None
    return sorted({str(each[4][0]).partition("%")[0] for each in found})


def post(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    networks: Sequence[str] = (),
    ca: str = "",
    timeout: float = TIMEOUT,
    resolver: Resolve = resolve,
) -> Answered:
    """Whatever it answers. Raises `Refused` for an address to which nothing may go, and then nothing went; `Transient`
    when no answer came."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise Refused(f"{url} names no port") from None
    if parts.scheme not in ("http", "https") or not host or parts.username is not None:
        raise Refused(f"{url} is no URL to send to")
    address = _allowed(host, resolver(host, port), [ipaddress.ip_network(each) for each in networks], parts.scheme)
    started = time.monotonic()
    pin = Pin(host=host, port=port, target=(address, port), deadline=started + timeout)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    ours = {
        "Host": parts.netloc,
        "User-Agent": "changeover",
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "Connection": "close",
    }
    given = [(name, value.encode("latin-1")) for name, value in {**ours, **headers}.items()]
    context = trust(ca) if parts.scheme == "https" else None
    where = httpcore2.URL(scheme=parts.scheme, host=host, port=port, target=target)
    found = bytearray()
    try:
        with (
            httpcore2.ConnectionPool(ssl_context=context, network_backend=pin, max_connections=1) as pool,
            pool.stream("POST", where, headers=given, content=body) as response,
        ):
            for chunk in response.iter_stream():
                found += chunk
                if len(found) > LIMIT:
                    break
            return Answered(status=response.status, body=bytes(found[:LIMIT]))
    except httpcore2.LocalProtocolError as error:
        raise Refused(f"{host} cannot be asked so: {error}") from None
    except (httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError) as error:
        why = str(error) or type(error).__name__
        raise Transient(f"{host} at {address} gave no answer: {why}", ambiguous=True) from None


def _allowed(host: str, addresses: Sequence[str], networks: Sequence[Network], scheme: str) -> str:
    """One of them, if something may go to each."""
    if not addresses:
        raise Transient(f"{host} has no address", ambiguous=False)
    for each in addresses:
        ip = ipaddress.ip_address(each)
        rules.endpoint(each, 1, None)  # never to a cloud's metadata, whatever was configured
        named = any(ip.version == network.version and ip in network for network in networks)
        if scheme == "http" and not named:
            raise Refused(f"{host} is at {each}: without TLS only to networks that the file names")
        if not named and not all(_public(one) for one in (ip, *rules.embedded(ip))):
            raise Refused(f"{host} is at {each}, which is no public address; name its network if it is meant")
    return addresses[0]


def _public(ip: Address) -> bool:
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified or ip.is_loopback)
