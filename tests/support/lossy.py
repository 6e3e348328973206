"""Wires that fail: one before a unix socket loses answers of HTTP calls, one call a connection; one before a TCP port
is slow, cut or half open."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from contextlib import suppress
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


class Wire:
    """A TCP wire to `upstream` on loopback, at `port`. It can be slow, cut, or half open: then whoever is connected is
    never told that nothing comes through any more, and who connects anew is served."""

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        self._pairs: list[_Pair] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.latency = 0.0  # seconds, for each way
        self._cut = False

    def __enter__(self) -> Wire:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut()
        self._listener.close()

    def cut(self) -> None:
        """Everybody is disconnected, and who connects is hung up on, until `mend`."""
        with self._lock:
            self._cut = True
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            pair.close()

    def half_open(self) -> int:
        """How many connections there were: from now on they carry nothing."""
        with self._lock:
            for pair in self._pairs:
                pair.silent = True
            return len(self._pairs)

    def mend(self) -> None:
        """Who connects from now on is served. Those that were silenced stay so."""
        with self._lock:
            self._cut = False

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._cut:
                    near.close()
                    continue
            try:
                far = socket.create_connection(("127.0.0.1", self._upstream), timeout=5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            pair = _Pair(near, far)
            with self._lock:
                self._pairs.append(pair)
            for source, target in ((near, far), (far, near)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._pump, args=(pair, source, target), daemon=True).start()

    def _pump(self, pair: _Pair, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                if self.latency:
                    time.sleep(self.latency)
                if not pair.silent:
                    target.sendall(data)
        except OSError:
            pass
        if not pair.silent:  # who was never told of the silence is not told of its end either
            pair.close()


class _Pair:
    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.near, self.far = near, far
        self.silent = False

    def close(self) -> None:
        for each in (self.near, self.far):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
