"""A whole rollout in which each process comes to Redis as its own user, with the rights of deploy/redis/users.acl, and
a failover of such a Redis."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
import redis

from orchestrator import tokens
from orchestrator.embedded import valkey_server
from orchestrator.settings import Settings
from orchestrator.store.redis import RedisStore
from tests.support.control_plane import ControlPlane
from tests.support.fake_cloud import running_cloud
from tests.support.redis_servers import free_port, wait_for
from tests.support.redis_users import ROOT, Guarded, guarded_redis
from tests.support.valkey import WRAPPER

pytestmark = pytest.mark.debian
PACE = {"CHANGEOVER_LEASE": "5", "CHANGEOVER_GRACE": "2", "CHANGEOVER_CONCURRENCY": "4"}


def given(guarded: Guarded, user: str) -> dict[str, str]:
    """As docker-compose.yml gives it: an address without a secret, and a file with one."""
    return {
        "CHANGEOVER_REDIS_URL": f"redis://{user}@127.0.0.1:{guarded.port}/0",
        "CHANGEOVER_REDIS_PASSWORD_FILE": str(guarded.secrets / f"redis-{user}"),
        **PACE,
    }


@contextmanager
def process(guarded: Guarded, tmp_path: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    user = words[0]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CHANGEOVER_")}
    state = tmp_path / f"state-{user}"
    start = "import sys; from orchestrator.cli import main; sys.exit(main())"
    with (tmp_path / f"{user}.log").open("ab") as log:
        running = subprocess.Popen(
            [sys.executable, "-P", "-c", start, *words],
            env={**inherited, **given(guarded, user), "CHANGEOVER_STATE_DIR": str(state)},
            cwd=tmp_path,
            stderr=log,
        )
    try:
        yield running
    finally:
        running.kill()
        running.wait()


@pytest.mark.timeout(240)
def test_a_rollout_goes_through_with_each_process_as_its_own_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as running:
        guarded = running.enter_context(guarded_redis(tmp_path))
        cloud = running.enter_context(running_cloud())
        port, api = str(free_port()), str(free_port())
        password = str(guarded.secrets / "flower")
        parts = [
            running.enter_context(process(guarded, tmp_path, *words))
            for words in (
                ("worker", "--name", "w1"),
                ("worker", "--name", "w2"),
                ("coordinator",),
                ("coordinator",),
                ("flower", "--port", port, "--password-file", password),
                ("api", "--port", api),
            )
        ]
        for name, value in given(guarded, "api").items():
            monkeypatch.setenv(name, value)
        settings = Settings.load().model_copy(update={"state_dir": tmp_path})
        plane = ControlPlane(SimpleNamespace(settings=settings, step=time.sleep), cloud, [])
        wait_for("two workers", lambda: len(plane.store.workers()) == 2, seconds=60)

        rollout = plane.fleet(servers=3)
        _, token = tokens.create(plane.store, "ci", ["read", "run"], actor="test")
        asked = httpx2.Client(base_url=f"http://127.0.0.1:{api}", trust_env=False, verify=False, timeout=60)
        asked.headers["Authorization"] = f"Bearer {token}"
        wait_for("the API", lambda: asked.get("/readyz").status_code == 200, seconds=60)
        head = {"Content-Type": "application/yaml", "Idempotency-Key": "once"}
        body = json.dumps(rollout.fleet.canonical())  # JSON is YAML
        begun = [asked.post("/v1/rollouts", headers=head, content=body).headers["Location"] for _ in range(2)]
        assert begun[0] == begun[1]
        rollout.id = begun[0].rpartition("/")[2]
        rollout.under_way()
        parts[0].terminate()  # it gives back what it holds, and tells Flower and the others
        rollout.finish()
        plane.store.freeze(True, actor="test", reason="a look")
        plane.store.freeze(False, actor="test")

        assert asked.get(begun[0]).json()["rollout"]["state"] in ("baking", "succeeded")
        assert asked.get(f"{begun[0]}/events").status_code == asked.get(f"{begun[0]}/report").status_code == 200
        asked.close()
        found = Flower(int(port), Path(password).read_text().strip())
        wait_for("the worker in Flower", lambda: "w2@" in found.page("/api/workers?refresh=1"), seconds=60)
        wait_for("the tasks in Flower", lambda: "web-3:6:drain_old" in found.page("/api/tasks"), seconds=60)
        found.page("/broker")
        done = next(iter(json.loads(found.page("/api/tasks?taskname=tasks.drain_old&state=SUCCESS"))))
        assert json.loads(found.page(f"/api/task/result/{done}?timeout=20"))["result"]["step"] == "done"
        for part in parts:
            part.terminate()
        assert [part.wait(60) for part in parts] == [0, 0, 0, 0, 0, 0]
        assert guarded.refusals() == []


@pytest.mark.timeout(180)
def test_sentinel_and_replicas_come_as_users_of_their_own_and_a_failover_loses_nothing(tmp_path: Path) -> None:
    subprocess.run([ROOT / "deploy" / "make-secrets", tmp_path / "secrets"], check=True, capture_output=True)
    secret = {
        who: (tmp_path / "secrets" / f"redis-{who}").read_text().strip() for who in ("replica", "sentinel", "worker")
    }
    replication = tmp_path / "replication.conf"
    replication.write_text(example("replication.conf").replace("PASSWORD-OF-redis-replica", secret["replica"]))
    common = ("--include", str(replication), "--repl-diskless-sync-delay", "0")
    with ExitStack() as running:
        secrets = tmp_path / "secrets"
        first = running.enter_context(guarded_redis(tmp_path / "first", *common, secrets=secrets))
        of = ("--replicaof", "127.0.0.1", str(first.port))
        second = running.enter_context(guarded_redis(tmp_path / "second", *common, *of, secrets=secrets))
        with first.client("admin") as admin:
            wait_for("the replica", lambda: int(admin.info("replication")["min_slaves_good_slaves"]) == 1, seconds=60)
        ports = [
            running.enter_context(sentinel(tmp_path, number, first.port, secret["sentinel"])) for number in range(3)
        ]
        wait_for("the sentinels' acquaintance", lambda: all(knows(port) for port in ports), seconds=60)

        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        store = RedisStore(f"sentinel://worker:{secret['worker']}@{hosts}/changeover/0", namespace="ha")
        store.freeze(True, actor="test", reason="before")
        assert store.confirmed() is True
        first.end()
        # A primary without a replica takes no write, as replication.conf has it: the former one comes back as one.
        wait_for("the new primary", lambda: store.frozen() is not None and primary(ports[0]) == second.port, seconds=60)
        first.begin()
        wait_for("a write", lambda: store.freeze(False, actor="test") is None, seconds=60)
        assert store.frozen() is None
        store.close()
        assert first.refusals() == second.refusals() == []


def example(name: str) -> str:
    return (ROOT / "deploy" / "redis" / name).read_text()


@contextmanager
def sentinel(tmp_path: Path, number: int, primary: int, password: str) -> Iterator[int]:
    """Our example, on another port, and quick."""
    folder = tmp_path / f"sentinel-{number}"
    folder.mkdir()
    port = free_port()
    text = example("sentinel.conf").replace("PASSWORD-OF-redis-sentinel", password)
    here = {"port 26379\n": f"port {port}\nbind 127.0.0.1\n", "/var/lib/redis": str(folder), " 5000": " 1000"}
    for was, now in {**here, "10.0.0.5 6379": f"127.0.0.1 {primary}", " 30000": " 5000"}.items():
        assert was in text
        text = text.replace(was, now)
    (folder / "sentinel.conf").write_text(text)
    argv = [str(valkey_server()), str(folder / "sentinel.conf"), "--sentinel"]
    with (folder / "log").open("wb") as log:
        wrapped = [sys.executable, "-I", "-S", "-c", WRAPPER, str(os.getpid()), *argv]
        running = subprocess.Popen(wrapped, stdout=log, stderr=log)
    try:
        yield port
    finally:
        running.kill()
        running.wait()


def knows(port: int) -> bool:
    with redis.Redis(port=port) as client:
        state = client.sentinel_masters()["changeover"]
    return state["num-other-sentinels"] == 2 and state["num-slaves"] == 1 and not state["is_sdown"]


def primary(port: int) -> int:
    with redis.Redis(port=port) as client:
        return int(client.sentinel_get_master_addr_by_name("changeover")[1])


class Flower:
    """What it answers whoever has the password."""

    def __init__(self, port: int, password: str) -> None:
        import base64

        self._port, self._secret = port, base64.b64encode(f"changeover:{password}".encode()).decode()

    def page(self, path: str) -> str:
        import urllib.request

        request = urllib.request.Request(f"http://127.0.0.1:{self._port}{path}")
        request.add_header("Authorization", f"Basic {self._secret}")
        with urllib.request.urlopen(request, timeout=20) as found:
            return str(found.read().decode())
