"""The stretches of time that a server's steps took, read from its audit log entry by entry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from orchestrator.domain.steps import STEPS

if TYPE_CHECKING:
    from orchestrator.store import AuditEntry

Outcome = Literal["done", "undo", "failed", "running", "waiting"]
_CLOSING: Mapping[str, Outcome] = {
    "Finished": "done",
    "Undone": "undo",
    "AttemptEnded": "failed",
    "TurnedBack": "failed",
}


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """From the beginning of a step, or of its undo, to what ended it; epoch seconds. `note`: why, where it says so."""

    step: str
    start: float
    end: float
    outcome: Outcome
    note: str = ""


class Stretches:
    """Of one server. The wait for what a step needs first is a part of that step, though it begins only afterwards."""

    def __init__(self) -> None:
        self._begun: tuple[str, float] | None = None
        self._outcome: Outcome = "running"

    def add(self, entry: AuditEntry) -> Stretch | None:
        """The next entry; the stretch that it ends."""
        ended: Stretch | None = None
        match entry.event:
            case "Began" | "UndoBegan":
                step = str(entry.detail.get("step") or entry.after.get("step") or STEPS[0])
                self._begun, self._outcome = self._begun or (step, entry.at), "running"
            case "Waits" | "Held" | "Stumbled":
                self._outcome = "waiting"
            case "Finished" | "Undone" | "AttemptEnded" | "TurnedBack" if self._begun is not None:
                step, start = self._begun
                note = str(entry.detail.get("why", ""))
                ended = Stretch(step=step, start=start, end=entry.at, outcome=_CLOSING[entry.event], note=note)
                waits = entry.event == "Finished" and entry.after.get("wait")
                self._begun = (str(entry.after["step"]), entry.at) if waits else None
                self._outcome = "waiting"
        return ended

    def under_way(self, now: float) -> Stretch | None:
        """The one that has not ended."""
        if self._begun is None:
            return None
        step, start = self._begun
        return Stretch(step=step, start=start, end=max(now, start), outcome=self._outcome)
