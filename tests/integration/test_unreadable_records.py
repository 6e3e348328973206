"""What is stored and cannot be read stops its own server or rollout, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import redis
from kombu.exceptions import OperationalError
from structlog.testing import capture_logs

from orchestrator import operations
from orchestrator.coordinator import Coordinator
from orchestrator.dispatch import Message, Sender
from orchestrator.domain.rollout import Rollout
from orchestrator.domain.upgrade import Observe, Upgrade, Waiting
from orchestrator.errors import NotFound, Unreachable, UnsafeStore
from orchestrator.reading import readable
from orchestrator.store import Entry, Store
from orchestrator.store.redis import RedisStore
from tests.support.valkey import RunningValkey, running_valkey

NAMES = ("a", "b", "c")
BREAKS = ("another schema", "another type", "no record")
LOST = (*BREAKS, "gone")  # a server's record may also be gone altogether


@pytest.fixture(scope="module")
def valkey() -> Iterator[RunningValkey]:
    with running_valkey() as running:
        yield running


@pytest.fixture
def store(valkey: RunningValkey) -> Iterator[RedisStore]:
    with redis.Redis.from_url(valkey.url) as raw:
        raw.flushall()
    made = RedisStore(valkey.url)
    yield made
    made.close()


def create(store: RedisStore, id: str) -> None:
    rollout = Rollout(
        id=id,
        plan="p",
        fleet="shop",
        created_at=store.now(),
        created_by="anna",
        waves=(NAMES,),
        max_in_flight=5,
        allowed_failures=0,
        bake=0.0,
        on_abort="finish",
    )
    store.create(rollout, [Upgrade(rollout=id, server=name, wave=0) for name in NAMES], locks={})


def spoil(valkey: RunningValkey, key: str, how: str) -> None:
    with redis.Redis.from_url(valkey.url) as raw:
        match how:
            case "another schema":
                raw.hset(key, "doc", '{"schema":99}')
            case "another type":
                raw.delete(key)
                raw.set(key, "x")
            case "gone":
                raw.delete(key)
            case _:
                raw.hset(key, "doc", "garbage")


def coordinator(store: RedisStore, sent: list[str]) -> Coordinator:
    return Coordinator(
        store=store,
        publish=lambda messages: sent.append(messages[0]["id"].partition(":1:")[0]),
        observe=lambda *_: None,
        monotonic=time.monotonic,
        grace=0.2,
    )


@pytest.mark.parametrize("how", LOST)
def test_another_rollout_goes_on_beside_a_server_that_cannot_be_read(
    store: RedisStore, valkey: RunningValkey, how: str
) -> None:
    create(store, "r1")
    create(store, "r2")
    spoil(valkey, "co:{default}:sv:r2:b", how)
    sent: list[str] = []
    coordinator(store, sent).tick()
    assert sent == ["r1:a", "r1:b", "r1:c"]


@pytest.mark.parametrize("how", BREAKS)
def test_another_rollout_goes_on_beside_one_that_cannot_be_read(
    store: RedisStore, valkey: RunningValkey, how: str
) -> None:
    create(store, "r1")
    create(store, "r2")
    spoil(valkey, "co:{default}:ro:r2", how)
    sent: list[str] = []
    coordinator(store, sent).tick()
    assert sent == ["r1:a", "r1:b", "r1:c"]
    with pytest.raises(UnsafeStore, match=r"ro:r2|WRONGTYPE"):
        store.rollout("r2")


@pytest.mark.parametrize("how", LOST)
def test_its_own_rollout_finishes_what_has_begun_beside_a_server_that_cannot_be_read(
    store: RedisStore, valkey: RunningValkey, how: str
) -> None:
    create(store, "r1")
    sent: list[str] = []
    loop = coordinator(store, sent)
    loop.tick()
    spoil(valkey, "co:{default}:sv:r1:b", how)
    sent.clear()
    end = time.monotonic() + 10
    while {"r1:a", "r1:c"} - set(sent):  # their chains seem lost, and are sent again
        assert time.monotonic() < end
        loop.tick()
        time.sleep(0.05)
    assert "r1:b" not in sent


@pytest.mark.parametrize("how", LOST)
def test_a_lane_is_looked_at_beside_a_server_that_cannot_be_read(
    store: RedisStore, valkey: RunningValkey, how: str
) -> None:
    create(store, "r1")
    coordinator(store, []).tick()
    wait = Waiting(reason="boots", at=0.0, observe=Observe(lane="L", kind="server", ids=("x",)), every=1.0)
    for row in store.rows("r1"):
        to = replace(row.upgrade, state="waiting", wait=wait)
        claim = store.claim("r1", to.server, epoch=row.epoch, step=to.step, direction="forward", owner="w", lease=9)
        store.commit(claim, to, entry=Entry(event="Waits", actor="w"), due=0.0, look="L")  # type: ignore[arg-type]  # an Ignored would fail here
    spoil(valkey, "co:{default}:sv:r1:b", how)
    assert [row.upgrade.server for row in store.due_in_lane("L", limit=9, postpone=0.0)] == ["a", "c"]


@pytest.mark.parametrize("how", BREAKS)
def test_coordinators_come_to_rest_beside_a_server_that_cannot_be_read(
    store: RedisStore, valkey: RunningValkey, how: str
) -> None:
    """It is due, and stays so for a while: they must not sweep twenty times a second for it."""
    create(store, "r1")
    loop = coordinator(store, [])
    loop.tick()
    with redis.Redis.from_url(valkey.url) as raw:
        raw.zadd("co:{default}:due", {"r1/b": 1.0, "r1/nobody": 1.0, "r9/a": 1.0})
        raw.zrem("co:{default}:due", "r1/a", "r1/c")
    spoil(valkey, "co:{default}:sv:r1:b", how)
    loop.tick()
    assert store.due(limit=9) == []
    least = store.next_due()
    assert least is not None and least > store.now() + 10


@pytest.mark.parametrize("how", BREAKS)
def test_people_are_told_of_a_rollout_that_cannot_be_read_and_see_the_others(
    store: RedisStore, valkey: RunningValkey, how: str
) -> None:
    create(store, "r1")
    create(store, "r2")
    spoil(valkey, "co:{default}:ro:r2", how)
    found, unread = operations.listed(store)
    assert [rollout.id for rollout, _ in found] == ["r1"]
    assert list(unread) == ["r2"] and unread["r2"]
    assert operations.explain(store, "a", rollout=None).rollout.id == "r1"
    with pytest.raises(NotFound, match="r2 cannot"):
        operations.explain(store, "nobody", rollout=None)
    assert "r2" in operations.gc(store, _nobody_asks, _nobody_sends, collect=False, grace=5.0).unread


@pytest.mark.parametrize("how", LOST)
def test_people_direct_the_others_beside_a_server_that_cannot_be_read(
    store: RedisStore, valkey: RunningValkey, how: str
) -> None:
    create(store, "r1")
    coordinator(store, []).tick()
    spoil(valkey, "co:{default}:sv:r1:b", how)
    view = operations.view(store, "r1")
    assert ([u.server for u in view.upgrades], list(view.unread), view.exit_code) == (["a", "c"], ["b"], 3)
    assert list(operations.listed(store)[1]) == ["r1/b"]
    told = operations.explain(store, "b", rollout=None)
    assert told.upgrade is None and told.unread == view.unread["b"]
    assert [entry.event for entry in told.entries] == ["Admitted"]

    for answer, state in (
        (operations.pause(store, "r1", actor="anna"), "paused"),
        (operations.resume(store, "r1", actor="anna"), "running"),
        (operations.abort(store, "r1", actor="anna"), "aborting"),
        (operations.rollback(store, "r1", actor="anna"), "rolling_back"),
    ):
        assert answer.changed and answer.rollout.state == state
        assert [u.server for u in answer.in_flight] == ["a", "c"] and list(answer.unread) == ["b"]


@pytest.mark.parametrize("how", LOST)
@pytest.mark.parametrize("verb", [operations.abort, operations.rollback])
def test_the_others_go_back_beside_a_server_that_cannot_be_read_and_the_rollout_does_not_end(
    store: RedisStore, valkey: RunningValkey, how: str, verb: Callable[..., operations.Answer]
) -> None:
    create(store, "r1")
    loop = coordinator(store, [])
    loop.tick()
    spoil(valkey, "co:{default}:sv:r1:b", how)
    asked = verb(store, "r1", actor="anna").rollout.state
    for _ in range(3):
        loop._views.clear()  # reads it anew
        loop.tick()
    rows = store.rows("r1", ["a", "c"])
    assert [row.upgrade.terminal or row.upgrade.direction == "undo" for row in rows] == [True, True]
    assert operations.find(store, "r1").state == asked


def test_nothing_new_begins_beside_a_server_that_cannot_be_read(store: RedisStore, valkey: RunningValkey) -> None:
    create(store, "r1")
    spoil(valkey, "co:{default}:sv:r1:b", "no record")
    coordinator(store, []).tick()
    assert [row.upgrade.state for row in store.rows("r1", ["a", "c"])] == ["pending", "pending"]


@pytest.mark.parametrize(("odd", "well"), [("r1", "r2"), ("r2", "r1")])
def test_a_surprise_in_one_rollout_does_not_end_the_sweep_for_the_others(
    store: RedisStore, odd: str, well: str
) -> None:
    create(store, "r1")
    create(store, "r2")
    store.put_document("spec", odd, {"plan": {"edited": "by hand"}})
    sent: list[str] = []

    def publish(messages: list[Message]) -> None:
        if messages[0]["id"].startswith(odd):
            raise KeyError("of a record that somebody edited")
        sent.append(messages[0]["id"].partition(":1:")[0])

    clock = [1000.0]
    loop = replace(coordinator(store, []), publish=publish, monotonic=lambda: clock[0])
    with capture_logs() as logged:
        for _ in range(3):
            loop.tick()
            clock[0] += 40  # the agendas are due to be compared
    assert set(sent) == {f"{well}:{name}" for name in NAMES}
    alone = {line["what"] for line in logged if line["event"] == "left alone"}
    assert {odd, f"the agendas of {odd}"} <= alone
    assert not any(well in what for what in alone)


@pytest.mark.parametrize("away", [Unreachable("gone"), OperationalError("gone"), ConnectionResetError("gone")])
def test_a_sweep_ends_when_redis_or_the_broker_is_away(store: RedisStore, away: Exception) -> None:
    create(store, "r1")

    def publish(_messages: list[Message]) -> None:
        raise away

    with pytest.raises(type(away)):
        replace(coordinator(store, []), publish=publish).tick()


def test_few_of_many_that_cannot_be_read_are_found_in_few_reads() -> None:
    names = [f"s{n:03}" for n in range(256)]
    asked: list[int] = []

    class Half:
        def rows(self, _rollout: str, servers: list[str]) -> list[SimpleNamespace]:
            asked.append(len(servers))
            if "s100" in servers:
                raise UnsafeStore("garbage")
            there = [name for name in servers if name != "s200"]
            return [SimpleNamespace(upgrade=SimpleNamespace(server=name)) for name in there]

    rows, unread = readable(cast(Store, Half()), "r1", names)
    assert [row.upgrade.server for row in rows] == [name for name in names if name not in ("s100", "s200")]
    assert unread == {"s100": "garbage", "s200": "the record of s200 is gone"}
    assert len(asked) <= 17


def test_counters_and_ledgers_that_cannot_be_read_hold_up_nothing_else(
    store: RedisStore, valkey: RunningValkey
) -> None:
    create(store, "r1")
    create(store, "r2")
    with redis.Redis.from_url(valkey.url) as raw:
        raw.hset("co:{default}:cnt:r2", "running", "many")
        raw.hset("co:{default}:ledger:r1", "image:x", "garbage")
    found, unread = operations.listed(store)
    assert [rollout.id for rollout, _ in found] == ["r1"] and list(unread) == ["r2"]
    assert "r1" in operations.gc(store, _nobody_asks, _nobody_sends, collect=False, grace=5.0).unread


def test_an_open_rollout_that_is_missing_among_the_open_ones_is_found_again(
    store: RedisStore, valkey: RunningValkey
) -> None:
    create(store, "r1")
    with redis.Redis.from_url(valkey.url) as raw:
        raw.delete("co:{default}:open")
    sent: list[str] = []
    loop = coordinator(store, sent)
    loop.tick()
    loop.tick()
    assert sent == ["r1:a", "r1:b", "r1:c"]


@pytest.mark.parametrize("how", BREAKS)
def test_a_rollout_that_cannot_be_read_is_told_once(store: RedisStore, valkey: RunningValkey, how: str) -> None:
    create(store, "r1")
    create(store, "r2")
    spoil(valkey, "co:{default}:ro:r2", how)
    command = [str(Path(sys.executable).parent / "changeover"), "rollouts"]
    env = {**os.environ, "CHANGEOVER_REDIS_URL": valkey.url, "COLUMNS": "500"}
    ran = subprocess.run(command, capture_output=True, env=env, text=True, timeout=60, check=False)
    told = [line for line in (ran.stdout + ran.stderr).splitlines() if "r2" in line]
    assert len(told) == 1 and "needs you, it cannot be read" in told[0], told
    assert (ran.returncode, ran.stderr) == (3, "")


def _nobody_asks(_task: str, *, request: str, **_about: object) -> None:
    raise AssertionError(f"no lane is known, and {request} asks about one")


def _nobody_sends() -> Sender:
    raise AssertionError("nothing is due")
