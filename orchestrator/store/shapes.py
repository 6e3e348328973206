"""What both stores need of a record to index it, and what neither accepts."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from orchestrator.domain.outbox import Feed
from orchestrator.domain.rollout import Rollout, is_id
from orchestrator.domain.upgrade import Upgrade
from orchestrator.errors import BadInput, Fenced, Locked, NotFound
from orchestrator.store import Claim

SETTLES = 10.0  # seconds in which every worker has heard that a rollout was rebuilt
RESEND = 300.0  # seconds between two sendings of what nobody takes, at the most (or the grace, if longer)
MOST_LOST = 6  # leases lost in a row that are remembered
_CURSOR = re.compile(r"\d{1,20}(-\d{1,20})?\Z")


def at_rest(upgrade: Upgrade) -> bool:
    """In no agenda: nothing happens to it by itself."""
    return upgrade.state in ("pending", "held") or upgrade.settled


def attempts(upgrade: Upgrade) -> str:
    """All in which a pending record differs from an earlier pending one of the same server: an admission that was
    decided before a retry must not bring back tokens that stand for what was destroyed."""
    return json.dumps(dict(upgrade.attempts), sort_keys=True, separators=(",", ":"))


def target(upgrade: Upgrade) -> dict[str, Any]:
    return {
        "state": upgrade.state,
        "rest": "1" if at_rest(upgrade) else "0",
        "direction": upgrade.direction,
        "step": upgrade.step,
        "attempts": attempts(upgrade) if upgrade.state == "pending" else "",
    }


def handed_on(upgrade: Upgrade, look: str | None) -> bool:
    """The rest of the chain goes on: the next step's message is on its way."""
    return upgrade.state == "running" and upgrade.wait is None and look is None


def check_agenda(to: Upgrade, due: float | None) -> float | None:
    """What is at rest is in no agenda; what is not, and were in none, would never be found again: ValueError."""
    if at_rest(to):
        return None
    if due is None:
        raise ValueError(f"{to.server} is {to.state} at {to.step}: it needs a due time")
    return due


def check_goes_on(to: Upgrade) -> None:
    """Work follows an admission and an intent: ValueError for a record at rest, which nobody would look at again."""
    if at_rest(to):
        raise ValueError(f"{to.server} is {to.state} at {to.step}: nothing can begin there")


def check_creation(rollout: Rollout, upgrades: Sequence[Upgrade]) -> None:
    if not is_id(rollout.id):
        raise BadInput(f"{rollout.id!r} is no id of a rollout: letters, digits, dot, dash and underscore")
    names = set()
    for upgrade in upgrades:
        if upgrade.rollout != rollout.id or upgrade.server in names:
            raise ValueError(f"{upgrade.server}: each server once, in rollout {rollout.id}")
        if not upgrade.server or "\n" in upgrade.server:
            raise BadInput(f"{upgrade.server!r} is no name of a server")
        names.add(upgrade.server)


def counted(upgrades: Sequence[Upgrade]) -> tuple[dict[str, int], dict[str, int]]:
    """How many there are by state, and of each failure domain in flight."""
    states, domains = Counter(u.state for u in upgrades), Counter(u.domain for u in upgrades if u.domain and flying(u))
    return {str(state): n for state, n in states.items()}, dict(domains)


def flying(upgrade: Upgrade) -> bool:
    return upgrade.state in ("running", "waiting", "held")


def due_at(upgrade: Upgrade, now: float) -> float | None:
    """When one that was not there before is to be looked at; None for one at rest."""
    if at_rest(upgrade):
        return None
    return upgrade.retain_until or now if upgrade.state == "upgraded" else now + SETTLES


def latest(upgrade: Upgrade) -> float | None:
    """Until when one under way may lie in its agenda, if no message of it is out; None where another time counts."""
    if upgrade.state not in ("running", "waiting"):
        return None
    return upgrade.wait.at if upgrade.wait is not None else 0.0


def check_cursor(cursor: str) -> str:
    """Of a stream; empty is its beginning."""
    if cursor and not _CURSOR.match(cursor):
        raise BadInput(f"{cursor!r} is no id of an event, like 1700000000000-0")
    return cursor or "0"


def frozen_text(actor: str, reason: str) -> str:
    return f"{reason} (by {actor})" if reason else f"by {actor}"


def fenced(claim: Claim, why: str) -> Fenced:
    return Fenced(f"{claim.server} of {claim.rollout} is not {claim.owner}'s any more: {why}")


def locked(server: str, rollout: str) -> Locked:
    return Locked(f"{server} belongs to rollout {rollout}", next=f"changeover show {rollout}")


def feed_name(was: Feed | None, now: Feed | None) -> str:
    """Of the one that both are of. Raises ValueError."""
    names = {feed.name for feed in (was, now) if feed is not None}
    if len(names) != 1:
        raise ValueError(f"a feed is changed into itself alone, not {', '.join(sorted(names)) or 'from none to none'}")
    return names.pop()


def no_delivery(id: str) -> NotFound:
    return NotFound(f"there is no delivery {id}", next="changeover hooks list")
