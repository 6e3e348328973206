"""What the audit log of a rollout says, as the document that a report is drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from orchestrator.domain.plan import Plan, human, plan_from
from orchestrator.domain.rollout import Rollout, counts
from orchestrator.domain.steps import RETIRE, STEPS
from orchestrator.domain.upgrade import Upgrade
from orchestrator.report.stretches import Stretches

if TYPE_CHECKING:
    from orchestrator.store import AuditEntry

# Events of the rollout that a reader of the timeline should see, and which of them tell of a fault.
_MARKS: Mapping[str, str] = {
    "next wave": "note",
    "paused": "note",
    "resumed": "note",
    "aborting": "note",
    "rolling back": "note",
    "reopened": "note",
    "approval asked": "note",
    "approved": "note",
    "not approved": "note",
    "window closed": "note",
    "window opened": "note",
    "promoted": "note",
    "frozen": "note",
    "unfrozen": "note",
    "refused": "note",
    "stopped": "fault",
    "budget spent": "fault",
}


def tell(
    r: Rollout,
    upgrades: Sequence[Upgrade],
    entries: Sequence[AuditEntry],
    spec: Mapping[str, Any] | None,
    *,
    now: float,
) -> dict[str, Any]:
    """The document, without what only a watcher of the traffic can add (traffic, latency, certificate). `spec` is the
    rollout's own, with its plan."""
    plan = plan_from(spec["plan"]) if spec else None
    by_server: dict[str, list[AuditEntry]] = {}
    for entry in entries:
        by_server.setdefault(entry.server, []).append(entry)
    ended = max([r.ended_at or now, r.created_at, *(entry.at for entry in entries)])
    return {
        "schema": 1,
        "rollout": r.id,
        "fleet": r.fleet,
        "state": r.state,
        "started": r.created_at,
        "ended": ended,
        "summary": _summary(r, upgrades),
        "steps": [*STEPS, RETIRE],
        "servers": [_server(u, by_server.get(u.server, []), plan, ended) for u in upgrades],
        "marks": [
            {"t": entry.at, "label": _label(entry), "kind": _MARKS[entry.event]}
            for entry in by_server.get("", [])
            if entry.event in _MARKS
        ],
        "facts": _facts(r, plan),
    }


def _summary(r: Rollout, upgrades: Sequence[Upgrade]) -> str:
    states = ", ".join(f"{number} {state.replace('_', ' ')}" for state, number in counts(upgrades).items())
    return f"{states}{f'; {r.why}' if r.why else ''}"


def _facts(r: Rollout, plan: Plan | None) -> list[dict[str, str]]:
    found = {
        "Plan": r.plan,
        "Begun by": r.created_by,
        "Waves": ", ".join(str(len(wave)) for wave in r.waves),
        "At once": str(r.max_in_flight),
        "Failures allowed before the swap": str(r.allowed_failures),
    }
    if plan is not None:
        found["To know"] = "; ".join(plan.caveats)
    return [{"label": label, "value": value} for label, value in found.items() if value]


def _server(u: Upgrade, entries: Sequence[AuditEntry], plan: Plan | None, end: float) -> dict[str, Any]:
    found = plan.server(u.server) if plan is not None else None
    return {
        "name": u.server,
        "outcome": u.state,
        "wave": u.wave + 1,
        "pool": ", ".join(seat.pool for seat in found.seats) if found else "",
        "reason": u.cause or u.why,
        "before": human(found.memory) if found else "",
        "after": _became(u),
        "steps": _steps(entries, end),
    }


def _became(u: Upgrade) -> str:
    """B's memory, of those that are upgraded."""
    memory = [intent.params["memory"] for intent in u.intents("provision") if "memory" in intent.params]
    return human(int(memory[-1])) if u.state == "upgraded" and memory else ""


def _label(entry: AuditEntry) -> str:
    if entry.event == "next wave":
        return f"wave {int(entry.detail.get('wave', 0)) + 1}"
    why = str(entry.detail.get("why", ""))
    return f"{entry.event}: {why}" if why else entry.event


def _steps(entries: Sequence[AuditEntry], end: float) -> list[dict[str, Any]]:
    stretches = Stretches()
    ended = [stretch for entry in entries if (stretch := stretches.add(entry)) is not None]
    open_now = stretches.under_way(end)
    return [asdict(stretch) for stretch in [*ended, *([open_now] if open_now is not None else [])]]
