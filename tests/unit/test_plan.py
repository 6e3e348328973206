"""What a plan is bound to, and what it says."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.fleet import Fleet
from orchestrator.domain.plan import (
    FoundPool,
    FoundServer,
    Seat,
    Survey,
    calls_of,
    differences,
    fingerprint,
    generation,
    human,
    make_plan,
    next_generation,
    plan_from,
    token,
    users_between,
)
from tests.support.runner import fleet_file

GiB = 1024**3


def server(name: str, **changes: Any) -> FoundServer:
    seat = Seat(pool="web", name=name, new_name=f"{name}.g2", address="10.0.0.1", port=80, state="serving")
    whole: dict[str, Any] = {
        "id": name,
        "address": "10.0.0.1",
        "state": "running",
        "memory": GiB,
        "disk": 10 * GiB,
        "memory_used": 1,
        "disk_used": 1,
        "seats": (seat,),
    }
    return FoundServer(name=name, **{**whole, **changes})


def survey(*servers: FoundServer, serving: int = 2, **changes: Any) -> Survey:
    pools = (FoundPool(pool="web", lane="lb", serving=serving),)
    return Survey(at=1000.0, servers=servers or (server("a"), server("b")), pools=pools, **changes)


def fleet(**changes: Any) -> Fleet:
    return fleet_file(["a", "b"], "w", **changes)


def test_the_same_file_in_the_same_world_is_the_same_plan() -> None:
    assert make_plan(fleet(), survey()).id == make_plan(fleet(), survey()).id


def test_what_changes_by_itself_makes_no_other_plan() -> None:
    moved = survey(server("a", memory_used=99, disk_used=99), server("b"), serving=9)
    seat = replace(server("a").seats[0], state="draining")
    assert fingerprint(fleet(), moved) == fingerprint(fleet(), survey())
    assert fingerprint(fleet(), survey(server("a", seats=(seat,)), server("b"))) == fingerprint(fleet(), survey())
    assert fingerprint(fleet(), replace(survey(), at=2.0)) == fingerprint(fleet(), survey())


@pytest.mark.parametrize(
    "change",
    [
        {"id": "i-2"},
        {"address": "10.0.0.9"},
        {"state": "stopped"},
        {"memory": 2 * GiB},
        {"disk": 11 * GiB},
        {"paths": ({"path": "/srv", "kind": "directory", "mode": "0755"},)},
        {"seats": ()},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_world_that_has_moved_makes_another_plan_and_says_what(change: dict[str, Any]) -> None:
    now = survey(server("a", **change), server("b"))
    assert fingerprint(fleet(), now) != fingerprint(fleet(), survey())
    (line,) = differences(survey(), now)
    assert line.startswith("a: ")


def test_servers_that_came_or_went_are_differences() -> None:
    lines = differences(survey(server("a")), survey(server("b")))
    assert lines == ["b was not in the plan", "a is no longer there"]
    assert differences(survey(), survey()) == []


def test_another_file_makes_another_plan() -> None:
    other = fleet(retain={"old_servers": "1h"})
    assert fingerprint(other, survey()) != fingerprint(fleet(), survey())


def test_a_plan_reads_back_as_it_was_stored() -> None:
    made = make_plan(fleet(), survey(server("a", paths=({"path": "/srv"},)), server("b")))
    assert plan_from(json.loads(json.dumps(asdict(made)))) == made
    assert Fleet.model_validate_json(json.dumps(made.fleet)) == fleet()


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (survey(server("a", problem="is gone"), server("b")), "a: is gone"),
        (survey(server("a", disk_used=21 * GiB), server("b")), "its disk holds 21 GiB, the target size has 20 GiB"),
        (survey(server("a", memory_used=3 * GiB), server("b")), "it uses 3 GiB of memory, the target has 2 GiB"),
        (survey(serving=0), "pool web: min_healthy is 1, and only 0 servers are up"),
    ],
)
def test_blockers_say_what_forbids_it(found: Survey, says: str) -> None:
    (line,) = make_plan(fleet(), found).blockers
    assert says in line


def test_caveats_are_told() -> None:
    smaller = make_plan(fleet(), survey(server("a", memory=4 * GiB), server("b"), caveats=("first",)))
    assert smaller.caveats[0] == "first" and any("a get less memory" in line for line in smaller.caveats)
    stateful = make_plan(fleet(state={"acknowledged": "we copy the orders by hand"}), survey())
    assert any("keep state" in line for line in stateful.caveats)
    cutting = fleet(rollout={"waves": ["rest"], "drain": {"deadline": "30s", "at_deadline": "cut"}})
    assert any("are cut" in line for line in make_plan(cutting, survey()).caveats)


@pytest.mark.parametrize(
    ("name", "follows"),
    [
        ("web-013", "web-013.g2"),
        ("web-013.g2", "web-013.g3"),
        ("web-013.g99", "web-013.g100"),
        ("srv1", "web-013.g2"),
        ("web.gold", "web-013.g2"),
        (".g2", "web-013.g2"),
        ("web-013.g²", "web-013.g2"),
        (f"web-013.g{'9' * 5000}", "web-013.g2"),
    ],
)
def test_the_next_generation_has_a_name_that_was_never_used(name: str, follows: str) -> None:
    assert next_generation(name, "web-013") == follows
    assert next_generation(name, "web-013", ["web-013", follows]) == generation(follows, 1)


@given(st.from_regex(r"[a-z0-9-]{1,20}(\.g[0-9]{1,3})?", fullmatch=True))
@settings(database=None, deadline=None, max_examples=100)
def test_generations_never_meet(name: str) -> None:
    seen = [name]
    for _ in range(4):
        seen.append(next_generation(seen[-1], name))
    assert len(set(seen)) == len(seen)


def test_a_token_is_the_identity_of_its_parts() -> None:
    assert token("r", "s", 1) == token("r", "s", 1) != token("r", "s", 2)
    assert len(token("r")) == 64
    with pytest.raises(ValueError, match="slash"):
        token("a/b", "c")


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (1536, "1.5 KiB"), (20 * GiB, "20 GiB"), (2**41, "2 TiB")])
def test_sizes_read_as_people_read_them(size: int, text: str) -> None:
    assert human(size) == text


def counted(pool: str, requests: int, failed: int, epoch: str = "7:1") -> FoundPool:
    return FoundPool(pool=pool, lane="lb", serving=2, requests=requests, failed=failed, epoch=epoch)


def test_users_are_counted_over_all_pools_from_one_survey_to_the_other() -> None:
    was = Survey(at=0, servers=(), pools=(counted("a", 100, 1), counted("b", 10, 0)))
    now = Survey(at=9, servers=(), pools=(counted("a", 150, 1), counted("b", 30, 2)))
    assert users_between(was, now) == (70, 2)


@pytest.mark.parametrize("epoch", ["", "8:2"])
def test_a_balancer_that_does_not_count_or_started_anew_proves_nothing(epoch: str) -> None:
    was = Survey(at=0, servers=(), pools=(counted("a", 100, 0),))
    now = Survey(at=9, servers=(), pools=(counted("a", 150, 0, epoch),))
    assert users_between(was, now) is None


def test_a_plan_counts_the_calls_that_each_server_needs() -> None:
    assert calls_of(fleet_file(["a", "b", "c"], "w")) == 3 * (4 + 4 + 2), "two passes of one request, in one pool"


def test_what_servers_are_made_of_is_part_of_the_plan_where_it_is_the_user_s_own() -> None:
    was, now = (survey(server("a", recipe=recipe), server("b")) for recipe in ("one", "other"))
    assert fingerprint(fleet(), was) != fingerprint(fleet(), now) != fingerprint(fleet(), survey())
    assert differences(was, now) == ["a: recipe was 'one', is 'other'"]
