"""How the command line speaks: data on stdout, talk on stderr, text for people or JSON for programs.

Every JSON document is one object on one line with `schema` first, `changeover/v1/<what>`; streams (`events`, `watch`)
are one such object a line. Keys are only ever added within v1.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.errors import ChangeoverError, next_of, traffic_of

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 140  # columns where there is no terminal: a log or a pipe
NEEDS_YOU = 3  # a person must put something right; the rest was done
USAGE = 64
CANCELLED = 130
PIPE_CLOSED = 141


class Format(StrEnum):
    text = "text"
    json = "json"


Output = Annotated[Format, typer.Option("--output", "-o", help="Text for people, or JSON for programs.")]


def emit(what: str, body: Mapping[str, Any]) -> None:
    """One JSON object on stdout."""
    print(json.dumps({"schema": f"changeover/v1/{what}", **body}), flush=True)


def tell(text: str) -> None:
    """A line for people on stdout, where it is what was asked for."""
    print(clean(text, lines=True), flush=True)


def say(text: str) -> None:
    """Talk, beside the data."""
    print(clean(text, lines=True), file=sys.stderr, flush=True)


def say_unconfirmed(confirmed: bool | None, again: str) -> None:
    """Where a replica should have it and does not, whoever asked is told; the act is done all the same."""
    if confirmed is False:
        say(
            "Not confirmed: this is done, but no replica of Redis has it yet. If Redis' server is lost now, it may be "
            f"forgotten. {again}"
        )


def console() -> Console:
    """Colour only on a terminal, and not with NO_COLOR; elsewhere wide enough not to cut names."""
    from rich.console import Console

    tty = sys.stdout.isatty()
    return Console(width=None if tty else WIDTH, highlight=False, markup=False, emoji=False, soft_wrap=not tty)


def clean(text: str, *, lines: bool = False) -> str:
    """Printable: what a server answered must not steer the terminal."""
    return "".join(c if c.isprintable() or (lines and c == "\n") else repr(c)[1:-1] for c in text)


def wants_json(argv: list[str]) -> bool:
    """Whether these arguments ask for JSON, for errors that happen before they are parsed."""
    pairs = zip(argv, [*argv[1:], ""][: len(argv)], strict=True)
    return any((a in ("--output", "-o") and b == "json") or a in ("--output=json", "-ojson") for a, b in pairs)


def fail(error: ChangeoverError, *, as_json: bool) -> int:
    """What happened, where traffic is, and the next command, on stderr; the exit code."""
    traffic, next = traffic_of(error), next_of(error)
    if as_json:
        body = {
            "schema": "changeover/v1/error",
            "error": type(error).__name__,
            "message": error.message,
            "traffic": traffic,
            "next": next,
            "exit_code": error.exit_code,
        }
        print(json.dumps(body), file=sys.stderr, flush=True)
        return error.exit_code
    lines = error.message.splitlines() or [type(error).__name__]
    red, bold, plain = ("\x1b[31;1m", "\x1b[1m", "\x1b[0m") if _coloured() else ("", "", "")
    print(f"{red}Error:{plain} {clean(lines[0])}", file=sys.stderr)
    for line in lines[1:]:
        print(f"       {clean(line)}", file=sys.stderr)
    print(f"{bold}Traffic:{plain} {clean(traffic)}", file=sys.stderr)
    print(f"{bold}Next:{plain} {clean(next)}", file=sys.stderr, flush=True)
    return error.exit_code


def _coloured() -> bool:
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
