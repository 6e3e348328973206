"""`changeover flower`, as a container or a service starts it."""

from __future__ import annotations

import base64
import json
import os
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flower.urls import handlers

from orchestrator.messaging import make_app
from orchestrator.settings import Settings
from tasks import SetAside
from tests.support.redis_servers import free_port, wait_for

PASSWORD = "0123456789abcdef-and-more"


def begin(url: str, state: Path, port: int, *words: str) -> subprocess.Popen[str]:
    given = {name: value for name, value in os.environ.items() if not name.startswith("CHANGEOVER_")}
    given |= {"CHANGEOVER_REDIS_URL": url, "CHANGEOVER_STATE_DIR": str(state)}
    start = "import sys; from orchestrator.cli import main; sys.exit(main())"
    argv = [sys.executable, "-P", "-c", start, "flower", "--port", str(port), *words]
    return subprocess.Popen(argv, env=given, stderr=subprocess.PIPE, text=True)


@contextmanager
def serving(url: str, tmp_path: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    secret = tmp_path / "secret"
    secret.write_text(PASSWORD + "\n")
    for _ in range(9):  # a free port may be somebody else's a moment later
        port = free_port()
        process = begin(url, tmp_path / "state", port, "--password-file", str(secret), *words)
        assert process.stderr is not None
        said = process.stderr.readline()
        if "in use" not in said:
            break
        process.communicate(timeout=60)
    assert said.startswith(f"Flower  http://127.0.0.1:{port}/")  # which is listened on by now
    try:
        wait_for("an answer", lambda: process.poll() is not None or answer(port, "/") > 0, seconds=60)
        yield process, port
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def answer(port: int, path: str, *, method: str = "GET", password: str = PASSWORD) -> int:
    return asked(port, path, method=method, password=password)[0]


def answered(port: int, path: str) -> tuple[int, Any]:
    status, body = asked(port, path)
    return status, json.loads(body)


def asked(port: int, path: str, *, method: str = "GET", password: str = PASSWORD) -> tuple[int, bytes]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    request.add_header("Authorization", "Basic " + base64.b64encode(f"changeover:{password}".encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=20) as found:
            return int(found.status), found.read()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read()


def doors() -> list[str]:
    """All of the installed Flower's API."""
    api = (each[0] for each in handlers if isinstance(each, tuple) and each[0].startswith("/api/"))
    return [path.replace("(.+)", "some").replace("(.*)", "some") for path in api]


def test_it_serves_with_the_given_password_changes_nothing_and_ends_when_told(valkey_url: str, tmp_path: Path) -> None:
    with serving(valkey_url, tmp_path) as (process, port):
        assert answer(port, "/tasks") == 200
        assert answer(port, "/tasks", password="wrong") == 401
        answers = {path: answer(port, path, method="POST") for path in doors()}
        assert set(answers.values()) == {403, 405}, answers  # 405: it is there to be read alone
        assert list(answers.values()).count(403) >= 14, answers
        assert PASSWORD not in Path(f"/proc/{process.pid}/cmdline").read_text()
        assert stat.S_IMODE((tmp_path / "state" / "flower" / "flowerconfig.py").stat().st_mode) == 0o600
        second = begin(valkey_url, tmp_path / "state", free_port())
        _, said = second.communicate(timeout=60)
        assert second.returncode == 1 and "another Flower already serves from" in said
        process.terminate()
        assert process.wait(30) == 0


@pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # Celery's
def test_it_tells_what_became_of_a_task(valkey_url: str, tmp_path: Path) -> None:
    ids = [f"r1ng6jrfnkha:web-2:{step}:e3" for step in ("4:smoke_test", "5:swap", "6:drain_old")]
    results = make_app(Settings(redis_url=valkey_url)).backend
    results.store_result(ids[0], {"step": "done"}, "SUCCESS")
    results.store_result(ids[1], SetAside("web-2 did not answer"), "FAILURE")
    with serving(valkey_url, tmp_path) as (_, port):
        told = [answered(port, f"/api/task/result/{id}") for id in ids]
    assert told == [
        (200, {"task-id": ids[0], "state": "SUCCESS", "result": {"step": "done"}}),
        (200, {"task-id": ids[1], "state": "FAILURE", "result": "SetAside('web-2 did not answer')", "traceback": None}),
        (200, {"task-id": ids[2], "state": "PENDING"}),
    ]


def test_a_proxy_may_give_it_a_path_of_a_shared_name(valkey_url: str, tmp_path: Path) -> None:
    with serving(valkey_url, tmp_path, "--prefix", "/flower/") as (_, port):
        assert answer(port, "/flower/tasks") == 200
        assert answer(port, "/flower/static/js/flower.js") == 200
        assert answer(port, "/tasks") == 404


@pytest.mark.parametrize("text", ["", "short", "two words are not one password"])
def test_a_file_without_a_password_is_refused(valkey_url: str, tmp_path: Path, text: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text(text)
    process = begin(valkey_url, tmp_path / "state", free_port(), "--password-file", str(secret))
    _, said = process.communicate(timeout=60)
    assert process.returncode == 64 and "holds no password of 16 characters or more" in said
    assert not text or text not in said
