"""What can happen to an upgrade: every state has an answer to every event."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from orchestrator.domain.steps import RETIRE, STEPS
from orchestrator.domain.upgrade import (
    Admitted,
    Ailed,
    AttemptEnded,
    Began,
    Doubted,
    Event,
    Finished,
    Held,
    Intent,
    Looked,
    Observe,
    Recovered,
    Released,
    Repaired,
    Seen,
    Settled,
    Shifted,
    Side,
    Stumbled,
    TurnedBack,
    UndoBegan,
    Undone,
    Upgrade,
    Waiting,
    Waits,
)
from orchestrator.errors import IllegalTransition, PointOfNoReturn
from orchestrator.store import codec

AT = 1000.0
WAIT = Waiting(reason="is starting", at=AT + 5, observe=Observe(kind="server", lane="l", ids=("i",)))
TIME = Waiting(reason="soaking", at=AT + 5)


def intent(step: str, attempt: int = 0) -> Intent:
    at = AT + 100 if step == RETIRE else AT
    return Intent(step=step, attempt=attempt, rung=0, token=f"{step}{attempt}", name=f"co-{step}", at=at)


def event(kind: str, u: Upgrade) -> Event:
    """One of that kind, as it would come to this record."""
    made: dict[str, Callable[[], Event]] = {
        "Admitted": lambda: Admitted(at=AT),
        "Began": lambda: Began(intent=intent(u.step, u.attempt(u.step)), deadline=AT + 60),
        "UndoBegan": lambda: UndoBegan(deadline=AT + 60),
        "Waits": lambda: Waits(wait=WAIT, notes={"n": 1}),
        "Looked": lambda: Looked(seen=Seen(kind="server", at=AT, answers={}), again=AT + 9),
        "Finished": lambda: Finished(result={"ok": 1}, at=AT, retain_until=AT + 100),
        "Stumbled": lambda: Stumbled(why="no answer", at=AT + 1),
        "AttemptEnded": lambda: AttemptEnded(why="no", at=AT + 1),
        "TurnedBack": lambda: TurnedBack(why="bad", at=AT, asked=False),
        "Undone": lambda: Undone(at=AT),
        "Held": lambda: Held(why="ask"),
        "Released": lambda: Released(at=AT),
        "Doubted": lambda: Doubted(until=AT + 75),
        "Ailed": lambda: Ailed(why="down", at=AT, ill=True),
        "Recovered": Recovered,
        "Repaired": Repaired,
        "Settled": lambda: Settled(serving="new", why="mended by hand", at=AT),
        "Shifted": lambda: Shifted(seconds=7.0),
    }
    return made[kind]()


def told(*kinds: str, u: Upgrade | None = None) -> Upgrade:
    u = u or Upgrade(rollout="r", server="s", wave=0)
    for kind in kinds:
        u = u.after(event(kind, u))
    return u


FORWARD = ("Began", "Finished")
RECORDS = {
    "pending": told(),
    "admitted": told("Admitted"),
    "begun": told("Admitted", "Began"),
    "waiting": told("Admitted", "Began", "Waits"),
    "held": told("Admitted", "Began", "Held"),
    "undoing": told("Admitted", "Began", "TurnedBack"),
    "undo begun": told("Admitted", "Began", "TurnedBack", "UndoBegan"),
    "upgraded": told("Admitted", *FORWARD * 6),
    "retiring": told("Admitted", *FORWARD * 6, "Began"),
    "old gone": told("Admitted", *FORWARD * 7),
    "failed": told("Admitted", "Began", "TurnedBack", "UndoBegan", "Undone"),
    "rolled back": replace(told("Admitted", "Began", "TurnedBack", "UndoBegan", "Undone"), state="rolled_back"),
    "settled on A": told("Admitted", "Began", "Held").after(Settled(serving="old", why="mine", at=AT)),
    "settled on B": told("Admitted", "Began", "Held", "Settled"),
    "swapping": told("Admitted", *FORWARD * 4, "Began"),
    "swapped": told("Admitted", *FORWARD * 5),
    "ailing": told("Admitted", *FORWARD * 6, "Ailed"),
}
ANY_TURN = {"Stumbled", "TurnedBack"}
APPLY = {
    "pending": {"Admitted", "TurnedBack", "Shifted"},
    "admitted": {"Began", "Held", "Shifted", *ANY_TURN},
    "begun": {"Doubted", "Finished", "AttemptEnded", "Held", "Shifted", "Waits", *ANY_TURN},
    "waiting": {"Doubted", "Looked", "Finished", "AttemptEnded", "Held", "Shifted", "Waits", *ANY_TURN},
    "held": {"TurnedBack", "Released", "Settled", "Shifted"},
    "undoing": {"UndoBegan", "Held", "Shifted", *ANY_TURN},
    "undo begun": {"Undone", "Held", "Shifted", "Waits", *ANY_TURN},
    "upgraded": {"Began", "Ailed", "Repaired", *ANY_TURN},
    "retiring": {"Finished", "Waits", "Stumbled", "Ailed", "Repaired"},
    "old gone": {"Ailed", "Repaired"},
    "swapping": {"Doubted", "Finished", "AttemptEnded", "Held", "Shifted", "Ailed", "Repaired", "Waits", *ANY_TURN},
    "swapped": {"Began", "Held", "Shifted", "Ailed", "Repaired", *ANY_TURN},
    "ailing": {"Ailed", "Recovered", "Repaired", "Settled", *ANY_TURN},
    "failed": {"TurnedBack", "Released"},
    "rolled back": {"TurnedBack", "Released"},
    "settled on A": {"TurnedBack", "Released"},
    "settled on B": set[str](),
}
KINDS = [kind.__name__ for kind in Event.__args__]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", RECORDS)
def test_every_state_answers_every_event(name: str, kind: str) -> None:
    u = RECORDS[name]
    if kind in APPLY[name]:
        assert isinstance(u.after(event(kind, u)), Upgrade)
    elif kind == "TurnedBack":
        with pytest.raises(PointOfNoReturn, match="settled by a person" if u.by_hand else "terminated"):
            u.after(event(kind, u))
    else:
        with pytest.raises(IllegalTransition, match=f"{kind} does not apply") as refused:
            u.after(event(kind, u))
        assert refused.value.traffic and refused.value.next == "changeover explain s"


def test_a_record_cannot_be_changed_in_place() -> None:
    with pytest.raises(FrozenInstanceError):
        RECORDS["pending"].state = "running"  # type: ignore[misc] # that it is refused is the point


def test_the_way_forward_is_the_steps_in_order() -> None:
    u, seen = told("Admitted"), []
    while u.state != "upgraded":
        seen.append(u.step)
        u = told("Began", "Finished", u=u)
    assert tuple(seen) == STEPS
    assert (u.step, u.remaining, u.retain_until) == (RETIRE, (RETIRE,), AT + 100)
    u = told("Began", "Finished", u=u)
    assert u.settled and not u.remaining


@pytest.mark.parametrize("done", range(1, 7))
def test_the_way_back_is_every_begun_step_in_reverse(done: int) -> None:
    u, seen = told("TurnedBack", u=told("Admitted", *FORWARD * (done - 1), "Began")), []
    while not u.terminal:
        seen.append(u.step)
        u = told("UndoBegan", "Undone", u=u)
    assert tuple(seen) == tuple(reversed(STEPS[:done]))
    assert u.state == ("rolled_back" if done > STEPS.index("swap") else "failed")


def test_what_has_begun_nothing_ends_at_once() -> None:
    assert told("Admitted", "TurnedBack").state == "failed"
    assert told().after(TurnedBack(why="asked", at=AT, asked=True)).state == "rolled_back"


def test_turning_back_twice_is_once() -> None:
    u = RECORDS["undo begun"]
    assert u.after(TurnedBack(why="again", at=AT, asked=True)) == u
    assert RECORDS["failed"].after(TurnedBack(why="again", at=AT, asked=True)) == RECORDS["failed"]


def test_a_definite_refusal_begins_anew_with_another_attempt() -> None:
    u = told("Waits", "AttemptEnded", u=RECORDS["begun"])
    assert (u.state, u.intent, u.attempt(STEPS[0]), u.notes, u.deadline) == ("waiting", None, 1, {}, None)
    assert u.wait is not None and u.wait.at == AT + 1
    again = told("Began", u=u)
    assert [i.attempt for i in again.begun] == [0, 1]


def test_an_earlier_step_whose_result_is_gone_is_done_anew_as_long_as_no_user_was_sent_to_b() -> None:
    u = told(*FORWARD, "Began", u=RECORDS["admitted"]).after(AttemptEnded(why="gone", at=AT, back_to=STEPS[0]))
    assert (u.state, u.step, u.attempts, u.results) == ("waiting", STEPS[0], {STEPS[0]: 1, STEPS[1]: 1}, {})
    assert [i.attempt for i in told(*FORWARD, "Began", u=u).begun] == [0, 0, 1, 1]
    for late in ("swapping", "begun"):
        with pytest.raises(IllegalTransition):
            RECORDS[late].after(AttemptEnded(why="gone", at=AT, back_to=STEPS[0]))


def test_a_retry_of_what_failed_uses_no_old_token() -> None:
    u = told("Released", u=RECORDS["failed"])
    assert (u.state, u.begun, u.attempts, u.direction) == ("pending", (), {STEPS[0]: 1, "drain_old": 1}, "forward")


def test_a_released_one_goes_on_where_it_was_and_has_all_its_time_once_more() -> None:
    was = RECORDS["begun"]
    u = told("Held", u=was).after(Released(at=AT + 500))
    assert (u.state, u.step, u.direction, u.begun) == ("waiting", was.step, was.direction, was.begun)
    assert was.intent is not None and was.deadline is not None
    assert u.deadline == AT + 500 + was.deadline - was.intent.at
    again = told("Held", u=u).after(Released(at=AT + 900))
    assert again.deadline == AT + 900 + was.deadline - was.intent.at, "and not more, however often it is asked for"


def test_no_old_server_ends_before_its_time_is_up() -> None:
    u = RECORDS["upgraded"]
    early = Began(intent=replace(intent(RETIRE), at=AT + 99), deadline=None)
    with pytest.raises(IllegalTransition, match="Began does not apply"):
        u.after(early)


def test_an_intent_of_another_attempt_than_the_due_one_is_refused() -> None:
    u = told("AttemptEnded", u=RECORDS["begun"])
    with pytest.raises(IllegalTransition, match="Began does not apply"):
        u.after(Began(intent=intent(u.step, 0), deadline=None))


@pytest.mark.parametrize("event", ["Released", "TurnedBack"])
def test_a_held_undo_that_is_asked_for_again_is_announced_anew_with_a_new_deadline(event: str) -> None:
    was = RECORDS["undo begun"]
    u = told("Held", event, u=was)
    assert (u.state, u.step, u.direction, u.deadline) == ("waiting", was.step, "undo", None)
    assert told("UndoBegan", u=u).deadline == AT + 60


def test_a_pause_moves_the_deadline_and_lets_begin_what_it_had_refused() -> None:
    assert RECORDS["begun"].after(Shifted(seconds=7)).deadline == AT + 67
    refused = RECORDS["admitted"].after(Stumbled(why="not begun: paused", at=AT + 600, counts=False, refused=True))
    assert refused.after(Shifted(seconds=7)).wait is None
    backing_off = told("AttemptEnded", u=RECORDS["begun"])
    assert backing_off.after(Shifted(seconds=7)).wait == backing_off.wait, "nor is what the provider asked for"
    soaking = RECORDS["begun"].after(Waits(wait=TIME))
    assert soaking.after(Shifted(seconds=7)).wait == TIME, "a soak is not cut short by a pause"


def test_looking_says_nothing_but_what_was_seen() -> None:
    was = RECORDS["waiting"]
    now = told("Looked", u=was)
    assert now.wait is not None and now.seen is not None
    assert replace(now, seen=None, wait=was.wait) == was


@pytest.mark.parametrize("way", [("Held",), ("TurnedBack", "Held"), ("Finished", "Began", "TurnedBack", "Held")])
def test_what_a_person_has_settled_is_done(way: tuple[str, ...]) -> None:
    held = told(*way, u=RECORDS["begun"])
    new = held.after(Settled(serving="new", why="A is gone", at=AT, old_gone=True))
    assert (new.state, new.direction, new.old_gone, new.by_hand) == ("upgraded", "forward", True, "A is gone")
    assert new.settled and not new.remaining and new.traffic == "the new server of s serves, as settled by a person"
    old = held.after(Settled(serving="old", why="B is gone", at=AT))
    assert (old.state, old.asked) == ("rolled_back", True)
    assert old.settled and old.traffic == "s serves, as settled by a person"


def test_an_old_server_that_was_found_gone_cannot_be_had_back_and_its_image_ends_in_its_time() -> None:
    lost = told("Began", u=RECORDS["swapped"]).after(
        Finished(result={"gone": "i-1"}, at=AT, retain_until=AT + 100),
    )
    assert (lost.state, lost.step, lost.retain_until) == ("upgraded", RETIRE, AT + 100)
    assert lost.old_lost and lost.beyond_return and not lost.settled and "gone already" in lost.why
    assert lost.traffic == "the new server of s serves, the old one is gone"
    with pytest.raises(PointOfNoReturn, match="somebody else has deleted it"):
        told("TurnedBack", u=lost)
    ailing = told("Ailed", u=lost)
    assert "the image of the old server" in ailing.keeps_old and ailing.asks_person
    done = told("Began", "Finished", u=lost)
    assert done.settled and done.old_gone


def test_words_say_where_users_are_served() -> None:
    assert RECORDS["begun"].traffic == "s serves"
    swapping = told("Admitted", *FORWARD * 4, "Began")
    assert "joins" in swapping.traffic
    assert "is leaving" in told("Finished", "Began", u=swapping).traffic
    assert told("TurnedBack", u=swapping).traffic.endswith("leave its pools, and stays in them until s serves there")
    drained = told("Finished", "Began", "TurnedBack", "UndoBegan", "Undone", u=swapping)
    assert drained.traffic == "s is in its pools again, and its new server leaves them"
    draining = told("Finished", "Began", "TurnedBack", u=swapping)
    assert "put back" in draining.traffic
    assert "stays in its pools" in told("Held", u=draining).traffic, "nobody is at work on it"
    assert told("UndoBegan", "Undone", "UndoBegan", "Undone", u=draining).traffic == "s serves"
    assert "kept stopped" in RECORDS["upgraded"].traffic
    assert RECORDS["failed"].traffic == "s serves"


class AnyHistory(RuleBasedStateMachine):
    """Whatever comes, in whatever order."""

    def __init__(self) -> None:
        super().__init__()
        self.u = Upgrade(rollout="r", server="s", wave=0)

    @rule(kind=st.sampled_from(KINDS))
    def something_happens(self, kind: str) -> None:
        self.happens(event(kind, self.u))

    @rule()
    def what_was_hoped_for_happens(self) -> None:
        u = self.u
        if u.state == "pending":
            self.happens(Admitted(at=AT))
        elif u.direction == "undo":
            self.happens(Undone(at=AT) if u.undoing == u.step else UndoBegan(deadline=AT + 60))
        else:
            self.happens(event("Began" if u.intent is None else "Finished", u))

    @rule(step=st.sampled_from((*STEPS, RETIRE)))
    def another_step_is_begun(self, step: str) -> None:
        self.happens(Began(intent=intent(step, self.u.attempt(step)), deadline=None))

    @precondition(lambda self: self.u.step == "drain_old")
    @rule()
    def its_old_server_is_found_gone(self) -> None:
        self.happens(Finished(result={"gone": "i-1"}, at=AT, retain_until=AT + 100))

    @rule(serving=st.sampled_from(("old", "new")), gone=st.booleans())
    def a_person_settles_it(self, serving: Side, gone: bool) -> None:
        self.happens(Settled(serving=serving, why="by hand", at=AT, old_gone=gone))

    @rule(asked=st.booleans(), why=st.text(max_size=5))
    def it_is_turned_back(self, asked: bool, why: str) -> None:
        self.happens(TurnedBack(why=why, at=AT, asked=asked))

    def happens(self, event: Event) -> None:
        was = self.u
        try:
            now = was.after(event)
        except PointOfNoReturn:
            assert was.beyond_return and isinstance(event, TurnedBack)
            return
        except IllegalTransition:
            return
        self.u = now
        anew = isinstance(event, Released) and was.state in ("failed", "rolled_back")
        if not anew:
            assert now.begun[: len(was.begun)] == was.begun, "what was begun is never forgotten"
        if len(now.begun) > len(was.begun):
            assert isinstance(event, Began) and was.direction == "forward" and event.intent.step == was.step
        if now.state == "rolled_back":
            assert now.ailing is None, "A serves, and a B that is given up needs no alarm"
        if was.terminal and now.state != was.state:
            by_hand = isinstance(event, Settled) and was.keeps_old
            assert by_hand or isinstance(event, Released | TurnedBack)
        if was.direction == "undo" and now.direction == "forward":
            assert anew or isinstance(event, Settled)
        if was.beyond_return:
            assert now.state == "upgraded" and now.beyond_return
        if was.state == "held" and now.state != "held":
            assert isinstance(event, Released | Settled | TurnedBack)
        assert len(now.results) >= len(was.results) or anew
        assert all(now.attempt(step) >= was.attempt(step) for step in (*STEPS, RETIRE)), "no token is used again"

    @invariant()
    def it_makes_sense(self) -> None:
        u = self.u
        if u.state in ("running", "waiting", "held"):
            assert u.remaining and u.remaining[0] == u.step
        if u.state == "upgraded":
            assert u.step == RETIRE and bool(u.remaining) != (u.old_gone or bool(u.by_hand))
        if u.settled:
            assert u.terminal and u.wait is None
        if u.intent is not None:
            assert u.intent == u.begun[-1] and u.intent.step == u.step and u.direction == "forward"
        if u.old_gone:
            assert u.beyond_return
        if u.direction == "undo":
            assert not u.beyond_return
        assert len({i.token for i in u.begun}) == len(u.begun), "each intent has its own token"
        assert u.traffic
        assert codec.UPGRADE.load(codec.UPGRADE.dump(u), key="s") == u


AnyHistory.TestCase.settings = settings(
    max_examples=4000 if settings.get_current_profile_name() == "thorough" else 60,
    stateful_step_count=50,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
test_whatever_happens_the_record_makes_sense = AnyHistory.TestCase
