"""What a person decided is confirmed by a replica where there is one, and said to be unconfirmed where it is not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import operations
from orchestrator.cli import main
from orchestrator.domain.rollout import Rollout
from orchestrator.domain.upgrade import Upgrade
from orchestrator.store.redis import RedisStore
from tests.support.redis_servers import Place, Program, redis_place, wait_for

pytestmark = pytest.mark.debian


@pytest.fixture
def place() -> Iterator[Place]:
    with redis_place() as made:
        yield made


def a_rollout(store: RedisStore) -> str:
    rollout = Rollout(
        id="r1",
        plan="p",
        fleet="shop",
        created_at=store.now(),
        created_by="anna",
        waves=(("web-1",),),
        max_in_flight=5,
        allowed_failures=0,
        bake=0.0,
        on_abort="finish",
    )
    return store.create(rollout, [Upgrade(rollout="r1", server="web-1", wave=0)], locks={}).id


def opened(server: Program) -> RedisStore:
    return RedisStore(server.url, connections=4)


def test_without_a_replica_there_is_nothing_to_confirm(place: Place) -> None:
    store = opened(place.server())
    a_rollout(store)
    assert store.confirmed() is None
    assert operations.pause(store, "r1", actor="anna").confirmed is None
    store.close()


def test_what_is_confirmed_is_on_the_replica(place: Place) -> None:
    master = place.server()
    replica = place.server(of=master)
    store = opened(master)
    a_rollout(store)
    assert store.confirmed() is True
    for act in (operations.pause, operations.resume, operations.abort, operations.rollback):
        answer = act(store, "r1", actor="anna")
        assert answer.confirmed is True
        with replica.client() as client:
            stored = client.hget("co:{default}:ro:r1", "state")
        assert stored == answer.rollout.state.encode()
    assert operations.freeze(store, actor="anna").confirmed is True
    assert operations.unfreeze(store, actor="anna").confirmed is True
    store.close()


def test_what_a_replica_does_not_answer_for_is_done_and_said_to_be_unconfirmed(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    master = place.server()
    replica = place.server(of=master)
    store = opened(master)
    a_rollout(store)
    monkeypatch.setenv("CHANGEOVER_REDIS_URL", master.url)
    monkeypatch.setenv("CHANGEOVER_STATE_DIR", str(tmp_path))
    with replica.frozen():
        assert main(["pause", "r1"]) == 0
        told = capsys.readouterr()
        assert "is paused" in told.out
        assert "Not confirmed: this is done, but no replica of Redis has it yet" in told.err
        assert main(["pause", "r1", "--output", "json"]) == 0
        told = capsys.readouterr()
        assert json.loads(told.out)["confirmed"] is False
        assert told.err == ""
        assert main(["freeze", "--output", "json"]) == 0
        assert json.loads(capsys.readouterr().out)["confirmed"] is False

    def confirmed() -> bool:
        """The replica is back: the same command finds its work done, and confirms it."""
        assert main(["pause", "r1", "--output", "json"]) == 0
        again = json.loads(capsys.readouterr().out)
        assert again["changed"] is False
        return bool(again["confirmed"])

    wait_for("a confirmation", confirmed)
    store.close()


def test_a_user_who_may_not_see_the_replicas_is_still_confirmed_by_them(place: Place) -> None:
    master = place.server()
    place.server(of=master)
    with master.client() as client:
        client.execute_command("ACL", "SETUSER", "blind", "on", ">pw", "~*", "+@all", "-info", "-config")
    store = RedisStore(master.url.replace("redis://", "redis://blind:pw@"), connections=4)
    assert store.confirmed() is True
    store.close()


def test_a_server_lost_between_the_act_and_its_confirmation_leaves_it_unconfirmed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    master = place.server()
    place.server(of=master)
    store = opened(master)
    a_rollout(store)
    change = store.change

    def and_then_dies(*args: object, **kwargs: object) -> Rollout | None:
        done = change(*args, **kwargs)  # type: ignore[arg-type]  # handed on as they came
        master.kill()
        return done

    monkeypatch.setattr(store, "change", and_then_dies)
    answer = operations.pause(store, "r1", actor="anna")
    assert (answer.changed, answer.confirmed) == (True, False)
    store.close()
