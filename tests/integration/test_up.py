"""`changeover up`: everything runs, what dies comes back, and nothing is left behind."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator import supervisor, tokens
from orchestrator.cli import up as cli
from orchestrator.domain.rollout import Rollout
from orchestrator.domain.upgrade import Admitted, Upgrade
from orchestrator.errors import BadInput, ChangeoverError, Conflict, UnsafeStore, WaitTimeout
from orchestrator.settings import Settings
from orchestrator.state_folder import StateFolder
from orchestrator.store import Claim, Entry, Store
from orchestrator.store.redis import RedisStore
from orchestrator.supervisor import Supervisor, start
from orchestrator.web import sessions
from tests.support.valkey import running_valkey

CHANGEOVER = Path(sys.executable).with_name("changeover")
PATIENCE = 90.0  # seconds for things that take two or three on an idle machine


def until(what: str, condition: Callable[[], Any], *, seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.02)


def steps(up: Supervisor, what: str, condition: Callable[[], bool]) -> None:
    def step() -> bool:
        up.step(0.05)
        return condition()

    until(what, step, seconds=10)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class Up:
    """`changeover up` as a process of its own."""

    def __init__(self, state: Path, *, workers: int = 1, flower: bool = True) -> None:
        self.folder = StateFolder.open(state)
        self.errors = state / "up.stderr"
        command = [str(CHANGEOVER), "up", "--workers", str(workers), *([] if flower else ["--no-flower", "--no-page"])]
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, "CHANGEOVER_STATE_DIR": str(state), "CHANGEOVER_CONCURRENCY": "2"},
                stderr=errors,
            )

    @property
    def run(self) -> Mapping[str, Any]:
        return self.folder.read_run()

    def ready(self) -> Up:
        until("up", lambda: self.process.poll() is not None or "ready. Redis" in self.errors.read_text())
        assert self.process.poll() is None, self.errors.read_text()
        return self

    def everything(self) -> list[int]:
        return [self.process.pid, *self.run["processes"].values()]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def begin() -> Iterator[Callable[..., Up]]:
    begun: list[Up] = []

    def begin(*arguments: Any, **options: Any) -> Up:
        begun.append(Up(*arguments, **options))
        return begun[-1]

    yield begin
    for each in begun:
        each.process.kill()
        each.process.wait()


@pytest.fixture
def supervise(state: Path) -> Iterator[Callable[..., Supervisor]]:
    """A supervisor of this process: what it starts is ours to look at."""
    begun: list[Supervisor] = []

    def supervise(**options: Any) -> Supervisor:
        settings = Settings(state_dir=state, concurrency=2, redis_url=options.pop("redis_url", ""))
        quiet = {"workers": 0, "coordinator": False, "with_flower": False}
        begun.append(start(settings, **{**quiet, **options}))
        return begun[-1]

    yield supervise
    for each in begun:
        each.stop(now=True)


def ask_flower(run: Mapping[str, Any], path: str, *, password: str = "") -> int:
    request = urllib.request.Request(run["flower_url"] + path)
    if password:
        request.add_header("Authorization", "Basic " + base64.b64encode(password.encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@pytest.mark.timeout(300)  # ten seconds on an idle machine; many programs start
def test_up_runs_everything_and_sigterm_leaves_nothing(begin: Callable[..., Up], state: Path) -> None:
    up = begin(state).ready()
    run = up.run
    assert set(run["processes"]) == {"valkey", "w1", "coordinator", "flower", "page"}

    store = RedisStore(run["redis_url"], connections=2)
    store.check(dev=False)
    assert store.workers()["w1"]["pid"] == run["processes"]["w1"]
    store.close()

    credentials = Path(run["flower_credentials"])
    password = credentials.read_text().strip()
    assert ask_flower(run, "/healthcheck") == 200
    assert ask_flower(run, "/tasks") == 401
    assert ask_flower(run, "/tasks", password=password) == 200
    with urllib.request.urlopen(run["page_url"] + "/login", timeout=30) as page:
        assert b"<h1>Sign in</h1>" in page.read()
    until("no way in, in a log", lambda: f"Page    {run['page_url']}/  with a token" in up.errors.read_text())
    for private in (credentials, up.folder.run_file, credentials.with_name("flowerconfig.py")):
        assert stat.S_IMODE(private.stat().st_mode) == 0o600
    for pid in up.everything():
        arguments = Path(f"/proc/{pid}/cmdline").read_text()
        assert password.partition(":")[2] not in arguments

    second = begin(state)
    assert second.process.wait(PATIENCE) == 1
    assert f"process {up.process.pid} already runs on {state}" in second.errors.read_text()
    assert "Next: changeover down --keep-host, then changeover up" in second.errors.read_text()

    pids = up.everything()
    up.process.send_signal(signal.SIGTERM)
    assert up.process.wait(PATIENCE) == 0
    assert not [pid for pid in pids if alive(pid)]
    assert not up.folder.run_file.exists()
    assert not Path(run["redis_url"].removeprefix("unix://").partition("?")[0]).parent.exists()


@pytest.mark.timeout(300)  # ten seconds on an idle machine; many programs start
def test_nothing_outlives_a_killed_supervisor_and_the_next_one_takes_over(
    begin: Callable[..., Up], state: Path
) -> None:
    up = begin(state).ready()
    pids = up.everything()
    up.process.kill()
    up.process.wait()
    until("the end of all", lambda: not [pid for pid in pids if alive(pid)], seconds=2)
    assert up.run, "a killed supervisor cannot tidy up"

    after = begin(state, workers=0, flower=False).ready()
    assert f"the former run (process {up.process.pid}) was killed" in after.errors.read_text()
    after.process.send_signal(signal.SIGINT)
    assert after.process.wait(PATIENCE) == 0


def claimed(store: Store, owner: str) -> Claim:
    """A lease of that owner on an upgrade, for far longer than a test."""
    upgrade = Upgrade(rollout="r1", server="web-1", wave=0)
    rollout = Rollout(
        id="r1", plan="p1", fleet="shop", created_at=store.now(), created_by="test", waves=(("web-1",),),
        max_in_flight=1, allowed_failures=1, bake=0, on_abort="finish",
    )  # fmt: skip
    store.create(rollout, [upgrade], locks={"fake/web-1": "web-1"})
    to = upgrade.after(Admitted(at=store.now()))
    assert store.admit("r1", "web-1", to=to, limit=1, wave=0, domain="", entry=Entry(event="Admitted", actor="test"))
    row = store.row("r1", "web-1")
    assert row is not None
    epoch = store.issue("r1", "web-1", version=row.version, grace=600)
    assert epoch is not None
    claim = store.claim("r1", "web-1", epoch=epoch, step="create_image", direction="forward", owner=owner, lease=600)
    assert isinstance(claim, Claim)
    return claim


def test_a_killed_worker_comes_back_and_what_it_held_is_free_at_once(supervise: Callable[..., Supervisor]) -> None:
    up = supervise(workers=1)
    up.wait_ready(PATIENCE)
    store = RedisStore(up.redis_url, connections=2)
    claimed(store, f"w1/{up.pids()['w1']}:some-task")
    name, pid = up.kill_worker()
    assert name == "w1"
    steps(up, "its end", lambda: up.pids().get("w1") not in {None, pid})
    row = store.row("r1", "web-1")
    assert row is not None
    assert (row.owner, row.lease_until) == ("", 0)
    up.wait_ready(PATIENCE)
    assert store.workers()["w1"]["pid"] == up.pids()["w1"] != pid
    assert StateFolder(up.settings.state_dir).read_run()["processes"]["w1"] == up.pids()["w1"]
    store.close()


def test_a_killed_valkey_comes_back_with_what_it_was_told(supervise: Callable[..., Supervisor]) -> None:
    up = supervise()
    store = RedisStore(up.redis_url, connections=2)
    store.put_document("plan", "p1", {"kept": True})
    os.kill(up.pids()["valkey"], signal.SIGKILL)
    steps(up, "its end", lambda: up.status()["valkey"].startswith("starts"))
    up.wait_ready(PATIENCE)
    assert store.document("plan", "p1") == {"kept": True}
    store.close()


def test_what_cannot_run_is_said_with_its_last_words(
    supervise: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(supervisor, "_python", lambda *_: ("sh", "-c", "echo the disk is a teapot >&2; exit 3"))
    up = supervise(workers=1, say=said.append)
    with pytest.raises(WaitTimeout, match=r"w1 ended 3 times in a row, its last words: the disk is a teapot"):
        up.wait_ready(PATIENCE)
    assert "w1 ended by itself with exit code 3" in said[0]
    assert "3 times in a row: it will not run like this" in said[-1]


def test_a_damaged_append_only_file_is_said_and_left_alone(supervise: Callable[..., Supervisor], state: Path) -> None:
    up = supervise()
    store = RedisStore(up.redis_url, connections=2)
    for number in range(5):
        store.put_document("plan", f"p{number}", {"kept": True})
    store.close()
    up.stop()
    (written,) = (state / "valkey" / "appendonlydir").glob("*.incr.aof")
    damaged = written.read_bytes().replace(b"\r\n*", b"\r\n?", 2)
    written.write_bytes(damaged)
    with pytest.raises(ChangeoverError, match=r"append-only file in .* is damaged, and was left as it is"):
        supervise()
    assert written.read_bytes() == damaged
    assert StateFolder(state).holder() is None


def test_a_port_that_is_taken_is_refused_and_nothing_stays(supervise: Callable[..., Supervisor], state: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BadInput, match=rf"127\.0\.0\.1:{port}: Address already in use"):
            supervise(with_flower=True, flower_port=port)
        with pytest.raises(BadInput, match="--page-port"):
            supervise(with_page=True, page_port=port)
    assert StateFolder(state).holder() is None
    assert not StateFolder(state).run_file.exists()


def test_a_given_redis_that_would_forget_is_refused(supervise: Callable[..., Supervisor]) -> None:
    with running_valkey("--appendonly", "no") as given, pytest.raises(UnsafeStore, match="append-only"):
        supervise(redis_url=given.url)


def test_whoever_came_in_by_the_link_of_up_is_out_when_it_ends_or_begins_anew(
    supervise: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with running_valkey() as given:
        store = RedisStore(given.url, connections=2)
        up = supervise(redis_url=given.url)
        for _ in range(2):
            path = cli._way_in(up).split()[0]
            token = sessions.by_link(store, path.partition("=")[2])
            assert token is not None and tokens.holding(store) == [token]
            cli._end_visits(up)
            assert tokens.holding(store) == []
            cli._end_visits(up)  # there is none: nothing happens
        store.close()


def test_a_given_redis_is_used_and_lives_on(supervise: Callable[..., Supervisor]) -> None:
    with running_valkey() as given:
        up = supervise(redis_url=given.url)
        assert "valkey" not in up.status()
        up.stop()
        assert given.process is not None
        assert given.process.poll() is None


def test_a_state_folder_belongs_to_one(supervise: Callable[..., Supervisor], state: Path) -> None:
    supervise()
    with pytest.raises(Conflict, match=rf"process {os.getpid()} already runs on {state}"):
        supervise()
    assert json.loads(StateFolder(state).run_file.read_text())["pid"] == os.getpid()
