"""Whether a server may be settled as a person says: judged by what a worker has seen of the world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter

from orchestrator.domain.upgrade import Side


@dataclass(frozen=True, kw_only=True)
class SeenMember:
    """A's or B's place in one pool, in the balancer's own view. `state` is a traffic provider's."""

    side: Side
    pool: str
    name: str
    state: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class SeenThing:
    """A, or something that was made for this upgrade. `state` is a compute provider's, or `gone`."""

    side: Side
    kind: Literal["server", "image"]
    id: str
    state: str

    @property
    def gone(self) -> bool:
        return self.state in ("gone", "terminated")


@dataclass(frozen=True, kw_only=True)
class Whereabouts:
    """Where A and B of one upgrade are, read by a worker."""

    members: tuple[SeenMember, ...]
    things: tuple[SeenThing, ...]

    def gone(self, id: str) -> bool:
        return any(thing.gone for thing in self.things if thing.id == id)

    def told(self) -> list[str]:
        """One line each, for a person and for the audit log."""
        lines = [
            f"{m.name} is {m.state} in pool {m.pool}" + (f" ({m.detail})" if m.detail else "") for m in self.members
        ]
        return lines + [f"{thing.kind} {thing.id} is {thing.state}" for thing in self.things]


_WHEREABOUTS = TypeAdapter(Whereabouts)


def whereabouts_from(document: Mapping[str, Any]) -> Whereabouts:
    """What was stored as `asdict(whereabouts)`."""
    return _WHEREABOUTS.validate_python(document)


def contradictions(serving: Side, seen: Whereabouts) -> Sequence[str]:
    """What of the world speaks against "this one serves, and the other is out of it"; one line each."""
    lines = []
    for pool in sorted({member.pool for member in seen.members}):
        mine = [m for m in seen.members if m.pool == pool and m.side == serving]
        if not any(m.state == "serving" for m in mine):
            found = next((m for m in mine if m.state != "absent"), mine[0] if mine else None)
            told = f"{found.name} is {found.state}" if found else "nobody of that side is known"
            lines.append(f"{told} in pool {pool}: it does not serve")
    lines += [
        f"{m.name} is still {m.state} in pool {m.pool}: nobody would look after it any more"
        for m in seen.members
        if m.side != serving and m.state != "absent"
    ]
    return lines
