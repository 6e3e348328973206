"""What the cloud knows nothing of: the shop's database and its users, and a guard that clears up if the demo dies."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.demo.database import Audit, audit
from orchestrator.errors import ChangeoverError

RATE = 300
SITE = Path(__file__).with_name("site.py")
Tally = Mapping[str, Mapping[str, int]]


@dataclass(kw_only=True)
class Surroundings:
    """`short` is a folder with a short path, for sockets; `out` keeps what should outlive the demo. `rate`: requests a
    second."""

    short: Path
    out: Path
    rate: int = RATE
    names: list[str] = field(default_factory=list)  # of the servers
    ids: dict[str, str] = field(default_factory=dict)
    database: str = ""
    _children: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _load: subprocess.Popen[bytes] | None = None
    _guard: subprocess.Popen[bytes] | None = None

    # -- what is there --------------------------------------------------------------------------------------------

    def _watch(self, *more: str) -> None:
        """From now on all is cleared up when we end, however that is."""
        self._guard = subprocess.Popen(  # noqa: S603 - our own program
            [*_python("guard"), "--remove", str(self.short), *more],
            stdin=subprocess.PIPE,
            start_new_session=True,
            cwd="/",
        )

    def _files(self) -> Path:
        """What every server begins with. Written once: a host copies it while servers are starting."""
        files = self.short / "files"
        if not files.exists():
            files.mkdir()
            shutil.copy(SITE, files / "site.py")
            (files / "release.json").write_text(json.dumps({"release": "7"}))
            (files / "catalogue.txt").write_text("lamp\n" * 20000)
            (files / "secret.key").write_text("not for others\n")
            (files / "secret.key").chmod(0o640)
        return files

    def _start_database(self) -> int:
        reading, writing = os.pipe()
        argv = [*_python("database"), "--file", str(self.short / "orders.db"), "--ready-fd", str(writing)]
        self._children.append(self._spawn(argv, pass_fds=(writing,), log="database"))
        os.close(writing)
        with os.fdopen(reading) as ready:
            return int(ready.readline())

    def _wait_for(self, address: str, port: int, seconds: float = 20.0) -> None:
        until = time.monotonic() + seconds
        while True:
            try:
                socket.create_connection((address, port), timeout=1).close()
            except OSError as error:
                if time.monotonic() > until:
                    raise ChangeoverError(f"nothing answers at {address}:{port}: {error}") from error
                time.sleep(0.02)
            else:
                return

    # -- what only some clouds have ---------------------------------------------------------------------------------

    def misbehave(self) -> str:
        """The cloud begins to do wrong what such a cloud does wrong; in words, if it does."""
        return ""

    def trouble_so_far(self) -> str:
        """What has come of that, in words."""
        return ""

    def tally(self) -> Tally:
        """By kind of call to the cloud: how many there were, and of these how many were throttled, lost or refused."""
        return {}

    def left_over(self, upgraded: Sequence[str]) -> Sequence[str]:  # noqa: ARG002 - for a scene that can tell
        """What is there that should not be, when exactly these servers are upgraded, beside servers themselves."""
        return ()

    # -- users ----------------------------------------------------------------------------------------------------

    def _send_users(self, targets: Iterable[str]) -> None:
        """Open-loop traffic on these, HOST:PORT each, from now until `dismiss_users`."""
        argv = [*_python("load"), "--rate", str(self.rate), "--out", str(self.out), "--site-host", "shop.test"]
        for target in targets:
            argv += ["--target", target]
        self._load = self._spawn(argv, log="load")

    def mark(self, word: str) -> None:
        """A phase of the load begins."""
        with (self.out / "marks.jsonl").open("a") as marks:
            marks.write(json.dumps({"t": time.time(), "mark": word}) + "\n")

    def users(self) -> Mapping[str, Any]:
        """What the users have seen, at most a second old."""
        try:
            found: Mapping[str, Any] = json.loads((self.out / "load.json").read_text())
        except (OSError, ValueError):
            return {}
        return found

    def dismiss_users(self) -> tuple[Mapping[str, Any], Audit]:
        """They send nothing more and wait for what is in flight; what they saw, and what the database holds."""
        assert self._load is not None
        self._load.send_signal(signal.SIGTERM)
        self._load.wait(30)
        seen = self.users()
        return seen, audit(self.database, str(seen["run"]), seen["orders"]["unacknowledged"])

    # -- the end --------------------------------------------------------------------------------------------------

    def _spawn(self, argv: list[str], *, log: str, pass_fds: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
        """A child that ends with us, whatever happens to us."""
        wrapper = [sys.executable, "-P", "-m", "orchestrator.reaped", str(int(signal.SIGTERM)), str(os.getpid())]
        with (self.out / f"{log}.log").open("ab") as out:
            return subprocess.Popen(  # noqa: S603 - our own programs
                [*wrapper, "/", "--", *argv],
                pass_fds=pass_fds,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def clear(self) -> None:
        """Nothing of it runs any more."""
        for child in (self._load, *self._children):
            if child is not None and child.poll() is None:
                child.terminate()
        for child in (self._load, *self._children):
            if child is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(15)
                if child.poll() is None:
                    child.kill()
                    child.wait()
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()
            self._guard.wait(60)


def _python(module: str) -> list[str]:
    return [sys.executable, "-P", "-m", f"orchestrator.demo.{module}"]
