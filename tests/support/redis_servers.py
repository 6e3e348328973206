"""Redis as it is found in the world: on TCP, with replicas, sentinels, TLS and passwords. All on loopback, on ports the
system chose, ended with the test process however that ends."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis
import trustme
from redis.backoff import NoBackoff
from redis.retry import Retry

from orchestrator.embedded import valkey_server
from tests.support.valkey import WRAPPER

HOST = "127.0.0.1"
MASTER = "shop"  # what the sentinels call the server and its replicas


def wait_for(what: str, condition: Callable[[], bool], *, seconds: float = 30.0, every: float = 0.02) -> None:
    """The condition holds; an error on the way to it is a no."""
    end = time.monotonic() + seconds
    last: Exception | None = None
    while True:
        try:
            if condition():
                return
        except Exception as error:  # whoever is waited for may be starting, or between two lives
            last = error
        assert time.monotonic() < end, f"{what} did not happen within {seconds:g} s{f': {last!r}' if last else ''}"
        time.sleep(every)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Certificates:
    """A CA of its own and what it has signed for 127.0.0.1 and localhost."""

    ca: Path
    certificate: Path
    key: Path

    @classmethod
    def make(cls, folder: Path) -> Certificates:
        folder.mkdir(exist_ok=True)
        authority = trustme.CA()
        issued = authority.issue_cert(HOST, "localhost")
        made = cls(ca=folder / "ca.pem", certificate=folder / "server.pem", key=folder / "server.key")
        authority.cert_pem.write_to_path(made.ca)
        made.key.write_bytes(issued.private_key_pem.bytes())
        made.certificate.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
        return made

    def options(self, port: int) -> list[str]:
        """TLS alone: without a port for plain text, and without asking clients for a certificate."""
        return [
            *("--port", "0", "--tls-port", str(port), "--tls-auth-clients", "no"),
            *("--tls-cert-file", str(self.certificate), "--tls-key-file", str(self.key)),
            *("--tls-ca-cert-file", str(self.ca), "--tls-replication", "yes"),
        ]


@dataclass
class Program:
    """One redis-server process. `kill` is SIGKILL; `start` brings it back with the same data on the same port."""

    folder: Path
    words: list[str]
    port: int
    password: str = ""
    certificates: Certificates | None = None
    sentinel: bool = False
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", WRAPPER, str(os.getpid()), str(valkey_server()), *self.words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
            )
        wait_for(f"an answer of {self.folder.name}", self._answers, seconds=20)

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            said = (self.folder / "log").read_text(errors="replace")[-2000:]
            if "tls" in said.lower() and ("bad directive" in said.lower() or "failed finding tls" in said.lower()):
                pytest.skip("this redis-server was built without TLS")
            pytest.fail(f"{self.folder.name} did not start: {said}")
        with self.client() as client:
            return bool(client.ping())

    @property
    def url(self) -> str:
        """Of database 0."""
        secret = f":{self.password}@" if self.password else ""
        if self.certificates is not None:
            return f"rediss://{secret}{HOST}:{self.port}/0?ssl_ca_certs={self.certificates.ca}"
        return f"redis://{secret}{HOST}:{self.port}/0"

    def client(self, **options: Any) -> redis.Redis:
        if self.certificates is not None:
            options |= {"ssl": True, "ssl_ca_certs": str(self.certificates.ca)}
        password = None if self.sentinel else self.password or None
        retry = Retry(NoBackoff(), 0)
        return redis.Redis(host=HOST, port=self.port, password=password, socket_timeout=5, retry=retry, **options)

    def send(self, what: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(what)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """It neither answers nor hangs up meanwhile."""
        self.send(signal.SIGSTOP)
        try:
            yield
        finally:
            self.send(signal.SIGCONT)


class Place:
    """Makes servers, replicas and sentinels in one folder, and ends them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._programs: list[Program] = []

    def certificates(self) -> Certificates:
        return Certificates.make(self._folder / "tls")

    def server(
        self,
        *options: str,
        of: Program | None = None,
        password: str = "",
        certificates: Certificates | None = None,
    ) -> Program:
        """One that keeps what it is told, as ours must; a replica of `of`. Later options win."""
        port = free_port()
        name = f"redis-{len(self._programs)}"
        listen = ["--port", str(port)] if certificates is None else certificates.options(port)
        words = [
            *("--bind", HOST, *listen, "--dir", str(self._folder / name)),
            *("--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction", "--save", ""),
            *("--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"),
        ]
        if password:
            words += ["--requirepass", password, "--masterauth", password]
        if of is not None:
            words += ["--replicaof", HOST, str(of.port)]
        made = Program(self._folder / name, [*words, *options], port, password=password, certificates=certificates)
        self._programs.append(made)
        made.start()
        if of is not None:
            wait_for("replication", lambda: _info(made).get("master_link_status") == "up")
            replicas = sum(1 for name in _info(of) if name.startswith("slave") and name[5:].isdigit())
            wait_for("an acknowledgement of every replica", lambda: _acknowledged(of) >= replicas)
        return made

    def sentinels(self, master: Program, *, count: int = 3, patience: int = 1000) -> list[Program]:
        """They agree by majority that the master is gone after `patience` milliseconds, and promote a replica."""
        if shutil.which("redis-server") is None:
            pytest.skip("no redis-server on PATH")
        made = []
        for number in range(count):
            port = free_port()
            folder = self._folder / f"sentinel-{number}"
            folder.mkdir()
            tls = master.certificates
            lines = [
                f"bind {HOST}",
                *([f"port {port}"] if tls is None else _as_file(tls.options(port))),
                f"dir {folder}",
                f"sentinel monitor {MASTER} {HOST} {master.port} {count // 2 + 1}",
                f"sentinel down-after-milliseconds {MASTER} {patience}",
                f"sentinel failover-timeout {MASTER} 5000",
                f"sentinel parallel-syncs {MASTER} 1",
                *([f"sentinel auth-pass {MASTER} {master.password}"] if master.password else []),
            ]
            config = folder / "sentinel.conf"
            config.write_text("\n".join(lines) + "\n")
            made.append(Program(folder, [str(config), "--sentinel"], port, certificates=tls, sentinel=True))
            self._programs.append(made[-1])
            made[-1].start()
        wait_for("the sentinels' acquaintance", lambda: all(_knows(each, count) for each in made))
        return made

    def close(self) -> None:
        for program in reversed(self._programs):
            program.kill()


def sentinel_url(sentinels: list[Program], *, database: int = 0) -> str:
    """The form that docs/operating.md names."""
    first = sentinels[0]
    hosts = ",".join(f"{HOST}:{each.port}" for each in sentinels)
    if first.certificates is not None:
        return f"sentinels://{hosts}/{MASTER}/{database}?ssl_ca_certs={first.certificates.ca}"
    return f"sentinel://{hosts}/{MASTER}/{database}"


def _as_file(words: list[str]) -> list[str]:
    return [f"{name.removeprefix('--')} {value}" for name, value in zip(words[::2], words[1::2], strict=True)]


def _info(server: Program) -> dict[str, Any]:
    with server.client() as client:
        found: dict[str, Any] = client.info("replication")
        return found


def _acknowledged(master: Program) -> int:
    """A replica that has just come is busy with its first copy for a moment."""
    with master.client() as client:
        pipeline = client.pipeline(transaction=False)
        pipeline.set("warm", "1")
        pipeline.delete("warm")
        pipeline.wait(9, 100)
        return int(pipeline.execute()[-1])


def _knows(sentinel: Program, count: int) -> bool:
    with sentinel.client() as client:
        state = client.sentinel_masters()[MASTER]
    return state["num-other-sentinels"] == count - 1 and state["num-slaves"] >= 1 and not state["is_sdown"]


@contextlib.contextmanager
def redis_place() -> Iterator[Place]:
    folder = Path(tempfile.mkdtemp(prefix="co-", dir="/tmp"))
    place = Place(folder)
    try:
        yield place
    finally:
        place.close()
        shutil.rmtree(folder, ignore_errors=True)
