"""A wire that loses answers: it stands before a unix socket and hands each HTTP call on, one call a connection."""

from __future__ import annotations

import socket
import socketserver
import threading
from pathlib import Path
from types import TracebackType


class LossyWire:
    """`path` is where to call. After `lose_next`, the next call that changes something happens and its answer does
    not come back."""

    def __init__(self, path: Path, upstream: Path) -> None:
        self.path, self._upstream = path, upstream
        self._lose = threading.Event()
        wire = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                wire._pass_on(self.request)

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True
            request_queue_size = 128

        self._server = Server(str(path), Handler)

    def __enter__(self) -> LossyWire:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def lose_next(self) -> None:
        self._lose.set()

    def _pass_on(self, caller: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            more = caller.recv(65536)
            if not more:
                return
            request += more
        head, _, body = request.partition(b"\r\n\r\n")
        lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
        while len(body) < int(lengths[0] if lengths else 0):
            body += caller.recv(65536)
        with socket.socket(socket.AF_UNIX) as upstream:
            upstream.connect(str(self._upstream))
            upstream.sendall(head + b"\r\n\r\n" + body)
            answer = b""
            while more := upstream.recv(65536):
                answer += more
        if self._lose.is_set() and not request.startswith((b"GET ", b"POST /facts")):
            self._lose.clear()
            return
        caller.sendall(answer)
