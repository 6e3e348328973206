"""Results of a worker's tasks, kept in one exchange with a real Redis, as Celery's own backend would keep them."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from anyio.from_thread import start_blocking_portal
from celery import Celery
from celery.backends.redis import SentinelBackend

from orchestrator.messaging import make_app
from orchestrator.settings import Settings
from orchestrator.store import connecting
from tasks import Parked
from tests.support.redis_servers import HOST, Certificates, wait_for
from tests.support.valkey import RunningValkey, running_valkey
from workers import results

WEEK = 7 * 86400


def app_of(url: str, folder: Path) -> Celery:
    """A worker's, with its own configuration."""
    app = make_app(Settings(redis_url=url, state_dir=folder))
    results.apply(app)
    return app


class Kept:
    """An app that keeps results, and a look at what is kept."""

    def __init__(self, valkey: RunningValkey, folder: Path) -> None:
        self.app = app_of(valkey.url, folder)
        self.backend: Any = self.app.backend
        self.raw: Any = redis.Redis.from_url(valkey.url.replace("db=0", "db=2"))

    def found(self, task: str) -> dict[str, Any]:
        text: dict[str, Any] = json.loads(self.raw.get(f"celery-task-meta-{task}"))
        return text

    def close(self) -> None:
        self.backend.client.connection_pool.disconnect()
        self.raw.close()


@pytest.fixture
def valkey() -> Iterator[RunningValkey]:
    with running_valkey() as running:
        yield running


@pytest.fixture
def kept(valkey: RunningValkey, tmp_path: Path) -> Iterator[Kept]:
    with closing(Kept(valkey, tmp_path)) as made:
        yield made


TOLD: dict[str, Callable[[Any, str], None]] = {
    "success": lambda backend, task: backend.mark_as_done(task, {"step": "done"}),
    "failure": lambda backend, task: backend.mark_as_failure(task, ValueError("what", 1), traceback="here"),
    "parked": lambda backend, task: backend.mark_as_retry(task, Parked("a wave waits").exc, ""),
}
STATUS = {"success": "SUCCESS", "failure": "FAILURE", "parked": "RETRY"}


# -- as Celery's -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # Celery's own
@pytest.mark.parametrize("how", TOLD)
def test_what_is_kept_is_what_celery_keeps_and_for_as_long(
    kept: Kept, valkey: RunningValkey, tmp_path: Path, how: str
) -> None:
    celerys = make_app(Settings(redis_url=valkey.url, state_dir=tmp_path))
    assert not isinstance(celerys.backend, results.Results)
    TOLD[how](celerys.backend, "celerys")
    TOLD[how](kept.backend, "ours")
    theirs, ours = kept.found("celerys"), kept.found("ours")
    same = {"task_id": "", "date_done": ""}
    assert {**ours, **same} == {**theirs, **same}
    assert list(ours) == list(theirs)
    assert ours["task_id"] == "ours"
    assert WEEK - 100 < kept.raw.ttl("celery-task-meta-ours") <= WEEK
    celerys.backend.client.connection_pool.disconnect()


def test_it_is_one_exchange(kept: Kept) -> None:
    def exchanges() -> dict[str, int]:
        """Those of a client: a script's own commands are counted too, but for the transactions."""
        stats = kept.raw.info("commandstats")
        return {name: stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "multi", "setex")}

    kept.backend.mark_as_done("first", 1)  # which makes the script known
    before = exchanges()
    asked = kept.raw.info("stats")["total_commands_processed"]
    for number in range(5):
        kept.backend.mark_as_done(f"t{number}", number)
    assert exchanges() == {**before, "evalsha": before["evalsha"] + 5}
    inside = 5 * 3  # GET, SET, PUBLISH
    assert kept.raw.info("stats")["total_commands_processed"] - asked <= 5 + inside + 2  # and who looks


def test_whoever_listens_hears_it(kept: Kept) -> None:
    with kept.raw.pubsub(ignore_subscribe_messages=True) as listener:
        listener.subscribe("celery-task-meta-t1")
        assert listener.get_message(timeout=30) is None  # the subscription itself
        kept.backend.mark_as_done("t1", {"step": "done"})
        heard = listener.get_message(timeout=30)
        assert json.loads(heard["data"]) == kept.found("t1")
        assert kept.found("t1")["result"] == {"step": "done"}


@pytest.mark.parametrize("when", ["before", "while one waits"])
def test_whoever_asks_for_a_result_gets_it(kept: Kept, when: str) -> None:
    if when == "before":
        kept.backend.mark_as_done("t1", "done")
        assert kept.app.AsyncResult("t1").get(timeout=60) == "done"
        return
    got: list[Any] = []
    waiting = threading.Thread(target=lambda: got.append(kept.app.AsyncResult("t1").get(timeout=60)), daemon=True)
    waiting.start()
    channel = "celery-task-meta-t1"
    wait_for("somebody who listens", lambda: kept.raw.pubsub_numsub(channel)[0][1] == 1)
    kept.backend.mark_as_done("t1", "done")
    waiting.join(60)
    assert got == ["done"]


def test_a_failure_is_raised_where_its_result_is_asked_for(kept: Kept) -> None:
    TOLD["failure"](kept.backend, "t1")
    with pytest.raises(ValueError, match="what"):
        kept.app.AsyncResult("t1").get(timeout=60)


# -- which one stays ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("later", TOLD)
def test_the_first_success_stays_and_nobody_hears_of_another_result(kept: Kept, later: str) -> None:
    with kept.raw.pubsub(ignore_subscribe_messages=True) as listener:
        listener.subscribe("celery-task-meta-t1")
        assert listener.get_message(timeout=30) is None  # the subscription itself
        kept.backend.mark_as_done("t1", "first")
        first = kept.found("t1")
        TOLD[later](kept.backend, "t1")
        kept.raw.publish("celery-task-meta-t1", "nothing between")
        assert [listener.get_message(timeout=30)["data"] for _ in range(2)][1] == b"nothing between"
    assert kept.found("t1") == first


@pytest.mark.parametrize("first", ["failure", "parked"])
@pytest.mark.parametrize("later", TOLD)
def test_whatever_is_no_success_gives_way_to_what_comes_later(kept: Kept, first: str, later: str) -> None:
    TOLD[first](kept.backend, "t1")
    assert kept.found("t1")["status"] == STATUS[first]
    kept.raw.expire("celery-task-meta-t1", 60)
    TOLD[later](kept.backend, "t1")
    assert kept.found("t1")["status"] == STATUS[later]
    assert kept.raw.ttl("celery-task-meta-t1") > 60


@pytest.mark.parametrize(
    "found",
    [
        "",
        "garbage",
        "5",
        "null",
        '"SUCCESS"',
        '["SUCCESS"]',
        json.dumps({"status": "FAILURE", "result": "a name with \udcff in it"}),
        "[" * 2000 + "]" * 2000,
    ],
    ids=["nothing", "no JSON", "number", "null", "text", "list", "half a surrogate pair", "too deep"],
)
def test_what_redis_cannot_read_stands_in_nobodys_way(kept: Kept, found: str) -> None:
    kept.raw.set("celery-task-meta-t1", found)
    kept.backend.mark_as_done("t1", "done")
    assert kept.found("t1")["result"] == "done"


def test_a_failure_that_names_what_is_no_text_gives_way_to_a_success(kept: Kept) -> None:
    """A file's name that is no UTF-8, as Python reads it."""
    kept.backend.mark_as_failure("t1", OSError(b"\xff".decode(errors="surrogateescape")))
    kept.backend.mark_as_done("t1", "done")
    assert kept.app.AsyncResult("t1").get(timeout=60) == "done"


# -- a server that forgets ---------------------------------------------------------------------------------------------


def test_a_server_that_forgot_the_script_is_told_it_again(kept: Kept) -> None:
    kept.backend.mark_as_done("t1", 1)
    kept.raw.script_flush()
    kept.backend.mark_as_done("t2", 2)
    assert (kept.found("t1")["result"], kept.found("t2")["result"]) == (1, 2)


@pytest.mark.parametrize("fresh", [0.0, 600.0], ids=["it lay idle", "it was used a moment ago"])
def test_a_server_that_was_started_again_gets_the_next_result(
    kept: Kept, valkey: RunningValkey, monkeypatch: pytest.MonkeyPatch, fresh: float
) -> None:
    monkeypatch.setattr(connecting, "FRESH", fresh)
    kept.backend.mark_as_done("t1", 1)
    valkey.kill()
    valkey.start()
    kept.backend.mark_as_done("t2", 2)
    assert kept.found("t2")["result"] == 2


# -- where it is used --------------------------------------------------------------------------------------------------


@contextmanager
def behind_tls(valkey: RunningValkey, certificates: Certificates) -> Iterator[int]:
    """The port of somebody who takes TLS, and hands on what he reads: not every Valkey was built with it."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates.certificate, certificates.key)

    async def hand_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while some := await reader.read(65536):
            writer.write(some)
            await writer.drain()
        writer.close()

    async def come(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to, back = await asyncio.open_unix_connection(valkey.socket)
        with suppress(ConnectionError):
            await asyncio.gather(hand_on(reader, back), hand_on(to, writer))

    with start_blocking_portal() as portal:
        listening = portal.call(partial(asyncio.start_server, come, HOST, 0, ssl=context))
        try:
            yield listening.sockets[0].getsockname()[1]
        finally:
            portal.call(listening.close)


def test_results_behind_tls_are_kept_like_this(valkey: RunningValkey, tmp_path: Path) -> None:
    certificates = Certificates.make(tmp_path / "tls")
    with behind_tls(valkey, certificates) as port:
        app = app_of(f"rediss://{HOST}:{port}/0?ssl_ca_certs={certificates.ca}", tmp_path)
        backend: Any = app.backend
        assert isinstance(backend, results.Results)
        backend.mark_as_done("t1", "done")
        assert app.AsyncResult("t1").get(timeout=60) == "done"
        backend.result_consumer.stop()
        backend.client.connection_pool.disconnect()
    with redis.Redis.from_url(valkey.url) as other:
        assert other.info("commandstats")["cmdstat_evalsha"]["calls"] >= 1


@pytest.mark.parametrize(
    ("url", "ours"),
    [
        ("redis://127.0.0.1:1/0", True),
        ("rediss://127.0.0.1:1/0", True),
        ("unix:///tmp/none.sock?db=0", True),
        ("sentinel://127.0.0.1:1/shop/0", False),
        ("sentinels://127.0.0.1:1/shop/0", False),
    ],
)
def test_one_redis_is_ours_by_whatever_address_and_sentinels_are_celerys(url: str, ours: bool, tmp_path: Path) -> None:
    backend: Any = app_of(url, tmp_path).backend
    assert isinstance(backend, results.Results) is ours
    assert isinstance(backend, SentinelBackend) is not ours


def test_another_app_keeps_its_results_as_before(tmp_path: Path) -> None:
    one = app_of("redis://127.0.0.1:1/0", tmp_path)
    other = make_app(Settings(redis_url="redis://127.0.0.1:1/0", state_dir=tmp_path))
    assert isinstance(one.backend, results.Results)
    assert not isinstance(other.backend, results.Results)
