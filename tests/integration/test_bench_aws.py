"""The benchmark of what a rollout asks of AWS counts at the simulated cloud, and finds nothing left over there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.aws import POLL, crowded
from tasks.step import next_look

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.timeout(900)
def test_a_small_rollout_with_a_tenth_of_all_answers_faulty_ends_and_leaves_nothing_over() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.aws", "--servers", "3", "--accounts", "2", "--poll", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=880,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "3 servers in 2 accounts, 10% of all answers faulty" in done.stdout
    assert "3 upgraded (succeeded)" in done.stdout
    assert "left over at AWS: nothing" in done.stdout
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("| ")]
    for call in ("ec2:RunInstances", "ec2:CreateImage", "elbv2:RegisterTargets", "elbv2:DeregisterTargets", "all"):
        assert call in rows, done.stdout


def look(at: float, waiting: int, lane: str = "a", *, answered: bool = True) -> dict[str, object]:
    """So many seconds after an interval has begun in that lane."""
    told = {"at": next_look(lane, POLL, 1000.0) + at, "lane": lane, "kind": "image", "waiting": waiting}
    return {**told, "answered": answered}


@pytest.mark.parametrize(
    ("looks", "early", "again"),
    [
        ([look(0, 100), look(POLL, 100)], 0, 0),
        ([look(0, 100), look(1, 100), look(POLL, 100)], 0, 0),  # two hundred wait
        ([look(0, 50), look(1, 50)], 1, 0),
        ([look(0, 50, answered=False), look(1, 50)], 0, 1),
        ([look(0, 50, answered=False), look(1, 25), look(1, 25)], 1, 1),
        ([look(1, 50), look(POLL, 50)], 0, 0),  # one late, and the next in time
        ([look(0, 50), look(1, 50, "b")], 0, 0),
    ],
)
def test_a_look_is_too_many_if_one_of_a_hundred_was_enough(
    looks: list[dict[str, object]], early: int, again: int
) -> None:
    assert crowded(looks, POLL)[:2] == (early, again)
