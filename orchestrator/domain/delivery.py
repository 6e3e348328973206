"""What came in by a webhook, and what comes of it: kept first, then carried out by whoever is alive. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from orchestrator.errors import Conflict

DeliveryState = Literal["waiting", "done", "failed", "ignored"]
DELIVERY_STATES: tuple[DeliveryState, ...] = get_args(DeliveryState)
IN_HAND = 180.0  # seconds that one who carries it out has for it: longer than a worker is waited for
GIVE_UP = 3600.0  # seconds: a rollout that starts much later than it was asked for surprises people
LONGEST_PAUSE = 60.0  # seconds between two attempts


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """`key` is the sender's own id of it, `event` what it tells of. `verb` and `fleet`: what is to be done, and with
    what; empty where no rule fits. `rollout`: the id that a start makes. `waited`: the rollouts that waited for an
    approval when it came, and for which wave: an approval is for no other. `why` says what came of it. `asked_at` is
    when it came, or was asked for again; `due` when to carry it out, or to look whether whoever has it in hand until
    `in_hand` still lives. Times are epoch seconds; `version` rises with every change."""

    id: str
    hook: str
    key: str
    event: str
    received_at: float
    asked_at: float
    rollout: str
    verb: str = ""
    fleet: str = ""
    state: DeliveryState = "waiting"
    why: str = ""
    attempts: int = 0
    due: float | None = None
    in_hand: float = 0.0
    version: int = 0
    waited: Mapping[str, int] = field(default_factory=dict)

    def taken(self, now: float) -> Delivery:
        return replace(self, attempts=self.attempts + 1, in_hand=now + IN_HAND, due=now + IN_HAND)

    def ended(self, state: DeliveryState, why: str) -> Delivery:
        return replace(self, state=state, why=why, in_hand=0.0, due=None)

    def put_off(self, why: str, now: float) -> Delivery:
        """Tried again later, or given up."""
        if now - self.asked_at >= GIVE_UP:
            return self.ended("failed", f"given up after {GIVE_UP / 60:.0f} min: {why}")
        pause = min(LONGEST_PAUSE, 2.0 ** min(self.attempts, 10))
        return replace(self, why=why, in_hand=0.0, due=now + pause)

    def behind(self, why: str, now: float) -> Delivery:
        """Another one comes first; this was no attempt."""
        return replace(self, why=why, attempts=self.attempts - 1, in_hand=0.0, due=now + 1.0)

    def again(self, now: float) -> Delivery:
        """Asked for once more, by a person. Raises `Conflict` for an approval, and while somebody has it in hand."""
        if self.verb == "approve":
            raise self.no_second_yes()
        if self.state == "waiting" and self.in_hand > now:
            raise Conflict(f"{self.id} is being carried out at this moment", next="changeover hooks list")
        return replace(self, state="waiting", why="", attempts=0, asked_at=now, in_hand=0.0, due=now)

    def no_second_yes(self) -> Conflict:
        """Whoever may redeliver need not be one who may approve, and whoever signed it has seen another wave."""
        return Conflict(
            f"{self.id} is an approval, which is carried out once, for the wave that waited when it came: its sender "
            "can send another",
            next="changeover approve ROLLOUT",
        )
