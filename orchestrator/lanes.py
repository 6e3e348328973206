"""The worlds that the rollouts of this installation live in, and how to reach each."""

from __future__ import annotations

import json
from collections.abc import Mapping

from orchestrator.domain.fleet import Fleet
from orchestrator.errors import UnsafeStore
from orchestrator.store import Store

NEWEST = 30  # rollouts that are looked at, beside all that are open


def lanes(store: Store) -> Mapping[str, tuple[Fleet, ...]]:
    """Every lane in which something of ours may be, with the fleets that have their servers there, the newest file
    first. A rollout whose file cannot be read is left out."""
    found: dict[str, dict[str, Fleet]] = {}
    recent = [*store.open_rollouts(), *store.rollouts()[:NEWEST]]
    for id in dict.fromkeys(rollout.id for rollout in recent):
        try:
            spec = store.document("spec", id)
            if spec is None:
                continue
            fleet = Fleet.model_validate_json(json.dumps(spec["plan"]["fleet"]))
        except (UnsafeStore, ValueError, KeyError, TypeError):
            continue
        found.setdefault(fleet.lane, {}).setdefault(json.dumps(fleet.canonical()["traffic"], sort_keys=True), fleet)
    return {lane: tuple(fleets.values()) for lane, fleets in found.items()}
