"""The examples and the reference of the fleet file are held to the reader that reads yours."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from orchestrator import fleet_file
from orchestrator.domain.fleet import Fleet

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
REFERENCE = ROOT / "docs" / "fleet-file.md"


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_a_fleet_file(path: Path) -> None:
    fleet = fleet_file.load(path)
    assert Fleet.model_validate_json(json.dumps(fleet.canonical())) == fleet


def keys_of(model: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[str]:
    seen.add(model)
    for name, field in model.model_fields.items():
        yield name
        for inner in models_in(field.annotation):
            if inner not in seen:
                yield from keys_of(inner, seen)


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_in(part)


def test_every_key_has_its_place_in_the_reference() -> None:
    words = set(re.findall(r"[a-z_0-9]+", " ".join(re.findall(r"`([^`\n]+)`", REFERENCE.read_text()))))
    assert sorted(set(keys_of(Fleet, set())) - words) == []


def test_the_snippets_of_the_reference_are_parts_of_a_fleet_file() -> None:
    """Each is put in the place of what an example says there."""
    whole = yaml.safe_load((ROOT / "examples" / "aws-haproxy.yaml").read_text())
    snippets = re.findall(r"```yaml\n(.*?)```", REFERENCE.read_text(), re.DOTALL)
    assert len(snippets) > 6
    for snippet in snippets:
        changed = {**whole, **yaml.safe_load(snippet)}
        if "servers" in snippet:
            changed["rollout"] = {**whole["rollout"], "waves": ["rest"]}
        Fleet.model_validate_json(json.dumps(changed))


@pytest.mark.parametrize("taken", [False, True])
def test_the_example_says_in_one_line_why_it_builds_no_fleet(tmp_path: Path, taken: bool) -> None:
    folder = tmp_path / "shop"
    if taken:
        (folder / "site").mkdir(parents=True)
    command = [sys.executable, str(ROOT / "examples" / "local_fleet.py"), str(folder), str(tmp_path / "no-host")]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert told.returncode == 1
    (line,) = told.stderr.splitlines()
    assert ("is not new" if taken else "Next: changeover host --detach") in line
    assert folder.exists() == taken, "a second try finds the folder new"
