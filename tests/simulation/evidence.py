"""What an outsider could have written down: the cloud's own log, the balancer's, the probes', and the users'. With what
the store has at the end it is all that a checker needs which knows nothing of this program."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestrator.domain.fleet import Fleet
from providers import Key
from providers.compute import Server
from providers.errors import GuardRefused, Refused
from tasks import swap
from tests.simulation.cloud import Cloud

TRAFFIC = frozenset({"add", "restore", "remove"})


class Evidence:
    """Keeps nothing unless `wanted`: that takes time."""

    def __init__(self, fleet: Fleet, cloud: Cloud, clock: Callable[[], float], *, wanted: bool) -> None:
        self._fleet = fleet
        self._cloud = cloud
        self._clock = clock
        self._wanted = wanted
        self._calls: list[dict[str, Any]] = []
        self._balancer: list[dict[str, Any]] = []
        self._probes: list[dict[str, Any]] = []
        self._traffic: list[dict[str, Any]] = []
        self._plan: dict[str, Any] = {}

    def began(self, rollout: str) -> None:
        """The fleet is as it was before anything was done."""
        if not self._wanted:
            return
        fleet, pools = self._fleet, self._fleet.traffic.pools
        self._plan = {
            "rollout": rollout,
            "retain_seconds": fleet.retain.old_servers,
            "bake_seconds": fleet.rollout.bake,
            "soak_seconds": fleet.rollout.soak,
            "smoke_fresh_seconds": swap.FRESH,
            "servers": {spec.name: {"id": fleet.id_of(spec), "pools": list(spec.pools)} for spec in fleet.servers},
            "pools": {
                name: {"port": pool.port, "min_healthy": pool.min_healthy, "members": self._members(name)}
                for name, pool in pools.items()
            },
        }
        for name in pools:
            self.pool(name)

    def _members(self, pool: str) -> dict[str, dict[str, Any]]:
        return {view.name: {"address": view.address, "port": view.port} for view in self._cloud.pools[pool].values()}

    def call(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], answer: Any, before: Any) -> None:
        if self._wanted and name not in TRAFFIC:
            about = self._about(args, kwargs)
            if isinstance(args[0], Key):
                made = self._cloud.made[args[0].token] != before
                about |= {"id": answer.id, "outcome": "made" if made else "adopted", "effect": made}
            else:
                ended = {"stop": "stopped", "terminate": "terminated"}.get(name, "")
                about |= {"outcome": "done", "effect": not ended or before not in (None, ended)}
            self._calls.append({"at": self._clock(), "call": name, **about})

    def refusal(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], error: Exception) -> None:
        if self._wanted and name not in TRAFFIC:
            outcome = "refused" if isinstance(error, GuardRefused | Refused) else "failed"
            about = self._about(args, kwargs) | {"outcome": outcome, "effect": False, "error": str(error)}
            self._calls.append({"at": self._clock(), "call": name, **about})

    def _about(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        if isinstance(args[0], Key):
            key = args[0]
            source = kwargs.get("source") or kwargs.get("image", "")
            return {"id": "", "token": key.token, "name": key.name, "tags": dict(key.tags), "source": source}
        thing = self._cloud.things.get(args[0])
        tags = dict(thing.view.tags) if thing is not None else {}
        return {"id": args[0], "token": "", "name": thing.view.name if thing is not None else "", "tags": tags}

    def outside(self, call: str, id: str) -> None:
        """Something that nobody of us did."""
        if self._wanted:
            self._calls.append(
                {"at": self._clock(), "call": call, "id": id, "token": "", "name": "", "tags": {}}
                | {"outcome": "done", "effect": True, "by": "outside"}
            )

    def pool(self, name: str) -> None:
        """How it is now, and one user's request to each of its members that serve."""
        if not self._wanted:
            return
        at = self._clock()
        views = self._cloud.pools[name].values()
        states = {
            view.name: "down" if view.state == "serving" and not self._cloud.alive(view.address) else view.state
            for view in views
        }
        members = {v.name: {"address": v.address, "port": v.port, "state": states[v.name]} for v in views}
        self._balancer.append({"at": at, "pool": name, "members": members})
        up = [member for member, state in states.items() if state == "serving"]
        for member in up or [""]:
            answer = {"status": 200, "served_by": member} if member else {"status": 0}
            self._traffic.append({"at": at, "id": f"q{len(self._traffic)}", "pool": name, **answer})

    def probe(self, address: str) -> None:
        if self._wanted:
            last = self._cloud.probed[address][-1]
            self._probes.append({"at": last.at, "address": address, "boot": last.boot, "passed": last.passed})

    def write(self, folder: Path, store: Any, rollout: str) -> None:
        """The folder that the checker reads."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "plan.json").write_text(json.dumps(self._plan, indent=1))
        _lines(folder / "cloud.jsonl", self._calls)
        _lines(folder / "balancer.jsonl", self._balancer)
        _lines(folder / "traffic.jsonl", self._traffic)
        _lines(folder / "probes.jsonl", self._probes)
        inventory = [self._thing(id) for id in self._cloud.things]
        (folder / "inventory.json").write_text(json.dumps(inventory, indent=1))
        entries, after = [], "0"
        while batch := store.events(rollout, after=after):
            entries += batch
            after = batch[-1].id
        _lines(folder / "audit.jsonl", ({"rollout": rollout, **asdict(entry)} for entry in entries))
        (folder / "ledger.json").write_text(json.dumps([asdict(item) for item in store.ledger(rollout)], indent=1))
        records = {row.upgrade.server: asdict(row.upgrade) for row in store.rows(rollout)}
        (folder / "records.json").write_text(json.dumps(records, indent=1))

    def _thing(self, id: str) -> dict[str, Any]:
        thing = self._cloud.things[id]
        view = self._cloud.now(thing)
        server = isinstance(view, Server)
        about = {"id": id, "kind": "server" if server else "image", "state": view.state, "tags": dict(view.tags)}
        rest = {"address": view.address, "boot": view.boot} if isinstance(view, Server) else {"address": ""}
        return {**about, "name": view.name, **rest}


def _lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
