"""A message that a broker hands out a thousand times is one step: said by the cloud and by the audit log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

import pytest

from orchestrator.store.redis import RedisStore
from tests.support.evidence import audit
from tests.support.fake_cloud import RunningCloud, running_cloud
from tests.support.valkey import WRAPPER

PROCESSES, TIMES = 8, 125


@pytest.fixture(scope="module")
def cloud() -> Iterator[RunningCloud]:
    with running_cloud() as cloud:
        yield cloud


def delivered(url: str, cloud: RunningCloud, name: str, step: str) -> list[Mapping[str, Any]]:
    """What each of the deliveries was answered."""
    runner = [sys.executable, "-m", "tests.failure.delivery_runner", url, str(cloud.socket)]
    done = subprocess.run(
        [
            *(sys.executable, "-I", "-S", "-c", WRAPPER, str(os.getpid())),
            *(*runner, name, step, str(PROCESSES), str(TIMES)),
        ],
        stdout=subprocess.PIPE,
        text=True,
        timeout=100,
        check=True,
    )
    answers: list[Mapping[str, Any]] = json.loads(done.stdout)
    assert len(answers) == PROCESSES * TIMES
    return answers


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("step", "call"), [("create_image", "ensure_image"), ("provision", "ensure_server")])
def test_a_thousand_deliveries_of_one_step_from_eight_processes_have_one_effect(
    step: str, call: str, valkey_url: str, cloud: RunningCloud
) -> None:
    name = f"many-{uuid.uuid4().hex[:12]}"
    answers = delivered(valkey_url, cloud, name, step)

    with (cloud.evidence / name / "cloud.jsonl").open() as lines:
        calls = [row for row in map(json.loads, lines) if row["call"] == call]
    assert [(row["outcome"], row["effect"]) for row in calls] == [("made", True)]  # not even asked for twice
    assert cloud.operator(name).made()[calls[0]["token"]] == 1

    with closing(RedisStore(valkey_url, namespace=name)) as store:
        entries = [entry for entry in audit(store, ["r1"]) if entry["server"] == "web-1"]
        assert [item.id for item in store.ledger("r1") if item.kind == call.removeprefix("ensure_")]
    assert [entry["n"] for entry in entries] == list(range(1, len(entries) + 1))
    began = [n for n, e in enumerate(entries) if e["event"] == "Began" and e["detail"]["step"] == step]
    assert len(began) == 1
    after = Counter(entry["event"] for entry in entries[began[0] + 1 :])
    # Whoever comes while an image is being made looks at it and says again that it waits; nothing is done twice.
    assert after["Finished"] == 1 and set(after) <= {"Finished", "Waits"}
    if step == "provision":
        assert after["Waits"] == 0
    ignored = Counter(answer["ignored"] for answer in answers if "ignored" in answer)
    assert ignored.total() == len(answers) - after.total()
    assert ignored["leased"], "others came during the call"
