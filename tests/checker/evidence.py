"""The evidence as read from its folder, each line with where it stood."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

SKEW = 0.02  # seconds by which the clocks of store, cloud and balancer may differ
LATE = 60.0  # seconds that a call may be under way
REQUIRED = (
    "plan.json",
    "cloud.jsonl",
    "inventory.json",
    "balancer.jsonl",
    "probes.jsonl",
    "audit.jsonl",
    "ledger.json",
    "records.json",
)


@dataclass(frozen=True, kw_only=True)
class Violation:
    """A broken promise: which, where it shows (file and line, or file and time), and what is wrong in one sentence."""

    id: str
    where: str
    says: str

    def __str__(self) -> str:
        return f"{self.id} {self.where}: {self.says}"


class Unusable(Exception):
    """The evidence cannot be read: nothing follows from it, least of all that all is well."""


class Line(dict[str, Any]):
    """One line of a file, which knows where it stood."""

    where: str = ""

    @property
    def at(self) -> float:
        return float(self["at"])


@dataclass(frozen=True, kw_only=True)
class Evidence:
    folder: Path
    plan: Mapping[str, Any]
    cloud: list[Line]
    inventory: list[Line]
    balancer: list[Line]
    probes: list[Line]
    audit: list[Line]
    ledger: list[Line]
    records: Mapping[str, Mapping[str, Any]]
    traffic: list[Line] = field(default_factory=list)
    results: list[Line] = field(default_factory=list)
    claims: list[Line] = field(default_factory=list)
    incidents: list[Line] = field(default_factory=list)
    orders: Mapping[str, list[Any]] | None = None
    secrets: list[str] = field(default_factory=list)

    @property
    def rollout(self) -> str:
        return str(self.plan["rollout"])

    @cached_property
    def servers(self) -> Mapping[str, Mapping[str, Any]]:
        """All of the plan, but those that nobody could go on with."""
        out = {line["server"] for line in self.incidents if line["kind"] == "left out"}
        return {name: server for name, server in self.plan["servers"].items() if name not in out}

    def effects(self, *calls: str) -> Iterator[Line]:
        """Calls that changed something."""
        return (line for line in self.cloud if line["effect"] and (not calls or line["call"] in calls))

    def entries(self, server: str) -> list[Line]:
        """The audit log of one server of this rollout."""
        return self._entries.get(server, [])

    @cached_property
    def _entries(self) -> dict[str, list[Line]]:
        found: dict[str, list[Line]] = {}
        for line in self.audit:
            if line["rollout"] == self.rollout:
                found.setdefault(line["server"], []).append(line)
        return found

    @cached_property
    def old(self) -> dict[str, str]:
        """A's id -> the server's name."""
        return {str(server["id"]): name for name, server in self.plan["servers"].items()}

    @cached_property
    def seats(self) -> dict[tuple[str, str], str]:
        """(pool, member) of all that were there before -> whose A that is; a member of nobody's stands for itself."""
        return {
            (pool, name): str(member.get("server", name))
            for pool, each in self.plan["pools"].items()
            for name, member in each["members"].items()
        }

    @cached_property
    def old_addresses(self) -> dict[str, str]:
        """The address of everybody that was in a pool before -> its server."""
        return {
            str(self.plan["pools"][pool]["members"][name]["address"]): server
            for (pool, name), server in self.seats.items()
        }

    @cached_property
    def made(self) -> dict[str, Line]:
        """What was made: id -> the line in which that happened."""
        return {line["id"]: line for line in self.effects("ensure_image", "ensure_server")}

    @cached_property
    def new_addresses(self) -> dict[str, str]:
        """B's address -> its id."""
        made = {line["address"]: id for id, line in self.made.items() if line.get("address")}
        return made | {t["address"]: t["id"] for t in self.inventory if t.get("address") and ours(t)}

    def server_of(self, id: str) -> str:
        """Whose A, B or image that is; empty for nobody's."""
        if id in self.old:
            return self.old[id]
        line = self.made.get(id) or next((thing for thing in self.inventory if thing["id"] == id), Line())
        return str(line.get("tags", {}).get("changeover:server", ""))

    @property
    def given_up(self) -> bool:
        """Whether nobody answered any more for what was held."""
        return any(line["kind"] == "given up" for line in self.incidents)

    def lost(self, at: float) -> bool:
        """Whether the store may have forgotten why that was done then: a call that it knew of may still come."""
        return any(
            line["since"] - SKEW <= at <= line.at + LATE for line in self.incidents if line["kind"] == "store lost"
        )


def ours(thing: Mapping[str, Any]) -> bool:
    return bool(thing.get("tags", {}).get("changeover:managed") == "1")


def read(folder: Path) -> Evidence:
    """Raises `Unusable`."""
    missing = [name for name in REQUIRED if not (folder / name).is_file()]
    if missing:
        raise Unusable(f"{folder} has no {', '.join(missing)}")
    records = _json(folder / "records.json")
    orders = folder / "orders.json"
    secrets = folder / "secrets.json"
    return Evidence(
        folder=folder,
        plan=_json(folder / "plan.json"),
        cloud=_lines(folder / "cloud.jsonl"),
        inventory=_things(folder / "inventory.json"),
        balancer=_lines(folder / "balancer.jsonl"),
        probes=_lines(folder / "probes.jsonl"),
        audit=_lines(folder / "audit.jsonl"),
        ledger=_things(folder / "ledger.json"),
        records=records,
        traffic=_lines(folder / "traffic.jsonl"),
        results=_lines(folder / "results.jsonl"),
        claims=_lines(folder / "claims.jsonl"),
        incidents=_lines(folder / "incidents.jsonl"),
        orders=_json(orders) if orders.is_file() else None,
        secrets=_json(secrets) if secrets.is_file() else [],
    )


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise Unusable(f"{path.name}: {error}") from error


def _things(path: Path) -> list[Line]:
    found = []
    for number, item in enumerate(_json(path)):
        line = Line(item)
        line.where = f"{path.name}[{number}]"
        found.append(line)
    return found


def _lines(path: Path) -> list[Line]:
    found: list[Line] = []
    if not path.is_file():
        return found
    with path.open() as file:
        for number, text in enumerate(file, start=1):
            try:
                line = Line(json.loads(text))
            except (ValueError, TypeError) as error:
                raise Unusable(f"{path.name}:{number}: {error}") from error
            line.where = f"{path.name}:{number}"
            found.append(line)
    return found
