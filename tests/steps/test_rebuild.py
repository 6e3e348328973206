"""Redis has forgotten everything, at any point of a rollout: the world says where every server stands."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import structlog

from orchestrator import operations
from orchestrator.domain.fleet import MOST_ATTEMPTS
from orchestrator.domain.plan import make_plan
from orchestrator.domain.rebuild import Rebuilt
from orchestrator.domain.steps import STEPS
from orchestrator.errors import BadInput, Conflict, Locked
from orchestrator.store.memory import MemoryStore
from providers.compute import Server
from providers.compute.fake import GiB
from providers.errors import Refused
from tasks import keys
from tasks.survey import look
from tests.steps.test_every_step import points
from tests.support.outcome import SERVER, Watch, ends_well, journey, settle, turn_back, up
from tests.support.runner import Crashed, Runner, running

WHO = "test"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


def forget(r: Runner) -> None:
    """Redis is empty; every process lives on."""
    r.store = r.world.store = MemoryStore(r.clock)
    r.coordinator = replace(r.coordinator, store=r.store, _views={})
    r.queue.clear()
    r.looks.clear()
    r.crash = lambda _point: None


def rebuild(r: Runner, *, act: bool = True, rollout: str = "", without: tuple[str, ...] = ()) -> Rebuilt:
    found, made = operations.rebuild(r.store, r.ask, r.fleet, rollout=rollout, act=act, actor=WHO, without=without)
    assert (made is not None) == act
    return found


def resume(r: Runner) -> None:
    r.clock.now += 11
    operations.resume(r.store, r.rollout, actor=WHO)


# -- at every point ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("third", range(3))
@pytest.mark.parametrize("direction", ["forward", "undo"])
def test_a_rollout_goes_on_though_redis_forgot_everything_at_any_point(direction: str, third: int) -> None:
    begun = 0
    for index in range(third, len(points(direction)), 3):
        with journey(direction) as (r, watch):
            assert die_at(r, index)
            forget(r)
            if not marked(r):
                with pytest.raises(Conflict, match="nothing of a rollout"):
                    rebuild(r)
                continue
            begun += 1
            (position,) = rebuild(r).positions
            resume(r)
            if direction == "undo" and position.upgrade.direction == "forward":
                turn_back(r)  # it had not begun to go back: whoever asked asks again
            settle(r, limit=4000)
            u = ends_well(r, watch)
            assert u.state == ("upgraded" if direction == "forward" else "rolled_back"), (points(direction)[index], u)
            assert r.record().state in ("running", "succeeded", "failed"), r.record()
    assert begun > 3


@pytest.mark.parametrize("step", STEPS)
def test_what_was_on_its_way_back_goes_on_going_back(step: str) -> None:
    """Turned back at that step, and forgotten at any point of its undo."""
    lost = 0
    for index in range(100):
        with journey("forward") as (r, watch):
            r.until(lambda: r.upgrade(SERVER).has_begun(step))
            turn_back(r)
            if not die_at(r, index):
                break
            marks = {SERVER: r.cloud.things[SERVER].view.tags.get(keys.UNDOING)}
            forget(r)
            if not marked(r):  # all of ours is gone already
                continue
            rebuild(r)
            resume(r)
            settle(r, limit=4000)
            assert ends_well(r, watch).state == ("rolled_back" if marks[SERVER] else "upgraded")
            lost += bool(marks[SERVER])
    else:
        raise AssertionError("more points than expected")
    assert lost or step == "create_image"


def die_at(r: Runner, index: int) -> bool:
    """The worker is gone at that point of the run; whether it has come to that."""
    seen = iter(range(10**9))
    died: list[str] = []

    def crash(point: str) -> None:
        if next(seen) == index:
            died.append(point)
            raise Crashed

    r.crash = crash
    r.until(lambda: bool(died) or r.upgrade(SERVER).settled)
    return bool(died)


def marked(r: Runner) -> bool:
    return any(
        t.view.tags.get("changeover:rollout") == r.rollout
        for t in r.cloud.things.values()
        if t.view.state != "terminated"
    )


@pytest.mark.parametrize("turns", [6, 12, 20, 30, 45, 60, 80])
def test_a_fleet_goes_on_and_nothing_is_made_twice(turns: int) -> None:
    names = [f"web-{n}" for n in range(1, 7)]
    policy = {"waves": [2, "rest"], "bake": "0s", "soak": "5s", "poll": "1s", "max_in_flight": 3}
    with running(names, rollout={**policy, "drain": {"deadline": "30s", "quiet": "1s"}}, min_healthy=4) as r:
        watch = Watch(r, least=6)
        for _ in range(turns):
            r.turn()
            r.clock.now += 0.5
        forget(r)
        found = rebuild(r)
        resume(r)
        r.finish()
        assert r.record().state == "succeeded", (r.upgrades(), found)
        assert up(r) == {f"{name}.g2" for name in names}
        assert not watch.dark and not r.made_twice()
        assert len(r.alive("target")) == len(r.alive("image")) == len(names)
        assert {item.id for item in r.store.ledger(r.rollout) if item.state == "live"} == {
            *r.alive("target"),
            *r.alive("image"),
        }


# -- what it says, and what it refuses ---------------------------------------------------------------------------------


def halfway(r: Runner, done: Callable[[], bool]) -> None:
    r.until(done)
    forget(r)


def in_swap(r: Runner) -> Callable[[], bool]:
    return lambda: r.upgrade(SERVER).step == "swap" and f"{SERVER}.g2" in up(r)


def refused(r: Runner, **more: Any) -> str:
    with pytest.raises(Conflict) as error:
        rebuild(r, **more)
    assert r.store.rollouts() == []
    return str(error.value)


def test_a_dry_run_says_where_each_server_stands_and_creates_nothing() -> None:
    with running([SERVER]) as r:
        halfway(r, in_swap(r))
        (position,) = rebuild(r, act=False).positions
        assert (position.upgrade.step, position.upgrade.past_swap) == ("swap", True)
        assert "serving in web" in position.found and "swap" in position.resumes
        assert r.store.rollouts() == [] and r.store.document("spec", r.rollout) is None


def test_the_rollout_comes_back_paused_under_its_own_id_with_its_locks_and_ledger() -> None:
    with running([SERVER, "web-2"]) as r:
        r.until(in_swap(r))
        new, image = (r.upgrade(SERVER).results[step] for step in ("provision", "create_image"))
        tokens = [(i.step, i.token, i.name) for i in r.upgrade(SERVER).begun]
        ledger = [i for i in r.store.ledger(r.rollout) if i.server == SERVER and i.state == "live"]
        forget(r)
        rebuild(r)
        assert r.record().state == "paused" and "rebuilt" in r.record().why
        assert r.store.owner_of(f"{r.fleet.lane}/{SERVER}") == r.rollout
        assert r.store.owner_of(f"{r.fleet.lane}/{new['server']}") == r.rollout
        assert [i for i in r.store.ledger(r.rollout) if i.server == SERVER] == ledger
        assert [(i.step, i.token, i.name) for i in r.upgrade(SERVER).begun] == tokens
        assert r.upgrade(SERVER).results["create_image"]["image"] == image["image"]
        told = [e for e in operations.events(r.store, r.rollout) if e.event == "Rebuilt"]
        assert {e.server for e in told} == {SERVER, "web-2"} and all(e.n == 1 for e in told)


def test_a_way_back_is_known_by_whichever_attempt_a_file_allows() -> None:
    policy = {"waves": ["rest"], "bake": "0s", "soak": "1s", "max_in_flight": 1, "back_off": "10ms"}
    with running(["web-1", "web-2"], rollout={**policy, "attempts": MOST_ATTEMPTS}) as r:
        refused = iter(range(MOST_ATTEMPTS - 1))

        def fault(name: str) -> Any:
            if name == "ensure_image" and next(refused, None) is not None:
                raise Refused("not now")
            return ""

        r.cloud.fault = fault
        r.finish()
        operations.rollback_server(r.store, r.rollout, "web-1", actor=WHO)
        r.until(lambda: r.upgrade("web-1").state == "rolled_back")
        assert r.upgrade("web-1").attempt("create_image") == MOST_ATTEMPTS - 1
        forget(r)
        states = {p.upgrade.server: p.upgrade.state for p in rebuild(r, act=False).positions}
        assert states == {"web-1": "rolled_back", "web-2": "upgraded"}


def test_what_this_redis_knows_is_not_rebuilt() -> None:
    with running([SERVER]) as r:
        r.until(in_swap(r))
        with pytest.raises(Conflict, match="this Redis knows"):
            rebuild(r)


def test_of_two_rebuilds_at_once_the_later_leaves_the_file_of_the_first() -> None:
    with running([SERVER, "web-2"]) as r:
        halfway(r, in_swap(r))
        honest = r.store.lease

        def late(name: str, *, owner: str, seconds: float) -> int | None:
            r.store.lease = honest  # type: ignore[method-assign] # as it was
            rebuild(r, rollout=r.rollout)
            return honest(name, owner=owner, seconds=seconds)

        r.store.lease = late  # type: ignore[method-assign] # what comes in between
        with pytest.raises(Conflict, match="this Redis knows"):
            rebuild(r, rollout=r.rollout, without=("web-2",))
        assert {server.name for server in r.world.spec(r.rollout).plan.survey.servers} == set(r.upgrades())
        assert set(r.upgrades()) == {SERVER, "web-2"}


def test_what_another_rollout_holds_is_not_rebuilt() -> None:
    with running([SERVER]) as r:
        halfway(r, in_swap(r))
        operations.create(r.store, r.fleet, r.world.spec(r.rollout).plan, actor=WHO, id="r2")
        with pytest.raises(Locked, match="belongs to rollout r2"):
            rebuild(r)


def test_two_new_servers_of_one_are_for_a_person() -> None:
    with running([SERVER]) as r:
        r.until(in_swap(r))
        thing = r.cloud.things[r.upgrade(SERVER).results["provision"]["server"]]
        other = replace(thing.view, id="srv-twin", tags={**thing.view.tags})
        r.cloud.things["srv-twin"] = replace(thing, view=other)
        forget(r)
        assert "were both made for it" in refused(r)


def test_a_server_of_which_nobody_can_tell_is_left_out_as_it_is() -> None:
    with running([SERVER, "web-2"]) as r:
        r.until(lambda: all(r.upgrade(name).step == "swap" for name in (SERVER, "web-2")))
        thing = r.cloud.things[r.upgrade(SERVER).results["provision"]["server"]]
        r.cloud.things["srv-twin"] = replace(thing, view=replace(thing.view, id="srv-twin"))
        forget(r)
        assert "--without NAME" in refused(r)
        with pytest.raises(BadInput, match="web-9 is not in the file"):
            rebuild(r, without=("web-9",))
        assert [p.upgrade.server for p in rebuild(r, without=(SERVER,)).positions] == ["web-2"]
        resume(r)
        r.finish()
        assert r.upgrade("web-2").state == "upgraded"
        assert {"srv-twin", thing.view.id} <= set(r.alive("target"))


def test_another_file_is_refused_by_what_the_marks_allow() -> None:
    with running([SERVER, "web-2"]) as r:
        halfway(r, in_swap(r))
        honest = r.fleet
        size = honest.target.size.model_copy(update={"memory": 4 * GiB})
        r.fleet = honest.model_copy(update={"target": honest.target.model_copy(update={"size": size})})
        assert "another size" in refused(r)
        where = honest.provider.model_copy(update={"account": "elsewhere"})
        r.fleet = honest.model_copy(update={"provider": where})
        assert "would not have called it" in refused(r)
        r.fleet = honest.model_copy(update={"servers": honest.servers[1:]})
        assert "does not name" in refused(r, rollout=r.rollout)
        r.fleet = honest
        assert rebuild(r).positions


def test_of_several_rollouts_a_person_says_which() -> None:
    with running([SERVER]) as r:
        r.until(in_swap(r))
        thing = r.cloud.things[r.upgrade(SERVER).results["create_image"]["image"]]
        tags = {**thing.view.tags, "changeover:rollout": "r0"}
        r.cloud.things["img-old"] = replace(thing, view=replace(thing.view, id="img-old", tags=tags))
        forget(r)
        assert "say which by --rollout" in refused(r)
        assert rebuild(r, rollout=r.rollout).positions[0].upgrade.step == "swap"


def test_a_tag_may_say_anything() -> None:
    """Whoever may write tags may not stand in the way of those who need them."""
    with running([SERVER]) as r:
        r.until(in_swap(r))
        thing = r.cloud.things[r.upgrade(SERVER).results["create_image"]["image"]]
        for n, said in enumerate(("", "a/b", "\x1b[31m", "x" * 300)):
            tags = {**thing.view.tags, "changeover:rollout": said, "changeover:attempt": "²"}
            r.cloud.things[f"img-{n}"] = replace(thing, view=replace(thing.view, id=f"img-{n}", tags=tags))
        forget(r)
        assert "no id of a rollout" in refused(r, rollout="a/b")
        assert rebuild(r).rollout == r.rollout


def test_one_that_is_in_no_pool_on_either_side_is_held_and_a_retry_brings_its_old_server_back() -> None:
    with running([SERVER, "web-2"]) as r:
        halfway(r, in_swap(r))
        for name in (SERVER, f"{SERVER}.g2"):
            del r.cloud.pools["web"][name]
        rebuild(r)
        assert r.upgrade(SERVER).state == "held" and "neither" in r.upgrade(SERVER).why
        operations.retry(r.store, r.rollout, [SERVER], actor=WHO)
        r.until(lambda: r.upgrade(SERVER).terminal)
        assert r.upgrade(SERVER).state == "rolled_back"
        assert SERVER in up(r)


def test_a_pool_that_cannot_be_asked_leaves_everything_as_it_is() -> None:
    from providers.errors import Transient

    with running([SERVER]) as r:
        halfway(r, in_swap(r))

        def away(name: str) -> str:
            if name == "members":
                raise Transient("the balancer does not answer", ambiguous=False)
            return ""

        r.cloud.fault = away  # type: ignore[assignment] # it answers no fault, or raises
        assert "does not answer" in refused(r)


def test_the_end_of_an_old_server_that_was_decided_stays_decided() -> None:
    with running([SERVER], retain={"old_servers": "60s"}) as r:
        r.until(lambda: r.cloud.things[SERVER].view.tags.get("changeover:disposable") == "1")
        old = r.cloud.things[SERVER]
        if old.view.state == "terminated":
            old.view = replace(old.view, state="stopped")
        forget(r)
        rebuild(r)
        assert r.upgrade(SERVER).state == "upgraded" and r.upgrade(SERVER).beyond_return
        resume(r)
        r.until(lambda: r.upgrade(SERVER).old_gone)
        view = r.cloud.things[SERVER].view
        assert isinstance(view, Server) and view.state == "terminated"


def test_a_new_plan_is_refused_while_the_world_shows_a_rollout_that_redis_forgot() -> None:
    with running(["web-1"]) as r:
        r.until(lambda: bool(r.alive("target")))
        assert not make_plan(r.fleet, look(r.world, r.fleet)).blockers
        forget(r)
        (told,) = make_plan(r.fleet, look(r.world, r.fleet)).blockers
        assert told.startswith(f"web-1: the server {r.alive('target')[0]} was made for it by the rollout r1")
        rebuild(r)
        assert not make_plan(r.fleet, look(r.world, r.fleet)).blockers
