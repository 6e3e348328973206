"""Records, messages and results wherever they are: on servers of their own, behind sentinels, by TLS."""

from __future__ import annotations

import base64
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from kombu.exceptions import OperationalError
from redis.exceptions import ConnectionError as RedisConnectionError

from orchestrator import operations
from orchestrator.errors import Unreachable, UnsafeStore
from orchestrator.messaging import make_app
from orchestrator.settings import Settings
from orchestrator.supervisor import start
from tests.support.control_plane import ControlPlane, Run, control_plane
from tests.support.redis_servers import Place, Program, redis_place, sentinel_url, wait_for

pytestmark = pytest.mark.debian


@pytest.fixture
def place() -> Iterator[Place]:
    with redis_place() as made:
        yield made


def keys(server: Program, database: int) -> set[str]:
    with server.client(db=database) as client:
        return {key.decode(errors="replace") for key in client.scan_iter()}


def flower_says(plane: ControlPlane, path: str) -> str:
    credentials = plane.supervisor.flower_credentials
    assert credentials is not None
    request = urllib.request.Request(plane.supervisor.flower_url + path)
    request.add_header("Authorization", "Basic " + base64.b64encode(credentials.read_bytes().strip()).decode())
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(answer.read().decode())


def flower_knows(plane: ControlPlane, run: Run) -> None:
    """It has seen the tasks, and can ask the broker for its queues."""

    def seen() -> bool:
        plane.supervisor.step(0.05)
        return f"{run.id}:web-1:6:drain_old" in flower_says(plane, "/api/tasks?limit=1000")

    wait_for("a task in Flower", seen)
    assert "changeover" in flower_says(plane, "/broker")


@pytest.mark.timeout(500)
def test_records_messages_and_results_are_each_where_they_were_told_to_be(place: Place, tmp_path: Path) -> None:
    records, broker, results = (place.server(password=word) for word in ("one", "two", "three"))
    with control_plane(tmp_path, redis=records.url, broker=broker.url, results=results.url, flower=True) as plane:
        run = plane.fleet().apply()
        run.finish()
        flower_knows(plane, run)
        folder = plane.supervisor.settings.state_dir
        told = Settings(redis_url="", broker_url="", result_url="", state_dir=folder).urls()
        assert (told.records, told.messages, told.results) == (records.url, broker.url, results.url)
    assert all(key.startswith("co:") for key in keys(records, 0))
    assert any(key.startswith("_kombu") for key in keys(broker, 0))
    assert keys(results, 0) and all(key.startswith("celery-task-meta-") for key in keys(results, 0))


@pytest.mark.timeout(500)
def test_a_rollout_runs_by_tls_and_checks_the_certificate(place: Place, tmp_path: Path) -> None:
    certificates = place.certificates()
    server = place.server(password="secret/with@signs", certificates=certificates)
    url = server.url.replace("secret/with@signs", "secret%2Fwith%40signs")
    with control_plane(tmp_path, redis=url, flower=True) as plane:
        run = plane.fleet().apply()
        run.finish()
        flower_knows(plane, run)
    stranger = url.partition("?")[0]  # the system's authorities have not signed it
    with pytest.raises(Unreachable, match="certificate verify failed"):
        start(Settings(redis_url=stranger, state_dir=tmp_path / "stranger"), workers=0)
    with pytest.raises(Unreachable, match=r"the broker's Redis at .* certificate verify failed"):
        start(Settings(redis_url=url, broker_url=stranger, state_dir=tmp_path / "stranger"), workers=0)
    app = make_app(Settings(redis_url=url, broker_url=stranger, result_url=stranger))
    with app.connection_for_write() as broker, pytest.raises(OperationalError, match="certificate verify failed"):
        broker.default_channel.client.ping()
    with pytest.raises(RedisConnectionError, match="certificate verify failed"):
        app.backend.client.ping()


@pytest.mark.timeout(500)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_master_that_dies_in_mid_rollout_costs_no_server_and_makes_nothing_twice(
    place: Place, tmp_path: Path, tls: bool
) -> None:
    certificates = place.certificates() if tls else None
    master = place.server(password="pw", certificates=certificates)
    replica = place.server(of=master, password="pw", certificates=certificates)
    url = sentinel_url(place.sentinels(master)).replace("://", "://:pw@")
    with control_plane(tmp_path, redis=url, flower=True) as plane:
        run = plane.fleet(servers=4).apply()
        assert operations.confirmed(plane.store) is True
        run.under_way()
        master.kill()
        run.finish()
        with replica.client() as client:
            assert client.info("replication")["role"] == "master"
        flower_knows(plane, run)
        assert not [line for line in plane.said if "ended by itself" in line], plane.said
        master.start()  # which the sentinels make a replica

        def replicated() -> bool:
            return operations.freeze(plane.store, actor="test").confirmed is True

        plane.until("the old master's return as a replica", replicated)


def test_each_server_is_checked_for_what_it_has_to_keep(place: Place, tmp_path: Path) -> None:
    records = place.server()
    evicting = place.server("--maxmemory-policy", "allkeys-lru", "--appendonly", "no")
    forgetful = place.server("--appendonly", "no")
    replica = place.server(of=records)

    def begin(**urls: str) -> None:
        settings = Settings(**{"redis_url": records.url, **urls}, state_dir=tmp_path / "state")
        start(settings, workers=0, coordinator=False, with_flower=False).stop(now=True)

    begin(broker_url=forgetful.url, result_url=evicting.url)
    with pytest.raises(UnsafeStore, match=r"^Redis at .* keeps no append-only file"):
        begin(redis_url=forgetful.url)
    with pytest.raises(UnsafeStore, match=r"^the broker's Redis at .* would evict keys"):
        begin(broker_url=evicting.url)
    for url in ("broker_url", "result_url"):
        with pytest.raises(UnsafeStore, match="is a replica, not the primary"):
            begin(**{url: replica.url})
        with pytest.raises(Unreachable, match=r"Redis at redis://127.0.0.1:1/0 does not answer"):
            begin(**{url: "redis://:secret@127.0.0.1:1"})
    os.environ["CHANGEOVER_DEV"] = "true"
    try:
        begin(redis_url=forgetful.url, broker_url=evicting.url)
    finally:
        del os.environ["CHANGEOVER_DEV"]
