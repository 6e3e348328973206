"""One host on one state folder: it takes the folder's lock, takes up what a former host left, serves, and ends."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from providers.errors import Refused
from providers.local_host.addresses import Addresses, default_network
from providers.local_host.api import Api, Host, Server
from providers.local_host.haproxy import Balancers
from providers.local_host.images import Images
from providers.local_host.processes import Processes
from providers.local_host.servers import Servers

log = logging.getLogger(__name__)

SOCKET, PID, LOCK, LOG, NETWORK = "host.sock", "host.pid", "host.lock", "host.log", "network"
_LOCK_SECONDS = 0.5  # a host that has just ended may hold it for a moment
_SOCKET_LIMIT = 107  # what Linux allows for the path of a unix socket


class AlreadyRuns(Refused):
    """Another host owns the state folder."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """`network` is a range of loopback addresses; `max_pause` is how many seconds an image may hold its server up."""

    network: str = ""
    max_pause: float = 5.0


def serve(state_dir: str | Path, options: Options | None = None, *, ready: Callable[[], None] = lambda: None) -> None:
    """Runs a host until it is told to end. `Refused` if the folder cannot be used, or if a host already runs there.

    Must be called from the main thread, since it handles SIGTERM, SIGINT and SIGHUP. `ready` is called once calls
    are answered.
    """
    options = options or Options()
    state = prepare(state_dir)
    with _Lock(state):
        os.umask(0o077)
        ending = threading.Event()
        for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(sig, lambda *_: ending.set())
        host = _build(state, options, ending)
        (state / SOCKET).unlink(missing_ok=True)
        with Server(state / SOCKET, Api(host)) as server:
            (state / SOCKET).chmod(0o600)
            (state / PID).write_text(f"{os.getpid()}\n")
            threading.Thread(target=server.serve_forever, args=(0.1,), name="api", daemon=True).start()
            log.info("host ready: pid %d, %s", os.getpid(), host.about["network"])
            ready()
            while not ending.wait(10):
                host.servers.tidy()
            log.info("host ends")
            _end(host)
            server.shutdown()
            (state / PID).unlink(missing_ok=True)
            (state / SOCKET).unlink(missing_ok=True)  # last, since its absence says that all has ended
        log.info("host ended")


def prepare(state_dir: str | Path) -> Path:
    """The folder, there and closed to others. `Refused` says why it cannot be used."""
    state = Path(os.path.realpath(Path(state_dir).expanduser()))
    length = len(os.fsencode(state / SOCKET))
    if length > _SOCKET_LIMIT:
        raise Refused(
            f"{state}: the path of its socket has {length} bytes, Linux allows {_SOCKET_LIMIT}: choose a shorter folder"
        )
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        state.chmod(0o700)
    except OSError as error:
        raise Refused(f"{state} cannot be used as the host's folder: {error.strerror}") from None
    return state


class _Lock:
    """Held as long as the host runs, however it ends. The file stays: removing it would let two hold it."""

    def __init__(self, state: Path) -> None:
        self._path = state / LOCK

    def __enter__(self) -> None:
        self._file = self._path.open("a+")
        until = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < until:
                    time.sleep(0.02)
                    continue
                self._file.close()
                pid = ""
                with suppress(OSError):
                    pid = f" (pid {(self._path.parent / PID).read_text().strip()})"
                raise AlreadyRuns(f"a host already runs on {self._path.parent}{pid}") from None
            return

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _build(state: Path, options: Options, ending: threading.Event) -> Host:
    kept = state / NETWORK
    addresses = Addresses(options.network or (kept.read_text() if kept.exists() else default_network(state)))
    kept.write_text(str(addresses.network))
    table = Processes()
    servers = Servers(state / "servers", host=state, table=table, addresses=addresses, images=state / "images")
    images = Images(state / "images", state / "staging", host=state, servers=servers, max_pause=options.max_pause)
    balancers = Balancers(state / "haproxy", host=state, table=table)
    servers.load()
    images.load()
    balancers.load()
    about = {"pid": os.getpid(), "state": str(state), "network": str(addresses.network), "since": time.time()}
    return Host(servers=servers, images=images, balancers=balancers, end=ending.set, about=about)


def _end(host: Host) -> None:
    host.images.close()
    host.balancers.close()
    host.servers.close()
