"""An index that does not agree with records is made to; nobody is lost by it, and nothing is mended without need."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog

from orchestrator import operations
from orchestrator.store.memory import MemoryStore
from tests.support.runner import Runner, running


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


def mended(r: Runner) -> list[str]:
    found = [e for e in operations.events(r.store, r.rollout) if e.event == "Mended"]
    return [line for entry in found for line in entry.detail["what"]]


def lose(r: Runner, server: str) -> None:
    """It is in no agenda any more, and no message of it is out."""
    assert isinstance(r.store, MemoryStore)
    r.queue.clear()
    for agenda in (r.store._due, *r.store._look.values()):
        agenda.pop((r.rollout, server), None)


@pytest.mark.parametrize("turns", range(2, 40, 5))
def test_a_server_that_is_in_no_agenda_is_found_again_within_a_minute(turns: int) -> None:
    with running(["web-1", "web-2"]) as r:
        for _ in range(turns):
            r.turn()
            r.clock.now += 0.3
        if r.record().ended:
            return
        lose(r, "web-1")
        lost_at = r.clock()
        r.until(lambda: bool(mended(r)) or r.clock() - lost_at > 61 or r.upgrade("web-1").terminal)
        assert mended(r) or r.upgrade("web-1").terminal, r.upgrades()
        r.finish()
        assert r.record().state == "succeeded"
        assert not r.made_twice()


@pytest.mark.parametrize("again", [False, True])
def test_one_whose_time_was_left_far_away_goes_on(again: bool) -> None:
    """Found within a minute, and at once where somebody asks again for what is under way."""
    with running(["web-1"]) as r:
        assert isinstance(r.store, MemoryStore)
        r.until(lambda: r.upgrade("web-1").step == "smoke_test")
        operations.rollback_server(r.store, r.rollout, "web-1", actor="test")
        r.queue.clear()
        r.store._due[r.rollout, "web-1"] = r.clock() + 86400
        asked = r.clock()
        if again:
            assert not operations.rollback_server(r.store, r.rollout, "web-1", actor="test").changed
            assert r.store.next_due() == asked
        r.until(lambda: r.upgrade("web-1").terminal)
        assert r.upgrade("web-1").state == "rolled_back"
        assert r.clock() - asked < 120


def test_wrong_counters_do_not_stop_a_rollout_for_long() -> None:
    """As many seem to be in flight as may be."""
    with running([f"web-{n}" for n in range(1, 5)]) as r:
        assert isinstance(r.store, MemoryStore)
        r.store._rollouts[r.rollout].counts |= {"running": 99}
        r.finish()
        assert r.record().state == "succeeded"
        assert any("counters" in line for line in mended(r))


def test_a_lock_that_was_lost_is_taken_back() -> None:
    with running(["web-1", "web-2"]) as r:
        assert isinstance(r.store, MemoryStore)
        r.until(lambda: r.upgrade("web-1").step == "swap")
        new = r.upgrade("web-1").results["provision"]["server"]
        locks = [f"{r.fleet.lane}/{id}" for id in ("web-1", new)]
        for lock in locks:
            del r.store._locks[lock]
        r.until(lambda: bool(mended(r)))
        assert {r.store.owner_of(lock) for lock in locks} == {r.rollout}


def test_nothing_is_mended_in_a_rollout_in_which_all_is_well() -> None:
    slow = {"waves": [1, "rest"], "bake": "40s", "soak": "30s", "poll": "1s", "max_in_flight": 2}
    with running(
        [f"web-{n}" for n in range(1, 6)],
        rollout={**slow, "drain": {"deadline": "30s", "quiet": "1s"}},
        retain={"old_servers": "90s"},
    ) as r:
        r.until(lambda: r.upgrade("web-3").step == "swap")
        operations.rollback_server(r.store, r.rollout, "web-3", actor="test")
        r.until(lambda: r.record().closed)
        assert mended(r) == []
