"""Flower, which shows every task: its configuration, and the process that serves it.

The configuration file holds the password, and the environment the broker's URL, so neither is in the process list.
`/healthcheck` and `/metrics` answer without a password; everything else asks for it, and nothing can be changed.
"""

from __future__ import annotations

import fcntl
import secrets
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import BadInput
from orchestrator.processes import INHERITED
from orchestrator.state_folder import write_private

USER = "changeover"
LOOPBACK = "127.0.0.1"
# A task costs about 5 KB of Flower's memory. A saved state blocks its loop, so it is saved now and then only.
MAX_TASKS = 20_000
SAVE_EVERY_MS = 15_000
NEVER = 10 * 365 * 86400  # seconds

# The exception of a task in RETRY is what its step waits for.
COLUMNS = "name,uuid,state,exception,received,runtime,worker,result"


@dataclass(frozen=True, kw_only=True)
class FlowerFiles:
    config: Path
    credentials: Path
    database: Path


def prepare(folder: Path, *, password: str = "", prefix: str = "") -> FlowerFiles:
    """The files that Flower starts from, all readable by their owner alone. A password that is given, or was once
    made, is kept. `prefix` is what every path begins with, where a proxy shares one name among several services."""
    folder.mkdir(exist_ok=True, mode=0o700)
    files = FlowerFiles(
        config=folder / "flowerconfig.py", credentials=folder / "credentials", database=folder / "tasks.db"
    )
    if password:
        write_private(files.credentials, f"{USER}:{password}\n")
    write_private(files.config, _configuration(_password(files.credentials), files.database, prefix))
    return files


def command(files: FlowerFiles) -> tuple[str, ...]:
    """Serves on the listening socket that it inherits as number 3, until SIGTERM."""
    return (sys.executable, "-P", "-m", "orchestrator.flower", str(files.config))


def listen(port: int, *, address: str = LOOPBACK, place: str = "--flower-port") -> socket.socket:
    """The listening socket; 0 lets the system choose. It outlives a restart of Flower. Raises `BadInput`, which names
    the option `place`."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise BadInput(f"{address}:{port}: {error.strerror}", place=place, next=f"ss -ltn sport = :{port}") from None
    return listener


def is_healthy(port: int, *, path: str = "/healthcheck", timeout: float = 0.3) -> bool:
    """Whether Flower, or whatever has its health check at that path, answers it within that many seconds."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=timeout) as asking:
            asking.sendall(f"GET {path} HTTP/1.0\r\nHost: {LOOPBACK}\r\n\r\n".encode())
            return asking.recv(64).split(b" ")[1:2] == [b"200"]
    except OSError:
        return False


def _password(credentials: Path) -> str:
    try:
        user, _, password = credentials.read_text().strip().partition(":")
    except FileNotFoundError:
        user = password = ""
    if user != USER or not password:
        password = secrets.token_urlsafe(18)
        write_private(credentials, f"{USER}:{password}\n")
    return password


def _configuration(password: str, database: Path, prefix: str) -> str:
    settings = {
        "basic_auth": [f"{USER}:{password}"],
        "read_only": True,
        "persistent": True,
        "db": str(database),
        "state_save_interval": SAVE_EVERY_MS,
        "max_tasks": MAX_TASKS,
        "max_workers": 500,
        "purge_offline_workers": 300,
        "natural_time": True,
        "auto_refresh": True,
        "tasks_columns": COLUMNS,
        "inspect_timeout": 1000.0,
        "logging": "warning",
        "url_prefix": prefix,
    }
    return "".join(f"{name} = {value!r}\n" for name, value in settings.items())


def main(config: str) -> None:
    """Serve on the socket that was inherited, until SIGTERM."""
    from flower.app import Flower
    from flower.command import apply_options, extract_settings, setup_logging
    from flower.options import options
    from flower.urls import settings as web
    from tornado.httpserver import HTTPServer

    from orchestrator.messaging import make_app
    from orchestrator.settings import Settings

    lock = Path(config).with_name("lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # two would write over what the other saves
    except BlockingIOError:
        sys.exit(f"another Flower already serves from {Path(config).parent}")
    apply_options("flower", [f"--conf={config}"])
    extract_settings()
    setup_logging()
    celery = make_app(Settings.load())
    celery.set_default()  # for a task's result it asks the default app, which has no result backend otherwise
    # As every end does, Flower would put messages back that a worker did not end. It needs no right to send any.
    celery.conf.broker_transport_options |= {"visibility_timeout": NEVER}
    app = Flower(capp=celery, options=options, **web)
    listener = socket.socket(fileno=INHERITED)
    listener.setblocking(False)
    HTTPServer(app).add_socket(listener)
    loop = app.io_loop
    signal.signal(signal.SIGTERM, lambda *_: loop.add_callback_from_signal(app.stop))
    app.start()


if __name__ == "__main__":
    main(sys.argv[1])
