"""Looks of many threads at the same moment are one call; what they hear is what they asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from providers.clients import rounds
from providers.compute import Image, Server, Size
from providers.errors import Busy, Throttled
from tasks.gathering import Crowd, Gathering, SharedTurn
from tasks.world import World
from tests.support.runner import running

SIZE = Size(memory=1, disk=1)


class Cloud:
    """Knows three servers and an image; counts what it is asked."""

    caps = SimpleNamespace(batch=100)

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.error: Exception | None = None
        self.things = [
            *(
                Server(id=f"i-{n}", name=f"co-{n}", state="running", address="", size=SIZE, tags={"r": "1", "s": n})
                for n in "abc"
            ),
            Image(id="m-a", name="co-m", state="available", disk=1, tags={"r": "1", "s": "a"}),
        ]

    def servers(self, ids: Sequence[str]) -> Mapping[str, Server]:
        self.asked.append(sorted(ids))
        if self.error is not None:
            raise self.error
        return {thing.id: thing for thing in self.things if isinstance(thing, Server) and thing.id in ids}

    def inventory(self, tags: Mapping[str, str]) -> Sequence[Server | Image]:
        self.asked.append(dict(tags))
        return [thing for thing in self.things if tags.items() <= thing.tags.items()]


def together(count: int, ask: Any) -> list[Any]:
    """What `count` threads hear that ask at the same moment."""
    start = threading.Barrier(count)

    def one(number: int) -> Any:
        start.wait(30)
        return ask(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def gathering(cloud: Any, *, window: float = 0.5) -> Gathering:
    return Gathering(cloud, window=window)


def test_looks_of_one_moment_are_one_call_and_each_hears_of_its_own() -> None:
    cloud = Cloud()
    both = gathering(cloud)
    names = ["i-a", "i-b", "i-gone", "i-a"]
    heard = together(4, lambda number: both.servers([names[number]]))
    assert [sorted(answer) for answer in heard] == [["i-a"], ["i-b"], [], ["i-a"]]
    assert cloud.asked == [["i-a", "i-a", "i-b", "i-gone"]]


def test_what_carries_tags_is_asked_for_by_those_that_all_ask_for() -> None:
    cloud = Cloud()
    both = gathering(cloud)
    heard = together(2, lambda number: [thing.id for thing in both.inventory({"r": "1", "s": "ab"[number]})])
    assert heard == [["i-a", "m-a"], ["i-b"]]
    assert cloud.asked == [{"r": "1"}]


def test_one_that_asks_alone_asks_as_it_would_have() -> None:
    cloud = Cloud()
    alone = gathering(cloud, window=0.0)
    assert [thing.id for thing in alone.inventory({"r": "1", "s": "c"})] == ["i-c"]
    assert list(alone.servers(["i-a"])) == ["i-a"]
    assert list(alone.servers(["i-a", "i-b"])) == ["i-a", "i-b"]
    assert cloud.asked == [{"r": "1", "s": "c"}, ["i-a"], ["i-a", "i-b"]]


def test_an_error_is_heard_by_all_who_asked_and_by_nobody_later() -> None:
    cloud = Cloud()
    both = gathering(cloud)
    cloud.error = Throttled("slower", retry_after=1.0)

    def ask(_number: int) -> str:
        with pytest.raises(Throttled) as caught:
            both.servers(["i-a"])
        return str(caught.value)

    assert together(3, ask) == ["slower"] * 3
    cloud.error = None
    assert list(both.servers(["i-b"])) == ["i-b"]


def test_no_call_asks_for_more_than_the_provider_takes() -> None:
    cloud = Cloud()
    cloud.caps = SimpleNamespace(batch=2)
    both = gathering(cloud)
    together(5, lambda number: both.servers([f"i-{number}"]))
    assert sorted(len(ids) for ids in cloud.asked) == [1, 2, 2]


def test_the_answer_is_younger_than_the_question() -> None:
    """Who asks while a call is under way is not answered by that."""
    cloud = Cloud()
    both = gathering(cloud, window=0.0)
    under_way, go_on = threading.Event(), threading.Event()
    honest = cloud.servers

    def slow(ids: Sequence[str]) -> Mapping[str, Server]:
        found = honest(ids)
        under_way.set()
        go_on.wait(30)
        return found

    both._servers._put = slow
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(both.servers, ["i-a"])
        assert under_way.wait(30)
        both._servers._put = honest
        assert list(both.servers(["i-a"])) == ["i-a"]
        go_on.set()
        assert list(first.result(30)) == ["i-a"]
    assert cloud.asked == [["i-a"], ["i-a"]]


def test_who_must_look_at_one_server_alone_asks_the_provider_itself() -> None:
    """Of one among others a provider may not tell whether it is protected."""
    with running(["web-1"]) as r:
        alone = World(store=r.store, publish=lambda _messages: None, worker="w", find=r.world.find)
        assert alone.looks(r.fleet) is alone.compute(r.fleet)
        many = World(store=r.store, publish=lambda _messages: None, worker="w", find=r.world.find, gather=0.01)
        assert many.compute(r.fleet) is not many.looks(r.fleet)
        assert not isinstance(many.compute(r.fleet), Gathering)
        assert many.looks(r.fleet) is many.looks(r.fleet)


def test_a_thread_that_is_ended_while_it_gathers_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    cloud = Cloud()
    both = gathering(cloud)

    def ended(_seconds: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tasks.gathering.time.sleep", ended)
        with pytest.raises(KeyboardInterrupt):
            both.servers(["i-a"])
    monkeypatch.setattr("tasks.gathering.LONGEST", 1.0)
    assert list(both.servers(["i-b"])) == ["i-b"]


def test_those_who_have_no_tag_in_common_do_not_ask_for_the_whole_account() -> None:
    cloud = Cloud()
    both = gathering(cloud)
    asked = [{"r": "1", "s": "a"}, {"t": "2", "s": "x"}, {"r": "1", "s": "b"}, {"s": "a"}]
    heard = together(4, lambda number: sorted(thing.id for thing in both.inventory(asked[number])))
    assert heard == [["i-a", "m-a"], [], ["i-b"], ["i-a", "m-a"]]
    assert {} not in cloud.asked


def test_who_comes_to_a_provider_within_a_moment_is_one_call_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[set[int]] = []

    def ask(numbers: Collection[int]) -> dict[int, int]:
        asked.append(set(numbers))
        return {number: -number for number in numbers}

    monkeypatch.setattr(rounds._Process, "crowd", SimpleNamespace(busy=8, coming=1, patience=30.0, threads=8))
    questions: rounds.Rounds[int, int] = rounds.Rounds(ask)
    assert together(8, lambda number: questions([number])) == [{number: -number} for number in range(8)]
    assert asked == [set(range(8))]


@pytest.mark.parametrize("coming", [0, 1], ids=["since all others are in calls", "who may come and do not"])
def test_those_who_do_not_come_are_not_waited_for_long(monkeypatch: pytest.MonkeyPatch, coming: int) -> None:
    crowd = SimpleNamespace(busy=8, coming=coming, patience=0.1 if coming else 60.0, threads=9)
    monkeypatch.setattr(rounds._Process, "crowd", crowd)
    monkeypatch.setattr(rounds, "PAUSE", 0.01)
    questions: rounds.Rounds[int, int] = rounds.Rounds(lambda numbers: dict.fromkeys(numbers, 1))
    assert questions([1]) == {1: 1}


def test_nobody_is_waited_for_once_every_thread_is_in_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds._Process, "crowd", SimpleNamespace(busy=8, coming=0, patience=600.0, threads=8))
    began = time.monotonic()
    questions: rounds.Rounds[int, int] = rounds.Rounds(lambda numbers: dict.fromkeys(numbers, 1), pause=600.0)
    assert questions([1]) == {1: 1}
    assert time.monotonic() - began < 300


def test_one_who_is_at_work_counts_as_coming_but_for_its_calls() -> None:
    crowd = Crowd()
    with crowd.working():
        with crowd.working(), crowd.asking():
            assert (crowd.busy, crowd.coming) == (2, 1)
        assert (crowd.busy, crowd.coming) == (1, 1)
    assert (crowd.busy, crowd.coming) == (0, 0)


def test_a_turn_that_several_have_is_taken_once_and_given_back_by_the_last() -> None:
    turn, taken, given = SharedTurn(open=60.0), list[str](), list[str]()
    for owner in ("one", "two", "three"):
        assert turn.join(7, partial(taken.append, owner), owner=owner, patience=0.0)
    assert taken == ["one"]
    assert not turn.join(8, lambda: None, owner="another provider", patience=0.01)
    for _ in range(3):
        assert given == []
        turn.leave(given.append)
    assert given == ["one"]
    assert turn.join(8, lambda: None, owner="another provider", patience=0.0)


def test_a_turn_that_is_no_longer_young_is_joined_by_nobody() -> None:
    turn, order = SharedTurn(open=0.0), list[str]()
    assert turn.join(7, lambda: None, owner="one", patience=0.0)

    def comes() -> None:
        assert turn.join(7, lambda: order.append("taken"), owner="two", patience=30.0)

    thread = threading.Thread(target=comes)
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    order.append("left")
    turn.leave(lambda first: order.append(f"{first} gives"))
    thread.join(30)
    assert order == ["left", "one gives", "taken"]


def test_a_turn_that_could_not_be_taken_is_free_for_the_next() -> None:
    turn = SharedTurn(open=60.0)

    def refused() -> None:
        raise Busy("another worker has it")

    with pytest.raises(Busy):
        turn.join(7, refused, owner="one", patience=0.0)
    assert turn.join(7, lambda: None, owner="two", patience=0.0)
