"""What new servers are made of beside an image is part of the plan: where it has changed since, nobody makes one."""

from __future__ import annotations

from orchestrator import operations
from tests.support.runner import running

SERVER = "web-1"


def test_a_template_that_has_changed_since_the_plan_is_asked_about() -> None:
    with running([SERVER], recipe="first") as r:
        r.until(lambda: r.upgrade(SERVER).has_begun("create_image"))
        r.cloud.recipe = "second"
        r.until(lambda: r.upgrade(SERVER).state == "held")
        assert "made of second, and the plan was made with first" in r.upgrade(SERVER).why
        assert r.serving() == {SERVER} and not r.cloud.calls.get("ensure_server")
        r.cloud.recipe = "first"
        operations.retry(r.store, r.rollout, [SERVER], actor="ann")
        r.until(lambda: r.record().state == "succeeded")
        assert not r.made_twice()


def test_a_template_that_is_the_plan_s_is_no_hindrance() -> None:
    with running([SERVER], recipe="first") as r:
        r.until(lambda: r.record().state == "succeeded")
