"""Changeover itself: real workers, one real coordinator, one real Valkey, a fake cloud."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import cloud
from benchmarks.figures import Figures
from benchmarks.machine import OURS, Commands, Load, Site, cpu, peak, site, wait_for
from orchestrator import operations
from orchestrator.domain.fleet import Fleet
from orchestrator.domain.rollout import Rollout
from orchestrator.messaging import make_app
from orchestrator.settings import Settings
from orchestrator.store.redis import RedisStore

EVERY = 0.05  # seconds between two samples
STILL = 0.5  # seconds without any commit, from which on everything only waits
Calls = Callable[[], Mapping[str, int]]  # provider calls so far, by name


def measure(load: Load) -> Figures:
    with site(CHANGEOVER_CONCURRENCY=str(load.threads)) as place:
        store = RedisStore(f"{place.url}&client_name={OURS}")
        socket, calls = "", _in_the_gauge(place)
        if load.workers > 1:
            socket, calls = _shared_cloud(place, load)
        for number in range(1, load.workers + 1):
            named = () if load.workers == 1 else ("--name", f"bench-{number}")
            gauge = str(place.folder / f"gauge-{number}")
            place.python(
                f"worker-{number}", "benchmarks.worker", "changeover", *load.arguments(), "--gauge", gauge, *named
            )
        place.python("coordinator", "orchestrator.coordinate", "--ready-file", str(place.folder / "ready"))
        wait_for(place, lambda: len(store.workers()) == load.workers, "the workers")
        wait_for(place, (place.folder / "ready").exists, "the coordinator")
        time.sleep(1)  # all have opened their connections and said hello
        fleet = cloud.fleet(load.servers, max_in_flight=load.max_in_flight, socket=socket)
        rollout, watch = _run(place, store, load, fleet, calls)
        # CPU, commands and calls of the plan and of the creation are left out: they were over before `watch` began.
        ended = rollout.ended_at
        assert ended is not None
        if rollout.state != "succeeded":
            raise RuntimeError(f"the rollout of {load.servers} servers {rollout.state}: {rollout.why}")
        return watch.figures(load, seconds=ended - rollout.created_at)


def _in_the_gauge(place: Site) -> Calls:
    """The only worker holds the cloud, and writes down its calls."""
    return lambda: last_line(place.folder / "gauge-1")["calls"]


def _shared_cloud(place: Site, load: Load) -> tuple[str, Calls]:
    """A cloud in a process of its own, with the servers in it: where it is, and how many calls it had."""
    socket = place.folder / "cloud.sock"
    place.python("cloud", "providers.fake_host", str(socket))
    wait_for(place, socket.exists, "the fake cloud")
    operator = cloud.operator(str(socket), image_seconds=load.image, ready_seconds=load.ready)
    for name in cloud.names(load.servers):
        operator.server(name, pools={cloud.POOL: cloud.PORT})
    return str(socket), operator.calls


def _run(place: Site, store: RedisStore, load: Load, fleet: Fleet, calls: Calls) -> tuple[Rollout, Watch]:
    ask = operations.celery_asker(make_app(Settings(redis_url=place.url)))
    plan = operations.plan(store, ask, fleet)
    operations.refuse_blockers(plan)
    watch = Watch(place, calls=calls)
    made = operations.create(store, fleet, plan, actor="bench")
    watch.rollout = made.id
    end = time.monotonic() + 3 * load.limit + 120
    looked = 0.0
    while True:
        watch.sample()
        if time.monotonic() - looked > 0.3:
            looked = time.monotonic()
            place.check()
            found = store.rollout(made.id)
            assert found is not None
            if found.ended:
                return found, watch
            if looked > end:
                raise RuntimeError(f"the rollout of {load.servers} servers has not ended: {store.tally(made.id)}")
        time.sleep(EVERY)


class Watch:
    """Looks from outside at what is held, and keeps what was used before it began."""

    def __init__(self, place: Site, *, calls: Calls) -> None:
        self.rollout = ""
        self._calls, self._before = calls, calls()
        self._place = place
        self._redis: Any = place.client()
        self._cpu = {name: cpu(pid) for name, pid in place.pids.items()}
        self._commands = Commands(place.client())
        self._counted = time.monotonic()
        self._still: list[tuple[float, bool]] = []
        self._unacked = 0
        self._held = self._looking = 0

    def sample(self) -> None:
        """In one transaction: what is due, in which states the servers are, when the last commit was, and the messages
        that somebody holds."""
        if time.monotonic() - self._counted > 1:
            self._counted = time.monotonic()
            self._commands.read()
        prefix = "co:{default}:"
        pipe = self._redis.pipeline(transaction=True)
        pipe.execute_command("SELECT", 0)
        pipe.zcard(f"{prefix}due")
        pipe.hmget(f"{prefix}cnt:{self.rollout}", "pending", "running", "waiting")
        pipe.xrevrange(f"{prefix}audit:{self.rollout}", count=1)
        pipe.time()
        pipe.execute_command("SELECT", 1)
        pipe.hvals("unacked")
        pipe.execute_command("SELECT", 0)
        _, due, states, last, now, _, messages, _ = pipe.execute()
        held = [_task(message) for message in messages]
        looks = held.count("tasks.observe")
        self._unacked = max(self._unacked, len(held))
        _, running, waiting = (int(n or 0) for n in states)
        at = now[0] + now[1] / 1e6
        quiet = bool(last) and at - float(last[0][1][b"at"]) > STILL
        still = not due and not running and waiting > 0 and quiet
        self._still.append((time.time(), still))
        if still:
            self._held = max(self._held, len(held) - looks)
            self._looking = max(self._looking, looks)

    def figures(self, load: Load, *, seconds: float) -> Figures:
        """Of several workers the sum. Their most slots ever need not have been at one time."""
        place = self._place
        records, others, scripts = self._commands.since()
        calls = self._calls()
        gauges = [lines_of(gauge) for gauge in sorted(place.folder.glob("gauge-*"))]
        still = [[line for line in lines if self._is_still(line["at"])] for lines in gauges]
        held, looking = (sum(_most(lines, what) for lines in still) for what in ("steps", "looks"))
        return Figures(
            candidate="Changeover" if load.workers == 1 else f"Changeover, {load.workers} workers",
            servers=load.servers,
            seconds=seconds,
            limit=load.limit,
            cpu=_by_kind({name: cpu(pid) - self._cpu[name] for name, pid in place.pids.items()}),
            memory=_by_kind({name: peak(pid) for name, pid in place.pids.items()}),
            commands=(records, others),
            scripts=scripts,
            calls={name: n - self._before.get(name, 0) for name, n in calls.items()},
            unacked=self._unacked,
            busy=sum(max((line["steps"] + line["looks"] for line in lines), default=0) for lines in gauges),
            held=(self._held, held),
            looking=(self._looking, looking),
            samples=sum(still for _, still in self._still),
        )

    def _is_still(self, at: float) -> bool:
        """Between two samples that both found everything waiting."""
        return any(
            first and second and before <= at <= after
            for (before, first), (after, second) in zip(self._still, self._still[1:], strict=False)
        )


def _most(lines: Sequence[Mapping[str, Any]], what: str) -> int:
    return max((line[what] for line in lines), default=0)


def _by_kind(each: Mapping[str, float]) -> dict[str, float]:
    """The sum of all workers under one name."""
    found: dict[str, float] = {}
    for name, value in each.items():
        kind = name.partition("-")[0]
        found[kind] = found.get(kind, 0.0) + value
    return found


def _task(message: bytes) -> str:
    return str(json.loads(message)[0]["headers"]["task"])


def lines_of(gauge: Path) -> Sequence[Mapping[str, Any]]:
    whole, _, _ = gauge.read_text().rpartition("\n")  # the last line may be in the middle of being written
    return [json.loads(line) for line in whole.splitlines()]


def last_line(gauge: Path) -> Mapping[str, Any]:
    """Without reading the whole file."""
    with gauge.open("rb") as file:
        file.seek(max(0, gauge.stat().st_size - 4096))
        found: Mapping[str, Any] = json.loads(file.read().rpartition(b"\n")[0].rpartition(b"\n")[2])
        return found
