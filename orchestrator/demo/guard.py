"""Ends the demo's host when the demo has ended, however it did: it holds the other end of a pipe.

    python -m orchestrator.demo.guard [--host DIR] --remove DIR < pipe

It sits in a session of its own, so that neither Ctrl-C nor the death of the demo reaches it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path

from orchestrator.demo.host import Host


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m orchestrator.demo.guard")
    parser.add_argument("--host", type=Path, help="the state folder of a host that is to end too")
    parser.add_argument("--remove", type=Path, required=True, help="a folder to remove in the end")
    asked = parser.parse_args()
    for which in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(which, signal.SIG_IGN)
    told = sys.stdin.buffer.read()  # returns when the demo has closed its end, or has died
    if told == b"keep":
        return
    if asked.host is not None:
        with suppress(OSError):
            Host(asked.host).end()
    shutil.rmtree(asked.remove, ignore_errors=True)
    os._exit(0)


if __name__ == "__main__":
    main()
