"""What the chaos happens to: a shop of many servers behind one HAProxy, its users, and the control plane."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from orchestrator import operations
from orchestrator.demo import scene
from orchestrator.demo.scene import Scene
from orchestrator.errors import ChangeoverError
from orchestrator.fleet_file import load
from orchestrator.messaging import make_app
from orchestrator.settings import Settings
from orchestrator.store.redis import RedisStore
from orchestrator.supervisor import Supervisor, start
from tests.chaos.wire import Sampler, Wire
from tests.support import evidence

POOL = "web"
BALANCER = "127.0.0.99"  # as site.py knows it
HERE = Path(__file__).parent
LEASE = 6.0  # seconds


@dataclass
class Stage(Scene):
    """The demo's shop, with a wire before the cloud and a look at the balancer. `out` keeps the evidence."""

    wire: Wire = field(init=False)
    sampler: Sampler = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.wire = Wire(self.short / "wire.sock", self.short / "host" / "host.sock")

    def build(self) -> None:
        super().build()
        self.wire.__enter__()
        self.sampler = Sampler(self.haproxy_socket, POOL)

    def clear(self) -> None:
        if hasattr(self, "sampler"):
            self.wire.__exit__(None, None, None)
        super().clear()

    def _create(self, name: str) -> Mapping[str, Any]:
        command = [sys.executable, "{root}/site.py", "--notes", str(self.notes), "--address", "{address}"]
        command += ["--port", "{port}", "--root", "{root}", "--database", self.database]
        memory, disk = scene.SMALL
        files = self._files()
        return self.host.create_server(name, command=command, port=scene.PORT, memory=memory, disk=disk, files=files)

    def _files(self) -> Path:
        files = self.short / "files"
        if not files.exists():
            self.notes.mkdir()
            files = super()._files()
            (files / "site.py").rename(files / "shop.py")
            shutil.copy(HERE / "site.py", files / "site.py")
        return files

    def _balance(self, lines: Mapping[str, list[str]]) -> None:
        """As the demo's, and a site can tell users and checks from others."""
        whole = scene.HAPROXY
        try:
            scene.HAPROXY = f"{whole}  source {BALANCER}\n"
            super()._balance(lines)
        finally:
            scene.HAPROXY = whole

    @property
    def notes(self) -> Path:
        return self.short / "notes"

    def root(self, server: str) -> Path:
        """The folder of the server with that id."""
        return self.host.folder / "servers" / server / "root"

    def look(self) -> dict[str, Mapping[str, Any]]:
        """The servers that are there, by id."""
        return {str(server["id"]): server for server in self.host.servers()}

    # -- how a B is made bad: by what its A has on its disk when the image is made ---------------------------------

    def never_ready(self, name: str) -> None:
        (self.root(self.ids[name]) / "NEVER").touch()

    def fails_smoke(self, name: str) -> None:
        self.spoil(name)

    def fleet(self, names: Sequence[str], **policy: Any) -> Path:
        """The fleet file of a part of the shop."""
        rollout = {"waves": ["rest"], "poll": "500ms", "back_off": "300ms", **policy}
        whole = {
            "version": 1,
            "fleet": f"shop-{names[0]}",
            "provider": {"name": "local", "settings": {"host": str(self.wire.path)}},
            "target": {"size": {"memory": f"{scene.BIG[0]}MiB", "disk": f"{scene.BIG[1]}MiB"}},
            "servers": [{"name": name, "id": self.ids[name], "pools": [POOL]} for name in names],
            "traffic": {
                "provider": "haproxy",
                "settings": {
                    "socket": str(self.haproxy_socket),
                    "config": str(self.haproxy_config),
                    "check": self.check,
                },
                "pools": {POOL: {"port": scene.PORT, "min_healthy": self.least}},
            },
            "checks": {
                "guest": {"disk_free": "16MiB", "like_old": ["secret.key", "site.py", "shop.py"]},
                "smoke": {
                    "passes": 3,
                    "every": "300ms",
                    "requests": [
                        {"url": "http://shop.test/health"},
                        {"url": "http://shop.test/api/item/7", "same_as_old": True, "timeout": "2s"},
                    ],
                },
            },
            "state": "stateless",
            "retain": {"old_servers": rollout.pop("retain")},
            "rollout": rollout,
        }
        path = self.out / f"{names[0]}.yaml"
        path.write_text(json.dumps(whole))
        return path

    @property
    def least(self) -> int:
        return max(1, len(self.names) - 2)


class Control:
    """Workers, two coordinators and Valkey, which may be killed and come back."""

    def __init__(self, out: Path, *, workers: int) -> None:
        self._out, self._workers = out, workers
        self._second: subprocess.Popen[bytes] | None = None
        self.supervisor: Supervisor | None = None
        self.said: list[str] = []

    def start(self) -> None:
        settings = Settings(
            redis_url="", broker_url="", result_url="", state_dir=self._out / "state", lease=LEASE, concurrency=4
        )
        self.supervisor = start(settings, workers=self._workers, with_flower=False, say=self.said.append)
        self.supervisor.wait_ready(180)
        self.settings = self.supervisor.settings
        self.store = RedisStore(self.settings.store_url(), namespace=self.settings.namespace, connections=4)
        self.ask = operations.celery_asker(make_app(self.settings))
        self.waiter = operations.Waiter(sleep=self.supervisor.step)
        self._second = self._coordinate()

    def _coordinate(self) -> subprocess.Popen[bytes]:
        """A second coordinator, in a process that ends with us."""
        ours = {f"CHANGEOVER_{key.upper()}": str(v) for key, v in self.settings.model_dump(mode="json").items() if v}
        wrapper = [sys.executable, "-P", "-m", "orchestrator.reaped", str(int(signal.SIGKILL)), str(os.getpid()), "/"]
        with (self._out / "coordinator-2.log").open("ab") as log:
            return subprocess.Popen(
                [*wrapper, "--", sys.executable, "-P", "-m", "orchestrator.coordinate"],
                env={**os.environ, **ours},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def step(self, seconds: float) -> None:
        assert self.supervisor is not None
        self.supervisor.step(seconds)
        if self._second is not None and self._second.poll() is not None:
            self._second = self._coordinate()

    def kill_second(self) -> None:
        if self._second is not None:
            self._second.kill()
            self._second.wait()

    def pids(self) -> Mapping[str, int]:
        assert self.supervisor is not None
        return self.supervisor.pids()

    def kill_all(self) -> None:
        """Nothing of the control plane lives any more."""
        if self.supervisor is None:
            return
        self.kill_second()
        self._second = None
        for pid in self.pids().values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.supervisor.stop(now=True)
        self.supervisor = None

    def redis(self, database: int) -> Any:
        where = self.settings.store_url().removeprefix("unix://").partition("?")[0]
        return redis.Redis(unix_socket_path=where, db=database)


@dataclass(kw_only=True)
class Rollout:
    """One rollout and the evidence of it."""

    stage: Stage
    control: Control
    names: Sequence[str]
    policy: Mapping[str, Any]
    id: str = ""
    began: float = 0.0
    incidents: list[dict[str, Any]] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.stage.out / "evidence" / self.names[0]

    def apply(self) -> None:
        self.folder.mkdir(parents=True)
        self.stage.wire.write_to(self.folder / "cloud.jsonl")
        self.stage.sampler.write_to(self.folder / "balancer.jsonl")
        self.began = time.time()
        self.fleet = load(self.stage.fleet(self.names, **self.policy))
        self.before = dict(self.stage.sampler.now())
        made = operations.apply(
            self.control.store, self.control.ask, self.fleet, agreed=None, actor="chaos", waiter=self.control.waiter
        )
        self.id = made.id

    def view(self) -> operations.View | None:
        """How it is; None while Redis is away."""
        with suppress(ChangeoverError):
            return operations.view(self.control.store, self.id)
        return None

    def write(self) -> None:
        """What there is to say at the end, beside what was written down meanwhile."""
        folder, stage = self.folder, self.stage
        asked = evidence.plan({POOL: self.before}, self.id, self.fleet)
        # The balancer is looked at twenty times a second: B may have served a little longer than was seen.
        evidence.document(folder / "plan.json", asked | {"soak_seconds": max(0.0, asked["soak_seconds"] - 0.5)})
        evidence.write_store(folder, self.control.store, self.id)
        kept = ("id", "state", "tags", "name", "address", "boot")
        things = [{"kind": "server", **{k: s[k] for k in kept}} for s in stage.look().values()]
        things += [{"kind": "image", **{k: i[k] for k in kept[:4]}} for i in stage.host.images()]
        others = [t for t in things if t["tags"].get("changeover:rollout", self.id) != self.id]
        evidence.document(folder / "inventory.json", [thing for thing in things if thing not in others])
        notes = [json.loads(line) for file in stage.notes.glob("*.jsonl") for line in file.read_text().splitlines()]
        evidence.lines(folder / "probes.jsonl", sorted(self._since(notes, "at"), key=lambda note: note["at"]))
        evidence.lines(folder / "incidents.jsonl", self.incidents)
        users = (json.loads(line) for line in (stage.out / "load.jsonl").read_text().splitlines())
        evidence.lines(
            folder / "traffic.jsonl",
            (
                {"at": user["t"], "id": f"q{n}", "pool": POOL, "status": 200 if user["ok"] else 0}
                for n, user in enumerate(self._since(users, "t"))
            ),
        )

    def _since(self, rows: Iterable[dict[str, Any]], at: str) -> Iterator[dict[str, Any]]:
        return (row for row in rows if row[at] >= self.began)


def until(control: Control, true: Callable[[], Any], what: str, *, seconds: float) -> Any:
    """Goes on until it is so; what it answered."""
    end = time.monotonic() + seconds
    while not (answer := true()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        control.step(0.05)
    return answer
