"""Waves that wait for people, and for their time: who may say yes, how many, and what happens when nobody does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from orchestrator.domain.rollout import (
    Admit,
    Approval,
    Become,
    Decision,
    Rollout,
    aborting,
    approved,
    decide,
    exit_code,
    paused,
    promoted,
    reopened,
    resumed,
)
from orchestrator.domain.upgrade import Upgrade
from orchestrator.domain.windows import Window, Windows
from orchestrator.errors import IllegalTransition
from tests.unit.test_rollout import rollout

NOW = datetime(2026, 11, 23, 21, 59, tzinfo=UTC).timestamp()  # a Monday
NIGHT = Windows(zone="UTC", windows=(Window(days=(0,), begins=22 * 60, ends=23 * 60),))


def servers(a: str = "pending", b: str = "pending", c: str = "pending") -> list[Upgrade]:
    waves = {"a": 0, "b": 1, "c": 1}
    states: dict[str, Any] = {"a": a, "b": b, "c": c}
    return [Upgrade(rollout="r", server=n, wave=waves[n], state=states[n]) for n in waves]


def after(r: Rollout, upgrades: Sequence[Upgrade], *, now: float = NOW, failed: int = 0) -> Rollout:
    """What it becomes of itself, and nothing else happens."""
    (decision,) = decide(r, upgrades, failed_before_swap=failed, now=now)
    assert isinstance(decision, Become), decision
    return decision.rollout


def decided(r: Rollout, upgrades: Sequence[Upgrade], *, now: float = NOW) -> list[Decision]:
    return decide(r, upgrades, failed_before_swap=0, now=now)


def test_a_wave_that_needs_a_yes_begins_with_the_last_one_that_is_wanted() -> None:
    r = rollout(approvals=(Approval(wave=1, count=2),))
    assert decided(r, servers()) == [Admit(server="a")]
    r = after(r, servers(a="upgraded"))
    assert (r.state, r.wave) == ("running", 1)
    r = after(r, servers(a="upgraded"))
    assert (r.state, r.why, exit_code(r, 0)) == ("awaiting_approval", "wave 2 begins when 2 people have approved it", 3)
    assert decided(r, servers(a="upgraded"), now=NOW + 1e6) == [], "it waits as long as it takes"
    r = approved(r, who="anna", wave=1)
    assert approved(r, who="anna") == r, "the same yes again is no second one"
    assert (r.state, decided(r, servers(a="upgraded"))) == ("awaiting_approval", [])
    r = approved(r, who="ben")
    assert (r.state, r.approved_by, r.why) == ("running", ("anna", "ben"), "")
    assert approved(r, who="ben") == r, "an answer that was lost is asked for again"
    assert decided(r, servers(a="upgraded")) == [Admit(server="b"), Admit(server="c")]


def test_only_those_who_are_named_say_yes_and_to_the_wave_that_waits() -> None:
    r = after(rollout(approvals=(Approval(wave=0, by=("anna", "ben")),)), servers())
    with pytest.raises(IllegalTransition, match="eve is none of those who approve wave 1 of rollout r: anna, ben"):
        approved(r, who="eve")
    with pytest.raises(IllegalTransition, match="waits for wave 1 to be approved, not for wave 2"):
        approved(r, who="anna", wave=1)
    assert approved(r, who="anna", wave=0).state == "running"
    with pytest.raises(IllegalTransition, match="nothing to approve"):
        approved(rollout(), who="anna")


@pytest.mark.parametrize(("otherwise", "state"), [("pause", "paused"), ("abort", "aborting"), ("continue", "running")])
def test_what_nobody_answers_in_time_goes_as_the_file_says(otherwise: Any, state: str) -> None:
    r = after(rollout(approvals=(Approval(wave=0, within=60.0, otherwise=otherwise),)), servers())
    assert r.wakes_at == NOW + 60
    assert decided(r, servers(), now=NOW + 59) == []
    r = after(r, servers(), now=NOW + 60)
    assert r.state == state
    match state:
        case "running":
            assert decided(r, servers(), now=NOW + 61) == [Admit(server="a")]
        case "paused":
            assert r.why == "wave 1 was not approved in time"
            r = resumed(r, failed_before_swap=0, now=NOW + 100)
            assert (r.state, r.why) == ("awaiting_approval", "wave 1 begins when 1 person has approved it")
            assert r.wakes_at == NOW + 160 and decided(r, servers(), now=NOW + 159) == [], "it is asked anew"
            assert approved(r, who="anna").state == "running"


@pytest.mark.parametrize(
    ("count", "by", "who"),
    [
        (1, ("anna",), "anna has"),
        (1, ("anna", "ben"), "one of anna, ben has"),
        (2, ("anna", "ben"), "2 of anna, ben have"),
    ],
)
def test_who_is_to_approve_is_named(count: int, by: tuple[str, ...], who: str) -> None:
    r = after(rollout(approvals=(Approval(wave=0, count=count, by=by),)), servers())
    assert r.why == f"wave 1 begins when {who} approved it"


def test_a_pause_while_it_is_asked_stops_its_time_and_a_no_is_an_abort() -> None:
    r = after(rollout(approvals=(Approval(wave=0, count=2, within=60.0),)), servers())
    r = approved(r, who="anna")
    r = paused(r, why="lunch", now=NOW + 50)
    assert decided(r, servers(), now=NOW + 500) == []
    r = resumed(r, failed_before_swap=0, now=NOW + 500)
    assert (r.state, r.wakes_at, r.approved_by) == ("awaiting_approval", NOW + 510, ("anna",))
    assert aborting(r, why="no").state == "aborting"


def test_a_failure_behind_a_swap_stops_it_while_it_is_asked() -> None:
    r = after(rollout(approvals=(Approval(wave=1),), wave=1), servers(a="upgraded"))
    stopped = after(replace(r, stop="a fails"), servers(a="upgraded"))
    assert (stopped.state, stopped.why) == ("paused", "a fails")


def test_a_server_of_an_earlier_wave_that_is_tried_again_needs_no_new_yes() -> None:
    r = after(rollout(approvals=(Approval(wave=0), Approval(wave=1))), servers())
    r = approved(r, who="anna")
    r = after(replace(r, wave=1), servers(a="failed"), failed=0)
    assert (r.state, r.wave) == ("awaiting_approval", 1)
    r = reopened(r, servers(a="pending"), "a")
    assert decided(r, servers()) == [Admit(server="a")]
    r = after(r, servers(a="upgraded"))
    assert after(r, servers(a="upgraded")).state == "awaiting_approval", "the wave behind it still does"


def test_servers_begin_only_while_a_window_is_open_and_what_is_under_way_goes_on() -> None:
    r = rollout(windows=NIGHT, waves=(("a", "b", "c"),))
    all = [replace(u, wave=0) for u in servers()]
    r = after(r, all)
    assert (r.state, r.why) == ("awaiting_window", "no maintenance window is open until Mon 22:00 UTC")
    assert r.wakes_at == NOW + 60 and decided(r, all, now=NOW + 59) == []
    r = after(r, all, now=NOW + 60)
    assert decided(r, all, now=NOW + 60) == [Admit(server="a"), Admit(server="b")]
    going = [replace(u, wave=0) for u in servers(a="upgraded", b="running")]
    r = after(r, going, now=NOW + 3660)
    assert (r.state, r.why) == ("awaiting_window", "no maintenance window is open until Mon 22:00 UTC")
    assert exit_code(r, 0) == 0, "nobody is wanted"
    assert paused(r, why="x", now=NOW).resume_to == "running"


def test_what_ends_after_the_window_ends_the_wave_and_the_rollout() -> None:
    r = rollout(windows=NIGHT, waves=(("a", "b", "c"),))
    done = [replace(u, wave=0) for u in servers(a="upgraded", b="upgraded", c="upgraded")]
    r = after(replace(r, state="awaiting_window"), done, now=NOW + 9000)
    assert r.state == "running"
    assert after(r, done, now=NOW + 9000).state == "succeeded"


def test_a_bake_can_be_ended_by_a_person() -> None:
    r = rollout(bake=3600.0, state="baking", bake_until=NOW + 3000)
    assert decided(r, servers(a="upgraded")) == []
    r = promoted(r, now=NOW)
    assert promoted(r, now=NOW + 1) == r
    r = after(r, servers(a="upgraded"))
    assert (r.state, r.wave) == ("running", 1)
    assert promoted(r, now=NOW) == r
    with pytest.raises(IllegalTransition, match="nothing to promote"):
        promoted(paused(r, why="x", now=NOW), now=NOW)
