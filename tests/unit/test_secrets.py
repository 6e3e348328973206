"""References to secrets: resolved at the moment of use, and never told by what goes wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import pytest
from pydantic import ValidationError

from orchestrator import secrets
from orchestrator.domain.fleet import Fleet, Provider, SyncHook
from orchestrator.domain.upgrade import Upgrade
from orchestrator.errors import BadInput
from orchestrator.settings import Settings
from orchestrator.store import codec
from orchestrator.store.redis import RedisStore
from providers.errors import Refused
from tasks import Unspoken, _unspoken
from tasks.world import resolve, run_hook
from tests.support.runner import fleet_file


def test_a_reference_becomes_its_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("from a file\n")
    monkeypatch.setenv("TOKEN", "from the environment")
    assert resolve("env:TOKEN") == "from the environment"
    assert resolve(f"file:{tmp_path}/token") == "from a file"
    assert resolve("text/html") == "text/html"


@pytest.mark.parametrize(
    "what",
    [
        *("env:CHANGEOVER_REDIS_URL", "env:CHANGEOVER_REDIS_PASSWORD_FILE", "env:AWS_SECRET_ACCESS_KEY"),
        *("file:{0}/redis", "file:{0}/x/../redis", "file:/proc/self/environ"),
    ],
)
def test_what_lets_the_worker_itself_in_is_given_to_nobody(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "redis").write_text("redis://:hunter2@r/0")
    (tmp_path / "x").mkdir()
    monkeypatch.setenv("CHANGEOVER_REDIS_URL_FILE", str(tmp_path / "redis"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    with pytest.raises(Refused, match="is this worker's own"):
        resolve(what.format(tmp_path))


@pytest.mark.parametrize("name", ["external_id", "endpoint", "zone", "profile"])
def test_a_setting_that_is_no_secret_names_none(name: str) -> None:
    """It would be sent in the open, to whom the file says."""
    for value in ("env:HOME", "file:/etc/shadow"):
        whole = {"name": "aws", "settings": {name: value}}
        with pytest.raises(ValidationError, match=f"{name} is no secret: write its value"):
            Provider.model_validate(whole)


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


def test_no_address_is_shown_with_what_holds_it() -> None:
    held = Settings(redis_url="redis://:MARKER@h/0", broker_url="redis://:MARKER@h/1", result_url="redis://:MARKER@h/2")
    assert "MARKER" not in f"{held!r} {held} {held.urls()!r}"


@pytest.mark.parametrize("part", ["provider", "traffic"])
def test_a_secret_in_the_settings_of_a_provider_must_be_a_reference(part: str) -> None:
    whole = fleet_file(["web-1"], "w").canonical()
    whole[part]["settings"]["api_token"] = "MARKER"
    with pytest.raises(ValidationError, match="api_token is a secret: write env:NAME or file:/path"):
        Fleet.model_validate_json(json.dumps(whole))
    whole[part]["settings"]["api_token"] = "env:TOKEN"
    assert Fleet.model_validate_json(json.dumps(whole))


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this test remembers is not known to the next."""
    monkeypatch.setattr(secrets, "_known", ())
    monkeypatch.setattr(secrets, "_forms", ())


@pytest.mark.usefixtures("forgetful")
def test_what_was_resolved_is_taken_out_of_whatever_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", 'Bearer MARKER-"quoted"-1234')
    assert secrets.redact(f"said {resolve('env:TOKEN')}") == "said [REDACTED]"
    assert secrets.redact('X-Token: MARKER-"quoted"-1234!') == "X-Token: [REDACTED]!"
    document = codec.text({"why": 'it said MARKER-"quoted"-1234', "n": 12345678, "list": ["ok"]})
    assert json.loads(document) == {"why": "it said [REDACTED]", "n": 12345678, "list": ["ok"]}
    u = Upgrade(rollout="r", server="s", wave=0, why='MARKER-"quoted"-1234')
    assert codec.UPGRADE.load(codec.UPGRADE.dump(u), key="k").why == "[REDACTED]"


@pytest.mark.usefixtures("forgetful")
def test_a_number_that_reads_like_a_secret_stays_a_number() -> None:
    secrets.remember("12345678")
    assert json.loads(codec.text({"n": 12345678, "s": "12345678"})) == {"n": 12345678, "s": "[REDACTED]"}


@pytest.mark.usefixtures("forgetful")
def test_what_is_too_short_to_be_told_from_a_word_is_left_alone() -> None:
    secrets.remember("web-1")
    assert secrets.redact("web-1 serves") == "web-1 serves"


@pytest.mark.usefixtures("forgetful")
def test_the_environment_names_its_secrets_and_so_do_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "MARKER-OF-AWS")
    monkeypatch.setenv("CHANGEOVER_REDIS_URL", "redis://me:MARKER%2FREDIS@127.0.0.1/0")
    secrets.remember_environment()
    for said in ("MARKER-OF-AWS", "MARKER%2FREDIS", "MARKER/REDIS"):
        assert secrets.redact(f"<{said}>") == "<[REDACTED]>"


@pytest.mark.usefixtures("forgetful")
def test_a_hook_sees_what_its_file_names_and_nothing_else_of_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "MARKER-OF-AWS")
    monkeypatch.setenv("COPY_TOKEN", "MARKER-OF-COPY")
    show = [sys.executable, "-c", "import os, sys; sys.exit(' '.join(f'{k}={v}' for k, v in os.environ.items()))"]
    told = run_hook(show, timeout=10, env={"GIVEN": "env:COPY_TOKEN"})
    assert "GIVEN=[REDACTED]" in told or len(told) >= 200
    assert "MARKER" not in told and "AWS" not in told
    check = "import os, sys; sys.exit(os.environ.get('GIVEN') != 'MARKER-OF-COPY' or 'COPY_TOKEN' in os.environ)"
    assert not run_hook([sys.executable, "-c", check], timeout=10, env={"GIVEN": "env:COPY_TOKEN"})


@pytest.mark.usefixtures("forgetful")
def test_an_exception_whose_words_hold_a_secret_is_not_raised_to_celery() -> None:
    secrets.remember("MARKER-OF-REDIS")
    with pytest.raises(Unspoken, match=r"ValueError: at \[REDACTED\]") as told, _unspoken():
        raise ValueError("at MARKER-OF-REDIS")
    assert told.value.__cause__ is None and told.value.__suppress_context__
    with pytest.raises(ValueError, match="harmless"), _unspoken():
        raise ValueError("harmless")


def test_a_secret_in_the_environment_of_a_hook_must_be_a_reference() -> None:
    with pytest.raises(ValidationError, match="COPY_TOKEN is a secret"):
        SyncHook(sync=("copy",), env={"COPY_TOKEN": "MARKER"})


def test_a_worker_answers_questions_and_takes_no_orders() -> None:
    """In a process of its own: the list is Celery's, for the whole process."""
    program = (
        "from celery.worker.control import Panel; from workers.app import _listen_to_questions_only as l; l('here');"
        "print(*sorted(Panel.data)); print(*sorted(n for n, m in Panel.meta.items() if m.type == 'control'))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    left, orders = (set(line.split()) for line in done.stdout.splitlines())
    assert left & orders == {"enable_events"}, "which changes nothing: a worker sends its events from its start"
    assert {"stats", "active", "conf"} <= left
    assert not left & {"shutdown", "revoke", "terminate", "pool_shrink", "cancel_consumer", "memdump"}


def test_what_a_provider_shows_is_kept_field_by_field_and_nothing_that_hangs_on_it() -> None:
    @dataclass(frozen=True, slots=True)
    class Size:
        cpu: int

    @dataclass
    class Shown:
        id: str
        sizes: tuple[Size, ...]
        text: str = "y" * 5000
        tags: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({"size": Size(2)}))

        def __post_init__(self) -> None:
            self.session = object()

    kept = secrets.shortened(Shown("i-1", (Size(1),)))
    assert {**kept, "text": len(kept["text"])} == {
        "id": "i-1",
        "sizes": [{"cpu": 1}],
        "text": secrets.LONGEST_TEXT,
        "tags": {"size": {"cpu": 2}},
    }
    with pytest.raises(TypeError):
        secrets.field_values(None)
