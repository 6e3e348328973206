"""`changeover api` as a process of its own, over a real Redis, and asked by curl as its page says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from orchestrator import tokens
from orchestrator.domain.fleet import Fleet
from orchestrator.store import Entry
from orchestrator.store.redis import RedisStore
from tests.support.control_plane import control_plane
from tests.support.redis_servers import free_port, wait_for

PAGE = Path(__file__).parents[2] / "docs" / "api.md"


def begin(url: str, state: Path, *words: str) -> subprocess.Popen[str]:
    given = {name: value for name, value in os.environ.items() if not name.startswith("CHANGEOVER_")}
    given |= {"CHANGEOVER_REDIS_URL": url, "CHANGEOVER_STATE_DIR": str(state), "CHANGEOVER_DEV": "true"}
    start = "import sys; from orchestrator.cli import main; sys.exit(main())"
    argv = [sys.executable, "-P", "-c", start, "api", *words]
    return subprocess.Popen(argv, env=given, stderr=subprocess.PIPE, text=True)


@contextmanager
def serving(url: str, state: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    port = free_port()
    where = f"http://127.0.0.1:{port}"
    process = begin(url, state, "--port", str(port), "--rate", "1000", *words)

    def answers() -> bool:
        assert process.poll() is None, process.communicate()
        try:
            return httpx2.get(f"{where}/healthz", timeout=5, trust_env=False, verify=False).status_code == 200
        except httpx2.TransportError:
            return False

    try:
        wait_for("an answer", answers, seconds=90)
        yield process, where
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


@pytest.fixture
def store(valkey_url: str) -> Iterator[RedisStore]:
    found = RedisStore(valkey_url)
    yield found
    found.close()


def test_a_stream_is_cut_when_it_is_told_to_end_and_goes_on_at_another_process(
    valkey_url: str, store: RedisStore, tmp_path: Path
) -> None:
    from tests.unit.test_store import Clock, Site

    site = Site(store, Clock())
    id = site.create(f"r{os.getpid()}").id
    _, shown = tokens.create(store, "ci", ["read"], actor="anna")
    http = httpx2.Client(headers={"Authorization": f"Bearer {shown}"}, timeout=60, trust_env=False, verify=False)
    seen: list[str] = []
    for turn in range(2):
        with serving(valkey_url, tmp_path / f"state{turn}") as (process, where):
            headers = {"Accept": "text/event-stream", **({"Last-Event-ID": seen[-1]} if seen else {})}
            with http.stream("GET", f"{where}/v1/rollouts/{id}/events", headers=headers) as answer:
                assert answer.status_code == 200
                lines = answer.iter_lines()
                for n in range(3):
                    store.note(id, Entry(event=f"e{turn}{n}", actor="anna"))
                while len(seen) < (1 + 3) * (turn + 1) - turn:
                    line = next(lines)
                    seen += [line[4:]] if line.startswith("id: ") else []
                told = time.monotonic()
                process.terminate()
                assert process.wait(60) == 0
                assert time.monotonic() - told < 30
    assert seen == [entry.id for entry in store.events(id)]
    http.close()


def test_it_listens_beyond_this_host_once_there_is_a_token(valkey_url: str, store: RedisStore, tmp_path: Path) -> None:
    for token in tokens.holding(store):
        store.revoke_token(token.id)
    process = begin(valkey_url, tmp_path, "--address", "0.0.0.0", "--port", "0")  # it is refused
    _, said = process.communicate(timeout=90)
    assert process.returncode == 64 and "changeover token create" in said
    made, _ = tokens.create(store, "ci", ["read"], actor="anna", seconds=3600)
    process = begin(valkey_url, tmp_path, "--address", "0.0.0.0", "--port", "0")  # so it is meant
    assert process.stderr is not None
    assert process.stderr.readline().startswith("API  http://0.0.0.0:")
    process.terminate()
    process.communicate(timeout=60)
    store.revoke_token(made.id)


def test_the_page_holds_asked_by_curl(tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl is installed")
    (script,) = [part.partition("```")[0] for part in PAGE.read_text().split("```sh\n")[1:]]
    with control_plane(tmp_path, workers=1) as plane:
        run = plane.fleet(servers=2)
        _, shown = tokens.create(plane.store, "ci", ["read", "plan", "run"], actor="anna")
        (tmp_path / "ci.token").write_text(shown)
        (tmp_path / "fleet.yaml").write_text(as_file(run.fleet))
        with serving(plane.supervisor.redis_url, tmp_path / "api") as (_, where):
            script = script.replace("http://127.0.0.1:8088", where)
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", script],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=170,
                check=False,
            )
        assert done.returncode == 0, done.stderr + done.stdout
        (rollout,) = plane.store.rollouts()
        assert (rollout.state, rollout.why) == ("paused", "too many tickets")
        assert '"event": "created"' in done.stdout


def as_file(fleet: Fleet) -> str:
    """JSON is YAML."""
    return json.dumps(fleet.canonical())
