"""Settings from the environment, and secrets from files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.errors import BadInput
from orchestrator.settings import Settings


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CHANGEOVER_")]:
        monkeypatch.delenv(name)


def write(folder: Path, text: str) -> str:
    file = folder / "secret"
    file.write_text(text)
    return str(file)


def test_every_setting_can_be_read_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHANGEOVER_REDIS_URL_FILE", write(tmp_path, "redis://:s3cret@records:6379/0\n"))
    monkeypatch.setenv("CHANGEOVER_LEASE", "7")
    found = Settings.load()
    assert (found.redis_url, found.lease) == ("redis://:s3cret@records:6379/0", 7)
    assert {f"CHANGEOVER_{name.upper()}_FILE" for name in Settings.model_fields} < Settings.variables()


def test_a_password_in_a_file_goes_into_an_address_that_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHANGEOVER_REDIS_PASSWORD_FILE", write(tmp_path, "with/@ signs\n"))
    monkeypatch.setenv("CHANGEOVER_REDIS_URL", "redis://worker@records:6379/0")
    assert Settings.load().urls().records == "redis://worker:with%2F%40%20signs@records:6379/0"
    assert Settings.load().urls().messages == "redis://worker:with%2F%40%20signs@records:6379/1"
    monkeypatch.setenv("CHANGEOVER_REDIS_URL", "redis://worker:own@records:6379/0")
    assert Settings.load().urls().records == "redis://worker:own@records:6379/0"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHANGEOVER_REDIS_URL_FILE", str(tmp_path / "missing"))
    with pytest.raises(BadInput, match=r"CHANGEOVER_REDIS_URL_FILE: .*missing cannot be read: No such file"):
        Settings.load()


def test_what_is_said_twice_is_refused_and_neither_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHANGEOVER_REDIS_URL_FILE", write(tmp_path, "redis://:s3cret@records"))
    monkeypatch.setenv("CHANGEOVER_REDIS_URL", "redis://:other@records")
    with pytest.raises(BadInput, match="CHANGEOVER_REDIS_URL is given too") as refused:
        Settings.load()
    assert "s3cret" not in str(refused.value) and "other" not in str(refused.value)
