"""A server that gets users from where the fleet file does not say would be stopped under them: no plan is made. Nor is
anybody's place taken of whom it does not speak."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest

from orchestrator.domain.plan import make_plan
from providers.errors import Transient
from providers.traffic import MemberView
from tasks.survey import look
from tests.support.runner import PORT, Runner, running


def blockers(runner: Runner) -> str:
    return "; ".join(make_plan(runner.fleet, look(runner.world, runner.fleet)).blockers)


def put(runner: Runner, pool: str, state: str) -> None:
    server = runner.members()["web-1"]
    runner.cloud.pools[pool] = {"x": replace(server, name="x", state=state)}  # type: ignore[arg-type] # one of the states


def test_a_server_in_a_pool_that_the_file_does_not_name_is_refused() -> None:
    with running() as runner:
        assert blockers(runner) == ""
        put(runner, "admin", "serving")
        assert "web-1" in blockers(runner) and "pool admin" in blockers(runner)
        put(runner, "admin", "draining")
        assert blockers(runner) == "", "nobody is sent there any more"


def test_a_server_in_a_pool_that_the_file_does_not_give_it_is_refused() -> None:
    pools = {name: {"port": PORT, "min_healthy": 1} for name in ("admin", "web")}
    with running() as runner:
        put(runner, "admin", "down")
        whole = runner.fleet.canonical()
        whole["traffic"]["pools"] = pools
        runner.fleet = type(runner.fleet).model_validate(whole, strict=False)
        assert "pool admin" in blockers(runner)


def test_a_new_server_has_one_name_in_all_its_pools() -> None:
    """Where one of them is left over in a pool, its name is taken in all."""
    pools = {name: {"port": PORT, "min_healthy": 1} for name in ("api", "web")}
    with running() as runner:
        web = runner.members()
        left = MemberView(name="web-1.g2", address="127.9.9.9", port=PORT, state="down")
        runner.cloud.pools["api"] = {**web, left.name: left}
        whole = runner.fleet.canonical()
        whole["traffic"]["pools"] = pools
        whole["servers"] = [{**server, "pools": ["api", "web"]} for server in whole["servers"]]
        fleet = type(runner.fleet).model_validate(whole, strict=False)
        names = {seat.new_name for seat in look(runner.world, fleet).servers[0].seats}
        assert names == {"web-1.g3"}


def test_a_switch_that_cannot_tell_where_else_users_come_from_refuses_the_plan() -> None:
    def away(name: str) -> Literal[""]:
        if name == "elsewhere":
            raise Transient("it does not answer", ambiguous=False)
        return ""

    with running() as runner:
        runner.cloud.fault = away
        assert "cannot be looked through (it does not answer)" in blockers(runner)


@pytest.mark.parametrize("step", ["smoke_test", "swap"])
def test_a_place_that_somebody_has_given_to_a_third_server_stays_there_and_the_server_is_held(step: str) -> None:
    with running(["web-1"], switch="one", rollout={"waves": ["rest"], "bake": "0s", "soak": "5s"}) as r:
        r.patrolling = True
        r.until(lambda: r.upgrade("web-1").step == step)
        third = replace(r.cloud.pools["web"].pop("web-1"), name="standby", address="127.80.9.9", state="serving")
        r.cloud.pools["web"]["standby"] = third
        r.until(lambda: r.upgrade("web-1").state == "held")
        assert "whose place web-1.g2 was not to take" in r.upgrade("web-1").why
        assert r.cloud.pools["web"]["standby"].state == "serving"
