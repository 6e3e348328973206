"""Which worlds are searched, and how often their files are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from orchestrator import operations
from orchestrator.domain.plan import make_plan
from orchestrator.lanes import Reach, lanes
from orchestrator.store.memory import MemoryStore
from tests.support.runner import fleet_file
from tests.unit.test_plan import server, survey


class Counting(MemoryStore):
    """Counts the files that are read."""

    reads = 0

    def document(self, kind: str, id: str) -> Mapping[str, Any] | None:
        self.reads += kind == "spec"
        return super().document(kind, id)


@pytest.fixture
def store() -> Counting:
    return Counting(lambda: 1000.0)


def begin(store: MemoryStore, world: str, *, id: str, names: tuple[str, str] = ("a", "b")) -> None:
    fleet = fleet_file(list(names), world)
    operations.create(store, fleet, make_plan(fleet, survey(*map(server, names))), actor="somebody", id=id)


def test_the_file_of_a_rollout_is_read_once(store: Counting) -> None:
    begin(store, "w", id="r1")
    known: dict[str, Reach] = {}
    first, store.reads = lanes(store, known), 0
    assert lanes(store, known) == first
    assert not store.reads
    begin(store, "w", id="r2", names=("c", "d"))
    store.reads = 0
    assert lanes(store, known).keys() == first.keys()
    assert store.reads == 1


def test_a_rollout_that_was_rebuilt_is_read_anew(store: Counting) -> None:
    begin(store, "w", id="r1")
    known: dict[str, Reach] = {}
    (before,) = lanes(store, known).values()
    rebuilt = Counting(lambda: 2000.0)
    begin(rebuilt, "elsewhere", id="r1")
    (after,) = lanes(rebuilt, known).values()
    assert (before[0].provider.settings["world"], after[0].provider.settings["world"]) == ("w", "elsewhere")


def test_a_rollout_that_is_gone_is_forgotten(store: Counting) -> None:
    begin(store, "w", id="r1")
    known: dict[str, Reach] = {}
    lanes(store, known)
    assert lanes(MemoryStore(), known) == {}
    assert not known


def test_a_file_that_cannot_be_read_leaves_out_its_rollout_alone(store: Counting) -> None:
    begin(store, "w", id="r1")
    begin(store, "x", id="r2", names=("c", "d"))
    store.forget_document("spec", "r2")
    store.put_document("spec", "r2", {"plan": {"fleet": {"servers": "none"}}})
    (fleets,) = lanes(store, {}).values()
    assert [fleet.provider.settings["world"] for fleet in fleets] == ["w"]
