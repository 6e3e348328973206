"""What `changeover up` keeps on disk: its lock, `run.json`, logs; and a short folder for sockets."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import BadInput, Conflict

LOG_LIMIT = 8 * 1024 * 1024  # bytes after which a log makes room for the next start; one former log is kept
ANEW = "changeover down --keep-host, then changeover up: every server and HAProxy go on serving meanwhile"
_SOCKET_ROOM = 80  # bytes: HAProxy takes paths of 97, Valkey of 107, and a name is still to come


@dataclass(frozen=True)
class StateFolder:
    path: Path

    @classmethod
    def open(cls, path: Path) -> StateFolder:
        """The folder and its `logs` exist, for their owner alone. Raises `BadInput`, also for a folder of somebody
        else: whoever owns it may put another in place of anything in it."""
        path = path.expanduser().absolute()
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            _ours_alone(path)
            (path / "logs").mkdir(exist_ok=True, mode=0o700)
            _ours_alone(path / "logs")
        except OSError as error:
            raise BadInput(f"{error.strerror}: {error.filename}", place="CHANGEOVER_STATE_DIR") from None
        return cls(path)

    @property
    def lock_file(self) -> Path:
        return self.path / "up.lock"

    @property
    def run_file(self) -> Path:
        return self.path / "run.json"

    def holder(self) -> int | None:
        """The number of the `up` that holds this folder; 0 while only a part of it still ends; None when free."""
        if not is_locked(self.lock_file):
            return None
        pid = int(self.lock_file.read_text() or 0)
        return pid if pid and Path(f"/proc/{pid}").exists() else 0

    def lock(self, *, patience: float = 5.0) -> int:
        """A descriptor that holds the folder for as long as any process has it open. Raises `Conflict`.

        A child that inherits it (Valkey) keeps its data from a second Valkey even if we die first.
        """
        lock = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        end = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                pid = self.holder()
                if pid or time.monotonic() > end:
                    os.close(lock)
                    who = f"process {pid}" if pid else "a process that does not end"
                    raise Conflict(
                        f"{who} already runs on {self.path}; its logs are in {self.path / 'logs'}", next=ANEW
                    ) from None
            time.sleep(0.02)
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        return lock

    def read_run(self) -> Mapping[str, Any]:
        """What the last `up` wrote, also if it was killed; empty without one."""
        try:
            found = json.loads(self.run_file.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def write_run(self, content: Mapping[str, Any]) -> None:
        write_private(self.run_file, json.dumps(content, indent=2) + "\n")

    def remove_run(self) -> None:
        self.run_file.unlink(missing_ok=True)

    def log(self, name: str) -> Path:
        """Where that process writes."""
        return self.path / "logs" / f"{name}.log"

    def begin_log(self, name: str) -> Path:
        """The same, for a process about to start. A log that has grown too long becomes `NAME.log.1` first."""
        path = self.log(name)
        with suppress(FileNotFoundError):
            if path.stat().st_size > LOG_LIMIT:
                path.replace(path.with_suffix(".log.1"))
        return path

    def sockets(self) -> Path:
        """A folder with a short path, for this user alone and the same at each start. Raises `Conflict`."""
        base = Path(os.environ.get("XDG_RUNTIME_DIR") or "/nowhere")
        if not (base.is_dir() and len(os.fsencode(base)) < _SOCKET_ROOM // 2 and base.stat().st_uid == os.getuid()):
            base = Path("/tmp")  # noqa: S108  # what is found there is checked for its owner and mode below
        own = base / f"changeover-{os.getuid()}"
        folder = own / hashlib.sha256(os.fsencode(self.path)).hexdigest()[:10]
        for each in (own, folder):
            with suppress(FileExistsError):
                each.mkdir(mode=0o700)
            found = each.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
                raise Conflict(f"{each} is not a folder that is ours alone", next=f"ls -ld {each}")
        return folder


def _ours_alone(folder: Path) -> None:
    """Raises `OSError`, and `BadInput` for one that is not ours. One that was made with a wide umask is closed."""
    for found in (folder.lstat(), folder.stat()):  # a link too: whoever owns it may let it point elsewhere
        if found.st_uid != os.getuid():
            raise BadInput(f"{folder} belongs to another user (uid {found.st_uid})", place="CHANGEOVER_STATE_DIR")
    if folder.stat().st_mode & 0o077:
        folder.chmod(0o700)


def is_locked(file: Path) -> bool:
    """Whether some living process holds that lock file; a zombie holds none."""
    try:
        lock = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def write_private(path: Path, text: str) -> None:
    """All or nothing, readable by its owner alone from the first byte on."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(fd)
    draft.replace(path)


def last_lines(log: Path, *, lines: int, since: int = 0, limit: int = 4096) -> list[str]:
    """The end of a log, from the byte `since` on, without empty lines."""
    try:
        with log.open("rb") as file:
            file.seek(max(since, log.stat().st_size - limit))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-lines:]
