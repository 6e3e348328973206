"""What is promised is held by tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_promise_names_tests_that_exist() -> None:
    page = (ROOT / "docs" / "guarantees.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("|")][2:]
    told = {row: re.findall(r"`(test_\w+)`", row) for row in rows}
    assert all(told.values()), [row for row, tests in told.items() if not tests]
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    there = set(re.findall(r"^(?:def )?(test_\w+)(?:\(| = )", sources, re.MULTILINE))
    assert sorted({name for names in told.values() for name in names} - there) == []
