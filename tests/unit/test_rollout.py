"""What a whole rollout does next, as values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.fleet import Budget
from orchestrator.domain.rollout import (
    ENDED,
    Admit,
    Become,
    Decision,
    Rollout,
    Turn,
    aborting,
    admissible,
    counts,
    decide,
    exit_code,
    in_flight,
    paused,
    reopened,
    resumed,
    rolling_back,
    split,
    wave_sizes,
)
from orchestrator.domain.steps import RETIRE, STEPS
from orchestrator.domain.upgrade import Intent, Upgrade
from orchestrator.errors import IllegalTransition

NOW = 1000.0
quick = settings(database=None, deadline=None, max_examples=150)


def rollout(**changes: Any) -> Rollout:
    whole: dict[str, Any] = {
        "id": "r",
        "plan": "p",
        "fleet": "f",
        "created_at": 0.0,
        "created_by": "t",
        "waves": (("a",), ("b", "c")),
        "max_in_flight": 2,
        "allowed_failures": 0,
        "bake": 0.0,
        "on_abort": "roll_back",
    }
    return Rollout(**{**whole, **changes})


def intent(step: str) -> Intent:
    return Intent(step=step, attempt=0, rung=0, token=step, name=step, at=0.0)


def upgrade(name: str, state: str = "pending", *, wave: int = 0, upto: str = "", **changes: Any) -> Upgrade:
    """`upto`: the last step that it has begun."""
    steps = (*STEPS, RETIRE)
    begun = tuple(intent(step) for step in steps[: steps.index(upto) + 1]) if upto else ()
    step = upto or STEPS[0]
    whole: dict[str, Any] = {"state": state, "begun": begun, "step": step, **changes}
    return Upgrade(rollout="r", server=name, wave=wave, **whole)


def done(name: str, *, wave: int = 0, **changes: Any) -> Upgrade:
    return replace(upgrade(name, "upgraded", wave=wave, upto="drain_old", **changes), step=RETIRE)


def next_of(r: Rollout, us: Sequence[Upgrade], *, failed: int = 0, now: float = NOW) -> list[Decision]:
    return decide(r, us, failed_before_swap=failed, now=now)


def become(r: Rollout, us: Sequence[Upgrade], *, failed: int = 0, now: float = NOW) -> Rollout:
    (decision,) = next_of(r, us, failed=failed, now=now)
    assert isinstance(decision, Become)
    return decision.rollout


# -- waves ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("waves", "total", "sizes"),
    [
        ((1, 5, 25, 100, "rest"), 12, [1, 5, 6]),
        ((1, "5%", "25%", "rest"), 100, [1, 5, 25, 69]),
        (("1%", "rest"), 3, [1, 2]),
        (("100%",), 7, [7]),
        (("rest",), 1, [1]),
        ((2, 2), 3, [2, 1]),
    ],
)
def test_waves_are_counts_shares_of_the_whole_or_the_rest(
    waves: Sequence[int | str], total: int, sizes: list[int]
) -> None:
    assert wave_sizes(waves, total) == sizes


def test_waves_that_leave_servers_over_are_refused() -> None:
    with pytest.raises(ValueError, match="take 3 of 4 servers: end them with rest"):
        wave_sizes((1, 2), 4)


@given(st.lists(st.one_of(st.integers(1, 40), st.integers(1, 100).map("{}%".format)), max_size=6), st.integers(1, 200))
@quick
def test_every_server_is_in_exactly_one_wave(waves: list[int | str], total: int) -> None:
    names = [f"s{n}" for n in range(total)]
    parts = split(names, [*waves, "rest"])
    assert [name for part in parts for name in part] == names
    assert all(parts)


# -- who may start ----------------------------------------------------------------------------------------------------

fleets = st.lists(st.sampled_from(["", "x", "y", "z"]), min_size=1, max_size=12)


@given(fleets, st.lists(st.sampled_from(["", "x"]), max_size=5), st.integers(1, 6))
@quick
def test_admission_never_exceeds_the_limit_nor_mixes_domains(domains: list[str], flying: list[str], limit: int) -> None:
    air = [upgrade(f"f{n}", "running", domain=domain) for n, domain in enumerate(flying)]
    ground = [upgrade(f"p{n}", domain=domain) for n, domain in enumerate(domains)]
    chosen = admissible(ground, air, limit)
    assert len(chosen) + len(air) <= max(limit, len(air))
    assert len({u.domain for u in (*air, *chosen) if u.domain}) <= 1
    if len(air) < limit and (not any(flying) or {"", "x"} & set(domains)):
        assert chosen, "somebody may start"


def test_one_that_is_held_takes_a_place() -> None:
    us = [upgrade("b", "held", upto="drain_old", wave=1), upgrade("c", wave=1)]
    assert next_of(rollout(wave=1, max_in_flight=1), us) == []
    assert next_of(rollout(wave=1, max_in_flight=2), us) == [Admit(server="c")]


# -- what follows -----------------------------------------------------------------------------------------------------


def test_a_wave_starts_after_the_one_before_is_through() -> None:
    us = [upgrade("a", "running", upto="swap"), upgrade("b", wave=1), upgrade("c", wave=1)]
    assert next_of(rollout(), us) == []
    us[0] = done("a")
    moved = become(rollout(), us)
    assert (moved.state, moved.wave) == ("running", 1)
    assert next_of(moved, us) == [Admit(server="b"), Admit(server="c")]


def test_a_wave_bakes_and_a_pause_prolongs_its_bake() -> None:
    us = [done("a"), upgrade("b", wave=1)]
    baking = become(rollout(bake=10.0), us)
    assert (baking.state, baking.bake_until) == ("baking", NOW + 10)
    assert next_of(baking, us, now=NOW + 9.9) == []
    resting = paused(baking, why="", now=NOW + 4)
    assert next_of(resting, us, now=NOW + 99) == []
    again = resumed(resting, failed_before_swap=0, now=NOW + 104)
    assert (again.state, again.bake_until) == ("baking", NOW + 110)
    assert become(again, us, now=NOW + 110).wave == 1


def test_after_the_last_wave_it_has_succeeded_or_says_who_was_set_aside() -> None:
    last = rollout(wave=1)
    assert become(last, [done("a"), done("b", wave=1), done("c", wave=1)]).state == "succeeded"
    us = [done("a"), done("b", wave=1), upgrade("c", "failed", wave=1, direction="undo")]
    failed = become(replace(last, allowed_failures=1), us, failed=1)
    assert (failed.state, failed.ended_at) == ("failed", NOW)
    assert "c set aside" in failed.why


def test_more_failures_before_the_swap_than_allowed_pause() -> None:
    us = [upgrade("a", "failed", direction="undo"), upgrade("b", wave=1)]
    stopped = become(rollout(), us, failed=1)
    assert stopped.state == "paused" and "1 server failed before its swap, 0 are allowed" in stopped.why
    assert become(rollout(allowed_failures=1), us, failed=1).state == "running"
    on = resumed(stopped, failed_before_swap=1, now=NOW)
    assert on.forgiven == 1 and become(on, us, failed=1).wave == 1
    assert become(on, us, failed=2).state == "paused"


def test_a_stop_pauses_whatever_it_does() -> None:
    for state in ("running", "baking"):
        r = rollout(state=state, stop="b failed behind its swap", bake_until=NOW - 1)
        stopped = become(r, [done("a"), upgrade("b", wave=1)])
        assert (stopped.state, stopped.why, stopped.resume_to) == ("paused", "b failed behind its swap", state)
        assert resumed(stopped, failed_before_swap=0, now=NOW).stop == ""


def test_an_abort_turns_back_what_flies_and_then_is_over() -> None:
    flying = [
        upgrade("a", "running", upto="provision"),
        upgrade("b", "waiting", upto="swap", wave=1),
        upgrade("c", "held", upto="drain_old", wave=1),
        upgrade("d", "running", upto="swap", direction="undo"),
        upgrade("e"),
        done("f"),
    ]
    turned = next_of(rollout(state="aborting", why="no"), flying)
    assert turned == [Turn(server=name, why="no") for name in ("a", "b", "c")]
    assert next_of(rollout(state="aborting", why="no", on_abort="finish"), flying) == [Turn(server="a", why="no")]
    assert become(rollout(state="aborting"), flying[4:]).state == "aborted"


def test_a_rollback_turns_back_the_newest_first_and_all_that_can_be() -> None:
    us = [
        done("a", admitted_at=1.0),
        done("b", admitted_at=2.0),
        upgrade("c", "running", admitted_at=3.0),
        upgrade("d"),
        replace(done("e", admitted_at=4.0), begun=(*done("e").begun, intent(RETIRE))),
        upgrade("f", "failed", direction="undo"),
    ]
    r = rollout(state="rolling_back", why="back", max_in_flight=2)
    assert next_of(r, us) == [Turn(server="c", why="back"), Turn(server="b", why="back")]
    assert become(r, us[3:]).state == "rolled_back"


def test_a_rollback_waits_for_what_was_admitted_and_has_begun_nothing() -> None:
    assert next_of(rollout(state="rolling_back", why="x"), [upgrade("a", "running")]) == [Turn(server="a", why="x")]


def test_one_that_is_held_on_its_way_back_keeps_no_other_waiting() -> None:
    us = [upgrade("a", "held", upto="swap", direction="undo"), done("b")]
    r = rollout(state="rolling_back", why="x", max_in_flight=1)
    assert next_of(r, us) == [Turn(server="b", why="x")]
    assert next_of(r, us[:1]) == [], "and it is not over before a person has been there"


@pytest.mark.parametrize("state", sorted(ENDED))
def test_an_ended_rollout_closes_when_nothing_can_happen_any_more(state: Any) -> None:
    ended = rollout(state=state)
    assert next_of(ended, [done("a")]) == []
    assert next_of(ended, [upgrade("a", "running", upto="swap", direction="undo")]) == []
    left = [upgrade("b")] if state in ("aborted", "rolled_back") else []
    closed = become(ended, [done("a", old_gone=True), *left, upgrade("c", "failed")])
    assert closed.closed
    assert next_of(closed, []) == []


states = st.sampled_from(
    ["running", "baking", "paused", "aborting", "rolling_back", "succeeded", "failed", "aborted", "rolled_back"]
)
lives = st.one_of(
    st.builds(upgrade, st.just(""), st.sampled_from(["running", "waiting", "held"]), upto=st.sampled_from(STEPS)),
    st.builds(
        upgrade,
        st.just(""),
        st.sampled_from(["running", "waiting", "held"]),
        upto=st.sampled_from(STEPS),
        direction=st.just("undo"),
    ),
    st.builds(upgrade, st.just(""), st.sampled_from(["pending", "running", "failed", "rolled_back"])),
    st.builds(done, st.just(""), old_gone=st.booleans()),
)


@given(states, st.lists(lives, min_size=1, max_size=8), st.integers(1, 4), st.booleans(), st.integers(0, 3))
@quick
def test_decisions_are_always_possible(state: Any, us: list[Upgrade], limit: int, stopped: bool, failed: int) -> None:
    us = [replace(u, server=f"s{n}", wave=n % 2) for n, u in enumerate(us)]
    waves = tuple(tuple(u.server for u in us if u.wave == wave) for wave in range(2))
    r = rollout(state=state, waves=waves, wave=limit % 2, max_in_flight=limit, stop="stop" if stopped else "", why="w")
    by_name = {u.server: u for u in us}
    flying = sum(in_flight(u) for u in us)
    decisions = next_of(r, us, failed=failed)
    admitted = [d for d in decisions if isinstance(d, Admit)]
    assert flying + len(admitted) <= max(limit, flying)
    assert not (admitted and (state != "running" or stopped))
    for decision in decisions:
        match decision:
            case Admit(server=server):
                assert by_name[server].state == "pending"
            case Turn(server=server):
                assert by_name[server].direction == "forward" and not by_name[server].beyond_return
            case Become(rollout=to):
                assert to != r
                if to.ended and not r.ended:
                    assert not any(in_flight(u) for u in us), "nothing flies in what has ended"


# -- what a person asks -----------------------------------------------------------------------------------------------

ALLOWED: dict[str, set[str]] = {
    "pause": {"running", "baking", "paused"},
    "resume": {"running", "baking", "paused"},
    "abort": {"running", "baking", "paused", "aborting", "aborted"},
    "roll back": {"running", "baking", "paused", "aborting", "rolling_back", *ENDED},
    "retry": {"running", "baking", "paused", "failed"},
}


def ask(verb: str, r: Rollout) -> Rollout:
    match verb:
        case "pause":
            return paused(r, why="w", now=NOW)
        case "resume":
            return resumed(r, failed_before_swap=2, now=NOW)
        case "abort":
            return aborting(r, why="w")
        case "roll back":
            return rolling_back(r, why="w")
    return reopened(r, [upgrade("a"), upgrade("b", wave=1)], "b")


@pytest.mark.parametrize("verb", ALLOWED)
@pytest.mark.parametrize(
    "state",
    ["running", "baking", "paused", "aborting", "rolling_back", "succeeded", "failed", "aborted", "rolled_back"],
)
def test_each_verb_applies_or_says_why_not(verb: str, state: Any) -> None:
    r = rollout(state=state, paused_at=NOW - 5 if state == "paused" else None, ended_at=1.0 if state in ENDED else None)
    if state not in ALLOWED[verb]:
        with pytest.raises(IllegalTransition, match=f"rollout r is {state}: nothing to {verb}"):
            ask(verb, r)
        return
    once = ask(verb, r)
    if verb != "resume":
        assert ask(verb, once) == once, "asking twice is asking once"
    assert once.ended == (once.ended_at is not None)


def test_nothing_is_rolled_back_once_it_is_closed() -> None:
    with pytest.raises(IllegalTransition, match="closed"):
        rolling_back(rollout(state="succeeded", closed=True), why="w")


def test_a_retry_of_a_failed_rollout_runs_on_at_that_servers_wave() -> None:
    assert reopened(rollout(state="failed", wave=1), [upgrade("a"), upgrade("b", wave=1)], "a").wave == 0


@pytest.mark.parametrize(
    ("state", "held", "code"),
    [
        ("succeeded", 0, 0),
        ("failed", 0, 1),
        ("aborted", 0, 4),
        ("rolled_back", 0, 4),
        ("paused", 0, 3),
        ("running", 1, 3),
        ("succeeded", 1, 3),
        ("running", 0, 0),
    ],
)
def test_exit_codes(state: Any, held: int, code: int) -> None:
    assert exit_code(rollout(state=state), held) == code


def test_a_budget_is_a_count_or_a_share_of_the_fleet() -> None:
    assert Budget(before_swap=3).allowed(10) == 3
    assert Budget(before_swap="25%").allowed(10) == 2
    assert Budget().allowed(1000) == 0


def test_counts_are_by_state() -> None:
    assert counts([upgrade("a"), upgrade("b"), done("c")]) == {"pending": 2, "upgraded": 1}
