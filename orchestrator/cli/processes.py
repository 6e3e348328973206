"""`worker`, `coordinator` and `version`. The first two become another program: no part is imported by another."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from orchestrator.cli import output
from orchestrator.cli.output import Format, Output


def worker(
    name: Annotated[
        str, typer.Option("--name", help="Unique among all workers.", show_default="host and process")
    ] = "",
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", min=1, max=256, help="Steps at a time.", show_default="16")
    ] = None,
) -> int:
    """Run one worker here until Ctrl-C. Any number on any number of hosts may run."""
    words = ["-m", "workers"]
    words += ["--name", name] if name else []
    words += ["--concurrency", str(concurrency)] if concurrency else []
    return _become(words)


def coordinator() -> int:
    """Run one coordinator here until Ctrl-C. Any number may run."""
    return _become(["-m", "orchestrator.coordinate"])


def _become(words: list[str]) -> int:
    """`-P` keeps the current folder off the path: a stray `tasks.py` there must not replace ours."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-P", *words])  # noqa: S606  # our own module, no shell


def version(form: Output = Format.text) -> int:
    """Say which version this is."""
    from importlib.metadata import version as installed

    found = installed("changeover")
    if form is Format.json:
        output.emit("version", {"version": found})
    else:
        output.tell(f"changeover {found}")
    return 0
