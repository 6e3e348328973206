"""The fake cloud in a process of its own, that ends with the test process however that ends."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from providers.clients.fake_cloud import Remote
from providers.errors import Transient
from tests.support.valkey import WRAPPER


class RunningCloud:
    """`socket` is what settings name. `evidence` has a folder for each world."""

    def __init__(self, folder: Path) -> None:
        self.socket, self.evidence = folder / "cloud.sock", folder / "evidence"

    def settings(self, world: str, **more: Any) -> dict[str, Any]:
        return {"socket": str(self.socket), "world": world, **more}

    def operator(self, world: str, **more: Any) -> Any:
        """Those who run that cloud: `providers.fake_host.Operator`, over the wire."""
        return Remote("operator", self.settings(world, **more))


@contextlib.contextmanager
def running_cloud() -> Iterator[RunningCloud]:
    folder = Path(tempfile.mkdtemp(prefix="co-", dir="/tmp"))
    cloud = RunningCloud(folder)
    host = [sys.executable, "-m", "providers.fake_host", str(cloud.socket), "--evidence", str(cloud.evidence)]
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", WRAPPER, str(os.getpid()), *host])
    try:
        end = time.monotonic() + 20
        while True:
            try:
                cloud.operator("").calls()
                break
            except Transient:
                assert process.poll() is None and time.monotonic() < end, "the fake cloud did not start"
                time.sleep(0.02)
        yield cloud
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)
