"""Every state of a rollout answers everything that can be asked of it. And whatever happens to it and to its servers,
in whatever order: nobody is admitted too many, nothing is forgotten, and it comes to its end.

The verbs and their arguments are found in the module: a new one is picked up. Thousands of further histories run with
`pytest tests/unit/test_every_rollout.py --hypothesis-profile=thorough`.
"""

from __future__ import annotations

import inspect
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from orchestrator.domain import rollout as module
from orchestrator.domain.rollout import (
    ENDED,
    Admit,
    Approval,
    Become,
    Decision,
    Rollout,
    RolloutState,
    Turn,
    decide,
    in_flight,
    may_begin,
    reopened,
    resumed,
)
from orchestrator.domain.steps import STEPS
from orchestrator.domain.upgrade import Admitted, Began, Event, Held, Released, Shifted, Stumbled, TurnedBack, Upgrade
from orchestrator.domain.windows import Window, Windows
from orchestrator.errors import IllegalTransition, PointOfNoReturn
from tests.unit.test_every_transition import hoped_for

NOW = 1000.0
NIGHTS = Windows(zone="UTC", windows=(Window(days=(0, 1, 2, 3, 4, 5, 6), begins=22 * 60, ends=20),))


def _is_verb(function: Callable[..., Any]) -> bool:
    hints = get_type_hints(function)
    return hints.get("return") is Rollout and next(iter(hints.values()), None) is Rollout


VERBS = {
    name: function
    for name, function in inspect.getmembers(module, inspect.isfunction)
    if function.__module__ == module.__name__ and not name.startswith("_") and _is_verb(function)
}


def asked(verb: str, rollout: Rollout, upgrades: Sequence[Upgrade], now: float, *, failed: int = 0) -> Rollout:
    """The verb with arguments of the kind that its signature names."""
    given: dict[str, Any] = {
        "why": "asked",
        "now": now,
        "failed_before_swap": failed,
        "upgrades": upgrades,
        "retried": upgrades[-1].server,
        "who": "anna",
        "wave": rollout.wave,
    }
    function = VERBS[verb]
    wanted = list(inspect.signature(function).parameters)[1:]
    assert set(wanted) <= set(given), f"say in this test what {verb} takes"
    made: Rollout = function(rollout, **{name: given[name] for name in wanted})
    return made


def a_rollout(names: Sequence[str] = ("a", "b"), **changes: Any) -> Rollout:
    whole: dict[str, Any] = {
        "id": "r",
        "plan": "p",
        "fleet": "f",
        "created_at": 0.0,
        "created_by": "t",
        "waves": tuple((name,) for name in names),
        "max_in_flight": 1,
        "allowed_failures": 0,
        "bake": 0.0,
        "on_abort": "finish",
    }
    return Rollout(**{**whole, **changes})


def every_rollout() -> Iterator[Rollout]:
    for state, stop, on_abort, wave, count in itertools.product(
        get_args(RolloutState), ("", "a failed"), ("finish", "roll_back"), (0, 1), (0, 1, 2)
    ):
        yield from (
            a_rollout(
                state=state,
                stop=stop,
                on_abort=on_abort,
                wave=wave,
                closed=closed,
                bake=5.0,
                bake_until=NOW + 5 if state in ("baking", "paused") else None,
                paused_at=NOW - 5 if state == "paused" else None,
                resume_to="baking" if state == "paused" else None,
                approvals=tuple(Approval(wave=each, count=count, within=9.0) for each in (0, 1) if count),
                asked_at=NOW - 3 if state == "awaiting_approval" else None,
                windows=NIGHTS if state == "awaiting_window" else None,
                ended_at=NOW - 1 if state in ENDED else None,
            )
            for closed in ((False, True) if state in ENDED else (False,))
        )


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_rollout_answers_every_verb_with_a_rollout_or_with_a_sentence(verb: str) -> None:
    upgrades = [Upgrade(rollout="r", server="a", wave=0), Upgrade(rollout="r", server="b", wave=1)]
    applied = 0
    for rollout in every_rollout():
        try:
            once = asked(verb, rollout, upgrades, NOW)
        except IllegalTransition as refused:
            assert_told(refused, "rollout r ")
            continue
        applied += 1
        assert once == rollout or not rollout.closed, "nothing of what is closed changes"
        assert asked(verb, once, upgrades, NOW) == once, "asking twice is asking once"
        assert once.ended == (once.ended_at is not None)
        assert (once.state == "baking") <= (once.bake_until is not None)
        assert (once.id, once.waves, once.max_in_flight) == (rollout.id, rollout.waves, rollout.max_in_flight)
    assert applied, "it applies somewhere"


def assert_told(refused: IllegalTransition, says: str) -> None:
    assert says in refused.message and refused.next.startswith("changeover ")


def test_every_rollout_is_decided_about_whatever_its_servers_are() -> None:
    lives = [_at(name, where) for name in ("a", "b") for where in range(6)]
    for rollout in every_rollout():
        for a, b in itertools.product(lives[:6], lives[6:]):
            upgrades = [a, replace(b, wave=1)]
            decisions = decide(rollout, upgrades, failed_before_swap=0, now=NOW)
            assert decisions == decide(rollout, upgrades, failed_before_swap=0, now=NOW)
            check_decisions(rollout, upgrades, decisions)


def _at(name: str, where: int) -> Upgrade:
    u = Upgrade(rollout="r", server=name, wave=0)
    if where == 0:
        return u
    for n in range((0, 2, 10, 13, 15, 2)[where]):
        u = u.after(hoped_for(u, NOW + 100 * n))
    match where:
        case 1:
            return u.after(Held(why="ask"))
        case 5:
            return u.after(TurnedBack(why="bad", at=NOW, asked=False))
    return u


def check_decisions(rollout: Rollout, upgrades: Sequence[Upgrade], decisions: Sequence[Decision]) -> None:
    by_name = {u.server: u for u in upgrades}
    flying = [u for u in upgrades if in_flight(u)]
    admitted = [by_name[d.server] for d in decisions if isinstance(d, Admit)]
    if admitted:
        assert rollout.state == "running" and not rollout.stop, "a stopped rollout admits nobody"
        assert len(flying) + len(admitted) <= rollout.max_in_flight
        assert all(u.state == "pending" and u.wave == rollout.wave for u in admitted)
        before = {u.domain for u in flying if u.domain}
        assert len(before | {u.domain for u in admitted if u.domain}) <= max(1, len(before))
    turned = [by_name[d.server] for d in decisions if isinstance(d, Turn)]
    if turned:
        assert rollout.state in ("aborting", "rolling_back"), "a decision turns nobody back unless a person asked"
        assert all(u.direction == "forward" and not u.beyond_return for u in turned)
        if rollout.state == "aborting":
            assert all(in_flight(u) for u in turned), "what is upgraded stays"
    if rollout.closed:
        assert not decisions
    for decision in decisions:
        if isinstance(decision, Become):
            to = decision.rollout
            assert to != rollout, "each decision changes something"
            if to.ended and not rollout.ended:
                assert not flying, "nothing flies in what has ended"
            if to.closed:
                assert all(u.settled or u.state == "pending" for u in upgrades)
    assert len(decisions) == 1 or not any(isinstance(d, Become) for d in decisions)


# -- whole histories ---------------------------------------------------------------------------------------------------


class AnyRollout(RuleBasedStateMachine):
    """A rollout of four servers in two waves and two failure domains, one of them in none. Coordinators decide and act
    as they do, steps go well and badly, and people ask for anything at any time."""

    NAMES = ("a", "b", "c", "d")

    def __init__(self, limit: int = 2) -> None:
        super().__init__()
        self.now = NOW
        self.rollout = a_rollout(
            waves=(("a",), ("b", "c", "d")),
            max_in_flight=limit,
            allowed_failures=1,
            bake=3.0,
            approvals=(Approval(wave=1, count=limit - 1, within=500.0, otherwise="continue"),) if limit > 1 else (),
            windows=NIGHTS if limit == 3 else None,
        )
        domains = {"a": "x", "b": "", "c": "x", "d": "y"}
        self.upgrades = {
            name: Upgrade(rollout="r", server=name, wave=int(name != "a"), domain=domains[name]) for name in self.NAMES
        }
        self.failed = 0

    @property
    def all(self) -> list[Upgrade]:
        return list(self.upgrades.values())

    # -- what acts --------------------------------------------------------------------------------------------------

    @rule()
    def a_coordinator_decides(self) -> None:
        decisions = decide(self.rollout, self.all, failed_before_swap=self.failed, now=self.now)
        check_decisions(self.rollout, self.all, decisions)
        assert decisions == decide(self.rollout, self.all, failed_before_swap=self.failed, now=self.now)
        for decision in decisions:
            match decision:
                case Admit(server=name):
                    self.happens(name, Admitted(at=self.now))
                case Turn(server=name, why=why):
                    self.happens(name, TurnedBack(why=why, at=self.now, asked=True))
                case Become(rollout=to):
                    self.rollout = to
        again = decide(self.rollout, self.all, failed_before_swap=self.failed, now=self.now)
        assert not set(map(repr, again)) & set(map(repr, decisions)), "what was carried out is not decided again"

    @rule(name=st.sampled_from(NAMES))
    def a_step_goes_well(self, name: str) -> None:
        u = self.upgrades[name]
        if u.state in ("running", "waiting") or (u.state == "upgraded" and not u.old_gone):
            self.works(u)

    @rule(turns=st.integers(1, 12))
    def everything_goes_well_for_a_while(self, turns: int) -> None:
        for _ in range(turns):
            self.now += 1.0
            self.a_coordinator_decides()
            for name in self.NAMES:
                self.a_step_goes_well(name)

    def works(self, u: Upgrade) -> None:
        """The next thing of a step, if the store would grant its intent."""
        event = hoped_for(u, self.now)
        if isinstance(event, Began):
            if u.state == "upgraded":
                self.now = max(self.now, u.retain_until or 0.0)
                event = hoped_for(u, self.now)
                granted = self.rollout.state not in ("paused", "aborting", "rolling_back")
            else:
                granted = may_begin(self.rollout, u) or (
                    self.rollout.state == "aborting" and self.rollout.on_abort == "finish" and u.past_swap
                )
            if not granted:
                self.happens(u.server, Stumbled(why="not begun", at=self.now + 9, counts=False, refused=True))
                return
        self.happens(u.server, event)

    @rule(name=st.sampled_from(NAMES), why=st.sampled_from(["bad", "ask"]))
    def a_step_goes_badly(self, name: str, why: str) -> None:
        u = self.upgrades[name]
        if u.state not in ("running", "waiting"):
            return
        if u.direction == "undo" or why == "ask":
            self.happens(name, Held(why=why))
            return
        self.happens(name, TurnedBack(why=why, at=self.now, asked=False))
        if u.past_swap:
            self.rollout = replace(self.rollout, stop=self.rollout.stop or f"{name} failed")
        else:
            self.failed += 1

    @rule(seconds=st.sampled_from([0.5, 5.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(name=st.sampled_from(NAMES))
    def a_person_turns_one_back(self, name: str) -> None:
        self.happens(name, TurnedBack(why="asked", at=self.now, asked=True))

    @rule(name=st.sampled_from(NAMES), dies=st.booleans())
    def a_person_retries_one(self, name: str, dies: bool) -> None:
        """As the verb does it: asked of the rollout first, the server released, then its wave reopened, unless who
        asked died in between."""
        u = self.upgrades[name]
        if u.state == "held":
            self.happens(name, Released(at=self.now))
        if u.state not in ("failed", "rolled_back"):
            return
        try:
            reopened(self.rollout, self.all, name)
        except IllegalTransition:
            return
        self.happens(name, Released(at=self.now))
        if not dies:
            self.rollout = reopened(self.rollout, self.all, name)

    @rule(verb=st.sampled_from(sorted(set(VERBS) - {"reopened"})))
    def a_person_asks(self, verb: str) -> None:
        if verb == "resumed" and self.rollout.state == "paused":
            pause = self.now - (self.rollout.paused_at or self.now)
            for u in self.all:
                if u.state in ("running", "waiting"):
                    self.happens(u.server, Shifted(seconds=pause))
        try:
            to = asked(verb, self.rollout, self.all, self.now, failed=self.failed)
        except IllegalTransition as refused:
            assert_told(refused, "rollout r ")
            return
        assert not (self.rollout.closed and to != self.rollout)
        self.rollout = to

    @precondition(lambda self: self.rollout.closed)
    @rule()
    def what_is_closed_stays_so(self) -> None:
        assert not decide(self.rollout, self.all, failed_before_swap=self.failed, now=self.now + 1e6)

    def happens(self, name: str, event: Event) -> None:
        try:
            self.upgrades[name] = self.upgrades[name].after(event)
        except PointOfNoReturn:
            assert self.upgrades[name].beyond_return
        except IllegalTransition as refused:
            assert_told(refused, name)

    # -- what is always so --------------------------------------------------------------------------------------------

    @invariant()
    def it_makes_sense(self) -> None:
        r = self.rollout
        assert 0 <= r.wave < len(r.waves)
        assert r.ended == (r.ended_at is not None)
        assert (r.state == "paused") <= (r.paused_at is not None)
        if r.closed:
            assert r.ended
            assert all(u.settled or u.state == "pending" for u in self.all)
        if r.state == "succeeded":
            assert all(u.state == "upgraded" or u.asked or u.life > 1 or u.direction == "undo" for u in self.all)

    def teardown(self) -> None:
        """And it can be brought to its end: nothing goes wrong any more, and a person goes on where one is asked."""
        for _ in range(400):
            if self.rollout.closed:
                break
            self.now += 10.0
            self.a_coordinator_decides()
            if self.rollout.state == "paused":
                self.rollout = resumed(self.rollout, failed_before_swap=self.failed, now=self.now)
            self.now = max(self.now, self.rollout.wakes_at or 0.0)
            for u in self.all:
                if u.state == "held":
                    self.happens(u.server, Released(at=self.now))
                elif in_flight(u) or (u.state == "upgraded" and not u.old_gone):
                    self.works(u)
            self.a_coordinator_decides()
        assert self.rollout.closed, (self.rollout, self.all)
        if self.rollout.state == "succeeded":
            assert all(u.old_gone for u in self.all if u.state == "upgraded")
        if self.rollout.state in ("succeeded", "failed"):
            assert not [u for u in self.all if u.state == "pending"], "nobody is left out of its wave"


AnyRollout.TestCase.settings = settings(
    max_examples=4000 if settings.get_current_profile_name() == "thorough" else 100,
    stateful_step_count=30,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
test_whatever_happens_a_rollout_keeps_its_limits_and_ends = AnyRollout.TestCase


@pytest.mark.parametrize("seed", range(10))
def test_a_hundred_random_rollouts_a_seed_keep_their_limits_and_end(seed: int) -> None:
    """The same, with the weights of a life in which most goes well: each way of failing meets each stage."""
    rng = random.Random(seed)
    for _ in range(100):
        life = AnyRollout(limit=rng.choice((2, 3)))
        for _ in range(rng.randrange(40)):
            name = rng.choice(life.NAMES)
            match rng.randrange(20):
                case 0:
                    life.a_step_goes_badly(name, "bad")
                case 1:
                    life.a_step_goes_badly(name, "ask")
                case 2:
                    life.a_person_turns_one_back(name)
                case 3 | 4:
                    life.a_person_retries_one(name, rng.random() < 0.5)
                case 5:
                    life.a_person_asks(rng.choice(sorted(set(VERBS) - {"reopened"})))
                case 6 | 7:
                    life.time_passes(rng.choice((0.5, 5.0, 100.0)))
                case 8 | 9 | 10:
                    life.a_coordinator_decides()
                case 11 | 12 | 13:
                    life.a_step_goes_well(name)
                case _:
                    life.everything_goes_well_for_a_while(rng.randrange(1, 8))
            life.it_makes_sense()
        life.teardown()


def test_the_steps_that_histories_take_are_the_products_own() -> None:
    u = Upgrade(rollout="r", server="a", wave=0)
    seen = []
    while u.state != "upgraded":
        if u.step not in seen:
            seen.append(u.step)
        u = u.after(hoped_for(u, NOW))
    assert tuple(seen) == STEPS
