"""A real Valkey for tests, that ends with the test process however that ends."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from orchestrator.addresses import parse
from orchestrator.embedded import valkey_arguments, valkey_server

# Runs in the child before the server: the kernel kills it when its parent dies, also if that happened already.
WRAPPER = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class RunningValkey:
    """`url` is its unix socket's. `kill` is its SIGKILL, `start` brings it back with the same data."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.socket = folder / "valkey.sock"
        self.url = f"unix://{self.socket}?db=0"
        self._folder = folder
        self._options = options
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        data = self._folder / "data"
        data.mkdir(exist_ok=True)
        server = [str(valkey_server()), *valkey_arguments(data, self.socket), *self._options]
        with (self._folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", WRAPPER, str(os.getpid()), *server],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._wait()

    def _wait(self) -> None:
        end = time.monotonic() + 20
        client = redis.Redis(unix_socket_path=str(self.socket), retry=Retry(NoBackoff(), 0))
        try:
            while True:
                try:
                    client.ping()
                except redis.exceptions.AuthenticationError:
                    return
                except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):
                    assert self.process is not None
                    if self.process.poll() is not None or time.monotonic() > end:
                        log = (self._folder / "log").read_text()
                        raise AssertionError(f"Valkey did not start: {log[-2000:]}") from None
                    time.sleep(0.01)
                else:
                    return
        finally:
            client.close()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def celery_url(url: str) -> str:
    """The same place, as Celery writes it."""
    return parse(url).for_celery()[0]


@contextlib.contextmanager
def running_valkey(*options: str) -> Iterator[RunningValkey]:
    """Append-only file every second, no eviction, a short unix socket; `options` are further ones of valkey-server."""
    folder = Path(tempfile.mkdtemp(prefix="co-", dir="/tmp"))
    valkey = RunningValkey(folder, *options)
    try:
        valkey.start()
        yield valkey
    finally:
        valkey.kill()
        shutil.rmtree(folder, ignore_errors=True)
