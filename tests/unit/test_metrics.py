"""What Prometheus is told, and what is made of it: alarms and the dashboard."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.domain.budget import Limit
from orchestrator.domain.steps import STEPS
from orchestrator.metrics import Metrics
from orchestrator.store import Users
from orchestrator.store.memory import MemoryStore
from tests.support.runner import PORT, running

DEPLOY = Path(__file__).parents[2] / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARD = DEPLOY / "grafana" / "changeover.json"
Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


def told(metrics: Metrics) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def test_a_rollout_is_told_while_it_runs_and_when_it_is_over() -> None:
    with running(["web-1", "web-2"], retain={"old_servers": "60s"}) as r:
        metrics = Metrics(r.store)
        r.turn()
        found = told(metrics)
        assert value(found, "changeover_rollouts", fleet="shop", state="running") == 1
        assert sum(n for (name, _), n in found.items() if name == "changeover_servers") == 2
        r.finish()
        r.store.put_users(r.rollout, Users(requests=700, failed=1, at=r.clock.now))
        found = told(metrics)
        assert value(found, "changeover_rollouts", fleet="shop", state="succeeded") == 1
        assert value(found, "changeover_servers", fleet="shop", rollout=r.rollout, state="upgraded") == 2
        assert value(found, "changeover_user_requests_total", fleet="shop", rollout=r.rollout) == 700
        assert value(found, "changeover_user_requests_failed_total", fleet="shop", rollout=r.rollout) == 1
        for step in STEPS:
            assert value(found, "changeover_step_seconds_count", step=step, outcome="done") == 2
        assert value(found, "changeover_step_seconds_sum", step="poll_readiness", outcome="done") > 5
        assert value(found, "changeover_step_seconds_bucket", step="poll_readiness", outcome="done", le="1.0") == 0
        assert value(found, "changeover_step_seconds_bucket", step="poll_readiness", outcome="done", le="+Inf") == 2
        assert value(found, "changeover_waits_total", step="create_image") == 2


def test_each_process_tells_the_same_and_reads_a_log_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(["web-1", "web-2"], retain={"old_servers": "1s"}) as r:
        early = Metrics(r.store)
        told(early)
        r.finish()
        r.until(lambda: not r.store.open_rollouts())
        assert told(early) == told(Metrics(r.store))
        monkeypatch.setattr(MemoryStore, "events", lambda *_, **__: pytest.fail("the log of a closed rollout again"))
        assert value(told(early), "changeover_step_seconds_count", step="retire", outcome="done") == 2


def test_what_fails_and_what_is_lost_is_counted() -> None:
    with running(["web-1", "web-2"], rollout={"waves": ["rest"], "bake": "0s", "budget": {"before_swap": 1}}) as r:
        r.until(lambda: len(r.alive("target")) == 2)
        r.sites.fails(r.cloud.things[r.alive("target")[0]].view.address, PORT)
        r.finish()
        found = told(Metrics(r.store))
        assert value(found, "changeover_server_failures_total", fleet="shop", swap="before") == 1
        assert value(found, "changeover_server_failures_total", fleet="shop", swap="after") == 0
        assert value(found, "changeover_servers", fleet="shop", rollout=r.rollout, state="failed") == 1
        assert value(found, "changeover_step_seconds_count", step="provision", outcome="undo") == 1


def test_an_api_that_is_asked_too_often_shows() -> None:
    with running(["web-1"]) as r:
        limit = Limit(rate=10.0, burst=2.0)
        for _ in range(5):
            r.store.spend("aws eu-west-1 ec2", limit, patience=9.0)
        found = told(Metrics(r.store))
        assert value(found, "changeover_api_calls_total", api="aws eu-west-1 ec2") == 5
        assert value(found, "changeover_api_waiting", api="aws eu-west-1 ec2") == 3
        r.store.refused("aws eu-west-1 ec2", limit)
        found = told(Metrics(r.store))
        assert value(found, "changeover_api_refused_total", api="aws eu-west-1 ec2") == 1
        assert value(found, "changeover_api_rate", api="aws eu-west-1 ec2") == 5


def test_time_that_nobody_comes_is_told() -> None:
    with running(["web-1"]) as r:
        r.turn()
        before = value(told(Metrics(r.store)), "changeover_due_lag_seconds")
        r.clock.now += 3600
        found = told(Metrics(r.store))
        assert before == 0 and value(found, "changeover_due_lag_seconds") > 3500
        r.store.freeze(True, actor="anna")
        assert value(told(Metrics(r.store)), "changeover_frozen") == 1


# -- what is shipped ---------------------------------------------------------------------------------------------------


def names() -> set[str]:
    """Of everything that may be told."""
    with running(["web-1"]) as r:
        r.store.put_users(r.rollout, Users(requests=1, failed=0, at=r.clock.now))
        r.store.spend("api", Limit(rate=1.0, burst=1.0), patience=0.0)
        r.finish()
        text = Metrics(r.store).text().decode()
    return {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}


@pytest.mark.parametrize("file", [ALERTS, DASHBOARD], ids=lambda file: file.name)
def test_alarms_and_dashboard_ask_for_what_is_told(file: Path) -> None:
    asked = set(re.findall(r"\bchangeover_[a-z_]+", file.read_text()))
    plain = {re.sub("_(bucket|sum|count)$", "", name) for name in asked}
    assert plain and plain <= names()


def test_the_dashboard_is_one_that_grafana_reads() -> None:
    board = json.loads(DASHBOARD.read_text())
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids)) and board["schemaVersion"] >= 39
    assert all(panel["targets"] and panel["datasource"]["uid"] == "${source}" for panel in board["panels"])


@pytest.mark.debian
def test_prometheus_itself_reads_the_alarms_and_the_metrics() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs Debian's promtool")
    for words in (["check", "rules", str(ALERTS)], ["test", "rules", str(ALERTS.with_name("alerts_test.yml"))]):
        subprocess.run([promtool, *words], check=True, capture_output=True, timeout=60)
    with running(["web-1"]) as r:
        r.finish()
        text = Metrics(r.store).text()
    checked = subprocess.run([promtool, "check", "metrics"], check=False, input=text, capture_output=True, timeout=60)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")
