"""A whole shop with its control plane, as the demo has one, in the size that a test needs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator import operations
from orchestrator.demo.scene import Scene
from orchestrator.fleet_file import load
from orchestrator.messaging import make_app
from orchestrator.settings import Settings
from orchestrator.store.redis import RedisStore
from orchestrator.supervisor import Supervisor, start

PATIENCE = 150.0


class Whole:
    """A shop and its control plane."""

    def __init__(self, scene: Scene, supervisor: Supervisor) -> None:
        self.scene, self.supervisor = scene, supervisor
        settings = supervisor.settings
        self.store = RedisStore(settings.store_url(), namespace=settings.namespace, connections=4)
        self.ask = operations.celery_asker(make_app(settings))
        self.waiter = operations.Waiter(sleep=supervisor.step)
        self.id = ""

    def apply(self) -> None:
        fleet = load(self.scene.fleet_file())
        self.id = operations.apply(self.store, self.ask, fleet, agreed=None, actor="test", waiter=self.waiter).id

    def until_ended(self, each: Callable[[operations.View], None] = lambda _view: None) -> operations.View:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            self.supervisor.step(0.05)
            view = operations.view(self.store, self.id)
            each(view)
            if view.rollout.ended:
                return view
        raise AssertionError(f"not ended: {[(u.server, u.state, u.step, u.why) for u in view.upgrades]}")

    def ours(self) -> list[str]:
        """For which server each thing was made that is still there."""
        servers = self.scene.host.servers()
        return sorted(s["tags"]["changeover:server"] for s in servers if s["tags"].get("changeover:managed") == "1")


@contextmanager
def shop(tmp_path: Path, *, servers: int, watched: bool = False, **changes: Any) -> Iterator[Whole]:
    """`watched`: with Flower and the fleet page. `changes` are settings of the control plane."""
    scene = Scene(short=Path(tempfile.mkdtemp(prefix="co-")), out=tmp_path, pools={"web": servers}, rate=60)
    supervisor = None
    try:
        scene.build()
        given = {"redis_url": "", "broker_url": "", "result_url": "", "state_dir": tmp_path / "state"}
        settings = Settings(**{**given, "lease": 20.0, "concurrency": 4, **changes})
        supervisor = start(settings, workers=2, with_flower=watched, with_page=watched)
        supervisor.wait_ready(90)
        scene.send_users()
        yield Whole(scene, supervisor)
    finally:
        if supervisor is not None:
            supervisor.stop()
        scene.clear()
