"""`changeover host` and `changeover down`: the small local cloud begins and ends as a person would have it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

CHANGEOVER = Path(sys.executable).with_name("changeover")
PATIENCE = 90


@pytest.fixture
def state() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="co-"))
    yield folder
    changeover(folder, "down", "--yes")
    shutil.rmtree(folder)


def changeover(state: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(CHANGEOVER), *words],
        env={**os.environ, "CHANGEOVER_STATE_DIR": str(state)},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


def test_a_detached_host_lives_on_until_down(state: Path) -> None:
    begun = changeover(state, "host", "--detach")
    assert (begun.returncode, begun.stderr.startswith("host ready: process ")) == (0, True)
    pid = int((state / "host" / "host.pid").read_text())
    os.kill(pid, 0)
    second = changeover(state, "host", "--detach")
    assert second.returncode == 1
    assert f"a host already runs on {state / 'host'} (pid {pid})" in second.stderr

    ended = changeover(state, "down")
    assert ended.returncode == 0
    assert f"`up` does not run on {state}" in ended.stderr
    assert f"host on {state / 'host'} ended" in ended.stderr
    assert not (state / "host" / "host.sock").exists()
    again = changeover(state, "down")
    assert (again.returncode, f"no host runs on {state / 'host'}" in again.stderr) == (0, True)


def test_down_ends_what_serves_only_when_told_so(state: Path) -> None:
    assert changeover(state, "host", "--detach").returncode == 0
    began = {"name": "web-1", "command": ["sleep", "600"], "port": 8080, "grace": 1.0, "tags": {}, "env": {}}
    size = {"memory": 64 << 20, "disk": 64 << 20, "type": ""}
    transport = httpx2.HTTPTransport(uds=str(state / "host" / "host.sock"))
    with httpx2.Client(transport=transport, base_url="http://host") as host:
        made = host.post("/servers", json={**began, "size": size, "files_from": ""}).json()
        refused = changeover(state, "down")
        assert refused.returncode == 64
        assert f"web-1 ({made['address']})" in refused.stderr
        assert "changeover down --yes" in refused.stderr
        assert "changeover down --keep-host" in refused.stderr
        assert changeover(state, "down", "--keep-host").returncode == 0
        assert [server["state"] for server in host.get("/servers").json()] == ["running"]
    assert changeover(state, "down", "--yes").returncode == 0
    assert not (state / "host" / "host.sock").exists()


def test_a_host_in_a_terminal_ends_with_ctrl_c(state: Path) -> None:
    host = subprocess.Popen(
        [str(CHANGEOVER), "host", "--state", str(state / "host")], stderr=subprocess.PIPE, text=True
    )
    assert host.stderr is not None
    assert host.stderr.readline().startswith("host ready: process ")
    host.send_signal(signal.SIGINT)
    _, said = host.communicate(timeout=PATIENCE)
    assert (host.returncode, said) == (0, "host ended, and its servers and HAProxy with it\n")


def test_a_folder_that_cannot_be_used_is_bad_input(state: Path) -> None:
    (state / "file").touch()
    refused = changeover(state, "host", "--detach", "--state", str(state / "file"))
    assert refused.returncode == 64
    assert "file" in refused.stderr
