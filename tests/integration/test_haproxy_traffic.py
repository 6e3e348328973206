"""Against a real HAProxy: nobody's request fails while servers come and go."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from providers.traffic import Guard, Traffic
from tests.support.haproxy import HAProxy, Loop, Site, Users, bring_in, stage, take_out

Stage = tuple[HAProxy, dict[str, Site], Loop]


@pytest.fixture
def pair() -> Iterator[Stage]:
    with stage("a", "c", "B") as all_of_it:
        yield all_of_it


def test_a_swap_under_constant_traffic_fails_no_request(pair: Stage) -> None:
    haproxy, sites, loop = pair
    traffic: Traffic = haproxy.traffic()
    users = Users(loop, haproxy.users)
    users.go_on()
    states = [view.state for view in bring_in(traffic, "web", sites["B"].member)]
    assert states[0] == "joining"
    assert set(states) <= {"joining", "serving"}
    users.go_on()
    assert users.answers.get("B"), users.answers
    out = take_out(traffic, "web", "a", guard=Guard(min_healthy=1, serving=("B",)))
    assert out[-1] == "absent"
    sites["a"].stop()
    users.go_on()
    users.stop()
    assert users.failures == []
