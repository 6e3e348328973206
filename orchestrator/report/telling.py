"""What the audit log of a rollout says, as the document that a report is drawn from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.domain.plan import Plan, human
from orchestrator.domain.rollout import Rollout
from orchestrator.domain.steps import RETIRE, STEPS
from orchestrator.domain.upgrade import Upgrade
from orchestrator.store import AuditEntry


def tell(rollout: Rollout, plan: Plan, upgrades: Sequence[Upgrade], log: Iterable[AuditEntry]) -> dict[str, Any]:
    """The document, without what only a watcher of the traffic can add (traffic, latency, certificate)."""
    entries = list(log)
    by_server: dict[str, list[AuditEntry]] = {}
    for entry in entries:
        by_server.setdefault(entry.server, []).append(entry)
    ended = max([entry.at for entry in entries] + [rollout.ended_at or rollout.created_at])
    target = plan.fleet["target"]["size"]
    return {
        "rollout": rollout.id,
        "fleet": rollout.fleet,
        "state": rollout.state,
        "started": rollout.created_at,
        "ended": ended,
        "summary": rollout.why,
        "steps": [*STEPS, RETIRE],
        "servers": [
            {
                "name": u.server,
                "outcome": u.state,
                "wave": u.wave + 1,
                "pool": ", ".join(seat.pool for seat in plan.server(u.server).seats),
                "reason": u.cause or u.why,
                "before": human(plan.server(u.server).memory),
                "after": human(int(str(target["memory"]).removesuffix("B"))) if u.state == "upgraded" else "",
                "steps": journey(by_server.get(u.server, []), until=ended),
            }
            for u in upgrades
        ],
        "marks": [
            {"t": entry.at, "label": _label(entry), "kind": "note"}
            for entry in by_server.get("", [])
            if entry.event in ("next wave", "baking", "stopped", "budget spent", "paused", "resumed", "aborting")
        ],
    }


def _label(entry: AuditEntry) -> str:
    wave = entry.detail.get("wave")
    return f"wave {int(wave) + 1}" if entry.event == "next wave" and wave is not None else entry.event


def journey(log: Sequence[AuditEntry], *, until: float) -> list[Mapping[str, Any]]:
    """One server's steps with their times, as its entries tell them. `until` ends what is not over."""
    steps: list[dict[str, Any]] = []
    for entry in log:
        step = str(entry.detail.get("step", ""))
        open_step = steps[-1] if steps and "end" not in steps[-1] else None
        match entry.event:
            case "Began" | "UndoBegan":
                if open_step is not None:
                    open_step["end"] = entry.at
                outcome = "undo" if entry.event == "UndoBegan" else "running"
                steps.append({"step": step, "start": entry.at, "outcome": outcome})
            case "Finished" | "Undone" if open_step is not None:
                open_step["end"] = entry.at
                if entry.event == "Finished":
                    open_step["outcome"] = "done"
            case "TurnedBack" | "Held" if open_step is not None:
                open_step |= {"end": entry.at, "outcome": "failed", "note": str(entry.detail.get("why", ""))}
            case "AttemptEnded" if open_step is not None:
                open_step |= {"end": entry.at, "outcome": "failed", "note": str(entry.detail.get("why", ""))}
            case _:
                pass
    return [{**step, "end": max(step.get("end", until), step["start"])} for step in steps]
