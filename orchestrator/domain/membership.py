"""Who belongs into the pools, read from the records alone; and what follows when a new server fares badly there.

Only servers that this rollout may have touched in a balancer are looked after: those past the first intent of their
swap, and those that have begun anew. What a step is at work on may be anything, and what is not listed is not ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.domain.plan import Seat, generation
from orchestrator.domain.rollout import Rollout
from orchestrator.domain.upgrade import Side, Upgrade

Want = Literal["serving", "absent"]
OFTEN, SELDOM = 5.0, 30.0  # seconds between looks: while things change, and when nothing does
DOUBT = 2.0  # seconds between looks at one that does not serve
SETTLING = 60.0  # seconds after a change for which it is looked at often: twice as long as a late call may take


@dataclass(frozen=True, kw_only=True)
class Place:
    """One member of one pool, and how it must be there."""

    pool: str
    name: str
    side: Side
    want: Want


def desired(u: Upgrade, seats: Sequence[Seat], *, additive: bool = True) -> list[Place]:
    """Every place that must be as it says. `seats` are A's, from the plan. Where the switch is not `additive`, only one
    of the two can serve at a time."""
    if u.by_hand or not (u.past_swap or u.life > 1):
        return []
    former = [
        Place(pool=seat.pool, name=generation(seat.new_name, life), side="new", want="absent")
        for seat in seats
        for life in range(u.life - 1)
    ]
    wants = _wants(u, additive)
    places = former
    for seat in seats:
        for side, name in (("old", seat.name), ("new", generation(seat.new_name, u.life - 1))):
            want = wants[side == "new"]
            if want is not None:
                places.append(Place(pool=seat.pool, name=name, side="new" if side == "new" else "old", want=want))
    return places


def _wants(u: Upgrade, additive: bool = True) -> tuple[Want | None, Want | None]:
    """What A and what B must be in each pool; None: anything."""
    if u.state == "upgraded":
        return "absent", "serving"
    if u.state in ("rolled_back", "failed", "pending"):
        return "serving", "absent"
    if u.direction == "forward":
        if u.step == "drain_old":
            return None, "serving"
        if u.step == "swap" and not additive:
            return None, None
        return ("serving" if u.life > 1 else None), (None if u.step == "swap" else "absent")
    if u.step == "drain_old":
        return None, "serving" if "swap" in u.results and additive else None
    back: Want | None = "serving" if u.has_begun("drain_old") or u.life > 1 else None
    return back, None if u.step == "swap" else "absent"


def must_serve(u: Upgrade) -> bool:
    """Whether users rely on B, and it has not been given up."""
    return not u.by_hand and u.direction == "forward" and _wants(u)[1] == "serving" and u.past_swap


def watched(places: Sequence[Place]) -> bool:
    """Whether B is among those that must serve: one that does not is seen, and one that does again."""
    return any(place.side == "new" and place.want == "serving" for place in places)


def on_probation(rollout: Rollout, u: Upgrade) -> bool:
    """Its wave has not got through its bake: a failure of B is a failure behind the swap, and A comes back by itself.
    After that a person decides."""
    return not rollout.ended and u.wave >= rollout.wave and not u.beyond_return


def look_every(rollout: Rollout, upgrades: Sequence[Upgrade], *, now: float) -> float | None:
    """Seconds between two looks at the pools; None as long as there is nothing to look after."""
    ours = [u for u in upgrades if not u.by_hand and (u.past_swap or u.life > 1)]
    if rollout.closed or not ours:
        return None
    if any(u.in_doubt for u in ours):
        return DOUBT
    if rollout.state == "baking":
        return min(OFTEN, max(0.5, rollout.bake / 5))
    changing = not rollout.ended or any(u.ended_at is not None and now - u.ended_at < SETTLING for u in ours)
    return OFTEN if changing else SELDOM


def alarm(upgrades: Sequence[Upgrade]) -> str:
    """What the rollout says of those whose new server does not serve as it should."""
    ailing = [u for u in upgrades if u.ailing is not None]
    if not ailing:
        return ""
    first = ailing[0]
    assert first.ailing is not None
    more = f" (and {len(ailing) - 1} more)" if len(ailing) > 1 else ""
    now = "; on its way back" if first.direction == "undo" else "" if first.ailing.sure else "; making sure"
    return f"{first.server}: {first.ailing.why}{now}{more}"
