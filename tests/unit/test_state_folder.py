"""The folder of `changeover up` is its owner's alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from orchestrator.errors import BadInput
from orchestrator.state_folder import StateFolder


def test_a_folder_that_others_may_write_to_is_closed(tmp_path: Path) -> None:
    wide = tmp_path / "state"
    (wide / "logs").mkdir(parents=True)
    for each in (wide, wide / "logs"):
        each.chmod(0o777)
    StateFolder.open(wide)
    assert {stat.S_IMODE(each.stat().st_mode) for each in (wide, wide / "logs")} == {0o700}


@pytest.mark.parametrize("of", ["stat", "lstat"], ids=["a folder", "a link"])
def test_what_belongs_to_somebody_else_is_refused(tmp_path: Path, of: str, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = getattr(Path, of)

    def another_owner(self: Path, **options: bool) -> os.stat_result:
        found = list(honest(self, **options))
        found[stat.ST_UID] = os.getuid() + 1
        return os.stat_result(found)

    folder = tmp_path / "state"
    folder.mkdir()
    monkeypatch.setattr(Path, of, another_owner)
    with pytest.raises(BadInput, match="belongs to another user"):
        StateFolder.open(folder)
    assert not list(folder.iterdir())
