"""What may be asked, and of whom. Everything here is decided before the first byte leaves, and a no is `Refused`."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from providers.errors import Refused
from providers.probe import Expect, Request

METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")
LONGEST_TIMEOUT = 30.0  # seconds: one step makes no new call after 30 s, so no single call may be longer

_IPv4 = ipaddress.IPv4Address
_IPv6 = ipaddress.IPv6Address

# Where clouds keep metadata and credentials: 169.254.169.254, ECS and EKS beside it, and EC2's over IPv6. No server
# that serves users has such an address, so the whole ranges are refused.
_METADATA_4 = ipaddress.IPv4Network("169.254.0.0/16")
_METADATA_6 = ipaddress.IPv6Network("fd00:ec2::/32")

# IPv6 ranges whose last 32 bits are an IPv4 address: compatible, translated (RFC 2765), NAT64 (RFC 6052, 8215).
_EMBEDDING = tuple(ipaddress.IPv6Network(net) for net in ("::/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48"))
_ISATAP = (0x00005EFE, 0x02005EFE)  # RFC 5214: the third group of 32 bits, before the IPv4 address

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, 5.6.2
_HOST = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.(?!-)[A-Za-z0-9_-]{1,63})*")
_URL = re.compile(r"[!-~]+")  # printable ASCII without the space
_VALUE = re.compile(r"[\t -~\x80-\xff]*")

# These frame the message or choose the site; a request that could set them could say one thing and mean another.
_OURS = re.compile(
    r"host|content-length|transfer-encoding|connection|keep-alive|te|trailer|upgrade|expect|proxy-.*", re.IGNORECASE
)


@dataclass(frozen=True, kw_only=True)
class Site:
    """A request's url in parts. `port` is the one in the url (or its default), not the probed one."""

    scheme: str
    host: str
    port: int
    authority: str
    target: str


def ports(settings: Mapping[str, Any]) -> frozenset[int] | None:
    """The allow-list `ports` of the settings; None when there is none, and then every port may be asked."""
    listed = settings.get("ports")
    if listed is None:
        return None
    if not isinstance(listed, list | tuple | set | frozenset):
        raise Refused(f"ports: a list of port numbers is wanted, not {listed!r}")
    for port in listed:
        _port(port, "ports")
    return frozenset(listed)


def endpoint(address: str, port: int, allowed: frozenset[int] | None) -> tuple[str, int]:
    """The address in its plain form, and the port. Names are refused: whoever resolves a name decides who is asked."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        raise Refused(f"address {address!r} is not an IP address; a probe never resolves names") from None
    for candidate in (ip, *embedded(ip)):
        if candidate in (_METADATA_4 if isinstance(candidate, _IPv4) else _METADATA_6):
            raise Refused(f"address {address} belongs to the cloud's metadata service and is never asked")
        if candidate.is_multicast or (candidate == ip and candidate.is_unspecified):
            raise Refused(f"address {address} is not the address of one server")
    _port(port, "port")
    if allowed is not None and port not in allowed:
        raise Refused(f"port {port} is not among the allowed ports {', '.join(map(str, sorted(allowed)))}")
    return str(ip), port


def embedded(ip: _IPv4 | _IPv6) -> list[_IPv4]:
    if isinstance(ip, _IPv4):
        return []
    bits, last = int(ip), _IPv4(int(ip) & 0xFFFFFFFF)
    found = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
    if any(ip in net for net in _EMBEDDING) or (bits >> 32) & 0xFFFFFFFF in _ISATAP:
        found.append(last)
    return [v4 for v4 in found if v4 is not None]


def _port(port: object, place: str) -> None:
    if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= 65535:
        raise Refused(f"{place}: {port!r} is not a port number (1 to 65535)")


def site(request: Request) -> Site:
    """The request checked whole, and its url in parts."""
    if request.method not in METHODS:
        raise Refused(f"method {request.method!r} is not one of {', '.join(METHODS)}")
    if not 0 < request.timeout <= LONGEST_TIMEOUT:
        raise Refused(f"timeout {request.timeout!r} is not between 0 and {LONGEST_TIMEOUT:g} seconds")
    if len(request.body) > 1 << 20:
        raise Refused(f"body: {len(request.body)} characters are too many for a probe; at most 1 MiB")
    for name, value in request.headers.items():
        _header(name, value)
    return _site(request.url)


def _header(name: str, value: str) -> None:
    if not _TOKEN.fullmatch(name):
        raise Refused(f"header name {name!r} has characters that a header name must not have")
    if _OURS.fullmatch(name):
        raise Refused(f"header {name!r} may not be set: it follows from the url, the body or the connection")
    if not _VALUE.fullmatch(value):
        raise Refused(f"header {name!r}: its value has control characters or line breaks, or is not Latin-1")


def _site(url: str) -> Site:
    if not _URL.fullmatch(url) or "\\" in url or len(url) > 8192:
        raise Refused(f"url {url[:200]!r}: only printable ASCII without spaces or \\, at most 8192 characters")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise Refused(f"url {url!r}: {error}") from None
    if parts.scheme not in ("http", "https"):
        raise Refused(f"url {url!r}: only http and https are asked")
    if "@" in parts.netloc:
        raise Refused("url: a user name or password in a url is refused; send a header instead")
    if not _is_ip(host) and (not _HOST.fullmatch(host) or len(host) > 253):
        raise Refused(f"url {url!r}: {host!r} is not a host name")
    default = 443 if parts.scheme == "https" else 80
    if port is not None:
        _port(port, f"url {url!r}")
    shown = f"[{host}]" if ":" in host else host
    return Site(
        scheme=parts.scheme,
        host=host,
        port=port or default,
        authority=shown if port in (None, default) else f"{shown}:{port}",
        target=(parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
    )


def _is_ip(host: str) -> bool:
    try:
        return bool(ipaddress.ip_address(host)) and "%" not in host
    except ValueError:
        return False


def pattern(text: str, place: str) -> re.Pattern[str]:
    """The regular expression, compiled; `Refused` names its place and where in it the mistake is."""
    if len(text) > 1000:
        raise Refused(f"{place}: a regular expression of {len(text)} characters is refused; at most 1000")
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise Refused(f"{place}: {text!r} is not a regular expression: {error}") from None


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """An expectation whose expressions are known to be good."""

    expect: Expect
    headers: tuple[tuple[str, re.Pattern[str]], ...]
    body: re.Pattern[str] | None


def wanted(expect: Expect) -> Wanted:
    if not expect.status:
        raise Refused("expect.status is empty: no answer could pass")
    if expect.latency is not None and not expect.latency > 0:
        raise Refused(f"expect.latency {expect.latency!r} is not above 0 seconds")
    return Wanted(
        expect=expect,
        headers=tuple((name, pattern(text, f"expect.headers[{name!r}]")) for name, text in expect.headers.items()),
        body=pattern(expect.body_matches, "expect.body_matches") if expect.body_matches else None,
    )


def comparable(request: Request, masks: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    """The masks, compiled; `Refused` for a method that could change something on a server that users are on."""
    if request.method not in ("GET", "HEAD"):
        raise Refused(f"method {request.method!r}: only GET and HEAD are sent to compare, since the old one is in use")
    return tuple(pattern(text, f"masks[{index}]") for index, text in enumerate(masks))
