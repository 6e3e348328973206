"""What is stored and cannot be read stops its own server or rollout, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import redis

from orchestrator import operations
from orchestrator.coordinator import Coordinator
from orchestrator.dispatch import Sender
from orchestrator.domain.rollout import Rollout
from orchestrator.domain.upgrade import Observe, Upgrade, Waiting
from orchestrator.errors import NotFound, UnsafeStore
from orchestrator.store import Entry
from orchestrator.store.redis import RedisStore
from tests.support.valkey import RunningValkey, running_valkey

NAMES = ("a", "b", "c")
BREAKS = ("another schema", "another type", "no record")


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


@pytest.mark.parametrize("how", BREAKS)
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


@pytest.mark.parametrize("how", BREAKS)
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


@pytest.mark.parametrize("how", BREAKS)
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


def _nobody_asks(_task: str, *, request: str, **_about: object) -> None:
    raise AssertionError(f"no lane is known, and {request} asks about one")


def _nobody_sends() -> Sender:
    raise AssertionError("nothing is due")
