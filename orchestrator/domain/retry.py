"""What a failure means for an upgrade: try the same again, try anew, turn back, or ask a person. Never a sleep.

Full jitter: the wait before try n is uniform between nothing and base * 2^n, capped, so that servers that were refused
together do not come back together (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.domain.upgrade import AttemptEnded, Event, Held, Stumbled, TurnedBack, Upgrade

Trouble = Literal[
    "busy",  # somebody else's turn, or asked too often: nothing happened, and it counts for nothing
    "guard",  # the resource refused since obeying would hurt users: wait for better times
    "away",  # the provider does not answer, or not what became of it: look again under the same intent, to the deadline
    "unsure",  # an answer that makes no sense: look again under the same intent, a few times
    "refused",  # a definite no: nothing was made; a new attempt
    "failed",  # a check said no: B is not fit
    "blocked",  # nobody can go on before a person has changed something
]
CAP = 60.0
WORKERS_LOST = 3  # different processes in a row that died or froze at one server: it is not tried for ever
LEASES_LOST = 6  # in a row, of whatever process


@dataclass(frozen=True, kw_only=True)
class Limits:
    """`attempts` bounds definite refusals, and tries in a row that made no sense or came after the deadline. `base` in
    seconds."""

    attempts: int
    base: float


def answer_to(u: Upgrade, trouble: Trouble, why: str, *, limits: Limits, now: float, spread: float) -> Event:
    """The event that follows. `spread` is a random number in [0, 1).

    A deadline that has passed ends no try by itself: after an hour in which nobody worked, the first call to be
    throttled would else turn everybody back. From then on every try counts."""
    late = u.deadline is not None and now > u.deadline
    counts = late or trouble in ("away", "unsure")
    again = Stumbled(why=why, at=now + back_off(u.tries, limits.base, spread), counts=counts)
    last = u.tries + 1 >= limits.attempts
    if u.state == "upgraded":  # its retirement: users are served by B; go on trying
        return Stumbled(why=why, at=now + max(1.0, back_off(u.tries, limits.base, spread)))
    refused = trouble == "refused"
    give_up: Event = (
        Held(why=why) if u.direction == "undo" else TurnedBack(why=why, at=now, asked=False, refused=refused)
    )
    match trouble:
        case "busy" | "guard" | "away":
            return give_up if late and last else again
        case "unsure":
            return give_up if last else again
        case "refused":
            if u.direction == "undo" or u.intent is None:
                return give_up if last else Stumbled(why=why, at=again.at)
            if len(u.intents(u.step)) >= limits.attempts:
                return give_up
            return AttemptEnded(why=why, at=again.at)
        case "failed":
            return give_up
        case "blocked":
            return Held(why=why)


def poison(u: Upgrade, lost: Sequence[str], *, now: float) -> Event | None:
    """What follows when the workers that worked at it were lost, one after another, without getting anywhere; None as
    long as it may go on. `lost` are their processes, as the store's claim says. A process that outlives its lost
    leases was cut off, or hangs in a call: it counts once, unless there are many."""
    if len(set(lost)) < WORKERS_LOST and len(lost) < LEASES_LOST:
        return None
    who = ", ".join(dict.fromkeys(lost))
    way = "undo of " if u.direction == "undo" and u.state != "upgraded" else ""
    why = (
        f"poison: {len(lost)} workers in a row died or froze at {way}{u.step} ({who}); it is not tried again by itself"
    )
    if u.state == "upgraded":  # its retirement: users are served by B, and nobody need hurry
        return Stumbled(why=f"{why} before an hour has passed", at=now + 3600.0)
    return Held(why=why)


def back_off(tries: int, base: float, spread: float) -> float:
    """Seconds to wait before the next try."""
    return max(0.05, spread * min(CAP, base * 2.0 ** min(tries, 20)))
