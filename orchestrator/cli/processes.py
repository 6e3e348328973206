"""`worker`, `coordinator`, `flower` and `version`. The first three become another program: no part is imported by
another."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import output
from orchestrator.cli.output import Format, Output
from orchestrator.errors import BadInput

_LEAST_PASSWORD = 16


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


def flower(
    address: Annotated[str, typer.Option("--address", help="The IPv4 address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="The port to listen on.")] = 5555,
    password_file: Annotated[
        Path | None,
        typer.Option("--password-file", help="Holds the password.", show_default="one is made and kept"),
    ] = None,
    prefix: Annotated[str, typer.Option("--prefix", help="What every path begins with, behind a shared proxy.")] = "",
) -> int:
    """Serve Flower here until Ctrl-C: every task, for whoever has the password. Nothing can be changed by it.

    It speaks HTTP without TLS: where it listens beyond this host, put a proxy with TLS in front.
    """
    from orchestrator import flower as serving
    from orchestrator.processes import INHERITED
    from orchestrator.settings import Settings
    from orchestrator.state_folder import StateFolder

    settings = Settings.load()
    settings.urls()
    folder = StateFolder.open(settings.state_dir).path / "flower"
    prefix = prefix.strip("/")
    if not re.fullmatch(r"[a-z0-9-]*", prefix):
        raise BadInput(f"{prefix} is not one word of a-z, 0-9 and -", place="--prefix", next="changeover flower --help")
    password = _password(password_file) if password_file else ""
    listener = serving.listen(port, address=address, place="--port")
    files = serving.prepare(folder, password=password, prefix=prefix)
    output.say(f"Flower  http://{address}:{port}/{prefix}  user and password: {files.credentials}")
    os.dup2(listener.fileno(), INHERITED)
    os.set_inheritable(INHERITED, True)  # it may have been that number before
    return _replace(serving.command(files))


def _password(file: Path) -> str:
    try:
        password = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{file} cannot be read: {error}", place="--password-file", next=f"ls -l {file}") from None
    if len(password) < _LEAST_PASSWORD or len(password.split()) != 1:
        raise BadInput(
            f"{file} holds no password of {_LEAST_PASSWORD} characters or more in one word",
            place="--password-file",
            next=f"openssl rand -hex 24 > {file}",
        )
    return password


def _become(words: list[str]) -> int:
    """`-P` keeps the current folder off the path: a stray `tasks.py` there must not replace ours."""
    return _replace((sys.executable, "-P", *words))


def _replace(words: tuple[str, ...]) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(words[0], words)  # noqa: S606  # our own module, no shell


def version(form: Output = Format.text) -> int:
    """Say which version this is."""
    from importlib.metadata import version as installed

    found = installed("changeover")
    if form is Format.json:
        output.emit("version", {"version": found})
    else:
        output.tell(f"changeover {found}")
    return 0
