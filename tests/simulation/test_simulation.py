"""Whatever goes wrong, every server ends upgraded, rolled back or failed with its old server serving, or is held with a
reason; nothing is made twice, nobody is served by less than was promised, and nothing is left over.

`pytest tests/simulation --simulate 20000 --first 1000` plays more; `python -m tests.simulation SEED` tells of one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import pytest

from orchestrator.domain.steps import RETIRE, STEPS
from tests.simulation.faults import PROVIDER, STORE
from tests.simulation.seeds import KEPT
from tests.simulation.simulation import Failed, on_redis, simulate

AT_ONCE = 20  # seeds that a process plays before it tells
LUA = 40  # one in so many is played on Redis' own scripts
WHOLE = 1000  # seeds among which every kind of fault has struck, and at every step
ANYWHERE = ("crash", "freeze", "crash in a call", *PROVIDER, *STORE, "lose", "double", "delay", "repeat", "no broker")


@dataclass(frozen=True)
class Played:
    """What some seeds have come to: what does not hold, and what struck where."""

    failed: list[str]
    struck: Counter[tuple[str, str]]


def play(first: int, count: int, url: str) -> Played:
    """Runs in a process of its own."""
    failed: list[str] = []
    struck: Counter[tuple[str, str]] = Counter()
    for seed in range(first, first + count):
        try:
            struck += simulate(seed, store=on_redis(url, seed) if seed % LUA == 0 else None).struck
        except Failed as error:
            failed.append(str(error))
    return Played(failed, struck)


@pytest.mark.timeout(3600)
def test_every_rollout_ends_well_whatever_goes_wrong(valkey_url: str, pytestconfig: pytest.Config) -> None:
    first, count = pytestconfig.getoption("--first"), pytestconfig.getoption("--simulate")
    struck: Counter[tuple[str, str]] = Counter()
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as processes:
        parts = [
            processes.submit(play, start, min(AT_ONCE, first + count - start), valkey_url)
            for start in range(first, first + count, AT_ONCE)
        ]
        for part in parts:
            played = part.result()
            if played.failed:
                processes.shutdown(cancel_futures=True)
                pytest.fail(played.failed[0], pytrace=False)
            struck += played.struck
    if count >= WHOLE:
        assert not set(ANYWHERE) - {kind for kind, _ in struck}
        died_in = {place.partition(".")[0] for kind, place in struck if kind == "crash at a point"}
        assert not {*STEPS, RETIRE, *(f"undo_{step}" for step in STEPS)} - died_in


@pytest.mark.parametrize("seed", KEPT)
def test_a_seed_that_has_found_something_finds_nothing_more(seed: int) -> None:
    simulate(seed)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_without_faults_every_server_is_upgraded(seed: int) -> None:
    outcome = simulate(seed, calm=True)
    assert set(outcome.states) == {"upgraded"}
    assert outcome.rollout is not None and outcome.rollout.state == "succeeded"


def test_the_same_seed_is_the_same_story_to_the_byte() -> None:
    """Also in another process, where sets and dictionaries may stand in another order."""
    stories = []
    for hashing in ("1", "2"):
        command = [sys.executable, "-m", "tests.simulation", "4"]
        environment = {**os.environ, "PYTHONHASHSEED": hashing}
        root = Path(__file__).parents[2]
        done = subprocess.run(command, env=environment, cwd=root, capture_output=True, timeout=60, check=True)
        stories.append(done.stdout)
    assert stories[0] == stories[1]
    assert len(stories[0].splitlines()) > 50
    assert tuple(stories[0].decode().splitlines()[:-2]) == simulate(4).trace


@pytest.mark.parametrize("seed", [11, 12])
def test_both_stores_tell_the_same_story(seed: int, valkey_url: str) -> None:
    assert simulate(seed, store=on_redis(valkey_url, seed)).trace == simulate(seed).trace


def test_what_an_outsider_saw_is_written_down(tmp_path: Path) -> None:
    simulate(6, evidence=tmp_path)
    written = {path.name for path in tmp_path.iterdir()}
    assert written >= {"plan.json", "cloud.jsonl", "balancer.jsonl", "probes.jsonl", "audit.jsonl"}
    assert written >= {"inventory.json", "ledger.json", "records.json"}
    assert all((tmp_path / name).read_text() for name in written)
