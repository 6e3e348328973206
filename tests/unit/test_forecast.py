"""How long it will still take, and when nobody can say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.domain.forecast import time_left
from orchestrator.domain.rollout import RolloutState
from orchestrator.domain.upgrade import Upgrade
from tests.unit.test_rollout import NOW, rollout


def server(name: str, wave: int, **how: Any) -> Upgrade:
    return Upgrade(rollout="r", server=name, wave=wave, **how)


DONE = server("a", 0, state="upgraded", step="retire", admitted_at=NOW - 100, ended_at=NOW - 40)  # it took 60 s
PENDING = [server(name, 1) for name in ("b", "c", "d")]
WAVES = (("a",), ("b", "c", "d"))


def test_the_rest_takes_as_long_as_the_median_so_far_and_as_many_at_once_as_may_be() -> None:
    r = rollout(waves=WAVES, wave=1, max_in_flight=1)
    assert time_left(r, [DONE, *PENDING], now=NOW) == pytest.approx(180)
    assert time_left(replace(r, max_in_flight=2), [DONE, *PENDING], now=NOW) == pytest.approx(90)
    assert time_left(replace(r, max_in_flight=9), [DONE, *PENDING], now=NOW) == pytest.approx(60)


def test_what_is_under_way_takes_what_is_left_of_it_and_each_wave_bakes() -> None:
    begun = replace(PENDING[0], state="running", admitted_at=NOW - 45)
    r = rollout(waves=WAVES, wave=1, bake=30.0)
    assert time_left(r, [DONE, begun], now=NOW) == pytest.approx(15 + 30)
    late = replace(begun, admitted_at=NOW - 500)
    assert time_left(r, [DONE, late], now=NOW) == pytest.approx(30)
    baking = replace(r, wave=0, state="baking", bake_until=NOW + 7)
    assert time_left(baking, [DONE, PENDING[0]], now=NOW) == pytest.approx(7 + 60 + 30)


@pytest.mark.parametrize("state", ["paused", "aborting", "rolling_back", "succeeded", "failed"])
def test_nobody_can_say_when_it_does_not_go_forward(state: RolloutState) -> None:
    assert time_left(rollout(waves=WAVES, state=state), [DONE, *PENDING], now=NOW) is None


def test_nobody_can_say_before_the_first_is_through_or_while_one_waits_for_a_person() -> None:
    r = rollout(waves=WAVES)
    assert time_left(r, PENDING, now=NOW) is None
    assert time_left(r, [DONE, replace(PENDING[0], state="held")], now=NOW) is None
