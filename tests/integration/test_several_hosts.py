"""More than one machine: Redis, the API and the cloud on one host, workers and coordinators on two others, and nothing
between them but a wire each. One of the wires is cut while a worker behind it is in the middle of a swap."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from orchestrator import operations, tokens
from orchestrator.embedded import valkey_server
from orchestrator.store import Row
from orchestrator.store.redis import RedisStore
from tests.support.hosts import ROOT, Host, Wire, hosts
from tests.support.redis_servers import wait_for
from tests.support.runner import fleet_file
from tests.support.users import Users

pytestmark = [pytest.mark.debian, pytest.mark.first]
HUB = "10.90.0.1"  # Redis, the API, and the cloud's own address
BLOCK = "10.91"  # of the cloud's machines and balancers
PORT, USERS, API = 8080, 8090, 8088
REGION, ACCOUNT = "eu-west-1", "111111111111"
LEASE = 5.0  # seconds
SERVERS = 4
CHANGEOVER = Path(sys.prefix) / "bin" / "changeover"
PLAIN = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/tmp", "LANG": "C.UTF-8"}
KEY = {
    "AWS_ACCESS_KEY_ID": "AKIAEXAMPLEEXAMPLE00",
    "AWS_SECRET_ACCESS_KEY": "example",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@dataclass
class Site:
    """The hosts, what runs on them, and how a person at the hub sees it."""

    hub: Host
    far: Mapping[str, Host]
    wires: Mapping[str, Wire]
    secrets: Path
    store: RedisStore
    cloud: Mapping[str, Any]

    def ask(self, what: str, **about: Any) -> Any:
        """What an operator asks of the cloud itself."""
        request = urllib.request.Request(f"{self.cloud['endpoint']}/sim/{what}", json.dumps(about).encode())
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.loads(answer.read())

    def fleet(self) -> bytes:
        there = {"endpoint": self.cloud["endpoint"], "role": f"arn:aws:iam::{ACCOUNT}:role/changeover"}
        servers = [{"name": each["name"], "id": each["id"], "pools": ["web"]} for each in self.cloud["servers"]]
        pool = {"port": PORT, "min_healthy": 2, "backend": self.cloud["pools"][0]["group"]}
        fleet = fleet_file(
            [each["name"] for each in servers],
            "aws",
            provider={"name": "aws", "region": REGION, "account": ACCOUNT, "settings": there},
            target={"size": {"memory": "4GiB", "disk": "16GiB", "type": "t3.medium"}},
            servers=servers,
            traffic={
                "provider": "elbv2",
                "settings": {"region": REGION, "poll": 1, **there},
                "pools": {"web": pool},
            },
            checks={"smoke": {"requests": [{"url": "http://shop.test/health"}], "passes": 2, "every": "200ms"}},
            rollout={
                "waves": ["rest"],
                "bake": "0s",
                "soak": "500ms",
                "max_in_flight": 2,
                "poll": "1s",
                "back_off": "500ms",
                "attempts": 20,
                "drain": {"deadline": "60s", "quiet": "0s"},
            },
        )
        return json.dumps(fleet.canonical()).encode()  # JSON is YAML


def given(user: str) -> dict[str, str]:
    """The environment of that user's processes, as docker-compose.yml gives it."""
    return {
        **PLAIN,
        "CHANGEOVER_REDIS_URL": f"redis://{user}@{HUB}:6379/0",
        "CHANGEOVER_REDIS_PASSWORD_FILE": f"/run/secrets/redis-{user}",
        "CHANGEOVER_STATE_DIR": "/tmp/state",
        "CHANGEOVER_LEASE": str(LEASE),
        "CHANGEOVER_GRACE": "2",
        "CHANGEOVER_CONCURRENCY": "4",
    }


def hand_over(host: Host, secrets: Path, *names: str) -> None:
    host.file("/run/secrets").mkdir(mode=0o700)
    for name in names:
        shutil.copy(secrets / name, host.file(f"/run/secrets/{name}"))


def begin_cloud(hub: Host) -> Mapping[str, Any]:
    wish = {
        "accounts": {ACCOUNT: SERVERS},
        "region": REGION,
        "port": PORT,
        "users": USERS,
        "delay": 1,
        "address": HUB,
        "block": BLOCK,
    }
    words = [sys.executable, "-P", "-m", "simcloud.fleet", json.dumps(wish)]
    running = hub.start("cloud", *words, env=PLAIN, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    said: Mapping[str, Any] = json.loads(running.stdout.readline())
    return said


@contextmanager
def site(logs: Path) -> Iterator[Site]:
    secrets = logs / "secrets"
    subprocess.run([ROOT / "deploy" / "make-secrets", secrets], check=True, capture_output=True, timeout=60)
    with hosts("hub", "east", "west", logs=logs) as (hub, east, west), hub.entered():
        hub.ip("address", "add", f"{HUB}/32", "dev", "lo")
        hub.ip("route", "add", "local", f"{BLOCK}.0.0/16", "dev", "lo")  # every address in it is the cloud's
        wires = {"east": Wire(hub, east, 1), "west": Wire(hub, west, 2)}
        hand_over(hub, secrets, "users.acl", "redis-api")
        config = ROOT / "deploy" / "redis" / "redis.conf"
        hub.start("redis", valkey_server(), config, "--bind", HUB, "--dir", "/tmp", env=PLAIN)
        for host in (east, west):
            hand_over(host, secrets, "redis-coordinator", "redis-worker")
        password = (secrets / "redis-api").read_text().strip()
        store = RedisStore(f"redis://api:{password}@{HUB}:6379/0", namespace="default", connections=4)
        wait_for("Redis", lambda: store.workers() == {})
        for host in (east, west):
            host.start("coordinator", CHANGEOVER, "coordinator", env=given("coordinator"))
            host.start("worker", CHANGEOVER, "worker", "--name", f"{host.name}-1", env={**given("worker"), **KEY})
        cloud = begin_cloud(hub)
        wait_for("the workers", lambda: len(store.workers()) == len(wires), seconds=60)
        yield Site(hub, {"east": east, "west": west}, wires, secrets, store, cloud)
        store.close()


def in_mid_swap(site: Site, id: str, *, called: int) -> Row:
    """Whoever has an upgrade in hand whose new server the cloud is just told to let users to."""
    found: list[Row] = []

    def caught() -> bool:
        if site.ask("calls").get("elbv2:RegisterTargets", 0) > called:
            found[:] = [row for row in site.store.rows(id) if row.owner and row.upgrade.step == "swap"]
        return bool(found)

    wait_for("a swap", caught, seconds=90, every=0.05)
    return found[0]


@pytest.mark.timeout(480)
def test_a_host_that_is_cut_off_in_mid_swap_costs_no_server_and_no_request(tmp_path: Path) -> None:
    with site(tmp_path) as s:
        _, token = tokens.create(s.store, "ci", ["read", "run"], actor="test")
        s.hub.start("api", CHANGEOVER, "api", "--address", HUB, "--port", API, env=given("api"))
        api = httpx2.Client(base_url=f"http://{HUB}:{API}", trust_env=False, verify=False, timeout=60)
        api.headers["Authorization"] = f"Bearer {token}"
        wait_for("the API", lambda: api.get("/readyz").status_code == 200, seconds=60)
        pool = s.cloud["pools"][0]
        users = Users({"web": (pool["host"], pool["port"])})

        s.ask("faults", service="elbv2", action="RegisterTargets", delay=3.0)
        called = s.ask("calls").get("elbv2:RegisterTargets", 0)
        head = {"Content-Type": "application/yaml"}
        begun = api.post("/v1/rollouts", headers=head, content=s.fleet())
        assert begun.status_code == 202, begun.text
        id = begun.headers["Location"].rpartition("/")[2]

        row = in_mid_swap(s, id, called=called)
        cut = row.owner.partition("-")[0]
        s.wires[cut].cut()
        with s.far[cut].entered(), pytest.raises(OSError, match=r"timed out|unreachable|No route"):
            socket.create_connection((HUB, 6379), timeout=1)

        def taken_over() -> bool:
            now = s.store.row(id, row.upgrade.server)
            assert now is not None
            return now.upgrade.has_begun("drain_old") or now.upgrade.state == "upgraded"

        wait_for("the swap by others", taken_over, seconds=90, every=0.2)
        s.wires[cut].heal()

        wait_for("the end", lambda: operations.view(s.store, id).rollout.ended, seconds=120, every=0.2)
        wait_for("the workers of both hosts", lambda: len(s.store.workers()) == len(s.far), seconds=60)
        time.sleep(1)  # for users to meet what was left behind
        users.stop()

        view = operations.view(s.store, id)
        names = [each["name"] for each in s.cloud["servers"]]
        assert {u.server: u.state for u in view.upgrades} == dict.fromkeys(names, "upgraded")
        assert users.failures == []
        new = {u.results["provision"]["server"] for u in view.upgrades}
        old = {each["id"] for each in s.cloud["servers"]}
        assert set(users.served["web"]) == new | old, "each of them has served users"
        made = s.ask("billable", account=ACCOUNT, region=REGION)
        assert set(made["instance"]) == new | old, "none was made twice"
        assert len([tags for tags in made["image"].values() if "changeover:managed" in tags]) == SERVERS
        api.close()
