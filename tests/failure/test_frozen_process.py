"""A worker's process stands still between its last look at the store and its call, a rollback passes, and the call is
made: to the real HAProxy and the real local host, which refuse it themselves."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from orchestrator import operations
from orchestrator.coordinator import Coordinator
from orchestrator.demo.scene import Scene
from orchestrator.dispatch import Message
from orchestrator.domain.plan import make_plan
from orchestrator.domain.upgrade import Upgrade
from orchestrator.fleet_file import load
from orchestrator.store.redis import RedisStore
from providers.clients.haproxy import RuntimeSocket
from tasks import BODIES, observe
from tasks.step import run
from tasks.survey import look
from tasks.world import World
from tests.failure.frozen_runner import GRACE, LATE, LEASE
from tests.support.valkey import WRAPPER, running_valkey

PATIENCE = 90.0  # seconds for the way there, and for the way back
Snapshot = dict[bytes, tuple[bytes, int]]


class Frozen:
    """The process that will stand still."""

    def __init__(self, url: str, point: str) -> None:
        runner = [sys.executable, "-m", "tests.failure.frozen_runner", url, point]
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", WRAPPER, str(os.getpid()), *runner],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    @property
    def still(self) -> bool:
        return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    def hand(self, message: Message) -> dict[str, Any] | None:
        """Its answer; None once it stands still."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any] | None:
        assert self.process.stdout is not None
        end = time.monotonic() + PATIENCE
        while not select.select([self.process.stdout], [], [], 0.02)[0]:
            if self.still:
                return None
            assert time.monotonic() < end, "it neither answers nor stands still"
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def wake(self) -> dict[str, Any]:
        """The answer to what it was doing."""
        self.process.send_signal(signal.SIGCONT)
        end = time.monotonic() + PATIENCE
        while self.still:
            assert time.monotonic() < end
        answer = self.answer()
        assert answer is not None
        return answer


class Shop:
    """One server behind HAProxy, users, and a rollout that this process drives: coordinator, observer and worker."""

    def __init__(self, url: str, scene: Scene, **changes: str) -> None:
        self.scene, self.url, self.id = scene, url, "r1"
        (self.server,) = scene.names
        self.store = RedisStore(url, connections=2)
        self.queue: deque[list[Message]] = deque()
        self.looks: deque[tuple[str, str]] = deque()
        self.world = World(
            store=self.store, publish=self.queue.append, worker="lively", lease=LEASE, grace=GRACE, late=LATE
        )
        self.coordinator = Coordinator(
            store=self.store,
            publish=self.queue.append,
            observe=lambda lane, ticket: self.looks.append((lane, ticket)),
            monotonic=time.monotonic,
            grace=GRACE,
            name="c",
        )
        path = scene.fleet_file()
        text = path.read_text()
        for was, now in changes.items():
            assert f"{was}: " in text
            text = "\n".join(
                f"{line.partition(was)[0]}{was}: {now}" if line.strip().startswith(f"{was}: ") else line
                for line in text.splitlines()
            )
        path.write_text(text)
        fleet = load(path)
        plan = make_plan(fleet, look(self.world, fleet))
        assert not plan.blockers, plan.blockers
        operations.create(self.store, fleet, plan, actor="test", id=self.id)

    def upgrade(self) -> Upgrade:
        row = self.store.row(self.id, self.server)
        assert row is not None
        return row.upgrade

    def go_on(self, until: Callable[[], bool], deliver: Callable[[list[Message]], None]) -> None:
        end = time.monotonic() + PATIENCE
        while not until():
            assert time.monotonic() < end, self.upgrade()
            self.coordinator.tick()
            while self.looks:
                lane, ticket = self.looks.popleft()
                observe.run(self.world, BODIES, lane=lane, ticket=ticket)
            if self.queue:
                deliver(self.queue.popleft())
            else:
                time.sleep(0.02)

    def deliver(self, messages: list[Message]) -> None:
        step = messages[0]["task"].removeprefix("tasks.")
        undo, step = step.startswith("undo_"), step.removeprefix("undo_")
        ran = run(self.world, BODIES[step], step, undo=undo, **messages[0]["kwargs"])
        if ran.goes_on and len(messages) > 1:
            self.queue.append(messages[1:])

    def old(self) -> dict[str, Any]:
        """A, as its host tells."""
        (found,) = [each for each in self.scene.host.servers() if each["id"] == self.scene.ids[self.server]]
        return dict(found)

    def members(self) -> dict[str, bool]:
        """Who is in the pool, and whether it serves, as HAProxy tells."""
        found = RuntimeSocket(str(self.scene.haproxy_socket)).snapshot("web").servers("web")
        return {name: server.up for name, server in found.items()}


@contextmanager
def shop(tmp_path: Path, **changes: str) -> Iterator[Shop]:
    scene = Scene(short=Path(tempfile.mkdtemp(prefix="co-")), out=tmp_path, pools={"web": 1}, rate=40)
    with running_valkey() as valkey:
        try:
            scene.build()
            scene.send_users()
            yield Shop(valkey.url, scene, **changes)
        finally:
            scene.clear()


def remember(url: str) -> Snapshot:
    with redis.Redis.from_url(url) as raw:
        return {key: (raw.dump(key), max(0, raw.pttl(key))) for key in raw.scan_iter()}


def forget_since(url: str, then: Snapshot) -> None:
    """What Redis has lost after a power cut: what was written since."""
    with redis.Redis.from_url(url) as raw:
        raw.flushall()
        for key, (value, ttl) in then.items():
            raw.restore(key, ttl, value)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("step", "call", "refusal"),
    [
        ("drain_old", "traffic.remove", "stays in backend 'web', now UP"),
        ("drain_old", "compute.stop", "that was decided before"),
        ("retire", "compute.terminate", "it is not ours to end"),
    ],
)
def test_a_call_of_a_frozen_process_is_refused_by_the_balancer_and_the_host_themselves(
    step: str, call: str, refusal: str, tmp_path: Path
) -> None:
    # Nothing is rolled back behind the point of no return. Only a Redis that has lost the second in which that was
    # stored does so: the worst that can be behind a late termination.
    beyond = step == "retire"
    with shop(tmp_path, **({"old_servers": "100ms"} if beyond else {})) as it:
        frozen = Frozen(it.url, f"{step}.before {call}")
        try:
            asleep: list[Snapshot] = []

            def deliver(messages: list[Message]) -> None:
                if messages[0]["task"] != f"tasks.{step}":
                    return it.deliver(messages)
                then = remember(it.url) if beyond else {}
                answer = frozen.hand(messages[0])
                if answer is None:
                    asleep.append(then)
                elif answer["goes_on"] and len(messages) > 1:
                    it.queue.append(messages[1:])
                return None

            it.go_on(lambda: bool(asleep), deliver)
            if beyond:
                forget_since(it.url, asleep[0])
            operations.rollback_server(it.store, it.id, it.server, actor="test")
            it.go_on(lambda: it.upgrade().settled, it.deliver)
            assert it.upgrade().state == "rolled_back", it.upgrade()
            before = it.old()
            assert before["state"] == "running" and it.members() == {it.server: True}
            assert frozen.still

            answer = frozen.wake()
            late = [said for name, said in answer["calls"] if name == call.partition(".")[2]][-1]
            assert late.startswith("GuardRefused: ") and refusal in late, answer
            assert answer["result"] == {"ignored": "fenced"}
            assert it.old() == before
            os.kill(before["pid"], 0)
            assert it.members() == {it.server: True}
        finally:
            frozen.process.kill()
            frozen.process.communicate()
        seen, _ = it.scene.dismiss_users()
        assert seen["failed"] == 0, seen["failures"]
        assert it.old() == before and it.members() == {it.server: True}
