"""How records read to a person: one line an event, the next command, durations and moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from orchestrator.domain.budget import Bucket
from orchestrator.domain.rollout import GOING, Rollout
from orchestrator.domain.steps import STEPS
from orchestrator.domain.upgrade import Upgrade
from orchestrator.store import AuditEntry


def clock(at: float) -> str:
    """Local time of day."""
    return datetime.fromtimestamp(at).astimezone().strftime("%H:%M:%S")


def moment(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def slowed(api: str, bucket: Bucket) -> str:
    """A provider has said that it was asked too often."""
    return (
        f"{api} was asked too often, last at {clock(bucket.refused_at)}: "
        f"all workers together ask {bucket.rate:.2g} times a second now, and more often again by and by"
    )


def span(seconds: float) -> str:
    """A length of time as a person says it."""
    seconds = max(0.0, seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172800:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 86400:.0f} days"


def short(line: str, most: int = 60) -> str:
    return line if len(line) <= most else f"{line[: most - 1]}…"


def many(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


ALONE = "no worker is alive: nothing goes on before one is"


def unanswered(rollout: Rollout) -> str:
    """When it is too late to approve its wave, and what happens then."""
    if rollout.approval is None or rollout.wakes_at is None:
        return ""
    then = {"pause": "it is paused", "abort": "it is aborted", "continue": "it goes on all the same"}
    return f"; if nobody has by {moment(rollout.wakes_at)}, {then[rollout.approval.otherwise]}"


def names(upgrades: tuple[Upgrade, ...], *, most: int = 5) -> str:
    """Who and where: `web-1 (swap), web-2 (provision) and 3 more`."""
    told = ", ".join(f"{u.server} ({where(u)})" for u in upgrades[:most])
    return told + (f" and {len(upgrades) - most} more" if len(upgrades) > most else "")


def where(u: Upgrade) -> str:
    """The step that an upgrade is at, and in which direction."""
    if u.state == "upgraded":
        return "done" if u.settled else "old server gone" if u.old_lost else "old server kept"
    return f"undo {u.step}" if u.direction == "undo" else u.step


def progress(u: Upgrade) -> str:
    """`3/6 poll_readiness`."""
    if u.state not in ("running", "waiting", "held") or u.step not in STEPS:
        return ""
    return f"{STEPS.index(u.step) + 1}/{len(STEPS)} {where(u)}"


def happened(entry: AuditEntry) -> str:
    """One line, without time and server."""
    detail: Mapping[str, Any] = entry.detail
    why = str(detail.get("why") or detail.get("reason") or "")
    if not entry.server:
        wave = f" (wave {int(detail['wave']) + 1})" if entry.event == "next wave" and "wave" in detail else ""
        change = f"{entry.was} → {entry.now}" if entry.was and entry.was != entry.now else ""
        return ": ".join(part for part in (f"{entry.event}{wave}", why or change) if part)
    step = str(detail.get("step") or entry.after.get("step") or STEPS[0])
    match entry.event:
        case "Admitted":
            return "starts"
        case "Began":
            attempt = int(detail.get("attempt", 0))
            return f"{step} begins" + (f", attempt {attempt + 1}" if attempt else "")
        case "UndoBegan":
            return f"undo of {step} begins"
        case "Waits":
            return why if why.startswith(step.replace("_", " ")) else f"{step}: {why}"
        case "Finished":
            return f"{step} done" + (f": {entry.after['why']}" if entry.after.get("why") else "")
        case "Undone":
            return f"undo of {step} done"
        case "Stumbled":
            return f"{step} will be tried again: {why}"
        case "AttemptEnded":
            back = str(entry.after.get("step") or step)
            return f"{step} was refused, a new attempt{f' of {back}' if back != step else ''} follows: {why}"
        case "TurnedBack":
            return f"turned back: {why}"
        case "Held":
            return f"NEEDS YOU at {step}: {why}"
        case "Released":
            return f"released{f': {why}' if why else ''}"
        case "Ailed":
            return f"its new server ails: {why}{_repairs(detail)}"
        case "Recovered":
            return f"its new server serves again{_repairs(detail)}"
        case "Repaired":
            return f"put right{_repairs(detail)}"
        case "Settled":
            checked = "" if detail.get("checked") else ", unchecked"
            return f"settled by {entry.actor}, its {detail.get('serving', '')} server serves{checked}: {why}"
        case "Rebuilt":
            return f"told from the world: {detail.get('found', '')}. Goes on with: {detail.get('resumes', '')}"
        case "Quarantined" | "OrphanDeleted":
            now = "put into quarantine" if entry.event == "Quarantined" else "deleted"
            return f"{detail.get('kind', '')} {detail.get('id', '')}, which nobody accounts for, is {now}"
        case "Shifted":
            return "deadline moved by the pause"
        case _:
            return f"{entry.event}{f': {why}' if why else ''}"


def _repairs(detail: Mapping[str, Any]) -> str:
    done = [f"{one['name']} was {one['was']} in {one['pool']}, is {one['now']}" for one in detail.get("repaired", ())]
    return f"; {', '.join(done)}" if done else ""


def next_for(rollout: Rollout, u: Upgrade) -> str:
    """The one next command for a server."""
    match u.state:
        case "held":
            return f"changeover retry {rollout.id} --server {u.server}"
        case "failed" | "rolled_back" if not rollout.closed and rollout.state in GOING | {"failed"}:
            return f"changeover retry {rollout.id} --server {u.server}"
        case "upgraded" if not u.beyond_return:
            return f"changeover rollback {rollout.id} --server {u.server}"
        case "pending" | "running" | "waiting" if rollout.state == "paused":
            return f"changeover resume {rollout.id}"
        case "running" | "waiting":
            return f"changeover watch {rollout.id}"
        case "pending" if rollout.state == "awaiting_approval" and u.wave == rollout.wave:
            return f"changeover approve {rollout.id} --wave {rollout.wave + 1}"
        case "pending" if not rollout.ended:
            return f"changeover watch {rollout.id}"
        case _:
            return f"changeover show {rollout.id}"


UNTOUCHED = "as it was: nothing of ours touches it until its record can be read"


def next_for_unread(rollout: Rollout, server: str) -> str:
    """For a server whose record cannot be read: nothing but what was stored before can say where it stands."""
    return (
        f"changeover explain {server} --rollout {rollout.id}   and restore Redis from its append-only file or a backup"
    )


def otherwise(rollout: Rollout, u: Upgrade) -> str:
    """What else a person can say of a server that waits for them: one that cannot go on can end as it stands."""
    if u.direction == "undo" or u.state == "upgraded":
        return f"changeover settle {rollout.id} {u.server} --serving old|new --because TEXT"
    return f"changeover rollback {rollout.id} --server {u.server}"


def moved_on(rollout: Rollout, upgrades: Sequence[Upgrade]) -> bool:
    """Whether servers have been put back, or still are, of a rollout that says of itself that it has succeeded."""
    undone = [u for u in upgrades if u.direction == "undo"]
    return bool(undone) and (
        rollout.state == "succeeded" or (rollout.ended and any(u.state in ("running", "waiting") for u in undone))
    )


def next_of(rollout: Rollout, upgrades: Sequence[Upgrade]) -> str:
    """The one next command for a rollout."""
    needing = [u for u in upgrades if u.state == "held"]
    if not needing and rollout.state not in ("rolling_back", "aborting"):
        needing = [u for u in upgrades if u.alarming]
    if needing and rollout.state != "paused":
        return next_for(rollout, needing[0])
    match rollout.state:
        case "paused":
            return f"changeover resume {rollout.id}"
        case "awaiting_approval":
            return f"changeover approve {rollout.id} --wave {rollout.wave + 1}"
        case "failed" if not rollout.closed and any(u.state == "failed" for u in upgrades):
            return f"changeover retry {rollout.id}"
        case "succeeded" | "failed" | "aborted" | "rolled_back" if not any(
            u.state in ("running", "waiting") for u in upgrades
        ):
            return f"changeover report {rollout.id} --out DIR"
        case _:
            return f"changeover watch {rollout.id}"
