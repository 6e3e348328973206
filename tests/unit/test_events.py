"""What Flower is told: gathered for a moment, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from workers import intake


class Loop:
    """Celery's loop, whose time comes when the test says so."""

    def __init__(self) -> None:
        self.later: list[tuple[float, Callable[[], None]]] = []

    def call_soon(self, what: Callable[..., None], *arguments: Any) -> None:
        what(*arguments)

    def call_later(self, seconds: float, what: Callable[[], None]) -> None:
        self.later.append((seconds, what))

    def pass_the_time(self) -> None:
        due, self.later = self.later, []
        for _, what in due:
            what()


class Dispatcher:
    """Celery's sender of events, as far as the consumer knows it."""

    def __init__(self) -> None:
        self.waiting = 0
        self.sent: list[int] = []

    def flush(self) -> None:
        if self.waiting:
            self.sent.append(self.waiting)
        self.waiting = 0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(intake.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def consumer(clock: list[float]) -> Any:
    made: Any = intake.Intake.__new__(intake.Intake)
    made.hub, made.event_dispatcher = Loop(), Dispatcher()
    return made


def happens(consumer: Any) -> None:
    consumer.event_dispatcher.waiting += 1
    consumer.on_send_event_buffered()


def test_events_of_one_moment_are_sent_together(consumer: Any, clock: list[float]) -> None:
    for _ in range(5):
        happens(consumer)
        clock[0] += intake.GATHER / 10
    assert len(consumer.hub.later) == 1
    consumer.hub.pass_the_time()
    assert consumer.event_dispatcher.sent == [5]


def test_events_go_on_after_the_loop_has_lost_its_timers(consumer: Any, clock: list[float]) -> None:
    happens(consumer)
    consumer.hub.later.clear()  # as Celery does when it loses the broker
    clock[0] += intake.GATHER
    happens(consumer)
    consumer.hub.pass_the_time()
    assert consumer.event_dispatcher.sent == [2]


def test_a_worker_that_ends_sends_what_it_has_gathered(consumer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[list[int]] = []
    monkeypatch.setattr(intake.Consumer, "shutdown", lambda self: ended.append(list(self.event_dispatcher.sent)))
    happens(consumer)
    consumer.shutdown()
    assert ended == [[1]]
