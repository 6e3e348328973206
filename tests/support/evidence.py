"""What a rollout over a `FakeCloud` leaves behind, as files for the checker (`tests/checker` tells the format).

A `Recorder` stands inside the cloud: it wraps the providers that a world finds, below whatever delays, loses or repeats
their calls, and writes down what the resource itself has seen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestrator.domain.fleet import Fleet
from orchestrator.store import Store, codec
from providers.compute import Server
from providers.compute.fake import FakeCloud
from providers.errors import GuardRefused, ProviderError
from tasks.swap import FRESH
from tests.support.runner import Runner

COMPUTE = ("ensure_image", "ensure_server", "start", "stop", "terminate", "delete_image", "protect", "tag")
TRAFFIC = ("add", "restore", "remove")
Line = dict[str, Any]


class Recorder:
    """Writes down every call that may change something, every change of a pool, and every answer to a smoke test.

    It keeps the pools as they were when it came, so it is to be made before the rollout begins."""

    def __init__(self, cloud: FakeCloud) -> None:
        self.cloud = cloud
        self.calls: list[Line] = []
        self.balancer: list[Line] = []
        self.probes: list[Line] = []
        self.incidents: list[Line] = []
        self.claims: list[Line] = []
        self._last: dict[str, Mapping[str, Any]] = {}
        self.sample()
        self.before = {pool: dict(members) for pool, members in self._last.items()}

    def wrap(self, role: str, provider: Any) -> Any:
        """The provider, watched."""
        return _Watched(self, provider, role)

    def incident(self, kind: str, **about: Any) -> None:
        """The test itself does that to the world, now."""
        self.incidents.append({"at": self.cloud.clock(), "kind": kind, **about})
        self.sample()

    def sample(self) -> None:
        """How each pool is now, if that has changed since the last time."""
        with self.cloud.lock:
            for pool in self.cloud.pools:
                members = self._members(pool)
                if self._last.get(pool) != members:
                    self._last[pool] = members
                    self.balancer.append({"at": self.cloud.clock(), "pool": pool, "members": members})

    def _members(self, pool: str) -> dict[str, Line]:
        return {
            name: {"address": view.address, "port": view.port, "state": self._state(view)}
            for name, view in self.cloud.pools[pool].items()
        }

    def _state(self, view: Any) -> str:
        return "down" if view.state == "serving" and not self.cloud.alive(view.address) else str(view.state)

    # -- calls ----------------------------------------------------------------------------------------------------

    def compute(self, name: str, do: Callable[[], Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        making = name.startswith("ensure_")
        line: Line = {"call": name}
        if making:
            key = args[0]
            line |= {"id": "", "token": key.token, "name": key.name, "tags": dict(key.tags)}
            line["source"] = kwargs.get("source") or kwargs.get("image", "")
        else:
            line["id"] = args[0]
        with self.cloud.lock:
            made = set(self.cloud.things) if making else set()
            was = None if making else self._thing(args[0])
            try:
                return self._seen(line, do)
            finally:
                if making:
                    fresh = sorted(set(self.cloud.things) - made)
                    line |= self._made(fresh[0] if fresh else self.cloud._tokens.get(key.token, ""))
                    line["effect"] = bool(fresh)
                    if line["outcome"] == "done":
                        line["outcome"] = "made" if fresh else "adopted"
                else:
                    line["effect"] = self._thing(args[0]) != was
                    if name == "start" and line["effect"]:
                        line["boot"] = self.cloud.things[args[0]].view.boot  # type: ignore[union-attr] # only servers start
                self.sample()

    def _thing(self, id: str) -> Any:
        thing = self.cloud.things.get(id)
        return None if thing is None else (self.cloud.now(thing), thing.protected)

    def _made(self, id: str) -> Line:
        thing = self.cloud.things.get(id)
        if thing is None:
            return {}
        view = thing.view
        return {"id": id, **({"address": view.address, "boot": view.boot} if isinstance(view, Server) else {})}

    def traffic(self, name: str, do: Callable[[], Any], pool: str, member: Any) -> Any:
        id = member if isinstance(member, str) else member.name
        with self.cloud.lock:
            was = self.cloud.pools.get(pool, {}).get(id)
            line = {"call": name, "id": id, "pool": pool, "address": was.address if was else ""}
            try:
                return self._seen(line, do)
            finally:
                now = self.cloud.pools.get(pool, {}).get(id)
                line["effect"] = now != was
                line["address"] = line["address"] or (now.address if now else "")
                self.sample()

    def _seen(self, line: Line, do: Callable[[], Any]) -> Any:
        line["at"] = self.cloud.clock()
        line["outcome"] = "failed"
        self.calls.append(line)
        try:
            answer = do()
        except GuardRefused:
            line["outcome"] = "refused"
            raise
        line["outcome"] = "done"
        return answer

    def probe(self, do: Callable[[], Any], address: str) -> Any:
        at, boot = self.cloud.clock(), self._boot(address)
        try:
            answer = do()
        except ProviderError:
            self.probes.append({"at": at, "address": address, "boot": boot, "passed": False})
            raise
        self.probes.append({"at": at, "address": address, "boot": boot, "passed": answer.passed})
        return answer

    def _boot(self, address: str) -> str:
        with self.cloud.lock:
            thing = self.cloud.things.get(self.cloud.addresses.get(address, ""))
            return thing.view.boot if thing is not None and isinstance(thing.view, Server) else ""

    def inventory(self) -> list[Line]:
        """What is there now."""
        with self.cloud.lock:
            views = [self.cloud.now(thing) for thing in self.cloud.things.values()]
        return [
            {
                "id": view.id,
                "kind": "server" if isinstance(view, Server) else "image",
                "state": view.state,
                "tags": dict(view.tags),
                "name": view.name,
                **({"address": view.address, "boot": view.boot} if isinstance(view, Server) else {}),
            }
            for view in views
            if view.state != "terminated"
        ]


class _Watched:
    """A provider whose changing calls are written down."""

    def __init__(self, recorder: Recorder, provider: Any, role: str) -> None:
        self._recorder = recorder
        self._provider = provider
        self._role = role

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._provider, name)
        if self._role == "compute" and name in COMPUTE:
            return lambda *args, **kwargs: self._recorder.compute(name, lambda: found(*args, **kwargs), args, kwargs)
        if self._role == "traffic" and name in TRAFFIC:
            return lambda pool, member, **kwargs: self._recorder.traffic(
                name, lambda: found(pool, member, **kwargs), pool, member
            )
        if (self._role, name) == ("probe", "check"):
            return lambda *args, **kwargs: self._recorder.probe(lambda: found(*args, **kwargs), args[0])
        return found


def watch(r: Runner) -> Recorder:
    """A recorder inside that runner's cloud, before anything has happened there."""
    recorder, find = Recorder(r.cloud), r.world.find
    r.world.find = lambda role, name, settings: recorder.wrap(role, find(role, name, settings))
    r.world._found.clear()
    r.world._providers.clear()  # those that the survey has used are not watched
    return recorder


def write(folder: Path, recorder: Recorder, store: Store, *, rollout: str, fleet: Fleet) -> Path:
    """The whole evidence of one rollout; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    recorder.sample()
    document(folder / "plan.json", plan(recorder.before, rollout, fleet))
    lines(folder / "cloud.jsonl", recorder.calls)
    document(folder / "inventory.json", recorder.inventory())
    lines(folder / "balancer.jsonl", recorder.balancer)
    lines(folder / "probes.jsonl", recorder.probes)
    if recorder.claims:
        lines(folder / "claims.jsonl", recorder.claims)
    if recorder.incidents:
        lines(folder / "incidents.jsonl", recorder.incidents)
    write_store(folder, store, rollout)
    return folder


def write_store(folder: Path, store: Store, rollout: str) -> None:
    """The part of it that the store tells."""
    rows = store.rows(rollout)
    lines(folder / "audit.jsonl", audit(store, [found.id for found in store.rollouts()]))
    document(folder / "ledger.json", [asdict(item) for item in store.ledger(rollout)])
    document(folder / "records.json", {row.upgrade.server: json.loads(codec.UPGRADE.dump(row.upgrade)) for row in rows})


def plan(before: Mapping[str, Any], rollout: str, fleet: Fleet) -> Line:
    """What was asked for; `before` are the members of each pool as they were then."""
    smoke = fleet.checks.smoke
    return {
        "rollout": rollout,
        "retain_seconds": fleet.retain.old_servers,
        "soak_seconds": fleet.rollout.soak,
        "bake_seconds": fleet.rollout.bake,
        "smoke_fresh_seconds": FRESH,
        "smoke_passes": smoke.passes,
        "servers": {
            server.name: {
                "id": server.id or server.name,
                "pools": server.pools,
                "smoke_requests": sum(r.pool in (None, pool) for r in smoke.requests for pool in server.pools),
            }
            for server in fleet.servers
        },
        "pools": {
            name: {"port": pool.port, "min_healthy": pool.min_healthy, "members": before[name]}
            for name, pool in fleet.traffic.pools.items()
        },
    }


def audit(store: Store, rollouts: Iterable[str]) -> list[Line]:
    """Every audit entry of these rollouts, each rollout's in its order."""
    found: list[Line] = []
    for rollout in rollouts:
        after = "0"
        while entries := store.events(rollout, after=after):
            found += [{"rollout": rollout, **asdict(entry)} for entry in entries]
            after = entries[-1].id
    return found


def lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def document(path: Path, body: Any) -> None:
    path.write_text(json.dumps(body, indent=1))
