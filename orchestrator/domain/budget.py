"""How often an API may be called by all workers together: a token bucket that learns from being refused. Pure.

Nobody knows a provider's true limits, and others use the same account. So a bucket begins at a careful rate; whenever
the provider says that it was asked too often the rate is halved, and within two minutes without that it comes back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

RECOVERY = 120.0  # seconds in which a rate comes back from nothing to its own
LEAST = 1 / 16  # of its own rate: it is never slower
APART = 1.0  # seconds: refusals within one are of calls that were under way together, and halve the rate once


@dataclass(frozen=True, kw_only=True)
class Limit:
    """`rate`: calls a second; `burst`: calls that may be made at once after a pause."""

    rate: float
    burst: float


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Where it stands: `rate` now, `tokens` left (below 0: promised to calls that wait for their turn), `at` that time;
    how often the provider has refused, and when that last made it slower; how many calls have had their turn. Epoch
    seconds."""

    rate: float
    tokens: float
    at: float
    refused: int = 0
    refused_at: float = 0.0
    calls: int = 0

    def until(self, limit: Limit, now: float) -> Bucket:
        """What it is by now."""
        passed = max(0.0, now - self.at)
        rate = min(limit.rate, self.rate + passed * limit.rate / RECOVERY)
        # Should the clock have gone back, as with another Redis, nothing is given, and time counts on from there.
        return replace(self, rate=rate, tokens=min(limit.burst, self.tokens + passed * rate), at=now)

    def spend(self, limit: Limit, now: float, *, patience: float) -> tuple[Bucket, float]:
        """After one more call, and in how many seconds that may be made. If this is more than `patience`, none is."""
        ready = self.until(limit, now)
        wait = max(0.0, (1 - ready.tokens) / ready.rate)
        return (
            (ready, wait) if wait > patience else (replace(ready, tokens=ready.tokens - 1, calls=ready.calls + 1), wait)
        )

    def slowed(self, limit: Limit, now: float) -> Bucket:
        """After a refusal."""
        ready = self.until(limit, now)
        after = replace(ready, tokens=min(ready.tokens, 0.0), refused=self.refused + 1)
        if abs(now - self.refused_at) < APART:
            return after
        return replace(after, rate=max(ready.rate / 2, limit.rate * LEAST), refused_at=now)


def fresh(limit: Limit, now: float) -> Bucket:
    return Bucket(rate=limit.rate, tokens=limit.burst, at=now)
