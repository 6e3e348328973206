"""The story of `changeover demo`: a shop's servers are replaced under live traffic, one of them badly made, while a
worker is killed; and what its users noticed of it."""

from __future__ import annotations

import json
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator import operations
from orchestrator.demo.aws import AwsScene
from orchestrator.demo.scene import Scene
from orchestrator.demo.screen import Screen
from orchestrator.domain.rollout import Rollout
from orchestrator.errors import ChangeoverError, WaitTimeout
from orchestrator.fleet_file import load
from orchestrator.messaging import make_app
from orchestrator.report import certificate, html
from orchestrator.report.telling import tell
from orchestrator.settings import Settings
from orchestrator.store import Row, Store
from orchestrator.store.redis import RedisStore
from orchestrator.supervisor import Supervisor, start
from orchestrator.web import sessions

BEFORE, AFTER = 5.0, 4.0  # seconds of traffic before and after
READY = 90.0  # seconds for workers and Flower to start, on a busy machine
PATIENCE = 300.0  # seconds for the rollout, on a slow machine
WORKERS = 2
BAD = "web-006"  # whose new server will not be healthy
AnyScene = Scene | AwsScene
SCENES: Mapping[str, Callable[..., AnyScene]] = {"local": Scene, "aws": AwsScene}


@dataclass
class Story:
    """One run of the demo. `results` outlives it."""

    results: Path
    screen: Screen
    scene: Callable[..., AnyScene] = Scene
    bad: str = BAD
    marks: list[dict[str, Any]] = field(default_factory=list)
    killed: str = ""

    def run(self, *, keep: bool) -> int:
        """The exit code: 0 when no request failed and every server ended as it should."""
        short = Path(tempfile.mkdtemp(prefix="changeover-demo-"))
        scene = self.scene(short=short, out=self.results)
        supervisor: Supervisor | None = None
        try:
            self.screen.say(scene.opening)
            scene.build()
            scene.spoil(self.bad)
            settings = Settings(
                redis_url="", broker_url="", result_url="", state_dir=self.results / "state", lease=10.0
            )
            supervisor = start(settings, workers=WORKERS, with_page=True, say=self.screen.aside)
            supervisor.wait_ready(READY)
            scene.mark("before")
            scene.send_users()
            self.screen.say(f"sending {scene.rate} requests a second to it, from now to the end")
            return self._replace(scene, supervisor, keep=keep)
        finally:
            self.screen.stop()
            if supervisor is not None:
                supervisor.stop()
            scene.clear()

    def _replace(self, scene: AnyScene, supervisor: Supervisor, *, keep: bool) -> int:
        settings = supervisor.settings
        store: Store = RedisStore(settings.store_url(), namespace=settings.namespace, connections=4)
        ask = operations.celery_asker(make_app(settings))
        _, path = sessions.invite(store, "demo", ["read"], actor="changeover demo")
        self.screen.where("Fleet page", f"{supervisor.page_url}{path}", " (the link lets one browser in, to look)")
        credentials = f" (user and password: {supervisor.flower_credentials})"
        self.screen.where("Flower", supervisor.flower_url, credentials)
        _linger(supervisor, BEFORE)
        fleet = load(scene.fleet_file())
        waiter = operations.Waiter(sleep=supervisor.step)
        plan = operations.plan(store, ask, fleet, waiter)
        self.screen.plan(plan)
        scene.mark("during")
        rollout = operations.apply(store, ask, fleet, agreed=plan, actor="changeover demo", waiter=waiter)
        if misdeeds := scene.misbehave():
            self.screen.say(misdeeds)
        rollout = self._watch(store, rollout.id, scene, supervisor)
        scene.mark("after")
        self.screen.say("every server has ended; watching the traffic for a moment longer")
        _linger(supervisor, AFTER)
        seen, held = scene.dismiss_users()
        code = self._conclude(store, rollout, scene, seen, held)
        self.screen.left(supervisor.page_url, supervisor.flower_url, keep=keep)
        if keep:
            with suppress(KeyboardInterrupt):
                supervisor.run()
        return code

    def _watch(self, store: Store, id: str, scene: AnyScene, supervisor: Supervisor) -> Rollout:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            supervisor.step(0.1)
            view = operations.view(store, id)
            self.screen.show(view, scene.users(), scene.trouble_so_far)
            if not self.killed:
                self._kill_one(store.rows(id), supervisor)
            if view.rollout.ended or view.rollout.state == "paused":
                return view.rollout
        raise WaitTimeout(f"the rollout has not ended in {PATIENCE:g} s", next=f"less {self.results}")

    def _kill_one(self, rows: Iterable[Row], supervisor: Supervisor) -> None:
        """SIGKILL for a worker that is in the middle of a swap, once."""
        for row in rows:
            u = row.upgrade
            name = row.owner.partition("/")[0]
            if u.wave > 0 and u.step == "swap" and u.direction == "forward" and u.intent is not None:
                victim, pid = supervisor.kill_worker(signal.SIGKILL, name=name)
                self.killed = f"{victim} (process {pid}) was killed while {u.server} was in its swap"
                self.marks.append({"t": time.time(), "label": f"kill -9 {victim}", "kind": "fault"})
                self.screen.say(f"kill -9 {victim}, on purpose, while {u.server} is in its swap")
                return

    # -- the end --------------------------------------------------------------------------------------------------

    def _conclude(
        self,
        store: Store,
        rollout: Rollout,
        scene: AnyScene,
        seen: Mapping[str, Any],
        held: Any,
    ) -> int:
        view = operations.view(store, rollout.id)
        proof = certify(seen, held)
        problems = [*proof.faults, *self._problems(view, scene)]
        log = operations.events(store, rollout.id)
        document = tell(rollout, view.upgrades, log, store.document("spec", rollout.id), now=store.now())
        document["marks"] = [*document["marks"], *self.marks]
        document["traffic"] = seen["seconds"]
        document["latency"] = {k: v for k, v in (seen["latency"] or {}).items() if v["count"]}
        document["certificate"] = proof.as_dict()
        document["started"] = min(document["started"], float(seen["started"]))
        document["ended"] = max(document["ended"], float(seen["now"]))
        document["links"] = [
            {"label": "fleet file", "href": "fleet.yaml"},
            {"label": "every request", "href": "load.jsonl"},
        ]
        if calls := scene.tally():
            (self.results / "calls.json").write_text(json.dumps(calls, indent=1))
            document["links"].append({"label": "calls to the cloud", "href": "calls.json"})
        page, data = html.write(document, self.results)
        self.screen.conclude(view, proof, document, problems, self.killed, calls)
        self.screen.files(page, data, self.results)
        return 1 if problems else 0

    def _problems(self, view: operations.View, scene: AnyScene) -> list[str]:
        """What did not go as the story wants it, apart from what users saw."""
        wrong = [
            f"{u.server} is {u.state}: {u.cause or u.why}"
            for u in view.upgrades
            if u.state != ("failed" if u.server == self.bad else "upgraded")
        ]
        expected = sorted(u.server for u in view.upgrades if u.state == "upgraded")
        owners = scene.made_for()
        if owners != expected:
            wrong.append(
                f"the new servers are of {', '.join(owners)}: wanted one for each upgraded server, and no other"
            )
        wrong += scene.left_over(expected)
        if not self.killed:
            wrong.append("no worker was killed: there was no swap to do it in")
        return wrong


def certify(seen: Mapping[str, Any], held: Any) -> certificate.Certificate:
    """The certificate of what the demo's users and its database say."""
    orders = seen["orders"]
    stored_of_acknowledged = held.stored - held.of_unacknowledged
    return certificate.certify(
        certificate.Observed(
            requests=seen["requests"],
            failed=seen["failed"],
            orders=certificate.Orders(
                sent=orders["sent"],
                acknowledged=orders["acknowledged"],
                stored=held.stored,
                repeated=held.repeated,
                lost=max(0, orders["acknowledged"] - stored_of_acknowledged),
            ),
            downloads=certificate.Sessions(**seen["downloads"]),
            websockets=certificate.Sessions(**seen["websockets"]),
        )
    )


def _linger(supervisor: Supervisor, seconds: float) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        supervisor.step(min(0.2, left))


def tell_story(results: Path, *, cloud: str, keep: bool, say: Callable[[str], None]) -> int:
    """Runs the demo on that cloud, one of `SCENES`; its exit code."""
    results.mkdir(parents=True, exist_ok=True, mode=0o700)
    screen = Screen(say)
    try:
        return Story(results=results, screen=screen, scene=SCENES[cloud]).run(keep=keep)
    except KeyboardInterrupt:
        say("stopped; nothing of it runs any more")
        return 130
    except ChangeoverError as error:
        say(f"the demo failed: {error}")
        return error.exit_code
