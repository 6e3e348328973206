"""Instances as real processes: each on the address that its cloud gave it, with a folder for a disk."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

SITE = Path(__file__).with_name("site.py")
CLAIM_PORT = 1066  # bound on the last address of a block for as long as it is ours


def claim_block() -> tuple[int, socket.socket]:
    """A block 127.66.N.0/24 that no other cloud on this machine uses, and the socket that holds it."""
    for block in range(1, 255):
        claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            claim.bind((f"127.66.{block}.254", CLAIM_PORT))
        except OSError:
            claim.close()
            continue
        return block, claim
    raise RuntimeError("all blocks of 127.66.0.0/16 are in use by clouds of other processes")


@dataclass
class Machine:
    id: str
    address: str
    folder: Path
    mode: str = ""
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    boots: int = 0


class Machines:
    """The processes of one cloud. `port`: where each site listens. None of them outlives `close`."""

    def __init__(self, folder: Path, *, port: int) -> None:
        self._folder, self._port = folder, port
        self._lock = threading.Lock()
        self._all: dict[str, Machine] = {}

    def create(self, id: str, address: str, *, disk: Path | None, mode: str = "") -> None:
        """A machine whose disk is a copy of that folder; it is off."""
        folder = self._folder / id
        if disk is not None and disk.is_dir():
            shutil.copytree(disk, folder)
        else:
            folder.mkdir()
            (folder / "index.html").write_text("hello\n")
        with self._lock:
            self._all[id] = Machine(id=id, address=address, folder=folder, mode=mode)

    def start(self, id: str) -> None:
        with self._lock:
            machine = self._all.get(id)
            if machine is None or machine.process is not None:
                return
            machine.boots += 1
            if machine.mode == "dead":  # a kernel that panics: nothing ever answers
                return
            argv = [sys.executable, "-S", str(SITE), machine.address, str(self._port), str(machine.folder)]
            machine.process = subprocess.Popen(  # noqa: S603 - our own program, no shell
                [*argv, machine.id, machine.mode],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=machine.folder,
                env=_plain_environment(),
                start_new_session=True,
            )

    def stop(self, id: str) -> None:
        with self._lock:
            machine = self._all.get(id)
            process = machine.process if machine is not None else None
            if machine is not None:
                machine.process = None
        if process is not None:
            process.send_signal(signal.SIGKILL)
            process.wait()

    def reboot(self, id: str) -> None:
        self.stop(id)
        self.start(id)

    def destroy(self, id: str) -> None:
        self.stop(id)
        with self._lock:
            machine = self._all.pop(id, None)
        if machine is not None:
            shutil.rmtree(machine.folder, ignore_errors=True)

    def snapshot(self, id: str, to: Path) -> None:
        """Copies the disk as it is at this moment."""
        with self._lock:
            machine = self._all.get(id)
        if machine is not None:
            shutil.copytree(machine.folder, to)

    def running(self) -> Mapping[str, int]:
        """Process ids of the machines that are on."""
        with self._lock:
            return {each.id: each.process.pid for each in self._all.values() if each.process is not None}

    def close(self) -> None:
        for id in list(self._all):
            self.destroy(id)


def _plain_environment() -> dict[str, str]:
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
