"""A provider that refuses everything for two minutes: all workers keep to one pace, which falls, and nobody fails."""

from __future__ import annotations

import random
from bisect import bisect_left

from orchestrator.domain.budget import Limit
from providers.budget import PATIENCE
from providers.errors import Throttled
from tests.support.runner import running

STORM = 120.0  # seconds
LIMIT = Limit(rate=10.0, burst=50.0)
SERVERS = 20


def test_a_storm_of_throttling_is_asked_into_ever_less_and_followed_by_no_stampede() -> None:
    names = [f"web-{number}" for number in range(SERVERS)]
    with running(names, rollout={"waves": ["rest"], "bake": "0s", "soak": "1s", "max_in_flight": SERVERS}) as r:
        storm, asked = [float("inf"), float("inf")], list[float]()

        def fault(name: str) -> str:
            """As a client does: a turn of the budget that all share, then the provider's own word."""
            if (wait := r.store.spend("fake", LIMIT, patience=PATIENCE)) > PATIENCE:
                raise Throttled(f"{name}: not now", retry_after=wait)
            asked.append(r.clock())
            if storm[0] <= r.clock() < storm[1]:
                r.store.refused("fake", LIMIT)
                raise Throttled(f"{name}: rate exceeded", retry_after=1.0)
            return ""

        r.cloud.fault = fault  # type: ignore[assignment] # it says nothing but ""
        r.world.spread = random.Random(1).random
        r.until(lambda: any(u[1] == "provision" for u in r.upgrades().values()))
        storm[:] = [r.clock(), r.clock() + STORM]
        r.until(lambda: r.clock() >= storm[1], limit=50_000)
        rows = r.store.rows(r.rollout)
        assert {row.upgrade.direction for row in rows} == {"forward"}
        assert {row.upgrade.state for row in rows} <= {"running", "waiting"}
        stormed = [at for at in asked if storm[0] <= at]
        least = LIMIT.rate / 16
        assert SERVERS / 4 < len(stormed) < LIMIT.rate * (2 + PATIENCE) + STORM * least * 1.5
        r.until(lambda: r.record().ended, limit=50_000)
        assert r.record().state == "succeeded" and not r.made_twice()
        after = [at for at in asked if at >= storm[1]]
        most = max(bisect_left(after, at + 1.0) - place for place, at in enumerate(after))
        assert most <= LIMIT.rate * (1 + PATIENCE), "those who waited do not come all at once"
        assert bisect_left(after, storm[1] + 10.0) <= SERVERS, "its pace comes back slowly"
