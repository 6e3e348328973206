"""The host's API: JSON over HTTP/1.1 on a unix socket that only its owner can open.

    GET    /health                        who and what runs here
    GET    /servers?id=..&tag=k%3Dv       servers; all without a question; also GET /images
    POST   /servers                       one of its own: name command port size; files_from env tags grace
    PUT    /servers/by-token/TOKEN        the one of that token: name tags image like size
    POST   /servers/ID/start | stop       PUT /servers/ID/protection {"on": bool}    PATCH /servers/ID/tags
    GET    /servers/ID/console            the last lines of its output
    POST   /servers/ID/run                a shell script inside it: script; what it said
    DELETE /servers/ID
    PUT    /images/by-token/TOKEN         the one of that token: name tags source
    DELETE /images/ID
    POST   /facts                         a look inside: ids paths
    GET    /haproxy   PUT /haproxy/NAME {"config": PATH, "runtime": PATH}   DELETE /haproxy/NAME
    DELETE /                              ends every server, every HAProxy and the host itself

An error is {"error": NAME, "message": TEXT} with the name of one of `providers.errors`.
"""

from __future__ import annotations

import json
import logging
import re
import socketserver
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

from providers import errors
from providers.compute import Size
from providers.errors import ProviderError, Refused
from providers.local_host import guest, processes
from providers.local_host.addresses import listeners
from providers.local_host.haproxy import Balancers
from providers.local_host.images import Images
from providers.local_host.processes import BOOT_MARK, Proc
from providers.local_host.records import BalancerRecord, ImageRecord, Program, ServerRecord
from providers.local_host.servers import Servers

log = logging.getLogger(__name__)

BODY_LIMIT = 1 << 20
BATCH = 100
_STATUS: dict[type[ProviderError], int] = {
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.GuardRefused: 423,
    errors.Busy: 409,
    errors.NoCapacity: 507,
    errors.Transient: 503,
    errors.Refused: 422,
}


@dataclass(frozen=True, kw_only=True)
class Host:
    """What the API acts on. `end` makes the host end, and returns before it does."""

    servers: Servers
    images: Images
    balancers: Balancers
    end: Callable[[], None]
    about: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request: the captured parts of its path, its query and its body."""

    parts: tuple[str, ...]
    query: dict[str, list[str]]
    body: dict[str, Any] = field(default_factory=dict)

    def take(self, **kinds: type | tuple[type, ...]) -> dict[str, Any]:
        """The body, which has exactly these keys with these types. `Refused` says which one is wrong."""
        return checked(self.body, "body", **kinds)


def checked(given: Any, where: str, **kinds: type | tuple[type, ...]) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise Refused(f"{where}: must be an object")
    if unknown := sorted(set(given) - set(kinds)):
        raise Refused(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(sorted(kinds))}")
    if missing := sorted(set(kinds) - set(given)):
        raise Refused(f"{where}: {missing[0]!r} is missing")
    for key, kind in kinds.items():
        if not isinstance(given[key], kind) or (isinstance(given[key], bool) and kind is not bool):
            raise Refused(f"{where}: {key!r} has the wrong type")
    return given


def texts(given: dict[str, Any], where: str, *, empty: bool = False) -> dict[str, str | None]:
    """A mapping of short texts to short texts, or, for tags that are taken away, to null."""
    for key, value in given.items():
        if not (isinstance(value, str) or (empty and value is None)):
            raise Refused(f"{where}: {key!r} must be a text")
        if not key or len(key) > 256 or "\0" in key + (value or "") or len(value or "") > 32768:
            raise Refused(f"{where}: {key[:40]!r} is empty, too long or has a zero byte")
    return given


def size_of(given: Any) -> Size:
    return Size(**checked(given, "size", memory=int, disk=int, type=str))


def program_of(body: dict[str, Any]) -> Program:
    command, port, env = body["command"], body["port"], body["env"]
    if not command or not all(isinstance(word, str) and "\0" not in word for word in command) or not command[0]:
        raise Refused("body: 'command' must be a list of words, with a program first")
    if not 1 <= port <= 65535:
        raise Refused(f"body: 'port' {port} is none")
    for key in texts(env, "env"):
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
            raise Refused(f"env: {key!r} cannot be the name of a variable here")
    if not 0 <= body["grace"] <= 3600:
        raise Refused("body: 'grace' must be between 0 and 3600 seconds")
    return Program(command=tuple(command), port=port, env=env, grace=float(body["grace"]))


def server_view(r: ServerRecord) -> dict[str, Any]:
    size = {"memory": r.size.memory, "disk": r.size.disk, "type": r.size.type}
    shown = ("id", "name", "state", "address", "boot", "launched", "reason", "protected", "pid", "image", "like")
    program = {"command": list(r.program.command), "port": r.program.port}
    return {"kind": "server", "size": size, "tags": dict(r.tags), **program, **{k: getattr(r, k) for k in shown}}


def image_view(r: ImageRecord) -> dict[str, Any]:
    shown = ("id", "name", "state", "source", "disk", "stored", "pause", "reason", "taken")
    return {"kind": "image", "tags": dict(r.tags), **{key: getattr(r, key) for key in shown}}


def balancer_view(r: BalancerRecord) -> dict[str, Any]:
    return {key: getattr(r, key) for key in ("name", "config", "runtime", "pid", "restarts", "reason")}


class Api:
    """The calls. Each returns what is sent back as JSON."""

    def __init__(self, host: Host) -> None:
        self._host = host
        name = r"([^/]+)"
        routes: list[tuple[str, str, Callable[[Call], Any]]] = [
            ("GET", "/health", self.health),
            ("DELETE", "/", self.end),
            ("GET", "/servers", self.servers),
            ("POST", "/servers", self.create_server),
            ("PUT", f"/servers/by-token/{name}", self.ensure_server),
            ("POST", f"/servers/{name}/start", self.start),
            ("POST", f"/servers/{name}/stop", self.stop),
            ("PUT", f"/servers/{name}/protection", self.protect),
            ("PATCH", f"/servers/{name}/tags", self.tag),
            ("GET", f"/servers/{name}/console", self.console),
            ("POST", f"/servers/{name}/run", self.run),
            ("DELETE", f"/servers/{name}", self.terminate),
            ("GET", "/images", self.images),
            ("PUT", f"/images/by-token/{name}", self.ensure_image),
            ("DELETE", f"/images/{name}", lambda call: self._host.images.delete(call.parts[0])),
            ("POST", "/facts", self.facts),
            ("GET", "/haproxy", lambda _: [balancer_view(r) for r in self._host.balancers.all()]),
            ("PUT", f"/haproxy/{name}", self.ensure_balancer),
            ("DELETE", f"/haproxy/{name}", lambda call: self._host.balancers.delete(call.parts[0])),
        ]
        self._routes = [(method, re.compile(path), act) for method, path, act in routes]

    def answer(self, method: str, target: str, body: dict[str, Any]) -> Any:
        """Raises any of `providers.errors`."""
        url = urlsplit(target)
        for wanted, path, act in self._routes:
            if wanted == method and (match := path.fullmatch(url.path)):
                parts = tuple(unquote(part) for part in match.groups())
                return act(Call(parts=parts, query=parse_qs(url.query), body=body))
        raise Refused(f"{method} {url.path[:100]} is no call of this host")

    def health(self, _: Call) -> dict[str, Any]:
        counts = {"servers": len(self._host.servers.all()), "images": len(self._host.images.all())}
        return {**self._host.about, **counts, "clock": time.time()}

    def end(self, _: Call) -> dict[str, str]:
        self._host.end()
        return {"state": "ending"}

    def servers(self, call: Call) -> list[dict[str, Any]]:
        return [server_view(r) for r in _asked(self._host.servers.all(), call)]

    def images(self, call: Call) -> list[dict[str, Any]]:
        return [image_view(r) for r in _asked(self._host.images.all(), call)]

    def create_server(self, call: Call) -> dict[str, Any]:
        call.body.update({"env": {}, "tags": {}, "files_from": "", "grace": 10.0, **call.body})
        body = call.take(
            name=str, command=list, port=int, size=dict, files_from=str, env=dict, tags=dict, grace=(int, float)
        )
        folder = body["files_from"]
        if folder and not (Path(folder).is_absolute() and Path(folder).is_dir()):
            raise Refused(f"body: 'files_from' {folder!r} must be the absolute path of a folder")
        return server_view(
            self._host.servers.create(
                name=body["name"],
                program=program_of(body),
                size=size_of(body["size"]),
                tags=_plain(body["tags"]),
                files_from=folder,
            )
        )

    def ensure_server(self, call: Call) -> dict[str, Any]:
        body = call.take(name=str, tags=dict, image=str, like=str, size=dict)
        token = _token(call)
        size, tags = size_of(body["size"]), _plain(body["tags"])
        # What the token already made is adopted even when its image is gone by now.
        made = next((r for r in self._host.servers.all() if r.token == token), None)
        disk = 0 if made else self._host.images.ready(body["image"]).disk
        return server_view(
            self._host.servers.ensure(
                token=token,
                name=body["name"],
                image=body["image"],
                image_disk=disk,
                like=body["like"],
                size=size,
                tags=tags,
            )
        )

    def terminate(self, call: Call) -> None:
        self._host.servers.terminate(call.parts[0], given=_given(call))

    def stop(self, call: Call) -> None:
        self._host.servers.stop(call.parts[0], given=_given(call))

    def start(self, call: Call) -> None:
        self._host.servers.start(call.parts[0], given=_given(call))

    def protect(self, call: Call) -> None:
        on = call.body.get("on")
        if not isinstance(on, bool):
            raise Refused("body: 'on' must be true or false")
        self._host.servers.protect(call.parts[0], on, given=_given(call))

    def tag(self, call: Call) -> None:
        tags = call.body.get("tags")
        if not isinstance(tags, dict):
            raise Refused("body: 'tags' must be an object")
        self._host.servers.tag(call.parts[0], texts(tags, "tags", empty=True), given=_given(call))

    def console(self, call: Call) -> dict[str, str]:
        path = self._host.servers.console(self._host.servers.get(call.parts[0]).id)
        if not path.exists():
            return {"text": ""}
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16384))
            return {"text": file.read().decode(errors="replace")}

    def run(self, call: Call) -> dict[str, str]:
        script = call.take(script=str)["script"]
        if "\0" in script:
            raise Refused("body: 'script' has a zero byte")
        return {"output": self._host.servers.run(call.parts[0], script)}

    def ensure_image(self, call: Call) -> dict[str, Any]:
        body = call.take(name=str, tags=dict, source=str)
        made, fresh = self._host.images.ensure(
            token=_token(call), name=body["name"], source=body["source"], tags=_plain(body["tags"])
        )
        return {**image_view(made), "adopted": not fresh}

    def facts(self, call: Call) -> list[dict[str, Any]]:
        body = call.take(ids=list, paths=list)
        ids, paths = body["ids"], body["paths"]
        if len(ids) > BATCH or len(paths) > 1000 or not all(isinstance(text, str) for text in [*ids, *paths]):
            raise Refused(f"body: at most {BATCH} ids and 1000 paths, all of them texts")
        found, heard, running = [], listeners(), processes.by_mark(BOOT_MARK)
        for record in self._host.servers.all():
            proc = self._host.servers.proc(record.id)
            if record.id in ids and record.state == "running" and proc:
                found += self._look(record, proc, running.get(record.boot, ()), paths, heard.get(record.address, {}))
        return found

    def _look(
        self,
        record: ServerRecord,
        proc: Proc,
        pids: Sequence[int],
        paths: Sequence[str],
        listening: Mapping[int, int],
    ) -> list[dict[str, Any]]:
        """Nothing of a server that does not let itself be looked at: the others of the call are answered all the
        same, whatever one does to its folder."""
        try:
            root = self._host.servers.root(record.id)
            look = guest.facts(record, root, proc, pids=pids, paths=paths, listening=listening)
        except OSError as error:
            log.warning("no facts of %s: %s", record.id, error.strerror)
            return []
        return [look] if look else []

    def ensure_balancer(self, call: Call) -> dict[str, Any]:
        body = call.take(config=str, runtime=str)
        for key, value in body.items():
            if not Path(value).is_absolute() or "\0" in value:
                raise Refused(f"body: {key!r} must be an absolute path")
        return balancer_view(self._host.balancers.ensure(name=call.parts[0], **body))


def _given(call: Call) -> dict[str, str | None]:
    """The tags that the server must carry (null: must not) for the call to be obeyed."""
    given = call.body.get("given", {})
    if not isinstance(given, dict):
        raise Refused("body: 'given' must be an object")
    return texts(given, "given", empty=True)


def _token(call: Call) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", call.parts[0]):
        raise Refused(f"token {call.parts[0][:80]!r}: must be 64 hex digits")
    return call.parts[0]


def _plain(tags: dict[str, Any]) -> dict[str, str]:
    return {key: value for key, value in texts(tags, "tags").items() if value is not None}


Record = TypeVar("Record", ServerRecord, ImageRecord)


def _asked(found: list[Record], call: Call) -> list[Record]:
    """Those of the ids asked for, if any, that carry all the tags asked for. By tag, only what is still there."""
    ids, pairs = call.query.get("id", []), [tag.partition("=") for tag in call.query.get("tag", [])]
    if len(ids) > BATCH:
        raise Refused(f"at most {BATCH} ids in one call")
    return [
        record
        for record in found
        if (record.id in ids if ids else record.state != "terminated")
        and all(record.tags.get(key) == value for key, _, value in pairs)
    ]


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """One thread a connection; the API's own locks keep them apart."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, path: Path, api: Api) -> None:
        self.api = api
        super().__init__(str(path), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  the base class's signature
        log.debug("a caller went away", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30
    server: Server

    def address_string(self) -> str:
        return "local"

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)

    def _serve(self) -> None:
        begun = time.monotonic()
        try:
            status, answer = 200, self.server.api.answer(self.command, self.path, self._body())
        except ProviderError as error:
            status = _STATUS.get(type(error), 422)
            answer = {"error": type(error).__name__, "message": str(error)}
        except Exception:  # a caller must hear of it, and the host must go on
            log.exception("%s %s", self.command, self.path)
            status, answer = 500, {"error": "Transient", "message": "the host failed at this call; its log says why"}
        if self.command != "GET" and self.path != "/facts":
            log.info("%s %s -> %d in %.0f ms", self.command, self.path, status, (time.monotonic() - begun) * 1000)
        raw = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

    def _body(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "0")
        if not length.isdigit() or int(length) > BODY_LIMIT or "Transfer-Encoding" in self.headers:
            self.close_connection = True
            raise Refused(f"a body needs a Content-Length of at most {BODY_LIMIT} bytes")
        raw = self.rfile.read(int(length))
        try:
            body = json.loads(raw or b"{}")
        except (ValueError, RecursionError) as error:
            raise Refused(f"the body is no JSON: {error}") from None
        if not isinstance(body, dict):
            raise Refused("the body must be a JSON object")
        return body
