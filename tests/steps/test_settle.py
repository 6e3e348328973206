"""A person who has put a held server right by hand says so, and the rollout can end. Nothing is believed unseen."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import structlog

from orchestrator import operations
from orchestrator.errors import BadInput, Conflict, IllegalTransition, PointOfNoReturn
from orchestrator.operations import Answer
from providers.compute import Server
from providers.errors import QuotaExceeded
from providers.traffic import MemberView
from tests.support.runner import PORT, Runner, running

RETAIN = {"old_servers": "1h"}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


def settle(r: Runner, serving: Any, *, unchecked: bool = False, because: str = "seen by eye") -> Answer:
    return operations.settle(
        r.store, r.ask, r.rollout, "web-1", serving=serving, because=because, unchecked=unchecked, actor="ann"
    )


def terminated_from_outside(r: Runner, id: str) -> None:
    thing = r.cloud.things[id]
    assert isinstance(thing.view, Server)
    thing.view = replace(thing.view, state="terminated")


def held_on_its_way_back(r: Runner) -> None:
    """A was drained and stopped, somebody has terminated it, and then the rollout is to go back."""
    r.until(lambda: r.record().ended)
    terminated_from_outside(r, "web-1")
    operations.rollback(r.store, r.rollout, actor="ann")
    r.until(lambda: r.upgrade("web-1").state == "held")


def held_before_its_swap(r: Runner) -> None:
    def no_quota(name: str) -> Any:
        if name == "ensure_server" and r.upgrade("web-1").step == "provision":
            raise QuotaExceeded("enough")
        return ""

    r.cloud.fault = no_quota
    r.until(lambda: r.upgrade("web-1").state == "held")


def ledger(r: Runner) -> dict[str, str]:
    return {item.kind: item.state for item in r.store.ledger(r.rollout) if item.server == "web-1"}


def test_a_rollout_whose_old_server_was_terminated_by_somebody_can_end() -> None:
    with running(["web-1", "web-2"], retain=RETAIN) as r:
        held_on_its_way_back(r)
        with pytest.raises(Conflict, match="web-1 is absent in pool web: it does not serve"):
            settle(r, "old")
        assert r.upgrade("web-1").state == "held"
        answer = settle(r, "new", because="A was terminated by hand")
        assert answer.changed and answer.servers[0].old_gone
        assert "the new server of web-1 serves" in answer.servers[0].traffic
        r.until(lambda: r.record().closed)
        assert r.record().state == "rolled_back"
        assert r.upgrade("web-2").state == "rolled_back" and "web-1.g2" in r.serving()
        assert ledger(r) == {"image": "quarantined", "server": "live", "old server": "deleted"}
        assert r.store.owner_of(f"{r.fleet.lane}/web-1") is None
        entry = next(e for e in operations.events(r.store, r.rollout) if e.event == "Settled")
        assert (entry.actor, entry.detail["checked"]) == ("ann", True)
        assert "web-1.g2 is serving in pool web" in entry.detail["seen"]


def test_what_a_settle_has_left_behind_is_listed_until_it_is_gone() -> None:
    with running(["web-1"], retain=RETAIN) as r:
        held_on_its_way_back(r)
        settle(r, "new", unchecked=True)
        assert ledger(r) == {"image": "quarantined", "server": "live", "old server": "retained"}

        def gc(*, yes: bool) -> operations.Inventory:
            return operations.gc(r.store, r.ask, lambda: r.queue.append, collect=yes, grace=5.0)

        gc(yes=False)
        assert ledger(r)["old server"] == "retained", "a dry run changes no list"
        found = gc(yes=True)
        assert ledger(r) == {"image": "quarantined", "server": "live", "old server": "deleted"}
        assert found.done == ("old server web-1 of web-1 is gone: listed no more",)
        assert [each.item.kind for each in found.kept if each.yours] == ["image"]
        (image,) = (item.id for item in r.store.ledger(r.rollout) if item.kind == "image")
        del r.cloud.things[image]
        gc(yes=True)
        assert ledger(r) == {"image": "deleted", "server": "live", "old server": "deleted"}


def test_settling_twice_is_settling_once_and_never_the_other_way() -> None:
    with running(["web-1"], retain=RETAIN) as r:
        held_on_its_way_back(r)
        assert settle(r, "new").changed
        assert not settle(r, "new").changed
        with pytest.raises(IllegalTransition):
            settle(r, "old")
        with pytest.raises(PointOfNoReturn, match="settled by a person"):
            operations.rollback_server(r.store, r.rollout, "web-1", actor="ann")


def test_only_what_is_held_is_settled_and_only_with_a_reason() -> None:
    with running(["web-1"]) as r:
        for because, error in (("x", IllegalTransition), (" ", BadInput)):
            with pytest.raises(error):
                settle(r, "old", because=because)
        r.until(lambda: r.upgrade("web-1").state == "upgraded")
        with pytest.raises(IllegalTransition):
            settle(r, "new")


def test_an_old_server_that_serves_is_settled_and_may_be_tried_again() -> None:
    with running(["web-1", "web-2"], retain=RETAIN) as r:
        held_before_its_swap(r)
        with pytest.raises(Conflict, match=r"web-1.g2 is absent in pool web"):
            settle(r, "new")
        assert settle(r, "old").servers[0].state == "rolled_back"
        assert ledger(r)["image"] == "quarantined", "it costs money, and nobody uses it"
        r.cloud.fault = lambda _name: ""
        r.until(lambda: r.record().ended)
        operations.retry(r.store, r.rollout, ["web-1"], actor="ann")
        r.until(lambda: r.record().state == "succeeded")
        assert not r.upgrade("web-1").by_hand


def test_nobody_is_settled_while_the_other_is_in_a_pool() -> None:
    with running(["web-1", "web-2"], retain=RETAIN) as r:
        held_before_its_swap(r)
        r.cloud.pools["web"]["web-1.g2"] = MemberView(
            name="web-1.g2", address="127.80.0.9", port=PORT, state="draining"
        )
        with pytest.raises(Conflict, match=r"web-1.g2 is still draining in pool web") as refused:
            settle(r, "old")
        assert "web-1 is serving in pool web" in refused.value.traffic and "--unchecked" in refused.value.next
        answer = settle(r, "old", unchecked=True)
        assert answer.changed
        entry = next(e for e in operations.events(r.store, r.rollout) if e.event == "Settled")
        assert entry.detail["checked"] is False and entry.detail["seen"] == []


def test_a_server_that_nobody_wrote_down_is_found_and_quarantined() -> None:
    """The call that made it was answered by a refusal that was none."""
    with running(["web-1", "web-2"], retain=RETAIN) as r:
        made: list[str] = []

        def lie(point: str) -> None:
            if point == "provision.after compute.ensure_server" and r.upgrade("web-1").step == "provision" and not made:
                made.extend(r.alive("target")[:1])
                raise QuotaExceeded("enough")

        r.crash = lie
        r.until(lambda: any(r.upgrade(name).state == "held" for name in ("web-1", "web-2")))
        held = next(name for name in ("web-1", "web-2") if r.upgrade(name).state == "held")
        operations.settle(r.store, r.ask, r.rollout, held, serving="old", because="x", unchecked=False, actor="ann")
        items = {item.id: item.state for item in r.store.ledger(r.rollout) if item.server == held}
        mine = [t.view.id for t in r.cloud.things.values() if t.view.tags.get("changeover:server") == held]
        assert mine and {items[id] for id in mine} == {"quarantined"}
