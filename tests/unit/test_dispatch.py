"""How an upgrade is sent on its way, and what Celery makes of it on a real broker."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from celery.worker.request import Request

import tasks
from orchestrator import dispatch
from orchestrator.addresses import with_database
from orchestrator.dispatch import Message, celery_sender, compose
from orchestrator.domain.rollout import Rollout
from orchestrator.domain.steps import PRIORITY, RETIRE, STEPS, UNDO_PRIORITY
from orchestrator.domain.upgrade import Admitted, Intent, TurnedBack, Upgrade
from orchestrator.messaging import make_app
from orchestrator.settings import Settings
from orchestrator.store import Claim, Entry
from orchestrator.store.memory import MemoryStore
from tasks import Parked
from tasks.step import Ran
from workers.intake import CONSUMER

# Celery's own use of redis-py; its worker runs in this process here, where warnings are errors.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated:DeprecationWarning")


def upgrade(**changes: Any) -> Upgrade:
    return Upgrade(rollout="r42", server="web-013", wave=0, **{"state": "running", **changes})


def begun(*steps: str) -> tuple[Intent, ...]:
    return tuple(Intent(step=step, attempt=0, rung=0, token=step, name=step, at=0.0) for step in steps)


# -- the chain --------------------------------------------------------------------------------------------------------


def test_a_chain_is_the_steps_that_remain() -> None:
    messages = compose(upgrade(), 5)
    assert [message["task"] for message in messages] == [f"tasks.{step}" for step in STEPS]
    assert [message["id"] for message in messages][2:4] == [
        "r42:web-013:3:poll_readiness:e5",
        "r42:web-013:4:smoke_test:e5",
    ]
    assert all(m["kwargs"] == {"rollout": "r42", "server": "web-013", "epoch": 5} for m in messages)
    assert [m["id"] for m in compose(upgrade(step="drain_old"), 9)] == ["r42:web-013:6:drain_old:e9"]


def test_what_is_nearer_to_its_end_goes_first() -> None:
    priorities = [message["priority"] for message in compose(upgrade(), 1)]
    assert priorities == [PRIORITY[step] for step in STEPS] == sorted(priorities, reverse=True)
    assert set(priorities) <= {0, 3, 6, 9}, "the broker has four queues"


def test_the_way_back_is_what_was_begun_in_reverse_and_goes_before_all_else() -> None:
    u = upgrade(direction="undo", step="swap", begun=begun("create_image", "provision", "swap"))
    messages = compose(u, 7)
    assert [m["id"] for m in messages] == [
        "r42:web-013:5:undo_swap:e7",
        "r42:web-013:2:undo_provision:e7",
        "r42:web-013:1:undo_create_image:e7",
    ]
    assert {m["priority"] for m in messages} == {UNDO_PRIORITY}


def test_the_end_of_the_old_server_is_a_chain_of_its_own() -> None:
    kept = upgrade(state="upgraded", step=RETIRE)
    (message,) = compose(kept, 3)
    assert (message["task"], message["id"]) == ("tasks.retire", "r42:web-013:7:retire:e3")
    assert compose(replace(kept, old_gone=True), 3) == []


@pytest.mark.parametrize("direction", ["forward", "undo"])
def test_ids_are_unlike_each_other_between_steps_directions_and_epochs(direction: Any) -> None:
    u = upgrade(direction=direction, step=STEPS[-1] if direction == "undo" else STEPS[0], begun=begun(*STEPS))
    ids = [m["id"] for epoch in (1, 2) for m in compose(u, epoch)]
    assert len(set(ids)) == len(ids) == 12


# -- sending ----------------------------------------------------------------------------------------------------------


def stored() -> MemoryStore:
    store = MemoryStore(lambda: 1000.0)
    rollout = Rollout(
        id="r42",
        plan="p",
        fleet="f",
        created_at=0,
        created_by="t",
        waves=(("web-013",),),
        max_in_flight=1,
        allowed_failures=0,
        bake=0,
        on_abort="finish",
    )
    u = Upgrade(rollout="r42", server="web-013", wave=0)
    store.create(rollout, [u], locks={})
    admitted = u.after(Admitted(at=0))
    entry = Entry(event="Admitted", actor="t")
    assert store.admit("r42", "web-013", to=admitted, limit=1, wave=0, domain="", entry=entry)
    return store


def test_what_nobody_took_is_sent_again_as_it_was_and_what_was_taken_anew() -> None:
    store, sent = stored(), list[list[Message]]()

    def send() -> int | None:
        row = store.row("r42", "web-013")
        assert row is not None
        return dispatch.send(store, sent.append, row, grace=5.0)

    assert [send(), send()] == [1, 1]
    assert sent[0] == sent[1]
    assert store.next_due() == 1005.0
    claim = store.claim("r42", "web-013", epoch=1, step=STEPS[0], direction="forward", owner="w", lease=60)
    assert isinstance(claim, Claim)
    store.release(claim)
    assert send() == 2
    assert [message["id"][-3:] for message in sent[2]] == [":e2"] * 6


def test_a_night_without_workers_does_not_put_off_what_is_lost_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    store, sent = stored(), list[list[Message]]()
    monkeypatch.setattr(store, "_queue_wait", 30_000.0)
    row = store.row("r42", "web-013")
    assert row is not None and dispatch.send(store, sent.append, row, grace=5.0) == 1
    assert store.next_due() == 1000.0 + 300.0


def test_of_two_that_saw_the_same_one_sends() -> None:
    store, sent = stored(), list[list[Message]]()
    row = store.row("r42", "web-013")
    assert row is not None
    assert dispatch.send(store, sent.append, row, grace=5.0) == 1
    assert dispatch.send(store, sent.append, row, grace=5.0) is None
    assert len(sent) == 1


def test_what_somebody_works_on_is_due_when_his_lease_ends() -> None:
    store, sent = stored(), list[list[Message]]()
    row = store.row("r42", "web-013")
    assert row is not None and dispatch.send(store, sent.append, row, grace=5.0) == 1
    store.claim("r42", "web-013", epoch=1, step=STEPS[0], direction="forward", owner="w", lease=60)
    held = store.row("r42", "web-013")
    assert held is not None and dispatch.send(store, sent.append, held, grace=5.0) is None
    assert store.next_due() == 1060.0 and len(sent) == 1


def test_what_remains_nowhere_is_not_sent() -> None:
    store, sent = stored(), list[list[Message]]()
    row = store.row("r42", "web-013")
    assert row is not None
    to = row.upgrade.after(TurnedBack(why="x", at=0, asked=True))
    turned = store.turn(row, to, entry=Entry(event="TurnedBack", actor="t"), due=None)
    assert turned is not None and dispatch.send(store, sent.append, turned, grace=5.0) is None
    assert sent == []


# -- through Celery ---------------------------------------------------------------------------------------------------


class Parts:
    """What became of the messages, as a worker saw them. `answers` are what the journal would answer by task."""

    def __init__(self) -> None:
        self.answers: dict[str, Ran] = {}
        self.seen: list[tuple[str, int]] = []
        self.chains: list[Any] = []


@pytest.fixture(scope="module")
def celery_app(valkey_url: str) -> Iterator[tuple[Celery, Parts]]:
    """A worker in a thread, with the real tasks on the real configuration; their journal is played."""
    settings = Settings(
        redis_url=with_database(valkey_url, 10),
        broker_url=with_database(valkey_url, 11),
        result_url=with_database(valkey_url, 12),
    )
    app = make_app(settings)
    app.conf.worker_consumer = CONSUMER
    parts = Parts()
    patch = pytest.MonkeyPatch()

    def run(*_: Any, **__: Any) -> Ran:
        request = app.current_worker_task.request
        parts.seen.append((request.id, request.delivery_info["priority"]))
        return parts.answers.get(request.task, Ran(result={"step": "done"}, goes_on=True))

    end = tasks._end

    def ended(task: Any, ran: Ran) -> Mapping[str, Any]:
        try:
            return end(task, ran)
        finally:
            parts.chains.append(task.request.chain)

    patch.setattr(tasks, "run", run)
    patch.setattr(tasks, "_end", ended)
    tasks.register(app, None)  # type: ignore[arg-type] # the played journal asks nothing of the world
    with patch.context(), _worker(app):
        yield app, parts
    patch.undo()
    app.close()


@contextmanager
def _worker(app: Celery) -> Iterator[None]:
    with start_worker(app, pool="solo", concurrency=1, perform_ping_check=False, shutdown_timeout=20):
        yield


def play(app: Celery, parts: Parts, messages: list[Message], until: Callable[[], bool]) -> None:
    """Send a chain, and one message after it: when that is through, nothing of the chain was on its way."""
    parts.seen.clear()
    parts.chains.clear()
    celery_sender(app)(messages)
    _poll(until)
    last = f"last:{time.monotonic()}"
    celery_sender(app)([Message(task=f"tasks.{RETIRE}", id=last, priority=9, kwargs=messages[0]["kwargs"])])
    _poll(lambda: bool(parts.seen) and parts.seen[-1][0] == last)
    parts.seen.pop()


def _poll(until: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not until():
        assert time.monotonic() < end
        threading.Event().wait(0.01)


def expected(messages: list[Message]) -> list[tuple[str, int]]:
    return [(message["id"], message["priority"]) for message in messages]


@pytest.mark.parametrize("step", ["create_image", "drain_old"], ids=["six", "one"])
def test_a_chain_keeps_its_ids_and_priorities(celery_app: tuple[Celery, Parts], step: str) -> None:
    app, parts = celery_app
    messages = compose(upgrade(step=step), 5)
    parts.answers = {}
    play(app, parts, messages, lambda: len(parts.seen) == len(messages))
    assert parts.seen == expected(messages)
    last = app.AsyncResult(messages[-1]["id"])
    _poll(last.ready)
    assert (last.state, last.result) == ("SUCCESS", {"step": "done"})


def test_a_step_that_waits_ends_its_message_and_says_why(celery_app: tuple[Celery, Parts]) -> None:
    app, parts = celery_app
    messages = compose(upgrade(), 6)
    parts.answers = {messages[2]["task"]: Ran(result={}, goes_on=False, parked="server i-7 is starting")}
    play(app, parts, messages, lambda: len(parts.seen) == 3)
    assert parts.seen == expected(messages[:3]), "the rest was not sent"
    found = app.AsyncResult(messages[2]["id"])
    assert found.state == "RETRY"
    assert "server i-7 is starting" in str(found.result)
    assert not found.traceback, "it has not failed: where in the code it waits says nothing to anybody"
    assert app.AsyncResult(messages[3]["id"]).state == "PENDING"


def test_why_a_step_waits_is_told_to_flower(celery_app: tuple[Celery, Parts], monkeypatch: pytest.MonkeyPatch) -> None:
    app, parts = celery_app
    messages = compose(upgrade(step="drain_old"), 8)
    parts.answers = {messages[0]["task"]: Ran(result={}, goes_on=False, parked="3 connections are open")}
    told: list[tuple[str, str, dict[str, Any]]] = []
    monkeypatch.setattr(Request, "send_event", lambda self, kind, **fields: told.append((self.id, kind, fields)))
    play(app, parts, messages, lambda: len(parts.seen) == 1)
    fields = {"exception": "3 connections are open", "traceback": ""}
    assert (messages[0]["id"], "task-retried", fields) in told


def test_a_stale_message_ends_its_chain(celery_app: tuple[Celery, Parts]) -> None:
    app, parts = celery_app
    messages = compose(upgrade(), 7)
    parts.answers = {messages[0]["task"]: Ran(result={"ignored": "stale epoch"}, goes_on=False)}
    play(app, parts, messages, lambda: len(parts.seen) == 1)
    assert parts.seen == expected(messages[:1])
    assert parts.chains[0] is None
    found = app.AsyncResult(messages[0]["id"])
    assert (found.state, found.result) == ("SUCCESS", {"ignored": "stale epoch"})


def test_parked_reads_as_its_reason_and_survives_pickling() -> None:
    parked = pickle.loads(pickle.dumps(Parked("image i-1 is being made")))
    assert isinstance(parked, Parked)
    assert repr(parked) == str(parked) == parked.reason == "image i-1 is being made"
