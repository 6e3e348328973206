"""Servers: a folder and a process on its own loopback address.

pending -> running -> stopping -> stopped -> pending ... -> terminated; failed when the process ends by itself, as a
hypervisor does not start a crashed guest again. A call changes `want` and `state` under the one lock and
returns; a thread of that server then brings it about, one at a time a server.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from providers.compute import Given, Size
from providers.errors import Busy, Conflict, GuardRefused, NotFound, Refused, Transient
from providers.local_host import processes, records, tree
from providers.local_host.addresses import Addresses, bindable
from providers.local_host.chores import Chore
from providers.local_host.processes import BOOT_MARK, Launch, Proc, Processes
from providers.local_host.records import Program, ServerRecord, Want

log = logging.getLogger(__name__)

MANAGED, DISPOSABLE = "changeover:managed", "changeover:disposable"
TOMBSTONE_SECONDS = 7 * 86400.0
CONSOLE_LIMIT = 8 << 20
RUN_SECONDS = 30.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass
class _Live:
    """A process that runs for a server."""

    proc: Proc
    boot: str
    gone: threading.Event = field(default_factory=threading.Event)
    status: int | None = None


class Servers:
    """All servers of one host. Thread-safe. `folder` holds one folder a server: record.json, root/, console.log."""

    def __init__(
        self, folder: Path, *, host: Path, table: Processes, addresses: Addresses, images: Path, fills: int = 2
    ) -> None:
        self._folder, self._host, self._images = folder, host, images
        self._table, self._addresses = table, addresses
        self._lock = threading.RLock()
        self._records: dict[str, ServerRecord] = {}
        self._live: dict[str, _Live] = {}
        self._work: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._fills = threading.BoundedSemaphore(fills)
        self._closing = False
        folder.mkdir(mode=0o700, exist_ok=True)

    # What there is

    def all(self) -> list[ServerRecord]:
        with self._lock:
            return list(self._records.values())

    def get(self, id: str) -> ServerRecord:
        """`NotFound` for an unknown one; a terminated one is known for a while."""
        with self._lock:
            if id not in self._records:
                raise NotFound(f"no server {id!r} here")
            return self._records[id]

    def filled(self, id: str) -> ServerRecord:
        """A server that has its files. `Busy` while they are being made, `NotFound` once it is terminated."""
        record = self._present(id)
        if not record.filled:
            raise Busy(f"server {id} has no files yet; it is {record.state}")
        return record

    def root(self, id: str) -> Path:
        return self._folder / id / "root"

    def console(self, id: str) -> Path:
        return self._folder / id / "console.log"

    def proc(self, id: str) -> Proc | None:
        with self._lock:
            live = self._live.get(id)
        return live.proc if live else None

    # What may be asked of them

    def create(
        self, *, name: str, program: Program, size: Size, tags: Mapping[str, str], files_from: str
    ) -> ServerRecord:
        """A new server of its own, started from a command on a copy of a folder. `Conflict` if its name is taken."""
        _check(name, size)
        with self._lock:
            if any(r.name == name and r.state != "terminated" for r in self._records.values()):
                raise Conflict(f"a server is already called {name!r}")
            return self._add(name=name, program=program, size=size, tags=tags, files_from=files_from)

    def ensure(
        self, *, token: str, name: str, image: str, image_disk: int, like: str, size: Size, tags: Mapping[str, str]
    ) -> ServerRecord:
        """The one server of that token, made if it is not there. See `providers.compute.Compute.ensure_server`."""
        _check(name, size)
        with self._lock:
            for made in self._records.values():
                if made.token == token:
                    return _same(made, image=image, like=like, size=size)
            source = self._present(like)
            if image_disk > size.disk:
                raise Refused(f"image {image} needs {image_disk} bytes of disk, the size has {size.disk}")
            if any(r.name == name and r.state != "terminated" for r in self._records.values()):
                raise Conflict(f"a server is already called {name!r} and was not made by this key")
            return self._add(
                name=name,
                program=source.program,
                size=size,
                # What says who owns or routes a server is not inherited: a clone must not look like the original.
                tags={k: v for k, v in source.tags.items() if not k.startswith(("changeover:", "traffic:"))}
                | dict(tags),
                token=token,
                image=image,
                like=like,
            )

    def stop(self, id: str, *, given: Given | None = None) -> None:
        with self._lock:
            record = self._present(id)
            if record.state == "stopped" or record.want == "terminated":
                return
            _compare(record, given)
            self._guard(record, "stopped")
            self._want(record, "stopped")

    def start(self, id: str, *, given: Given | None = None) -> None:
        with self._lock:
            record = self._present(id)
            if record.state in ("running", "pending"):
                return
            _compare(record, given)
            if record.state == "stopping":
                raise Busy(f"server {id} is still stopping")
            self._open()
            self._save(replace(record, want="running", state="pending", reason=""))
            self._begin(id)

    def terminate(self, id: str, *, given: Given | None = None) -> None:
        with self._lock:
            record = self.get(id)
            if record.want == "terminated" and record.state != "failed":
                return
            self._guard(record, "terminated")
            if "1" not in (record.tags.get(MANAGED), record.tags.get(DISPOSABLE)):
                raise GuardRefused(f"server {id} carries neither {MANAGED}=1 nor {DISPOSABLE}=1: it is not ours to end")
            _compare(record, given)
            self._want(record, "terminated")

    def protect(self, id: str, on: bool, *, given: Given | None = None) -> None:
        with self._lock:
            record = self._present(id)
            _compare(record, given)
            self._save(replace(record, protected=on))

    def tag(self, id: str, tags: Mapping[str, str | None], *, given: Given | None = None) -> None:
        with self._lock:
            record = self._present(id)
            _compare(record, given)
            merged: dict[str, str | None] = {**record.tags, **tags}
            self._save(replace(record, tags={k: v for k, v in merged.items() if v is not None}))

    def run(self, id: str, script: str) -> str:
        """What a shell script says that is run inside it, as one of its processes. `Transient` if it does not run."""
        record = self._present(id)
        with self._lock:
            live = self._live.get(id)
        if live is None or record.state != "running":
            raise Transient(f"server {id} is {record.state}", ambiguous=False)
        launch = self._launch(record, live.boot)
        notes = self._folder / id / "run" / live.boot  # as a memory file system: another boot knows nothing of it
        notes.parent.mkdir(mode=0o700, exist_ok=True)
        process = subprocess.Popen(  # noqa: S603 - whoever reaches the host's socket may run what a server may
            ["/bin/sh", "-c", script],
            cwd=launch.cwd,
            env={**launch.env, "CHANGEOVER_RUN": str(notes)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            return process.communicate(timeout=RUN_SECONDS)[0]
        except subprocess.TimeoutExpired:
            return ""
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    @contextmanager
    def held(self, id: str) -> Iterator[tuple[Path, list[int]]]:
        """Its folder and its processes, the first of which leads their group; none if it does not run.

        Nothing starts or ends it meanwhile, and should something have made it stand still, it runs on afterwards.
        """
        with self._work[id]:
            self.filled(id)
            with self._lock:
                live = self._live.get(id)
            if live is None:
                yield self.root(id), []
                return
            try:
                yield self.root(id), [live.proc.pid, *processes.marked(BOOT_MARK, live.boot)]
            finally:
                processes.signal_group(live.proc, signal.SIGCONT)

    # Changes of state

    def _present(self, id: str) -> ServerRecord:
        record = self.get(id)
        if record.want == "terminated":
            raise NotFound(f"server {id} is terminated")
        return record

    def _open(self) -> None:
        if self._closing:
            raise Transient("the host is shutting down", ambiguous=False)

    def _guard(self, record: ServerRecord, verb: str) -> None:
        self._open()
        if record.protected:
            raise GuardRefused(f"server {record.id} is protected: it may not be {verb}")

    def _want(self, record: ServerRecord, want: Want) -> None:
        self._save(replace(record, want=want, state="stopping"))
        self._begin(record.id)

    def _add(self, *, program: Program, **given: Any) -> ServerRecord:
        self._open()
        used = {r.address for r in self._records.values() if r.state != "terminated"}
        record = ServerRecord(
            id=f"srv-{uuid.uuid4().hex[:12]}",
            address=self._addresses.take(used, program.port),
            program=program,
            launched=time.time(),
            **given,
        )
        (self._folder / record.id).mkdir(mode=0o700)
        self._save(record)
        self._begin(record.id)
        return record

    def _save(self, record: ServerRecord) -> None:
        with self._lock:
            was = self._records.get(record.id)
            records.write(self._folder / record.id / "record.json", record)
            self._records[record.id] = record
        if was is None or was.state != record.state:
            log.info(
                "%s %s: %s -> %s %s", record.id, record.name, was.state if was else "", record.state, record.reason
            )

    def _begin(self, id: str) -> None:
        threading.Thread(target=self._bring_about, args=(id,), name=id, daemon=True).start()

    def _bring_about(self, id: str) -> None:
        with self._work[id]:
            while True:
                record = self.get(id)
                try:
                    match record.state:
                        case "pending" if not self._closing and id not in self._live:
                            self._boot(self._fill(record))
                        case "stopping":
                            self._end(record)
                        case _:
                            return
                except Exception as error:  # whatever it was, it is this server's failure and nobody else's
                    log.exception("%s", id)
                    self._fail(id, str(error))
                    return

    def _fail(self, id: str, reason: str) -> None:
        with self._lock:
            self._save(replace(self.get(id), state="failed", reason=reason))

    def _fill(self, record: ServerRecord) -> ServerRecord:
        """Its folder, complete or not at all."""
        if not record.filled:
            partial = self._folder / record.id / "partial"
            image = str(self._images / f"{record.image}.tar.zst") if record.image else ""
            with self._fills:
                _remove(partial)
                if image or record.files_from:
                    with Chore(self._host, "fill", image=image, folder=record.files_from, target=str(partial)) as chore:
                        used = int(chore.answer()["disk"])
                else:
                    partial.mkdir(mode=0o755)
                    used = 0
                _remove(self.root(record.id))
                partial.rename(self.root(record.id))
        else:
            used = tree.usage(self.root(record.id))
        if used > record.size.disk:
            raise Refused(f"its files need {used} bytes of disk, its size has {record.size.disk}")
        with self._lock:
            self._save(replace(self.get(record.id), filled=True))
            return self.get(record.id)

    def _boot(self, record: ServerRecord) -> None:
        if not bindable(record.address, record.program.port):
            raise Refused(f"somebody else listens on {record.address}:{record.program.port}")
        boot = uuid.uuid4().hex
        with self._lock:
            if self.get(record.id).state != "pending" or self._closing:
                return
            self._save(replace(self.get(record.id), boot=boot, pid=0, started=0))
            proc, heard = self._table.spawn(
                self._launch(record, boot), lambda status: self._exited(record.id, boot, status)
            )
            self._live[record.id] = _Live(proc, boot)
            self._save(replace(self.get(record.id), pid=proc.pid, started=proc.started))
        why = processes.wait_started(heard)
        with self._lock:
            now = self.get(record.id)
            if why and now.boot == boot and now.state in ("pending", "failed"):
                processes.signal_group(proc, signal.SIGKILL)
                self._save(replace(now, state="failed", reason=why))
            elif now.boot == boot and now.state == "pending":
                self._save(replace(now, state="running", launched=time.time(), reason=""))

    def _launch(self, record: ServerRecord, boot: str) -> Launch:
        program, root = record.program, self.root(record.id)
        places = {
            "{address}": record.address,
            "{port}": str(program.port),
            "{root}": str(root),
            "{name}": record.name,
        }

        def filled(text: str) -> str:
            for place, value in places.items():
                text = text.replace(place, value)
            return text

        env = {"HOME": str(root), **{key: filled(value) for key, value in program.env.items()}}
        env |= {"HOST": record.address, "ADDRESS": record.address, "PORT": str(program.port)}
        return Launch(
            command=[filled(word) for word in program.command],
            env=processes.environment(self._host, boot, env),
            cwd=root,
            log=self.console(record.id),
            data=record.size.memory,
            fsize=record.size.disk,
        )

    def _exited(self, id: str, boot: str, status: int | None) -> None:
        with self._lock:
            live = self._live.get(id)
            if live is None or live.boot != boot:
                return
            del self._live[id]
            live.status = status
            live.gone.set()
            record = self.get(id)
            if record.state in ("running", "pending"):
                reason = f"{processes.describe(status)}{_last_line(self.console(id))}"
                self._save(replace(record, state="failed", reason=reason))
        processes.kill_marked(BOOT_MARK, boot)

    def _end(self, record: ServerRecord) -> None:
        """Ends its process, gently first. The order is from outside in: no process, then no folder, then no record."""
        reason = ""
        with self._lock:
            live = self._live.get(record.id)
        if live is not None:
            processes.signal_group(live.proc, signal.SIGTERM)
            if not live.gone.wait(record.program.grace):
                reason = f"did not end within {record.program.grace:g} s and was killed"
                processes.signal_group(live.proc, signal.SIGKILL)
                live.gone.wait(10)
        if record.boot:
            processes.kill_marked(BOOT_MARK, record.boot)
        with self._lock:
            now = self.get(record.id)
            if now.want != "terminated":
                self._save(replace(now, state="stopped", reason=reason, pid=0, started=0, ended=time.time()))
                return
        for name in ("partial", "root", "run"):
            _remove(self._folder / record.id / name)
        self.console(record.id).unlink(missing_ok=True)
        with self._lock:
            now = self.get(record.id)
            self._save(
                replace(now, state="terminated", reason=reason, pid=0, started=0, ended=time.time(), filled=False)
            )

    # The host's own life

    def load(self) -> None:
        """Takes up what a former host left: live processes are adopted, those meant to run are started again."""
        for folder in sorted(self._folder.iterdir()):
            path = folder / "record.json"
            if not path.exists():  # the host died before the record was written, so nothing else was either
                _remove(folder)
                continue
            record = records.server_from(records.read(path))
            if record.state == "terminated" and time.time() - record.ended > TOMBSTONE_SECONDS:
                _remove(folder)
                continue
            self._records[record.id] = record
        for record in self.all():
            self._take_up(record)

    def _take_up(self, record: ServerRecord) -> None:
        # One that a former host was ending when it died is ended for good, then started anew if it is meant to run.
        half_ended = record.want == "running" and record.state == "stopping"
        adopted = bool(record.boot) and not half_ended and self._adopt(record)
        with self._lock:
            now = self.get(record.id)
            if adopted and now.want == "running" and now.state != "failed":
                self._save(replace(now, state="running"))
            elif now.want == "running" and now.state in ("running", "pending", "stopping", "stopped"):
                if now.boot:
                    processes.kill_marked(BOOT_MARK, now.boot)
                self._save(replace(now, state="pending", pid=0, started=0))
            elif now.state == "failed" and now.boot:
                processes.kill_marked(BOOT_MARK, now.boot)
        self._begin(record.id)

    def _adopt(self, record: ServerRecord) -> bool:
        proc = Proc(pid=record.pid, started=record.started)
        if not record.pid:  # the host died between starting the process and writing its number down
            leaders = [pid for pid in processes.marked(BOOT_MARK, record.boot) if os.getsid(pid) == pid]
            found = processes.identify(leaders[0]) if leaders else None
            if found is None:
                return False
            proc = found
        with self._lock:
            self._live[record.id] = _Live(proc, record.boot)
            if not self._table.adopt(proc, lambda status: self._exited(record.id, record.boot, status)):
                del self._live[record.id]
                return False
            self._save(replace(record, pid=proc.pid, started=proc.started))
        processes.signal_group(proc, signal.SIGCONT)  # it may stand still for an image that nobody makes any more
        log.info("%s %s: adopted pid %d", record.id, record.name, proc.pid)
        return True

    def tidy(self) -> None:
        """Keeps the consoles from growing for ever; their writers append, so cutting them is safe."""
        for record in self.all():
            with suppress(FileNotFoundError):
                if self.console(record.id).stat().st_size > CONSOLE_LIMIT:
                    os.truncate(self.console(record.id), 0)

    def close(self) -> None:
        """Ends every process. What was wanted stays wanted: the next host on this folder starts it again."""
        with self._lock:
            self._closing = True
            for record in self.all():
                if record.state in ("running", "pending"):
                    self._save(replace(record, state="stopping"))
        threads = [
            threading.Thread(target=self._bring_about, args=(r.id,)) for r in self.all() if r.state == "stopping"
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _compare(record: ServerRecord, given: Given | None) -> None:
    for name, value in (given or {}).items():
        if record.tags.get(name) != value:
            found = record.tags.get(name)
            raise GuardRefused(f"server {record.id}: {name} is {found!r}, not {value!r}: that was decided before")


def _same(made: ServerRecord, *, image: str, like: str, size: Size) -> ServerRecord:
    if (made.image, made.like, made.size) != (image, like, size):
        raise Conflict(f"this key already made {made.id} with another image, original or size")
    if made.want == "terminated":
        raise Refused(f"this key made {made.id}, which is terminated: the attempt is used up")
    return made


def _check(name: str, size: Size) -> None:
    if not _NAME.fullmatch(name):
        raise Refused(f"server name {name!r}: letters, digits, '.', '_' and '-' only, at most 63, no other first")
    if size.memory < 1 << 20 or size.disk < 1 << 16:
        raise Refused(f"size of {name!r}: at least 1 MiB of memory and 64 KiB of disk")


def _remove(path: Path) -> None:
    if not path.exists():
        return
    try:
        shutil.rmtree(path)
    except PermissionError:  # a server may take its own rights away, on a folder that it made
        for folder, names, _ in os.walk(path):
            for name in names:
                if not Path(folder, name).is_symlink():
                    Path(folder, name).chmod(0o700)
        shutil.rmtree(path)


def _last_line(path: Path) -> str:
    with suppress(OSError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 2000))
        lines = file.read().decode(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        if said:
            return f"; it last said: {said[-1][:200]}"
    return ""
