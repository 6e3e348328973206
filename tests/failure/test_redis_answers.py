"""Answers of Redis that come too late are nobody's, and a master that hangs is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
import redis

from orchestrator.addresses import parse
from orchestrator.store.connecting import connect
from tests.support.redis_servers import Place, redis_place, sentinel_url

pytestmark = [pytest.mark.debian, pytest.mark.timeout(300)]  # a busy machine takes its time
NAMES = [f"name-{number}" for number in range(100)]
ASK: dict[str, Callable[[Any, str], bytes]] = {
    "alone": lambda client, name: client.get(name),
    "with others": lambda client, name: client.ask_all([("GET", name), ("GET", "other")])[0],
}


@pytest.fixture
def place() -> Iterator[Place]:
    with redis_place() as made:
        yield made


def answered(ask: Callable[[], Any]) -> Any:
    """What it hears at last. Nothing is answered at first, and each time somebody waits as long as he does."""
    end = time.monotonic() + 60
    while True:
        try:
            return ask()
        except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):
            assert time.monotonic() < end


@pytest.mark.parametrize("how", list(ASK))
@pytest.mark.parametrize("behind", ["itself", "a sentinel"])
def test_nobody_hears_what_another_one_has_asked(place: Place, behind: str, how: str) -> None:
    server = place.server()
    url = server.url
    if behind == "a sentinel":
        place.server(of=server)
        url = sentinel_url(place.sentinels(server, patience=30_000))
    with server.client() as other, closing(connect(parse(url), connections=1, answer=0.3)) as client:
        other.mset({name: name for name in NAMES})
        assert ASK[how](client, NAMES[0]) == NAMES[0].encode()
        other.execute_command("CLIENT PAUSE", 800, "ALL")
        with pytest.raises(redis.exceptions.TimeoutError):
            ASK[how](client, NAMES[0])
        names = iter(NAMES[1:])
        asked = ""

        def next_one() -> bytes:
            nonlocal asked
            asked = next(names)
            return ASK[how](client, asked)

        assert answered(next_one).decode() == asked


def test_a_master_that_hangs_is_left_when_the_sentinels_name_another(place: Place) -> None:
    master = place.server()
    replica = place.server(of=master)
    url = sentinel_url(place.sentinels(master))
    with closing(connect(parse(url), connections=1, answer=0.5)) as client:
        client.set("name", "before")
        with master.frozen():
            assert answered(lambda: client.set("name", "after"))
            with replica.client() as other:
                assert other.get("name") == b"after"
