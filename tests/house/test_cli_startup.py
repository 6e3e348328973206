"""The command line starts in a blink: nothing heavy is imported before a command needs it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = (
    "boto3",
    "botocore",
    "moto",
    "celery",
    "kombu",
    "redis",
    "pydantic",
    "rich",
    "yaml",
    "jinja2",
    "structlog",
    "asyncio",
)


def imported_by(code: str) -> set[str]:
    """The top-level modules, and ours in full, that a fresh interpreter has loaded after this code."""
    script = f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    ended = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return set(json.loads(ended.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import orchestrator.cli", set()),
        ("from orchestrator.cli import main; main(['--help'])", {"rich"}),
        # typer itself reads the arguments of a command with pydantic
        ("from orchestrator.cli import main; main(['version'])", {"pydantic"}),
    ],
)
def test_the_command_line_imports_nothing_heavy(code: str, allowed: set[str]) -> None:
    loaded = imported_by(code)
    assert sorted(loaded & set(HEAVY) - allowed) == []
    assert not {name for name in loaded if name.split(".")[0] in ("providers", "tasks", "workers")}


def test_json_wants_no_pictures() -> None:
    loaded = imported_by("from orchestrator.cli import main; main(['version', '-o', 'json'])")
    assert "rich" not in loaded
    assert "orchestrator.cli.pictures" not in loaded


@pytest.mark.parametrize("verb", ["rollouts", "show r1", "pause r1", "watch r1"])
def test_a_verb_that_reads_the_store_loads_no_celery(verb: str) -> None:
    loaded = imported_by(
        "import os; os.environ['CHANGEOVER_REDIS_URL'] = 'unix:///nowhere/at/all.sock?db=0'\n"
        f"from orchestrator.cli import main; main({verb.split()!r})"
    )
    assert sorted(loaded & {"celery", "kombu", "jinja2", "yaml"}) == []
