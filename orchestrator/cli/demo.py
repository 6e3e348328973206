"""`changeover demo`: the whole thing, here, in a minute and a half."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import typer


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything up afterwards, until Ctrl-C.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where report and logs go.", show_default="STATE/demo/TIME")] = None,
    cloud: Annotated[
        Literal["local", "aws"],
        typer.Option(help="Of what: processes behind HAProxy, or EC2 instances of a simulated AWS behind ELBv2."),
    ] = "local",
) -> None:
    """Replace a fleet of real servers behind a real load balancer under live traffic, on this machine."""
    if cloud == "aws":
        from orchestrator.demo.aws import refuse_unless_installed

        refuse_unless_installed()
    from orchestrator.demo.story import tell_story
    from orchestrator.settings import default_state_dir

    def end(_signum: int, _frame: object) -> None:
        raise KeyboardInterrupt

    for which in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(which, end)
    results = out or default_state_dir() / "demo" / time.strftime("%Y%m%d-%H%M%S")
    raise typer.Exit(
        tell_story(
            results.absolute(), cloud=cloud, keep=keep, say=lambda line: print(line, file=sys.stderr, flush=True)
        )
    )
