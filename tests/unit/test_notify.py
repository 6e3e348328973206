"""Webhooks that go out: whoever wants to know is told everything, in order, and nothing goes where it must not."""

from __future__ import annotations

import ast
import json
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, get_args

import pytest
import trustme

from orchestrator import hook_file, operations
from orchestrator.domain.events import BOOKS, EVENTS, ROLLOUT, SERVER, USUAL
from orchestrator.domain.outbox import AGAIN, GIVE_UP, IN_HAND, Feed
from orchestrator.domain.rollout import Approval
from orchestrator.domain.signatures import standard_key, verified
from orchestrator.domain.upgrade import Event, Looked
from orchestrator.errors import BadInput
from orchestrator.store import Entry
from providers import webhook
from providers.errors import Refused, Transient
from tasks import notify
from tests.support.runner import Runner, running
from tests.unit.test_cli import Place, place
from tests.unit.test_hooks import OLDER, SECRET

__all__ = ["place"]  # a fixture

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "webhooks.md"
LOOPBACK = ("127.0.0.0/8",)


@dataclass
class Receiver:
    """What it has heard, and what it answers."""

    heard: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    says: dict[str, bytes] = field(default_factory=dict)
    url: str = ""

    def events(self) -> list[str]:
        return [json.loads(body)["type"] for _, body in self.heard]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            status = found.answers.pop(0) if found.answers else 200
            if status < 300:
                found.heard.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(status)
            if status == 302:
                self.send_header("Location", found.url + "/elsewhere")
            said = found.says.get(json.loads(body)["type"], b"")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_address[1]}/told"
    try:
        yield found
    finally:
        server.shutdown()
        thread.join(30)
        server.server_close()


def written(folder: Path, url: str, more: str = "") -> Path:
    (folder / "chat.secret").write_text(SECRET)
    (folder / "new.secret").write_text(OLDER)
    path = folder / "notify.yaml"
    path.write_text(
        "version: 1\nreceivers:\n  chat:\n"
        f"    url: {url}\n    secrets: [chat.secret, new.secret]\n    networks: [127.0.0.0/8]\n{more}"
    )
    return path


@pytest.fixture
def site(tmp_path: Path, receiver: Receiver) -> Iterator[Runner]:
    """A rollout of two servers, and coordinators and workers that know of one receiver."""
    with running(["web-1", "web-2"]) as runner:
        _know(runner, written(tmp_path, receiver.url))
        yield runner


def _know(runner: Runner, path: Path) -> None:
    runner.world.receivers = hook_file.fresh_receivers(path)
    runner.coordinator.receivers = partial(hook_file.named_receivers, path)
    runner.coordinator.notify = partial(_tell, runner)


def _tell(runner: Runner, receiver: str, rollout: str) -> None:
    notify.run(runner.world, receiver=receiver, rollout=rollout)


def settled(runner: Runner, *, seconds: float = 0.0) -> Sequence[Feed]:
    runner.clock.now += seconds
    for _ in range(4):
        runner.coordinator.tick()
    return runner.store.feeds()


def told(runner: Runner, names: Any = USUAL) -> list[str]:
    return [entry.event for entry in operations.events(runner.store, runner.rollout) if entry.event in names]


def test_everybody_is_told_what_happens_in_order_and_once(site: Runner, receiver: Receiver) -> None:
    site.finish()
    settled(site)
    assert receiver.events() == told(site)
    assert receiver.events()[0] == "created" and receiver.events()[-1] == "succeeded"
    ids = [headers["webhook-id"] for headers, _ in receiver.heard]
    assert len(set(ids)) == len(ids)
    first = json.loads(receiver.heard[0][1])
    entry = operations.events(site.store, site.rollout)[0]
    assert ids[0] == f"{site.rollout}.{entry.id}"
    assert first["data"]["rollout"] == site.rollout and first["data"]["id"] == entry.id
    assert first["data"]["schema"] == "changeover/v1/event" and first["timestamp"].endswith("Z")


def test_what_is_told_is_signed_by_each_secret(site: Runner, receiver: Receiver) -> None:
    settled(site)
    for headers, body in receiver.heard:
        for secret in (SECRET, OLDER):
            key = standard_key(secret)
            assert verified("standard", headers, body, [key], now=site.store.now()) is not None
        assert verified("standard", headers, body + b" ", [standard_key(SECRET)], now=site.store.now()) is None


def test_a_receiver_that_is_away_misses_nothing_and_hears_it_in_order(site: Runner, receiver: Receiver) -> None:
    receiver.answers = [500, 302, 404, 503]
    site.finish()
    (feed,) = settled(site)
    assert feed.attempts or not receiver.answers
    for _ in range(8):
        settled(site, seconds=60)
    assert receiver.events() == told(site)
    (feed,) = site.store.feeds()
    assert (feed.attempts, feed.failing, feed.why, feed.left) == (0, None, "", 0)
    assert feed.told == len(receiver.heard)


def test_what_fails_for_a_day_is_left_out_and_what_follows_is_told(site: Runner, receiver: Receiver) -> None:
    receiver.answers = [410] * 200
    tries = 0
    while not any(feed.left for feed in settled(site)):
        (feed,) = site.store.feeds()
        assert feed.why == "it answered 410"
        site.clock.now = max(site.clock.now, feed.due)
        tries += 1
    assert 20 < tries < 60
    (feed,) = site.store.feeds()
    assert feed.left == 1 and feed.why.startswith(f"left out after {GIVE_UP / 3600:.0f} h")
    receiver.answers = []
    site.finish()
    settled(site, seconds=10)
    assert receiver.events() == told(site)[1:]


def test_a_worker_that_dies_after_the_sending_sends_the_same_once_more(
    site: Runner, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled(site)
    heard = len(receiver.heard)
    operations.freeze(site.store, actor="anna")
    with monkeypatch.context() as dying:
        dying.setattr(site.store, "change_feed", _dies_after(site.store))
        with pytest.raises(SystemExit):
            settled(site)
    assert receiver.events()[heard:] == ["frozen"]
    settled(site)
    assert receiver.events()[heard:] == ["frozen"], "somebody may still be at it"
    settled(site, seconds=IN_HAND + 1)
    assert receiver.events()[heard:] == ["frozen", "frozen"]
    one, other = (headers["webhook-id"] for headers, _ in receiver.heard[heard:])
    assert one == other


def _dies_after(store: Any) -> Any:
    change = store.change_feed

    def once(was: Feed | None, now: Feed | None) -> Any:
        if was is not None and now is not None and now.told > was.told:
            raise SystemExit
        return change(was, now)

    return once


def test_of_two_workers_at_one_feed_one_goes_on(site: Runner, receiver: Receiver) -> None:
    settled(site)
    operations.freeze(site.store, actor="anna")
    (feed,) = site.store.feeds()
    threads = [threading.Thread(target=_tell, args=(site, "chat", site.rollout)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    (after,) = site.store.feeds()
    assert after.told == feed.told + 1
    assert len({headers["webhook-id"] for headers, _ in receiver.heard}) == after.told


def test_a_receiver_is_told_what_it_wants_and_of_its_fleets(tmp_path: Path, receiver: Receiver) -> None:
    with running(["web-1", "web-2"]) as runner:
        _know(runner, written(tmp_path, receiver.url, "    events: [Finished]\n"))
        runner.finish()
        settled(runner)
        assert set(receiver.events()) == {"Finished"} and receiver.events() == told(runner, {"Finished"})
    with running(["web-1", "web-2"]) as runner:
        receiver.heard.clear()
        _know(runner, written(tmp_path, receiver.url, "    fleets: [another]\n"))
        runner.finish()
        assert (settled(runner), receiver.heard) == ([], [])
    with running(["web-1", "web-2"]) as runner:
        _know(runner, written(tmp_path, receiver.url, "    events: every\n"))
        runner.finish()
        settled(runner)
        assert receiver.events() == told(runner, EVENTS)


def test_a_log_that_has_ended_is_followed_to_its_end_and_no_longer(site: Runner, receiver: Receiver) -> None:
    site.finish()
    receiver.answers = [500] * 3
    site.clock.now += 30 * 86400
    site.until(lambda: site.record().closed)
    for _ in range(9):
        settled(site, seconds=60)
    assert receiver.events() == told(site) and receiver.events()[-1] == "closed"
    assert settled(site) == []


def test_a_worker_that_does_not_know_the_receiver_leaves_it_to_others(site: Runner, receiver: Receiver) -> None:
    known, site.world.receivers = site.world.receivers, dict
    (feed,) = settled(site)
    assert "CHANGEOVER_NOTIFY" in feed.why and receiver.heard == []
    site.world.receivers = known
    settled(site, seconds=61)
    assert receiver.events() == told(site)


def test_a_message_of_what_nobody_follows_is_ignored() -> None:
    with running(["web-1"]) as runner:
        assert "ignored" in notify.run(runner.world, receiver="chat", rollout="r9")


# -- gates -------------------------------------------------------------------------------------------------------------


@contextmanager
def gated(folder: Path, receiver: Receiver, **rollout: Any) -> Iterator[Runner]:
    """A rollout of one wave that waits for the yes of the receiver."""
    with running(["web-1", "web-2"]) as runner:
        was = runner.record()
        asks = replace(was, approvals=(Approval(wave=0, **{"by": ("chat",), **rollout}),))
        assert runner.store.change(was, asks, entry=Entry(event="created", actor="test")) is not None
        _know(runner, written(folder, receiver.url, "    gate: true\n    events: []\n"))
        runner.coordinator.tick()
        assert runner.record().state == "awaiting_approval"
        yield runner


def says(answer: str, why: str = "") -> bytes:
    return json.dumps({"answer": answer, "why": why}).encode()


def test_a_gate_that_says_continue_has_said_yes(tmp_path: Path, receiver: Receiver) -> None:
    receiver.says["approval asked"] = says("continue")
    with gated(tmp_path, receiver) as runner:
        runner.finish()
        assert runner.record().state == "succeeded"
        (yes,) = [e for e in operations.events(runner.store, runner.rollout) if e.event == "approved"]
        assert yes.actor.startswith("webhook chat (")
    assert receiver.events() == ["approval asked"]


def test_a_gate_that_says_wait_is_asked_again_until_it_says_something_else(tmp_path: Path, receiver: Receiver) -> None:
    receiver.says["approval asked"] = says("wait", "errors are up")
    with gated(tmp_path, receiver) as runner:
        for _ in range(3):
            (feed,) = settled(runner, seconds=AGAIN + 1)
            assert feed.why == "it says wait: errors are up"
        assert runner.record().state == "awaiting_approval" and len(receiver.heard) == 3
        receiver.says["approval asked"] = says("continue")
        settled(runner, seconds=AGAIN + 1)
        assert runner.record().state == "running"


@pytest.mark.parametrize(("answer", "state"), [("pause", "paused"), ("abort", "aborted")])
def test_a_gate_that_says_no_stops_it_for_its_reason(
    tmp_path: Path, receiver: Receiver, answer: str, state: str
) -> None:
    receiver.says["approval asked"] = says(answer, "errors\nare up")
    with gated(tmp_path, receiver) as runner:
        settled(runner)
        assert (runner.record().state, runner.record().why) == (state, "errors are up")


def test_a_gate_whose_yes_is_not_asked_for_changes_nothing(tmp_path: Path, receiver: Receiver) -> None:
    receiver.says["approval asked"] = says("continue")
    with gated(tmp_path, receiver, by=("anna",)) as runner:
        (feed,) = settled(runner)
        assert runner.record().state == "awaiting_approval" and feed.told == 1


def test_a_gate_that_is_too_late_changes_nothing(tmp_path: Path, receiver: Receiver) -> None:
    receiver.says["approval asked"] = says("abort")
    receiver.answers = [503]
    with gated(tmp_path, receiver) as runner:
        settled(runner)
        operations.approve(runner.store, runner.rollout, who="chat", actor="somebody")
        settled(runner, seconds=5)
        assert len(receiver.heard) == 1 and runner.record().state == "running"


@pytest.mark.parametrize("said", [b"", b"yes", b"[]", b'{"answer": "go"}', b'{"answer": ["continue"]}', b"[" * 9999])
def test_an_answer_that_is_none_is_asked_for_again(tmp_path: Path, receiver: Receiver, said: bytes) -> None:
    receiver.says["approval asked"] = said
    with gated(tmp_path, receiver) as runner:
        (feed,) = settled(runner)
        assert feed.attempts == 1 and "it is a gate" in feed.why
        assert runner.record().state == "awaiting_approval"


def test_a_gate_decides_after_a_wave_too_while_it_bakes(tmp_path: Path, receiver: Receiver) -> None:
    receiver.says["baking"] = says("wait")
    with running(["web-1", "web-2"]) as runner:
        _know(runner, written(tmp_path, receiver.url, "    gate: true\n    events: []\n"))
        was = runner.record()
        assert (
            runner.store.change(was, replace(was, bake=600.0), entry=Entry(event="created", actor="test")) is not None
        )
        runner.until(lambda: runner.record().state == "baking")
        settled(runner)
        assert runner.record().state == "baking" and receiver.events() == ["baking"]
        receiver.says["baking"] = says("pause", "errors are up")
        settled(runner, seconds=AGAIN + 1)
        assert (runner.record().state, runner.record().why) == ("paused", "errors are up")


# -- where something may go --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.0.1",
        "100.64.0.1",
        "169.254.169.254",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "198.18.0.1",
        "::1",
        "::",
        "fe80::1",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::10.0.0.1",
        "2002:7f00:1::",
        "2002:a00:1::",
        "::127.0.0.1",
        "2001:db8::1",
    ],
)
def test_nothing_goes_to_an_address_that_is_not_public(address: str) -> None:
    for resolver in (lambda _h, _p: [address], lambda _h, _p: ["93.184.215.14", address]):
        with pytest.raises(Refused):
            webhook.post("https://example.com/", b"{}", {}, resolver=resolver)


@pytest.mark.parametrize(
    "url",
    [
        "https://localhost/",
        "https://127.1/",
        "https://0x7f000001/",
        "https://2130706433/",
        "https://[::1]/",
        "https://[::ffff:169.254.169.254]/",
        "http://93.184.215.14/",
        "https://user@93.184.215.14/",
        "https://93.184.215.14:99999/",
        "file:///etc/passwd",
        "gopher://93.184.215.14/",
        "https:///",
    ],
)
def test_no_spelling_of_an_address_leads_where_nothing_may_go(url: str) -> None:
    with pytest.raises((Refused, Transient)):
        webhook.post(url, b"{}", {}, timeout=0.01)


def test_a_clouds_metadata_is_never_asked_whatever_was_configured() -> None:
    for address in ("169.254.169.254", "fd00:ec2::254"):
        with pytest.raises(Refused, match="metadata"):
            webhook.post("https://x/", b"", {}, networks=["0.0.0.0/0", "::/0"], resolver=lambda _h, _p, a=address: [a])


def test_it_goes_to_the_address_that_was_looked_at_and_to_no_other(receiver: Receiver) -> None:
    asked: list[str] = []

    def resolver(host: str, _port: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["10.0.0.1"]

    url = receiver.url.replace("127.0.0.1", "rebinding.example")
    answer = webhook.post(url, b'{"type": "x"}', {}, networks=LOOPBACK, resolver=resolver)
    assert (answer.status, asked) == (200, ["rebinding.example"])
    assert receiver.heard[0][0]["host"].startswith("rebinding.example:")


def test_no_redirect_is_followed_and_no_proxy_asked(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    receiver.answers = [302]
    assert webhook.post(receiver.url, b'{"type": "x"}', {}, networks=LOOPBACK).status == 302
    assert receiver.heard == []


def test_a_name_without_an_address_and_a_receiver_that_is_away_may_be_asked_again() -> None:
    with pytest.raises(Transient):
        webhook.post("https://nothing.invalid/", b"", {})
    with pytest.raises(Transient):
        webhook.post("https://x/", b"", {}, resolver=lambda _h, _p: [])
    with pytest.raises(Transient):
        webhook.post("http://127.0.0.1:1/", b"", {}, networks=LOOPBACK)


def test_a_certificate_must_hold_for_the_name(tmp_path: Path) -> None:
    import ssl

    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("told.example").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None: ...

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None: ...

    server = Server(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        how: Any = {"networks": LOOPBACK, "resolver": lambda _h, _p: ["127.0.0.1"]}
        port, ca = server.server_address[1], str(tmp_path / "ca.pem")
        assert webhook.post(f"https://told.example:{port}/", b"", {}, ca=ca, **how).status == 200
        for url, trusted in ((f"https://other.example:{port}/", ca), (f"https://told.example:{port}/", "")):
            with pytest.raises(Transient, match="certificate"):
                webhook.post(url, b"", {}, ca=trusted, **how)
    finally:
        server.shutdown()
        thread.join(30)
        server.server_close()


# -- the file ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "more", "told"),
    [
        ("ftp://x/", "", "notify.yaml:4: receivers.chat.url: write a URL"),
        ("https://anna:secret@x/", "", "notify.yaml:4: receivers.chat.url: write a URL"),
        (
            "http://10.1.2.3/",
            "    gate: true\n",
            "notify.yaml:7: receivers.chat.gate: its answers are followed, so its url must be https",
        ),
        ("http://localhost/", "    gate: true\n", "receivers.chat.gate: its answers are followed"),
        ("https://x/", "    events: [exploded]\n", "there is no event 'exploded'"),
        ("https://x/", "    event: [Held]\n", "unknown key 'event'; did you mean 'events'?"),
        ("https://x/", "    fleets: [UP]\n", "receivers.chat.fleets[0]"),
        (
            "https://x/",
            "  mail: {url: https://x/, secrets: [gone]}\n",
            "receivers.mail.secrets[0]: gone cannot be read",
        ),
    ],
)
def test_each_fault_of_a_notify_file_is_told_with_its_place(tmp_path: Path, url: str, more: str, told: str) -> None:
    with pytest.raises(BadInput) as refused:
        hook_file.receivers(written(tmp_path, url, more))
    assert told in str(refused.value), str(refused.value)


def test_a_gate_may_be_asked_over_http_on_this_machine_alone(tmp_path: Path) -> None:
    for url in ("http://127.0.0.1:8080/gate", "http://[::1]/gate", "https://gate.example.com/"):
        assert hook_file.receivers(written(tmp_path, url, "    gate: true\n"))["chat"].receiver.gate
    assert hook_file.receivers(written(tmp_path, "http://10.1.2.3/"))["chat"].receiver.url == "http://10.1.2.3/"


def test_what_is_wrong_with_a_receiver_holds_up_no_server(site: Runner) -> None:
    def broken(_receiver: str, _rollout: str) -> None:
        raise RuntimeError("a fault of ours")

    site.coordinator.notify = broken
    site.finish()
    assert {state for state, *_ in site.upgrades().values()} == {"upgraded"}


def test_a_coordinator_needs_no_secret(tmp_path: Path) -> None:
    path = written(tmp_path, "https://x/")
    (tmp_path / "chat.secret").unlink()
    assert list(hook_file.named_receivers(path)) == ["chat"]


# -- one vocabulary ----------------------------------------------------------------------------------------------------


def _written_events() -> set[str]:
    """Every name that the code gives to an entry of the audit log, and cannot hide from whoever reads it."""
    found = {type.__name__ for type in get_args(Event)} - {Looked.__name__}  # which is no change, and in no log
    for path in (each for folder in ("orchestrator", "tasks") for each in (ROOT / folder).rglob("*.py")):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            name = getattr(call.func, "id", getattr(call.func, "attr", ""))
            given = [keyword.value for keyword in call.keywords if keyword.arg == "event"]
            if name in ("Entry", "Become", "_write"):
                parts = [part for value in given for part in ast.walk(value)]
            elif name == "_ask" and len(call.args) > 3:
                parts = [call.args[3]]
            else:
                continue
            found |= {part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)}
    return found - {""}


def test_whatever_happens_has_a_name_and_every_name_is_of_something_that_happens() -> None:
    assert sorted(_written_events() ^ set(EVENTS)) == []
    assert len(EVENTS) == len(ROLLOUT) + len(SERVER) + len(BOOKS) and set(EVENTS) >= USUAL


def test_the_page_tells_of_every_event_in_the_same_words() -> None:
    rows = dict(
        re.findall(r"^\| `([^`]+)` \| (.+) \|$", PAGE.read_text().partition("## What happens")[2], re.MULTILINE)
    )
    assert rows == dict(EVENTS)


def test_the_sample_on_the_page_is_what_is_told(site: Runner, receiver: Receiver) -> None:
    sample = json.loads(PAGE.read_text().partition("```json\n")[2].partition("```")[0])
    settled(site)
    for _, body in receiver.heard:
        one = json.loads(body)
        assert list(one) == list(sample) and list(one["data"]) == list(sample["data"])


def test_the_notify_files_on_the_page_are_some(tmp_path: Path) -> None:
    names = []
    for part in PAGE.read_text().split("```yaml\n")[1:]:
        if "receivers:" in part:
            for secret in ("chat.secret", "canary.secret"):
                (tmp_path / secret).write_text(SECRET)
            (tmp_path / "notify.yaml").write_text(part.partition("```")[0])
            names += hook_file.receivers(tmp_path / "notify.yaml")
    assert names == ["chat", "canary"]


# -- at the command line ---------------------------------------------------------------------------------------------


def test_how_far_each_has_been_told_is_said_on_the_command_line(place: Place, tmp_path: Path) -> None:
    code, _, err = place.run("hooks", "outbox")
    assert code == 0 and "Nobody is being told" in err
    fresh = place.store.change_feed(None, Feed(receiver="chat", rollout="r1"))
    assert fresh is not None
    place.store.change_feed(fresh, fresh.failed("5-0", "it answered 500", place.clock.now))
    code, out, _ = place.run("hooks", "outbox")
    assert (code, out.strip()) == (0, "chat  r1  0 told, fails, 1 times in a row: it answered 500")
    code, body = place.json("hooks", "outbox")
    assert (code, body["feeds"][0]["attempts"]) == (0, 1)
    file = str(written(tmp_path, "https://x/"))
    code, out, _ = place.run("hooks", "check", "--outgoing", file)
    assert (code, out.strip()) == (0, "chat   https://x/   usual of all fleets")
    assert place.json("hooks", "check", "--outgoing", file)[1]["receivers"][0]["secrets"] == 2
