"""The wire to a local host: one HTTP call over its unix socket, and the host's errors as ours."""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlencode

from providers import errors
from providers.clients.bounded import Bounded
from providers.errors import NotFound, ProviderError, Refused, Transient, Unauthorized

CONNECT_SECONDS, READ_SECONDS = 3.0, 10.0
BATCH = 100
_SOCKET = "host.sock"
_PLAIN_ERRORS: dict[str, type[ProviderError]] = {
    kind.__name__: kind
    for kind in (
        errors.NotFound,
        errors.Conflict,
        errors.GuardRefused,
        errors.Busy,
        errors.NoCapacity,
        errors.Unauthorized,
        errors.Refused,
    )
}


def default_host() -> Path:
    """The state folder of this user's host: $CHANGEOVER_HOST, else one below ~/.local/state."""
    return Path(os.environ.get("CHANGEOVER_HOST") or "~/.local/state/changeover/host").expanduser()


def from_settings(settings: Mapping[str, Any]) -> LocalHostClient:
    """The client that the `provider` part of a fleet file names by its key `host`."""
    host = settings.get("host") or default_host()
    if not isinstance(host, str | Path):
        raise Refused(f"provider: 'host' must be the path of a local host's folder, not {host!r}")
    return LocalHostClient(host)


class Sized(Protocol):
    """Bytes, and the vendor's own name of the size: what `providers.compute.Size` has."""

    @property
    def memory(self) -> int: ...

    @property
    def disk(self) -> int: ...

    @property
    def type(self) -> str: ...


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("local-host")
        self._path = path

    def connect(self) -> None:
        link = self.sock = Bounded(socket.AF_UNIX, socket.SOCK_STREAM)
        link.within(CONNECT_SECONDS)
        try:
            link.connect(str(self._path))
        except BaseException:
            link.close()
            raise
        link.within(READ_SECONDS)


class LocalHostClient:
    """Speaks to one host. Any thread may use it; each call has a connection of its own and is made once."""

    def __init__(self, host: str | Path) -> None:
        """`host` is the host's state folder, or its socket."""
        path = Path(host).expanduser()
        self.socket = path if path.suffix == ".sock" else path / _SOCKET

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None, *, reads: bool | None = None) -> Any:
        """One call. `reads` says that it changes nothing, which for GET is so anyway.

        A change whose answer is lost raises `Transient(ambiguous=True)`.
        """
        changes = not (method == "GET" if reads is None else reads)
        connection = _Connection(self.socket)
        try:
            self._connect(connection)
            try:
                raw = None if body is None else json.dumps(body)
                connection.request(method, path, raw, {"Content-Type": "application/json", "Connection": "close"})
                response = connection.getresponse()
                status, answer = response.status, json.loads(response.read())
            except (OSError, http.client.HTTPException, ValueError) as error:
                what = str(error) or type(error).__name__
                raise Transient(
                    f"{method} {path}: the answer of the host was lost: {what}", ambiguous=changes
                ) from error
        finally:
            connection.close()
        if status != 200:
            raise _ours(status, answer, changes)
        return answer

    def _connect(self, connection: _Connection) -> None:
        try:
            connection.connect()
        except PermissionError as error:
            raise Unauthorized(f"the local host at {self.socket} belongs to somebody else") from error
        except OSError as error:
            what = error.strerror or str(error)
            raise Transient(
                f"no local host answers at {self.socket}: {what}. Next: changeover host", ambiguous=False
            ) from error

    def health(self) -> dict[str, Any]:
        return dict(self.call("GET", "/health"))

    def servers(
        self, ids: Sequence[str] | None = None, *, tags: Mapping[str, str] | None = None
    ) -> list[dict[str, Any]]:
        """Those of the ids that exist, or without ids all that are not terminated; that carry all the tags."""
        return self._list("/servers", ids, tags)

    def images(
        self, ids: Sequence[str] | None = None, *, tags: Mapping[str, str] | None = None
    ) -> list[dict[str, Any]]:
        return self._list("/images", ids, tags)

    def _list(self, path: str, ids: Sequence[str] | None, tags: Mapping[str, str] | None) -> list[dict[str, Any]]:
        if ids is None:
            return list(self.call("GET", _query(path, [], tags)))
        return [thing for some in batches(ids) for thing in self.call("GET", _query(path, some, tags))]

    def create_server(
        self,
        *,
        name: str,
        command: Sequence[str],
        port: int,
        size: Sized,
        files_from: str | Path = "",
        env: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        grace: float = 10.0,
    ) -> dict[str, Any]:
        """A server of its own, started from a command on a copy of a folder: how a fleet's first servers are made. The
        folder is copied after this returns, so leave it as it is until the server runs.

        {address} {port} {root} {name} in the command and in the values of `env` are replaced. `grace` in seconds.
        """
        body = {
            "name": name,
            "command": list(command),
            "port": port,
            "size": size_body(size),
            "files_from": str(files_from),
            "env": dict(env or {}),
            "tags": dict(tags or {}),
            "grace": grace,
        }
        return dict(self.call("POST", "/servers", body))

    def put_haproxy(self, name: str, *, config: Path, runtime: Path) -> dict[str, Any]:
        """The HAProxy of that name runs from that file; asking again leaves it alone."""
        body = {"config": str(config), "runtime": str(runtime)}
        return dict(self.call("PUT", f"/haproxy/{quote(name, safe='')}", body))

    def haproxies(self) -> list[dict[str, Any]]:
        return list(self.call("GET", "/haproxy"))

    def delete_haproxy(self, name: str) -> None:
        try:
            self.call("DELETE", f"/haproxy/{quote(name, safe='')}")
        except NotFound:
            return

    def console(self, id: str) -> str:
        """The last lines that a server wrote."""
        return str(self.call("GET", f"/servers/{quote(id, safe='')}/console")["text"])

    def end(self, *, seconds: float = 60.0) -> None:
        """The host, its servers and its HAProxies have ended. One that does not run is success.

        `Transient` if it is still ending after the seconds.
        """
        until = time.monotonic() + seconds
        try:
            self.call("DELETE", "/")
        except Transient as error:
            if not error.ambiguous:
                return
        while time.monotonic() < until:
            if not self.socket.exists():
                return
            time.sleep(0.02)
        raise Transient(f"the host at {self.socket} is still ending after {seconds:g} s", ambiguous=False)


def size_body(size: Sized) -> dict[str, Any]:
    return {"memory": size.memory, "disk": size.disk, "type": size.type}


def batches(ids: Sequence[str]) -> Iterable[Sequence[str]]:
    """The ids in turns of as many as one call takes, each once."""
    unique = list(dict.fromkeys(ids))
    return (unique[start : start + BATCH] for start in range(0, len(unique), BATCH))


def _query(path: str, ids: Sequence[str], tags: Mapping[str, str] | None) -> str:
    asked = [("id", wanted) for wanted in ids] + [("tag", f"{key}={value}") for key, value in (tags or {}).items()]
    return f"{path}?{urlencode(asked)}" if asked else path


def _ours(status: int, answer: Any, changes: bool) -> ProviderError:
    told = answer if isinstance(answer, dict) else {}
    message = str(told.get("message") or f"the local host answered {status}")
    kind = _PLAIN_ERRORS.get(str(told.get("error")))
    if kind is not None:
        return kind(message)
    # 503 is said before anything is done; any other failure of the host may have come after the effect.
    return Transient(message, ambiguous=changes and status != 503)
