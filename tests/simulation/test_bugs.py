"""A simulation that finds nothing may be blind. Here the product gets a bug, and a few seeds must see it. What
chance meets too seldom is staged for the checker, in `tests/checker/test_seeded_bugs.py`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator.domain.rollout import Rollout
from tests.simulation.simulation import Failed, simulate
from tests.support import bugs
from tests.support.bugs import Bug

SEEDS = 300  # at most: the first of them that sees it ends the search

# Bug -> the invariants that it may break first.
BUGS: dict[Bug, tuple[str, ...]] = {
    bugs.random_token: ("I4", "I6"),
    bugs.no_intent: ("I6",),
    bugs.counted_fence: ("I8",),
    bugs.counted_version: ("I3",),
    bugs.commit_without_owner: ("I3", "I4", "I6", "unexpected"),
    bugs.last_smoke_test_wins: ("I2",),
    bugs.in_before_tested: ("I2",),
    bugs.undo_of_finished_steps_only: ("I4",),
    bugs.out_before_in: ("I1", "I7"),
    bugs.stopped_before_it_has_left: ("I7",),
    bugs.no_soak: ("I7",),
    bugs.begins_while_paused: ("pause", "freeze"),
    bugs.nobody_sends_again: ("liveness",),
}


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_bug_is_seen(bug: Bug) -> None:
    assert any(why.startswith(BUGS[bug]) for why in seen(bug)), f"{SEEDS} seeds have not seen it"


def seen(bug: Bug) -> Iterator[str]:
    """What the seeds say of it, one after another."""
    for seed in range(SEEDS):
        with pytest.MonkeyPatch.context() as patch:
            bug(patch)
            try:
                simulate(seed)
            except Failed as failed:
                yield str(failed.why)


def test_a_rollout_is_kept_apart_from_the_bugs() -> None:
    """Afterwards the product is as it was."""
    assert isinstance(simulate(1).rollout, Rollout)
