"""Redis as it fails: what it was told and answered is kept, nothing begins without it, and everything goes on by itself
when it is back. Real servers, real workers and a real coordinator; the cloud is faked in a process of its own."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator import operations
from orchestrator.errors import ChangeoverError, Unreachable, UnsafeStore
from tests.support.control_plane import ControlPlane, Run, control_plane
from tests.support.lossy import Wire
from tests.support.redis_servers import HOST, Place, Program, redis_place

pytestmark = [pytest.mark.debian, pytest.mark.timeout(300)]  # a busy machine takes its time
LEASE, AWAY = 3.0, 5.0  # seconds
# Seconds: what was renewed right before may still be called for half a lease, and then be under way for a moment.
ENDS = LEASE / 2 + 2.0
# A minute each: `.ci/run` runs them.
patient = pytest.mark.skipif(not os.environ.get("CHANGEOVER_REQUIRE_ALL"), reason="CHANGEOVER_REQUIRE_ALL is not set")


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with redis_place() as made:
        yield made


@pytest.fixture(scope="module")
def server(place: Place) -> Program:
    return place.server()


@pytest.fixture(scope="module")
def plane(server: Program, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with control_plane(tmp_path_factory.mktemp("plane"), redis=server.url, lease=LEASE) as made:
        yield made


def waiting(plane: ControlPlane, seconds: float) -> None:
    """The parts go on meanwhile, and are started again when they end."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        plane.supervisor.step(0.05)


def changes(run: Run) -> int:
    """How many calls at the cloud and the balancer would change something."""
    reads = ("servers", "images", "inventory", "facts", "proven", "idle", "probe", "read", "look", "members", "sizes")
    return sum(n for name, n in run.operator.calls().items() if not name.startswith(reads))


# -- gone and back -----------------------------------------------------------------------------------------------------


def killed(server: Program) -> None:
    server.kill()


def told_to_end(server: Program) -> None:
    server.send(signal.SIGTERM)
    assert server.process is not None
    server.process.wait()


@pytest.mark.parametrize("end", [killed, told_to_end], ids=["SIGKILL", "SIGTERM"])
def test_a_restart_loses_nothing_that_was_answered(
    plane: ControlPlane, server: Program, end: Callable[[Program], None]
) -> None:
    run = plane.fleet().apply()
    run.under_way()
    before = {row.upgrade.server: (row.version, row.entry) for row in plane.store.rows(run.id)}
    end(server)
    with pytest.raises(Unreachable):
        plane.store.rollout(run.id)
    server.start()
    after = {row.upgrade.server: (row.version, row.entry) for row in plane.store.rows(run.id)}
    assert all(after[name] >= before[name] for name in before)
    run.finish()
    told = [entry.n for entry in operations.events(plane.store, run.id) if entry.server == "web-1"]
    assert told == list(range(1, len(told) + 1))


def test_an_end_of_the_file_that_was_half_written_is_cut_off_and_the_rollout_goes_on(
    place: Place, tmp_path: Path
) -> None:
    """As a power cut leaves the append-only file: what was acknowledged by the disk is there, the last command is not
    whole."""
    own = place.server()
    with control_plane(tmp_path, redis=own.url, lease=LEASE) as plane:
        run = plane.fleet().apply()
        run.under_way("swap")
        own.kill()
        (written,) = (own.folder / "appendonlydir").glob("*.incr.aof")
        written.write_bytes(written.read_bytes()[:-7])
        own.start()
        run.finish()


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_without_redis_for_longer_than_a_lease_nothing_begins_and_it_goes_on_by_itself(
    plane: ControlPlane, server: Program, how: str
) -> None:
    run = plane.fleet(servers=4, max_in_flight=2).apply()
    run.under_way()
    assert server.process is not None
    if how == "killed":
        server.kill()
    else:
        server.send(signal.SIGSTOP)
    waiting(plane, ENDS)
    calls = changes(run)
    waiting(plane, AWAY)
    assert changes(run) == calls
    if how == "killed":
        server.start()
    else:
        server.send(signal.SIGCONT)
    run.finish()


# -- there, and refusing -----------------------------------------------------------------------------------------------


@contextmanager
def full(server: Program) -> Iterator[str]:
    with server.client() as client:
        client.config_set("maxmemory", "1mb")
        yield "is full and refused it; nothing was changed"
        client.config_set("maxmemory", "0")


@contextmanager
def read_only(server: Program) -> Iterator[str]:
    with server.client() as client:
        client.execute_command("REPLICAOF", HOST, "1")
        yield "is a replica that refuses writes"
        client.execute_command("REPLICAOF", "NO", "ONE")


@contextmanager
def without_its_replicas(server: Program) -> Iterator[str]:
    with server.client() as client:
        client.config_set("min-replicas-to-write", "1")
        yield "has too few replicas and refuses writes"
        client.config_set("min-replicas-to-write", "0")


@pytest.mark.parametrize("fault", [full, read_only, without_its_replicas])
def test_a_redis_that_refuses_writes_changes_nothing_and_costs_no_server(
    plane: ControlPlane, server: Program, fault: Callable[[Program], contextmanager[str]]
) -> None:
    run = plane.fleet(servers=4, max_in_flight=2).apply()
    run.under_way()
    with fault(server) as says:
        before = {row.upgrade.server: row for row in plane.store.rows(run.id)}
        rollout = plane.store.rollout(run.id)
        with pytest.raises(UnsafeStore, match=says):
            operations.pause(plane.store, run.id, actor="anna")
        waiting(plane, ENDS)
        calls = changes(run)
        waiting(plane, 4.0)
        assert changes(run) == calls
        after = {row.upgrade.server: row for row in plane.store.rows(run.id)}
        assert {n: (r.upgrade, r.version) for n, r in after.items()} == {
            n: (r.upgrade, r.version) for n, r in before.items()
        }
        assert plane.store.rollout(run.id) == rollout
    run.finish()


# -- forgetful ---------------------------------------------------------------------------------------------------------


def test_a_broker_that_forgot_every_message_costs_no_server(plane: ControlPlane, server: Program) -> None:
    run = plane.fleet(servers=4, max_in_flight=2).apply()
    run.under_way("create_image")
    with server.client(db=1) as client:
        for step in ("provision", "swap"):
            run.under_way(step)
            client.flushdb()
    run.finish()


def test_a_store_that_forgot_everything_is_followed_by_no_act(plane: ControlPlane, server: Program) -> None:
    run = plane.fleet().apply()
    run.under_way("swap")
    with server.client() as client:
        client.flushall()
    waiting(plane, ENDS)
    calls = changes(run)
    waiting(plane, AWAY)
    assert changes(run) == calls
    with pytest.raises(ChangeoverError, match=f"there is no rollout {run.id}"):
        run.view()
    assert set(plane.store.workers()) == {name for name in plane.supervisor.pids() if "-w" in name}
    plane.fleet().apply().finish()  # whoever is new to it is served


@pytest.mark.parametrize("what", ["another type", "garbage"])
def test_a_record_that_cannot_be_read_is_left_alone_and_the_others_go_on(
    plane: ControlPlane, server: Program, what: str
) -> None:
    run = plane.fleet(servers=3).apply()
    run.under_way()
    key = f"co:{{default}}:sv:{run.id}:web-2"
    with server.client() as client:
        kept = client.dump(key)
        if what == "another type":
            client.delete(key)
            client.set(key, "x")
        else:
            client.hset(key, mapping={"doc": "garbage", "version": "x"})

        def others() -> bool:
            rows = plane.store.rows(run.id, ["web-1", "web-3"])
            return [row.upgrade.state for row in rows] == ["upgraded", "upgraded"]

        plane.until("the end of the others", others)
        assert set(run.view().unread) == {"web-2"}
        client.restore(key, 0, kept, replace=True)
    run.finish()


# -- a bad wire --------------------------------------------------------------------------------------------------------


@patient
@pytest.mark.first
@pytest.mark.timeout(500)
def test_a_slow_wire_is_only_slow(server: Program, tmp_path: Path) -> None:
    with Wire(server.port) as wire:
        url = f"redis://{HOST}:{wire.port}/3"
        urls = {"redis": url, "broker": url.replace("/3", "/4"), "results": url.replace("/3", "/5")}
        with control_plane(tmp_path, **urls, namespace="slow") as plane:
            wire.latency = 0.1  # each way
            plane.fleet(servers=1).apply().finish()


@patient
@pytest.mark.first
@pytest.mark.timeout(500)
def test_a_half_open_wire_is_noticed_and_replaced(server: Program, tmp_path: Path) -> None:
    with Wire(server.port) as wire:
        url = f"redis://{HOST}:{wire.port}/6"
        urls = {"redis": url, "broker": url.replace("/6", "/7"), "results": url.replace("/6", "/8")}
        with control_plane(tmp_path, **urls, namespace="half") as plane:
            run = plane.fleet(servers=3).apply()
            run.under_way()
            assert wire.half_open() > 4
            run.until("the end", lambda view: view.rollout.ended, seconds=200)
            run.finish()
