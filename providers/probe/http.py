"""Asks over HTTP and HTTPS as a user would, but at one address: the site's Host, SNI and certificate, its own socket.

The url keeps the site's name and only the TCP connection is mapped, as a line in a hosts file would do. Every
request has its own pool and TLS context, so that no session of one site or server vouches for another.
"""

from __future__ import annotations

import ssl
import time
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import httpcore2

from providers.errors import Refused
from providers.probe import Comparison, Expect, Outcome, Request, rules
from providers.probe.answer import LIMIT, Answer, judge, where
from providers.probe.compare import compare

CONNECT = 3.0  # seconds for TCP and TLS together


class HttpProbe:
    """`settings` may have `ports`, a list of the ports that may be asked. The environment's proxies are ignored."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._ports = rules.ports(settings)

    def check(self, address: str, port: int, request: Request, expect: Expect) -> Outcome:
        """Ask once and judge. `Refused` for a request that is not allowed; all that a server does is an Outcome."""
        wanted = rules.wanted(expect)
        target = rules.endpoint(address, port, self._ports)
        return judge(_ask(target, request), request, wanted, at=where(*target))

    def compare(
        self, old: tuple[str, int], new: tuple[str, int], request: Request, *, masks: tuple[str, ...]
    ) -> Comparison:
        """Ask old, new, old: with the new one in between, what the clock changes shows up between the old one's
        answers too, and is masked. See `providers.probe.compare` for what is compared."""
        patterns = rules.comparable(request, masks)
        before, after = (rules.endpoint(*target, self._ports) for target in (old, new))
        first, other, second = (_ask(target, request) for target in (before, after, before))
        return compare(first, second, other, patterns, names=(where(*before), where(*after)))


class Pin(httpcore2.NetworkBackend):
    """A hosts file for one connection: `host` and `port` of the url lead to `target`, anything else is refused.

    Nothing goes on after `deadline` (monotonic seconds), however slowly the peer drips.
    """

    def __init__(self, *, host: str, port: int, target: tuple[str, int], deadline: float) -> None:
        self._from, self._target, self._deadline = (host, port), target, deadline
        self._net = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002  the deadline replaces it
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        if (host, port) != self._from:
            raise Refused(f"{host}:{port} is not the site that was to be asked")
        connected_by = min(self._deadline, time.monotonic() + CONNECT)
        stream = self._net.connect_tcp(
            *self._target,
            timeout=_left(connected_by, httpcore2.ConnectTimeout),
            local_address=local_address,
            socket_options=socket_options,
        )
        return _Bounded(stream, connected_by=connected_by, deadline=self._deadline)


class _Bounded(httpcore2.NetworkStream):
    """A stream whose every operation ends by the deadline; the timeouts that the pool asks for are not used."""

    def __init__(self, inner: httpcore2.NetworkStream, *, connected_by: float, deadline: float) -> None:
        self._inner, self._connected_by, self._deadline = inner, connected_by, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002  the deadline replaces it
        return self._inner.read(max_bytes, _left(self._deadline, httpcore2.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002  the deadline replaces it
        # In small pieces, since the inner stream starts its time anew with each partial send.
        for start in range(0, len(buffer), 16384):
            self._inner.write(buffer[start : start + 16384], _left(self._deadline, httpcore2.WriteTimeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002  the deadline replaces it
    ) -> httpcore2.NetworkStream:
        left = _left(self._connected_by, httpcore2.ConnectTimeout)
        stream = self._inner.start_tls(ssl_context, server_hostname, left)
        return _Bounded(stream, connected_by=self._connected_by, deadline=self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def _left(deadline: float, late: type[httpcore2.TimeoutException]) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise late("the time is up")
    return left


def _ask(target: tuple[str, int], request: Request) -> Answer:
    """One request on one new connection."""
    site = rules.site(request)
    context = trust(request.ca) if site.scheme == "https" else None
    started = time.monotonic()
    pin = Pin(host=site.host, port=site.port, target=target, deadline=started + request.timeout)
    url = httpcore2.URL(scheme=site.scheme, host=site.host, port=site.port, target=site.target)
    content = request.body.encode() if request.body or request.method in ("POST", "PUT", "PATCH") else None
    headers: tuple[tuple[str, str], ...] = ()
    status, body, cut, fault = 0, b"", False, ""
    try:
        with (
            httpcore2.ConnectionPool(ssl_context=context, network_backend=pin, max_connections=1) as pool,
            pool.stream(request.method, url, headers=_headers(request, site), content=content) as response,
        ):
            status = response.status
            headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in response.headers)
            unpack = _Unpacked(Answer(headers=headers).header("content-encoding").lower().strip())
            for chunk in response.iter_stream():
                unpack.feed(chunk)
                if unpack.full:
                    break
            body, cut = unpack.result()
    except httpcore2.LocalProtocolError as error:
        raise Refused(f"{request.method} {request.url}: this request cannot be sent: {error}") from None
    except (httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError, zlib.error) as error:
        fault = _fault(error, request, site.host, begun=bool(status))
    took = time.monotonic() - started
    answer = Answer(status=status, headers=headers, body=body, cut=cut, latency=took, fault=fault)
    return answer.without(request.secrets)


def trust(ca: str) -> ssl.SSLContext:
    """Verifies the chain and the name, always."""
    if not ca:
        return httpcore2.default_ssl_context()
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise Refused(f"ca {ca!r} is not a readable PEM bundle: {error.strerror or error}") from None


def _headers(request: Request, site: rules.Site) -> list[tuple[str, bytes]]:
    given = {name.lower() for name in request.headers}
    ours = {"Host": site.authority, "User-Agent": "changeover-probe", "Accept": "*/*", "Accept-Encoding": "gzip"}
    every = {name: value for name, value in ours.items() if name.lower() not in given} | dict(request.headers)
    return [*((name, value.strip(" \t").encode("latin-1")) for name, value in every.items()), ("Connection", b"close")]


class _Unpacked:
    """A body as it arrives, decompressed if need be, never more than the limit before or after: a small body can
    unpack to a huge one. An encoding that is not known stays as it came."""

    def __init__(self, encoding: str) -> None:
        self._wire, self._body = 0, bytearray()
        # 16 + 15 bits: a gzip header and its checksum (zlib's manual, inflateInit2).
        self._gzip = zlib.decompressobj(31) if encoding in ("gzip", "x-gzip") else None

    @property
    def full(self) -> bool:
        return self._wire > LIMIT or len(self._body) > LIMIT

    def feed(self, chunk: bytes) -> None:
        room = LIMIT + 1 - len(self._body)
        self._wire += len(chunk)
        self._body += self._gzip.decompress(chunk, room) if self._gzip else chunk[:room]

    def result(self) -> tuple[bytes, bool]:
        if self._gzip and self._wire and not self._gzip.eof and not self.full:
            raise zlib.error("the compressed body ends too early")
        return bytes(self._body[:LIMIT]), self.full


def _fault(error: Exception, request: Request, host: str, *, begun: bool) -> str:
    # The pool cuts the chain of causes (`from None`), but the socket's own error is the first argument.
    cause = error.args[0] if error.args and isinstance(error.args[0], Exception) else error
    match error, cause:
        case httpcore2.ConnectTimeout(), _:
            return f"no connection within {min(CONNECT, request.timeout):g} s"
        case httpcore2.TimeoutException(), _:
            return f"no {'complete ' if begun else ''}answer within {request.timeout:g} s"
        case _, ssl.SSLCertVerificationError():
            return f"its certificate does not hold for {host}: {cause.verify_message}"
        case httpcore2.ConnectError(), ssl.SSLError():
            return f"no TLS connection: {cause.reason or cause}"
        case httpcore2.ConnectError(), OSError():
            return f"no connection: {cause.strerror or cause}"
        case httpcore2.ProtocolError(), _:
            return f"the answer broke off or is not HTTP: {error}"
        case zlib.error(), _:
            return f"the answer's body cannot be unpacked: {error}"
        case _:
            return f"the connection broke: {getattr(cause, 'strerror', None) or cause}"
