"""One trace for each rollout: from the request that began it through every step of every server.

Its id is made of the rollout's, so that nothing has to be handed on: a worker that dies, a message that is sent again
and a coordinator that was never asked all write to the same trace. Every log line of a step names it. Spans go where
the standard variables of OpenTelemetry say (`OTEL_EXPORTER_OTLP_ENDPOINT` and its like), with `changeover[otel]`.
"""

from __future__ import annotations

import contextvars
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Tracer

log = structlog.get_logger(__name__)
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_root: contextvars.ContextVar[str] = contextvars.ContextVar("rollout whose first span begins", default="")
_tracer: Tracer | None = None


def trace_id(rollout: str) -> str:
    """Of its trace: 32 hexadecimal digits, as W3C Trace Context writes them."""
    return hashlib.sha256(f"changeover trace {rollout}".encode()).hexdigest()[:32]


def _first_span(rollout: str) -> int:
    return int(hashlib.sha256(f"changeover first span {rollout}".encode()).hexdigest()[:16], 16)


def configure(process: str, *, exporter: SpanExporter | None = None) -> None:
    """For a process of its own, once. Without an endpoint nothing is sent, and without the extra it is said in the log.
    `exporter`: in place of the one that the environment names."""
    global _tracer  # noqa: PLW0603 # one of a process, as OpenTelemetry has it
    _tracer = None
    if exporter is None and not any(os.environ.get(name) for name in ENDPOINTS):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
    except ImportError as error:
        log.warning("traces are not sent", why=f"pip install 'changeover[otel]': {error}")
        return

    class Ids(RandomIdGenerator):
        """Those of a rollout's first span are known beforehand to whoever writes the others."""

        def generate_trace_id(self) -> int:
            return int(trace_id(_root.get()), 16) if _root.get() else super().generate_trace_id()

        def generate_span_id(self) -> int:
            return _first_span(_root.get()) if _root.get() else super().generate_span_id()

    known = Resource.create({"service.name": "changeover", "service.instance.id": process})
    provider = TracerProvider(resource=known, id_generator=Ids())
    if exporter is not None:
        provider.add_span_processor(SimpleSpanProcessor(exporter))
    else:
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracer = provider.get_tracer("changeover")


@contextmanager
def beginning(rollout: str, **about: str) -> Iterator[None]:
    """Round what begins a rollout: the first span of its trace."""
    with structlog.contextvars.bound_contextvars(rollout=rollout, trace_id=trace_id(rollout)):
        if _tracer is None:
            yield
            return
        from opentelemetry.context import Context

        known = _root.set(rollout)
        try:
            span = _tracer.start_span("apply", context=Context(), attributes=_named(rollout, about))
        finally:
            _root.reset(known)
        with _ending(span):
            yield


@contextmanager
def step(name: str, *, rollout: str, server: str, epoch: int) -> Iterator[None]:
    """Round one turn of a step. `name` is the task's."""
    bound = {"rollout": rollout, "server": server, "step": name, "epoch": epoch, "trace_id": trace_id(rollout)}
    with structlog.contextvars.bound_contextvars(**bound):
        if _tracer is None:
            yield
            return
        from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

        first = SpanContext(
            trace_id=int(trace_id(rollout), 16),
            span_id=_first_span(rollout),
            is_remote=True,
            trace_flags=TraceFlags(TraceFlags.SAMPLED),
        )
        span = _tracer.start_span(
            name,
            context=set_span_in_context(NonRecordingSpan(first)),
            attributes={**_named(rollout, {"server": server}), "changeover.epoch": epoch},
        )
        with _ending(span):
            yield


def _named(rollout: str, about: Mapping[str, str]) -> dict[str, str]:
    return {f"changeover.{name}": value for name, value in {"rollout": rollout, **about}.items()}


@contextmanager
def _ending(span: Any) -> Iterator[None]:
    """What an exception says may hold a secret: only its kind is written."""
    from opentelemetry.trace import Status, StatusCode

    try:
        yield
    except BaseException as error:
        span.set_status(Status(StatusCode.ERROR, type(error).__name__))
        raise
    finally:
        span.end()
