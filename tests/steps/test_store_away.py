"""A store that does not answer in the middle of a step is nobody's failure but its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from orchestrator.domain.upgrade import Released
from orchestrator.errors import Unreachable
from orchestrator.store import Claim
from orchestrator.store.memory import MemoryStore
from tasks import world
from tests.support.outcome import SERVER, journey, settle, tell
from tests.support.runner import Clock, Runner, running


class Flapping(MemoryStore):
    """Does not answer six renewals in a row, and then again."""

    renewals = 0

    def renew(self, claim: Claim, *, lease: float) -> Claim:
        self.renewals += 1
        if self.renewals % 12 < 6:
            raise Unreachable("Redis does not answer")
        return super().renew(claim, lease=lease)


def test_a_store_that_does_not_answer_turns_no_server_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "CONFIRMED", -1.0)  # every call asks once more
    clock = Clock()
    store: Any = Flapping(clock)
    with running(["web-1"], store=store) as runner:
        store._clock = runner.clock
        runner.finish()
        assert runner.record().state == "succeeded"
        assert store.renewals > 20


def test_a_store_that_goes_away_behind_the_claim_leaves_no_lease() -> None:
    with running(["web-1"]) as r:
        r.until(lambda: bool(r.queue))
        message = r.queue.pop(0)
        r.world._specs.clear()
        honest = r.store.document

        def away(kind: str, id: str) -> Mapping[str, Any] | None:
            raise Unreachable("Redis does not answer")

        r.store.document = away  # type: ignore[method-assign] # a moment without an answer
        ran = r.deliver(message)
        r.store.document = honest  # type: ignore[method-assign] # and it is over
        assert ran is not None
        assert ran.result == {"ignored": "store away"}
        row = r.store.row(r.rollout, "web-1")
        assert row is not None
        assert not row.owner
        r.finish()
        assert r.record().state == "succeeded"


def _gone(r: Runner, body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return None


def _edited(r: Runner, body: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"plan": 1}


def _without_server(r: Runner, body: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"plan": {**body["plan"], "survey": {**body["plan"]["survey"], "servers": []}}}


@pytest.mark.parametrize("spoil", [_gone, _edited, _without_server], ids=["gone", "edited", "without its server"])
@pytest.mark.parametrize("direction", ["forward", "undo"])
def test_a_server_whose_plan_cannot_be_read_is_held_with_the_reason(spoil: Any, direction: str) -> None:
    with journey(direction) as (r, _):
        honest = r.store.document("spec", r.rollout)
        assert honest is not None
        spoiled = spoil(r, honest)
        r.store.forget_document("spec", r.rollout)
        if spoiled is not None:
            r.store.put_document("spec", r.rollout, spoiled)
        r.world._specs.clear()
        r.until(lambda: r.upgrade(SERVER).state == "held")
        row = r.store.row(r.rollout, SERVER)
        assert row is not None
        assert not row.owner
        assert r.rollout in row.upgrade.why or SERVER in row.upgrade.why
        r.store.forget_document("spec", r.rollout)
        r.store.put_document("spec", r.rollout, honest)
        r.world._specs.clear()
        tell(r, Released(at=r.store.now()))
        settle(r)
        assert r.upgrade(SERVER).state == ("upgraded" if direction == "forward" else "rolled_back")
