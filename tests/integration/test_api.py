"""The API: over a real socket, what a program may ask, what it is told, and what is refused before anything is made."""

from __future__ import annotations

import asyncio
import gzip
import json
import queue
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

import httpx2
import pytest
import uvicorn
from structlog.testing import capture_logs
from uvicorn.server import ServerState

from orchestrator import operations, tokens
from orchestrator.api import bodies, live, routes, serving
from orchestrator.api.bodies import strict_json
from orchestrator.api.callers import Pace
from orchestrator.api.problems import KINDS, MEDIA, PREFIX, Problem
from orchestrator.api.routes import REFUSALS
from orchestrator.domain.rollout import Become, decide
from orchestrator.domain.upgrade import Held
from orchestrator.errors import Unreachable, UnsafeStore
from orchestrator.operations import Waiter
from orchestrator.store import Entry
from tests.support.api import Served
from tests.unit.test_operations import FLEET, at_step, put, row

OTHER = FLEET.replace("fleet: shop", "fleet: blog").replace("web-", "blog-")
YAML = {"Content-Type": "application/yaml"}


def refused(answer: httpx2.Response, status: int, kind: str) -> dict[str, Any]:
    """The problem that it says, whole."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == MEDIA
    found: dict[str, Any] = answer.json()
    assert found["type"] == PREFIX + kind
    assert found["status"] == status == KINDS[kind][0]
    assert found["title"] and found["detail"] and found["traffic"] and found["next"]
    assert isinstance(found["retryable"], bool)
    assert ("retry-after" in answer.headers) == found["retryable"]
    assert "Traceback" not in answer.text
    return found


# -- plans and rollouts, made ----------------------------------------------------------------------------------------


def test_a_plan_is_made_of_a_fleet_file_as_it_is_or_as_json(api: Served) -> None:
    plain = api.http.post("/v1/plans", content=FLEET, headers=YAML)
    assert plain.status_code == 201
    body = plain.json()
    assert (body["schema"], body["fleet"], body["changes"], body["blockers"]) == ("changeover/v1/plan", "shop", 3, [])
    assert api.http.post("/v1/plans", json={"fleet_file": FLEET}).json()["id"] == body["id"]


def test_a_rollout_starts_from_a_plan_and_says_where_it_is(api: Served) -> None:
    plan = api.http.post("/v1/plans", json={"fleet_file": FLEET}).json()["id"]
    begun = api.http.post("/v1/rollouts", json={"plan": plan})
    assert begun.status_code == 202
    body = begun.json()
    assert (body["schema"], body["rollout"]["plan"]) == ("changeover/v1/applied", plan)
    assert body["rollout"]["created_by"].startswith("ci (t")
    shown = api.http.get(begun.headers["location"]).json()
    assert shown["rollout"] == body["rollout"]
    assert shown["counts"] == {"pending": 3}
    assert [server["server"] for server in shown["servers"]] == ["web-1", "web-2", "web-3"]


def test_a_rollout_starts_from_a_fleet_file(api: Served) -> None:
    assert api.http.post("/v1/rollouts", content=FLEET, headers=YAML).status_code == 202
    assert api.http.post("/v1/rollouts", json={"fleet_file": OTHER}).status_code == 202
    assert {rollout.fleet for rollout in api.store.rollouts()} == {"shop", "blog"}


def test_a_dry_run_says_what_would_be_and_makes_nothing(api: Served) -> None:
    told = api.http.post("/v1/rollouts?dry_run=true", json={"fleet_file": FLEET})
    assert (told.status_code, told.json()["schema"]) == (200, "changeover/v1/plan")
    api.world.strangers = ("web-1 is in another rollout",)
    refused(api.http.post("/v1/rollouts?dry_run=true", json={"fleet_file": FLEET}), 409, "conflict")
    assert api.store.rollouts() == []


def test_a_plan_that_the_world_has_moved_from_is_refused(api: Served) -> None:
    plan = api.http.post("/v1/plans", json={"fleet_file": FLEET}).json()["id"]
    api.world.change = {"memory": 2**28}
    for path in ("/v1/rollouts", "/v1/rollouts?dry_run=true"):
        told = refused(api.http.post(path, json={"plan": plan}), 409, "plan-moved")
        assert "no longer holds" in told["detail"]
    assert api.store.rollouts() == []


def test_a_server_that_another_rollout_has_is_refused(api: Served) -> None:
    first = api.applied()
    assert first in refused(api.http.post("/v1/rollouts", json={"fleet_file": FLEET}), 409, "locked")["detail"]


def test_faults_of_a_fleet_file_come_with_pointers_into_it(api: Served) -> None:
    wrong = FLEET.replace("memory: 256MiB", "memory: 256").replace("{port: 8080}", "{port: 99999}")
    for answer in (
        api.http.post("/v1/plans", content=wrong, headers=YAML),
        api.http.post("/v1/rollouts", json={"fleet_file": wrong}),
    ):
        told = refused(answer, 422, "bad-input")
        assert {fault["pointer"] for fault in told["errors"]} == {"/target/size/memory", "/traffic/pools/web/port"}
    assert api.world.asked == []


def test_what_a_worker_refuses_is_a_conflict_and_what_it_cannot_read_may_be_read_later(api: Served) -> None:
    api.world.error = "no provider is called x"
    assert refused(api.http.post("/v1/plans", json={"fleet_file": FLEET}), 502, "world-unread")["retryable"]
    api.world.refused = True
    assert not refused(api.http.post("/v1/plans", json={"fleet_file": FLEET}), 409, "conflict")["retryable"]


def test_no_answer_of_a_worker_is_a_timeout_that_may_be_tried_again(api: Served) -> None:
    api.world.mute = lambda: None
    api.api.waiter = operations.Waiter(timeout=0.05)
    assert refused(api.http.post("/v1/plans", json={"fleet_file": FLEET}), 504, "timeout")["retryable"]


# -- the same again ----------------------------------------------------------------------------------------------------


def test_the_same_under_one_key_is_done_once_and_says_so(api: Served) -> None:
    key = {"Idempotency-Key": "deploy-17"}
    first = api.http.post("/v1/rollouts", json={"fleet_file": FLEET}, headers=key)
    again = api.http.post("/v1/rollouts", json={"fleet_file": FLEET}, headers=key)
    assert (first.status_code, first.headers["idempotency-replayed"]) == (202, "false")
    assert (again.status_code, again.headers["idempotency-replayed"]) == (202, "true")
    assert first.json() == again.json() and first.headers["location"] == again.headers["location"]
    plans = [api.http.post("/v1/plans", content=OTHER, headers={**YAML, **key}) for _ in range(2)]
    refused(plans[0], 422, "key-reused")  # of plans and rollouts alike
    key = {"Idempotency-Key": "plan-17"}
    plans = [api.http.post("/v1/plans", content=OTHER, headers={**YAML, **key}) for _ in range(2)]
    assert [plan.headers["idempotency-replayed"] for plan in plans] == ["false", "true"]
    assert plans[0].json() == plans[1].json()


def test_a_key_that_stands_for_another_body_is_refused_and_another_callers_key_is_another(api: Served) -> None:
    key = {"Idempotency-Key": "deploy-17"}
    api.http.post("/v1/rollouts", json={"fleet_file": FLEET}, headers=key)
    refused(api.http.post("/v1/rollouts", json={"fleet_file": OTHER}, headers=key), 422, "key-reused")
    other = api.client(api.token("run"))
    assert other.post("/v1/rollouts", json={"fleet_file": OTHER}, headers=key).status_code == 202


def test_a_key_may_be_used_again_for_what_was_refused_and_is_mended(api: Served) -> None:
    key = {"Idempotency-Key": "deploy-17"}
    api.world.strangers = ("web-1 is in another rollout",)
    refused(api.http.post("/v1/rollouts", json={"fleet_file": FLEET}, headers=key), 409, "conflict")
    api.world.strangers = ()
    assert api.http.post("/v1/rollouts", json={"fleet_file": OTHER}, headers=key).status_code == 202


def test_after_a_time_out_the_same_key_makes_the_rollout_that_was_begun(api: Served) -> None:
    key = {"Idempotency-Key": "deploy-17"}
    create, made = api.store.create, []

    def broken(rollout: Any, *args: Any, **how: Any) -> Any:
        made.append(create(rollout, *args, **how).id)
        raise Unreachable("Redis went away right after it")

    api.store.create = broken  # type: ignore[method-assign] # its answer is lost
    refused(api.http.post("/v1/rollouts", json={"fleet_file": FLEET}, headers=key), 503, "unreachable")
    api.store.create = create  # type: ignore[method-assign] # as it was
    again = api.http.post("/v1/rollouts", json={"fleet_file": FLEET}, headers=key)
    assert (again.status_code, again.json()["rollout"]["id"]) == (202, made[0])
    assert len(api.store.rollouts()) == 1


def test_of_many_at_once_under_one_key_one_rollout_comes(api: Served) -> None:
    def ask(_n: int) -> httpx2.Response:
        return api.http.post("/v1/rollouts", json={"fleet_file": FLEET}, headers={"Idempotency-Key": "k"})

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(100)))
    (rollout,) = api.store.rollouts()
    for answer in answers:
        if answer.status_code == 409:
            assert refused(answer, 409, "in-progress")["retryable"]
        elif answer.status_code == 429:
            assert refused(answer, 429, "too-many-requests")["retryable"]
        else:
            assert (answer.status_code, answer.json()["rollout"]["id"]) == (202, rollout.id)
    assert sum(answer.headers.get("idempotency-replayed") == "false" for answer in answers) == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", "\x7f"])
def test_a_key_that_cannot_be_one_is_refused(api: Served, key: str) -> None:
    answer = api.http.post("/v1/rollouts", json={"fleet_file": FLEET}, headers={"Idempotency-Key": key})
    refused(answer, 400, "malformed")
    assert api.store.rollouts() == []


# -- to look at --------------------------------------------------------------------------------------------------------


def test_polling_is_cheap_while_nothing_changes_and_never_misses_a_change(api: Served) -> None:
    id = api.applied()
    first = api.http.get(f"/v1/rollouts/{id}")
    seen = {"If-None-Match": first.headers["etag"]}
    again = api.http.get(f"/v1/rollouts/{id}", headers=seen)
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    weak = {"If-None-Match": f'"x", W/{first.headers["etag"]}'}
    assert api.http.get(f"/v1/rollouts/{id}", headers=weak).status_code == 304

    def changed() -> dict[str, Any]:
        nonlocal seen
        answer = api.http.get(f"/v1/rollouts/{id}", headers=seen)
        assert answer.status_code == 200
        seen = {"If-None-Match": answer.headers["etag"]}
        found: dict[str, Any] = answer.json()
        return found

    at_step(api.store, id, "web-1", "swap")
    assert changed()["counts"] == {"pending": 2, "waiting": 1}
    operations.freeze(api.store, actor="anna", reason="storm")
    assert "storm" in changed()["frozen"]
    operations.pause(api.store, id, actor="anna")
    assert changed()["rollout"]["state"] == "paused"
    assert api.http.get(f"/v1/rollouts/{id}", headers=seen).status_code == 304
    was = operations.find(api.store, id)
    api.store.change(was, replace(was, closed=True), entry=Entry(event="closed", actor="anna"))
    assert changed()["rollout"]["closed"]
    operations.unfreeze(api.store, actor="anna")
    assert changed()["frozen"] is None


def test_rollouts_are_paged_newest_first_and_filtered(api: Served) -> None:
    ids = []
    for n in range(5):
        ids.append(api.applied(FLEET.replace("web-", f"web{n}-")))
        api.clock.now += 1
    operations.pause(api.store, ids[2], actor="anna")
    seen: list[str] = []
    path = "/v1/rollouts?limit=2"
    pages = 0
    while path:
        answer = api.http.get(path)
        seen += [rollout["id"] for rollout in answer.json()["rollouts"]]
        path = answer.links.get("next", {}).get("url", "")
        pages += 1
    assert (seen, pages) == (ids[::-1], 3)
    paused = api.http.get("/v1/rollouts", params={"state": "paused", "fleet": "shop"}).json()["rollouts"]
    assert [(rollout["id"], rollout["counts"]) for rollout in paused] == [(ids[2], {"pending": 3})]
    assert api.http.get("/v1/rollouts", params={"fleet": "other"}).json()["rollouts"] == []
    for query in ("cursor=nonsense", "cursor=!", "state=broken", "limit=0", "limit=1001", "limit=1&limit=2", "x=1"):
        refused(api.http.get(f"/v1/rollouts?{query}"), 422, "bad-input")


def test_servers_are_paged_in_the_order_of_their_waves_and_filtered(api: Served) -> None:
    names = "".join(f"  - {{name: web-{n}, pools: [web]}}\n" for n in range(1, 8))
    many = FLEET[: FLEET.index("  - {name")] + names + FLEET[FLEET.index("traffic:") :]
    id = api.applied(many)
    at_step(api.store, id, "web-5", "swap")
    seen: list[str] = []
    path = f"/v1/rollouts/{id}/servers?limit=3"
    while path:
        answer = api.http.get(path)
        seen += [server["server"] for server in answer.json()["servers"]]
        path = answer.links.get("next", {}).get("url", "")
    assert seen == [f"web-{n}" for n in range(1, 8)]
    running = api.http.get(f"/v1/rollouts/{id}/servers?state=waiting&limit=1").json()["servers"]
    assert [(server["server"], server["step"]) for server in running] == [("web-5", "swap")]
    refused(api.http.get(f"/v1/rollouts/{id}/servers?cursor=web-99"), 422, "bad-input")


def test_a_servers_story_comes_with_its_timeline(api: Served) -> None:
    id = api.applied()
    at_step(api.store, id, "web-1", "swap")
    told = api.http.get(f"/v1/rollouts/{id}/servers/web-1").json()
    assert told["schema"] == "changeover/v1/story"
    assert told["server"]["step"] == "swap"
    assert told["events"] and {event["server"] for event in told["events"]} == {"web-1"}
    refused(api.http.get(f"/v1/rollouts/{id}/servers/web-9"), 404, "not-found")
    refused(api.http.get(f"/v1/rollouts/{id}/servers/WEB;1"), 404, "not-found")


def test_a_report_is_told_as_json_and_as_a_page(api: Served) -> None:
    id = api.applied()
    told = api.http.get(f"/v1/rollouts/{id}/report").json()
    assert told["schema"] == "changeover/v1/report"
    page = api.http.get(f"/v1/rollouts/{id}/report?format=html")
    assert page.headers["content-type"].startswith("text/html") and page.text.startswith("<!doctype html>")
    assert page.headers["content-disposition"].startswith("attachment")


# -- events ------------------------------------------------------------------------------------------------------------


def noted(api: Served, id: str, *events: str) -> None:
    for event in events:
        api.store.note(id, Entry(event=event, actor="anna"))


def test_events_are_paged_and_the_last_page_says_where_to_go_on(api: Served) -> None:
    id = api.applied()
    noted(api, id, *(f"e{n}" for n in range(5)))
    seen: list[str] = []
    path = f"/v1/rollouts/{id}/events?limit=2"
    last = ""
    while path:
        body = api.http.get(path)
        seen += [event["event"] for event in body.json()["events"]]
        last = body.json()["next"]
        path = body.links.get("next", {}).get("url", "")
    assert seen == ["created", "e0", "e1", "e2", "e3", "e4"]
    noted(api, id, "news")
    (news,) = api.http.get(f"/v1/rollouts/{id}/events", params={"after": last}).json()["events"]
    assert news["event"] == "news"
    refused(api.http.get(f"/v1/rollouts/{id}/events?after=yesterday"), 422, "bad-input")


class Stream:
    """Events as they come."""

    def __init__(self, client: httpx2.Client, id: str, **headers: str) -> None:
        headers = {"Accept": "text/event-stream", **{name.replace("_", "-"): text for name, text in headers.items()}}
        self._open = client.stream("GET", f"/v1/rollouts/{id}/events", headers=headers)
        self.answer = self._open.__enter__()
        self._lines = self.answer.iter_lines()

    def take(self, count: int) -> list[tuple[str, str]]:
        """Id and name of so many."""
        found: list[tuple[str, str]] = []
        id = ""
        for line in self._lines:
            if line.startswith("id: "):
                id = line[4:]
            elif line.startswith("data: "):
                body = json.loads(line[6:])
                assert body["id"] == id
                found.append((id, body["event"]))
                if len(found) == count:
                    break
        return found

    def until_its_end(self) -> None:
        for _ in self._lines:
            pass
        self.close()

    def close(self) -> None:
        self._open.__exit__(None, None, None)


def test_events_are_told_as_they_happen_and_go_on_exactly_where_a_cut_was(api: Served) -> None:
    id = api.applied()
    noted(api, id, "e0", "e1")
    stream = Stream(api.http, id)
    assert stream.answer.headers["content-type"].startswith("text/event-stream")
    old = stream.take(3)
    assert [event for _, event in old] == ["created", "e0", "e1"]
    noted(api, id, "e2")
    assert [event for _, event in stream.take(1)] == ["e2"]
    stream.close()
    noted(api, id, "e3", "e4")
    again = Stream(api.http, id, Last_Event_ID=old[1][0])
    assert [event for _, event in again.take(4)] == ["e1", "e2", "e3", "e4"]
    again.close()


def test_many_readers_each_get_every_event_once_from_one_reading_of_the_store(
    api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = api.applied()
    asked: list[float] = []
    events = api.store.events

    def counted(rollout: str, **how: Any) -> Any:
        if how.get("block"):
            asked.append(how["block"])
        return events(rollout, **how)

    monkeypatch.setattr(api.store, "events", counted)
    readers, count = 30, 40
    got: list[list[str]] = [[] for _ in range(readers)]

    def read(n: int) -> None:
        client = api.client(api.token("read"))
        stream = Stream(client, id)
        got[n] = [event for _, event in stream.take(count + 1)]
        stream.close()

    threads = [threading.Thread(target=read, args=(n,)) for n in range(readers)]
    for thread in threads:
        thread.start()
    for n in range(count):
        noted(api, id, f"e{n}")
        time.sleep(0.002)
    for thread in threads:
        thread.join(30)
    assert all(each == ["created", *(f"e{n}" for n in range(count))] for each in got)
    assert len(asked) < 4 * count
    end = time.monotonic() + 20
    while api.api.streams:
        assert time.monotonic() < end, "a stream outlives its reader"
        time.sleep(0.01)


@pytest.mark.parametrize("how", ["revoked", "expired"])
def test_a_stream_ends_when_its_token_does(api: Served, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(live, "CHECKED_EVERY", 0.05)
    id = api.applied()
    token, shown = tokens.create(api.store, "ci", ["read"], actor="anna", seconds=60)
    stream = Stream(api.client(shown), id)
    stream.take(1)
    if how == "revoked":
        tokens.revoke(api.store, token.id)
    else:
        api.clock.now += 61
    stream.until_its_end()


def test_a_stream_survives_a_store_that_is_away_for_a_moment(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.api.live.AGAIN", 0.05)
    id = api.applied()
    stream = Stream(api.http, id)
    stream.take(1)
    events, away = api.store.events, threading.Event()
    away.set()

    def flaky(*args: Any, **how: Any) -> Any:
        if away.is_set():
            raise Unreachable("Redis is away")
        return events(*args, **how)

    monkeypatch.setattr(api.store, "events", flaky)
    noted(api, id, "e0", "e1")
    time.sleep(0.2)
    away.clear()
    noted(api, id, "e2")
    assert [event for _, event in stream.take(3)] == ["e0", "e1", "e2"]
    stream.close()


# -- what a person decides ---------------------------------------------------------------------------------------------


def test_every_verb_does_what_it_says_once_and_again_changes_nothing(api: Served) -> None:
    id = api.applied()
    states = {"pause": "paused", "resume": "running", "abort": "aborting", "rollback": "rolling_back"}
    for verb, state in states.items():
        first = api.http.post(f"/v1/rollouts/{id}:{verb}")
        assert first.status_code == 200, first.text
        body = first.json()
        assert (body["schema"], body["verb"], body["changed"]) == ("changeover/v1/answer", verb, True)
        assert body["rollout"]["state"] == state
        assert body["next"].startswith("changeover ")
        again = api.http.post(f"/v1/rollouts/{id}:{verb}", json={})
        assert (again.status_code, again.json()["changed"]) == (200, False)
    refused(api.http.post(f"/v1/rollouts/{id}:pause"), 409, "illegal-transition")


def test_a_wave_waits_for_those_who_may_approve_it(api: Served) -> None:
    """The token's name says it, and a token without the scope says nothing."""
    id = api.applied(FLEET.replace("rollout:", "rollout:\n  approvals: [{before: 1, by: [ci, anna], count: 2}]"))
    was = operations.find(api.store, id)
    (asked,) = decide(was, operations.view(api.store, id).upgrades, failed_before_swap=0, now=api.store.now())
    assert isinstance(asked, Become)
    api.store.change(was, asked.rollout, entry=Entry(event=asked.event, actor="c"))
    shown = api.http.get(f"/v1/rollouts/{id}").json()
    assert shown["rollout"]["state"] == "awaiting_approval" and shown["exit_code"] == 3
    assert shown["rollout"]["approval"]["by"] == ["ci", "anna"] and shown["next"] == f"changeover approve {id} --wave 1"
    refused(api.http.post(f"/v1/rollouts/{id}:approve", json={"wave": 1}), 409, "illegal-transition")
    for changed in (True, False):
        answer = api.http.post(f"/v1/rollouts/{id}:approve", json={"wave": 0}).json()
        assert answer["changed"] == changed and answer["rollout"]["approval"]["approved_by"] == ["ci"]
    for name, scopes, status in (("eve", ["approve"], 409), ("anna", ["run"], 403), ("anna", ["approve"], 200)):
        _, shown = tokens.create(api.store, name, scopes, actor="t")
        said = api.http.post(f"/v1/rollouts/{id}:approve", headers={"Authorization": f"Bearer {shown}"})
        assert said.status_code == status, said.text
    assert operations.find(api.store, id).state == "running"
    assert operations.find(api.store, id).approved_by == ("ci", "anna")


def test_a_dry_run_of_a_verb_says_what_would_be_and_changes_nothing(api: Served) -> None:
    id = api.applied()
    at_step(api.store, id, "web-1", "swap")
    put(api.store, id, "web-1", row(api.store, id, "web-1").upgrade.after(Held(why="no answer")))

    def tried(verb: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        before = (api.store.rollout(id), api.store.rows(id), api.store.last_event(id))
        would = api.http.post(f"/v1/rollouts/{id}:{verb}?dry_run=true", json=body or {})
        assert (api.store.rollout(id), api.store.rows(id), api.store.last_event(id)) == before
        does = api.http.post(f"/v1/rollouts/{id}:{verb}", json=body or {})
        assert (would.status_code, would.json().get("type")) == (does.status_code, does.json().get("type"))
        if would.status_code == 200:
            told, done = would.json(), does.json()
            assert (told["changed"], told["rollout"]["state"]) == (done["changed"], done["rollout"]["state"])
            assert [u["state"] for u in told["servers"]] == [u["state"] for u in done["servers"]]
            assert told["confirmed"] is None
        found: dict[str, Any] = would.json()
        return found

    assert tried("retry", {"servers": ["web-1"]})["changed"]
    assert not tried("retry")["changed"]
    assert tried("rollback", {"server": "web-1"})["servers"][0]["direction"] == "undo"
    for verb in ("pause", "resume", "resume", "abort", "pause", "rollback", "abort"):
        tried(verb)
    assert tried("rollback", {"server": "web-9"})["status"] == 404


@pytest.mark.parametrize("verb", ["pause", "abort", "rollback"])
def test_of_many_that_decide_the_same_at_once_one_has_done_it(api: Served, verb: str) -> None:
    id = api.applied()
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _n: api.http.post(f"/v1/rollouts/{id}:{verb}"), range(100)))
    assert {answer.status_code for answer in answers} == {200}
    assert [answer.json()["changed"] for answer in answers].count(True) == 1
    assert [entry.event for entry in api.store.events(id)].count(
        answers[0].json()["rollout"]["state"].replace("_", " ")
    ) == 1


def test_what_has_ended_is_not_decided_again(api: Served) -> None:
    id = api.applied()
    was = operations.find(api.store, id)
    for state in ("succeeded", "aborted"):
        was = operations.find(api.store, id)
        ended = replace(was, state=state, ended_at=api.clock.now, closed=state == "aborted")
        assert api.store.change(was, ended, entry=Entry(event=state, actor="anna")) is not None
        for verb in ("pause", "resume", "abort", *(["rollback"] if ended.closed else [])):
            answer = api.http.post(f"/v1/rollouts/{id}:{verb}")
            if answer.status_code == 200:
                assert not answer.json()["changed"], (state, verb)
            else:
                refused(answer, 409, "illegal-transition")
        assert operations.find(api.store, id).state == state


def test_what_is_refused_fills_no_log_however_long_its_path(api: Served) -> None:
    with capture_logs() as logged:
        assert api.http.get("/v1/" + "x" * 30_000).status_code == 404
        assert api.http.get("/" + "x" * 30_000).status_code == 404
    paths = [each["path"] for each in logged if each["event"] == "asked"]
    assert paths == [("/v1/" + "x" * 200)[:200], ("/" + "x" * 200)[:200]]


def test_why_somebody_did_it_and_who_is_in_the_audit_log(api: Served) -> None:
    id = api.applied()
    api.http.post(f"/v1/rollouts/{id}:pause", json={"why": "lunch"})
    entry = api.store.events(id)[-1]
    assert entry.event == "paused" and entry.detail == {"why": "lunch"} and entry.actor.startswith("ci (t")


def test_a_held_server_is_retried_and_one_is_rolled_back(api: Served) -> None:
    id = api.applied()
    at_step(api.store, id, "web-1", "swap")
    put(api.store, id, "web-1", row(api.store, id, "web-1").upgrade.after(Held(why="no answer")))
    told = api.http.post(f"/v1/rollouts/{id}:retry", json={"servers": ["web-1"]}).json()
    assert (told["changed"], told["servers"][0]["state"]) == (True, "waiting")
    told = api.http.post(f"/v1/rollouts/{id}:rollback", json={"server": "web-1", "why": "slow"}).json()
    assert (told["changed"], told["servers"][0]["direction"]) == (True, "undo")
    refused(api.http.post(f"/v1/rollouts/{id}:retry", json={"servers": ["web-1", "web-9"]}), 404, "not-found")
    refused(api.http.post(f"/v1/rollouts/{id}:rollback", json={"server": "web-9"}), 404, "not-found")


def test_who_has_not_seen_the_latest_decision_changes_nothing(api: Served) -> None:
    id = api.applied()
    seen = {"If-Match": api.http.get(f"/v1/rollouts/{id}").headers["etag"]}
    at_step(api.store, id, "web-1", "swap")  # a server that goes on is no decision
    first = api.http.post(f"/v1/rollouts/{id}:pause", headers=seen)
    assert first.status_code == 200
    told = refused(api.http.post(f"/v1/rollouts/{id}:abort", headers=seen), 412, "outdated")
    assert "paused" in told["detail"]
    now = {"If-Match": f'"1-1-0", {first.headers["etag"]}'}
    assert api.http.post(f"/v1/rollouts/{id}:abort", headers=now).status_code == 200
    assert api.http.post(f"/v1/rollouts/{id}:rollback", headers={"If-Match": "*"}).status_code == 200
    for verb in ("pause", "resume", "abort", "rollback", "retry"):
        refused(api.http.post(f"/v1/rollouts/{id}:{verb}", headers=seen), 412, "outdated")
    refused(api.http.post(f"/v1/rollouts/{id}:retry", headers={"If-Match": '"new"'}), 422, "bad-input")


def test_what_a_token_asks_in_vain_of_an_open_rollout_is_in_its_audit_log_once_a_minute(api: Served) -> None:
    id, now = api.applied(), [0.0]
    api.api.refusals = Pace(rate=REFUSALS, monotonic=lambda: now[0])

    def told() -> list[tuple[str, str]]:
        return [(e.actor.partition(" ")[0], e.detail["verb"]) for e in api.store.events(id) if e.event == "refused"]

    reader, other = api.client(api.token("read")), api.client(api.token("run", fleets=("other",)))
    for _ in range(5):
        refused(reader.post(f"/v1/rollouts/{id}:abort", content=b"{"), 403, "forbidden")
    assert told() == [("ci", "abort")]
    now[0] += 61
    refused(reader.post(f"/v1/rollouts/{id}:pause"), 403, "forbidden")
    assert told() == [("ci", "abort"), ("ci", "pause")]
    refused(other.post(f"/v1/rollouts/{id}:pause"), 404, "not-found")
    refused(other.post(f"/v1/rollouts/{id}:approve"), 403, "forbidden")  # whether there is one, it does not learn
    refused(api.http.post(f"/v1/rollouts/{id}:approve?dry_run=true"), 409, "illegal-transition")
    assert len(told()) == 2
    refused(api.http.post(f"/v1/rollouts/{id}:approve"), 409, "illegal-transition")
    assert told()[2:] == [("ci", "approve")] and "nothing to approve" in api.store.events(id)[-1].detail["why"]
    now[0] += 61
    refused(api.http.post(f"/v1/rollouts/{id}:abort", headers={"If-Match": '"1-1-0"'}), 412, "outdated")
    assert told()[3:] == [("ci", "abort")]
    rollout = operations.find(api.store, id)
    closed = replace(rollout, state="aborted", closed=True, ended_at=1.0)
    api.store.change(rollout, closed, entry=Entry(event="aborted", actor="x"))
    now[0] += 61
    refused(api.http.post(f"/v1/rollouts/{id}:pause"), 409, "illegal-transition")
    assert len(told()) == 4  # its trail has ended


def test_everything_is_frozen_and_unfrozen_by_who_may(api: Served) -> None:
    told = api.http.post("/v1/freeze", json={"reason": "storm"}).json()
    assert told["changed"] and told["frozen"].startswith("storm (by ci (t")
    assert not api.http.post("/v1/freeze").json()["changed"]
    assert api.http.post("/v1/unfreeze").json()["frozen"] is None
    for shown in (api.token("run"), api.token("admin", fleets=("shop",))):
        refused(api.client(shown).post("/v1/freeze"), 403, "forbidden")
    assert api.store.frozen() is None


# -- who asks ----------------------------------------------------------------------------------------------------------


def test_every_reason_for_which_nobody_is_let_in_looks_the_same(api: Served) -> None:
    shown, brief = api.token("read"), api.token("read", seconds=10)
    revoked, changed = tokens.create(api.store, "gone", ["read"], actor="anna")
    tokens.revoke(api.store, revoked.id)
    api.clock.now += 10
    wrong = [None, "Bearer", f"Bearer {brief}", f"Bearer {changed}", f"Basic {shown}", f"Bearer {shown}x"]
    wrong += [f"Bearer  {shown}", f"Bearer {shown} x", shown, f"Bearer {'x' * 20000}"]
    answers = [
        api.client().get("/v1/rollouts", headers={} if text is None else {"Authorization": text}) for text in wrong
    ]
    twice = [("Authorization", f"Bearer {shown}"), ("Authorization", f"Bearer {shown}")]
    answers.append(api.client().get("/v1/rollouts", headers=twice))
    for answer in answers:
        refused(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert len({answer.text for answer in answers}) == 1
    assert len({tuple(sorted({**answer.headers, "date": ""}.items())) for answer in answers}) == 1
    assert api.client(shown).get("/v1/rollouts").status_code == 200


def test_a_token_may_what_its_scopes_say_and_no_more(api: Served) -> None:
    id = api.applied()
    asked = [
        ("read", "GET", "/v1/rollouts", 200),
        ("read", "GET", f"/v1/rollouts/{id}", 200),
        ("read", "GET", f"/v1/rollouts/{id}/servers", 200),
        ("read", "GET", f"/v1/rollouts/{id}/servers/web-1", 200),
        ("read", "GET", f"/v1/rollouts/{id}/events", 200),
        ("read", "GET", f"/v1/rollouts/{id}/report", 200),
        ("plan", "POST", "/v1/plans", 415),
        ("run", "POST", "/v1/rollouts", 415),
        ("run", "POST", f"/v1/rollouts/{id}:pause", 200),
        ("run", "POST", f"/v1/rollouts/{id}:resume", 200),
        ("run", "POST", f"/v1/rollouts/{id}:retry", 200),
        ("approve", "POST", f"/v1/rollouts/{id}:approve", 409),
        ("run", "POST", f"/v1/rollouts/{id}:promote", 200),
        ("run", "POST", f"/v1/rollouts/{id}:abort", 200),
        ("run", "POST", f"/v1/rollouts/{id}:rollback", 200),
        ("admin", "POST", "/v1/freeze", 200),
        ("admin", "POST", "/v1/unfreeze", 200),
        ("read", "GET", "/v1/deliveries", 200),
        ("read", "GET", f"/v1/deliveries/{id}", 404),
        ("run", "POST", f"/v1/deliveries/{id}:redeliver", 404),
    ]
    assert {path for _, _, path, _ in asked} == {
        path.replace("{id}", id).replace("{server}", "web-1")
        for path in api.http.get("/openapi.json").json()["paths"]
        if path.startswith("/v1/")
    }, "every path is asked with every scope"
    clients = {scope: api.client(api.token(scope)) for scope in ("read", "plan", "run", "admin")}
    for needed, method, path, status in asked:
        for scope, client in clients.items():
            answer = client.request(method, path)
            if scope in (needed, "admin"):
                assert answer.status_code == status, (scope, path, answer.text)
            else:
                refused(answer, 403, "forbidden")
        refused(api.client().request(method, path), 401, "unauthorized")


def test_what_is_of_another_fleet_is_told_from_nothing_by_nothing(api: Served) -> None:
    mine, other = api.applied(), api.applied(OTHER)
    plan = api.http.post("/v1/plans", json={"fleet_file": OTHER}).json()["id"]
    client = api.client(api.token(fleets=("shop",)))
    assert [rollout["id"] for rollout in client.get("/v1/rollouts").json()["rollouts"]] == [mine]
    for method, path in (
        ("GET", ""),
        ("GET", "/servers"),
        ("GET", "/servers/blog-1"),
        ("GET", "/events"),
        ("GET", "/report"),
        *(("POST", f":{verb}") for verb in ("pause", "resume", "abort", "rollback", "retry")),
    ):
        theirs = refused(client.request(method, f"/v1/rollouts/{other}{path}"), 404, "not-found")
        none = refused(client.request(method, f"/v1/rollouts/{'r' + 'z' * 11}{path}"), 404, "not-found")
        assert {**theirs, "detail": ""} == {**none, "detail": ""}
        assert theirs["detail"] == none["detail"].replace("r" + "z" * 11, other)
    refused(client.post("/v1/rollouts", json={"plan": plan}), 404, "not-found")
    refused(client.post("/v1/rollouts", json={"fleet_file": OTHER}), 403, "forbidden")
    refused(client.post("/v1/plans", json={"fleet_file": OTHER}), 403, "forbidden")
    assert not any(rollout.state != "running" for rollout in api.store.rollouts())


def test_who_asks_too_often_is_told_when_to_ask_again(api: Served) -> None:
    api.api.pace = Pace(rate=0.01)
    assert api.http.get("/v1/rollouts").status_code == 200
    told = refused(api.http.get("/v1/rollouts"), 429, "too-many-requests")
    assert told["retryable"]
    assert api.client(api.token("read")).get("/v1/rollouts").status_code == 200


def test_no_token_takes_all_streams(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "STREAMS_OF_ONE", 2)
    id = api.applied()
    open = [Stream(api.http, id) for _ in range(2)]
    for stream in open:
        stream.take(1)
    path, wanted = f"/v1/rollouts/{id}/events", {"Accept": "text/event-stream"}
    assert refused(api.http.get(path, headers=wanted), 429, "too-many-requests")["retryable"]
    other = Stream(api.client(api.token("read")), id)
    other.take(1)
    for stream in (*open, other):
        stream.close()


def test_no_token_takes_every_place_of_those_who_wait_for_a_worker(api: Served) -> None:
    api.world.mute, api.api.waiter = lambda: None, Waiter(timeout=3, every=0.005)

    def ask(client: httpx2.Client) -> httpx2.Response:
        return client.post("/v1/plans", json={"fleet_file": FLEET})

    with ThreadPoolExecutor(routes.OF_ONE) as pool:
        waiting = [pool.submit(ask, api.http) for _ in range(routes.OF_ONE)]
        end = time.monotonic() + 20
        while len(api.world.asked) < routes.OF_ONE:
            assert time.monotonic() < end, "they do not wait"
            time.sleep(0.005)
        refused(ask(api.http), 429, "too-many-requests")
        api.world.mute = None
        assert ask(api.client(api.token())).status_code == 201
    assert {answer.result().status_code for answer in waiting} == {504}
    assert not api.api.waiting


def test_a_pace_lets_a_burst_through_and_then_as_many_as_it_says() -> None:
    at = [0.0]
    pace = Pace(rate=2, monotonic=lambda: at[0])
    assert [pace.wait("a") for _ in range(9)] == [0.0] * 8 + [0.5]
    at[0] = 0.5
    assert [pace.wait("a"), pace.wait("a")] == [0.0, 0.5]
    assert pace.wait("b") == 0.0


# -- bad inputs --------------------------------------------------------------------------------------------------------

BODIES: list[tuple[bytes, int]] = [
    (b"", 400),
    (b"{}", 422),
    (b"[]", 422),
    (b"null", 422),
    (b"0", 422),
    (b'"fleet"', 422),
    (b"{", 400),
    (b"\xff\xfe{\x00}\x00", 400),
    (b"\xef\xbb\xbf{}", 400),
    (b'{"plan": "p1", "plan": "p2"}', 400),
    (b'{"plan": NaN}', 400),
    (b'{"plan": Infinity}', 400),
    (b'{"plan": 1e999}', 400),
    (b'{"plan": -0}', 422),
    (b'{"plan": 9223372036854775808}', 422),
    (b'{"plan": ' + b"9" * 5000 + b"}", 400),
    (b'{"plan": "\\ud800"}', 400),
    (b'{"\\ud800": 1}', 400),
    (b'{"plan": "\\u0000"}', 422),
    (b'{"plan": "p1", "force": true}', 422),
    (b'{"plan": "p1", "fleet_file": "x"}', 422),
    (b'{"plan": true}', 422),
    (b'{"plan": ""}', 422),
    (b'{"plan": "../../etc/passwd"}', 422),
    (b'{"plan": "' + b"x" * 2000 + b'"}', 422),
    (b'{"plan": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", 400),
    (b'{"plan": ' + b"[" * 30 + b"]" * 30 + b"}", 400),
    (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, 400),
    (b'{"fleet_file": ""}', 422),
    (b'{"fleet_file": "\\u0000"}', 422),
    (b'{"fleet_file": "a: !!python/object:os.system x"}', 422),
    (b'{"fleet_file": "\\ta: 1"}', 422),
    (b'{"fleet_file": "version: 0x1"}', 422),
    (b'{"fleet_file": "' + b"x" * (1 << 20) + b'x"}', 422),
]


@pytest.mark.parametrize("path", ["/v1/plans", "/v1/rollouts"])
def test_no_body_that_makes_no_sense_makes_anything(api: Served, path: str) -> None:
    for raw, status in BODIES:
        answer = api.http.post(path, content=raw, headers={"Content-Type": "application/json"})
        refused(answer, status, {400: "malformed", 422: "bad-input"}[status])
        assert len(answer.content) < 10_000
    assert api.world.asked == []
    assert api.store.rollouts() == []


@pytest.mark.parametrize(
    "why",
    ["a\nb", "\x1b[2J", "x" * 1001, 7, None, ["a"], {"why": "x"}, "\x00", "\ud800"],
    ids=lambda why: repr(why)[:20],
)
def test_no_reason_that_could_harm_a_log_is_taken(api: Served, why: object) -> None:
    id = api.applied()
    raw = json.dumps({"why": why}).encode()
    answer = api.http.post(f"/v1/rollouts/{id}:pause", content=raw, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert operations.find(api.store, id).state == "running"


@pytest.mark.parametrize(
    "id",
    [
        *("..", "../x", "%2e%2e", "r1%0d%0aSET%20x", "r1;rm -rf", "$(id)", "`id`", "{{7*7}}", "r\u202e1", "r\u200b1"),
        *("r\u04401", "-oProxyCommand=x", "x" * 101, "%00", "r1%ff", ""),
    ],
)
def test_no_odd_name_of_a_rollout_finds_anything(api: Served, id: str) -> None:
    for path in (f"/v1/rollouts/{id}/servers", f"/v1/rollouts/{id}/events", f"/v1/rollouts/{id}:pause"):
        answer = api.http.request("POST" if ":" in path else "GET", path)
        assert answer.status_code in (404, 405), (path, answer.text)
        assert answer.headers["content-type"] == MEDIA


def test_a_body_that_is_too_large_is_refused_whether_it_says_so_or_not(api: Served) -> None:
    most = bodies.MAX_BODY
    headers = {"Content-Type": "application/json"}
    refused(api.http.post("/v1/plans", content=b" " * (most + 1), headers=headers), 413, "too-large")

    def chunks() -> Iterator[bytes]:
        for _ in range(10):
            yield b" " * (1 << 20)

    with suppress(httpx2.TransportError):  # it may be hung up on in the middle of what nobody wants
        refused(api.http.post("/v1/plans", content=chunks(), headers=headers), 413, "too-large")
    bomb = gzip.compress(b" " * (50 << 20))
    packed = api.http.post("/v1/plans", content=bomb, headers={**headers, "Content-Encoding": "gzip"})
    refused(packed, 415, "unsupported-media-type")
    assert api.http.get("/healthz").status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "json"])
def test_a_body_of_another_kind_is_refused(api: Served, kind: str) -> None:
    answer = api.http.post("/v1/plans", content=b"{}", headers={"Content-Type": kind})
    refused(answer, 415, "unsupported-media-type")
    wide = {"Content-Type": "application/json; charset=utf-16"}
    refused(api.http.post("/v1/plans", content=b"{}", headers=wide), 415, "unsupported-media-type")


def test_other_methods_and_paths_are_refused_in_the_same_words(api: Served) -> None:
    for method in ("HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "PATCH", "POST"):
        answer = api.http.request(method, f"/v1/rollouts/{'r' * 12}")
        assert answer.status_code == 405
        assert answer.headers["allow"] == "GET"
        if method != "HEAD":
            refused(answer, 405, "method-not-allowed")
    override = {"X-HTTP-Method-Override": "POST"}
    assert api.http.get("/v1/rollouts", headers=override).json()["schema"] == "changeover/v1/rollouts"
    for path in ("/v1", "/v1/", "/v1/rollouts/", "/v2/rollouts", "/docs", "/redoc", "/metrics/"):
        refused(api.http.get(path), 404, "not-found")
    refused(api.http.post("/v1/rollouts/r1:explode"), 405, "method-not-allowed")
    for path, allowed in (("/v1/rollouts", "GET, POST"), ("/v1/rollouts/r1:pause", "POST"), ("/healthz", "GET")):
        assert api.http.request("OPTIONS", path).headers["allow"] == allowed


def raw(api: Served, *parts: bytes, within: float = 20) -> bytes:
    """What comes back until the other side ends it; between two parts something must."""
    host, _, port = api.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=within) as link:
        found = b""
        for n, part in enumerate(parts):
            found += link.recv(65536) if n else b""
            link.sendall(part)
        while more := link.recv(65536):
            found += more
        return found


def test_a_request_of_two_lengths_is_refused(api: Served) -> None:
    shown = api.token().encode()
    head = b"POST /v1/freeze HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + shown + b"\r\nConnection: close\r\n"
    both = head + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    assert raw(api, both).startswith(b"HTTP/1.1 400")
    twice = head + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} "
    assert raw(api, twice).startswith(b"HTTP/1.1 400")
    assert raw(api, b"GET / HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert raw(api, b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n").startswith(b"HTTP/1.1 4")
    assert raw(api, b"\x16\x03\x01\x02\x00").startswith(b"HTTP/1.1 400")
    assert api.store.frozen() is None


def test_who_is_slow_is_hung_up_on(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "HEAD_WITHIN", 0.2)
    monkeypatch.setattr(bodies, "WITHIN", 0.2)
    assert raw(api) == b""
    assert raw(api, b"GET /healthz HTTP/1.1\r\nHost: x\r\n") == b""
    whole = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    assert raw(api, whole, b"GET").startswith(b"HTTP/1.1 200")
    shown = api.token().encode()
    head = b"POST /v1/freeze HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 20\r\n"
    answer = raw(api, head + b"Authorization: Bearer " + shown + b'\r\n\r\n{"reas')
    assert answer.startswith(b"HTTP/1.1 408") and b"too-slow" in answer
    assert api.store.frozen() is None


def test_who_does_not_read_is_hung_up_on(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    lost: queue.Queue[tuple[str, int] | None] = queue.Queue()
    really = serving.Protocol.connection_lost

    def ended(self: serving.Protocol, exc: Exception | None) -> None:
        lost.put(self.client)
        really(self, exc)

    monkeypatch.setattr(serving, "STALLED", 0.3)
    monkeypatch.setattr(serving.Protocol, "connection_lost", ended)
    host, _, port = api.url.removeprefix("http://").partition(":")
    with socket.socket() as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        link.connect((host, int(port)))
        link.settimeout(0.2)
        with suppress(TimeoutError, ConnectionError):
            for _ in range(100):  # more than systems keep between the two
                link.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")
        while lost.get(timeout=20) != link.getsockname():
            pass


def test_who_reads_slowly_gets_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "STALLED", 0.4)
    size = 16 * 1024 * 1024  # more than systems keep between the two

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
        await send({"type": "http.response.body", "body": b"x" * size})

    async def told() -> float:
        config = uvicorn.Config(app, http=serving.Protocol, lifespan="off", log_config=None)
        config.load()
        loop, state = asyncio.get_running_loop(), ServerState()
        server = await loop.create_server(lambda: serving.Protocol(config, state, {}), "127.0.0.1", 0)
        async with server:
            began, left = loop.time(), size
            with socket.socket() as link:
                link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
                link.setblocking(False)
                await loop.sock_connect(link, server.sockets[0].getsockname())
                await loop.sock_sendall(link, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                while more := await loop.sock_recv(link, 131072):
                    left -= more.count(b"x")
                    await asyncio.sleep(0.005)
            assert left == 0
            return loop.time() - began

    assert asyncio.run(told()) > 2 * serving.STALLED, "it was not slow"


def test_json_is_read_as_it_is_written() -> None:
    assert strict_json(b'{"a": [1, 2.5, true, null, "\xc3\xbc"]}') == {"a": [1, 2.5, True, None, "ü"]}
    for wrong in (b"", b" ", b"{'a': 1}", b"[1,]", b'{"a": 1} x', b"nan", b"-Infinity", b'"\\ud83d"', b"\xc3"):
        with pytest.raises(Problem):
            strict_json(wrong)
    assert strict_json(b'"\\ud83d\\ude00"') == "\U0001f600"


# -- for whoever runs it -----------------------------------------------------------------------------------------------


def test_it_is_ready_once_redis_takes_writes_and_a_worker_lives(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    http = api.client()
    assert http.get("/healthz").json() == {"schema": "changeover/v1/health", "ok": True}
    not_yet = http.get("/readyz")
    assert (not_yet.status_code, not_yet.json()["why"]) == (503, "no worker is alive")
    api.store.beat("w1", {"pid": 1}, ttl=60)
    assert http.get("/readyz").json() == {"schema": "changeover/v1/readiness", "ready": True, "workers": 1, "why": ""}

    def broken(*_args: Any, **_how: Any) -> Any:
        raise UnsafeStore("Redis at 10.0.0.7 is read-only")

    monkeypatch.setattr(api.store, "lease", broken)
    told = http.get("/readyz")
    assert (told.status_code, told.json()["ready"]) == (503, False)
    assert "10.0.0.7" not in told.text


def test_metrics_are_for_whoever_may_read_of_every_fleet(api: Served) -> None:
    told = api.http.get("/metrics")
    assert (told.status_code, told.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert "changeover_workers 0.0\n" in told.text
    refused(api.client().get("/metrics"), 401, "unauthorized")
    refused(api.client(api.token("read", fleets=("shop",))).get("/metrics"), 403, "forbidden")
    refused(api.client(api.token("plan")).get("/metrics"), 403, "forbidden")


def test_what_nobody_expected_is_a_problem_without_its_inside(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise RuntimeError("a secret of the inside")

    monkeypatch.setattr(api.store, "frozen", broken)
    answer = api.http.get("/v1/rollouts")
    told = refused(answer, 500, "internal")
    assert told["instance"].startswith("urn:changeover:error:")
    assert "secret" not in answer.text and "RuntimeError" not in answer.text


def test_a_store_that_does_not_answer_may_be_asked_again(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise Unreachable("Redis does not answer")

    monkeypatch.setattr(api.store, "frozen", broken)
    assert refused(api.http.get("/v1/rollouts"), 503, "unreachable")["retryable"]


def test_answers_are_kept_by_nobody_and_taken_for_what_they_say(api: Served) -> None:
    id = api.applied()
    for path, cache in (("/v1/rollouts", "no-store"), (f"/v1/rollouts/{id}", "private, no-cache"), ("/x", "no-store")):
        headers = api.http.get(path).headers
        assert (headers["cache-control"], headers["x-content-type-options"]) == (cache, "nosniff")
        assert "server" not in headers
