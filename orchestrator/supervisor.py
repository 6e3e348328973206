"""Keeps Valkey, workers, the coordinator, Flower and the fleet page running, and ends them in order.

No threads: whoever owns a `Supervisor` calls `step` from the main thread, as often as it wants what died to come back.
Everything it starts is ended by the kernel should it be killed itself.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator import flower
from orchestrator.embedded import valkey_arguments, valkey_server
from orchestrator.errors import ChangeoverError, Unreachable, UnsafeStore, WaitTimeout
from orchestrator.processes import Children, Command, Ended
from orchestrator.settings import Settings
from orchestrator.state_folder import StateFolder, last_lines
from orchestrator.store.health import check_messages
from orchestrator.store.redis import RedisStore

Say = Callable[[str], None]

STEADY = 20.0  # seconds of life after which an end is no longer part of a series
LOOP = 3  # ends in a row from which on it is called a crash loop
FIRST_PAUSE = 0.5  # seconds before the second restart in a row; it doubles. The first restart is at once
LONGEST_PAUSE = 15.0
LOOK_EVERY = 0.1  # seconds between two looks at what is not ready yet
CHECK_EVERY = 5.0  # seconds between two looks at Redis' own health
VALKEY = "valkey"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One process to keep running. `grace`: seconds between SIGTERM and SIGKILL. `ready` is asked with its number."""

    name: str
    argv: tuple[str, ...]
    ready: Callable[[int], bool]
    grace: float
    inherit: int | None = None


@dataclass(kw_only=True)
class _Run:
    """How that part fares. `after`: when it may start again; `log_from`: where its log begins this time, in bytes;
    `words`: the last lines of the one that ended last."""

    part: Part
    pid: int = 0
    ready: bool = False
    ever_ready: bool = False
    failures: int = 0
    after: float = 0.0
    log_from: int = 0
    words: list[str] = field(default_factory=list)


def start(
    settings: Settings,
    *,
    workers: int = 2,
    coordinator: bool = True,
    with_flower: bool = True,
    flower_port: int = 0,
    with_page: bool = False,
    page_port: int = 0,
    say: Say = lambda _: None,
) -> Supervisor:
    """Redis answers and is safe, and everything else has been started; `wait_ready` waits for it.

    Raises `Conflict` when another runs on this state folder, `Unreachable` or `UnsafeStore` for a given Redis,
    `BadInput` for a port or folder that cannot be had, `ChangeoverError` when Valkey does not start. Nothing is left
    running then.
    """
    supervisor = Supervisor(settings, say=say)
    try:
        supervisor.open(
            workers=workers,
            coordinator=coordinator,
            flower_port=flower_port if with_flower else None,
            page_port=page_port if with_page else None,
        )
    except BaseException:
        supervisor.stop(now=True)
        raise
    return supervisor


class Supervisor:
    """`redis_url`, `flower_url` and `page_url` say where things are; `flower_credentials` is a file with
    `user:password`."""

    def __init__(self, settings: Settings, *, say: Say) -> None:
        self._say = say
        self._folder = StateFolder.open(settings.state_dir)
        self.settings = settings.model_copy(update={"state_dir": self._folder.path})
        self._lock = self._folder.lock()
        self._sockets = self._folder.sockets()
        self._empty = self._sockets / "empty"
        self._children = Children()
        self._runs: dict[str, _Run] = {}
        self._unreleased: list[tuple[str, bool]] = []  # of whose leases, and whether it died by itself
        self._store: RedisStore | None = None
        self._listeners: list[socket.socket] = []
        self._told = 0
        self._closed = False
        self._next_check = 0.0
        self._trouble = ""
        self._since = time.time()
        self.redis_url = settings.redis_url
        self.flower_url = ""
        self.flower_credentials: Path | None = None
        self.page_url = ""

    # -- start -------------------------------------------------------------------------------------------------------

    def open(self, *, workers: int, coordinator: bool, flower_port: int | None, page_port: int | None) -> None:
        """See `start`. No port: it is not served."""
        former = self._folder.read_run()
        self._empty.mkdir(mode=0o700, exist_ok=True)
        if not self.redis_url:
            self._start_valkey()
        self.settings = self.settings.model_copy(update={"redis_url": self.redis_url})
        self._store = RedisStore(self.redis_url, namespace=self.settings.namespace, connections=4)
        self._store.check(dev=self.settings.dev)
        check_messages(self.settings.urls(), dev=self.settings.dev)
        self._take_over(former)
        for number in range(1, workers + 1):
            self._add(self._worker(number))
        if coordinator:
            self._add(self._coordinator())
        if flower_port is not None:
            self._add(self._flower(flower_port))
        if page_port is not None:
            self._add(self._page(page_port))
        self._write_run()

    def wait_ready(self, seconds: float = 120.0) -> None:
        """Every part works. Raises `WaitTimeout` that says which does not, and its last words. Returns early when told
        to end."""
        end = time.monotonic() + seconds
        while waiting := [run for run in self._runs.values() if not run.ready]:
            if self.told:
                return
            loops = [run for run in waiting if run.failures >= LOOP and not run.ever_ready]
            if loops or time.monotonic() > end:
                said = "; ".join(self._last_words(run) for run in loops or waiting)
                raise WaitTimeout(f"not ready: {said}", next=f"less {self._folder.path / 'logs'}")
            self.step(LOOK_EVERY)

    def _start_valkey(self) -> None:
        data = self._folder.path / "valkey"
        data.mkdir(mode=0o700, exist_ok=True)
        where = self._sockets / "valkey.sock"
        where.unlink(missing_ok=True)
        argv = (str(valkey_server()), *valkey_arguments(data, where))
        self.redis_url = f"unix://{where}?db=0"
        self._add(Part(name=VALKEY, argv=argv, ready=lambda _: _answers(where), grace=10, inherit=self._lock))
        run = self._runs[VALKEY]
        end = time.monotonic() + 60  # a large append-only file takes its time
        while not run.ready:
            if run.failures:
                raise ChangeoverError(
                    f"Valkey does not start: {self._why_no_valkey(run, data)}", next=self._see(VALKEY)
                )
            if time.monotonic() > end:
                raise WaitTimeout(f"Valkey is still not ready: {self._last_words(run)}", next=self._see(VALKEY))
            self.step(LOOK_EVERY)

    def _why_no_valkey(self, run: _Run, data: Path) -> str:
        said = " ".join(run.words)
        if "No space left" in said:
            return f"the disk of {data} is full"
        if "Bad file format" in said or "unexpected end of file" in said.lower() or "corrupt" in said.lower():
            return (
                f"its append-only file in {data} is damaged, and was left as it is. Keep a copy of that folder, then "
                "repair it with valkey-check-aof --fix"
            )
        return self._last_words(run)

    def _worker(self, number: int) -> Part:
        # On a Redis that others use too, a name must be ours alone.
        name = f"w{number}" if self._embedded else f"{socket.gethostname()[:40]}-w{number}"
        argv = ("-m", "workers", "--name", name, "--concurrency", str(self.settings.concurrency))

        def ready(pid: int) -> bool:
            assert self._store is not None
            with suppress(ChangeoverError):
                return self._store.workers().get(name, {}).get("pid") == pid
            return False

        return Part(name=name, argv=_python(*argv), ready=ready, grace=32)  # its own deadline is 30 s

    def _coordinator(self) -> Part:
        mark = self._sockets / "coordinator.ready"
        argv = _python("-m", "orchestrator.coordinate", "--ready-file", str(mark))
        return Part(name="coordinator", argv=argv, ready=lambda pid: _says(mark, str(pid)), grace=8)

    def _flower(self, port: int) -> Part:
        files = flower.prepare(self._folder.path / "flower")
        listener = self._listen(port, place="--flower-port")
        port = listener.getsockname()[1]
        self.flower_url = f"http://{flower.LOOPBACK}:{port}"
        self.flower_credentials = files.credentials
        return Part(
            name="flower",
            argv=flower.command(files),
            ready=lambda _: flower.is_healthy(port),
            grace=8,
            inherit=listener.fileno(),
        )

    def _page(self, port: int) -> Part:
        listener = self._listen(port, place="--page-port")
        port = listener.getsockname()[1]
        self.page_url = f"http://{flower.LOOPBACK}:{port}"
        if not self.settings.flower_url:  # where people find it may be another address than here
            self.settings = self.settings.model_copy(update={"flower_url": self.flower_url})
        return Part(
            name="page",
            argv=_python("-m", "orchestrator.web"),
            ready=lambda _: flower.is_healthy(port, path="/healthz"),
            grace=12,  # those who follow events are given 10 s
            inherit=listener.fileno(),
        )

    def _listen(self, port: int, *, place: str) -> socket.socket:
        self._listeners.append(flower.listen(port, place=place))
        return self._listeners[-1]

    def _take_over(self, former: Mapping[str, Any]) -> None:
        """What the workers of a killed `up` held is free: we have its lock, so they are dead."""
        if not former:
            return
        self._say(f"the former run (process {former.get('pid')}) was killed: taking over what it left")
        processes = former.get("processes", {})
        if former.get("redis_url") == self.redis_url and isinstance(processes, dict):
            self._unreleased += [(f"{name}/{pid}:", False) for name, pid in processes.items()]
            self._release()

    # -- keep running ------------------------------------------------------------------------------------------------

    @property
    def told(self) -> bool:
        """Whether somebody wants it to end."""
        return self._told > 0

    def tell(self, *_: object) -> None:
        """For a signal handler: end; told twice, end at once."""
        self._told += 1
        self._children.wake()

    def run(self) -> None:
        """Until told to end."""
        while not self.told:
            self.step(1.0)

    def step(self, seconds: float = 0.0) -> None:
        """Reaps what ended, frees what it held, starts what is due, looks at what is not ready; waits up to that long
        for something to happen."""
        for ended in self._children.reap(min(seconds, self._until_next())):
            self._ended(ended)
        self._release()
        changed = [self._launch(run) for run in self._runs.values() if not run.pid and run.after <= time.monotonic()]
        for run in self._runs.values():
            if run.pid and not run.ready and run.part.ready(run.pid):
                run.ready = run.ever_ready = True
        if changed and self._store is not None:
            self._write_run()
        self._check_store()

    def status(self) -> Mapping[str, str]:
        """Every part and how it fares, in words."""
        return {name: _state(run) for name, run in self._runs.items()}

    def pids(self) -> Mapping[str, int]:
        """Of what runs now."""
        return {name: run.pid for name, run in self._runs.items() if run.pid}

    def kill_worker(self, what: signal.Signals = signal.SIGKILL, *, name: str = "") -> tuple[str, int]:
        """Signals that worker, or the first; its name and number. Raises `ChangeoverError` when none runs."""
        for each, pid in self.pids().items():
            if each == name or (not name and self._is_worker(each)):
                self._children.signal(each, what)
                return each, pid
        raise ChangeoverError(f"no worker {name or 'at all'} runs", next="changeover up")

    def _add(self, part: Part) -> None:
        run = self._runs[part.name] = _Run(part=part)
        self._launch(run)

    def _launch(self, run: _Run) -> bool:
        part = run.part
        log = self._folder.begin_log(part.name)
        run.log_from = log.stat().st_size if log.exists() else 0
        command = Command(argv=part.argv, env=self._environment(), cwd=self._empty, log=log, inherit=part.inherit)
        try:
            run.pid = self._children.start(part.name, command)
        except OSError as error:  # no memory, no processes left: the same as an end at once
            self._failed(run, f"cannot be started: {error.strerror}")
            return False
        return True

    def _ended(self, ended: Ended) -> None:
        run = self._runs[ended.name]
        run.pid, run.ready = 0, False
        run.words = self._said(run, lines=12)
        if self._is_worker(ended.name):
            self._unreleased.append((f"{ended.name}/{ended.pid}:", True))
            self._release()
        run.failures = 0 if ended.lived > STEADY else run.failures
        self._failed(run, f"{ended.how} after {ended.lived:.1f} s")

    def _failed(self, run: _Run, what: str) -> None:
        run.failures += 1
        pause = 0.0 if run.failures == 1 else min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (run.failures - 2))
        run.after = time.monotonic() + pause
        if run.failures < LOOP:
            self._say(f"{run.part.name} {what}; starting it again{f' in {pause:g} s' if pause else ''}")
        else:
            self._say(
                f"{run.part.name} {what}, {run.failures} times in a row: it will not run like this. "
                f"{self._last_words(run)}. Next try in {pause:g} s"
            )

    def _release(self) -> None:
        """The leases of reaped workers are free at once; what a dead Redis did not hear, it is told later."""
        if not self._unreleased or self._store is None:
            return
        with suppress(ChangeoverError):
            while self._unreleased:
                prefix, died = self._unreleased[0]
                freed = self._store.release_owner(prefix, died=died)
                del self._unreleased[0]
                if freed:
                    self._say(f"{freed} upgrade{'s' if freed > 1 else ''} of {prefix.rstrip(':')} freed for the others")

    def _check_store(self) -> None:
        if self._store is None or time.monotonic() < self._next_check:
            return
        self._next_check = time.monotonic() + CHECK_EVERY
        trouble = ""
        try:
            self._store.check(dev=self.settings.dev)
            check_messages(self.settings.urls(), dev=self.settings.dev)
        except (Unreachable, UnsafeStore) as error:
            trouble = str(error)
        if trouble != self._trouble:
            self._say(trouble or "Redis is well again")
        self._trouble = trouble

    def _until_next(self) -> float:
        """Seconds until there is something to do even if nothing ends."""
        now = time.monotonic()
        waits = [
            max(0.0, run.after - now) if not run.pid else LOOK_EVERY for run in self._runs.values() if not run.ready
        ]
        return min(waits, default=CHECK_EVERY)

    # -- end ---------------------------------------------------------------------------------------------------------

    def stop(self, *, now: bool = False) -> None:
        """Nothing of it runs. The coordinator first, so that nothing new begins; then Flower, the workers, which finish
        what they have in hand; Valkey last. `now`, or being told twice, kills. Twice is once."""
        if self._closed:
            return
        self._closed = True
        workers = [name for name in self._runs if self._is_worker(name)]
        for names in (["coordinator"], ["flower", "page"], workers, [VALKEY]):
            self._end([self._runs[name] for name in names if name in self._runs], now=now)
            self._release()
        for listener in self._listeners:
            listener.close()
        if self._store is not None:
            self._store.close()
        shutil.rmtree(self._sockets, ignore_errors=True)
        self._folder.remove_run()
        os.close(self._lock)

    def _end(self, runs: Iterable[_Run], *, now: bool) -> None:
        left = {run.part.name: run for run in runs if run.pid}
        for name in left:
            self._children.signal(name, signal.SIGKILL if now else signal.SIGTERM)
        deadline = time.monotonic() + max((run.part.grace for run in left.values()), default=0)
        while left:
            if not now and (self._told > 1 or time.monotonic() > deadline):
                now = True
                for name, run in left.items():
                    if self._told < 2:
                        self._say(f"{name} does not end within {run.part.grace:g} s: killed")
                    self._children.signal(name, signal.SIGKILL)
            for ended in self._children.reap(0.2):
                self._runs[ended.name].pid = 0
                left.pop(ended.name, None)
                if self._is_worker(ended.name):
                    self._unreleased.append((f"{ended.name}/{ended.pid}:", False))

    # -- the rest ----------------------------------------------------------------------------------------------------

    @property
    def _embedded(self) -> bool:
        return VALKEY in self._runs

    def _is_worker(self, name: str) -> bool:
        return name not in {VALKEY, "coordinator", "flower", "page"}

    def _environment(self) -> dict[str, str]:
        """Addresses and secrets go this way: other users see every argument, and no environment."""
        ours = {f"CHANGEOVER_{key.upper()}": value for key, value in self.settings.model_dump(mode="json").items()}
        inherited = {key: value for key, value in os.environ.items() if key.upper() not in Settings.variables()}
        named = {key: str(value) for key, value in ours.items() if value not in (None, "")}
        return {**inherited, **named, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}

    def _write_run(self) -> None:
        self._folder.write_run(
            {
                "pid": os.getpid(),
                "started": self._since,
                "redis_url": self.redis_url,
                "broker_url": self.settings.broker_url,
                "result_url": self.settings.result_url,
                "flower_url": self.flower_url,
                "flower_credentials": str(self.flower_credentials or ""),
                "page_url": self.page_url,
                "logs": str(self._folder.path / "logs"),
                "processes": dict(self.pids()),
            }
        )

    def _last_words(self, run: _Run) -> str:
        said = self._said(run, lines=1) or run.words[-1:]
        last = f"its last words: {said[0][-300:]}" if said else f"see {self._folder.log(run.part.name)}"
        return f"{run.part.name} {_state(run)}, {last}"

    def _said(self, run: _Run, *, lines: int) -> list[str]:
        return last_lines(self._folder.log(run.part.name), lines=lines, since=run.log_from)

    def _see(self, name: str) -> str:
        return f"less {self._folder.log(name)}"


def _state(run: _Run) -> str:
    if run.ready:
        return f"runs as {run.pid}"
    if run.pid:
        return f"starts as {run.pid}"
    return f"ended {run.failures} times in a row" if run.failures > 1 else "has ended"


def _python(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-P", *arguments)


def _says(file: Path, text: str) -> bool:
    try:
        return file.read_text() == text
    except OSError:
        return False


def _answers(where: Path) -> bool:
    """Whether Redis has loaded its data."""
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(0.3)
        asking.connect(str(where))
        asking.sendall(b"PING\r\n")
        return asking.recv(16).startswith(b"+PONG")
    return False
