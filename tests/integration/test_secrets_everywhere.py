"""Secrets are planted wherever a rollout may get one from; servers are replaced, and fail, and workers die. Then every
place that somebody may look at is searched for them: not one is found, and one planted in each place is."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import redis

from orchestrator import operations
from orchestrator.demo import scene
from orchestrator.messaging import make_app
from tests.support.shop import Whole, shop
from tests.support.valkey import running_valkey

MARKERS = {
    "PROBE_TOKEN": "MARKER-probe-1f7a9c",  # a header of the smoke test, from the environment
    "COPY_TOKEN": "MARKER-hook-2e8b0d",  # what the fleet file gives to the hook, which prints it and fails
    "CLOUD_SECRET_KEY": "MARKER-cloud-3d9c1e",  # what the worker has in its environment, and nobody named
}
FROM_FILE = "MARKER-file-4c0d2f"  # a header of the smoke test, from a file
PASSWORD = "MARKER-redis-5b1e30"
ALL = (*MARKERS.values(), FROM_FILE, PASSWORD)

# For the last server it prints all that it knows, and fails.
HOOK = """
import os, sys
if sys.argv[1] == sys.argv[3]:
    print("environment", dict(os.environ))
    sys.exit("refused: token " + os.environ["COPY"] + " is not valid; seen " + " ".join(os.environ.values()))
"""


@pytest.mark.timeout(400)
def test_no_secret_is_found_anywhere_though_servers_fail_and_workers_die(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in MARKERS.items():
        monkeypatch.setenv(name, value)
    key = tmp_path / "probe.key"
    key.write_text(FROM_FILE + "\n")
    hook = tmp_path / "hook.py"
    hook.write_text(HOOK)
    with running_valkey("--requirepass", PASSWORD) as valkey:
        url = valkey.url.replace("unix://", f"unix://default:{PASSWORD}@").replace("?db=0", "")
        with shop(tmp_path, servers=2, watched=True, redis_url=url) as whole:
            last = whole.scene.names[-1]
            old = next(s["address"] for s in whole.scene.host.servers() if s["id"] == whole.scene.ids[last])
            _plant(monkeypatch, hook=hook, key=key, fails_for=old)
            _replace(whole, fails=last)
            raw = redis.Redis(unix_socket_path=str(valkey.socket), password=PASSWORD)
            places = _places(whole, raw, valkey.socket.parent, tmp_path, url)
            found = {name: _hits(look) for name, look in places.items()}
            assert not any(found.values()), found
            explained = b" ".join(places["command line and report"]())
            assert b"[REDACTED] is not valid" in explained, "and it is said what the hook said"
            _control(whole, raw, tmp_path, places)
            raw.close()


def _plant(monkeypatch: pytest.MonkeyPatch, *, hook: Path, key: Path, fails_for: str) -> None:
    """The demo's file, with secrets as references wherever it takes one."""
    words = json.dumps([sys.executable, str(hook), "{{old}}", "{{new}}", fails_for])
    state = f"state: {{{{sync: {words}, env: {{{{COPY: env:COPY_TOKEN}}}}}}}}"
    headers = f"headers: {{{{Authorization: env:PROBE_TOKEN, Cookie: file:{key}}}}}"
    text = scene.FLEET.replace("state: stateless", state)
    text = text.replace('url: "http://shop.test/health"', f'url: "http://shop.test/health", {headers}')
    assert text.count("COPY_TOKEN") == text.count("PROBE_TOKEN") == text.count(str(key)) == 1
    monkeypatch.setattr(scene, "FLEET", text)


def _replace(whole: Whole, *, fails: str) -> None:
    """A worker is killed while it has the first server in hand; the last one fails at its hook."""
    whole.apply()
    killed = False
    end = time.monotonic() + 200
    while True:
        whole.supervisor.step(0.05)
        for row in whole.store.rows(whole.id):
            if row.owner and row.upgrade.step == "smoke_test" and not killed:
                killed = True
                whole.supervisor.kill_worker(signal.SIGKILL, name=row.owner.partition("/")[0])
        view = operations.view(whole.store, whole.id)
        states = {u.server: u.state for u in view.upgrades}
        if states[fails] == "failed" and set(states.values()) <= {"failed", "upgraded"}:
            break
        assert time.monotonic() < end, states
    assert killed
    assert sorted(states.values()) == ["failed", "upgraded"]


Look = Callable[[], Iterator[bytes]]


def _hits(look: Look) -> list[str]:
    return sorted({marker for piece in look() for marker in ALL if marker.encode() in piece})


def _read(path: Path) -> bytes:
    """Nothing of what is gone by now: servers that have ended, processes, and what Redis has rewritten."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _places(whole: Whole, raw: Any, data: Path, tmp_path: Path, url: str) -> Mapping[str, Look]:
    def logs() -> Iterator[bytes]:
        files = [path for folder in (tmp_path, whole.scene.short) for path in folder.rglob("*") if path.is_file()]
        planted = {tmp_path / "probe.key"}
        # The supervisor leaves there where its Redis is, for the command line of the same user alone.
        private = {path for path in files if path.name == "run.json"}
        assert all(path.stat().st_mode & 0o077 == 0 for path in private)
        for path in set(files) - planted - private:
            yield _read(path)

    def aof() -> Iterator[bytes]:
        for path in data.rglob("*"):
            if path.is_file():
                yield _read(path)

    def processes() -> Iterator[bytes]:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            yield _read(path)

    def command_line() -> Iterator[bytes]:
        report = tmp_path / "report"
        for words in (
            ["show", whole.id],
            ["show", whole.id, "-o", "json"],
            ["events", whole.id, "-o", "json"],
            ["explain", whole.scene.names[-1], "-o", "json"],
            ["explain", whole.scene.names[-1]],
            ["report", whole.id, "--out", str(report)],
            ["doctor", str(whole.scene.fleet_file())],
        ):
            yield _changeover(url, words)
        written = [path.read_bytes() for path in report.rglob("*") if path.is_file()]
        assert {path.suffix for path in report.iterdir()} >= {".html", ".json"}
        yield from written

    def flower() -> Iterator[bytes]:
        assert whole.supervisor.flower_credentials is not None
        user = whole.supervisor.flower_credentials.read_text().strip().encode()
        base = whole.supervisor.flower_url
        tasks = _get(f"{base}/api/tasks?limit=10000", user)
        yield tasks
        yield _get(f"{base}/api/workers?refresh=1", user)
        for page in ("", "/tasks", "/broker", "/api/queues/length", "/metrics"):
            yield _get(base + page, user)
        for name in json.loads(_get(f"{base}/api/workers", user)):
            yield _get(f"{base}/worker/{name}", user)
        for id in json.loads(tasks):
            yield _get(f"{base}/task/{id}", user)

    return {
        "Redis": lambda: _everything_in(raw),
        "append-only file": aof,
        "logs and files": logs,
        "process list": processes,
        "command line and report": command_line,
        "Flower": flower,
    }


def _everything_in(raw: Any) -> Iterator[bytes]:
    """Every key and value of every database, and what is packed in them."""
    options = raw.connection_pool.connection_kwargs
    for number in raw.info("keyspace"):
        with redis.Redis(**{**_reach(options), "db": int(number.removeprefix("db"))}) as one:
            for key in one.scan_iter():
                yield key
                for value in _values(one, key):
                    yield value
                    try:
                        yield zlib.decompress(value)
                    except zlib.error:
                        continue


def _reach(options: Mapping[str, Any]) -> dict[str, Any]:
    return {"unix_socket_path": options["path"], "password": options["password"]}


def _values(one: Any, key: bytes) -> list[bytes]:
    match one.type(key):
        case b"string":
            return [one.get(key)]
        case b"hash":
            return [part for pair in one.hgetall(key).items() for part in pair]
        case b"list":
            return list(one.lrange(key, 0, -1))
        case b"set":
            return list(one.smembers(key))
        case b"zset":
            return list(one.zrange(key, 0, -1))
        case b"stream":
            return [part for _, entry in one.xrange(key) for pair in entry.items() for part in pair]
        case b"none":
            return []
    raise AssertionError(f"say in this test how to read a {one.type(key)}")


def _changeover(url: str, words: list[str]) -> bytes:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("changeover")), *words],
        env={**os.environ, "CHANGEOVER_REDIS_URL": url},
        capture_output=True,
        timeout=90,
        check=False,
    )
    assert done.stdout, (words, done.stderr[-400:])
    return done.stdout + done.stderr


def _get(url: str, user: bytes) -> bytes:
    request = urllib.request.Request(url, headers={"Authorization": "Basic " + base64.b64encode(user).decode()})
    with urllib.request.urlopen(request, timeout=60) as answer:
        body: bytes = answer.read()
        return body


def _control(whole: Whole, raw: Any, tmp_path: Path, places: Mapping[str, Look]) -> None:
    """The same search finds a secret that is there."""
    marker = MARKERS["COPY_TOKEN"]
    (tmp_path / "state" / "planted.log").write_text(f'{{"said": "{marker}"}}\n')
    raw.set("planted", marker)
    raw.execute_command("BGREWRITEAOF")
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", marker])
    make_app(whole.supervisor.settings).send_task("tasks.smoke_test", kwargs={"said": marker}, task_id="planted")
    try:
        end = time.monotonic() + 60
        for name in ("Redis", "append-only file", "logs and files", "process list", "Flower"):
            while marker not in _hits(places[name]):
                assert time.monotonic() < end, f"a secret in {name} is not found"
                whole.supervisor.step(0.1)
    finally:
        sleeper.kill()
        sleeper.wait()
