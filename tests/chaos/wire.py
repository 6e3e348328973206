"""The wire between workers and the local cloud: it writes down every effect, and loses, delays and refuses as told."""

from __future__ import annotations

import json
import re
import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from providers.clients.local_host import LocalHostClient
from providers.errors import ProviderError

Fault = Literal["lost", "unavailable", "slow"]
_CALLS = (
    ("PUT", r"/images/by-token/(\w+)", "ensure_image"),
    ("PUT", r"/servers/by-token/(\w+)", "ensure_server"),
    ("POST", r"/servers/([^/]+)/start", "start"),
    ("POST", r"/servers/([^/]+)/stop", "stop"),
    ("DELETE", r"/servers/([^/]+)", "terminate"),
    ("DELETE", r"/images/([^/]+)", "delete_image"),
    ("PUT", r"/servers/([^/]+)/protection", "protect"),
    ("PATCH", r"/servers/([^/]+)/tags", "tag"),
)
SLOW = 3.0  # seconds


class Wire:
    """`path` is where workers call. Calls that change something go through one at a time, so that what is written down
    is in the order in which it happened."""

    def __init__(self, path: Path, upstream: Path) -> None:
        self.path = path
        self.struck: Counter[str] = Counter()
        self._upstream = upstream
        self._host = LocalHostClient(upstream)
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._out: Path | None = None
        self._tokens: set[str] = set()
        self._boots: dict[str, str] = {}
        wire = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                wire._pass_on(self.request)

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None: ...  # a caller was killed

        self._server = Server(str(path), Handler)

    def __enter__(self) -> Wire:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def write_to(self, file: Path) -> None:
        """From now on effects are written there."""
        with self._lock:
            self._out = file
            file.touch()

    def strike(self, fault: Fault) -> None:
        """The next call that changes something meets it."""
        with self._lock:
            self._faults.append(fault)

    def _pass_on(self, caller: socket.socket) -> None:
        request = _whole(caller)
        if request is None:
            return
        method, target = request.split(b"\r\n", 1)[0].decode().split(" ")[:2]
        path = target.partition("?")[0]
        for wanted, pattern, call in _CALLS:
            if wanted == method and (match := re.fullmatch(pattern, path)):
                self._change(caller, request, call, match[1])
                return
        answer = self._ask(request)
        if path == "/servers":
            self._note_boots(answer)
        caller.sendall(answer)

    def _change(self, caller: socket.socket, request: bytes, call: str, subject: str) -> None:
        with self._lock:
            fault = self._faults.pop(0) if self._faults else None
        if fault is not None:
            self.struck[fault] += 1
        if fault == "unavailable":
            body = json.dumps({"error": "Transient", "message": "told to be unavailable"}).encode()
            caller.sendall(b"HTTP/1.1 503 No\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            return
        if fault == "slow":
            time.sleep(SLOW)
        with self._lock:
            before = self._state(call, subject)
            answer = self._ask(request)
            self._note(call, subject, request, answer, before)
        if fault != "lost":
            caller.sendall(answer)

    def _ask(self, request: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX) as upstream:
            upstream.connect(str(self._upstream))
            upstream.sendall(request)
            answer = b""
            while more := upstream.recv(65536):
                answer += more
        return answer

    def _state(self, call: str, subject: str) -> Any:
        """What the call may change."""
        if call.startswith("ensure_"):
            return subject in self._tokens
        try:
            ask = self._host.images if call == "delete_image" else self._host.servers
            found = ask([subject])
        except ProviderError:
            return None
        if not found:
            return None
        view = found[0]
        match call:
            case "stop" | "start":
                return view["state"] in ("pending", "running")
            case "terminate":
                return view["state"] == "terminated" or None
            case "protect":
                return view["protected"]
            case "tag":
                return view["tags"]
        return True

    def _note(self, call: str, subject: str, request: bytes, answer: bytes, before: Any) -> None:
        head, _, body = answer.partition(b"\r\n\r\n")
        status = int(head.split(b" ")[1])
        told = json.loads(body) if body else None
        row: dict[str, Any] = {"at": time.time(), "call": call, "id": subject}
        row["outcome"] = "done" if status == 200 else "failed" if status >= 500 else "refused"
        row["effect"] = False
        if call.startswith("ensure_"):
            asked = json.loads(request.partition(b"\r\n\r\n")[2])
            row |= {"token": subject, "name": asked["name"], "tags": asked["tags"], "id": ""}
            row["source"] = asked.get("source") or asked.get("like")
            if status == 200:
                row |= {"id": told["id"], "outcome": "adopted" if before else "made", "effect": not before}
                row |= {"address": told["address"]} if "address" in told else {}
                self._tokens.add(subject)
        elif status == 200:
            after = self._state(call, subject)
            row["effect"] = after != before
        if status != 200:
            row["why"] = told
        self._write(row)

    def _note_boots(self, answer: bytes) -> None:
        """A server's boot is known once it runs: a line of its own, before whoever asked can hear of it."""
        with self._lock:
            for server in json.loads(answer.partition(b"\r\n\r\n")[2]):
                if isinstance(server, dict) and server["boot"] not in ("", self._boots.get(server["id"])):
                    self._boots[server["id"]] = server["boot"]
                    about = {"id": server["id"], "boot": server["boot"]}
                    self._write({"at": time.time(), "call": "start", "outcome": "done", "effect": False, **about})

    def _write(self, row: Mapping[str, Any]) -> None:
        if self._out is not None:
            with self._out.open("a") as out:
                out.write(json.dumps(row) + "\n")


def _whole(caller: socket.socket) -> bytes | None:
    """The request of one connection; None if its caller went away before it had said all."""
    request = b""
    while b"\r\n\r\n" not in request:
        more = caller.recv(65536)
        if not more:
            return None
        request += more
    head, _, body = request.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    while len(body) < int(lengths[0] if lengths else 0):
        more = caller.recv(65536)
        if not more:
            return None
        body += more
        request += more
    return request


def members(answer: str) -> Mapping[str, Mapping[str, Any]]:
    """What HAProxy's `show servers state` says, in the words of the evidence."""
    found = {}
    for line in answer.splitlines():
        columns = line.split()
        if len(columns) < 19 or line.startswith("#"):
            continue
        name, address, running, admin, port = columns[3], columns[4], columns[5], int(columns[6]), columns[18]
        state = "draining" if admin & 0x18 else "serving" if running == "2" and not admin & 0x27 else "down"
        found[name] = {"address": address, "port": int(port), "state": state}
    return found


class Sampler:
    """Looks at the balancer, and writes down each change."""

    def __init__(self, socket_path: Path, pool: str) -> None:
        self._path, self._pool = socket_path, pool
        self._out: Path | None = None
        self._last: Mapping[str, Any] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._look, daemon=True).start()

    def write_to(self, file: Path) -> None:
        with self._lock:
            self._out, self._last = file, {}
            file.touch()
        while not file.stat().st_size:
            time.sleep(0.02)

    def now(self) -> Mapping[str, Mapping[str, Any]]:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(5)
            link.connect(str(self._path))
            link.sendall(f"show servers state {self._pool}\n".encode())
            answer = b""
            while more := link.recv(65536):
                answer += more
        return members(answer.decode())

    def _look(self) -> None:
        while True:
            time.sleep(0.04)
            at = time.time()
            try:
                seen = self.now()
            except OSError:
                continue
            with self._lock:
                if self._out is not None and seen != self._last:
                    self._last = seen
                    with self._out.open("a") as out:
                        out.write(json.dumps({"at": at, "pool": self._pool, "members": seen}) + "\n")
