"""What the demo shows: live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator.demo.surroundings import Tally
from orchestrator.domain.plan import Plan, human
from orchestrator.domain.steps import STEPS
from orchestrator.domain.upgrade import Upgrade
from orchestrator.operations import View
from orchestrator.report.certificate import Certificate

COLOURS = {"upgraded": "green", "failed": "yellow", "rolled_back": "yellow", "held": "red", "pending": "dim"}
WORDS = {"failed": "set aside, its old server serves"}


class Screen:
    def __init__(self, say: Callable[[str], None]) -> None:
        self._console = Console(stderr=True)
        self._say = say
        self._began = time.monotonic()
        self._live: Live | None = None
        self._told: dict[str, tuple[str, str, str]] = {}
        self._state = ""

    def say(self, line: str) -> None:
        stamp = f"{time.monotonic() - self._began:5.1f}s"
        if self._live is not None:
            self._live.console.print(Text.assemble((stamp, "dim"), "  ", line))
        else:
            self._say(f"{stamp}  {line}")

    def aside(self, line: str) -> None:
        """What the supervisor has to say."""
        self.say(line)

    def where(self, what: str, url: str, login: str) -> None:
        self.say(f"{what}: {url}{login}")

    def plan(self, plan: Plan) -> None:
        waves = ", ".join(str(len(wave)) for wave in plan.waves)
        size = plan.fleet["target"]["size"]
        memory = human(int(str(size["memory"]).removesuffix("B")))
        self.say(f"plan {plan.id}: {plan.changes} servers to {memory} of memory, in waves of {waves}")

    def show(self, view: View, users: Mapping[str, Any], trouble: Callable[[], str]) -> None:
        """`trouble`: what the cloud makes, asked only where it is shown."""
        if self._console.is_terminal:
            if self._live is None:
                self._live = Live(console=self._console, refresh_per_second=8, transient=True)
                self._live.start()
            self._live.update(_picture(view, users, trouble()))
            return
        if view.rollout.state != self._state:
            self._state = view.rollout.state
            self.say(
                f"rollout {view.rollout.id} is {self._state.replace('_', ' ')}, wave {view.rollout.wave + 1}"
                + (f": {view.rollout.why}" if view.rollout.why else "")
            )
        for u in view.upgrades:
            now = (u.state if u.state in COLOURS else "in flight", u.step, u.direction)
            if self._told.get(u.server) != now and u.state != "pending":
                self._told[u.server] = now
                self.say(f"{u.server}  {_words(u)}")

    def stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def conclude(
        self,
        view: View,
        proof: Certificate,
        document: Mapping[str, Any],
        problems: list[str],
        killed: str,
        calls: Tally,
    ) -> None:
        self.stop()
        out = self._console
        out.print()
        for u in view.upgrades:
            if u.state != "upgraded":
                out.print(
                    Text(f"{u.server}: {WORDS.get(u.state, u.state)}. {u.cause or u.why}", style="yellow"),
                    soft_wrap=True,
                )
        if killed:
            out.print(killed + "; another worker went on", soft_wrap=True)
        out.print(_times(document))
        out.print(_latencies(document))
        if calls:
            out.print(_calls(calls, servers=len(view.upgrades)))
        colour = "bold green" if proof.verdict == "held" else "bold red"
        out.print(
            Text("Certificate: " + {"held": "not one request failed"}.get(proof.verdict, proof.verdict), style=colour)
        )
        for line in proof.lines():
            out.print(f"  {line}", soft_wrap=True, highlight=False)
        for problem in problems:
            out.print(Text(f"NOT AS IT SHOULD BE: {problem}", style="bold red"), soft_wrap=True)

    def files(self, page: Path, data: Path, results: Path) -> None:
        out = self._console
        out.print(f"\nReport  {page}\n        {data}", soft_wrap=True, highlight=False)
        out.print(f"Logs    {results / 'state' / 'logs'}", soft_wrap=True, highlight=False)

    def left(self, fleet: str, flower: str, *, keep: bool) -> None:
        """What is left to look at."""
        said = f"Fleet page and Flower have ended with the demo; {sys.argv[0]} demo --keep leaves them up"
        if keep:
            said = f"Fleet   {fleet}\nFlower  {flower}\nLeft up (--keep): Ctrl-C ends it"
        self._console.print(said, soft_wrap=True, highlight=False)


def _words(u: Upgrade) -> str:
    if u.state in COLOURS:
        return f"{WORDS.get(u.state, u.state)}{f': {u.cause or u.why}' if u.state in ('failed', 'held') else ''}"
    return f"{'undoing ' if u.direction == 'undo' else ''}{u.step}{f': {u.why}' if u.why else ''}"


def _picture(view: View, users: Mapping[str, Any], trouble: str) -> Group:
    table = Table(box=None, padding=(0, 1), expand=True)
    for column in ("server", "wave", "steps", "now"):
        table.add_column(column, no_wrap=True, overflow="ellipsis", ratio=1 if column == "now" else None)
    for u in view.upgrades:
        done = STEPS.index(u.step) if u.step in STEPS else len(STEPS)
        bar = Text("●" * done, style="green") + Text("○" * (len(STEPS) - done), style="dim")
        table.add_row(u.server, str(u.wave + 1), bar, Text(_words(u), style=COLOURS.get(u.state, "cyan")))
    failed = users.get("failed", 0)
    head = Text.assemble(
        (f"rollout {view.rollout.id} {view.rollout.state}", "bold"),
        f"   {users.get('requests', 0):,} requests, ",
        (f"{failed} failed", "bold red" if failed else "bold green"),
        (f"   {trouble}", "dim"),
    )
    return Group(head, table)


def _times(document: Mapping[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 2), title="Seconds a step took", title_justify="left")
    table.add_column("step")
    for column in ("median", "longest"):
        table.add_column(column, justify="right")
    for step in STEPS:
        took = sorted(
            s["end"] - s["start"]
            for server in document["servers"]
            for s in server["steps"]
            if s["step"] == step and s["outcome"] == "done"
        )
        if took:
            table.add_row(step, f"{took[len(took) // 2]:.2f}", f"{took[-1]:.2f}")
    return table


def _latencies(document: Mapping[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 2), title="Latency of short requests, ms", title_justify="left")
    table.add_column("phase")
    for column in ("requests", "p50", "p99", "max"):
        table.add_column(column, justify="right")
    for phase, seen in document["latency"].items():
        numbers = [f"{seen[key]:.1f}" if seen.get(key) is not None else "" for key in ("p50_ms", "p99_ms", "max_ms")]
        table.add_row(phase, f"{seen['count']:,}", *numbers)
    return table


def _calls(calls: Tally, *, servers: int) -> Table:
    table = Table(box=None, padding=(0, 2), title="Calls to the cloud", title_justify="left")
    table.add_column("kind")
    columns = ("calls", "throttled", "lost", "refused")
    for column in (columns[0], "a server", *columns[1:]):
        table.add_column(column, justify="right")
    whole = {"all": {what: sum(row[what] for row in calls.values()) for what in columns}}
    for kind, row in {**calls, **whole}.items():
        each = f"{row['calls'] / servers:.1f}"
        table.add_row(kind, f"{row['calls']:,}", each, *(f"{row[what]:,}" for what in columns[1:]))
    return table
