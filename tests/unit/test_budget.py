"""A budget of calls: what may be made at once, what is waited for, and how it learns."""

from __future__ import annotations

import random

import pytest

from orchestrator.domain.budget import LEAST, RECOVERY, Bucket, Limit, fresh

LIMIT = Limit(rate=10.0, burst=5.0)


def spent(bucket: Bucket, now: float, *, patience: float = 60.0) -> tuple[Bucket, float]:
    return bucket.spend(LIMIT, now, patience=patience)


def test_a_burst_is_free_and_then_each_waits_for_its_own_turn() -> None:
    bucket, waits = fresh(LIMIT, 0.0), []
    for _ in range(8):
        bucket, wait = spent(bucket, 0.0)
        waits.append(wait)
    assert waits == pytest.approx([0, 0, 0, 0, 0, 0.1, 0.2, 0.3])


def test_who_would_wait_for_too_long_takes_no_turn() -> None:
    bucket, _ = spent(Bucket(rate=10.0, tokens=-20.0, at=0.0), 0.0, patience=1.0)
    assert bucket.tokens == -20.0


def test_a_refusal_halves_the_rate_once_for_all_that_were_under_way() -> None:
    bucket = fresh(LIMIT, 100.0)
    for late in (0.0, 0.2, 0.9):
        bucket = bucket.slowed(LIMIT, 100.0 + late)
    assert bucket.rate == pytest.approx(5.0, rel=0.05)
    assert (bucket.refused, bucket.tokens) == (3, 0.0)
    assert bucket.slowed(LIMIT, 102.0).rate == pytest.approx(2.6, rel=0.05)


def test_refusals_without_a_pause_make_it_slower_each_second() -> None:
    bucket = fresh(LIMIT, 0.0)
    for tenth in range(100):
        bucket = bucket.slowed(LIMIT, 10.0 + tenth / 10)
    assert bucket.rate <= 2 * LIMIT.rate * LEAST


def test_it_never_stops_and_comes_back_within_two_minutes() -> None:
    bucket = fresh(LIMIT, 0.0)
    for second in range(100):
        bucket = bucket.slowed(LIMIT, second + 10.0)
    assert bucket.rate >= LIMIT.rate * LEAST
    assert bucket.until(LIMIT, 200.0 + RECOVERY).rate == LIMIT.rate


@pytest.mark.parametrize("seed", range(20))
def test_no_more_calls_are_made_than_burst_and_rate_allow(seed: int) -> None:
    chance = random.Random(seed)
    bucket, now, made = fresh(LIMIT, 0.0), 0.0, []
    for _ in range(500):
        now += chance.expovariate(20)
        bucket, wait = spent(bucket, now, patience=0.5)
        if wait <= 0.5:
            made.append(now + wait)
    made.sort()
    for first in range(0, len(made), 7):
        for last in range(first, len(made), 11):
            assert last - first + 1 <= LIMIT.burst + LIMIT.rate * (made[last] - made[first]) + 1


def test_a_clock_that_goes_back_gives_no_turns() -> None:
    bucket, _ = spent(fresh(LIMIT, 100.0), 100.0)
    earlier = bucket.until(LIMIT, 50.0)
    assert earlier.tokens == bucket.tokens


def test_a_clock_that_goes_back_for_an_hour_holds_nothing_up_for_an_hour() -> None:
    bucket = fresh(LIMIT, 10_000.0)
    for _ in range(5):
        bucket, _ = spent(bucket, 10_000.0)
    bucket = bucket.slowed(LIMIT, 10_000.0)
    waits = []
    for second in range(20):
        bucket, wait = spent(bucket, 6_400.0 + second, patience=2.0)
        waits.append(wait)
    assert max(waits) < 2.0
    assert bucket.slowed(LIMIT, 6_420.0).rate < bucket.rate, "what is refused then is not slower"
