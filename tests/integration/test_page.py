"""The fleet page, as a browser without a script gets it: who comes in, what they see, and what they may do."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

import httpx2
import pytest

from orchestrator import operations, tokens
from orchestrator.api import live
from orchestrator.domain.upgrade import Ailed, Held, Upgrade
from orchestrator.errors import Unreachable
from orchestrator.store import Entry, Users
from orchestrator.web import sessions, telling
from orchestrator.web.site import assets
from tests.support.api import FLOWER, Served
from tests.unit.test_operations import FLEET, at_step, put, row, upgraded

BLOG = FLEET.replace("fleet: shop", "fleet: blog").replace("web-", "blog-")


class Browser:
    """What a browser sends by itself, and what it keeps."""

    def __init__(self, api: Served, shown: str | None = None) -> None:
        self.api, self.http = api, api.client()
        if shown is not None:
            assert self.post("/login", token=shown).status_code == 303

    def get(self, path: str, **how: Any) -> httpx2.Response:
        return self.http.get(path, **how)

    def see(self, path: str) -> str:
        answer = self.get(path)
        assert answer.status_code == 200, answer.text
        return answer.text

    def post(self, path: str, **form: str) -> httpx2.Response:
        return self.http.post(path, data=form, headers={"Origin": self.api.url, "Sec-Fetch-Site": "same-origin"})

    def form(self, path: str) -> dict[str, str]:
        """What the form of a page holds."""
        text = self.see(path)
        body = text[text.index("<main") :]
        return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', body))

    def press(self, path: str, **more: str) -> httpx2.Response:
        return self.post(path.partition("?")[0], **{**self.form(path), **more})


def inside(api: Served, *scopes: str, fleets: tuple[str, ...] = ()) -> Browser:
    return Browser(api, api.token(*scopes, fleets=fleets))


def hold(api: Served, id: str, server: str, step: str = "smoke_test", why: str = "no room") -> None:
    at_step(api.store, id, server, step)
    put(api.store, id, server, row(api.store, id, server).upgrade.after(Held(why=why)))


# -- who comes in ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/rollouts/r1", "/rollouts/r1/servers/web-1", "/rollouts/r1/pause", "/freeze"])
def test_whoever_was_not_let_in_is_asked_for_a_token_and_then_sees_what_they_wanted(api: Served, path: str) -> None:
    browser = Browser(api)
    asked = browser.get(path)
    assert (asked.status_code, unquote(asked.headers["location"])) == (303, f"/login?next={path}")
    assert browser.form(asked.headers["location"])["next"] == path
    came = browser.post("/login", token=api.token(), next=path)
    assert (came.status_code, came.headers["location"]) == (303, path)


@pytest.mark.parametrize("next", ["//evil.test/", "https://evil.test/", "/\\evil.test", "javascript:x", "/\r\nX: y"])
def test_nobody_is_sent_elsewhere(api: Served, next: str) -> None:
    assert Browser(api).post("/login", token=api.token(), next=next).headers["location"] == "/"


def test_a_wrong_token_lets_nobody_in_and_all_get_the_same_answer(api: Served) -> None:
    gone = tokens.create(api.store, "ci", ("read",), actor="anna")
    tokens.revoke(api.store, gone[0].id)
    wrong = [api.token()[:-1] + "_", gone[1], "", "x", "co_" + "é" * 50]
    answers = [Browser(api).post("/login", token=token) for token in wrong]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.text for answer in answers}) == 1
    assert all("set-cookie" not in answer.headers for answer in answers)


def test_the_cookie_is_for_this_site_alone_and_what_is_stored_lets_nobody_in(api: Served) -> None:
    shown = api.token()
    browser = Browser(api)
    said = browser.post("/login", token=shown).headers["set-cookie"]
    assert "HttpOnly" in said and "SameSite=strict" in said and "Secure" not in said
    cookie = said.partition("=")[2].partition(";")[0]
    assert len(cookie) == 43
    assert cookie not in repr(api.store._sessions) and shown not in repr(api.store._sessions)
    safe = browser.http.post(
        "/login", data={"token": shown}, headers={"Origin": "https://ops.test", "Host": "ops.test"}
    )
    kept = safe.headers["set-cookie"]
    assert kept.startswith("__Host-changeover=") and "Secure" in kept and "Path=/;" in kept and "Domain" not in kept
    both = f"{sessions.COOKIE}=x; {kept.partition(';')[0]}"  # one that another host of the domain set changes nothing
    assert Browser(api).get("/", headers={"Cookie": both}).status_code == 200
    assert Browser(api).get("/", headers={"Cookie": f"{sessions.COOKIE}=x"}).status_code == 303


def test_a_visit_ends_with_its_token_with_its_time_and_by_leaving(api: Served) -> None:
    token, shown = tokens.create(api.store, "ci", ("read",), actor="anna")
    browser = Browser(api, shown)
    browser.see("/")
    tokens.revoke(api.store, token.id)
    assert browser.get("/").status_code == 303
    browser = inside(api)
    api.clock.now += sessions.LASTS - 1
    browser.see("/")
    api.clock.now += 2
    assert browser.get("/").status_code == 303
    browser = inside(api)
    key = str(browser.http.cookies[sessions.COOKIE])
    word = re.findall(r'action="/logout"><input type="hidden" name="word" value="(\w+)"', browser.see("/"))[0]
    assert browser.post("/logout", word=word).status_code == 303
    assert sessions.COOKIE not in browser.http.cookies
    assert browser.get("/", headers={"Cookie": f"{sessions.COOKIE}={key}"}).status_code == 303


def test_a_link_lets_one_browser_in_once(api: Served) -> None:
    token, _ = tokens.create(api.store, "demo", ("read",), actor="anna")
    where = f"/login?link={sessions.link(api.store, token)}"
    browser, other = Browser(api), Browser(api)
    assert "See the fleet" in other.see(where)  # whoever only looks where it leads does not use it up
    assert browser.press(where).headers["location"] == "/"
    browser.see("/")
    assert other.press(where).status_code == 401
    assert browser.press(where).status_code == 401
    browser.see("/")
    late = sessions.link(api.store, token)
    api.clock.now += sessions.LINK_LASTS + 1
    assert other.post("/login", link=late).status_code == 401
    used = sessions.link(api.store, token)
    assert other.get("/", headers={"Cookie": f"{sessions.COOKIE}={used}"}).status_code == 303, "a link is no cookie"


def test_a_link_makes_a_visitor_somebody_else_only_when_they_say_so_and_is_used_up_then(api: Served) -> None:
    browser = inside(api, "read", "run")
    key = str(browser.http.cookies[sessions.COOKIE])
    other, _ = tokens.create(api.store, "mallory", ("read",), actor="mallory")
    link = sessions.link(api.store, other)
    asked = browser.see(f"/login?link={link}")
    assert "data-at-once" not in asked and "You are here as <b>ci</b>" in asked
    # Led here by another site it sends no cookie; but the script of the page sends the form, and that one with it.
    unasked = browser.post("/login", link=link)
    assert (unasked.status_code, "set-cookie" in unasked.headers) == (200, False)
    assert "You are here as <b>ci</b>" in unasked.text and "data-at-once" not in unasked.text
    assert browser.http.cookies[sessions.COOKIE] == key
    assert browser.press(f"/login?link={link}").status_code == 303
    assert 'who" title="May read">mallory<' in browser.see("/")
    assert Browser(api).get("/", headers={"Cookie": f"{sessions.COOKIE}={key}"}).status_code == 303
    assert Browser(api).press(f"/login?link={link}").status_code == 401


def test_what_another_site_sends_does_nothing(api: Served) -> None:
    browser, id = inside(api), api.applied()
    form = browser.form(f"/rollouts/{id}/pause")
    strange: list[dict[str, str]] = [
        {},
        {"Origin": "https://evil.test"},
        {"Origin": "null"},
        {"Origin": api.url, "Sec-Fetch-Site": "cross-site"},
        {"Origin": api.url, "Sec-Fetch-Site": "same-site"},
    ]
    for headers in strange:
        assert browser.http.post(f"/rollouts/{id}/pause", data=form, headers=headers).status_code == 403
        assert browser.http.post("/login", data={"token": api.token()}, headers=headers).status_code == 403
    other = inside(api)
    assert other.post(f"/rollouts/{id}/pause", **form).status_code == 403, "the form of another visit"
    assert browser.post(f"/rollouts/{id}/pause", **{**form, "word": ""}).status_code == 403
    assert operations.find(api.store, id).state == "running"


def test_nothing_on_a_page_runs_but_our_own_script(api: Served) -> None:
    browser, id = inside(api), api.applied()
    for path in ("/", f"/rollouts/{id}", f"/rollouts/{id}/servers/web-1", f"/rollouts/{id}/pause", "/none", "/login"):
        answer = browser.get(path, headers={"Accept": "text/html"})
        rules = answer.headers["content-security-policy"]
        assert "default-src 'none'" in rules and "frame-ancestors 'none'" in rules and "unsafe" not in rules
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert not re.search(r"<script(?! src=)|\son\w+=|\sstyle=|<style", answer.text), path
    for name in assets():
        assert name in browser.see("/")
        kept = browser.get(f"/page/{name}")
        assert (kept.status_code, "immutable" in kept.headers["cache-control"]) == (200, True)
    assert browser.get("/page/page.css").status_code == 404


def test_names_and_reasons_are_shown_as_they_are_and_never_run(api: Served) -> None:
    browser, id = inside(api), api.applied()
    bad = "<script>alert(1)</script>\"'&"
    hold(api, id, "web-1", why=bad)
    api.store.note(
        id, Entry(event="Held", actor=bad, detail={"why": bad, "differences": [bad], bad: bad}), server="web-1"
    )
    operations.pause(api.store, id, actor="x", why=bad)
    for path in (
        "/",
        f"/rollouts/{id}",
        f"/rollouts/{id}/top",
        f"/rollouts/{id}/servers/web-1",
        f"/rollouts/{id}/resume",
    ):
        text = browser.see(path)
        assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in browser.see(f"/rollouts/{id}")


def test_pages_that_are_not_there_say_so_and_the_apis_addresses_stay_the_apis(api: Served) -> None:
    browser, id = inside(api), api.applied()
    for path in (
        "/none",
        "/rollouts/r9",
        f"/rollouts/{id}/servers/web-9",
        f"/rollouts/{id}/explode",
        "/rollouts/%3Cb%3E",
    ):
        answer = browser.get(path, headers={"Accept": "text/html"})
        assert (answer.status_code, answer.headers["content-type"]) == (404, "text/html; charset=utf-8"), path
        assert "<h1>" in answer.text
    for path in ("/v1/none", "/none"):
        assert browser.get(path).headers["content-type"] == "application/problem+json", "as a program can read it"
    assert browser.get("/healthz").json()["ok"]
    assert browser.http.get(f"/v1/rollouts/{id}").status_code == 401, "a cookie is no token for programs"


def test_where_redis_is_is_not_told_to_everybody(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(_key: str) -> None:
        raise Unreachable("Redis at 10.0.0.5:6379 does not answer")

    monkeypatch.setattr(api.store, "session", away)
    answer = Browser(api).get("/", headers={"Cookie": f"{sessions.COOKIE}=x"})
    assert answer.status_code == 503 and "10.0.0.5" not in answer.text
    assert "every site goes on serving" in answer.text and "retry-after" in answer.headers


# -- what they see -----------------------------------------------------------------------------------------------------


def test_nothing_is_shown_of_fleets_that_the_token_may_not_see(api: Served) -> None:
    shop, blog = api.applied(), api.applied(BLOG)
    hold(api, blog, "blog-1")
    browser = inside(api, fleets=("shop",))
    listed = browser.see("/")
    assert shop in listed and blog not in listed and "blog" not in listed and "held" not in listed
    for path in ("", "/top", "/live", "/report", "/timeline", "/pause", "/servers/blog-1"):
        answer = browser.get(f"/rollouts/{blog}{path}")
        assert answer.status_code == 404 and "blog-1 " not in answer.text, path


def test_the_page_says_first_whether_users_are_hurt_and_what_needs_a_person(api: Served) -> None:
    browser, id = inside(api), api.applied()
    assert "Nothing needs you" in browser.see("/") and "Nothing needs you" in browser.see(f"/rollouts/{id}")
    assert "no balancer has counted them yet" in browser.see(f"/rollouts/{id}")
    api.store.put_users(id, Users(requests=12000, failed=0, at=api.clock.now))
    assert "failed user requests, of 12,000" in browser.see(f"/rollouts/{id}")
    hold(api, id, "web-1", why="the quota of processors is spent")
    api.clock.now += 5
    api.api.pace.rate = 1e6
    text = wait_for(browser, f"/rollouts/{id}", "web-1 is held at smoke_test")
    for said in (
        "the quota of processors is spent",
        "web-1 serves",
        f"changeover retry {id} --server web-1",
        "No user request failed",
    ):
        assert said in text
    api.clock.now += 60
    newer = api.applied(BLOG)
    listed = browser.see("/")
    assert "1 rollout needs you" in listed and listed.index(id) < listed.index(newer), "what needs somebody is first"
    api.store.put_users(id, Users(requests=12000, failed=7, at=api.clock.now))
    assert "<h1>7 user requests failed</h1>" in browser.see(f"/rollouts/{id}")
    assert "<h1>7 user requests failed</h1>" in browser.see("/")


def wait_for(browser: Browser, path: str, words: str) -> str:
    """A page is of the last second."""
    end = time.monotonic() + 20
    while words not in (text := browser.see(path)):
        assert time.monotonic() < end, text
        time.sleep(0.05)
    return text


def test_an_ailing_server_and_a_freeze_are_told_with_the_next_command(api: Served) -> None:
    id = api.applied()
    upgraded(api.store, id, "web-1")
    u = row(api.store, id, "web-1").upgrade
    for n in range(4):
        u = u.after(Ailed(why="web-1.g2 is down in web", at=api.clock.now + 2 * n, ill=True))
    put(api.store, id, "web-1", u)
    operations.freeze(api.store, actor="anna", reason="Black Friday")
    browser = inside(api)
    text = browser.see(f"/rollouts/{id}")
    assert "The new server of web-1 ails" in text and "web-1.g2 is down in web" in text
    assert "Everything is frozen" in text and "Black Friday" in text and 'href="/unfreeze"' in text
    assert "2 things need you" in text


def test_two_thousand_servers_are_one_page_of_less_than_150_kb(api: Served) -> None:
    names = "\n".join(f"  - {{name: web-{n:04}.prod-eu, pools: [web]}}" for n in range(2000))
    id = api.applied(
        re.sub(r"(?s)  - \{name: web-1.*?web-3[^\n]*", names, FLEET).replace("[1, rest]", "[20, 500, rest]")
    )
    browser = inside(api)
    answer = browser.get(f"/rollouts/{id}", headers={"Accept-Encoding": "identity"})
    assert answer.status_code == 200
    assert len(answer.content) < 150_000, len(answer.content)
    assert len(re.findall(r'<a class="\w+" href="web-\d{4}\.prod-eu">', answer.text)) == 2000
    assert len(browser.get(f"/rollouts/{id}/top").content) < 10_000


def test_a_servers_page_tells_its_story_with_the_evidence_and_leads_to_its_tasks(api: Served) -> None:
    id = api.applied()
    at_step(api.store, id, "web-1", "swap")
    seen = {
        "answers": [
            {
                "request": "GET /health",
                "pool": "web",
                "status": 503,
                "latency": 0.012,
                "passed": False,
                "why": "wanted 200",
            }
        ],
        "balancer": [{"name": "web-1.g2", "pool": "web", "state": "joining", "detail": "DOWN INI"}],
        "differences": ["- old", "+ new"],
        "disk": 3 * 2**30,
    }
    api.store.note(
        id, Entry(event="Waits", actor="w1", detail={"step": "swap", "why": "joining", **seen}), server="web-1"
    )
    text = inside(api).see(f"/rollouts/{id}/servers/web-1")
    for said in (
        "GET /health  pool web → 503 in 12 ms",
        "wanted 200",
        "web-1.g2 in web is ",
        "DOWN INI",
        "+ new",
        "3 GiB",
    ):
        assert said in text, said
    assert "web-1 serves, and its new server joins it" in text
    link = re.findall(rf'href="({re.escape(FLOWER)}/tasks[^"]*)"', text)
    assert unquote(link[0]).endswith(f"{id}:web-1:")
    assert "its turn has not come" in inside(api).see(f"/rollouts/{id}/servers/web-3")


def test_the_timeline_draws_every_server_whether_few_or_thousands(api: Served) -> None:
    id, browser = api.applied(), inside(api)
    assert "Timeline</a>" in browser.see(f"/rollouts/{id}")
    for n, server in enumerate(("web-1", "web-2", "web-3")):
        for event, detail in (("Began", {"step": "swap"}), ("Finished", {"step": "swap"})):
            api.clock.now += 10 * (n + 1)
            api.store.note(id, Entry(event=event, actor="w1", detail=detail), server=server)
    operations.pause(api.store, id, actor="x", why="a <look>")
    text = browser.see(f"/rollouts/{id}/timeline")
    (strokes,) = re.findall(r'<path class="s4" stroke-width="14.04" d="([^"]*)"/>', text)
    starts = [float(each) for each in re.findall(r"M([\d.]+) ", strokes)]
    assert len(starts) == 3 and starts == sorted(starts)
    assert f'href="/rollouts/{id}/servers/web-3"' in text and "paused: a &lt;look&gt;" in text
    names = "\n".join(f"  - {{name: w{n}, pools: [web]}}" for n in range(2000))
    many = api.applied(re.sub(r"(?s)  - \{name: web-1.*?web-3[^\n]*", names, FLEET))
    for n in range(0, 2000, 40):
        api.store.note(many, Entry(event="Began", actor="w1", detail={"step": "provision"}), server=f"w{n}")
    drawn = browser.see(f"/rollouts/{many}/timeline")
    assert len(re.findall(r"M[\d.]+ [\d.]+h", drawn)) == 50 and "/servers/w40" not in drawn


def test_the_report_is_a_file_that_runs_nothing(api: Served) -> None:
    id = api.applied()
    answer = inside(api).get(f"/rollouts/{id}/report")
    assert answer.status_code == 200 and answer.headers["content-disposition"] == f'attachment; filename="{id}.html"'
    assert answer.headers["content-security-policy"].startswith("sandbox")
    assert "<!doctype html>" in answer.text


def test_older_rollouts_are_on_further_pages_and_open_ones_first(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.web.site.SHOWN", 2)
    ids = []
    for n in range(3):
        ids.append(api.applied(FLEET.replace("web-", f"a{n}-").replace("[web]", "[web]")))
        api.clock.now += 10
    operations.abort(api.store, ids[2], actor="x")
    r = operations.find(api.store, ids[2])
    api.store.change(r, replace(r, state="aborted", ended_at=api.clock.now), entry=Entry(event="aborted", actor="x"))
    browser = inside(api)
    first, second = browser.see("/"), browser.see("/?from=2")
    assert [id in first for id in ids] == [True, True, False] and 'href="/?from=2"' in first
    assert [id in second for id in ids] == [False, False, True] and "Older ones" not in second


# -- what they may do --------------------------------------------------------------------------------------------------


def buttons(text: str) -> set[str]:
    found = re.findall(r'<a class="button[^"]*" href="/(?:rollouts/[^/"]+/)?([a-z]+)(?:\?[^"]*)?">', text)
    return set(found) - {"timeline"}


def test_there_are_buttons_for_what_the_token_may_and_the_state_allows(api: Served) -> None:
    id = api.applied()
    hold(api, id, "web-1")
    assert buttons(inside(api, "read").see(f"/rollouts/{id}")) == set()
    assert buttons(inside(api, "read").see("/")) == set()
    runner = inside(api, "read", "run")
    assert buttons(runner.see(f"/rollouts/{id}")) == {"pause", "abort", "rollback", "retry"}
    assert buttons(runner.see(f"/rollouts/{id}/servers/web-1")) == {"retry", "rollback"}
    assert buttons(runner.see(f"/rollouts/{id}/servers/web-3")) == set()
    assert buttons(runner.see("/")) == set()
    assert buttons(inside(api).see("/")) == {"freeze"}
    assert buttons(inside(api, fleets=("shop",)).see("/")) == set(), "a freeze concerns every fleet"
    operations.pause(api.store, id, actor="x")
    assert buttons(runner.see(f"/rollouts/{id}")) == {"resume", "abort", "rollback", "retry"}


@pytest.mark.parametrize("verb", ["pause", "resume", "abort", "rollback", "retry"])
def test_a_token_that_may_only_read_decides_nothing(api: Served, verb: str) -> None:
    id = api.applied()
    reader = inside(api, "read")
    assert reader.get(f"/rollouts/{id}/{verb}").status_code == 403
    word = re.findall(r'name="word" value="(\w+)"', reader.see("/"))[0]
    assert reader.post(f"/rollouts/{id}/{verb}", word=word, version="1").status_code == 403
    assert reader.post("/freeze", word=word).status_code == 403
    assert operations.find(api.store, id).version == operations.find(api.store, id).version
    assert operations.find(api.store, id).state == "running" and api.store.frozen() is None


def test_each_button_asks_and_then_does_it_in_the_name_of_the_token(api: Served) -> None:
    id, browser = api.applied(), inside(api)
    asked = browser.see(f"/rollouts/{id}/pause")
    assert "Pause shop" in asked and "Nothing new begins" in asked
    done = browser.press(f"/rollouts/{id}/pause", why="too many tickets")
    assert (done.status_code, done.headers["location"]) == (303, f"/rollouts/{id}?did=pause")
    r = operations.find(api.store, id)
    assert (r.state, r.why) == ("paused", "too many tickets")
    assert api.store.events(id)[-1].actor.startswith("ci (t")
    text = browser.see(done.headers["location"])
    assert "Paused: nothing new begins" in text and "The rollout is paused" in text
    browser.press(f"/rollouts/{id}/resume")
    assert operations.find(api.store, id).state == "running"
    hold(api, id, "web-1")
    browser.press(f"/rollouts/{id}/retry?server=web-1")
    assert row(api.store, id, "web-1").upgrade.state == "waiting"
    done = browser.press(f"/rollouts/{id}/rollback?server=web-1", why="odd")
    assert done.headers["location"] == f"/rollouts/{id}/servers/web-1?did=rollback"
    assert row(api.store, id, "web-1").upgrade.direction == "undo"
    browser.press(f"/rollouts/{id}/abort")
    assert operations.find(api.store, id).state == "aborting"
    browser.press(f"/rollouts/{id}/rollback")
    assert operations.find(api.store, id).state == "rolling_back"
    browser.press("/freeze", why="enough")
    assert "enough" in (api.store.frozen() or "")
    browser.press("/unfreeze")
    assert api.store.frozen() is None


def test_what_has_moved_since_it_was_looked_at_is_not_decided(api: Served) -> None:
    id, browser = api.applied(), inside(api)
    form = browser.form(f"/rollouts/{id}/abort")
    operations.pause(api.store, id, actor="somebody else")
    late = browser.post(f"/rollouts/{id}/abort", **form)
    assert late.status_code == 412 and "was changed since you looked: it is paused" in late.text
    assert operations.find(api.store, id).state == "paused"
    assert browser.post(f"/rollouts/{id}/abort", word=form["word"]).status_code == 412, "and so if it does not say"
    assert [e.event for e in api.store.events(id)].count("refused") == 1, "its audit log has it, once a minute"
    operations.resume(api.store, id, actor="somebody else")
    hold(api, id, "web-1")
    form = browser.form(f"/rollouts/{id}/rollback?server=web-1")
    operations.retry(api.store, id, ["web-1"], actor="somebody else")
    late = browser.post(f"/rollouts/{id}/rollback", **form)
    assert late.status_code == 412 and "web-1 was changed since you looked" in late.text
    assert row(api.store, id, "web-1").upgrade.direction == "forward"


def test_a_server_that_only_goes_on_can_be_rolled_back_as_it_was_seen(api: Served) -> None:
    id, browser = api.applied(), inside(api)
    at_step(api.store, id, "web-1", "provision")
    form = browser.form(f"/rollouts/{id}/rollback?server=web-1")
    u: Upgrade = row(api.store, id, "web-1").upgrade
    put(api.store, id, "web-1", replace(u, state="running", wait=None))
    assert browser.post(f"/rollouts/{id}/rollback", **form).status_code == 303
    assert row(api.store, id, "web-1").upgrade.direction == "undo"


def test_what_is_refused_is_said_before_and_has_no_button(api: Served) -> None:
    id, browser = api.applied(), inside(api)
    text = browser.see(f"/rollouts/{id}/resume")
    assert "<button" in text  # to leave
    operations.rollback(api.store, id, actor="x")
    text = browser.see(f"/rollouts/{id}/pause")
    assert "nothing to pause" in text and 'name="version"' not in text


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"word=" + b"x" * 9000, "application/x-www-form-urlencoded", 413),
        (b"{}", "application/json", 415),
        (b"%ff=%ff&&&&", "application/x-www-form-urlencoded", 400),
        (b"&".join(b"a%d=1" % n for n in range(40)), "application/x-www-form-urlencoded", 400),
    ],
)
def test_a_form_that_no_browser_sends_is_refused(api: Served, body: bytes, kind: str, status: int) -> None:
    headers = {"Content-Type": kind, "Origin": api.url, "Sec-Fetch-Site": "same-origin"}
    assert Browser(api).http.post("/login", content=body, headers=headers).status_code == status


@pytest.mark.parametrize("number", ["²", "٣", "-1", "1" * 30])
def test_what_is_no_number_is_none_and_a_word_that_is_not_ours_is_refused(api: Served, number: str) -> None:
    id, browser = api.applied(), inside(api)
    assert id in browser.see(f"/?from={number}")
    form = browser.form(f"/rollouts/{id}/pause")
    assert browser.post(f"/rollouts/{id}/pause", **{**form, "version": number}).status_code == 412
    for word in ("é", "x", ""):
        assert browser.post(f"/rollouts/{id}/pause", **{**form, "word": word}).status_code == 403
    assert operations.find(api.store, id).state == "running"


def test_a_token_that_asks_too_often_is_told_so_on_a_page(api: Served) -> None:
    browser = inside(api)
    shown = api.token("read")
    api.api.pace.rate = 0.001
    assert Browser(api, shown).post("/login", token=shown).status_code == 429
    answers = [browser.get("/") for _ in range(3)]
    assert answers[-1].status_code == 429 and "retry-after" in answers[-1].headers and "<h1>" in answers[-1].text


# -- as it happens -----------------------------------------------------------------------------------------------------


def heard(browser: Browser, id: str, *, after: str, number: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    with browser.http.stream("GET", f"/rollouts/{id}/live", headers={"Last-Event-ID": after}) as stream:
        assert stream.status_code == 200, stream.read()
        event: dict[str, Any] = {}
        for line in stream.iter_lines():
            if line.startswith("id: "):
                event["id"] = line[4:]
            elif line.startswith("data: "):
                found.append({**event, **json.loads(line[6:])})
                if len(found) == number:
                    break
    return found


def test_each_change_is_told_once_with_what_its_cell_becomes(api: Served) -> None:
    id, browser = api.applied(), inside(api)
    after = api.store.last_event(id)
    at_step(api.store, id, "web-1", "swap")
    hold(api, id, "web-2")
    upgraded(api.store, id, "web-3")
    operations.pause(api.store, id, actor="x", why="a look")
    told = heard(browser, id, after=after, number=6)
    last = {each.get("server"): each for each in told}
    assert [last[name]["kind"] for name in ("web-1", "web-2", "web-3")] == ["c4", "held", "ok"]
    assert last[None]["says"] == "paused: a look" and "kind" not in last[None]
    again = heard(browser, id, after=told[2]["id"], number=3)
    assert again == told[3:]


def test_a_stream_ends_when_its_visit_does(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "CHECKED_EVERY", 0.05)
    id = api.applied()
    token, shown = tokens.create(api.store, "ci", ("read",), actor="anna")
    browser = Browser(api, shown)
    with browser.http.stream("GET", f"/rollouts/{id}/live", timeout=30) as stream:
        tokens.revoke(api.store, token.id)
        stream.read()  # to its end
    assert browser.get(f"/rollouts/{id}/live").status_code == 401


def test_every_cell_that_there_can_be_has_a_colour_and_words() -> None:
    css = next(body for kind, body in assets().values() if kind == "text/css").decode()
    for kind in telling.KINDS:
        assert re.search(rf"\.{kind}\b[^{{]*{{[^}}]*--k:", css), kind


def test_a_wave_that_waits_for_a_yes_is_asked_about_first_of_whoever_may_give_it(api: Served) -> None:
    id = api.applied(FLEET + "  approvals: [{before: 2, by: [ci]}]\n")
    r = operations.find(api.store, id)
    waits = replace(r, wave=1, state="awaiting_approval", why="wave 2 waits to be approved", asked_at=api.clock.now)
    assert api.store.change(r, waits, entry=Entry(event="asks", actor="x"))
    runner = inside(api, "read", "run")
    assert "Wave 2 waits for your approval" in runner.see(f"/rollouts/{id}")
    assert (
        "approve" not in buttons(runner.see(f"/rollouts/{id}"))
        and runner.get(f"/rollouts/{id}/approve").status_code == 403
    )
    browser = inside(api, "read", "approve")
    assert "wave 2 waits to be approved" in browser.see("/")
    assert buttons(browser.see(f"/rollouts/{id}")) == {"approve"}
    assert browser.press(f"/rollouts/{id}/approve").status_code == 303
    r = operations.find(api.store, id)
    assert (r.state, r.approved_by, r.approved) == ("running", ("ci",), 1)


def test_a_bake_can_be_ended(api: Served) -> None:
    id = api.applied()
    r = operations.find(api.store, id)
    baking = replace(r, state="baking", bake_until=api.clock.now + 600)
    assert api.store.change(r, baking, entry=Entry(event="baking", actor="x"))
    browser = inside(api, "read", "run")
    assert "promote" in buttons(browser.see(f"/rollouts/{id}"))
    browser.press(f"/rollouts/{id}/promote")
    assert operations.find(api.store, id).bake_until == api.clock.now
