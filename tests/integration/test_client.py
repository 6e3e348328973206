"""The client of the API, and the command line that uses it: the same answers as beside Redis, across any cut."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from orchestrator import operations, schema
from orchestrator.api.client import Client
from orchestrator.api.problems import PREFIX
from orchestrator.cli import PANELS, main, remote
from orchestrator.domain.delivery import Delivery
from orchestrator.domain.upgrade import Held
from orchestrator.errors import BadInput, ChangeoverError, IllegalTransition, NotFound, Outdated, Unreachable
from orchestrator.store import Entry
from tests.support.api import Served
from tests.unit.test_operations import FLEET, at_step, put, row

SAID = {"detail": "d", "traffic": "t", "next": "n"}


class Wire(httpx2.BaseTransport):
    """The real one, on which an answer may be lost, or stand in for another."""

    def __init__(self) -> None:
        self.real = httpx2.HTTPTransport(verify=False)
        self.meet: list[Callable[[httpx2.Request, Callable[[], httpx2.Response]], httpx2.Response]] = []
        self.asked: list[httpx2.Request] = []

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request)
        if self.meet:
            return self.meet.pop(0)(request, lambda: self.real.handle_request(request))
        return self.real.handle_request(request)

    def close(self) -> None:
        self.real.close()


def lost(_request: httpx2.Request, answer: Callable[[], httpx2.Response]) -> httpx2.Response:
    """It was done, and nobody hears of it."""
    answer().read()
    raise httpx2.ReadError("Connection reset by peer")


def away(_request: httpx2.Request, _answer: Callable[[], httpx2.Response]) -> httpx2.Response:
    raise httpx2.ConnectError("Connection refused")


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def client(api: Served, wire: Wire) -> Iterator[Client]:
    with Client(api.url, api.token(), transport=wire, sleep=lambda _seconds: None) as found:
        yield found


def test_a_rollout_whose_answers_are_lost_is_made_once(client: Client, api: Served, wire: Wire) -> None:
    wire.meet = [lost, lost]
    begun = client.start(fleet_file=FLEET)
    assert [each.id for each in api.store.rollouts()] == [begun["rollout"]["id"]]
    assert len({request.headers["Idempotency-Key"] for request in wire.asked}) == 1
    again = client.plan(FLEET)
    assert client.would_start(fleet_file=FLEET.replace("web-", "other-"))["hash"] and again["changes"] == 3


def test_it_reads_what_the_command_line_shows(client: Client, api: Served) -> None:
    id = api.applied()
    assert client.rollout(id)["rollout"] == schema.rollout(operations.find(api.store, id))
    assert [r["id"] for r in client.rollouts()["rollouts"]] == [id]
    assert [u["server"] for u in client.servers(id)] == ["web-1", "web-2", "web-3"]
    assert client.server(id, "web-2")["server"] == schema.upgrade(row(api.store, id, "web-2").upgrade)
    assert [event["id"] for event in client.events(id)] == [e.id for e in operations.events(api.store, id)]
    assert client.report(id)["report"]["rollout"] == id
    assert "changeover_rollouts" in client.metrics()


def test_more_than_a_page_is_read_whole(client: Client, api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.api.client.LIMIT", 2)
    id = api.applied()
    for n in range(5):
        api.store.note(id, Entry(event=f"e{n}", actor="t"))
    assert [event["event"] for event in client.events(id)][-5:] == [f"e{n}" for n in range(5)]
    assert len(client.servers(id)) == 3


def test_events_are_followed_across_a_cut_each_once(client: Client, api: Served, wire: Wire) -> None:
    id = api.applied()
    for n in range(3):
        api.store.note(id, Entry(event=f"e{n}", actor="t"))

    class Cut(httpx2.SyncByteStream):
        """Broken off in the middle of an event."""

        def __init__(self, whole: Any) -> None:
            self.whole = whole

        def __iter__(self) -> Iterator[bytes]:
            seen = b""
            for part in self.whole:
                seen += part
                if b'"e1"' in seen:
                    yield part[: part.index(b'"e1"')]
                    raise httpx2.ReadError("Connection reset by peer")
                yield part

        def close(self) -> None:
            self.whole.close()

    def cut(_request: httpx2.Request, answer: Callable[[], httpx2.Response]) -> httpx2.Response:
        whole = answer()
        return httpx2.Response(whole.status_code, headers=whole.headers, stream=Cut(whole.stream))

    wire.meet = [cut, away]
    seen = []
    for event in client.follow(id):
        if event is not None:
            seen.append(event["event"])
        if "e2" in seen:
            break
    assert seen == [e.event for e in operations.events(api.store, id)]
    assert len(wire.asked) == 3


def test_what_is_refused_is_the_error_that_the_command_line_tells(client: Client, api: Served) -> None:
    id = api.applied()
    tag = api.http.get(f"/v1/rollouts/{id}").headers["etag"]
    assert client.pause(id, why="lunch", seen=tag)["rollout"]["why"] == "lunch"
    with pytest.raises(Outdated, match=r"was changed since you looked.*Next: changeover show"):
        client.resume(id, seen=tag)
    with pytest.raises(IllegalTransition, match=r"nothing to approve Traffic: unchanged"):
        client.approve(id)
    for name in ("r0", "../..", "..", ""):
        with pytest.raises((NotFound, BadInput)):
            client.rollout(name)
    with pytest.raises(BadInput, match="write a size with its unit"):
        client.start(fleet_file=FLEET.replace("256MiB", "256"))
    with (
        Client(api.url, api.token("read"), transport=Wire()) as reader,
        pytest.raises(BadInput, match="this token"),
    ):
        reader.abort(id)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (httpx2.Response(200, text="<html>"), Unreachable),
        (httpx2.Response(200, json=["x"]), Unreachable),
        (httpx2.Response(502, text="Bad Gateway"), Unreachable),
        (httpx2.Response(302, headers={"Location": "https://elsewhere.test/"}), Unreachable),
        (httpx2.Response(418, json={"type": "about:blank"}), Unreachable),
        (httpx2.Response(500, json={"type": PREFIX + "internal", **SAID}), ChangeoverError),
    ],
)
def test_what_is_no_answer_of_the_api_is_said_to_be_none(answer: httpx2.Response, error: type[Exception]) -> None:
    wire = Wire()
    wire.meet = [lambda _request, _answer: answer] * 100
    paused: list[float] = []
    with (
        Client("http://127.0.0.1:1", "t", transport=wire, sleep=paused.append, patience=5) as client,
        pytest.raises(error),
    ):
        client.rollout("r1")
    assert sum(paused) <= 5 and len(wire.asked) == len(paused) + 1
    assert not any("elsewhere" in str(request.url) for request in wire.asked), "a token goes nowhere else"


@pytest.mark.parametrize("url", ["", "ftp://x", "redis://x", "x", "http://x\ny", "http://x:port"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(BadInput, match="no http"):
        Client(url, "t")


@pytest.mark.parametrize(
    "url", ["http://api:8088", "http://10.0.0.1", "http://127.0.0.1@ops.test", "http://localhost.x"]
)
def test_a_token_goes_to_another_host_over_tls_alone_unless_somebody_says_otherwise(url: str, wire: Wire) -> None:
    with pytest.raises(BadInput, match="the token would go to another host") as refused:
        Client(url, "t", transport=wire)
    assert "https://" in refused.value.next and "CHANGEOVER_INSECURE=true" in refused.value.next
    assert not wire.asked
    Client(url, "t", transport=wire, insecure=True).close()


@pytest.mark.parametrize("url", ["https://ops.test", "http://localhost:8088", "http://127.3.2.1", "http://[::1]:8088/"])
def test_over_tls_or_on_this_host_nobody_reads_a_token(url: str, wire: Wire) -> None:
    Client(url, "t", transport=wire).close()


# -- the command line that uses it -------------------------------------------------------------------------------------


@pytest.fixture
def run(
    api: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.setenv("CHANGEOVER_URL", api.url)
    monkeypatch.setenv("CHANGEOVER_TOKEN", api.token())
    monkeypatch.setattr("orchestrator.api.client.httpx2.HTTPTransport", httpx2.HTTPTransport)

    def ran(*words: str) -> tuple[int, str, str]:
        code = main(words)
        out, err = capsys.readouterr()
        return code, out, err

    return ran


def test_each_command_that_asks_the_api_takes_what_the_other_takes() -> None:
    local = {command.__name__: command for commands in PANELS.values() for command in commands}
    asked = {n for n, f in inspect.getmembers(remote, inspect.isfunction) if f.__module__ == remote.__name__}
    asked = {name for name in asked if not name.startswith("_")}
    assert asked <= set(local)
    for name in asked:
        assert list(inspect.signature(getattr(remote, name)).parameters) == list(
            inspect.signature(local[name]).parameters
        ), name
    assert set(local) - asked == {
        *("doctor", "rebuild", "settle", "gc"),  # refused where Redis is not
        *("worker", "coordinator", "flower", "version"),  # which run here
    }


def test_a_rollout_from_its_plan_to_its_report(
    run: Callable[..., tuple[int, str, str]], api: Served, tmp_path: Any
) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(FLEET)
    code, out, err = run("plan", str(file))
    assert code == 0 and "3 servers to replace in 2 waves" in out and "wave 2: web-2, web-3" in out
    plan = err.split("--plan ")[1].strip()
    code, out, err = run("apply", str(file), "--plan", plan, "--yes", "--output", "json")
    assert code == 0, err
    id = json.loads(out)["rollout"]["id"]
    code, out, err = run("apply", str(file), "--yes")
    assert code == 1 and f"belongs to rollout {id}" in err
    code, out, err = run("show", id, "--servers")
    assert code == 0 and "running, wave 1 of 2: 3 pending" in out and "web-3" in out
    at_step(api.store, id, "web-1", "swap")
    put(api.store, id, "web-1", row(api.store, id, "web-1").upgrade.after(Held(why="no answer")))
    assert "web-1 needs you: no answer. Traffic: " in run("show", id)[1]
    code, out, _ = run("watch", id)
    assert code == 3 and "web-1 needs you: no answer" in out
    for verb, told in (("pause", "is paused"), ("resume", "is running"), ("promote", "Nothing was to be changed")):
        code, out, err = run(verb, id)
        assert code == 0 and told in out and "Next: changeover" in err, (verb, out, err)
    assert run("retry", id, "--server", "web-1")[0] == 0
    code, out, err = run("explain", "web-1")
    assert code == 0 and f"web-1 of rollout {id}: " in out and "released: retried by ci" in out
    assert run("rollback", id, "--server", "web-1", "--why", "x")[0] == 0
    assert run("abort", id)[0] == 0
    code, out, _ = run("events", id)
    assert code == 0 and len(out.splitlines()) == len(operations.events(api.store, id))
    assert run("freeze", "--reason", "storm")[1].startswith("It is frozen: storm")
    assert "FROZEN" in run("rollouts")[1] and run("unfreeze")[0] == 0
    code, out, _ = run("report", id, "--out", str(tmp_path / "r"))
    assert code == 0 and len(out.splitlines()) == 2
    code, out, _ = run("rollouts", "--output", "json")
    assert json.loads(out)["rollouts"][0]["id"] == id
    code, out, _ = run("metrics")
    assert code == 0 and "changeover_rollouts" in out


def test_what_the_api_does_not_serve_says_where_it_is_done(run: Callable[..., tuple[int, str, str]]) -> None:
    for words in (("gc",), ("settle", "r1", "web-1", "--serving", "old", "--because", "x"), ("token", "list")):
        code, _, err = run(*words)
        assert code == 64 and "this command does not ask the API: it is done where Redis is" in err, err


def test_without_a_token_or_with_a_wrong_one_it_says_so(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHANGEOVER_TOKEN", "co_wrong")
    code, _, err = run("rollouts")
    assert code == 64 and "with a token that holds" in err and "token create" in err
    monkeypatch.delenv("CHANGEOVER_TOKEN")
    code, _, err = run("rollouts")
    assert code == 64 and "CHANGEOVER_TOKEN: is not set" in err


def test_what_came_by_webhooks_is_listed_and_carried_out_again(
    run: Callable[..., tuple[int, str, str]], api: Served
) -> None:
    for n in range(3):
        came = Delivery(id=f"d{n}", hook="releases", key="m", event="e", received_at=n, asked_at=n, rollout="")
        api.store.put_delivery(came.ended("failed", "no worker"), {}, once=f"m{n}", keep=3600)
    code, out, err = run("hooks", "list", "--most", "2")
    assert code == 0 and out.count("\n") == 2 and "d2  releases  e  nothing: failed: no worker" in out, err
    code, out, err = run("hooks", "list", "--output", "json")
    assert code == 0 and [each["id"] for each in json.loads(out)["deliveries"]] == ["d2", "d1", "d0"]
    code, out, err = run("hooks", "redeliver", "d1")
    assert code == 0 and out == "d1 will be carried out by an API that has its hook.\n", err
    code, out, err = run("hooks", "redeliver", "d1", "--output", "json")
    assert code == 0 and json.loads(out)["delivery"]["state"] == "waiting" and not json.loads(out)["changed"]
    assert run("hooks", "redeliver", "d9")[0] == 64
    with Client(api.url, api.token(), transport=Wire()) as client:
        assert client.delivery("d1")["state"] == "waiting"
        assert [each["id"] for each in client.deliveries(state="failed")] == ["d2", "d0"]
