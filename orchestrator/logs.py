"""One JSON line per change of state, to stderr. Libraries speak from warnings on, in the same form."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

import structlog
from structlog.tracebacks import ExceptionDictTransformer

from orchestrator import secrets, tracing

# Without the values of local variables, which hold URLs with passwords.
_TRACEBACKS = structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False, max_frames=12))


def configure(process: str) -> None:
    """Every line names `process`. For a process of its own; call it once, before anything is logged."""
    secrets.remember_environment()
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        _named(process),
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, _TRACEBACKS, structlog.processors.JSONRenderer(), _without_secrets],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _TRACEBACKS,
                structlog.processors.JSONRenderer(),
                _without_secrets,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    tracing.configure(process)


def _without_secrets(_logger: Any, _method: str, line: Any) -> str | Mapping[str, Any]:
    return secrets.redact_json(line.encode(errors="replace")).decode()


def _named(process: str) -> Any:
    """A context variable would be its thread's alone."""

    def add(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
        event.setdefault("process", process)
        return event

    return add
