"""Programs that check deploy/, from the environment that `make validators` makes: too heavy for the tests' own."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / ".validators" / "bin"


def validator(name: str) -> Path:
    """Skips the test where it is not installed."""
    program = FOLDER / name
    if not program.exists():
        pytest.skip(f"needs {name}: make validators")
    return program
