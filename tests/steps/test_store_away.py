"""A store that does not answer in the middle of a step is nobody's failure but its own."""

from __future__ import annotations

from typing import Any

from orchestrator.errors import Unreachable
from orchestrator.store import Claim
from orchestrator.store.memory import MemoryStore
from tests.support.runner import Clock, running


class Flapping(MemoryStore):
    """Does not answer six renewals in a row, and then again."""

    renewals = 0

    def renew(self, claim: Claim, *, lease: float) -> Claim:
        self.renewals += 1
        if self.renewals % 12 < 6:
            raise Unreachable("Redis does not answer")
        return super().renew(claim, lease=lease)


def test_a_store_that_does_not_answer_turns_no_server_back() -> None:
    clock = Clock()
    store: Any = Flapping(clock)
    with running(["web-1"], store=store) as runner:
        store._clock = runner.clock
        runner.finish()
        assert runner.record().state == "succeeded"
        assert store.renewals > 20
