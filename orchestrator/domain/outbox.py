"""Webhooks that go out: how far each receiver has been told. Pure.

The audit log is the outbox: an entry is written by the same script as the change that it tells of. A receiver's way
through the log of a rollout is a feed; what is behind its cursor has been told.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

IN_HAND = 60.0  # seconds that a worker has for its turn, since its last word
AGAIN = 10.0  # seconds until a gate that says "wait" is asked again
LONGEST_PAUSE = 3600.0  # seconds between two attempts
GIVE_UP = 86400.0  # seconds after which an event is left out, so that those behind it are told

GateAnswer = Literal["continue", "wait", "pause", "abort"]
GATE_ANSWERS: tuple[GateAnswer, ...] = get_args(GateAnswer)
# What a gate is asked by: before a wave, and after one; and the state in which its answer still counts.
GATES: Mapping[str, str] = {"approval asked": "awaiting_approval", "baking": "baking"}


@dataclass(frozen=True, kw_only=True)
class Feed:
    """`cursor`: the id of the last entry that was told or is none of the receiver's. `told` counts those told, `left`
    those that were given up. `due`: when to go on, in epoch seconds. While the same entry fails, `attempts`, `failing`
    (since when) and `why` say so. `version` rises with every change."""

    receiver: str
    rollout: str
    cursor: str = "0"
    due: float = 0.0
    told: int = 0
    left: int = 0
    attempts: int = 0
    failing: float | None = None
    why: str = ""
    version: int = 0

    @property
    def name(self) -> str:
        return f"{self.receiver}/{self.rollout}"

    def behind(self, newest: str) -> bool:
        """Whether something was written that it has not been told."""
        return place(newest) > place(self.cursor)

    def taken(self, now: float) -> Feed:
        return replace(self, due=now + IN_HAND)

    def past(self, cursor: str, *, told: int, due: float) -> Feed:
        return replace(
            self, cursor=cursor, told=self.told + told, due=due, attempts=0, failing=None, why="" if told else self.why
        )

    def waiting(self, why: str, now: float) -> Feed:
        """A gate has it wait: it is asked the same again."""
        return replace(self, due=now + AGAIN, attempts=0, failing=None, why=why)

    def failed(self, cursor: str, why: str, now: float) -> Feed:
        """`cursor`: the entry that was not told. It is tried again, and left out when that has lasted too long."""
        since = now if self.failing is None else self.failing
        if now - since >= GIVE_UP:
            told = f"left out after {GIVE_UP / 3600:.0f} h: {why}"
            return replace(self, cursor=cursor, left=self.left + 1, due=now, attempts=0, failing=None, why=told)
        pause = min(LONGEST_PAUSE, 2.0 ** min(self.attempts + 1, 20))
        return replace(self, attempts=self.attempts + 1, failing=since, why=why, due=now + pause)


def gate_answer(body: bytes) -> tuple[GateAnswer, str] | None:
    """What a gate says, such as `{"answer": "continue", "why": "all is well"}`, and its reason; None: no such thing."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict) or said.get("answer") not in GATE_ANSWERS:
        return None
    why = said.get("why", "")
    told = "".join(c if c.isprintable() else " " for c in why) if isinstance(why, str) else ""
    return cast(GateAnswer, said["answer"]), " ".join(told.split())[:300]


def place(id: str) -> tuple[int, int]:
    """An id of the audit log, so that they compare."""
    first, _, second = id.partition("-")
    return int(first), int(second or 0)


def message(*, rollout: str, fleet: str, event: Mapping[str, Any], stamp: str) -> Mapping[str, Any]:
    """What is told: as Standard Webhooks has it, with one event as live events and `events --output json` print it."""
    return {"type": event["event"], "timestamp": stamp, "data": {"rollout": rollout, "fleet": fleet, **event}}
