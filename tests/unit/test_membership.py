"""Who belongs into the pools, read from the record alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.domain.membership import alarm, desired, look_every, must_serve, on_probation
from orchestrator.domain.plan import Seat
from orchestrator.domain.rollout import Rollout
from orchestrator.domain.upgrade import PATIENCE, Ailed, Settled, Upgrade
from tests.unit.test_upgrade import AT, FORWARD, told

SEATS = (Seat(pool="web", name="s", new_name="s.g2", address="127.0.0.9", port=80, state="serving"),)
UNDONE = ("UndoBegan", "Undone")
SWAPPING = told("Admitted", *FORWARD * 4, "Began")
DRAINING = told("Finished", "Began", u=SWAPPING)
UPGRADED = told("Finished", u=DRAINING)
BACK = told("TurnedBack", u=UPGRADED)


def wanted(u: Upgrade) -> dict[str, str]:
    return {place.name: place.want for place in desired(u, SEATS)}


def test_where_one_takes_the_others_place_only_one_is_wanted_while_a_step_moves_it() -> None:
    back = told("UndoBegan", u=BACK)
    assert wanted(back) == {"s.g2": "serving"}
    assert desired(back, SEATS, additive=False) == []
    assert {place.name for place in desired(DRAINING, SEATS, additive=False)} == {"s.g2"}
    again = replace(SWAPPING, life=2)
    assert [place.name for place in desired(again, SEATS) if place.want == "serving"] == ["s"]
    assert [place.name for place in desired(again, SEATS, additive=False) if place.want == "serving"] == []


@pytest.mark.parametrize(
    ("u", "places"),
    [
        (told(), {}),
        (told("Admitted", "Began"), {}),
        (told("Admitted", "Began", "TurnedBack", *UNDONE), {}),
        (SWAPPING, {}),
        (told("Finished", u=SWAPPING), {"s.g2": "serving"}),
        (DRAINING, {"s.g2": "serving"}),
        (told("Held", u=DRAINING), {"s.g2": "serving"}),
        (UPGRADED, {"s": "absent", "s.g2": "serving"}),
        (told("Began", u=UPGRADED), {"s": "absent", "s.g2": "serving"}),
        (told("Began", "Finished", u=UPGRADED), {"s": "absent", "s.g2": "serving"}),
        (BACK, {"s.g2": "serving"}),
        (told(*UNDONE, u=BACK), {"s": "serving"}),
        (told(*UNDONE * 2, u=BACK), {"s": "serving", "s.g2": "absent"}),
        (told("Held", u=told(*UNDONE * 2, u=BACK)), {"s": "serving", "s.g2": "absent"}),
        (told(*UNDONE * 6, u=BACK), {"s": "serving", "s.g2": "absent"}),
        (told("TurnedBack", u=SWAPPING), {}),
        (told("TurnedBack", *UNDONE, u=SWAPPING), {"s.g2": "absent"}),
    ],
)
def test_every_state_says_who_serves_and_who_is_out(u: Upgrade, places: dict[str, str]) -> None:
    assert wanted(u) == places


def test_a_new_life_has_a_new_name_and_the_former_ones_are_out() -> None:
    again = told("Released", u=told(*UNDONE * 6, u=BACK))
    assert wanted(again) == {"s": "serving", "s.g2": "absent", "s.g3": "absent"}
    assert wanted(told("Admitted", *FORWARD * 4, "Began", u=again)) == {"s": "serving", "s.g2": "absent"}
    assert wanted(told("Admitted", *FORWARD * 6, u=again)) == {"s": "absent", "s.g2": "absent", "s.g3": "serving"}


def test_what_a_person_has_settled_is_left_alone() -> None:
    held = told("Held", u=BACK)
    assert wanted(held.after(Settled(serving="new", why="x", at=AT))) == {}


@pytest.mark.parametrize(
    ("u", "must"),
    [(SWAPPING, False), (DRAINING, True), (UPGRADED, True), (BACK, False), (told("Admitted", "Began"), False)],
)
def test_users_rely_on_a_new_server_from_the_end_of_its_swap(u: Upgrade, must: bool) -> None:
    assert must_serve(u) == must


ROLLOUT = Rollout(
    id="r",
    plan="p",
    fleet="f",
    created_at=0.0,
    created_by="t",
    waves=(("s",), ("t",)),
    max_in_flight=1,
    allowed_failures=0,
    bake=40.0,
    on_abort="finish",
)


def test_a_server_is_on_probation_until_its_wave_has_baked() -> None:
    assert on_probation(ROLLOUT, UPGRADED)
    assert on_probation(replace(ROLLOUT, state="paused"), UPGRADED)
    assert not on_probation(replace(ROLLOUT, wave=1), UPGRADED)
    assert not on_probation(replace(ROLLOUT, state="succeeded"), UPGRADED)
    assert not on_probation(ROLLOUT, told("Began", u=UPGRADED)), "there is no way back"


def test_it_is_looked_often_while_things_change_and_seldom_after() -> None:
    def every(rollout: Rollout, *upgrades: Upgrade, now: float = AT) -> float | None:
        return look_every(rollout, upgrades, now=now)

    ended = replace(ROLLOUT, state="succeeded")
    assert every(ROLLOUT, told("Admitted", "Began")) is None
    assert every(ROLLOUT, SWAPPING) == 5.0
    assert every(replace(ROLLOUT, state="baking", bake=10.0), UPGRADED) == 2.0
    assert every(ended, UPGRADED) == 5.0
    assert every(ended, UPGRADED, now=AT + 100) == 30.0
    doubtful = UPGRADED.after(Ailed(why="down", at=AT, ill=True))
    assert every(ended, doubtful, now=AT + 100) == 2.0
    assert every(replace(ended, closed=True), UPGRADED) is None


def test_one_look_is_no_illness_and_a_long_recovery_is() -> None:
    u = UPGRADED
    for look in range(3):
        assert u.ailing is None or not u.ailing.sure
        assert u.ailing is None or u.after(Ailed(why="at once", at=u.ailing.at + 0.5, ill=True)) == u
        assert (alarm([u]) == "") == (look == 0)
        u = u.after(Ailed(why="down", at=AT + look, ill=True))
    assert u.ailing is not None and u.ailing.sure and alarm([u, u]) == "s: down (and 1 more)"
    slow = UPGRADED.after(Ailed(why="joining", at=AT, ill=False))
    assert slow.ailing is not None and not slow.ailing.sure and "making sure" in alarm([slow])
    slow = slow.after(Ailed(why="joining", at=AT + PATIENCE + 1, ill=False))
    assert slow.ailing is not None and slow.ailing.sure
