"""Child processes that never outlive their parent, started and reaped from one table.

The kernel's parent-death signal follows the *thread* that forked, so children are started from the main thread only.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_REAPED = Path(__file__).with_name("reaped.py")
INHERITED = 3
_DEFAULT_AGAIN = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)


@dataclass(frozen=True, kw_only=True)
class Command:
    """What to start. Its output is appended to `log`. `death` is what it receives when we die. `inherit` is a
    descriptor of ours that it finds as number 3."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    log: Path
    death: signal.Signals = signal.SIGKILL
    inherit: int | None = None


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A child that has ended and was reaped. `code` is negative for the number of the signal that ended it."""

    name: str
    pid: int
    code: int
    lived: float

    @property
    def how(self) -> str:
        if self.code < 0:
            return f"was ended by {signal.Signals(-self.code).name}"
        return f"ended by itself with exit code {self.code}"


@dataclass(frozen=True)
class _Child:
    name: str
    pid: int
    started: float


class Children:
    """All that were started here and not reaped yet. A number in this table is surely ours: only `reap` frees it."""

    def __init__(self) -> None:
        self._by_fd: dict[int, _Child] = {}
        self._poll = select.poll()
        self._woken, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._poll.register(self._woken, select.POLLIN)

    def start(self, name: str, command: Command) -> int:
        """The new child's number. It leads a process group of its own, so that a terminal's Ctrl-C is ours alone.

        Raises `OSError` where the machine has no room for it.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("children are started from the main thread only: they end with the thread that forks")
        inherit = [] if command.inherit is None else [(os.POSIX_SPAWN_DUP2, command.inherit, INHERITED)]
        wrapper = [sys.executable, "-I", "-S", "-B", str(_REAPED), str(int(command.death)), str(os.getpid())]
        pid = os.posix_spawn(
            sys.executable,
            [*wrapper, str(command.cwd), "--", *command.argv],
            dict(command.env),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(command.log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
                *inherit,
            ],
            setpgroup=0,
            setsigmask=[],
            setsigdef=_DEFAULT_AGAIN,
        )
        fd = os.pidfd_open(pid)
        self._by_fd[fd] = _Child(name, pid, time.monotonic())
        self._poll.register(fd, select.POLLIN)
        return pid

    def pids(self) -> dict[str, int]:
        return {child.name: child.pid for child in self._by_fd.values()}

    def signal(self, name: str, what: signal.Signals) -> bool:
        """Whether there is such a child; one that has ended but was not reaped counts."""
        pid = self.pids().get(name)
        if pid is None:
            return False
        with suppress(ProcessLookupError):
            os.kill(pid, what)
        return True

    def wake(self) -> None:
        """Ends the wait in `reap`, also from a signal handler."""
        with suppress(BlockingIOError):
            os.write(self._waker, b"!")

    def reap(self, seconds: float) -> list[Ended]:
        """Those that have ended; waits up to that long for the first, or for `wake`."""
        ended = []
        for fd, _ in self._poll.poll(max(0, seconds) * 1000):
            if fd == self._woken:
                os.read(fd, 4096)
                continue
            self._poll.unregister(fd)
            child = self._by_fd.pop(fd)
            os.close(fd)
            # What it started itself and left behind in its group would live on.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
            lived = time.monotonic() - child.started
            ended.append(Ended(name=child.name, pid=child.pid, code=code, lived=lived))
        return ended
