"""The worlds that the rollouts of this installation live in, and how to reach each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from orchestrator.domain.fleet import Fleet
from orchestrator.errors import UnsafeStore
from orchestrator.store import Store

NEWEST = 30  # rollouts that are looked at, beside all that are open and the newest of each world


def lanes(store: Store) -> Mapping[str, tuple[Fleet, ...]]:
    """Every lane in which something of ours may be, with the fleets that have their servers there, the newest file
    first. A rollout whose file cannot be read is left out. Where the same provider, account and region stand for
    several worlds, as two local hosts do, each is a lane of its own, `LANE@WORLD`."""
    found: dict[str, dict[str, dict[str, Fleet]]] = {}
    recent = [rollout.id for rollout in (*store.open_rollouts(), *store.rollouts()[:NEWEST])]
    for id in dict.fromkeys([*recent, *store.worlds()]):
        try:
            spec = store.document("spec", id)
            if spec is None:
                continue
            fleet = Fleet.model_validate_json(json.dumps(spec["plan"]["fleet"]))
        except (UnsafeStore, ValueError, KeyError, TypeError):
            continue
        same = found.setdefault(fleet.lane, {}).setdefault(where(fleet), {})
        same.setdefault(json.dumps(fleet.canonical()["traffic"], sort_keys=True), fleet)
    return {
        lane if len(worlds) == 1 else f"{lane}@{world}": tuple(fleets.values())
        for lane, worlds in found.items()
        for world, fleets in worlds.items()
    }


def where(fleet: Fleet) -> str:
    """What stands for the world in which this fleet's servers are: the same for whoever asks there with the same
    settings."""
    settings = json.dumps(fleet.canonical()["provider"]["settings"], sort_keys=True)
    return hashlib.sha256(f"{fleet.lane} {settings}".encode()).hexdigest()[:8]


def remember(store: Store, fleet: Fleet, rollout: str) -> None:
    """That world, with those balancers, is searched from now on, however old this rollout becomes."""
    traffic = json.dumps(fleet.canonical()["traffic"], sort_keys=True)
    store.put_world(f"{where(fleet)}:{hashlib.sha256(traffic.encode()).hexdigest()[:8]}", rollout)
