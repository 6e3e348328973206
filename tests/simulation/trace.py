"""What has happened, in order: kept as it is, and put into words only for somebody who reads it."""

from __future__ import annotations

from collections import deque
from dataclasses import fields, is_dataclass
from typing import Any

from orchestrator.domain.upgrade import Upgrade
from orchestrator.store import Claim, Row
from tests.simulation.scheduler import START, Scheduler

SHORT = 160


class Trace:
    """Of `last` only so many are kept: what is not kept need not be held."""

    def __init__(self, scheduler: Scheduler, *, last: int | None = None) -> None:
        self._scheduler = scheduler
        self._kept: deque[tuple[float, str, str, tuple[Any, ...]]] = deque(maxlen=last)

    def add(self, what: str, *about: Any) -> None:
        who = self._scheduler.current
        self._kept.append((self._scheduler.now, who.name if who is not None else "-", what, about))

    def lines(self) -> list[str]:
        """Times are seconds since the beginning."""
        return [
            f"{at - START:10.3f} {who:12} {what:24} {' '.join(_short(part) for part in about)}"
            for at, who, what, about in self._kept
        ]


def _short(part: Any) -> str:
    if isinstance(part, tuple):
        return " ".join(_short(each) for each in part)
    if isinstance(part, Claim | Row):
        return "ok"
    if isinstance(part, Upgrade):
        waits = f" until {part.wait.at - START:.1f}" if part.wait is not None else ""
        return f"{part.server} {part.state} {part.direction} {part.step}{waits}: {part.why}"[:SHORT]
    if is_dataclass(part) and not isinstance(part, type):
        told = ("name", "id", "address", "state", "why", "reason", "wave")
        named = {f.name for f in fields(part)}
        words = [f"{key}={getattr(part, key)}" for key in told if key in named and getattr(part, key) not in ("", None)]
        return f"{type(part).__name__}({', '.join(words)})"[:SHORT]
    return str(part)[:SHORT]
