"""What a failure means: the same again, anew, back, or a person."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.retry import CAP, Limits, Trouble, answer_to, back_off, poison
from orchestrator.domain.upgrade import AttemptEnded, Event, Held, Intent, Stumbled, TurnedBack, Upgrade

NOW = 1000.0
LIMITS = Limits(attempts=3, base=2.0)


def upgrade(*, intents: int = 1, **changes: Any) -> Upgrade:
    """At its first step, with that many attempts begun in this life."""
    begun = tuple(
        Intent(step="create_image", attempt=n, rung=0, token=str(n), name=str(n), at=NOW) for n in range(intents)
    )
    whole: dict[str, Any] = {"state": "running", "begun": begun, "intent": begun[-1], "deadline": NOW + 60}
    return Upgrade(rollout="r", server="s", wave=0, **{**whole, **changes})


def answer(u: Upgrade, trouble: Trouble, *, now: float = NOW) -> Event:
    return answer_to(u, trouble, "why", limits=LIMITS, now=now, spread=0.5)


LATE = NOW + 61
UNDO: dict[str, Any] = {"direction": "undo", "intent": None}


@pytest.mark.parametrize(
    ("u", "trouble", "now", "kind"),
    [
        (upgrade(), "busy", NOW, Stumbled),
        (upgrade(tries=50), "busy", NOW, Stumbled),
        (upgrade(), "busy", LATE, Stumbled),
        (upgrade(tries=2), "busy", LATE, TurnedBack),
        (upgrade(tries=2, **UNDO), "busy", LATE, Held),
        (upgrade(), "guard", NOW, Stumbled),
        (upgrade(), "guard", LATE, Stumbled),
        (upgrade(tries=2), "guard", LATE, TurnedBack),
        (upgrade(), "away", NOW, Stumbled),
        (upgrade(tries=50), "away", NOW, Stumbled),
        (upgrade(), "away", LATE, Stumbled),
        (upgrade(tries=2), "away", LATE, TurnedBack),
        (upgrade(tries=2, **UNDO), "away", LATE, Held),
        (upgrade(), "unsure", NOW, Stumbled),
        (upgrade(tries=1), "unsure", NOW, Stumbled),
        (upgrade(tries=2), "unsure", NOW, TurnedBack),
        (upgrade(), "unsure", LATE, Stumbled),
        (upgrade(tries=2), "unsure", LATE, TurnedBack),
        (upgrade(tries=2, **UNDO), "unsure", NOW, Held),
        (upgrade(), "refused", NOW, AttemptEnded),
        (upgrade(intents=2), "refused", NOW, AttemptEnded),
        (upgrade(intents=3), "refused", NOW, TurnedBack),
        (upgrade(intents=2, attempts={"create_image": 9}), "refused", NOW, AttemptEnded),
        (upgrade(**UNDO), "refused", NOW, Stumbled),
        (upgrade(tries=2, **UNDO), "refused", NOW, Held),
        (upgrade(intent=None), "refused", NOW, Stumbled),
        (upgrade(intent=None, tries=2), "refused", NOW, TurnedBack),
        (upgrade(), "failed", NOW, TurnedBack),
        (upgrade(**UNDO), "failed", NOW, Held),
        (upgrade(), "blocked", NOW, Held),
        (upgrade(**UNDO), "blocked", NOW, Held),
    ],
)
def test_each_trouble_has_its_answer(u: Upgrade, trouble: Trouble, now: float, kind: type) -> None:
    found = answer(u, trouble, now=now)
    assert type(found) is kind
    assert isinstance(u.after(found), Upgrade)
    if isinstance(found, TurnedBack):
        assert not found.asked


@pytest.mark.parametrize("trouble", get_args(Trouble))
def test_a_retirement_is_tried_for_ever(trouble: Trouble) -> None:
    u = upgrade(state="upgraded", tries=99, step="retire", begun=(), intent=None)
    found = answer(u, trouble, now=LATE)
    assert isinstance(found, Stumbled) and found.at >= LATE + 1


@pytest.mark.parametrize("trouble", ["busy", "guard", "away", "unsure"])
def test_after_the_deadline_it_is_tried_a_few_times_more_and_then_no_more(trouble: Trouble) -> None:
    u, tries = upgrade(), 0
    while isinstance(found := answer(u, trouble, now=LATE), Stumbled):
        u, tries = u.after(found), tries + 1
    assert isinstance(found, TurnedBack) and tries == LIMITS.attempts - 1


def test_only_silence_counts_as_a_try() -> None:
    counted = {trouble: answer(upgrade(), trouble) for trouble in ("busy", "guard", "unsure")}
    assert {trouble: found.counts for trouble, found in counted.items() if isinstance(found, Stumbled)} == {
        "busy": False,
        "guard": False,
        "unsure": True,
    }


@given(tries=st.integers(0, 10**6), base=st.floats(0.001, 600), spread=st.floats(0, 1, exclude_max=True))
@settings(database=None, deadline=None, max_examples=200)
def test_a_back_off_is_never_nothing_and_never_long(tries: int, base: float, spread: float) -> None:
    wait = back_off(tries, base, spread)
    assert 0.05 <= wait <= max(0.05, min(CAP, base * 2.0 ** min(tries, 20)))
    assert back_off(tries + 1, base, spread) >= wait


@pytest.mark.parametrize(
    ("lost", "held"),
    [
        ((), False),
        (("w1/1", "w2/1"), False),
        (("w1/1", "w1/2", "w2/1"), True),
        (("w1/1", "w1/1", "w2/1", "w1/1"), False),  # two processes that live: Redis was away
        (("w1/1",) * 6, True),  # it hangs there again and again
    ],
)
def test_a_server_at_which_several_workers_were_lost_is_a_matter_for_a_person(
    lost: tuple[str, ...], held: bool
) -> None:
    event = poison(upgrade(), lost, now=NOW)
    assert isinstance(event, Held) == held
    if isinstance(event, Held):
        assert "poison" in event.why and "create_image" in event.why and lost[0] in event.why
    retiring = poison(upgrade(state="upgraded"), lost, now=NOW)
    assert (retiring is not None) == held and not isinstance(retiring, Held)
