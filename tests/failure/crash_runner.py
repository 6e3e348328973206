"""One server's journey in processes that die: a light worker and coordinator in one, over a real Valkey and a cloud
behind a socket. `test_crash_matrix.py` starts a few of these and gives each one cell after the other.

    python -m tests.failure.crash_runner VALKEY_URL CLOUD_SOCKET EVIDENCE

Cells come as JSON lines on stdin, and what became of each goes as one line to stdout. This process stays: what works
on a cell is a fork of it, which has all imported, and a new one takes over whenever one has died.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import redis
import structlog

from orchestrator import operations
from orchestrator.addresses import parse
from orchestrator.coordinator import Coordinator
from orchestrator.dispatch import Message
from orchestrator.domain.fleet import Fleet
from orchestrator.domain.plan import make_plan
from orchestrator.domain.upgrade import Upgrade
from orchestrator.store.connecting import plainly
from orchestrator.store.redis import RedisStore
from providers.clients.fake_cloud import Remote
from providers.compute import Server
from tasks import BODIES, observe, world
from tasks.step import run
from tasks.survey import look
from tasks.world import World
from tests.checker.check import check
from tests.support.evidence import document, plan, write_store
from tests.support.runner import FAKES, PORT, fleet_file

Kind = Literal["none", "kill", "exception", "ambiguous", "redis lost", "redis refused"]
SERVER = "web-1"
OTHER = "web-2"  # serves in the same pool, and nobody replaces it
NOWHERE = parse("redis://127.0.0.1:1/0")  # for the words of errors
LEASE, GRACE = 1.0, 0.25  # seconds
LONGEST = 120.0  # seconds for a whole cell, on a machine that has more to do
ONCE = ("ensure_image", "ensure_server", "terminate", "delete_image", "stop")
JOURNEYS = {"forward": "upgraded", "undo": "rolled_back", "failing": "failed"}
REFUSALS = (
    redis.exceptions.ReadOnlyError("READONLY You can't write against a read only replica."),
    redis.exceptions.OutOfMemoryError("OOM command not allowed when used memory > 'maxmemory'."),
    redis.exceptions.ConnectionError("Connection refused"),
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One journey, hit twice: at the point, and in its next life at the point again, or at its next commit if that
    comes first."""

    journey: str
    kind: Kind = "none"
    point: str = ""
    name: str = "watched"


@dataclass
class Fates:
    """Whom to hit, and when. What it must not forget lies in Redis: the process that was hit does not live to tell."""

    cell: Cell
    memory: Any
    operator: Any
    watch: Callable[[str], None]
    context: str = ""
    hits: int = 0

    def __post_init__(self) -> None:
        self.key = f"fates:{self.cell.name}"
        self.hits = int(self.memory.hget(self.key, "hits") or 0)

    def strikes(self, point: str, *, commits: bool) -> bool:
        """Whether this is the moment; noted before anything happens."""
        if self.cell.kind == "none":
            self.watch(point)
            return False
        if self.hits >= 2 or not (point == self.cell.point or (self.hits == 1 and commits)):
            return False
        self.memory.hset(self.key, mapping={"hits": self.hits + 1, f"at:{self.hits}": time.time()})
        self.hits += 1
        return True

    def at_step(self, point: str) -> None:
        """`World.crash`: round every provider call, and in the journal."""
        if point.endswith(".claimed"):
            self.memory.rpush(f"{self.key}:claims", json.dumps([os.getpid(), time.time()]))
        kind = self.cell.kind
        if kind in ("redis lost", "redis refused"):
            return
        commits = point.endswith(".committed") and kind != "ambiguous"
        if not self.strikes(point, commits=commits):
            return
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "exception":
            raise RuntimeError(f"unexpected, at {point}")
        self.operator.fault(point.rpartition(".")[2], "silent")

    def round_store(self, name: str, do: Callable[[], Any]) -> Any:
        """Round every call of the store."""
        kind, point = self.cell.kind, f"{self.context}|{name}"
        if kind == "none":
            self.watch(point)
            return do()
        if kind not in ("kill", "redis lost", "redis refused"):
            return do()
        mine = self.strikes(point, commits=kind != "kill" and name == "commit")
        if mine and kind == "redis refused":
            raise plainly(REFUSALS[sum(self.cell.point.encode()) % len(REFUSALS)], NOWHERE)
        answer = do()
        if mine and kind == "redis lost":
            raise plainly(redis.exceptions.ConnectionError("Connection reset by peer"), NOWHERE)
        if mine:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer


class FatefulStore:
    """The real store, with the fates round each of its calls."""

    def __init__(self, store: RedisStore, fates: Fates) -> None:
        self._store, self._fates = store, fates

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        return lambda *args, **kwargs: self._fates.round_store(name, lambda: found(*args, **kwargs))


class Stage:
    """A fleet in a cloud of its own, its rollout in a namespace of its own, and the messages in a list of Redis."""

    def __init__(self, url: str, cloud: Path, cell: Cell) -> None:
        self.url, self.cell = url, cell
        self.settings = {"socket": str(cloud), "world": cell.name, "image_ms": 30, "ready_ms": 30}
        self.store = RedisStore(url, namespace=cell.name, connections=2)
        self.memory = redis.Redis.from_url(url)
        self.operator: Any = Remote("operator", self.settings)
        self.queue = f"queue:{cell.name}"
        self.rollout = "r1"

    def close(self) -> None:
        self.store.close()
        self.memory.close()

    def fleet(self) -> Fleet:
        journey = self.cell.journey
        request = {"url": "http://shop.test/health", "status": [503 if journey == "failing" else 200]}
        return fleet_file(
            [SERVER],
            self.cell.name,
            provider={"name": "fake", "settings": self.settings},
            traffic={
                "provider": "fake",
                "settings": self.settings,
                "pools": {"web": {"port": PORT, "min_healthy": 1}},
            },
            checks={
                "smoke": {
                    "requests": [request],
                    "passes": 2,
                    "tries": 3,
                    "every": "50ms",
                    "probe": "fake",
                }
            },
            retain={"old_servers": "50ms" if journey == "forward" else "24h"},
            rollout={
                "waves": ["rest"],
                "bake": "0s",
                "soak": "50ms",
                "poll": "50ms",
                "back_off": "50ms",
                "drain": {"deadline": "30s", "quiet": "0s"},
            },
        )

    def begin(self) -> None:
        for name in (SERVER, OTHER):
            self.operator.server(name, pools={"web": PORT})
        fleet = self.fleet()
        plan = make_plan(fleet, look(self.world(RedisStore(self.url, namespace=self.cell.name)), fleet))
        assert not plan.blockers, plan.blockers
        operations.create(self.store, fleet, plan, actor="test", id=self.rollout)

    def world(self, store: Any, crash: Callable[[str], None] = lambda _point: None) -> World:
        return World(
            store=store,
            publish=self.publish,
            worker=f"w{os.getpid()}",
            lease=LEASE,
            grace=GRACE,
            spread=lambda: 0.5,
            crash=crash,
            find=lambda role, _name, settings: FAKES[role](settings),
        )

    def publish(self, messages: list[Message]) -> None:
        self.memory.rpush(self.queue, json.dumps(messages))

    def upgrade(self) -> Upgrade:
        row = self.store.row(self.rollout, SERVER)
        assert row is not None
        return row.upgrade

    def over(self) -> bool:
        u = self.upgrade()
        return u.settled or u.state == "held"

    # -- one life ---------------------------------------------------------------------------------------------------

    def live(self, fates: Fates, until: Callable[[], bool], end: float) -> None:
        """Coordinator, observer and worker in turn, as long as there is something to do."""
        store: Any = FatefulStore(self.store, fates)
        world = self.world(store, fates.at_step)
        looks: list[tuple[str, str]] = []
        coordinator = Coordinator(
            store=store,
            publish=self.publish,
            observe=lambda lane, ticket: looks.append((lane, ticket)),
            monotonic=time.monotonic,
            grace=GRACE,
            name=f"c{os.getpid()}",
        )

        def attempt(context: str, do: Callable[[], None]) -> None:
            """What a worker or a coordinator does with an error that nobody foresaw: the message is gone."""
            fates.context = context
            try:
                do()
            except Exception:
                logging.getLogger(__name__).debug("failed", exc_info=True)

        while not until():
            if time.time() > end:
                raise TimeoutError
            attempt("coordinator", coordinator.tick)
            while looks:
                lane, ticket = looks.pop(0)
                attempt("observe", lambda lane=lane, ticket=ticket: self._look(world, lane, ticket))  # type: ignore[misc] # two texts
            taken = self.memory.lpop(self.queue)  # gone with whoever took it, as with a real broker at its worst
            if taken is None:
                due = self.store.next_due()
                time.sleep(0.2 if due is None else min(0.2, max(0.005, due - self.store.now())))
                continue
            messages = json.loads(taken)
            attempt(messages[0]["task"].removeprefix("tasks."), lambda m=messages: self._deliver(world, m))  # type: ignore[misc] # a list

    def _look(self, world: World, lane: str, ticket: str) -> None:
        observe.run(world, BODIES, lane=lane, ticket=ticket)

    def _deliver(self, world: World, messages: list[Message]) -> None:
        undo = messages[0]["task"].startswith("tasks.undo_")
        step = messages[0]["task"].removeprefix("tasks.").removeprefix("undo_")
        ran = run(world, BODIES[step], step, undo=undo, **messages[0]["kwargs"])
        if ran.goes_on and len(messages) > 1:
            self.publish(messages[1:])


def play(url: str, cloud: Path, evidence: Path, cell: Cell) -> dict[str, Any]:
    """The whole journey of a cell; the points that were passed, and what is wrong with its end."""
    stage = Stage(url, cloud, cell)
    end = time.time() + LONGEST
    try:
        stage.begin()
        if cell.journey == "undo":
            calm = Fates(Cell(journey=cell.journey), stage.memory, stage.operator, lambda _point: None)
            stage.live(calm, lambda: stage.upgrade().state == "upgraded", end)
            operations.rollback(stage.store, stage.rollout, actor="test")
        lives = 0
        while lives == 0 or not stage.over():
            lives += 1
            if lives > 10 or time.time() > end:
                return {
                    "cell": asdict(cell),
                    "wrong": [f"not over after {lives} lives: {stage.upgrade()}"],
                    "points": [],
                }
            _fork(url, cloud, cell, end)
        fates = {k.decode(): v.decode() for k, v in stage.memory.hgetall(f"fates:{cell.name}").items()}
        points = [point.decode() for point in stage.memory.lrange(f"fates:{cell.name}:points", 0, -1)]
        claims = [json.loads(claim) for claim in stage.memory.lrange(f"fates:{cell.name}:claims", 0, -1)]
        hits = [float(fates[f"at:{n}"]) for n in range(int(fates.get("hits", 0)))]
        resumed = [next((at for _, at in claims if at > hit), None) for hit in hits]
        return {
            "cell": asdict(cell),
            "points": list(dict.fromkeys(points)),
            "hits": len(hits),
            "lives": lives,
            "resumed": [at - hit for at, hit in zip(resumed, hits, strict=True) if at is not None],
            "wrong": wrong(stage, evidence / cell.name),
        }
    finally:
        stage.close()


def _fork(url: str, cloud: Path, cell: Cell, end: float) -> None:
    """One life in a process of its own; returns when that has ended, whichever way."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    code = 1
    try:
        stage = Stage(url, cloud, cell)
        passed = f"fates:{cell.name}:points"
        fates = Fates(cell, stage.memory, stage.operator, lambda point: stage.memory.rpush(passed, point))
        stage.live(fates, stage.over, end)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


# -- what must be true at the end -------------------------------------------------------------------------------------


def wrong(stage: Stage, folder: Path) -> list[str]:
    """By our own eyes, which know what this journey should have come to, and by the checker's."""
    u, found = stage.upgrade(), []

    def must(true: bool, what: str) -> None:
        if not true:
            found.append(what)

    must(u.settled and u.state == JOURNEYS[stage.cell.journey], f"ended {u.state}: {u.why or u.cause}")
    made, things = stage.operator.made(), {thing.id: thing for thing in stage.operator.inventory()}
    must(len(made) == 2 and set(made.values()) == {1}, f"made {made}")
    upgraded = u.state == "upgraded"
    must(things[SERVER].state == ("terminated" if upgraded else "running"), f"A is {things[SERVER].state}")

    pools = _read(folder, "balancer")
    for row in pools:
        serving = {name for name, m in row["members"].items() if m["state"] == "serving"}
        must(len(serving) >= 2, f"only {serving} served")
    last = {name: m["state"] for name, m in pools[-1]["members"].items()}
    must(last == {OTHER: "serving", f"{SERVER}.g2" if upgraded else SERVER: "serving"}, f"the pool ends as {last}")
    effects = [(row["call"], row["id"]) for row in _read(folder, "cloud") if row["effect"] and row["call"] in ONCE]
    must(len(effects) == len(set(effects)), f"twice: {sorted(effects)}")

    document(folder / "plan.json", plan({"web": pools[0]["members"]}, stage.rollout, stage.fleet()))
    alive = [thing for thing in things.values() if thing.state != "terminated"]
    kinds = [{"kind": "server" if isinstance(thing, Server) else "image", **asdict(thing)} for thing in alive]
    document(folder / "inventory.json", kinds)
    (folder / "probes.jsonl").touch()
    write_store(folder, stage.store, stage.rollout)
    return found + [str(violation) for violation in check(folder)]


def _read(folder: Path, name: str) -> list[Mapping[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def main() -> None:
    url, cloud, evidence = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    # Whether a renewal is spared depends on the moment. Here each is asked for, so that each is a point in every run.
    world.CONFIRMED = -1.0
    gc.freeze()  # forks share what is there, and need not copy it to count
    for line in sys.stdin:
        cell = Cell(**json.loads(line))
        try:
            answer = play(url, cloud, evidence, cell)
        except Exception:
            answer = {"cell": asdict(cell), "wrong": [traceback.format_exc()], "points": []}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
