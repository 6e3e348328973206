"""Flower's files: private, stable, and understood by the Flower that is installed."""

from __future__ import annotations

import stat
from pathlib import Path

from flower.options import options
from flower.views.tasks import TASK_COLUMNS

from orchestrator import flower


def settings(config: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    exec(config.read_text(), found)
    return {name: value for name, value in found.items() if name != "__builtins__"}


def test_only_the_owner_can_read_the_password(tmp_path: Path) -> None:
    files = flower.prepare(tmp_path / "flower")
    user, _, password = files.credentials.read_text().strip().partition(":")
    assert user == "changeover"
    assert len(password) >= 20
    assert settings(files.config)["basic_auth"] == [f"{user}:{password}"]
    for private in (files.config, files.credentials):
        assert stat.S_IMODE(private.stat().st_mode) == 0o600


def test_the_password_stays_the_same_from_start_to_start(tmp_path: Path) -> None:
    first = flower.prepare(tmp_path).credentials.read_text()
    assert flower.prepare(tmp_path).credentials.read_text() == first
    (tmp_path / "credentials").write_text("damaged")
    assert flower.prepare(tmp_path).credentials.read_text() not in {first, "damaged"}


def test_the_installed_flower_knows_every_setting_and_column(tmp_path: Path) -> None:
    given = settings(flower.prepare(tmp_path).config)
    assert not [name for name in given if name not in options]
    assert not set(flower.COLUMNS.split(",")) - set(TASK_COLUMNS)
    assert given["read_only"] is True
