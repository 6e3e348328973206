"""When a lane is looked at, and what of a look is written down."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as some

from orchestrator.domain.upgrade import Observe
from orchestrator.errors import UnsafeStore
from orchestrator.store import Row
from orchestrator.store.memory import MemoryStore
from tasks.step import lane_of, next_look
from tests.support.runner import running

moments = some.floats(min_value=1e9, max_value=4e9, allow_nan=False)
periods = some.floats(min_value=0.05, max_value=300, allow_nan=False)


@given(now=moments, every=periods)
def test_the_next_look_comes_within_the_period(now: float, every: float) -> None:
    assert -1e-5 <= next_look("aws/a/eu", every, now) - now <= every + 1e-5


@given(now=moments, share=some.floats(min_value=0, max_value=0.4))
def test_all_of_a_lane_with_one_period_are_looked_at_in_the_same_moment(now: float, share: float) -> None:
    first = next_look("aws/a/eu", 5.0, now)
    between = next_look("aws/a/eu", 5.0, now + share * (first - now))
    assert abs(first - between) < 1e-5
    assert abs(next_look("aws/a/eu", 5.0, first + 0.001) - first - 5.0) < 1e-5


def test_a_not_yet_soon_after_the_last_is_not_written_down() -> None:
    with running(["web-1", "web-2"]) as r:
        r.until(lambda: all(u[0] == "waiting" for u in r.upgrades().values()))
        before = {name: r.store.row(r.rollout, name) for name in ("web-1", "web-2")}
        calls = r.cloud.calls.get("images", 0)
        r.until(lambda: r.cloud.calls.get("images", 0) >= calls + 1)
        assert {name: r.store.row(r.rollout, name) for name in ("web-1", "web-2")} == before
        assert (due := r.store.next_due()) is not None
        assert due <= r.clock() + 1.0, "and yet it is looked at again"
        r.finish()
        assert r.record().state == "succeeded"


@pytest.mark.parametrize("edited", ["no wait", "no look", "half a pair", "notes", "no period"])
def test_what_was_edited_in_one_record_of_a_lane_holds_up_no_other(edited: str) -> None:
    with running(["web-1", "web-2"]) as r:
        step = "swap" if edited == "notes" else "create_image"
        r.until(lambda: all(row.upgrade.step == step and looks(row) for row in r.store.rows(r.rollout)))
        assert isinstance(r.store, MemoryStore)
        record = r.store._rollouts[r.rollout].records["web-1"]
        wait = record.upgrade.wait
        assert wait is not None
        match edited:
            case "no wait":
                record.upgrade = replace(record.upgrade, state="running", wait=None)
            case "no look":
                record.upgrade = replace(record.upgrade, wait=replace(wait, observe=None))
            case "half a pair":
                half = Observe(kind="proven", lane=lane_of(record.upgrade) or "", ids=("web",))
                record.upgrade = replace(record.upgrade, wait=replace(wait, observe=half))
            case "notes":
                record.upgrade = replace(record.upgrade, notes={"until": "soon"})
            case _:
                record.upgrade = replace(record.upgrade, wait=replace(wait, every=0.0))
        end = r.clock() + 14  # less than the time for which a look that came to nothing keeps others off
        r.until(lambda: r.upgrade("web-2").step != step or r.clock() > end)
        assert r.upgrade("web-2").step != step
        r.until(lambda: all(row.upgrade.settled or row.upgrade.state in ENDED for row in r.store.rows(r.rollout)))
        assert r.upgrade("web-1").state in ENDED, "its own turn has judged it"


def looks(row: Row) -> bool:
    return lane_of(row.upgrade) is not None


ENDED = ("upgraded", "held", "failed", "rolled_back")


def test_a_rollout_whose_plan_was_edited_by_hand_is_unreadable_and_no_more() -> None:
    with running(["web-1"]) as r:
        for edited in ({}, {"plan": 5}, {"plan": {}}):
            r.store.forget_document("spec", r.rollout)
            r.store.put_document("spec", r.rollout, edited)
            r.world._specs.clear()
            with pytest.raises(UnsafeStore, match=f"rollout {r.rollout} is about cannot be read"):
                r.world.spec(r.rollout)


def test_those_of_whom_a_look_told_nothing_are_looked_at_again_together() -> None:
    with running([f"web-{n}" for n in range(1, 6)]) as r:
        r.until(lambda: all(looks(row) for row in r.store.rows(r.rollout)))
        spread, lost = count(), ["before"]
        r.world.spread = lambda: next(spread) % 10 / 10
        r.cloud.fault = lambda name: lost.pop() if lost and name == "images" else ""
        r.until(lambda: not lost)
        assert len({row.upgrade.wait and row.upgrade.wait.at for row in r.store.rows(r.rollout)}) == 1
        r.finish()
        assert r.record().state == "succeeded"


def test_one_look_answers_for_all_servers_that_wait_in_a_lane() -> None:
    names = [f"web-{n}" for n in range(1, 11)]
    with running(names) as r:
        r.finish()
        assert r.cloud.calls["images"] < len(names)
        alone = len(names)  # each is asked after right before users are sent to it
        assert r.cloud.calls["servers"] - alone < len(names)
