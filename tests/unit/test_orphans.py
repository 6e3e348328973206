"""When something that nobody accounts for is believed to be so, and what is due of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from orchestrator.domain.orphans import Patience, Sighting, Thing, deed, explained, forgotten, sighted
from orchestrator.domain.upgrade import Intent, Upgrade

LANE = "fake/default/default"
PATIENCE = Patience(seen=900.0, kept=86400.0)
THING = Thing(
    kind="server", id="srv-9", name="co-9", state="running", rollout="r1", server="web-1", address="127.0.0.9"
)
ENDED = Upgrade(rollout="r1", server="web-1", wave=0, state="rolled_back", direction="undo", ended_at=100.0)
RETIRE = Intent(step="retire", attempt=0, rung=0, token="0" * 64, name="co-0", at=0.0)


def see(before: list[Sighting], now: float, *things: Thing, **more: Any) -> list[Sighting]:
    about: dict[str, Any] = {"foreign": (), "pools": {}, **more}
    return sighted(before, things or [THING], lane=LANE, now=now, **about)


def due(s: Sighting, now: float, *, foreign: bool = False, only: list[str] | None = None) -> str:
    return deed(s, PATIENCE, now=now, foreign=foreign, only=only)


def test_one_look_is_never_enough_and_two_only_when_they_are_far_apart() -> None:
    (once,) = see([], 0.0)
    assert due(once, 1e9) == ""
    (soon,) = see([once], 899.0)
    assert due(soon, 1e9) == ""
    (later,) = see([soon], 900.0)
    assert due(later, 900.0) == "quarantine"


def test_it_is_deleted_when_its_time_in_quarantine_is_over() -> None:
    (s,) = see(see([], 0.0), 900.0)
    s = replace(s, quarantined_at=1000.0)
    assert due(s, 1000.0 + 86399) == ""
    (s,) = see([s], 1000.0 + 86400)
    assert due(s, 1000.0 + 86400) == "delete"


def test_what_is_not_found_again_is_forgotten_and_begins_anew() -> None:
    (s,) = see(see([], 0.0), 900.0)
    other = replace(THING, id="srv-10")
    (only,) = see([replace(s, quarantined_at=900.0)], 1000.0, other)
    assert only.id == "srv-10"
    again = next(s for s in see([only], 2000.0, other, THING) if s.id == "srv-9")
    assert (again.first, again.scans, again.quarantined_at) == (2000.0, 1, None)


@given(quarantined=some.sampled_from([None, 0.0]), seen=some.integers(min_value=1, max_value=9))
def test_nothing_is_due_of_a_member_of_a_pool_or_of_what_is_not_surely_known(
    quarantined: float | None, seen: int
) -> None:
    (s,) = see([], 0.0)
    s = replace(s, scans=seen, last=1e6, quarantined_at=quarantined)
    assert due(replace(s, pools=("web",)), 1e9) == ""
    assert due(replace(s, unsure="the ledger cannot be read"), 1e9) == ""


def test_one_that_was_seen_in_a_pool_is_looked_at_anew_from_when_it_has_left() -> None:
    (s,) = see(see([], 0.0), 900.0)
    (s,) = see([replace(s, quarantined_at=900.0)], 1000.0, pools={"127.0.0.9": ["web"]})
    assert (s.pools, s.quarantined_at) == (("web",), None)
    (s,) = see([s], 90000.0)
    assert s.first == 1000.0 and due(s, 90000.0) == "quarantine"


def test_what_another_installation_may_own_is_touched_only_when_told() -> None:
    (s,) = see(see([], 0.0, foreign={"r1"}), 900.0, foreign={"r1"})
    assert due(s, 900.0) == ""
    assert due(s, 900.0, foreign=True) == "", "which pools it is in is not known here: it may have users"
    assert due(s, 900.0, only=["srv-9"]) == due(s, 900.0, foreign=True, only=["srv-8"]) == ""
    assert due(s, 900.0, foreign=True, only=["srv-9"]) == "quarantine"
    assert due(replace(s, kind="image"), 900.0, foreign=True) == "quarantine", "an image serves nobody"


@pytest.mark.parametrize("state", ["running", "waiting", "held"])
def test_work_that_is_under_way_accounts_for_what_it_made(state: Any) -> None:
    assert explained(THING, kept=False, upgrade=replace(ENDED, state=state), leased=False)


def test_a_worker_that_has_it_in_hand_accounts_for_it() -> None:
    assert explained(THING, kept=False, upgrade=ENDED, leased=True)
    assert not explained(THING, kept=False, upgrade=ENDED, leased=False)
    assert not explained(THING, kept=False, upgrade=None, leased=False)


def test_a_ledger_accounts_for_what_it_holds() -> None:
    assert explained(THING, kept=True, upgrade=None, leased=False)


def test_the_record_of_an_upgraded_server_accounts_for_its_new_one_and_for_the_way_back() -> None:
    u = replace(
        ENDED,
        state="upgraded",
        direction="forward",
        step="retire",
        results={"provision": {"server": "srv-9"}, "create_image": {"image": "img-1"}},
    )
    image = replace(THING, kind="image", id="img-1", address="")
    assert explained(THING, kept=False, upgrade=u, leased=False)
    assert explained(image, kept=False, upgrade=u, leased=False)
    assert not explained(replace(THING, id="srv-8"), kept=False, upgrade=u, leased=False)
    assert not explained(image, kept=False, upgrade=replace(u, old_gone=True), leased=False)
    assert explained(replace(THING, id="srv-8"), kept=False, upgrade=replace(u, begun=(RETIRE,)), leased=False)


def test_what_was_only_intended_is_given_up_an_hour_after_its_server_came_to_rest() -> None:
    assert not forgotten(ENDED, 0.0, now=3600.0)
    assert forgotten(ENDED, 0.0, now=3701.0)
    assert not forgotten(ENDED, 5000.0, now=3701.0)
    assert not forgotten(replace(ENDED, state="held"), 0.0, now=1e9)
