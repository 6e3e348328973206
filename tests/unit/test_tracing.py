"""One trace for each rollout, whoever writes to it, and log lines that name it."""

from __future__ import annotations

import builtins
import json
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.testing import capture_logs

import tasks
from orchestrator import fleet_file, operations, tracing
from orchestrator.messaging import make_app
from orchestrator.settings import Settings
from orchestrator.store.memory import MemoryStore
from tasks.step import Ran
from tests.unit.test_operations import FLEET, World


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    kept = InMemorySpanExporter()
    tracing.configure("test", exporter=kept)
    yield kept
    tracing.configure("test")


def test_every_step_of_a_rollout_is_below_the_request_that_began_it(spans: InMemorySpanExporter) -> None:
    store = MemoryStore()
    made = operations.apply(
        store, World(store), fleet_file.read(FLEET, name="fleet"), agreed=None, actor="anna", id="r1"
    )
    with tracing.step("tasks.swap", rollout=made.id, server="web-1", epoch=3):
        bound = structlog.contextvars.get_contextvars()
    with pytest.raises(ValueError, match="hunter2"), tracing.step("tasks.swap", rollout="r1", server="web-2", epoch=4):
        raise ValueError("hunter2")
    first, one, other = spans.get_finished_spans()
    assert (first.name, first.parent) == ("apply", None)
    assert {format(s.context.trace_id, "032x") for s in (first, one, other)} == {tracing.trace_id("r1")}
    assert one.parent is not None and one.parent.span_id == first.context.span_id
    assert one.context.span_id != other.context.span_id
    assert one.attributes == {"changeover.rollout": "r1", "changeover.server": "web-1", "changeover.epoch": 3}
    assert other.status.description == "ValueError" and not other.events, "its words may hold a secret"
    assert bound["trace_id"] == tracing.trace_id("r1") and (bound["server"], bound["epoch"]) == ("web-1", 3)
    assert structlog.contextvars.get_contextvars() == {}


def test_a_worker_s_step_is_a_span_and_another_rollout_is_another_trace(
    spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "run", lambda *_args, **_said: Ran(result={"done": 1}, goes_on=True))
    app = make_app(Settings(redis_url="redis://127.0.0.1:1/0"))
    tasks.register(app, None)  # type: ignore[arg-type] # the played journal asks nothing of the world
    app.tasks["tasks.create_image"](rollout="r9", server="web-1", epoch=1)
    (span,) = spans.get_finished_spans()
    assert span.name == "tasks.create_image"
    assert format(span.context.trace_id, "032x") == tracing.trace_id("r9") != tracing.trace_id("r1")


def test_without_the_extra_it_says_so_and_works(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    with capture_logs() as told:
        tracing.configure("test")
    assert "changeover[otel]" in json.dumps(told)
    with tracing.beginning("r1"), tracing.step("tasks.swap", rollout="r1", server="a", epoch=1):
        assert structlog.contextvars.get_contextvars()["step"] == "tasks.swap"
