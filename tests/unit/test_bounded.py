"""A peer that sends a byte now and then holds nobody for ever: a call has its time, however many waits are in it."""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from providers.clients import fake_cloud, local_host
from providers.clients.fake_cloud import Remote
from providers.clients.local_host import LocalHostClient
from providers.errors import Transient

ENOUGH = 0.5  # seconds that a call may take
PACE = 0.05  # seconds between two bytes: well within what one wait may take
SOON = 20.0  # seconds: a server that never ends would take minutes


@contextmanager
def trickling(answer: bytes, *, first: bytes = b"") -> Iterator[Path]:
    """A server that answers the first line of every connection with `first`, where given, and whatever else comes with
    `answer`, byte by byte."""
    over = threading.Event()

    def serve(link: socket.socket) -> None:
        with link, suppress(OSError):
            link.recv(65536)
            if first:
                link.sendall(first)
                link.recv(65536)
            for byte in answer:
                if over.wait(PACE):
                    return
                link.sendall(bytes([byte]))

    def listen(server: socket.socket) -> None:
        while not over.is_set():
            with suppress(TimeoutError):
                link, _ = server.accept()
                threading.Thread(target=serve, args=(link,), daemon=True).start()

    with tempfile.TemporaryDirectory(prefix="co-") as folder, socket.socket(socket.AF_UNIX) as server:
        path = Path(folder) / "host.sock"
        server.bind(str(path))
        server.listen()
        server.settimeout(0.1)
        thread = threading.Thread(target=listen, args=(server,))
        thread.start()
        try:
            yield path
        finally:
            over.set()
            thread.join()


def lost(call: Callable[[], Any]) -> Transient:
    began = time.monotonic()
    with pytest.raises(Transient) as raised:
        call()
    assert time.monotonic() - began < SOON
    return raised.value


@pytest.mark.parametrize("part", [b"HTTP/1.1 200 OK\r\nX-Word: ", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"])
def test_a_local_host_that_sends_a_byte_now_and_then_is_given_up(part: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_host, "READ_SECONDS", ENOUGH)
    with trickling(part + b"x" * 1000) as path:
        client = LocalHostClient(path)
        assert not lost(lambda: client.call("GET", "/health")).ambiguous
        assert lost(lambda: client.call("POST", "/servers/srv-1/stop", {})).ambiguous


def test_a_fake_cloud_that_sends_a_byte_now_and_then_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_cloud, "READ_SECONDS", ENOUGH)
    with trickling(b'[true, "' + b"x" * 1000, first=b"[true, null]\n") as path:
        remote = Remote("compute", {"socket": str(path)})
        assert lost(lambda: remote.stop("srv-1")).ambiguous


def test_a_fake_cloud_that_greets_a_byte_now_and_then_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_cloud, "READ_SECONDS", ENOUGH)
    with trickling(b'[true, "' + b"x" * 1000) as path:
        assert not lost(lambda: Remote("compute", {"socket": str(path)})).ambiguous
