"""`python -P -m workers`: one worker. It imports from where it is installed, never from the current folder."""

from __future__ import annotations

import argparse
import atexit
import os
import socket
import sys
import tempfile
from pathlib import Path

OURS = Path(__file__).resolve().parent.parent
NAME_LIMIT = 60


def leave_the_current_folder() -> None:
    """Celery puts the current folder first on the path while it imports, and `python -m` always does. A stray
    `tasks.py` there would run in place of ours. So: off the path, and into an empty folder."""
    here = Path.cwd()
    if here != OURS:
        sys.path[:] = [each for each in sys.path if each and Path(each).resolve() != here]
    if any(here.iterdir()):
        empty = tempfile.mkdtemp(prefix="changeover-empty-")
        atexit.register(lambda: Path(empty).rmdir())
        os.chdir(empty)


def refuse_strangers() -> None:
    """Exits if `tasks` is not the package beside this one, whoever put another in its place."""
    import tasks

    found = Path(tasks.__file__ or "/nowhere").resolve()
    if found.parent.parent != OURS:
        sys.exit(f"changeover worker: `tasks` is {found}, not the package in {OURS}: take it off Python's path")


def name(given: str) -> str:
    """What may stand in a log, in Flower and in a key."""
    if not 1 <= len(given) <= NAME_LIMIT or not all(
        each.isascii() and (each.isalnum() or each in "._-") for each in given
    ):
        raise argparse.ArgumentTypeError(f"{given!r}: 1 to {NAME_LIMIT} letters, digits, '.', '_' or '-'")
    return given


def main() -> None:
    parser = argparse.ArgumentParser(prog="changeover worker", description="Runs the steps of upgrades.")
    parser.add_argument(
        "--name", type=name, default=f"{socket.gethostname()[:40]}-{os.getpid()}", help="unique among all workers"
    )
    parser.add_argument("--concurrency", type=int, choices=range(1, 257), metavar="1..256", help="steps at a time")
    options = parser.parse_args()
    leave_the_current_folder()
    refuse_strangers()

    from orchestrator.errors import ChangeoverError
    from workers.app import run
    from workers.guard import UntestedKombu

    try:
        sys.exit(run(options.name, concurrency=options.concurrency))
    except ChangeoverError as error:
        print(f"changeover worker: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except UntestedKombu as error:
        sys.exit(f"changeover worker: {error}")


if __name__ == "__main__":
    main()
