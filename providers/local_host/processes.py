"""Starting, finding and ending processes. One loop reaps, from a table of its own.

A process is named by its number and its start time, since numbers are used again. Everything a host starts carries
two marks in its environment, the host's folder and the boot, so that what a killed host left behind can be found.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

HOST_MARK = "CHANGEOVER_HOST_DIR"
BOOT_MARK = "CHANGEOVER_BOOT"
_LAUNCH = Path(__file__).with_name("launch.py")
_REPORT_FD = 3


@dataclass(frozen=True, kw_only=True)
class Proc:
    """A process for certain. `started` is in clock ticks since the machine's boot."""

    pid: int
    started: int


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What to start. Bytes; 0 is no limit. `log` receives its output."""

    command: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    log: Path
    data: int = 0
    fsize: int = 0


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def alive(proc: Proc) -> bool:
    """Whether that very process still runs; a zombie does not."""
    stat = _stat(proc.pid)
    return stat is not None and stat[0] not in "ZXx" and int(stat[19]) == proc.started


def identify(pid: int) -> Proc | None:
    stat = _stat(pid)
    return Proc(pid=pid, started=int(stat[19])) if stat else None


def age(proc: Proc) -> float:
    """Seconds since it was started, whether it still runs or not."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - proc.started / os.sysconf("SC_CLK_TCK")


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit())


def marked(mark: str, value: str) -> list[int]:
    """Processes that still run and carry the mark, also those that left their process group."""
    return by_mark(mark).get(value, [])


def by_mark(mark: str) -> Mapping[str, list[int]]:
    """As `marked`, for every value. One look at all processes costs as much as a hundred servers' own."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    prefix = f"{mark}=".encode()
    for pid in _pids():
        with suppress(OSError):
            # Zombies have an empty environment, so they are never among them.
            for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                if entry.startswith(prefix):
                    found[entry.removeprefix(prefix).decode(errors="surrogateescape")].append(pid)
                    break
    return found


def kill_marked(mark: str, value: str, *, deadline: float = 5.0) -> bool:
    """Ends everything that carries the mark, at once; False if something still runs after the deadline."""
    end = time.monotonic() + deadline
    while pids := marked(mark, value):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def signal_group(proc: Proc, sig: signal.Signals) -> None:
    """To the whole group of the process; nothing if the process is gone."""
    if alive(proc):
        with suppress(ProcessLookupError):
            os.killpg(proc.pid, sig)


def environment(host: Path, boot: str, given: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process of this host: a clean one, then what is given, then our marks. `python` is the
    host's own unless a PATH is given."""
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '/usr/local/bin:/usr/bin:/bin')}"
    return {"PATH": path, "LANG": "C.UTF-8", **given, HOST_MARK: str(host), BOOT_MARK: boot}


def describe(status: int | None) -> str:
    """How a process ended, in words. None is a process that was not ours to wait for."""
    if status is None:
        return "ended while it was watched from afar, so its exit code is unknown"
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return f"was ended by signal {-code} ({signal.Signals(-code).name})"
    return f"ended by itself with exit code {code}"


@dataclass(frozen=True)
class _Watched:
    proc: Proc
    child: bool
    on_exit: Callable[[int | None], None]


class Processes:
    """The table of everything that runs here, and the loop that reaps it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: dict[int, _Watched] = {}
        self._epoll = select.epoll()
        threading.Thread(target=self._reap, name="reaper", daemon=True).start()

    def spawn(self, launch: Launch, on_exit: Callable[[int | None], None]) -> tuple[Proc, int]:
        """Starts it in a session of its own. Gives the process and a descriptor for `wait_started`.

        `on_exit` is called once, from the reaping loop, with the wait status.
        """
        spec = {"command": list(launch.command), "cwd": str(launch.cwd), "data": launch.data, "fsize": launch.fsize}
        heard, said = os.pipe()
        try:
            pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", "-B", str(_LAUNCH), json.dumps(spec)],
                dict(launch.env),
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, str(launch.log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                    (os.POSIX_SPAWN_DUP2, said, _REPORT_FD),
                ],
                setsid=True,
                setsigmask=[],
            )
        except OSError:
            os.close(heard)
            raise
        finally:
            os.close(said)
        proc = identify(pid)
        assert proc is not None  # our own child stays in the table until it is reaped
        self._watch(proc, child=True, on_exit=on_exit)
        return proc, heard

    def adopt(self, proc: Proc, on_exit: Callable[[int | None], None]) -> bool:
        """Watches a process that a former host started. False if it is gone."""
        if not alive(proc):
            return False
        try:
            self._watch(proc, child=False, on_exit=on_exit)
        except ProcessLookupError:
            return False
        return True

    def _watch(self, proc: Proc, *, child: bool, on_exit: Callable[[int | None], None]) -> None:
        fd = os.pidfd_open(proc.pid)
        with self._lock:
            self._watched[fd] = _Watched(proc, child, on_exit)
        self._epoll.register(fd, select.EPOLLIN)

    def _reap(self) -> None:
        while True:
            for fd, _ in self._epoll.poll():
                self._epoll.unregister(fd)
                with self._lock:
                    watched = self._watched.pop(fd)
                os.close(fd)
                status = None
                if watched.child:
                    # Until it is reaped its number is taken, so this reaches its own group and nobody else's.
                    with suppress(ProcessLookupError, PermissionError):
                        os.killpg(watched.proc.pid, signal.SIGKILL)
                    status = os.waitpid(watched.proc.pid, 0)[1]
                try:
                    watched.on_exit(status)
                except Exception:  # the loop must outlive whatever one server does
                    log.exception("pid %d: what follows its end failed", watched.proc.pid)


def wait_started(heard: int, *, deadline: float = 20.0) -> str:
    """Waits until the command itself runs. Returns why it does not, or nothing."""
    poll = select.poll()
    poll.register(heard, select.POLLIN)
    try:
        if not poll.poll(deadline * 1000):
            return f"did not begin within {deadline:g} s"
        return os.read(heard, 4096).decode(errors="replace")
    finally:
        os.close(heard)
