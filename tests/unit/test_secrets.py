"""References to secrets: resolved at the moment of use, and never told by what goes wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from orchestrator.domain.fleet import Fleet
from orchestrator.errors import BadInput
from orchestrator.store.redis import RedisStore
from providers.errors import Refused
from tasks.world import resolve, run_hook
from tests.support.runner import fleet_file


def test_a_reference_becomes_its_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("from a file\n")
    monkeypatch.setenv("TOKEN", "from the environment")
    assert resolve("env:TOKEN") == "from the environment"
    assert resolve(f"file:{tmp_path}/token") == "from a file"
    assert resolve("text/html") == "text/html"


def test_a_secret_file_that_is_no_text_is_named_and_not_shown(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"MARKER\xff\xfe")
    with pytest.raises(Refused) as told:
        resolve(f"file:{tmp_path}/key")
    assert f"file:{tmp_path}/key is not UTF-8 text" in str(told.value)
    assert "MARKER" not in repr(told.value)
    assert told.value.__cause__ is None
    assert told.value.__suppress_context__


def test_a_hook_that_says_what_is_no_text_is_told_of_as_any_other() -> None:
    program = "import sys; sys.stderr.buffer.write(b'no \\xff'); sys.exit(3)"
    assert run_hook([sys.executable, "-c", program], timeout=10).endswith("ended with 3: no \ufffd")


@pytest.mark.parametrize("mark", ["/", "#", "?", "["])
def test_a_redis_password_that_breaks_its_url_is_not_told(mark: str) -> None:
    with pytest.raises(BadInput) as told:
        RedisStore(f"redis://:MARKER{mark}rest@127.0.0.1:6379/0")
    assert "MARKER" not in str(told.value)
    assert "%XX" in told.value.next


@pytest.mark.parametrize("part", ["provider", "traffic"])
def test_a_secret_in_the_settings_of_a_provider_must_be_a_reference(part: str) -> None:
    whole = fleet_file(["web-1"], "w").canonical()
    whole[part]["settings"]["api_token"] = "MARKER"
    with pytest.raises(ValidationError, match="api_token is a secret: write env:NAME or file:/path"):
        Fleet.model_validate_json(json.dumps(whole))
    whole[part]["settings"]["api_token"] = "env:TOKEN"
    assert Fleet.model_validate_json(json.dumps(whole))
