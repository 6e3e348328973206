"""What the documentation names is there, and what a user can set or call is in the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orchestrator.cli import LATE, PANELS
from orchestrator.domain.steps import STEPS
from orchestrator.domain.upgrade import TERMINAL
from orchestrator.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
OPERATING = (ROOT / "docs" / "operating.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_leads_there(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_setting_is_in_the_manual() -> None:
    names = {f"CHANGEOVER_{name.upper()}" for name in Settings.model_fields}
    assert sorted(names - set(re.findall(r"CHANGEOVER_[A-Z_]+", OPERATING))) == []


def test_every_command_is_in_the_manual() -> None:
    names = {command.__name__ for commands in PANELS.values() for command in commands} | set(LATE)
    told = set(re.findall(r"[a-z]+", " ".join(re.findall(r"`([^`\n]+)`", OPERATING))))
    assert sorted(names - told) == []


def test_the_tour_tells_of_every_step_and_state() -> None:
    tour = (ROOT / "docs" / "how-it-works.md").read_text()
    assert [word for word in (*STEPS, *sorted(TERMINAL)) if f"`{word}`" not in tour] == []


def test_make_help_names_every_target_that_the_readme_uses() -> None:
    told = set(re.findall(r"\bmake ([a-z]+)  ", (ROOT / "Makefile").read_text()))
    used = set(re.findall(r"^ *make ([a-z]+)\b", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert {"demo", "setup"} <= used
    assert sorted(used - told) == []
