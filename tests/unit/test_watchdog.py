"""A worker that could work and does not ends; one that has nothing to do, or cannot ask, lives."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field

from workers.watchdog import STALLED, Watchdog


@dataclass
class Worker:
    now: float = 0.0
    waiting: int = 0
    away: bool = False
    ended: list[object] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dog = Watchdog(
            waiting=self.count,
            release=lambda: self.ended.append("released"),
            patience=60.0,
            monotonic=lambda: self.now,
            exit=self.ended.append,
        )

    def count(self) -> int:
        if self.away:
            raise ConnectionError("away")
        return self.waiting

    def live(self, seconds: float, *, taking: bool = False) -> None:
        for _ in range(int(seconds / 5)):
            self.now += 5.0
            if taking:
                self.dog.started()
            self.dog.look()


def test_messages_that_wait_and_are_not_taken_end_it_with_its_leases_given_back() -> None:
    worker = Worker(waiting=1)
    worker.live(55)
    assert not worker.ended
    worker.live(5)
    assert worker.ended == ["released", STALLED]


def test_nothing_to_do_is_no_stall() -> None:
    worker = Worker()
    worker.live(600)
    worker.waiting = 1
    worker.live(55)
    assert not worker.ended


def test_a_backlog_that_is_worked_off_is_no_stall() -> None:
    worker = Worker(waiting=1000)
    worker.live(600, taking=True)
    assert not worker.ended


def test_a_broker_that_is_away_is_no_stall_and_one_that_is_back_gives_it_time() -> None:
    worker = Worker(waiting=1)
    worker.live(50)
    worker.away = True
    worker.live(600)
    worker.away = False
    worker.live(55)
    assert not worker.ended
    worker.live(5)
    assert worker.ended


def test_leases_that_cannot_be_given_back_do_not_keep_it() -> None:
    ended: list[int] = []

    def fails() -> None:
        raise ConnectionError

    dog = Watchdog(waiting=lambda: 1, release=fails, patience=0.0, monotonic=lambda: 9.0, exit=ended.append)
    with suppress(ConnectionError):
        dog.look()
    assert ended == [STALLED]
