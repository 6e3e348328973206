"""What the demo asks of the small local cloud, as its customer would: over its API, before Changeover comes in."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2

from orchestrator.errors import ChangeoverError

MIB = 1 << 20


class Host:
    """The local cloud whose state is in that folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._http = httpx2.Client(
            transport=httpx2.HTTPTransport(uds=str(folder / "host.sock")), base_url="http://host", timeout=30.0
        )

    def start(self) -> None:
        """It runs, in a session of its own."""
        reading, writing = os.pipe()
        argv = [sys.executable, "-m", "providers.local_host", "--state", str(self.folder), "--ready-fd", str(writing)]
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            argv, pass_fds=(writing,), start_new_session=True, stdin=subprocess.DEVNULL, cwd="/"
        )
        os.close(writing)
        with os.fdopen(reading, "rb") as ready:
            if ready.read() != b"ready\n":
                raise ChangeoverError(f"the local host did not start (exit code {self._process.wait()})")

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        answer = self._http.request(method, path, json=body)
        if answer.status_code != httpx2.codes.OK:
            raise ChangeoverError(f"the local host refused {method} {path}: {answer.text[:300]}")
        return answer.json()

    def create_server(
        self, name: str, *, command: list[str], port: int, memory: int, disk: int, files: Path
    ) -> Mapping[str, Any]:
        """A server on a copy of that folder. Sizes in MiB."""
        size = {"memory": memory * MIB, "disk": disk * MIB, "type": ""}
        body = {"name": name, "command": command, "port": port, "size": size, "files_from": str(files), "tags": {}}
        found: Mapping[str, Any] = self.ask("POST", "/servers", {**body, "env": {}, "grace": 20.0})
        return found

    def servers(self) -> list[Mapping[str, Any]]:
        return list(self.ask("GET", "/servers"))

    def last_words(self, id: str) -> str:
        """How that server is, and what it wrote last."""
        server = next((server for server in self.servers() if server["id"] == id), {"state": "gone", "reason": ""})
        text = str(self.ask("GET", f"/servers/{id}/console")["text"]).strip().splitlines()[-5:]
        return f"It is {server['state']} ({server['reason'] or 'no reason given'}); it wrote: {' | '.join(text)}"

    def images(self) -> list[Mapping[str, Any]]:
        return list(self.ask("GET", "/images"))

    def balance(self, *, config: Path, runtime: Path) -> None:
        """HAProxy runs from that file."""
        self.ask("PUT", "/haproxy/demo", {"config": str(config), "runtime": str(runtime)})

    def reap(self) -> None:
        """After its end: it was our child, and nobody else waits for it."""
        if self._process is not None:
            self._process.wait(30)

    def end(self, *, seconds: float = 30.0) -> None:
        """Its servers, its HAProxy and itself have ended; one that does not run has."""
        try:
            self._http.request("DELETE", "/")
        except httpx2.TransportError:
            return
        until = time.monotonic() + seconds
        while (self.folder / "host.sock").exists() and time.monotonic() < until:
            time.sleep(0.05)
