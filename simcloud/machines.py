"""Instances as real processes: each on the address that its cloud gave it, with a folder for a disk."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

SITE = Path(__file__).with_name("site.py")
CLAIM_PORT = 1066  # bound on the last address of a block for as long as it is ours


LOOPBACK = "127.66"


def claim_block(first: str = LOOPBACK) -> tuple[int, socket.socket]:
    """N of a block 127.66.N.0/24 that no other cloud on this machine uses, and the socket that holds it. `first`: two
    other numbers for its addresses to begin with."""
    for block in range(1, 255):
        claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            claim.bind((f"{first}.{block}.254", CLAIM_PORT))
        except OSError:
            claim.close()
            continue
        return block, claim
    raise RuntimeError(f"all blocks of {first}.0.0/16 are in use by clouds of other processes, or none is of this host")


# What stands for the programs of a machine: an absolute path means the machine's own root, which is its folder.
PROGRAM = """#!/bin/sh
count=$#
while [ "$count" -gt 0 ]; do
  word=$1; shift
  case $word in /*) if [ -e "$SIM_ROOT$word" ] || [ "${0##*/}" = stat ]; then word=$SIM_ROOT$word; fi ;; esac
  set -- "$@" "$word"
  count=$((count - 1))
done
PATH=$SIM_PATH exec "${0##*/}" "$@"
"""
DF = """#!/bin/sh
PATH=$SIM_PATH
echo "Filesystem Type 1024-blocks Used Available Capacity Mounted"
echo "/dev/root ext4 $(cat "$SIM_ROOT/proc/disk") $(du -sk "$SIM_ROOT" | cut -f1) 0 0% /"
"""
SYSTEMCTL = """#!/bin/sh
PATH=$SIM_PATH exec cat "$SIM_ROOT/proc/failed"
"""
MARK = "SIM_ROOT"  # in the environment of what a script runs: which machine it is on
RUN = "run"
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"


@dataclass
class Machine:
    """`memory` and `disk` in bytes are what its programs say that it has."""

    id: str
    address: str
    folder: Path
    memory: int
    disk: int
    mode: str = ""
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class Programs:
    """What machines run, and what a new disk begins with. In the words of `command`, {address}, {port}, {folder} (its
    disk), {name} and {mode} stand for what they are of each machine."""

    command: tuple[str, ...] = (sys.executable, "-S", str(SITE), "{address}", "{port}", "{folder}", "{name}", "{mode}")
    files: Path | None = None


class Machines:
    """The processes of one cloud. `port`: where each site listens. None of them outlives `close`."""

    def __init__(self, folder: Path, *, port: int, programs: Programs | None = None) -> None:
        self._folder, self._port, self._runs = folder, port, programs or Programs()
        self._programs = folder / ".programs"
        self._programs.mkdir()
        for name in ("awk", "cat", "stat"):
            _program(self._programs / name, PROGRAM)
        _program(self._programs / "df", DF)
        _program(self._programs / "systemctl", SYSTEMCTL)
        self._lock = threading.Lock()
        self._all: dict[str, Machine] = {}
        self._scripts: set[subprocess.Popen[str]] = set()

    def create(self, id: str, address: str, *, copy: Path, memory: int, disk: int, mode: str = "") -> None:
        """A machine whose disk is a copy of that folder, or new if there is none; it is off."""
        folder = self._folder / id
        first = copy if copy.is_dir() else self._runs.files
        if first is not None:
            shutil.copytree(first, folder)
        else:
            folder.mkdir()
            (folder / "index.html").write_text("hello\n")
        with self._lock:
            self._all[id] = Machine(id=id, address=address, folder=folder, memory=memory, disk=disk, mode=mode)

    def start(self, id: str) -> None:
        with self._lock:
            machine = self._all.get(id)
            if machine is None or machine.process is not None:
                return
            self._boot(machine)
            if machine.mode == "dead":  # a kernel that panics: nothing ever answers
                return
            told = {"name": machine.id, "address": machine.address, "mode": machine.mode}
            told |= {"folder": str(machine.folder), "port": str(self._port)}
            machine.process = subprocess.Popen(  # noqa: S603 - our own program, no shell
                [word.format_map(told) for word in self._runs.command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=machine.folder,
                env=_plain_environment(),
                start_new_session=True,
            )

    def _boot(self, machine: Machine) -> None:
        """What its kernel tells; and its memory is empty, /run with it."""
        shutil.rmtree(machine.folder / RUN, ignore_errors=True)
        told = machine.folder / "proc"
        for name, text in {
            "meminfo": f"MemTotal: {machine.memory // 1024} kB\nMemAvailable: {machine.memory // 2048} kB\n",
            "disk": str(machine.disk // 1024),
            "failed": "",
            "sys/kernel/random/boot_id": f"{uuid.uuid4()}\n",
            "net/tcp": "",
            "net/tcp6": "",
        }.items():
            (told / name).parent.mkdir(parents=True, exist_ok=True)
            (told / name).write_text(text)

    def run(self, id: str, script: str, *, seconds: float) -> tuple[bool, str]:
        """Runs a shell script inside a machine that is on: whether it ended well, and what it said."""
        with self._lock:
            machine = self._all[id]
        (machine.folder / "proc" / "net" / "tcp").write_text(_connections(machine.address))
        own = {MARK: str(machine.folder), "SIM_PATH": SYSTEM_PATH}
        own["CHANGEOVER_RUN"] = str(machine.folder / RUN / "changeover")
        script_of_ours = subprocess.Popen(  # noqa: S603 - whoever may send a command may run it, on a machine of ours
            ["/bin/sh", "-c", script],
            cwd=machine.folder,
            env={**own, "PATH": f"{self._programs}:{SYSTEM_PATH}"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            start_new_session=True,  # so that it ends with all that it has started
        )
        with self._lock:
            self._scripts.add(script_of_ours)
        try:
            output, _ = script_of_ours.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            return False, "it took too long"
        finally:
            _end(script_of_ours)
            with self._lock:
                self._scripts.discard(script_of_ours)
        return script_of_ours.returncode == 0, output

    def folder(self, id: str) -> Path:
        """Its disk."""
        with self._lock:
            return self._all[id].folder

    def stop(self, id: str) -> None:
        with self._lock:
            machine = self._all.get(id)
            process = machine.process if machine is not None else None
            if machine is not None:
                machine.process = None
        if process is not None:
            process.send_signal(signal.SIGKILL)
            process.wait()
        if machine is not None and (machine.folder / RUN).exists():
            _end_inside(machine.folder)

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
            shutil.copytree(machine.folder, to, ignore=lambda at, _: [RUN] if at == str(machine.folder) else [])

    def running(self) -> Mapping[str, int]:
        """Process ids of the machines that are on."""
        with self._lock:
            return {each.id: each.process.pid for each in self._all.values() if each.process is not None}

    def close(self) -> None:
        with self._lock:
            scripts = list(self._scripts)
        for script in scripts:
            _end(script)
        for id in list(self._all):
            self.destroy(id)


def _connections(address: str) -> str:
    """What this machine's own kernel tells of that address alone."""
    number = f" {int.from_bytes(socket.inet_aton(address), 'little'):08X}:"
    lines = Path("/proc/net/tcp").read_text().splitlines()
    return "".join(f"{line}\n" for line in lines if number in line.partition(":")[2][:20])


def _plain_environment() -> dict[str, str]:
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}


def _end_inside(folder: Path) -> None:
    """Ends what scripts have left running on that machine: it is off."""
    mark = f"{MARK}={folder}".encode()
    for entry in os.scandir("/proc"):
        with suppress(OSError, ValueError):
            pid = int(entry.name)
            if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGKILL)


def _end(script: subprocess.Popen[str]) -> None:
    """Ends it and all that it has started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(script.pid, signal.SIGKILL)
    script.wait()


def _program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)
