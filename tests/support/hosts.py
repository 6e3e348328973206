"""Hosts: namespaces of network, mounts, processes and names, joined by wires that can be cut. Nothing else is shared
but the programs, which no host can change. They end with the test process, however that ends.

Needs root on Linux, and Debian's iproute2 and util-linux."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

ROOT = Path(__file__).parents[2]
NEW = ("--net", "--mount", "--pid", "--uts", "--ipc")
# What a host has for itself, empty at first; what else is on the root's file system it can only read.
OWN = ("/tmp", "/var/tmp", "/run", "/dev/shm", str(Path.home()))
# Words: its name, how many folders are covered, these, and folders of programs that are to be seen all the same.
FIRST = """
set -e
hostname "$1"; covered=$2; shift 2
mount -t tmpfs tmpfs /mnt
number=0
for folder in "$@"; do
    number=$((number + 1))
    test $number -le $covered || { mkdir /mnt/$number; mount --bind "$folder" /mnt/$number; }
done
number=0
for folder in "$@"; do
    number=$((number + 1))
    if test $number -le $covered; then
        mount -t tmpfs -o mode=1777 tmpfs "$folder"
    else
        test -d "$folder" || mkdir -p "$folder"
        mount --bind /mnt/$number "$folder"
        mount -o remount,bind,ro "$folder"
        umount /mnt/$number
    fi
done
umount /mnt
mount -o remount,bind,ro /
ip link set lo up
echo ready
exec cat
"""
_libc = ctypes.CDLL(None, use_errno=True)


def needed() -> None:
    """Skips the test where there can be no such hosts."""
    for program in ("ip", "unshare", "nsenter", "mount"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}: Debian's iproute2 and util-linux")
    tried = subprocess.run(["unshare", *NEW, "--fork", "true"], capture_output=True, text=True, check=False, timeout=20)
    if os.geteuid() != 0 or tried.returncode:
        pytest.skip(f"needs namespaces, as root: {tried.stderr.strip() or 'this is not root'}")


class Host:
    """`logs`: outside of it, where what its processes say goes."""

    def __init__(self, name: str, logs: Path) -> None:
        self.name, self._logs = name, logs
        programs = [str(each) for each in _apart([ROOT, Path(sys.prefix), Path(sys.base_prefix)])]
        own = [folder for folder in OWN if Path(folder).is_dir()]
        words = ["sh", "-c", FIRST, "first", name, str(len(own)), *own, *programs]
        with (logs / f"{name}.log").open("wb") as log:
            # Its first process ends with its input, which is ours; and all others of it end with that one.
            self._first = subprocess.Popen(
                ["unshare", *NEW, "--fork", "--mount-proc", "--kill-child", *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self._first.stdout is not None
        said = self._first.stdout.readline()
        assert said == b"ready\n", f"{name} does not begin: {(logs / f'{name}.log').read_text()}"
        outer = self._first.pid
        self.pid = int(Path(f"/proc/{outer}/task/{outer}/children").read_text())
        self._running: list[subprocess.Popen[Any]] = []

    def start(self, name: str, *words: object, env: Mapping[str, str], stdin: Any = None, stdout: Any = None) -> Any:
        """A process of it, with that environment alone. Ended by `end`, with the host."""
        with (self._logs / f"{self.name}-{name}.log").open("ab") as log:
            at_home = ["sh", "-c", 'cd /tmp && exec "$@"', "at-home"]
            inside = ["nsenter", f"--target={self.pid}", *NEW, *at_home, *map(str, words)]
            running = subprocess.Popen(
                inside, env=dict(env), stdin=stdin or subprocess.DEVNULL, stdout=stdout or log, stderr=log
            )
        self._running.append(running)
        return running

    def ip(self, *words: str) -> None:
        """As its own administrator."""
        inside = ["nsenter", f"--target={self.pid}", "--net", "ip", *words]
        done = subprocess.run(inside, capture_output=True, text=True, check=False, timeout=20)
        assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"

    def file(self, path: str) -> Path:
        """That file of its disk, as it is seen from outside."""
        return Path(f"/proc/{self.pid}/root") / path.lstrip("/")

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Sockets of this thread, and of threads that it starts, are this host's meanwhile; theirs stay so."""
        with Path("/proc/thread-self/ns/net").open() as back, Path(f"/proc/{self.pid}/ns/net").open() as there:
            _enter(there)
            try:
                yield
            finally:
                _enter(back)

    def end(self) -> None:
        assert self._first.stdin is not None and self._first.stdout is not None
        self._first.stdin.close()
        try:
            self._first.wait(10)
        except subprocess.TimeoutExpired:
            os.kill(self.pid, signal.SIGKILL)
            self._first.wait()
        self._first.stdout.close()
        for running in self._running:
            running.wait(10)
            for end in (running.stdin, running.stdout):
                if end is not None:
                    end.close()


class Wire:
    """Between two hosts; the far one has no other way out. `number`: of the network 10.90.NUMBER.0/24 that it is."""

    def __init__(self, near: Host, far: Host, number: int) -> None:
        self._near, self._end = near, f"wire{number}"
        near.ip("link", "add", self._end, "type", "veth", "peer", "name", "eth0", "netns", str(far.pid))
        near.ip("address", "add", f"10.90.{number}.1/24", "dev", self._end)
        far.ip("address", "add", f"10.90.{number}.2/24", "dev", "eth0")
        far.ip("link", "set", "eth0", "up")
        self.heal()
        far.ip("route", "add", "default", "via", f"10.90.{number}.1")

    def cut(self) -> None:
        """What is under way on it is lost; nobody is told."""
        self._near.ip("link", "set", self._end, "down")

    def heal(self) -> None:
        self._near.ip("link", "set", self._end, "up")


@contextmanager
def hosts(*names: str, logs: Path) -> Iterator[list[Host]]:
    """Hosts of these names, without wires."""
    needed()
    made: list[Host] = []
    try:
        for name in names:
            made.append(Host(name, logs))
        yield made
    finally:
        for each in reversed(made):
            each.end()


def _apart(folders: list[Path]) -> list[Path]:
    """Without those that are in another one."""
    return [each for each in folders if not any(other in each.parents for other in folders)]


def _enter(namespace: IO[str]) -> None:
    if _libc.setns(namespace.fileno(), 0):
        raise OSError(ctypes.get_errno(), "setns")
