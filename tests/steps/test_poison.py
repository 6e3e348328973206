"""A server at which one worker after another dies is held, whatever the step; what dies with it by chance is not."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator

import pytest
import structlog

from orchestrator import operations
from orchestrator.dispatch import Message
from orchestrator.domain.steps import RETIRE, STEPS
from orchestrator.domain.upgrade import Released
from tests.steps.test_every_step import CASES, NAMES
from tests.support.outcome import SERVER, ends_well, journey, settle, tell
from tests.support.runner import Crashed, Runner, running


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


class Deadly:
    """The first three workers that take that step die of it; each is another process."""

    def __init__(self, r: Runner, name: str, direction: str) -> None:
        self.r, self.deaths = r, 0
        self.point = ("undo_" if direction == "undo" else "") + name
        r.crash = self.crash

    def crash(self, point: str) -> None:
        if self.deaths < 3 and point == f"{self.point}.claimed":
            self.deaths += 1
            self.r.world.worker = f"w{self.deaths}"
            raise Crashed


@pytest.mark.parametrize(("name", "direction"), CASES, ids=NAMES)
def test_a_server_that_kills_its_workers_is_held_and_a_retry_lets_it_go_on(name: str, direction: str) -> None:
    with journey(direction) as (r, watch):
        deadly = Deadly(r, name, direction)
        r.until(lambda: deadly.deaths == 3)
        if name == RETIRE:  # users are served by B: it is tried again after an hour
            r.until(lambda: "poison" in r.upgrade(SERVER).why)
            start = r.clock()
            settle(r)
            assert r.clock() - start > 3000
        else:
            r.until(lambda: r.upgrade(SERVER).state == "held")
            u = r.upgrade(SERVER)
            assert u.why.startswith("poison: 3 workers in a row died or froze at") and name in u.why
            assert u.traffic
            entry = [e for e in operations.events(r.store, r.rollout) if e.event == "Held"][-1]
            assert entry.detail["lost"] and entry.detail["step"] == name
            tell(r, Released(at=r.store.now()))
            settle(r)
        ends_well(r, watch)


def test_losses_that_are_not_in_a_row_poison_nobody() -> None:
    """At every server two workers die, one after the other; the third gets on, again and again."""
    with running(["web-1", "web-2", "web-3"]) as r:
        taken: Counter[str] = Counter()
        original, current = r.deliver, ""

        def deliver(messages: list[Message]) -> object:
            nonlocal current
            current = str(messages[0]["kwargs"]["server"])
            return original(messages)

        def crash(point: str) -> None:
            if not point.endswith(".claimed"):
                return
            taken[current] += 1
            if taken[current] % 3:
                r.world.worker = f"w{taken.total()}"
                raise Crashed

        r.deliver, r.crash = deliver, crash  # type: ignore[assignment, method-assign] # every delivery comes by here
        held: set[str] = set()

        def over() -> bool:
            held.update(row.upgrade.why for row in r.store.rows(r.rollout) if row.upgrade.state == "held")
            return r.record().ended

        r.until(over)
        assert r.record().state == "succeeded" and not held, held
        assert min(taken.values()) >= 3 * len(STEPS)
