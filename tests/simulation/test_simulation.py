"""Whatever goes wrong, every server ends upgraded, rolled back or failed with its old server serving, or is held with a
reason; nothing is made twice, nobody is served by less than was promised, and nothing is left over.

`pytest tests/simulation --simulate 20000 --first 1000` plays more, with `-n 8 --dist loadscope --slices 8` in so many
processes; `python -m tests.simulation SEED` tells of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from orchestrator.domain.steps import RETIRE, STEPS
from tests.simulation.faults import PROVIDER, STORE
from tests.simulation.quick import without_collector
from tests.simulation.seeds import KEPT
from tests.simulation.simulation import TAIL, Failed, on_redis, simulate

LUA = 40  # one in so many is played on Redis' own scripts
WHOLE = 1000  # seeds among which every kind of fault has struck, and at every step
ANYWHERE = ("crash", "freeze", "crash in a call", *PROVIDER, *STORE, "lose", "double", "delay", "repeat", "no broker")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The seeds in slices, one test each. What is before the last `::` of a test's id is what `--dist loadscope` keeps
    in one process: so each slice may have one of its own."""
    if "seeds" in metafunc.fixturenames:
        option = metafunc.config.getoption
        every, first = option("--slices"), option("--first")
        slices = [range(first, first + option("--simulate"))[start::every] for start in range(every)]
        metafunc.parametrize("seeds", slices, ids=[f"{start}::{every}" for start in range(every)])


@pytest.fixture
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this run of the tests share."""
    base = tmp_path_factory.getbasetemp()
    made = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "simulated"
    made.mkdir(exist_ok=True)
    return made


@pytest.mark.timeout(3600)
def test_every_rollout_ends_well_whatever_goes_wrong(
    seeds: range, valkey_url: str, together: Path, pytestconfig: pytest.Config
) -> None:
    struck: Counter[tuple[str, str]] = Counter()
    with without_collector():
        for seed in seeds:
            store = on_redis(valkey_url, seed) if seed % LUA == 0 else None
            try:
                struck += simulate(seed, store=store, lines=TAIL).struck
            except Failed as error:
                pytest.fail(str(error), pytrace=False)
    mine = together / f"{seeds.start}"
    mine.with_suffix(".new").write_text(json.dumps(sorted(struck)))
    mine.with_suffix(".new").rename(mine.with_suffix(".json"))
    told = list(together.glob("*.json"))
    if len(told) == pytestconfig.getoption("--slices") and pytestconfig.getoption("--simulate") >= WHOLE:
        everything_has_struck({(kind, place) for each in told for kind, place in json.loads(each.read_text())})


def everything_has_struck(struck: set[tuple[str, str]]) -> None:
    """Asked by the slice that ends last: a simulation in which something never goes wrong would prove nothing of it."""
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
        command = [sys.executable, "-m", "tests.simulation", "5"]
        environment = {**os.environ, "PYTHONHASHSEED": hashing}
        root = Path(__file__).parents[2]
        done = subprocess.run(command, env=environment, cwd=root, capture_output=True, timeout=60, check=True)
        stories.append(done.stdout)
    assert stories[0] == stories[1]
    assert len(stories[0].splitlines()) > 50
    assert tuple(stories[0].decode().splitlines()[:-2]) == simulate(5).trace


@pytest.mark.parametrize("seed", [11, 12])
def test_both_stores_tell_the_same_story(seed: int, valkey_url: str) -> None:
    assert simulate(seed, store=on_redis(valkey_url, seed)).trace == simulate(seed).trace


def test_what_an_outsider_saw_is_written_down(tmp_path: Path) -> None:
    simulate(6, evidence=tmp_path)
    written = {path.name for path in tmp_path.iterdir()}
    assert written >= {"plan.json", "cloud.jsonl", "balancer.jsonl", "probes.jsonl", "audit.jsonl"}
    assert written >= {"inventory.json", "ledger.json", "records.json"}
    assert all((tmp_path / name).read_text() for name in written)
