"""What every probe promises. A new one joins `WORLDS` and is held to all of it."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

import pytest

from providers.errors import Refused
from providers.probe import Expect, Probe, Request
from providers.probe.answer import Answer
from providers.probe.fake import FakeProbe
from providers.probe.http import HttpProbe
from tests.support.fake_cloud import running_cloud

Target = tuple[str, int]
SITE = Request(url="http://site.example/page")


class World(Protocol):
    def probe(self, **settings: Any) -> Probe: ...

    def server(self, *answers: Answer) -> Target:
        """A server that gives these answers in turn, and the last one ever after."""
        ...

    def nobody(self) -> Target:
        """An address where nothing listens."""
        ...

    def calls(self, target: Target) -> int: ...

    def close(self) -> None: ...


class FakeWorld:
    def __init__(self) -> None:
        self._name = uuid.uuid4().hex
        self._sites = FakeProbe({"sites": self._name}).sites
        self._made = 0

    def probe(self, **settings: Any) -> Probe:
        return FakeProbe({"sites": self._name, **settings})

    def server(self, *answers: Answer) -> Target:
        target = self.nobody()
        self._sites.answers(*target, *answers)
        return target

    def nobody(self) -> Target:
        self._made += 1
        return f"127.0.0.{self._made}", 8080

    def calls(self, target: Target) -> int:
        return self._sites.calls[target]

    def close(self) -> None:
        del FakeProbe.registry[self._name]


class HttpWorld:
    def __init__(self) -> None:
        self._servers: list[ThreadingHTTPServer] = []
        self._calls: Counter[Target] = Counter()

    def probe(self, **settings: Any) -> Probe:
        return HttpProbe(settings)

    def server(self, *answers: Answer) -> Target:
        left, calls = list(answers), self._calls

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                calls[self.server.server_address[:2]] += 1  # type: ignore[index]  # it is (host, port) over IPv4
                answer = left.pop(0) if len(left) > 1 else left[0]
                self.send_response(answer.status)
                for name, value in answer.headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)

            def log_message(self, format: str, *args: Any) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self._servers.append(server)
        return "127.0.0.1", server.server_address[1]

    def nobody(self) -> Target:
        with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
            return "127.0.0.1", server.server_address[1]

    def calls(self, target: Target) -> int:
        return self._calls[target]

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


class FakeWorldOfItsOwn:
    """The fake one in a process of its own: an address answers if a server runs there."""

    def __init__(self) -> None:
        self._ends = ExitStack()
        self._running = self._ends.enter_context(running_cloud())
        self._operator = self._running.operator("contract")

    def probe(self, **settings: Any) -> Probe:
        return FakeProbe({**self._running.settings("contract"), **settings})

    def server(self, *answers: Answer) -> Target:
        target = self._operator.server(f"web-{uuid.uuid4().hex}").address, 8080
        self._operator.answers(*target, *answers)
        return target

    def nobody(self) -> Target:
        return "127.0.0.1", 8080

    def calls(self, target: Target) -> int:
        return self._operator.asked(*target)

    def close(self) -> None:
        self._ends.close()


WORLDS: Mapping[str, Callable[[], World]] = {
    "fake": FakeWorld,
    "fake in a process of its own": FakeWorldOfItsOwn,
    "http": HttpWorld,
}


@pytest.fixture(params=sorted(WORLDS))
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    made = WORLDS[request.param]()
    yield made
    made.close()


def text(body: str, *, status: int = 200, **headers: str) -> Answer:
    every = {"content-type": "text/html; charset=utf-8"} | {k.replace("_", "-"): v for k, v in headers.items()}
    return Answer(status=status, headers=tuple(every.items()), body=body.encode())


def json(body: str) -> Answer:
    return text(body, content_type="application/json")


def test_a_good_answer_passes_and_says_nothing(world: World) -> None:
    target = world.server(text("hello", x_version="4.2.0"))
    expect = Expect(headers={"X-Version": r"^4\."}, body_contains=("ell",), body_matches="^h.*o$", latency=5.0)
    outcome = world.probe().check(*target, SITE, expect)
    assert (outcome.passed, outcome.why, outcome.status) == (True, "", 200)
    assert outcome.evidence["body.start"] == "hello"
    assert outcome.evidence["header.x-version"] == "4.2.0"
    assert outcome.evidence["body.sha256"].startswith("2cf24dba5fb0a30e")
    assert world.calls(target) == 1


SECRET = 'MARKER/"7f3&a9'
ECHOES = (SECRET, r"MARKER/\"7f3&a9", "MARKER/&quot;7f3&amp;a9", "MARKER%2F%227f3%26a9")


@pytest.mark.parametrize("body", [*ECHOES, "x" * 190 + SECRET, f'{{"you sent": "{ECHOES[1]}"}}'])
def test_a_secret_that_a_server_sends_back_is_in_no_outcome(world: World, body: str) -> None:
    request = replace(SITE, headers={"Authorization": f"Bearer {SECRET}"}, secrets=(f"Bearer {SECRET}",))
    old, new = world.server(text("other")), world.server(text(body, server=f"you said {SECRET}", location=SECRET))
    for expect in (
        Expect(),
        Expect(status=(301,), headers={"x-none": "."}, body_contains=("none",), body_matches="^$"),
    ):
        outcome = world.probe().check(*new, request, expect)
        assert "MARKER" not in repr(outcome)
    assert outcome.evidence["header.server"].endswith("you said [REDACTED]")
    compared = world.probe().compare(old, new, request, masks=())
    assert not compared.same
    assert "MARKER" not in repr(compared)


@pytest.mark.parametrize(
    ("expect", "why"),
    [
        (Expect(status=(204, 301)), "status 200, wanted 204 or 301"),
        (Expect(headers={"x-version": "^5"}), "header x-version is '4.2.0', wanted '^5'"),
        (Expect(headers={"x-other": "."}), "no header x-other"),
        (Expect(body_contains=("absent",)), "the body does not contain 'absent'"),
        (Expect(body_matches="^absent$"), "the body does not match '^absent$'"),
        (Expect(latency=1e-9), "wanted at most 1e-09 s"),
    ],
)
def test_what_is_wrong_is_said_on_one_line(world: World, expect: Expect, why: str) -> None:
    slow = Answer(status=200, headers=(("x-version", "4.2.0"),), body=b"hello\n\x1b[31mred", latency=0.5)
    target = world.server(slow)
    outcome = world.probe().check(*target, SITE, expect)
    assert not outcome.passed
    assert outcome.why.startswith(f"GET http://site.example/page at {target[0]}:{target[1]}: ")
    assert why in outcome.why
    assert outcome.why.isprintable()


def test_a_refused_connection_is_an_outcome(world: World) -> None:
    target = world.nobody()
    outcome = world.probe().check(*target, SITE, Expect())
    assert not outcome.passed
    assert f"{target[0]}:{target[1]}: no connection: Connection refused" in outcome.why
    assert outcome.status == 0


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "169.254.170.2",
        "fd00:ec2::254",
        "fd00:ec2::23",
        "::ffff:169.254.169.254",
        "::169.254.169.254",
        "::ffff:0:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::a9fe:a9fe",
        "2002:a9fe:a9fe::1",
        "fe80::5efe:a9fe:a9fe",
        "2001:0:a9fe:a9fe::1",
        "2001:0:1::5601:5601",
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "2852039166",
        "0xa9fea9fe",
        "site.example",
        "",
        "10.0.0.1\r\n",
    ],
)
def test_metadata_services_and_names_are_never_asked(world: World, address: str) -> None:
    with pytest.raises(Refused, match="address"):
        world.probe().check(address, 80, SITE, Expect())
    with pytest.raises(Refused, match="address"):
        world.probe().compare(world.nobody(), (address, 80), SITE, masks=())


def test_only_allowed_ports_are_asked(world: World) -> None:
    address, port = world.server(text("hello"))
    assert world.probe(ports=[port]).check(address, port, SITE, Expect()).passed
    with pytest.raises(Refused, match=f"port {port} is not among the allowed ports 443"):
        world.probe(ports=[443]).check(address, port, SITE, Expect())
    with pytest.raises(Refused, match="port: 0 is not a port number"):
        world.probe().check(address, 0, SITE, Expect())


@pytest.mark.parametrize("ports", ["443", [True], [0], [65536], 443, ["443"]])
def test_a_bad_list_of_ports_is_refused_at_once(world: World, ports: object) -> None:
    with pytest.raises(Refused, match="ports: "):
        world.probe(ports=ports)


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (Request(url="ftp://site.example/"), "only http and https"),
        (Request(url="file:///etc/passwd"), "only http and https"),
        (Request(url="http://user:secret@site.example/"), "user name or password"),
        (Request(url="http://@site.example/"), "user name or password"),
        (Request(url="http://site.example\\@other/"), "only printable ASCII"),
        (Request(url="http://site.example/\r\nX: y"), "only printable ASCII"),
        (Request(url="http://site.example/\N{SNOWMAN}"), "only printable ASCII"),
        (Request(url="http:///path"), "is not a host name"),
        (Request(url="http://a..b/"), "is not a host name"),
        (Request(url="http://site.example:0/"), "is not a port number"),
        (Request(url="http://site.example:99999/"), "out of range"),
        (Request(url="http://[::1/"), "Invalid IPv6"),
        (Request(url=SITE.url, method="GET / HTTP/1.1\r\nX: y"), "method"),
        (Request(url=SITE.url, method="CONNECT"), "method"),
        (Request(url=SITE.url, headers={"X-A": "b\r\nX-C: d"}), "header 'X-A'"),
        (Request(url=SITE.url, headers={"X-A\r\nX-C": "d"}), "header name"),
        (Request(url=SITE.url, headers={"X-A": "\N{SNOWMAN}"}), "header 'X-A'"),
        (Request(url=SITE.url, headers={"hOst": "other"}), "may not be set"),
        (Request(url=SITE.url, headers={"Transfer-Encoding": "chunked"}), "may not be set"),
        (Request(url=SITE.url, timeout=0), "timeout"),
        (Request(url=SITE.url, timeout=float("nan")), "timeout"),
        (Request(url=SITE.url, timeout=3600), "timeout"),
    ],
)
def test_a_request_that_must_not_be_sent_is_refused(world: World, request_: Request, why: str) -> None:
    target = world.server(text("hello"))
    with pytest.raises(Refused, match=why) as caught:
        world.probe().check(*target, request_, Expect())
    assert str(caught.value).isprintable()
    assert "secret" not in str(caught.value)
    assert world.calls(target) == 0


@pytest.mark.parametrize(
    ("expect", "place"),
    [
        (Expect(headers={"x-version": "("}), r"expect\.headers\['x-version'\]: '\(' is not a regular expression"),
        (Expect(body_matches="[z-a]"), r"expect\.body_matches: .* at position 1"),
        (Expect(body_matches="a" * 1001), r"expect\.body_matches: .* at most 1000"),
        (Expect(status=()), r"expect\.status is empty"),
        (Expect(latency=0), r"expect\.latency"),
    ],
)
def test_a_bad_expectation_is_refused_with_its_place(world: World, expect: Expect, place: str) -> None:
    target = world.server(text("hello"))
    with pytest.raises(Refused, match=place):
        world.probe().check(*target, SITE, expect)
    assert world.calls(target) == 0


def test_equal_answers_are_the_same_after_two_looks_at_old_and_one_at_new(world: World) -> None:
    old, new = world.server(text("hello")), world.server(text("hello"))
    comparison = world.probe().compare(old, new, SITE, masks=())
    assert (comparison.same, comparison.differences, comparison.masked) == (True, (), ())
    assert (world.calls(old), world.calls(new)) == (2, 1)


def test_a_difference_is_shown_as_a_unified_diff(world: World) -> None:
    old, new = world.server(text("one\ntwo\nthree\n")), world.server(text("one\n2\nthree\n"))
    comparison = world.probe().compare(old, new, SITE, masks=())
    assert not comparison.same
    assert comparison.differences == (
        f"--- {old[0]}:{old[1]}",
        f"+++ {new[0]}:{new[1]}",
        "@@ -8,1 +8,1 @@",
        "-two",
        "+2",
    )


@pytest.mark.parametrize(
    "answer",
    [
        text("hello", content_type="text/plain"),
        text("hello", location="/elsewhere"),
        text("hello", cache_control="no-store"),
        text("hello", set_cookie="session=1"),
    ],
)
def test_headers_that_users_depend_on_are_compared(world: World, answer: Answer) -> None:
    old, new = world.server(text("hello")), world.server(answer)
    comparison = world.probe().compare(old, new, SITE, masks=())
    assert not comparison.same
    assert answer.headers[-1][1].split("=")[0] in comparison.differences[-1]


def test_values_of_cookies_and_other_headers_are_not_compared(world: World) -> None:
    old = world.server(text("hello", set_cookie="session=1; path=/", x_served_by="a"))
    new = world.server(text("hello", set_cookie="session=2; path=/", x_served_by="b"))
    assert world.probe().compare(old, new, SITE, masks=()).same


def test_another_status_is_a_difference_whatever_is_masked(world: World) -> None:
    old, new = world.server(text("hello")), world.server(text("hello", status=500))
    comparison = world.probe().compare(old, new, SITE, masks=(r"\d+", ".*"))
    assert not comparison.same
    assert comparison.differences[-2:] == ("-status: 200", "+status: 500")


def test_an_old_server_that_cannot_decide_is_nothing_to_compare_with(world: World) -> None:
    old, new = world.server(text("hello"), text("sorry", status=503)), world.server(text("hello"))
    comparison = world.probe().compare(old, new, SITE, masks=())
    assert not comparison.same
    assert "answered 200, then 503" in comparison.differences[0]


def test_a_server_that_does_not_answer_is_a_difference(world: World) -> None:
    up, down = world.server(text("hello")), world.nobody()
    for old, new in ((up, down), (down, up)):
        comparison = world.probe().compare(old, new, SITE, masks=())
        assert not comparison.same
        assert comparison.differences == (f"{down[0]}:{down[1]}: no connection: Connection refused",)


def nonce(value: str, name: str = "Ann") -> Answer:
    return text(f'<html>\n<script nonce="{value}">\n<p>Hello {name}</p>\n</html>')


def test_a_nonce_is_masked_since_old_differs_from_itself(world: World) -> None:
    old = world.server(nonce("aB+/c=="), nonce("Zz9/="))
    comparison = world.probe().compare(old, world.server(nonce("qqq===")), SITE, masks=())
    assert comparison.same
    assert comparison.masked == ('line 2: <script nonce="<volatile>">',)
    old = world.server(nonce("aB+/c=="), nonce("Zz9/="))
    comparison = world.probe().compare(old, world.server(nonce("qqq===", "Bob")), SITE, masks=())
    assert comparison.differences[-2:] == ("-<p>Hello Ann</p>", "+<p>Hello Bob</p>")


def test_lines_that_come_and_go_hide_nothing_else(world: World) -> None:
    def page(*, ads: int, foot: str = "end") -> Answer:
        return text("\n".join(["head", *(f"<ad>{n}</ad>" for n in range(ads)), "body", f"at {ads}", foot]))

    old = world.server(page(ads=1), page(ads=3))
    comparison = world.probe().compare(old, world.server(page(ads=7)), SITE, masks=())
    assert (comparison.same, comparison.masked) == (True, ("0 lines from line 3 on", "line 4: at <volatile>"))
    old = world.server(page(ads=1), page(ads=3))
    comparison = world.probe().compare(old, world.server(page(ads=7, foot="END")), SITE, masks=())
    assert comparison.differences[-2:] == ("-end", "+END")


def test_a_volatile_json_path_is_masked_and_the_rest_is_not(world: World) -> None:
    def status(at: str, version: int = 1, *, keys: str = '"items": [1, 2]') -> Answer:
        return json(f'{{"at": {at}, "version": {version}, {keys}}}')

    def fresh() -> Target:
        return world.server(status("1700000000.1"), status("1700000001"))

    probe = world.probe()
    comparison = probe.compare(fresh(), world.server(status("1700000002", keys='"items": [1,2]')), SITE, masks=())
    assert (comparison.same, comparison.masked) == (True, ("$.at (value)",))
    comparison = probe.compare(fresh(), world.server(status("1700000002", 2)), SITE, masks=())
    assert comparison.differences[-2:] == ("-$.version = 1", "+$.version = 2")
    comparison = probe.compare(fresh(), world.server(status("null")), SITE, masks=())
    assert comparison.differences[-2:] == ("-$.at = <volatile number>", "+$.at = <volatile null>")
    comparison = probe.compare(fresh(), world.server(json('{"version": 1, "items": [1, 2]}')), SITE, masks=())
    assert comparison.differences[-1] == "-$.at = <volatile number>"
    comparison = probe.compare(fresh(), world.server(status("1", keys='"items": [true, 2]')), SITE, masks=())
    assert comparison.differences[-2:] == ("-$.items[0] = 1", "+$.items[0] = true")


def test_json_lists_and_keys_that_vary_are_masked_as_a_whole(world: World) -> None:
    old = world.server(json('{"ids": {"a": 1}, "list": [1]}'), json('{"ids": {"b": 1}, "list": [1, 2]}'))
    new = world.server(json('{"ids": {"c": 1}, "list": []}'))
    comparison = world.probe().compare(old, new, SITE, masks=())
    assert (comparison.same, comparison.masked) == (True, ("$.ids (value)", "$.list (value)"))


def test_a_json_key_that_comes_and_goes_is_masked(world: World) -> None:
    old = world.server(json('{"warning": "late"}'), json("{}"))
    assert world.probe().compare(old, world.server(json("{}")), SITE, masks=()).same
    old = world.server(json('{"warning": "late"}'), json("{}"))
    assert not world.probe().compare(old, world.server(json("[]")), SITE, masks=()).same


def test_a_mask_hides_what_it_finds(world: World) -> None:
    old, new = world.server(text("built on web-001 by ci")), world.server(text("built on web-042 by ci"))
    comparison = world.probe().compare(old, new, SITE, masks=(r"web-\d+", "unused", "z*"))
    assert (comparison.same, comparison.masked) == (True, (r"mask 'web-\\d+'",))
    old, new = world.server(json('{"host": "web-1", "n": 1}')), world.server(json('{"host": "web-2", "n": 1}'))
    assert world.probe().compare(old, new, SITE, masks=(r"^\$\.host = .*",)).same


def test_a_bad_mask_is_refused_with_its_place(world: World) -> None:
    old = world.server(text("hello"))
    with pytest.raises(Refused, match=r"masks\[1\]: '\*' is not a regular expression: nothing to repeat at position 0"):
        world.probe().compare(old, old, SITE, masks=("fine", "*"))
    assert world.calls(old) == 0


@pytest.mark.parametrize("method", ["POST", "DELETE", "OPTIONS", "PUT"])
def test_only_harmless_methods_are_sent_to_compare(world: World, method: str) -> None:
    old = world.server(text("hello"))
    with pytest.raises(Refused, match="only GET and HEAD"):
        world.probe().compare(old, old, Request(url=SITE.url, method=method), masks=())
    assert world.calls(old) == 0


def test_differences_are_few_short_and_printable(world: World) -> None:
    old = world.server(text("\n".join(f"{n} " + "a" * 1000 + "\x1b" for n in range(500))))
    new = world.server(text("\n".join(f"{n} " + "a" * 900 + "b\x1b" for n in range(400))))
    comparison = world.probe().compare(old, new, SITE, masks=())
    assert 0 < len(comparison.differences) <= 50
    assert all(len(line) <= 300 and line.isprintable() for line in comparison.differences)
    assert any(line.startswith("+…") and "b" in line for line in comparison.differences)
