"""Lets processes stand still for a moment. Run by path, imports no package of ours.

    python -I -S freezer.py SECONDS PROCESS_GROUP [PID ...]

It says `frozen` on its output once every thread stands still, and lets them go on when its input closes, when the
seconds are over (exit code 3), or when it is told to end. It is a process of its own so that the death of the
host, of which the closed input tells it, never leaves a server standing still.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Sequence

STILL = "TtZXx"


def tell(group: int, others: Sequence[int], sig: signal.Signals) -> None:
    for send, target in [(os.killpg, group), *((os.kill, pid) for pid in others)]:
        with contextlib.suppress(ProcessLookupError):
            send(target, sig)


def members(group: int, others: Sequence[int]) -> list[int]:
    found = list(others)
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(ProcessLookupError):
                if os.getpgid(int(entry.name)) == group:
                    found.append(int(entry.name))
    return found


def still(pid: int) -> bool:
    # One that ended meanwhile writes nothing any more, which is as good.
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.scandir(f"/proc/{pid}/task"):
            with open(f"{thread.path}/stat") as file:  # noqa: PTH123  importing pathlib would lengthen the start by half
                if file.read().rpartition(")")[2].split()[0] not in STILL:
                    return False
    return True


def main() -> int:
    end = time.monotonic() + float(sys.argv[1])
    group, *others = map(int, sys.argv[2:])
    for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(sig, lambda *_: sys.exit(3))
    try:
        tell(group, others, signal.SIGSTOP)
        pids = members(group, others)
        while not all(map(still, pids)):
            if time.monotonic() > end:
                return 3
            time.sleep(0.0005)
        os.write(1, b"frozen\n")
        ready, _, _ = select.select([0], [], [], max(0.0, end - time.monotonic()))
        return 0 if ready else 3
    finally:
        tell(group, others, signal.SIGCONT)


sys.exit(main())
