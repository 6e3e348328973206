"""A real local host for tests: `with LocalHost() as host:` starts it in a short folder and guarantees its end."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from providers.clients.local_host import LocalHostClient
from providers.compute import Size
from providers.local_host import processes

SITE = Path(__file__).with_name("tiny_site.py")
MIB = 1 << 20
SMALL = Size(memory=256 * MIB, disk=16 * MIB)
Answer = TypeVar("Answer")


def until(ask: Callable[[], Answer], what: str, *, seconds: float = 20.0) -> Answer:
    """Asks again until the answer is true, which it returns; fails after the seconds."""
    end = time.monotonic() + seconds
    while not (answer := ask()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.01)
    return answer


class LocalHost:
    """`state` is the host's folder, `client` its client, `settings` what a provider's constructor takes."""

    def __init__(self, *options: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="co-"))
        self.state = Path(os.path.realpath(self.folder)) / "host"
        self.client = LocalHostClient(self.state)
        self.settings: Mapping[str, Any] = {"host": str(self.state)}
        self._options = options
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> LocalHost:
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()
        processes.kill_marked(processes.HOST_MARK, str(self.state))
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """The daemon serves."""
        heard, said = os.pipe()
        command = [sys.executable, "-m", "providers.local_host", "--state", str(self.state), "--ready-fd", str(said)]
        try:
            self.process = subprocess.Popen([*command, *self._options], pass_fds=[said], start_new_session=True)
        finally:
            os.close(said)
        try:
            ready, _, _ = select.select([heard], [], [], 20)
            assert ready, "the host did not begin to serve"
            assert os.read(heard, 6) == b"ready\n", "the host did not begin"
        finally:
            os.close(heard)

    def kill(self) -> None:
        """SIGKILL to the daemon alone: its servers and HAProxies live on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def leftovers(self) -> list[int]:
        """Processes that this host started and that still run."""
        return processes.marked(processes.HOST_MARK, str(self.state))

    def server(self, name: str = "web-1", **given: Any) -> dict[str, Any]:
        """A running server with a tiny site that listens."""
        command: Sequence[str] = [sys.executable, "-S", str(SITE), "{address}", "{port}"]
        wanted: dict[str, Any] = {"name": name, "command": command, "port": 8080, "size": SMALL, **given}
        made = self.client.create_server(**wanted)
        self.listening(made["id"])
        return self.one(made["id"])

    def one(self, id: str) -> dict[str, Any]:
        return self.client.servers([id])[0]

    def becomes(self, id: str, state: str) -> dict[str, Any]:
        """Waits until the server or the image is in that state."""
        ask = self.client.images if id.startswith("img-") else self.client.servers
        until(lambda: [found["state"] for found in ask([id])] == [state], f"{id} {state}")
        return ask([id])[0]

    def listening(self, id: str) -> None:
        def ask() -> bool:
            now = self.one(id)
            assert now["state"] != "failed", now["reason"]
            answer = self.client.call("POST", "/facts", {"ids": [id], "paths": []}, reads=True)
            return bool(answer and answer[0]["listening"])

        until(ask, f"{id} listens")
