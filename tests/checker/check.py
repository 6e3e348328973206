"""All promises, recomputed one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from tests.checker import audit, effects, rotation, secrets
from tests.checker.evidence import Evidence, Violation, read

INVARIANTS: tuple[Callable[[Evidence], Iterator[Violation]], ...] = (
    rotation.enough_serve,
    rotation.smoked_before_they_enter,
    effects.ends_and_the_world_agrees,
    effects.once_and_in_the_ledger,
    audit.nothing_is_lost,
    audit.complete_and_legal,
    audit.announced_before_done,
    rotation.old_ones_leave_late,
    effects.one_owner,
    effects.fences_rise,
    rotation.goes_on_without_us,
    secrets.none_told,
)


def check(folder: Path) -> list[Violation]:
    """Every broken promise, in the order of the promises. Raises `Unusable` if the folder is no evidence."""
    evidence = read(folder)
    return [violation for invariant in INVARIANTS for violation in invariant(evidence)]
