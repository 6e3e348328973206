"""`python -P -m orchestrator.coordinate`: one coordinator as a process."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

from orchestrator import logs
from orchestrator.errors import ChangeoverError
from orchestrator.settings import Settings


def main() -> int:
    parser = argparse.ArgumentParser(prog="changeover coordinator", description="Admits, wakes and sweeps.")
    parser.add_argument("--ready-file", type=Path, metavar="FILE", help="receives this process's number once it works")
    options = parser.parse_args()

    from orchestrator.coordinator import run

    logs.configure(f"coordinator-{os.getpid()}")
    stop = threading.Event()
    for which in (signal.SIGTERM, signal.SIGINT):
        signal.signal(which, lambda *_: stop.set())
    if options.ready_file is not None:
        options.ready_file.write_text(str(os.getpid()))
    try:
        run(Settings.load(), stop)
    except ChangeoverError as error:
        print(f"changeover coordinator: {error}", file=sys.stderr)
        return error.exit_code
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
