"""The benchmark measures all its candidates, and says what it found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.timeout(300)
def test_a_quick_run_measures_every_candidate_and_says_what_was_reached() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--servers", "8"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    ours = ("Changeover ", "Changeover, 2 workers")
    for candidate in (*ours, "Celery chain, six empty tasks", "Celery chain, self.retry", "plain asyncio"):
        assert any(row.startswith(f"| {candidate}") for row in rows), done.stdout
    assert "8 servers: the limit is 3 s" in done.stdout
    assert "reached: messages held while everything waits: none: 0" in done.stdout
    assert "reached: worker slots held while everything waits: none: 0" in done.stdout
