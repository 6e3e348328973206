"""Redis was restored without its last second: who saw what it forgot does not overwrite what was said since."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import pytest
import structlog

from orchestrator import operations
from orchestrator.store import Entry
from tests.simulation.loss import bring_back, keep
from tests.support import outcome
from tests.support.outcome import SERVER, ends_well, journey, settle
from tests.support.runner import Crashed, running

RESTORED = 0.5  # seconds until it answers again


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize(
    ("step", "call"),
    [("create_image", "compute.ensure_image"), ("provision", "compute.ensure_server"), ("drain_old", "traffic.remove")],
)
def test_a_rollback_after_the_loss_is_not_overwritten_by_a_worker_in_its_call(step: str, call: str) -> None:
    """What it announced is forgotten, its claim is not: only the version tells it that the record is another."""
    with journey("forward") as (r, watch):
        kept: list[object] = []
        said: list[operations.Answer] = []

        def crash(point: str) -> None:
            if point == f"{step}.claimed" and not kept:
                kept.append(keep(r.store))
            elif point == f"{step}.after {call}" and kept and not said:
                bring_back(r.store, kept[0])
                r.clock.now += RESTORED
                said.append(operations.rollback_server(r.store, "r1", SERVER, actor="anna"))

        r.crash = crash
        r.until(lambda: bool(said))
        assert said[0].changed
        assert r.upgrade(SERVER).direction == "undo", "the rollback that was answered is gone"
        end = r.clock() + 120
        r.until(lambda: r.upgrade(SERVER).settled or r.clock() > end)
        assert r.upgrade(SERVER).direction == "undo"
        assert not watch.dark, watch.dark[0]


@pytest.mark.parametrize("switch", ["balancer", "names", "one"])
@pytest.mark.parametrize("since", ["drain_old.claimed", "swap.claimed"])
@pytest.mark.parametrize("point", ["drain_old.after traffic.remove", "drain_old.after compute.stop"])
def test_an_old_server_whose_drain_is_forgotten_comes_back_before_its_new_one_leaves(
    point: str, since: str, switch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And can be drained for good when it is tried again."""
    monkeypatch.setattr(outcome, "SWITCH", switch)
    with journey("forward") as (r, watch):
        kept: list[object] = []
        lost: list[str] = []

        def crash(at: str) -> None:
            if at == since and (not kept or since.startswith("drain")) and not lost:
                kept[:] = [keep(r.store)]
            elif at == point and not lost:
                bring_back(r.store, kept[0])
                r.clock.now += RESTORED
                lost.append(point)
                raise Crashed

        r.crash = crash
        r.until(lambda: bool(lost))
        operations.rollback_server(r.store, "r1", SERVER, actor="anna")
        settle(r)
        assert ends_well(r, watch).state == "rolled_back"
        operations.retry(r.store, "r1", [SERVER], actor="anna")
        settle(r)
        assert r.upgrade(SERVER).state == "upgraded" and not watch.dark, watch.dark[:1]


def test_a_pause_after_the_loss_is_not_undone_by_who_saw_what_is_forgotten() -> None:
    with running(["web-1", "web-2"]) as r:
        r.turn()
        kept, was = keep(r.store), r.record()
        assert r.store.change(was, replace(was, alarm="web-1 ails"), entry=Entry(event="alarm", actor="w1"))
        seen = r.record()
        bring_back(r.store, kept)
        r.clock.now += RESTORED
        assert operations.pause(r.store, "r1", actor="anna").changed
        over = Entry(event="alarm over", actor="w1")
        assert r.store.change(seen, replace(seen, alarm=""), entry=over) is None
        assert r.record().state == "paused"
