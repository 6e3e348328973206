"""The worlds that the rollouts of this installation live in, and how to reach each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.domain.fleet import Fleet
from orchestrator.errors import UnsafeStore
from orchestrator.store import Store

NEWEST = 30  # rollouts that are looked at, beside all that are open and the newest of each world


@dataclass(frozen=True, kw_only=True)
class Reach:
    """What the file of a rollout's plan says of where its servers are, and of how users reach them: for each place the
    fleet that is there, the world and the traffic."""

    plan: str
    places: tuple[tuple[Fleet, str, str], ...]


def lanes(store: Store, known: dict[str, Reach]) -> Mapping[str, tuple[Fleet, ...]]:
    """Every lane in which something of ours may be, with the fleets that have their servers there, the newest file
    first. A rollout whose file cannot be read is left out. Where the same provider, account and region stand for
    several worlds, as two local hosts do, each is a lane of its own, `LANE@WORLD`.

    `known`, by rollout, is what the last call has read, and then what this one has: the file of a plan never changes,
    and a rollout that is rebuilt has another plan and is open. To read thirty large files takes seconds."""
    plans = {rollout.id: rollout.plan for rollout in (*store.open_rollouts(), *store.rollouts()[:NEWEST])}
    read: dict[str, Reach] = {}
    for id in dict.fromkeys([*plans, *store.worlds()]):
        reach = known.get(id)
        if reach is None or plans.get(id, reach.plan) != reach.plan:
            reach = _reach(store, id)
        if reach is not None:
            read[id] = reach
    known.clear()
    known.update(read)
    found: dict[str, dict[str, dict[str, Fleet]]] = {}
    for reach in read.values():
        for fleet, world, traffic in reach.places:
            found.setdefault(fleet.lane, {}).setdefault(world, {}).setdefault(traffic, fleet)
    return {
        lane if len(worlds) == 1 else f"{lane}@{world}": tuple(fleets.values())
        for lane, worlds in found.items()
        for world, fleets in worlds.items()
    }


def _reach(store: Store, rollout: str) -> Reach | None:
    try:
        spec = store.document("spec", rollout)
        if spec is None:
            return None
        plan: str = spec["plan"]["id"]
        fleet = Fleet.model_validate_json(json.dumps(spec["plan"]["fleet"]))
    except (UnsafeStore, ValueError, KeyError, TypeError):
        return None
    return Reach(plan=plan, places=tuple((at, where(at), _traffic(at)) for at in fleet.places))


def where(fleet: Fleet) -> str:
    """What stands for the world in which this fleet's servers are, all of them in one place: the same for whoever asks
    there with the same settings."""
    settings = json.dumps(fleet.canonical()["provider"]["settings"], sort_keys=True)
    return hashlib.sha256(f"{fleet.lane} {settings}".encode()).hexdigest()[:8]


def _traffic(fleet: Fleet) -> str:
    return json.dumps(fleet.canonical()["traffic"], sort_keys=True)


def remember(store: Store, fleet: Fleet, rollout: str) -> None:
    """Its worlds, with those balancers, are searched from now on, however old this rollout becomes."""
    for at in fleet.places:
        store.put_world(f"{where(at)}:{hashlib.sha256(_traffic(at).encode()).hexdigest()[:8]}", rollout)
