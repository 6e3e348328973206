"""The checker agrees with what the product did: over a sample of simulated rollouts, and over a few plain ones.

What the simulation's own invariants say of the same is a first opinion: nothing but the evidence is shared."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import structlog

from providers.compute.fake import Fault
from tests.checker.check import check
from tests.checker.evidence import Violation
from tests.simulation.simulation import Failed, simulate
from tests.support import evidence
from tests.support.outcome import turn_back
from tests.support.runner import Crashed, Runner, running

NAMES = ["web-1", "web-2", "web-3"]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


def violations(folder: Path, act: Callable[[Runner], None], **changes: Any) -> list[Violation]:
    with running(NAMES, retain={"old_servers": "60s"}, **changes) as r:
        recorder = evidence.watch(r)
        act(r)
        r.until(lambda: r.record().closed)
        return check(evidence.write(folder, recorder, r.store, rollout=r.rollout, fleet=r.fleet))


def test_a_clean_rollout_has_no_violation(tmp_path: Path) -> None:
    assert violations(tmp_path, lambda _r: None) == []


def test_one_that_is_turned_back_has_none(tmp_path: Path) -> None:
    def act(r: Runner) -> None:
        r.until(lambda: r.upgrade("web-2").state == "upgraded")
        turn_back(r, server="web-2")

    assert violations(tmp_path, act) == []


@pytest.mark.parametrize("every", [7, 11, 17, 29])
def test_one_whose_workers_die_has_none(every: int, tmp_path: Path) -> None:
    def act(r: Runner) -> None:
        # Not as far apart each time: else it might be the same point of the same step for ever. And now and then there
        # are as many points in a row as the longest step has.
        deaths = itertools.accumulate(itertools.cycle((every, every + 1, 3 * every)))
        points, next_death = itertools.count(1), next(deaths)

        def crash(_point: str) -> None:
            nonlocal next_death
            if next(points) >= next_death:
                next_death = next(deaths)
                raise Crashed

        r.crash = crash

    assert violations(tmp_path, act) == []


@pytest.mark.parametrize("every", [3, 5, 8])
def test_one_whose_answers_are_lost_has_none(every: int, tmp_path: Path) -> None:
    def act(r: Runner) -> None:
        # By turns one call more apart: else it might be the last call of the same step each time, for ever.
        lost = itertools.accumulate(itertools.cycle((every, every + 1)))
        calls, next_lost = itertools.count(1), next(lost)

        def fault(_name: str) -> Fault:
            nonlocal next_lost
            if next(calls) < next_lost:
                return ""
            next_lost = next(lost)
            return "after"

        r.cloud.fault = fault

    assert violations(tmp_path, act) == []


@pytest.mark.parametrize("first", range(7, 1000, 200))
def test_simulated_rollouts_have_none(first: int, tmp_path: Path) -> None:
    """One in twenty of those that every run of the tests plays, whatever goes wrong in them."""
    for seed in range(first, first + 200, 20):
        with suppress(Failed):  # the first opinion, which the simulation's own tests tell
            simulate(seed, evidence=tmp_path / str(seed))
            found = check(tmp_path / str(seed))
            assert not found, f"python -m tests.simulation {seed}: {found[0]}"
