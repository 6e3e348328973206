"""The checker notices what it is there for: each bug, put in by a patch, shows in the evidence of a simulated rollout.

The simulation's own invariants are not asked. Where a second line of the product would put right what the bug spoils
(patrol, orphan finder, mender), that line is off, in the run with the bug and in the one without it alike.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import structlog

from tasks import orphans
from tests.checker.check import check
from tests.checker.evidence import Violation
from tests.simulation.invariants import Invariants
from tests.simulation.simulation import Failed, simulate
from tests.support import bugs, evidence
from tests.support.bugs import Bug
from tests.support.evidence import Recorder
from tests.support.outcome import SERVER, SHORT, settle
from tests.support.runner import Runner, running

TRIES = 12  # seeds in a row that are played at most, until one shows the bug


@dataclass(frozen=True, kw_only=True)
class Seeded:
    """A bug, the promise that it breaks among others, and the seed with which the search begins. `net`: whether the
    second lines are on."""

    bug: Bug
    breaks: str
    seed: int = 1
    net: bool = True


SEEDED = (
    Seeded(bug=bugs.random_token, breaks="I6"),
    Seeded(bug=bugs.no_intent, breaks="I6"),
    Seeded(bug=bugs.counted_fence, breaks="I8", seed=37),
    Seeded(bug=bugs.commit_without_owner, breaks="I6", seed=8),
    Seeded(bug=bugs.early_acknowledgement, breaks="I3", seed=6, net=False),
    Seeded(bug=bugs.last_smoke_test_wins, breaks="I2"),
    Seeded(bug=bugs.undo_of_finished_steps_only, breaks="I4", seed=10, net=False),
    Seeded(bug=bugs.remembered_only, breaks="I4", seed=10, net=False),
    Seeded(bug=bugs.out_before_in, breaks="I7"),
    Seeded(bug=bugs.in_before_tested, breaks="I2"),
    Seeded(bug=bugs.no_soak, breaks="I7", seed=2),
    Seeded(bug=bugs.no_retention, breaks="I7"),
    Seeded(bug=bugs.begins_while_paused, breaks="I6", seed=8),
    Seeded(bug=bugs.unwritten_turn, breaks="I6", seed=5),
)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


def judged(folder: Path, seed: int, *patches: Bug) -> list[Violation]:
    """What the checker finds in that rollout, played to its end whatever becomes of it."""
    with pytest.MonkeyPatch.context() as patch:
        for each in patches:
            each(patch)
        patch.setattr(Invariants, "must", _counted)
        try:
            simulate(seed, evidence=folder)
        except Failed as failed:  # a bug may bring it to a stand
            return [Violation(id="end", where=f"seed {seed}", says=str(failed.why))]
    return check(folder)


def _counted(invariants: Invariants, _holds: bool, _invariant: str, _why: str) -> None:
    invariants.count += 1


def first_shown(folder: Path, seeded: Seeded, tries: int = TRIES) -> int | None:
    """The seed whose rollout breaks that promise with the bug, and none at all without it."""
    net = () if seeded.net else (bugs.no_net,)
    for seed in range(seeded.seed, seeded.seed + tries):
        found = judged(folder / f"{seed}", seed, seeded.bug, *net)
        if seeded.breaks in {violation.id for violation in found} and not judged(
            folder / f"{seed}-control", seed, *net
        ):
            return seed
    return None


@pytest.mark.parametrize("seeded", SEEDED, ids=lambda seeded: seeded.bug.__name__)
def test_a_bug_is_noticed_and_its_absence_too(seeded: Seeded, tmp_path: Path) -> None:
    assert first_shown(tmp_path, seeded) is not None, f"nothing has shown in {TRIES} seeds from {seeded.seed} on"


# -- two that chance seldom meets: put before the product on purpose ---------------------------------------------------


def _b_dies_before_a_leaves(r: Runner, recorder: Recorder) -> None:
    r.until(lambda: r.upgrade(SERVER).step == "drain_old")
    b = r.upgrade(SERVER).results["provision"]["server"]
    r.cloud.things[b].view = replace(r.cloud.things[b].view, state="terminated")
    recorder.incident("lost", id=b)


def _a_look_while_an_image_is_made(r: Runner, _recorder: Recorder) -> None:
    r.until(lambda: bool(r.alive("image")))
    orphans.scan(r.world, lane=r.fleet.lane)


POLICY = {
    "waves": [1, "rest"],
    "bake": "1h",
    "soak": "1s",
    "poll": "1s",
    "deadlines": SHORT,
    "drain": {"deadline": "30s", "quiet": "1s"},
}
STAGED = (
    (bugs.no_guard, "I7", _b_dies_before_a_leaves),
    (bugs.no_quarantine, "I4", _a_look_while_an_image_is_made),
)


@pytest.mark.parametrize(("bug", "breaks", "act"), STAGED, ids=lambda each: getattr(each, "__name__", each))
def test_a_bug_is_noticed_where_it_matters(
    bug: Bug, breaks: str, act: Callable[[Runner, Recorder], None], tmp_path: Path
) -> None:
    def staged(folder: Path, *patches: Bug) -> set[str]:
        names, retain = [SERVER, "web-2"], {"old_servers": "60s"}
        with pytest.MonkeyPatch.context() as patch, running(names, retain=retain, rollout=POLICY) as r:
            recorder = evidence.watch(r)
            for each in patches:
                each(patch)
            act(r, recorder)
            with suppress(AssertionError):  # a bug may bring it to a stand
                settle(r)
            recorder.incident("given up")  # the other one stays as it is
            return {v.id for v in check(evidence.write(folder, recorder, r.store, rollout=r.rollout, fleet=r.fleet))}

    assert breaks in staged(tmp_path / "bug", bug)
    assert not staged(tmp_path / "control")
