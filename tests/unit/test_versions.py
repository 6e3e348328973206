"""What an older version stored and sent is read; what a newer one did is left alone, and nothing else is held up."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import redis
from celery.contrib.testing.worker import start_worker

import tasks
from orchestrator import dispatch
from orchestrator.addresses import with_database
from orchestrator.dispatch import celery_sender, compose
from orchestrator.domain.fleet import Fleet
from orchestrator.domain.plan import plan_from
from orchestrator.domain.steps import STEPS, task_name
from orchestrator.domain.upgrade import SCHEMA, Upgrade
from orchestrator.errors import UnsafeStore
from orchestrator.messaging import make_app
from orchestrator.settings import Settings
from orchestrator.store import Ignored, codec
from orchestrator.store.codec import Codec
from orchestrator.store.redis import RedisStore
from tasks.step import Ran
from tests.support.runner import Clock, Runner, running

# Celery's own use of redis-py; its worker runs in this process here, where warnings are errors.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated:DeprecationWarning")
GOLDEN = Path(__file__).parent.parent / "golden"
READ = [schema for schema in (SCHEMA - 1, SCHEMA) if schema >= 1]
KINDS: Mapping[str, Codec[Any]] = {
    "upgrades": codec.UPGRADE,
    "rollouts": codec.ROLLOUT,
    "ledger": codec.LEDGER,
}


def golden(schema: int, name: str) -> list[str]:
    return (GOLDEN / f"schema-{schema}" / f"{name}.jsonl").read_text().splitlines()


# -- records -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schema", READ)
@pytest.mark.parametrize("kind", KINDS)
def test_every_record_that_a_version_wrote_is_read(schema: int, kind: str) -> None:
    lines = golden(schema, kind)
    assert lines
    for line in lines:
        text = codec.text(json.loads(line))
        found = KINDS[kind].load(text, key=kind)
        again = KINDS[kind].dump(found)
        assert KINDS[kind].load(again, key=kind) == found
        if schema == SCHEMA:
            assert json.loads(again) == json.loads(line)
        if isinstance(found, Upgrade):
            assert found.remaining or found.settled or found.state == "pending"


@pytest.mark.parametrize("schema", READ)
def test_every_plan_that_a_version_kept_is_read(schema: int) -> None:
    (line,) = golden(schema, "specs")
    plan = plan_from(json.loads(line)["plan"])
    assert [s.name for s in plan.survey.servers] == ["web-1", "web-2", "web-3"]
    assert Fleet.model_validate_json(json.dumps(plan.fleet)).fleet == "shop"
    assert plan_from(json.loads(json.dumps(asdict(plan)))) == replace(plan, schema=SCHEMA)


def test_a_plan_of_a_newer_version_is_refused() -> None:
    (line,) = golden(SCHEMA, "specs")
    with pytest.raises(UnsafeStore, match=rf"is of schema {SCHEMA + 1}, this version reads up to {SCHEMA}"):
        plan_from({**json.loads(line)["plan"], "schema": SCHEMA + 1})


@dataclass(frozen=True, kw_only=True)
class Thing:
    """A record of a made-up schema 3, which calls `size` what schema 2 called `length`."""

    name: str
    size: int = 0
    schema: int = 3


def _older(document: dict[str, Any]) -> dict[str, Any]:
    length = document.pop("length")
    return {**document, "size": length}


THING = Codec(Thing, schema=3, older=_older)


def test_one_version_back_is_read_and_written_as_ours() -> None:
    found = THING.load(b'{"schema":2,"name":"a","length":7}', key="k")
    assert found == Thing(name="a", size=7)
    assert THING.dump(found) == b'{"schema":3,"name":"a","size":7}'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'{"schema":1,"name":"a"}', "it is of schema 1, this version reads 2 and 3"),
        (b'{"schema":4,"name":"a"}', "it is of schema 4, this version reads 2 and 3"),
        (b'{"schema":2,"name":"a"}', "it is no record of schema 2"),
        (b'{"schema":2,"name":', "it is no record of schema 2"),
        (b'{"schema":2,"name":' + b"[" * 100_000, "it is no record of schema 2"),
        (b'{"schema":3,"name":' + b"[" * 100_000, "recursion limit"),
        (b"[" * 100_000, "it is no JSON"),
    ],
    ids=lambda value: value[:30],
)
def test_what_is_of_another_version_or_of_none_is_left_as_it_is(text: bytes, says: str) -> None:
    with pytest.raises(UnsafeStore, match=says):
        THING.load(text, key="k")


def test_a_document_that_nobody_could_have_written_is_unreadable_and_no_more() -> None:
    with pytest.raises(UnsafeStore, match="cannot be read"):
        codec.mapping(b'{"plan":' + b"[" * 100_000, key="k")


# -- a store of mixed versions ---------------------------------------------------------------------------------------


@dataclass
class Mixed:
    """A rollout in Redis; `rewrite` changes a stored record as another version would have written it."""

    runner: Runner
    raw: redis.Redis
    prefix: str

    def key(self, server: str) -> str:
        return f"{self.prefix}sv:{self.runner.rollout}:{server}"

    def rewrite(self, server: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        stored: Any = self.raw.hget(self.key(server), "doc")
        document = change(json.loads(stored))
        self.raw.hset(self.key(server), "doc", codec.text({"schema": document.pop("schema"), **document}))

    def state(self, server: str) -> str:
        row = self.runner.store.row(self.runner.rollout, server)
        assert row is not None
        return row.upgrade.state


@pytest.fixture
def mixed(valkey_url: str) -> Iterator[Mixed]:
    namespace = uuid.uuid4().hex[:12]
    clock = Clock()
    store = RedisStore(valkey_url, namespace=namespace, clock=clock)
    with redis.Redis.from_url(valkey_url) as raw, running(["web-1", "web-2", "web-3"], store=store) as runner:
        clock.now = runner.clock.now
        store._clock = runner.clock
        yield Mixed(runner, raw, f"co:{{{namespace}}}:")
    store.close()


def test_a_rollout_that_an_older_version_began_is_finished(mixed: Mixed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Played with the version before the first, which called `step` a `stage`."""

    def from_older(document: dict[str, Any]) -> dict[str, Any]:
        stage = document.pop("stage")
        return {**document, "step": stage}

    def as_older(document: dict[str, Any]) -> dict[str, Any]:
        step = document.pop("step", STEPS[0])
        return {**document, "schema": SCHEMA - 1, "stage": step}

    monkeypatch.setattr(codec, "FIRST", SCHEMA - 1)
    monkeypatch.setattr(codec, "UPGRADE", Codec(Upgrade, older=from_older))
    for server in ("web-1", "web-2", "web-3"):
        mixed.rewrite(server, as_older)
    mixed.runner.until(lambda: mixed.runner.upgrade("web-2").step == "poll_readiness")
    mixed.rewrite("web-2", as_older)  # and once more in mid-flight, as when both versions work
    mixed.runner.finish()
    assert {name: state for name, (state, _, _) in mixed.runner.upgrades().items()} == {
        "web-1": "upgraded",
        "web-2": "upgraded",
        "web-3": "upgraded",
    }
    assert mixed.runner.made_twice() == []


def test_a_server_that_a_newer_version_has_taken_over_is_left_alone_and_others_go_on(mixed: Mixed) -> None:
    runner = mixed.runner
    runner.until(lambda: runner.upgrade("web-2").state == "waiting")
    row = runner.store.row(runner.rollout, "web-2")
    assert row is not None
    mixed.rewrite("web-2", lambda document: {**document, "schema": SCHEMA + 1})
    answer = runner.store.claim(
        runner.rollout,
        "web-2",
        epoch=row.epoch,
        step=row.upgrade.step,
        direction="forward",
        owner="old/1:x",
        lease=60.0,
    )
    assert answer == Ignored(reason="newer schema")
    before = mixed.raw.hgetall(mixed.key("web-2"))
    runner.until(lambda: mixed.state("web-1") == mixed.state("web-3") == "upgraded")
    assert mixed.raw.hgetall(mixed.key("web-2")) == before
    with pytest.raises(UnsafeStore, match=rf"sv:r1:web-2 .* is of schema {SCHEMA + 1}"):
        mixed.state("web-2")
    mixed.rewrite("web-2", lambda document: {**document, "schema": SCHEMA})
    runner.finish()
    assert mixed.state("web-2") == "upgraded"


# -- messages ---------------------------------------------------------------------------------------------------------


class Worker:
    """A worker in a thread with the real tasks; their journal is played. `ran`: what it was given, in order."""

    def __init__(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.urls = [with_database(url, number) for number in (13, 14, 15)]
        self.settings = Settings(
            redis_url=self.urls[0], broker_url=self.urls[1], result_url=self.urls[2], queue=f"q{uuid.uuid4().hex[:8]}"
        )
        self.app = make_app(self.settings)
        self.ran: list[tuple[str, dict[str, Any]]] = []
        monkeypatch.setattr(tasks, "run", self._run)
        tasks.register(self.app, None)  # type: ignore[arg-type]  # the played journal asks nothing of the world

    def _run(self, _world: Any, _step: Any, name: str, *, undo: bool, **said: Any) -> Ran:
        self.ran.append((task_name(name, undo=undo), said))
        return Ran(result={"step": "done"}, goes_on=True)

    def put(self, message: str) -> None:
        """As it lies in a queue; the numbers of its queue are ours."""
        found = json.loads(message)
        found["properties"]["delivery_info"]["routing_key"] = self.settings.queue
        with redis.Redis.from_url(self.urls[1]) as raw:
            raw.lpush(self.settings.queue, json.dumps(found))

    def result(self, id: str) -> dict[str, Any]:
        with redis.Redis.from_url(self.urls[2]) as raw:
            stored: Any = raw.get(f"celery-task-meta-{id}")
        found: dict[str, Any] = json.loads(stored or b"{}")
        return found

    def until(self, done: Callable[[], bool]) -> None:
        end = time.monotonic() + 30
        while not done():
            assert time.monotonic() < end, self.ran
            threading.Event().wait(0.01)


@pytest.fixture
def worker(valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    made = Worker(valkey_url, monkeypatch)
    with start_worker(made.app, pool="solo", concurrency=1, perform_ping_check=False, shutdown_timeout=20):
        yield made
    made.app.close()


@pytest.mark.parametrize("schema", READ)
def test_a_chain_that_a_version_sent_is_taken_to_its_end(worker: Worker, schema: int) -> None:
    for message in golden(schema, "messages"):
        worker.put(message)
    worker.until(lambda: len(worker.ran) == len(STEPS))
    assert worker.ran == [(f"tasks.{step}", {"rollout": "r1", "server": "web-1", "epoch": 3}) for step in STEPS]


def test_a_message_of_a_newer_version_is_left_alone_and_its_chain_dropped(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = compose(Upgrade(rollout="r2", server="web-1", wave=0), 1)
    theirs = compose(Upgrade(rollout="r1", server="web-1", wave=0), 1)
    theirs[0]["kwargs"] = {"whom": "web-1"}
    send = celery_sender(worker.app)
    with monkeypatch.context() as newer:
        newer.setattr(dispatch, "SCHEMA", SCHEMA + 1)
        send(theirs)
    worker.until(lambda: worker.result(theirs[0]["id"]).get("status") == "SUCCESS")
    assert worker.result(theirs[0]["id"])["result"] == {
        "ignored": f"message of schema {SCHEMA + 1}, this version reads up to {SCHEMA}"
    }
    send(ours)
    worker.until(lambda: len(worker.ran) == len(STEPS))
    assert {said["rollout"] for _, said in worker.ran} == {"r2"}
