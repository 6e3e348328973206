"""How often a provider may be asked, shared by whoever asks it. A client spends before each call, and says when it was
refused all the same; whoever runs the workers says where the account is kept."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from providers.errors import Throttled

PATIENCE = 2.0  # seconds that a call waits for its turn; for longer it is not made, and its step comes again


class Budget(Protocol):
    """`rate`: calls a second, `burst`: calls at once."""

    def spend(self, bucket: str, *, rate: float, burst: float, patience: float) -> float:
        """Seconds after which one more call may be made; more than `patience`, and none is accounted for."""
        ...

    def refused(self, bucket: str, *, rate: float, burst: float) -> None:
        """The provider has said that it was asked too often."""
        ...


@dataclass(frozen=True, kw_only=True)
class Pace:
    """The pace of one kind of calls: `bucket` names it in its account and region."""

    bucket: str
    rate: float
    burst: float


class _Process:
    budget: Budget | None = None


def use(budget: Budget | None) -> None:
    """From now on all clients of this process keep to it; to none without one."""
    _Process.budget = budget


def wait_for_turn(pace: Pace) -> None:
    """Returns when a call of that kind may be made. Raises `Throttled` if that takes too long."""
    if _Process.budget is None:
        return
    wait = _Process.budget.spend(pace.bucket, rate=pace.rate, burst=pace.burst, patience=PATIENCE)
    if wait > PATIENCE:
        raise Throttled(f"{pace.bucket}: all workers together are to ask no more often now", retry_after=wait)
    if wait > 0:
        time.sleep(wait)


def was_refused(pace: Pace) -> None:
    if _Process.budget is not None:
        _Process.budget.refused(pace.bucket, rate=pace.rate, burst=pace.burst)
