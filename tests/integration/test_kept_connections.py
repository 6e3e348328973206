"""Connections that are handed out again as they are, on real servers."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from types import FrameType
from typing import Any

import pytest
import redis

from orchestrator.addresses import parse
from orchestrator.store import connecting
from orchestrator.store.connecting import FRESH, Client, KeptPool, connect
from tests.support.redis_servers import HOST, Place, Program, redis_place, wait_for
from tests.support.valkey import RunningValkey, running_valkey

FREE = "no limit"
LIMITED = "blocking"
Make = Callable[..., Any]


class Clock:
    """Stands still until somebody moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(connecting, "time", made)
    return made


@pytest.fixture
def valkey() -> Iterator[RunningValkey]:
    with running_valkey() as running:
        yield running


@pytest.fixture
def make(valkey: RunningValkey) -> Iterator[Make]:
    """A pool of that kind."""
    made: list[Any] = []

    def pool(kind: str, connections: int) -> Any:
        if kind == FREE:
            unix: Any = redis.UnixDomainSocketConnection
            made.append(KeptPool(connection_class=unix, path=str(valkey.socket), max_connections=connections))
        else:
            made.append(connect(parse(valkey.url), connections=connections).connection_pool)
        return made[-1]

    yield pool
    for each in made:
        each.disconnect()


def asked(connection: Any) -> list[str]:
    """Grows when redis-py asks it whether something has come."""
    found: list[str] = []
    ask = connection.can_read

    def can_read(*given: Any, **named: Any) -> Any:
        found.append("asked")
        return ask(*given, **named)

    connection.can_read = can_read
    return found


both = pytest.mark.parametrize("kind", [FREE, LIMITED])


# -- a moment ago, or longer -------------------------------------------------------------------------------------------


@both
def test_what_was_given_back_a_moment_ago_is_handed_out_again_and_not_asked(
    clock: Clock, make: Make, kind: str
) -> None:
    pool = make(kind, 3)
    first = pool.get_connection()
    questions = asked(first)
    pool.release(first)
    clock.now += FRESH * 0.99
    assert pool.get_connection() is first
    assert questions == []


@both
def test_what_lay_idle_is_asked_and_then_is_as_good_as_new(clock: Clock, make: Make, kind: str) -> None:
    pool = make(kind, 3)
    first = pool.get_connection()
    questions = asked(first)
    for rounds in (1, 2):
        pool.release(first)
        clock.now += FRESH
        assert pool.get_connection() is first
        assert len(questions) == rounds
    pool.release(first)
    assert pool.get_connection() is first
    assert len(questions) == 2


@both
def test_two_threads_never_have_the_same_one(clock: Clock, make: Make, kind: str) -> None:
    pool = make(kind, 3)
    held = [pool.get_connection() for _ in range(3)]
    assert len({id(each) for each in held}) == 3
    for each in held:
        pool.release(each)
        clock.now += FRESH / 2  # the last one is fresh, the others are not
    assert {id(pool.get_connection()) for _ in range(3)} == {id(each) for each in held}


# -- a server that goes ------------------------------------------------------------------------------------------------


def test_whoever_comes_to_a_server_that_was_started_again_meanwhile_hears_of_no_error(
    clock: Clock, valkey: RunningValkey
) -> None:
    with closing(connect(parse(valkey.url), connections=2)) as client:
        pool = client.connection_pool
        held = [pool.get_connection() for _ in range(2)]
        for each in held:
            pool.release(each)
        assert client.ping()
        valkey.kill()
        valkey.start()
        clock.now += FRESH
        assert client.ping()
        assert [client.ping() for _ in held] == [True, True]
        pool.disconnect()


def test_a_connection_that_broke_within_a_moment_is_made_anew_before_anything_is_sent(
    clock: Clock, valkey: RunningValkey
) -> None:
    with closing(connect(parse(valkey.url), connections=1)) as client:
        assert client.ping()
        broken = client.connection_pool.get_connection()
        client.connection_pool.release(broken)
        valkey.kill()
        valkey.start()
        assert client.incr("once") == 1
        assert client.connection_pool.get_connection() is broken
        client.connection_pool.disconnect()


# -- as many as allowed ------------------------------------------------------------------------------------------------


@both
def test_no_more_are_made_than_allowed_although_some_are_kept(clock: Clock, make: Make, kind: str) -> None:
    pool = make(kind, 2)
    pool.timeout = 0
    for age in (0, FRESH, FRESH / 2):
        held = [pool.get_connection() for _ in range(2)]
        with pytest.raises(redis.exceptions.ConnectionError, match=r"No connection available|Too many connections"):
            pool.get_connection()
        for each in held:
            pool.release(each)
        clock.now += age


def test_a_thread_that_waits_gets_what_is_given_back(make: Make) -> None:
    pool = make(LIMITED, 1)
    pool.timeout = 60
    held = pool.get_connection()
    got: list[Any] = []
    waiting = threading.Thread(target=lambda: got.append(pool.get_connection()), daemon=True)
    waiting.start()
    wait_for("somebody who waits", lambda: pool._wanting == 1)
    pool.release(held)
    waiting.join(30)
    assert got == [held]
    pool.release(held)  # nobody waits any more
    assert pool.get_connection() is held


def anywhere(frame: FrameType, _: str, __: Any) -> Any:
    """As a trace function, has Python give way to another thread between any two steps of what we have written."""
    if frame.f_code.co_filename != connecting.__file__:
        return None
    frame.f_trace_opcodes = True
    if random.random() < 0.1:
        time.sleep(1e-6)  # is over when the others have had their turn
    return anywhere


def at_once(*acts: Callable[[], object]) -> list[Any]:
    """What they answer, or raise. Each in a thread of its own, and none before the others."""
    together = threading.Barrier(len(acts), timeout=60)
    answers: list[Any] = [None] * len(acts)

    def play(number: int) -> None:
        together.wait()
        sys.settrace(anywhere)
        try:
            answers[number] = acts[number]()
        except Exception as error:
            answers[number] = error

    playing = [threading.Thread(target=play, args=[number], daemon=True) for number in range(len(acts))]
    for each in playing:
        each.start()
    for each in playing:
        each.join(100)
    assert not any(each.is_alive() for each in playing)
    return answers


def test_who_comes_in_the_very_moment_in_which_one_is_given_back_gets_it(make: Make) -> None:
    pool = make(LIMITED, 1)
    pool.timeout = 30
    for _ in range(100):
        held = pool.get_connection()
        assert at_once(lambda held=held: pool.release(held), pool.get_connection) == [None, held]
        pool.release(held)


@pytest.mark.parametrize("fresh", [0.0, 2e-4, 60.0], ids=["always asked", "some of each", "never asked"])
@pytest.mark.parametrize("threads", [3, 8], ids=["one each", "more than there are"])
def test_many_threads_share_a_few_and_nobody_waits_although_one_is_free(
    monkeypatch: pytest.MonkeyPatch, make: Make, threads: int, fresh: float
) -> None:
    monkeypatch.setattr(connecting, "FRESH", fresh)
    pool = make(LIMITED, 3)
    pool.timeout = 0 if threads == 3 else 60  # with one for each of them, nobody has to wait at all
    busy: set[int] = set()

    def work() -> str:
        for _ in range(300):
            mine = pool.get_connection()
            assert id(mine) not in busy
            busy.add(id(mine))
            busy.discard(id(mine))
            pool.release(mine)
        return "worked"

    assert at_once(*[work] * threads) == ["worked"] * threads
    assert pool._wanting == 0
    assert len(pool._connections) <= 3
    pool.timeout = 0
    assert len({id(pool.get_connection()) for _ in range(3)}) == 3  # none was lost on the way


# -- the end -----------------------------------------------------------------------------------------------------------


def connected(valkey: RunningValkey) -> int:
    """How many are connected but for whoever asks."""
    with redis.Redis.from_url(valkey.url) as other:
        return len(other.client_list()) - 1


@both
def test_whoever_ends_the_pool_ends_those_that_are_kept_and_they_work_again(
    clock: Clock, valkey: RunningValkey, make: Make, kind: str
) -> None:
    pool = make(kind, 3)
    held = [pool.get_connection() for _ in range(3)]
    for each in held[:2]:
        pool.release(each)
    assert connected(valkey) == 3
    pool.disconnect()
    wait_for("the end of all", lambda: connected(valkey) == 0)
    with redis.Redis(connection_pool=pool) as client:
        assert client.ping()


@both
def test_a_pool_that_begins_anew_forgets_what_it_kept(clock: Clock, make: Make, kind: str) -> None:
    pool = make(kind, 1)
    first = pool.get_connection()
    pool.release(first)
    pool.reset()
    second = pool.get_connection()
    assert second is not first
    first.disconnect()


# -- another master ----------------------------------------------------------------------------------------------------


class Sentinels:
    """They name as the master who was told to them last."""

    def __init__(self, master: Program) -> None:
        self.master = master

    def discover_master(self, name: str) -> tuple[str, int]:
        assert name == "shop"
        return HOST, self.master.port


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with redis_place() as made:
        yield made


@pytest.fixture
def two(place: Place) -> Iterator[tuple[Program, Program]]:
    made = place.server(), place.server()
    yield made
    for each in made:
        each.kill()


@pytest.fixture
def sentinels(two: tuple[Program, Program], monkeypatch: pytest.MonkeyPatch) -> Sentinels:
    made = Sentinels(two[0])
    monkeypatch.setattr(connecting, "Sentinel", lambda *_, **__: made)
    return made


def by_sentinel(connections: int) -> Client:
    client: Client = connect(parse("sentinel://127.0.0.1:1/shop/0"), connections=connections)
    return client


def test_after_an_error_the_sentinels_are_asked_at_once_who_is_the_master(
    clock: Clock, two: tuple[Program, Program], sentinels: Sentinels
) -> None:
    former, now = two
    client = by_sentinel(1)
    assert client.set("who", "former")
    sentinels.master = now
    former.kill()
    with pytest.raises(redis.exceptions.ConnectionError):
        client.get("who")
    assert client.set("who", "now")
    with now.client() as other:
        assert other.get("who") == b"now"
    client.connection_pool.disconnect()


def test_a_connection_to_who_is_the_master_no_more_is_left_although_it_is_busy(
    clock: Clock, two: tuple[Program, Program], sentinels: Sentinels
) -> None:
    """Each of its uses is a moment after the last, and the former master goes on answering."""
    former, now = two
    client = by_sentinel(2)
    pool = client.connection_pool
    busy, other = pool.get_connection(), pool.get_connection()
    sentinels.master = now
    other.disconnect()
    pool.release(other)
    assert pool.get_connection() is other  # connects again, and so hears of it
    assert (busy.port, other.port) == (former.port, now.port)
    pool.release(busy)
    held = pool.get_connection(), other
    assert [each.port for each in held] == [now.port, now.port]
    assert not busy.is_connected
    pool.timeout = 0
    with pytest.raises(redis.exceptions.ConnectionError, match="No connection available"):
        pool.get_connection()  # it took the other's place, and no further one
    pool.disconnect()


def test_whoever_ends_the_pool_comes_back_to_who_is_the_master_then(
    clock: Clock, two: tuple[Program, Program], sentinels: Sentinels
) -> None:
    client = by_sentinel(1)
    assert client.set("who", "former")
    client.connection_pool.disconnect()
    sentinels.master = two[1]
    assert client.get("who") is None
    client.connection_pool.disconnect()
