"""The timeline of a whole rollout as one drawing, for two servers or for two thousand: a row each, a stroke for each
stretch of a step. The page of a report and the fleet page take their shapes and colours from the same place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.report.document import read
from orchestrator.report.html import COLOURS, WIDTH, Bar, Flag, Tick, draw_flags, draw_row, draw_scale, draw_ticks

NAMED = 80  # rows up to which each has room for its name
ROW = 18.0  # user units of such a row
SEEN = 3.0  # user units that a failure is wide at least, drawn over all others
_LAST = ("undo", "failed")
TALLEST = 900.0  # of all rows together, where there are more


@dataclass(frozen=True, kw_only=True)
class Stroke:
    """Everything of one colour. `path` is SVG's; `wide` its strokes' width."""

    kind: str
    path: str
    wide: float


@dataclass(frozen=True, kw_only=True)
class Named:
    """Where a server's row is."""

    server: str
    y: float


@dataclass(frozen=True, kw_only=True)
class Picture:
    """In user units, `width` by `height`; times run along it. `names` is empty where there is no room."""

    width: float
    height: float
    row: float
    strokes: tuple[Stroke, ...]
    names: tuple[Named, ...]
    ticks: tuple[Tick, ...]
    flags: tuple[Flag, ...]
    steps: tuple[tuple[str, str], ...]


def draw(document: Mapping[str, Any]) -> Picture:
    """Raises ValueError for a document that is not right."""
    report = read(document)
    scale = draw_scale(report)
    number = max(1, len(report.servers))
    row = ROW if number <= NAMED else TALLEST / number
    paths: dict[str, list[str]] = {}
    for n, server in enumerate(report.servers):
        y = round((n + 0.5) * row, 2)
        for bar in draw_row(server, report=report, scale=scale).bars:
            paths.setdefault(_kind(bar), []).append(f"M{bar.x:.1f} {y:g}h{bar.width:.1f}")
    return Picture(
        width=WIDTH,
        height=round(number * row, 2),
        row=row,
        strokes=tuple(
            Stroke(kind=kind, path="".join(paths[kind]), wide=round(max(row * 0.78, SEEN if kind in _LAST else 0), 2))
            for kind in sorted(paths, key=lambda kind: (kind in _LAST, kind))
        ),
        names=tuple(Named(server=each.name, y=round((n + 0.5) * row, 2)) for n, each in enumerate(report.servers))
        if number <= NAMED
        else (),
        ticks=draw_ticks(scale),
        flags=draw_flags(report, scale),
        steps=tuple((f"s{n % COLOURS}", step.replace("_", " ")) for n, step in enumerate(report.steps)),
    )


def _kind(bar: Bar) -> str:
    if bar.outcome in _LAST:
        return bar.outcome
    return f"s{bar.colour}" + (" open" if bar.outcome in ("waiting", "running") else "")
