"""The page that tells a rollout: one file with everything in it, for a browser, a phone, or the mail to a customer.

    render(document)         the page as text
    write(document, folder)  report.html and report.json

All numbers and shapes are made here; the template only prints them. Names come from outside, so everything is escaped,
and a link leads to http, https or a plain path or is shown as text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from orchestrator.report.document import Report, Server, Step, dump, read

WIDTH = 1000.0  # user units across every picture; the page stretches them to its own width
TICKS = 6  # about so many on the axis of time
ROUND_SECONDS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)
COLOURS = 8  # how many the style sheet has; a ninth step begins again
SAFE_LINK = re.compile(r"(https?://|/|\./)[^\s]*|[A-Za-z0-9_-][A-Za-z0-9._/-]*")
OUTCOMES = {
    "upgraded": "upgraded",
    "rolled_back": "rolled back",
    "failed": "set aside",
    "held": "held",
    "pending": "not begun",
    "running": "running",
    "waiting": "waiting",
}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Time to user units."""

    start: float
    end: float

    def x(self, t: float) -> float:
        span = self.end - self.start
        return round(min(max((t - self.start) / span, 0.0), 1.0) * WIDTH, 2) if span > 0 else 0.0

    def percent(self, t: float) -> float:
        return round(self.x(t) / WIDTH * 100, 3)


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One step in a server's row."""

    x: float
    width: float
    colour: int
    outcome: str
    title: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One server."""

    server: Server
    outcome: str
    bars: tuple[Bar, ...]
    took: str


@dataclass(frozen=True, kw_only=True)
class Tick:
    percent: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A mark on the axis. `number` refers to the list under the picture."""

    percent: float
    x: float
    number: int
    label: str
    kind: str
    at: str


@dataclass(frozen=True, kw_only=True)
class Strip:
    """The traffic: requests a second as an area, the 99th percentile as a line, and a bar of full height over every
    second with a failure, however small its share: one must be seen."""

    area: str
    rim: str
    line: str
    failures: tuple[Bar, ...]
    top: int
    slowest: str
    bands: tuple[Bar, ...]


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """How long a step took, over the servers that finished it."""

    step: str
    colour: int
    servers: int
    median: str
    longest: str
    share: float


def render(document: Mapping[str, Any]) -> str:
    """The page. Raises ValueError for a document that is not right, saying where."""
    return page(read(document))


def write(document: Mapping[str, Any], folder: Path) -> tuple[Path, Path]:
    """`report.html` and `report.json` in `folder`, each complete or not there. Returns both paths."""
    report = read(document)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in (("report.html", page(report)), ("report.json", dump(report))):
        fresh = folder / f".{name}.new"
        fresh.write_text(text, encoding="utf-8")
        written.append(fresh.replace(folder / name))
    return written[0], written[1]


def page(report: Report) -> str:
    scale = draw_scale(report)
    rows = tuple(draw_row(server, report=report, scale=scale) for server in report.servers)
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            rows=rows,
            ticks=draw_ticks(scale),
            flags=draw_flags(report, scale),
            strip=draw_strip(report, scale) if report.traffic else None,
            step_times=tell_step_times(report),
            legend=[(index % COLOURS, readable(step)) for index, step in enumerate(report.steps)],
            used={bar.outcome for row in rows for bar in row.bars},
            counts=tell_counts(report.servers),
            took=duration(report.ended - report.started),
            when=moment(report.started),
            hero=tell_hero(report),
            width=WIDTH,
        )
    )


@cache
def environment() -> Environment:
    made = Environment(
        loader=PackageLoader("orchestrator.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"ms": milliseconds, "readable": readable, "n": "{:,}".format, "safe_link": safe_link}
    return made


def draw_scale(report: Report) -> Scale:
    """From the first thing that happened to the last."""
    times = [report.started, report.ended, *(mark.t for mark in report.marks), *(s.t for s in report.traffic)]
    times += [t for server in report.servers for step in server.steps for t in (step.start, step.end)]
    return Scale(start=min(times), end=max(times))


def draw_row(server: Server, *, report: Report, scale: Scale) -> Row:
    begun = [step.start for step in server.steps]
    took = duration(max(step.end for step in server.steps) - min(begun)) if begun else ""
    bars = tuple(draw_bar(step, report=report, scale=scale) for step in server.steps)
    return Row(server=server, outcome=OUTCOMES[server.outcome], bars=bars, took=took)


def draw_bar(step: Step, *, report: Report, scale: Scale) -> Bar:
    x = scale.x(step.start)
    told = f"{readable(step.step)}: {step.outcome}, {duration(step.end - step.start)}"
    return Bar(
        x=x,
        width=max(2.0, round(scale.x(step.end) - x, 2)),  # 2: a step of no time can still be seen
        colour=report.steps.index(step.step) % COLOURS,
        outcome=step.outcome,
        title=f"{told}. {step.note}" if step.note else told,
    )


def draw_ticks(scale: Scale) -> tuple[Tick, ...]:
    span = scale.end - scale.start
    apart = next((one for one in ROUND_SECONDS if span / one <= TICKS), ROUND_SECONDS[-1] * math.ceil(span / 86400 / 6))
    return tuple(
        Tick(percent=scale.percent(scale.start + n * apart), label=duration(n * apart))
        for n in range(int(span // apart) + 1)
        if n * apart <= span * 0.96  # the last label would hang over the edge
    )


def draw_flags(report: Report, scale: Scale) -> tuple[Flag, ...]:
    return tuple(
        Flag(
            percent=scale.percent(mark.t),
            x=scale.x(mark.t),
            number=number,
            label=mark.label,
            kind=mark.kind,
            at=duration(mark.t - scale.start),
        )
        for number, mark in enumerate(sorted(report.marks, key=lambda mark: mark.t), start=1)
    )


def draw_strip(report: Report, scale: Scale) -> Strip:
    """Heights are of 100 units. Latency has its own scale, up to its slowest second."""
    seconds = sorted(report.traffic, key=lambda second: second.t)
    top = max(1, *(second.count for second in seconds))
    slowest = max((second.p99_ms or 0.0 for second in seconds), default=0.0)
    counted = [(scale.x(second.t), 100 - 92 * second.count / top) for second in seconds]
    waited = [
        (scale.x(second.t), 96 - 84 * second.p99_ms / (slowest or 1.0))
        for second in seconds
        if second.p99_ms is not None
    ]
    wide = max(2.0, scale.x(scale.start + 1))
    bands = tuple(
        Bar(
            x=scale.x(second.t),
            width=wide,
            colour=0,
            outcome="failed" if second.failed else "done",
            title=f"{duration(second.t - scale.start)}: {second.count:,} requests, {second.failed:,} failed, "
            f"p99 {milliseconds(second.p99_ms)}",
        )
        for second in seconds
    )
    return Strip(
        area=f"M{counted[0][0]} 100 L{path(counted)} L{counted[-1][0]} 100 Z",
        rim=f"M{path(counted)}",
        line=f"M{path(waited)}" if waited else "",
        failures=tuple(bar for bar in bands if bar.outcome == "failed"),
        top=top,
        slowest=milliseconds(slowest) if waited else "",
        bands=bands,
    )


def path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.2f} {y:.2f}" for x, y in points)


def tell_step_times(report: Report) -> tuple[StepTime, ...]:
    """Over finished steps. A step that a server took in several stretches counts with their sum."""
    sums = []
    for step in report.steps:
        each = [
            sum(s.end - s.start for s in server.steps if s.step == step and s.outcome == "done")
            for server in report.servers
            if any(s.step == step and s.outcome == "done" for s in server.steps)
        ]
        sums.append((step, each))
    longest = max((max(each) for _, each in sums if each), default=0.0) or 1.0
    return tuple(
        StepTime(
            step=readable(step),
            colour=report.steps.index(step) % COLOURS,
            servers=len(each),
            median=duration(median(each)),
            longest=duration(max(each)),
            share=round(median(each) / longest * 100, 2),
        )
        for step, each in sums
        if each
    )


def tell_counts(servers: Sequence[Server]) -> str:
    """Such as "11 upgraded, 1 set aside"."""
    told = []
    for outcome, words in OUTCOMES.items():
        number = sum(server.outcome == outcome for server in servers)
        told += [f"{number:,} {words}"] if number else []
    return ", ".join(told) or "no servers"


def tell_hero(report: Report) -> tuple[str, str]:
    """The sentence on top, and its mood: good, bad or plain."""
    proof = report.certificate
    if proof is None or proof.verdict == "unproven":
        return f"Rollout {report.state.replace('_', ' ')}", "plain"
    if proof.verdict == "held":
        return "Not one request failed", "good"
    return proof.faults[0] if proof.faults else "Requests failed", "bad"


def duration(seconds: float) -> str:
    """0.24 s, 7.5 s, 1:05, 2:03:00."""
    if seconds < 59.5:
        return f"{seconds:.2f}".rstrip("0").rstrip(".") + " s" if seconds < 10 else f"{seconds:.0f} s"
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def milliseconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.1f} ms"


def moment(t: float) -> str:
    return datetime.fromtimestamp(t, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def readable(name: str) -> str:
    return name.replace("_", " ")


def safe_link(href: str) -> bool:
    """Whether a click may follow it. `javascript:` and its relatives have a colon, and a plain path has none."""
    return SAFE_LINK.fullmatch(href) is not None
