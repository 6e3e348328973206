"""The real probe against real servers on loopback, good ones and bad ones."""

from __future__ import annotations

import datetime
import gzip
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trustme

from providers.errors import Refused
from providers.probe import Expect, Outcome, Request, compare
from providers.probe.http import HttpProbe

Handler = Callable[[socket.socket], None]


class Server:
    """Accepts on a loopback port; each connection's request is read, remembered and given to the handler."""

    def __init__(self, handler: Handler, context: ssl.SSLContext | None) -> None:
        self.requests: list[str] = []
        self.names: list[str | None] = []
        self._handler, self._context = handler, context
        if context:
            context.sni_callback = lambda _socket, name, _context: self.names.append(name)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.target: tuple[str, int] = self._listener.getsockname()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(10)
        with suppress(OSError):  # the probe may leave whenever it has seen enough
            if self._context:
                connection = self._context.wrap_socket(connection, server_side=True)
            request = b""
            while b"\r\n\r\n" not in request and not request.startswith(b"\x16"):  # 22 begins a TLS handshake
                request += connection.recv(65536) or b"\r\n\r\n"
            self.requests.append(request.decode("latin-1"))
            self._handler(connection)
        connection.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


Serve = Callable[..., Server]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[Server] = []

    def start(handler: Handler | bytes, context: ssl.SSLContext | None = None) -> Server:
        def send(connection: socket.socket, answer: bytes = handler if isinstance(handler, bytes) else b"") -> None:
            connection.sendall(answer)

        servers.append(Server(send if isinstance(handler, bytes) else handler, context))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return str(path)


def tls(authority: trustme.CA, name: str, not_after: datetime.datetime | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name, not_after=not_after).configure_cert(context)
    return context


def page(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    head = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def ask(server: Server, expect: Expect | None = None, url: str = "http://site.example/", **request: object) -> Outcome:
    asked = Request(url=url, **request)  # type: ignore[arg-type]  # the tests below name its fields
    return HttpProbe({}).check(*server.target, asked, expect or Expect())


def test_the_server_sees_the_sites_name_in_host_and_sni(serve: Serve, authority: trustme.CA, ca: str) -> None:
    server = serve(page(b"hello"), tls(authority, "site.example"))
    outcome = ask(server, Expect(body_contains=("hello",)), "https://site.example/a?b=c#d", ca=ca)
    assert outcome.passed, outcome.why
    assert server.names == ["site.example"]
    assert server.requests[0].startswith("GET /a?b=c HTTP/1.1\r\nHost: site.example\r\n")


def test_a_port_in_the_url_is_in_host_and_not_where_it_connects(serve: Serve) -> None:
    server = serve(page(b"hello"))
    assert ask(server, url="http://site.example:1/").passed
    assert "\r\nHost: site.example:1\r\n" in server.requests[0]


def test_each_request_has_its_own_handshake(serve: Serve, authority: trustme.CA, ca: str) -> None:
    server = serve(page(b"hello"), tls(authority, "*.site.example"))
    for name in ("one.site.example", "two.site.example"):
        assert ask(server, url=f"https://{name}/", ca=ca).passed
    assert server.names == ["one.site.example", "two.site.example"]


def test_a_certificate_of_another_name_fails(serve: Serve, authority: trustme.CA, ca: str) -> None:
    server = serve(page(b"hello"), tls(authority, "other.example"))
    outcome = ask(server, url="https://site.example/", ca=ca)
    assert not outcome.passed
    assert "its certificate does not hold for site.example: Hostname mismatch" in outcome.why
    assert server.requests == []


def test_an_expired_certificate_fails(serve: Serve, authority: trustme.CA, ca: str) -> None:
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    server = serve(page(b"hello"), tls(authority, "site.example", not_after=past))
    assert "certificate has expired" in ask(server, url="https://site.example/", ca=ca).why


def test_an_unknown_authority_fails(serve: Serve, authority: trustme.CA, ca: str) -> None:
    server = serve(page(b"hello"), tls(trustme.CA(), "site.example"))
    assert "does not hold for site.example" in ask(server, url="https://site.example/", ca=ca).why
    assert "does not hold for site.example" in ask(server, url="https://site.example/").why


def test_a_bundle_that_cannot_be_used_is_refused(serve: Serve, tmp_path: Path) -> None:
    server = serve(page(b"hello"))
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no certificate")
    for path in (tmp_path / "absent.pem", garbage):
        with pytest.raises(Refused, match="is not a readable PEM bundle"):
            ask(server, url="https://site.example/", ca=str(path))


def test_plain_http_where_tls_is_wanted_is_an_outcome(serve: Serve, ca: str) -> None:
    assert "no TLS connection" in ask(serve(page(b"hello")), url="https://site.example/", ca=ca).why


def test_tls_where_plain_http_is_wanted_is_an_outcome(serve: Serve, authority: trustme.CA) -> None:
    assert not ask(serve(page(b"hello"), tls(authority, "site.example"))).passed


def test_headers_and_body_are_sent_as_given(serve: Serve) -> None:
    server = serve(page(b"", status=b"201 Created"))
    headers = {"X-One": " two ", "accept-encoding": "identity"}
    outcome = ask(server, Expect(status=(201,)), method="POST", headers=headers, body="säure")
    assert outcome.passed, outcome.why
    seen = server.requests[0]
    assert "\r\nX-One: two\r\n" in seen
    assert "\r\naccept-encoding: identity\r\n" in seen
    assert "\r\nContent-Length: 6\r\n" in seen


def test_a_proxy_in_the_environment_is_ignored(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert ask(serve(page(b"hello"))).passed


def test_a_slow_answer_fails_its_latency(serve: Serve) -> None:
    def slow(connection: socket.socket) -> None:
        time.sleep(0.2)
        connection.sendall(page(b"hello"))

    outcome = ask(serve(slow), Expect(latency=0.1))
    assert "wanted at most 0.1 s" in outcome.why
    assert outcome.latency >= 0.2


@pytest.mark.parametrize(
    "head", [b"", b"HTTP/1.1 200 OK\r\nX-Drip: ", b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"]
)
def test_a_server_that_drips_cannot_hold_it(serve: Serve, head: bytes) -> None:
    def drip(connection: socket.socket) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(b"H")
            time.sleep(0.02)

    started = time.monotonic()
    outcome = ask(serve(drip), timeout=0.3)
    assert 0.25 < time.monotonic() - started < 2
    assert "answer within 0.3 s" in outcome.why


def test_a_handshake_that_never_comes_cannot_hold_it(ca: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        asked = Request(url="https://site.example/", ca=ca, timeout=0.3)
        outcome = HttpProbe({}).check("127.0.0.1", silent.getsockname()[1], asked, Expect())
    assert "no connection within 0.3 s" in outcome.why
    assert outcome.latency < 2


def test_endless_interim_answers_cannot_hold_it(serve: Serve) -> None:
    def interim(connection: socket.socket) -> None:
        while True:
            connection.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n")
            time.sleep(0.01)

    assert "no answer within 0.3 s" in ask(serve(interim), timeout=0.3).why


def test_endless_headers_are_an_outcome(serve: Serve) -> None:
    assert "broke off or is not HTTP" in ask(serve(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000)).why


def test_no_more_than_a_mebibyte_is_read(serve: Serve) -> None:
    outcome = ask(serve(page(b"x" * (2 << 20))))
    assert outcome.passed
    assert outcome.evidence["body.bytes"] == "more than 1048576"
    outcome = ask(serve(page(b"x" * (2 << 20) + b"end")), Expect(body_contains=("end",)))
    assert "does not contain 'end' in the first 1048576 bytes" in outcome.why


def test_exactly_a_mebibyte_is_whole(serve: Serve) -> None:
    assert ask(serve(page(b"x" * (1 << 20)))).evidence["body.bytes"] == "1048576"


def test_a_body_that_unpacks_to_more_is_bounded(serve: Serve) -> None:
    bomb = gzip.compress(b"x" * (64 << 20))
    assert ask(serve(page(bomb, b"Content-Encoding: gzip"))).evidence["body.bytes"] == "more than 1048576"


def test_a_compressed_body_is_unpacked(serve: Serve) -> None:
    server = serve(page(gzip.compress(b"hello"), b"Content-Encoding: gzip"))
    assert ask(server, Expect(body_matches="^hello$", headers={"content-encoding": "gzip"})).passed
    assert "Accept-Encoding: gzip" in server.requests[0]


def test_a_broken_compressed_body_is_an_outcome(serve: Serve) -> None:
    for body in (b"not gzip", gzip.compress(b"hello" * 1000)[:-9]):
        assert "cannot be unpacked" in ask(serve(page(body, b"Content-Encoding: gzip"))).why


def test_head_of_a_compressed_page_passes(serve: Serve) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 77\r\nContent-Encoding: gzip\r\n\r\n"
    assert ask(serve(answer), method="HEAD").passed


def test_a_chunked_body_is_joined(serve: Serve) -> None:
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"
    assert ask(serve(answer), Expect(body_matches="^hello$")).passed


def test_a_charset_is_followed_and_an_odd_one_does_no_harm(serve: Serve) -> None:
    expect = Expect(body_contains=("säure",))
    assert ask(serve(page("säure".encode("latin-1"), b"Content-Type: text/plain; charset=ISO-8859-1")), expect).passed
    for odd in (b"punycode", b"hex", b"nonsense", b"iso-8859-99"):
        assert ask(serve(page("säure".encode(), b"Content-Type: text/plain; charset=" + odd)), expect).passed


def test_a_redirect_is_not_followed(serve: Serve) -> None:
    elsewhere = serve(page(b"hello"))
    location = b"Location: http://127.0.0.1:%d/" % elsewhere.target[1]
    server = serve(page(b"", location, status=b"302 Found"))
    assert "status 302 to 'http://127.0.0.1:" in ask(server).why
    assert ask(server, Expect(status=(302,), headers={"location": "^http://127"})).passed
    assert elsewhere.requests == []


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_a_reset_in_the_middle_is_an_outcome(serve: Serve) -> None:
    def half(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        time.sleep(0.05)
        reset(connection)

    outcome = ask(serve(half))
    assert not outcome.passed
    assert outcome.status == 200
    assert "Connection reset by peer" in outcome.why


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00\xff\x16garbage\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nxyz",
        b"HTTP/1.1 99999 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX\xc3\xa4: \x01\r\n\r\n",
    ],
)
def test_nonsense_is_an_outcome(serve: Serve, answer: bytes) -> None:
    outcome = ask(serve(answer), timeout=2)
    assert not outcome.passed
    assert outcome.why.isprintable()


def test_a_server_of_many_interfaces_is_asked_only_at_its_address(serve: Serve) -> None:
    server = serve(page(b"hello"))
    outcome = HttpProbe({}).check("127.0.0.9", server.target[1], Request(url="http://localhost/"), Expect())
    assert f"at 127.0.0.9:{server.target[1]}: no connection: Connection refused" in outcome.why


def test_old_and_new_are_compared_over_tls(serve: Serve, authority: trustme.CA, ca: str) -> None:
    def counting(connection: socket.socket) -> None:
        connection.sendall(page(b'{"at": %d, "v": 1}' % time.monotonic_ns(), b"Content-Type: application/json"))

    old, new = (serve(counting, tls(authority, "site.example")) for _ in range(2))
    asked = Request(url="https://site.example/", ca=ca)
    comparison = HttpProbe({}).compare(old.target, new.target, asked, masks=())
    assert (comparison.same, comparison.masked) == (True, ("$.at (value)",))
    assert (old.names, new.names) == (["site.example"] * 2, ["site.example"])


def test_a_clock_that_ticks_while_asking_is_no_difference(serve: Serve) -> None:
    """The second of the old one's answers comes after the new one's, so that a tick shows in the old one's too."""
    ticks = iter(range(100))

    def clock(connection: socket.socket) -> None:
        connection.sendall(page(b"the time is %d" % (1 if next(ticks) else 0)))

    old, new = serve(clock), serve(clock)
    asked = Request(url="http://site.example/")
    assert HttpProbe({}).compare(old.target, new.target, asked, masks=()).same


def test_binary_bodies_are_compared_by_digest(serve: Serve) -> None:
    def picture(end: bytes) -> Server:
        return serve(page(b"\x89PNG\0\0" + end, b"Content-Type: image/png"))

    asked, old = Request(url="http://site.example/"), picture(b"a")
    assert HttpProbe({}).compare(old.target, picture(b"a").target, asked, masks=()).same
    comparison = HttpProbe({}).compare(old.target, picture(b"b").target, asked, masks=())
    assert "+7 bytes, sha256 " in comparison.differences[-1]


@pytest.mark.parametrize(
    "body", [b"[" * 200_000, b"{" + b'"a":[' * 5000, b"9" * 10_000, b"\n" * 200_000, b"a b" * 300_000]
)
def test_hostile_bodies_are_compared_in_bounded_time(serve: Serve, body: bytes) -> None:
    started = time.monotonic()
    old, new = serve(page(body)), serve(page(body + b"\nx"))
    asked = Request(url="http://site.example/")
    assert not HttpProbe({}).compare(old.target, new.target, asked, masks=("[0-9]{5}",)).same
    assert time.monotonic() - started < 30


def test_masks_that_take_too_long_are_refused(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "MASKING", 0.1)
    old = serve(page(b"a b" * 300_000))
    with pytest.raises(Refused, match=r"masks\[0\]: the masks took more than 0.1 s"):
        HttpProbe({}).compare(old.target, old.target, Request(url="http://site.example/"), masks=("(.*)x(.*)y",))
