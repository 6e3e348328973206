"""What each process may do in Redis is enough for what the store asks of it, and no more."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import redis

from orchestrator.messaging import make_app
from orchestrator.settings import Settings
from tasks import Parked
from tests.support.redis_servers import wait_for
from tests.support.redis_users import ROOT, Guarded, guarded_redis
from workers import results

RULES = ROOT / "deploy" / "redis" / "users.acl"
STORE = ROOT / "orchestrator" / "store"
DECIDING = ("api", "coordinator", "worker")
# What lets callers of the API in, and what they have asked for. A worker that was taken over must not let anybody in.
OF_THE_API_ALONE = {"tokens", "once:", "nonce:", "delivery:", "deliveries", "deliveries_due", "session:", "sessions:"}
PROCESSES = ("api", "coordinator", "worker", "flower")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarded_redis(tmp_path_factory.mktemp("redis")) as found:
        yield found


def rules(user: str) -> str:
    """Of that user, on its records."""
    whole = re.search(rf"^user {user} .*?(?=^(?:user|#)|\Z)", RULES.read_text(), re.MULTILINE | re.DOTALL)
    assert whole is not None
    return whole.group()


def commands_of_the_store() -> set[str]:
    scripts = "".join(path.read_text() for path in STORE.glob("lua/*.lua"))
    client = (STORE / "redis.py").read_text() + (STORE / "health.py").read_text()
    called = {name.lower() for name in re.findall(r"call\('([A-Z]+)'", scripts)}
    asked = set(re.findall(r"\b(?:self\._redis|pipeline|whole|client)\.([a-z]+)\(", client))
    named = {"delete": "del", "config_get": "config"}
    return {named.get(name, name) for name in called | asked | {"hmget"}} - {"pipeline", "execute"}


def keys_of_the_store() -> set[str]:
    """As `rollouts`, or `ro:` where a name follows."""
    scripts = "".join(path.read_text() for path in STORE.glob("lua/*.lua"))
    called = set(re.findall(r"P \.\. '([a-z_]+:?)", scripts))
    client = re.findall(r"_key\(\"([a-z_]+)\"(,?)", (STORE / "redis.py").read_text())
    return called | {name + (":" if more else "") for name, more in client}


@pytest.mark.parametrize("user", DECIDING)
def test_every_command_of_the_store_is_allowed_to_whoever_decides(user: str) -> None:
    assert sorted(commands_of_the_store() - set(re.findall(r"\+([a-z]+)", rules(user)))) == []


@pytest.mark.parametrize("user", DECIDING)
def test_every_key_of_the_store_is_open_to_whoever_decides_but_for_what_is_the_apis(user: str) -> None:
    patterns = re.findall(r"~(co:\S+?)\)?(?=\s)", rules(user))

    def is_open(key: str) -> bool:
        name = f"co:{{default}}:{key}" + ("some" if key.endswith(":") else "")
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    shut = {key for key in keys_of_the_store() if not is_open(key)}
    assert shut <= (set() if user == "api" else OF_THE_API_ALONE), "name them in deploy/redis/users.acl"


@pytest.mark.parametrize("user", PROCESSES)
@pytest.mark.parametrize(
    "command",
    [
        "FLUSHALL",
        "FLUSHDB",
        "CONFIG SET maxmemory 1mb",
        "CONFIG GET *",
        "CONFIG REWRITE",
        "KEYS *",
        "SCAN 0",
        "RANDOMKEY",
        "ACL LIST",
        "ACL SETUSER default on nopass ~* +@all",
        "SCRIPT FLUSH",
        "FUNCTION LIST",
        "REPLICAOF NO ONE",
        "SHUTDOWN NOSAVE",
        "SAVE",
        "BGREWRITEAOF",
        "MODULE LIST",
        "CLIENT LIST",
        "CLIENT KILL TYPE normal",
        "MONITOR",
        "SWAPDB 0 1",
        "GET somebody:elses",
        "SET somebody:elses 1",
        "RENAME changeover somebody:elses",
        "SUBSCRIBE somebody:elses",
        "PUBLISH somebody:elses 1",
    ],
)
def test_no_process_may_do_what_none_needs(guarded: Guarded, user: str, command: str) -> None:
    with guarded.client(user) as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*command.split())


@pytest.mark.parametrize(
    ("user", "command"),
    [
        ("flower", "LPUSH changeover forged"),
        ("flower", "BRPOP changeover 1"),
        ("flower", "HGET unacked some"),
        ("flower", "HGETALL co:{default}:ro:some"),
        ("flower", "SET celery-task-meta-some 1"),
        ("flower", "PUBLISH /1.celeryev/task.succeeded {}"),
        ("coordinator", "BRPOP changeover 1"),
        ("coordinator", "SETEX celery-task-meta-some 60 1"),
        ("coordinator", "EVALSHA 0000000000000000000000000000000000000000 1 celery-task-meta-some"),
        ("coordinator", "PUBLISH /1.celery.pidbox {}"),
        ("coordinator", "HGETALL co:{default}:tokens"),
        ("api", "BRPOP changeover 1"),
        ("api", "SETEX celery-task-meta-some 60 1"),
        ("api", "EVALSHA 0000000000000000000000000000000000000000 1 celery-task-meta-some"),
        ("flower", "EVALSHA 0000000000000000000000000000000000000000 1 celery-task-meta-some"),
        ("api", "PUBLISH /1.celery.pidbox {}"),
        ("worker", "HGETALL co:{default}:tokens"),
        ("worker", "HSET co:{default}:tokens some {}"),
        ("health", "GET co:{default}:frozen"),
        ("health", "INFO"),
    ],
)
def test_each_is_refused_what_is_anothers(guarded: Guarded, user: str, command: str) -> None:
    with guarded.client(user) as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*command.split())


def test_what_was_written_in_a_transaction_or_by_a_script_is_there_after_a_restart(tmp_path: Path) -> None:
    with guarded_redis(tmp_path) as guarded:
        with guarded.client("worker") as client:
            script = "redis.call('HSET', KEYS[1] .. 'ro:1', 'a', 1); redis.call('SADD', KEYS[1] .. 'open', 1)"
            client.eval(script, 1, "co:{x}:")
            with client.pipeline(transaction=True) as both:
                both.set("co:{x}:frozen", "b").sadd("co:{x}:open", "2").execute()
        with guarded.client("admin") as admin:
            wait_for("the file", lambda: admin.info("persistence")["aof_buffer_length"] == 0)  # a kill comes next
        guarded.begin()
        with guarded.client("worker") as client:
            assert client.get("co:{x}:frozen") == b"b"
            assert client.smembers("co:{x}:open") == {b"1", b"2"}
            assert client.hgetall("co:{x}:ro:1") == {b"a": b"1"}


@pytest.mark.parametrize("user", DECIDING)
@pytest.mark.parametrize("inside", ["'FLUSHALL'", "'GET', 'somebody:elses'", "'KEYS', '*'"])
def test_a_script_may_do_no_more_than_whoever_runs_it(guarded: Guarded, user: str, inside: str) -> None:
    with (
        guarded.client(user) as client,
        pytest.raises(redis.exceptions.ResponseError, match=r"ACL failure|permission|can't (run|access)"),
    ):
        client.eval(f"return redis.call({inside})", 1, "co:{default}:")


@pytest.mark.parametrize(
    ("user", "command"),
    [
        ("coordinator", "MGET celery-task-meta-some"),  # after the results' connection was lost
        ("api", "MGET celery-task-meta-some"),
        ("worker", "MGET celery-task-meta-some"),
        ("worker", "PEXPIRE some.reply.celery.pidbox 1000"),
        ("flower", "PEXPIRE some.reply.celery.pidbox 1000"),
        ("flower", "LLEN changeover\x06\x163"),
        ("worker", "BRPOP changeover changeover\x06\x163 changeover\x06\x166 changeover\x06\x169 0.01"),
        ("worker", "HGETALL co:{another-one}:sv:some:web-1"),
        ("coordinator", "WAIT 0 1"),
    ],
)
def test_what_happens_seldom_is_allowed_too(guarded: Guarded, user: str, command: str) -> None:
    with guarded.client(user) as client:
        client.execute_command(*command.split())


def test_without_a_user_nobody_is_let_in(guarded: Guarded) -> None:
    with redis.Redis(port=guarded.port) as client, pytest.raises(redis.exceptions.AuthenticationError):
        client.ping()
    with guarded.client("health") as client:
        assert client.ping()


def test_a_worker_may_give_back_what_another_took_and_did_not_end(guarded: Guarded, tmp_path: Path) -> None:
    url = f"redis://worker:{guarded.password('worker')}@127.0.0.1:{guarded.port}/0"
    app = make_app(Settings(redis_url=url, state_dir=tmp_path))
    with app.connection_for_write() as gone, app.connection_for_write() as connection:
        queue = gone.SimpleQueue("changeover")
        queue.put({"some": "message"})
        taken = queue.get(timeout=20)
        channel = connection.default_channel
        with channel.conn_or_acquire() as client:
            assert client.llen("changeover") == 0
            client.zadd(channel.unacked_index_key, {taken.delivery_tag: time.time() - 86400})
            channel.qos.restore_visible(interval=1)
            assert client.llen("changeover") == 1


@pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # Celery's own
@pytest.mark.parametrize("kept_by", ["us", "Celery, as where sentinels lead to the results"])
def test_a_worker_may_keep_results_and_whoever_reads_them_may_wait_for_one(
    guarded: Guarded, tmp_path: Path, kept_by: str
) -> None:
    guarded.refusals()  # those of others
    url = f"redis://worker:{guarded.password('worker')}@127.0.0.1:{guarded.port}/0"
    app = make_app(Settings(redis_url=url, state_dir=tmp_path))
    if kept_by == "us":
        results.apply(app)
    backend: Any = app.backend
    assert isinstance(backend, results.Results) is (kept_by == "us")
    task = f"of {kept_by}"
    backend.mark_as_retry(task, Parked("a wave waits").exc, "")
    with guarded.client("admin") as admin:
        admin.script_flush()  # as a restart does: a worker may tell it again
    backend.mark_as_done(task, {"step": "done"})
    backend.mark_as_done(task, "once more")
    for user in PROCESSES:
        url = f"redis://{user}:{guarded.password(user)}@127.0.0.1:{guarded.port}/0"
        reader = make_app(Settings(redis_url=url, state_dir=tmp_path))
        assert reader.AsyncResult(task).get(timeout=60) == {"step": "done"}
        reader.backend.result_consumer.stop()
        reader.backend.client.connection_pool.disconnect()
    backend.client.connection_pool.disconnect()
    assert guarded.refusals() == []


def test_secrets_once_made_are_kept_and_those_who_may_not_enter_their_folder_read_none(guarded: Guarded) -> None:
    assert guarded.secrets.stat().st_mode & 0o777 == 0o700
    rules = (guarded.secrets / "users.acl").read_text()
    names = ("redis-api", "redis-worker", "redis-coordinator", "redis-flower", "redis-admin", "flower")
    secrets = [(guarded.secrets / name).read_text().strip() for name in names]
    assert len(set(secrets)) == len(names) and all(len(secret) >= 48 for secret in secrets)
    assert not [secret for secret in secrets if secret in rules]
    assert "{" not in rules.replace("co:{*}:", "")
