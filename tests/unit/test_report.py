"""The page shows what the document says, and nothing that a document says can act in a reader's browser."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.report.certificate import Observed, Orders, Sessions, certify
from orchestrator.report.document import dump, read
from orchestrator.report.html import duration, render, safe_link, write

STEPS = ("create_image", "provision", "poll_readiness", "smoke_test", "swap", "drain_old")
VOID = {"meta", "link", "br", "img", "input", "hr"}
HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(1)>' onload='alert(1)"


class Page(HTMLParser):
    """What a browser would see. Raises AssertionError for a tag that is not closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.text += data


def document(**changes: Any) -> dict[str, Any]:
    web = {
        "name": "web-001",
        "outcome": "upgraded",
        "wave": 1,
        "before": "64 MiB",
        "after": "128 MiB",
        "steps": [{"step": step, "start": 1000 + n, "end": 1001 + n} for n, step in enumerate(STEPS)],
    }
    bad = {
        "name": "web-002",
        "outcome": "failed",
        "reason": "GET /health answered 503; web-002 still serves",
        "steps": [
            {"step": "smoke_test", "start": 1003, "end": 1004, "outcome": "failed", "note": "503"},
            {"step": "provision", "start": 1004, "end": 1005, "outcome": "undo"},
        ],
    }
    observed = Observed(
        requests=30_000,
        failed=0,
        orders=Orders(sent=70, acknowledged=70, stored=70, repeated=0, lost=0),
        downloads=Sessions(whole=4, cut=0, refused=0),
    )
    return {
        "schema": 1,
        "rollout": "r42",
        "fleet": "shop",
        "state": "succeeded",
        "started": 1000,
        "ended": 1010,
        "steps": list(STEPS),
        "servers": [web, bad],
        "marks": [{"t": 1005, "label": "worker killed", "kind": "fault"}],
        "traffic": [{"t": 999 + n, "count": 300, "failed": int(n == 4), "p99_ms": 5.0} for n in range(12)],
        "certificate": certify(observed).as_dict(),
        "latency": {"before": {"count": 9, "p50_ms": 1.5, "p99_ms": 4.0, "max_ms": 120.0}, "after": {"count": 0}},
        "facts": [{"label": "workers", "value": "2"}],
        "links": [{"label": "Flower", "href": "http://127.0.0.1:5555/tasks"}],
        **changes,
    }


def test_the_page_tells_the_whole_rollout() -> None:
    page = Page(render(document()))
    for told in (
        "Not one request failed",
        "70 orders sent, 70 stored, each once.",
        "1 upgraded, 1 set aside",
        "GET /health answered 503; web-002 still serves",
        "worker killed",
        "smoke test: failed, 1 s. 503",
        "64 MiB",
        "120 ms",
    ):
        assert told in page.text


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    page = Page(render(document()))
    assert not {"script", "img", "link", "iframe", "object", "embed", "form"} & set(page.tags)
    assert [value for name, value in page.attributes if name in ("href", "src")] == ["http://127.0.0.1:5555/tasks"]
    assert "@import" not in render(document())


def test_hostile_names_are_only_ever_text() -> None:
    said = document(
        rollout=HOSTILE,
        fleet=HOSTILE,
        state=HOSTILE,
        summary=HOSTILE,
        steps=[HOSTILE],
        servers=[
            {
                **dict.fromkeys(("name", "pool", "reason", "before", "after"), HOSTILE),
                "outcome": "failed",
                "steps": [{"step": HOSTILE, "start": 1000, "end": 1001, "note": HOSTILE}],
            }
        ],
        marks=[{"t": 1001, "label": HOSTILE}],
        latency={HOSTILE: {"count": 1}},
        facts=[{"label": HOSTILE, "value": HOSTILE}],
        links=[{"label": HOSTILE, "href": HOSTILE}],
    )
    page = Page(render(said))
    assert not {"script", "img", "a"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.text.count(HOSTILE) > 10


@given(st.text(), st.text(alphabet="<>\"'&={}%/ \n\0abc", min_size=1))
@settings(max_examples=30, deadline=None)
def test_any_name_and_reason_give_a_page_of_the_same_shape(name: str, reason: str) -> None:
    said, plain = (
        render(document(servers=[{"name": one, "outcome": "held", "reason": why}]))
        for one, why in ((name, reason), ("a", "b"))
    )
    assert Page(said).tags == Page(plain).tags


@pytest.mark.parametrize("href", ["https://a/b?c=d#e", "http://127.0.0.1:1/", "/var/log/x", "./logs", "logs/w1.log"])
def test_a_plain_link_can_be_followed(href: str) -> None:
    assert safe_link(href)


@pytest.mark.parametrize(
    "href", ["javascript:alert(1)", "JAVASCRIPT:x", " javascript:x", "data:text/html,x", "a\nb", ""]
)
def test_a_link_that_could_act_is_only_text(href: str) -> None:
    assert not safe_link(href)


def test_a_failure_is_the_headline_and_is_seen_in_the_traffic() -> None:
    told = certify(Observed(requests=100, failed=2)).as_dict()
    page = Page(render(document(certificate=told)))
    assert "2 requests failed" in page.text
    assert "Not one request failed" not in page.text
    assert "300 requests, 1 failed" in page.text


def test_a_rollout_nobody_watched_claims_nothing() -> None:
    page = Page(render(document(certificate=None, traffic=[], latency={}, marks=[], facts=[], links=[])))
    assert "Nobody counted the requests" in page.text
    assert "Not one request failed" not in page.text


def test_a_rollout_of_no_time_and_no_servers_still_has_a_page() -> None:
    assert "no servers" in Page(render(document(started=1000, ended=1000, servers=[], marks=[], traffic=[]))).text


def test_a_thousand_servers_have_a_row_each() -> None:
    steps = [{"step": step, "start": 1000, "end": 1001} for step in STEPS]
    page = Page(
        render(document(servers=[{"name": f"s{n}", "outcome": "upgraded", "steps": steps} for n in range(1000)]))
    )
    assert page.tags.count("rect") >= 6000


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"started": float("nan")}, "started"),
        ({"surprise": 1}, "surprise"),
        ({"ended": 1}, "ends before it begins"),
        ({"servers": [{"name": "a", "outcome": "lost"}]}, "servers.0.outcome"),
        ({"steps": ["swap"]}, "create_image"),
        ({"traffic": [{"t": 1, "count": -1, "failed": 0}]}, "traffic.0.count"),
    ],
)
def test_a_document_that_is_not_right_is_refused_with_the_place(changes: dict[str, Any], place: str) -> None:
    with pytest.raises(ValueError, match="not right") as refused:
        render(document(**changes))
    assert place in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_written_reads_back_as_the_same_report(tmp_path: Path) -> None:
    page, data = write(document(), tmp_path / "out")
    assert page.read_text() == render(document())
    assert read(json.loads(data.read_text())) == read(document())
    assert dump(read(document())) == data.read_text()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "report.json"]


@pytest.mark.parametrize(
    ("seconds", "told"), [(0, "0 s"), (0.24, "0.24 s"), (10, "10 s"), (59.6, "1:00"), (65, "1:05"), (7380, "2:03:00")]
)
def test_durations_read_like_a_clock(seconds: float, told: str) -> None:
    assert duration(seconds) == told
