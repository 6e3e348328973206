"""What is stored and cannot be read stops its own server or rollout, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import redis

from orchestrator.coordinator import Coordinator
from orchestrator.domain.rollout import Rollout
from orchestrator.domain.upgrade import Observe, Upgrade, Waiting
from orchestrator.errors import UnsafeStore
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
