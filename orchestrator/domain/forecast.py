"""How long a rollout will still take, from how long it has taken so far. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from orchestrator.domain.rollout import Rollout
from orchestrator.domain.upgrade import Upgrade


def time_left(rollout: Rollout, upgrades: Sequence[Upgrade], *, now: float) -> float | None:
    """Seconds until the last wave has baked, if each server takes as long as the median of those that are upgraded.
    None as long as nobody can say: none is upgraded yet, one is held, or the rollout does not go forward."""
    took = [
        u.ended_at - u.admitted_at
        for u in upgrades
        if u.state == "upgraded" and u.ended_at is not None and u.admitted_at is not None
    ]
    if rollout.state not in ("running", "baking") or not took or any(u.state == "held" for u in upgrades):
        return None
    typical = median(took)
    left = 0.0
    for wave in range(rollout.wave, len(rollout.waves)):
        inside = [u for u in upgrades if u.wave == wave]
        pending = sum(u.state == "pending" for u in inside)
        begun = [
            max(0.0, typical - (now - (u.admitted_at or now))) for u in inside if u.state in ("running", "waiting")
        ]
        if pending or begun:
            at_once = max(1, min(rollout.max_in_flight, pending + len(begun)))
            whole = (pending * typical + sum(begun)) / at_once
            left += max(whole, typical if pending else max(begun))
        if wave == rollout.wave and rollout.state == "baking":
            left += max(0.0, (rollout.bake_until or now) - now)
        else:
            left += rollout.bake
    return left
