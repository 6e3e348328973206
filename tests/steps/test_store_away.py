"""A store that does not answer in the middle of a step is nobody's failure but its own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest

from orchestrator.domain.upgrade import Released
from orchestrator.errors import Unreachable, UnsafeStore
from orchestrator.store import Claim
from orchestrator.store.memory import MemoryStore
from tasks import world
from tasks.owed import Owed
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


class Killed:
    """A store that ends in the middle of the call of that name, which it has `done` or not, and answers nothing more
    until it is back."""

    def __init__(self, store: Any, name: str, *, call: int, done: bool) -> None:
        self._store, self._name, self._left, self._done = store, name, call, done
        self.away = self.was_away = False

    def __getattr__(self, name: str) -> Any:
        honest = getattr(self._store, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.away:
                raise Unreachable("Redis does not answer")
            self._left -= name == self._name and not str(args[0]).startswith("observe:")
            if self._left or self.was_away:
                return honest(*args, **kwargs)
            self.away = self.was_away = True
            if self._done:
                honest(*args, **kwargs)
            raise Unreachable("Redis does not answer")

        return call


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("done", [True, False], ids=["done", "not done"])
@pytest.mark.parametrize("name", ["claim", "intent", "commit", "lease", "unlease"])
@pytest.mark.parametrize("direction", ["forward", "undo"])
def test_no_lease_of_a_worker_that_lives_outlasts_a_store_that_was_away(
    direction: str, name: str, done: bool, call: int
) -> None:
    with journey(direction) as (r, _):
        settle(r)
        usual, state = r.clock.now, r.upgrade(SERVER).state
    with journey(direction) as (r, _):
        r.world.lease, r.world.owed = 600.0, Owed(monotonic=r.clock, lasts=600.0)
        store: Any = Killed(r.store, name, call=call, done=done)
        r.world.store = store
        r.until(lambda: store.away)
        r.clock.now += 2.0
        store.away = False
        r.world.owed.settle()  # as its heartbeat does
        settle(r)
        assert r.upgrade(SERVER).state == state
        assert r.clock.now < usual + 60
        assert store.was_away


def test_what_is_owed_is_given_back_in_any_order_until_it_has_ended_by_itself() -> None:
    clock, given, away = Clock(), [], {"a", "c"}

    def give(name: str) -> None:
        if name in away:
            raise UnsafeStore("it is full") if name == "a" else Unreachable("gone")
        given.append(name)

    owed = Owed(monotonic=clock, lasts=10.0)
    for name in "abcd":
        owed.later(partial(give, name))
    owed.settle()
    assert given == ["b"], "what can be read by nobody holds up no other; what is away is away for all"
    away.discard("c")
    owed.settle()
    assert given == ["b", "d", "c"]
    clock.now += 11.0
    away.clear()
    owed.settle()
    assert given == ["b", "d", "c"]
