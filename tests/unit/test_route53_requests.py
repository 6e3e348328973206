"""How many requests go to Route 53, whose five a second are all that an account has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from providers.clients import route53
from providers.clients.rounds import Rounds
from providers.clients.route53 import HostedZone, Pace
from providers.errors import NotFound, Throttled


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Account:
    """Answers GetChange: PENDING, but for those in `synced`. `throttles` the next so many."""

    lane = "default/us-east-1"

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.synced: set[str] = set()
        self.unknown: set[str] = set()
        self.throttles = 0

    def read(self, _service: str, _operation: str, *, Id: str) -> dict[str, Any]:
        self.asked.append(Id)
        if self.throttles:
            self.throttles -= 1
            raise Throttled("Rate exceeded")
        if Id in self.unknown:
            raise NotFound(Id)
        return {"ChangeInfo": {"Status": "INSYNC" if Id in self.synced else "PENDING"}}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Sleeping lets its time go by."""
    made = Clock()

    def sleep(seconds: float) -> None:
        made.now += seconds

    monkeypatch.setattr(route53, "time", SimpleNamespace(monotonic=made, sleep=sleep))
    return made


def zone(account: Account, clock: Clock) -> HostedZone:
    made: Any = account
    return HostedZone(made, name="shop.test.", id="", pace=Pace(1000.0, clock))


def test_a_pace_lets_five_go_at_once_and_then_five_a_second() -> None:
    clock = Clock()
    pace = Pace(5.0, clock)
    assert [pace.turn() for _ in range(5)] == [0.0] * 5
    assert [round(pace.turn(), 3) for _ in range(3)] == [0.2, 0.4, 0.6]
    pace.left()
    assert round(pace.turn(), 3) == 0.6, "whose turn was not taken is another's"


def test_a_pace_is_halved_by_a_refusal_and_recovers() -> None:
    clock = Clock()
    pace = Pace(4.0, clock)
    assert [round(pace.refused(), 3) for _ in range(6)] == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]
    clock.now += 20
    assert round(pace.refused(), 3) == 0.5, "all of it has come back"


def test_many_changes_that_are_waited_for_are_asked_about_slowly(clock: Clock) -> None:
    account = Account()
    hosted = zone(account, clock)
    ids = [f"C{number}" for number in range(20)]
    for _ in range(600):  # a minute
        assert not any(hosted.in_sync(id) for id in ids)
        clock.now += 0.1
    assert len(account.asked) <= 60 * 3 + len(ids)
    assert min(account.asked.count(id) for id in ids) > 3, "none is forgotten"
    account.synced = set(ids)
    clock.now += 10
    assert all(hosted.in_sync(id) for id in ids)
    before = len(account.asked)
    assert all(hosted.in_sync(id) for id in ids)
    assert len(account.asked) == before, "what every server has, it has for good"


def test_one_change_is_asked_about_at_once_again(clock: Clock) -> None:
    account = Account()
    hosted = zone(account, clock)
    assert not hosted.in_sync("C1")
    account.synced = {"C1"}
    assert not hosted.in_sync("C1")
    clock.now += 2 * route53.PENDING_SECONDS
    assert hosted.in_sync("C1")


def test_a_change_that_is_not_known_any_more_was_made_long_ago(clock: Clock) -> None:
    account = Account()
    account.unknown = {"C1"}
    assert zone(account, clock).in_sync("C1")


def test_a_refusal_is_waited_out_and_said_after_a_while(clock: Clock) -> None:
    account = Account()
    hosted = zone(account, clock)
    account.throttles = 3
    began = clock.now
    hosted.in_sync("C1")
    assert len(account.asked) == 4
    account.throttles = 10**6
    clock.now += 60
    began = clock.now
    with pytest.raises(Throttled):
        hosted.in_sync("C2")
    assert clock.now - began <= route53.PATIENCE


def test_questions_of_one_moment_are_one() -> None:
    asked: list[set[str]] = []

    def ask(names: Any) -> dict[str, int]:
        asked.append(set(names))
        return {name: len(name) for name in names}

    rounds = Rounds(ask)
    assert rounds(["a", "bb"]) == {"a": 1, "bb": 2}
    assert asked == [{"a", "bb"}]


def test_a_question_that_failed_has_failed_for_all_who_asked_it() -> None:
    def ask(_names: Any) -> dict[str, int]:
        raise NotFound("no")

    with pytest.raises(NotFound):
        Rounds(ask)(["a"])
