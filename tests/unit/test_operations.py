"""What people can ask: each verb does what it says, says it again when asked again, and refuses with a way on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

import pytest

from orchestrator import fleet_file, operations, words
from orchestrator.dispatch import Message
from orchestrator.domain.budget import Limit
from orchestrator.domain.fleet import Fleet
from orchestrator.domain.orphans import Patience, Sighting, deed
from orchestrator.domain.plan import FoundPool, FoundServer, Seat, Survey
from orchestrator.domain.rebuild import Findings, Found, Place
from orchestrator.domain.upgrade import (
    Admitted,
    Began,
    Finished,
    Held,
    Intent,
    TurnedBack,
    Upgrade,
    Waiting,
    Waits,
)
from orchestrator.errors import (
    ChangeoverError,
    Conflict,
    IllegalTransition,
    Locked,
    NotFound,
    Outdated,
    PlanMoved,
    PointOfNoReturn,
    WaitTimeout,
)
from orchestrator.ids import new_id
from orchestrator.operations import Waiter
from orchestrator.store import Entry, LedgerItem, Row
from orchestrator.store.memory import MemoryStore

FLEET = """\
version: 1
fleet: shop
provider: {name: fake}
target:
  size: {memory: 256MiB, disk: 1GiB}
servers:
  - {name: web-1, pools: [web]}
  - {name: web-2, pools: [web]}
  - {name: web-3, pools: [web]}
traffic:
  provider: fake
  pools:
    web: {port: 8080}
checks:
  smoke:
    requests:
      - url: http://shop.example/healthz
state: stateless
rollout:
  waves: [1, rest]
"""
STEPS = ("create_image", "provision", "poll_readiness", "smoke_test", "swap", "drain_old")
ENTRY = Entry(event="test", actor="test")


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


class World:
    """Answers what a worker would. `change` is applied to every server found; `error` is what it could not read."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.change: Mapping[str, Any] = {}
        self.error = ""
        self.refused = False
        self.strangers: tuple[str, ...] = ()
        self.orphans: list[Sighting] = []
        self.where: Mapping[str, str] = {}
        self.marked: tuple[Found, ...] = ()
        self.policies: list[Mapping[str, Any]] = []
        self.asked: list[str] = []
        self.mute: Callable[[], object] | None = None

    def survey(self, fleet: Mapping[str, Any]) -> Survey:
        servers = tuple(
            FoundServer(
                name=server["name"],
                id=server["name"],
                address=f"127.9.0.{n}",
                state="running",
                memory=2**27,
                disk=2**29,
                seats=(
                    Seat(
                        pool="web",
                        name=server["name"],
                        new_name=f"{server['name']}.g2",
                        address=f"127.9.0.{n}",
                        port=8080,
                        state="serving",
                    ),
                ),
            )
            for n, server in enumerate(fleet["servers"], start=1)
        )
        changed = tuple(replace(server, **self.change) for server in servers)
        pools = (FoundPool(pool="web", lane="lb", serving=3),)
        return Survey(at=self.store.now(), servers=changed, pools=pools, strangers=self.strangers)

    def findings(self, survey: Survey) -> Findings:
        old = [Found(kind="server", id=s.id, name=s.name, state="running", address=s.address) for s in survey.servers]
        places = [
            Place(pool=seat.pool, name=seat.name, address=seat.address, port=seat.port, state=seat.state)
            for server in survey.servers
            for seat in server.seats
        ]
        return Findings(survey=survey, marked=self.marked, old=tuple(old), places=tuple(places))

    def __call__(
        self,
        task: str,
        *,
        request: str,
        fleet: Mapping[str, Any] | None = None,
        rollout: str = "",
        server: str = "",
        foreign: bool = False,
        only: Sequence[str] | None = None,
        **_about: Any,
    ) -> None:
        self.asked.append(task)
        if self.mute is not None:  # called in place of an answer
            self.mute()
            return
        body: dict[str, Any] = {"ok": True}
        if self.error:
            body = {"ok": False, "error": self.error, "refused": self.refused}
        elif task == "survey":
            assert fleet is not None
            body["survey"] = asdict(self.survey(fleet))
        elif task == "whereabouts":
            body["seen"] = {
                "members": [
                    {"side": side, "pool": "web", "name": server if side == "old" else f"{server}.g2", "state": state}
                    for side, state in self.where.items()
                ],
                "things": [{"side": "old", "kind": "server", "id": server, "state": "running"}],
            }
        elif task == "findings":
            assert fleet is not None
            body["findings"] = asdict(self.findings(self.survey(fleet)))
        elif task == "collect":
            self.store.sighted("fake/default/default", self.orphans)
            due = [s.key for s in self.orphans if deed(s, Patience(), now=s.last, foreign=foreign, only=only)]
            body |= {"done": [], "not_done": [], "due": due, "patience": asdict(Patience())}
        else:
            body["checks"] = [{"name": "pool web", "ok": True, "detail": "3 serve", "fix": ""}]
            body["policies"] = self.policies
        self.store.put_document(task, request, body)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> MemoryStore:
    return MemoryStore(clock)


@pytest.fixture
def world(store: MemoryStore) -> World:
    return World(store)


@pytest.fixture
def fleet() -> Fleet:
    return fleet_file.read(FLEET, name="fleet.yaml")


@pytest.fixture
def id(store: MemoryStore, world: World, fleet: Fleet) -> str:
    return operations.apply(store, world, fleet, agreed=None, actor="tester").id


def row(store: MemoryStore, id: str, server: str) -> Row:
    found = store.row(id, server)
    assert found is not None
    return found


def put(store: MemoryStore, id: str, server: str, to: Upgrade) -> Upgrade:
    at_rest = to.state in ("pending", "held") or to.settled
    stored = store.turn(row(store, id, server), to, entry=ENTRY, due=None if at_rest else store.now() + 1000)
    assert stored is not None
    return stored.upgrade


def intent(step: str) -> Intent:
    return Intent(step=step, attempt=0, rung=0, token="0" * 64, name="co-0", at=1e12 if step == "retire" else 0.0)


def at_step(store: MemoryStore, id: str, server: str, step: str, *, deadline: float | None = None) -> Upgrade:
    """The server waits at this step, all before it done."""
    u = row(store, id, server).upgrade.after(Admitted(at=store.now()))
    for each in STEPS[: STEPS.index(step)]:
        u = u.after(Began(intent=intent(each), deadline=None)).after(Finished(result={}, at=store.now()))
    u = u.after(Began(intent=intent(step), deadline=deadline))
    return put(store, id, server, u.after(Waits(wait=Waiting(reason="not yet", at=store.now() + 600))))


def upgraded(store: MemoryStore, id: str, server: str) -> Upgrade:
    u = at_step(store, id, server, "drain_old")
    return put(store, id, server, u.after(Finished(result={}, at=store.now(), retain_until=store.now() + 60)))


# -- plans -----------------------------------------------------------------------------------------------------------


def test_a_plan_is_made_of_the_world_and_saved(store: MemoryStore, world: World, fleet: Fleet) -> None:
    made = operations.plan(store, world, fleet)
    assert made.waves == (("web-1",), ("web-2", "web-3"))
    assert operations.saved_plan(store, made.id) == made
    with pytest.raises(NotFound):
        operations.saved_plan(store, "p000")


def test_a_world_that_cannot_be_read_says_why(store: MemoryStore, world: World, fleet: Fleet) -> None:
    world.error = "credentials expired"
    with pytest.raises(ChangeoverError, match="credentials expired") as caught:
        operations.plan(store, world, fleet)
    assert caught.value.traffic
    assert caught.value.next


def test_an_answer_that_was_read_is_kept_no_longer(store: MemoryStore, world: World, fleet: Fleet) -> None:
    for error in ("", "credentials expired"):
        world.error = error
        request = operations.request_survey(store, world, fleet)
        assert store.document("survey", request) is not None
        with suppress(ChangeoverError):
            operations.await_survey(store, request)
        assert store.document("survey", request) is None


def test_waiting_for_an_answer_says_whether_a_worker_lives(store: MemoryStore, fleet: Fleet) -> None:
    ticks = iter(range(1000))
    waiter = Waiter(timeout=60, monotonic=lambda: float(next(ticks)), sleep=lambda _: None)
    request = operations.request_survey(store, lambda _task, *, request, fleet: None, fleet)
    with pytest.raises(WaitTimeout, match="no worker is alive") as caught:
        operations.await_survey(store, request, waiter)
    assert caught.value.exit_code == 124
    assert next(ticks) < 20, "it does not wait out the time when nobody lives"
    store.beat("w1", {}, ttl=1000)
    with pytest.raises(WaitTimeout, match="1 worker is alive"):
        operations.await_survey(store, request, waiter)


def test_apply_creates_the_rollout_its_upgrades_locks_and_spec(
    store: MemoryStore, world: World, fleet: Fleet, id: str
) -> None:
    rollout = operations.find(store, id)
    assert id.startswith("r")
    assert id.isalnum()
    assert id == id.lower()
    assert rollout.waves == (("web-1",), ("web-2", "web-3"))
    assert [(r.upgrade.server, r.upgrade.wave, r.upgrade.state) for r in store.rows(id)] == [
        ("web-1", 0, "pending"),
        ("web-2", 1, "pending"),
        ("web-3", 1, "pending"),
    ]
    assert store.owner_of("fake/default/default/web-2") == id
    spec = store.document("spec", id)
    assert spec is not None
    assert spec["plan"]["id"] == rollout.plan


def test_ids_sort_by_time_and_do_not_repeat() -> None:
    ids = [new_id("r", 1_700_000_000 + n // 50) for n in range(500)]
    assert len(set(ids)) == 500
    assert [each[:8] for each in ids] == sorted(each[:8] for each in ids)


def test_apply_with_an_id_that_exists_returns_that_rollout(
    store: MemoryStore, world: World, fleet: Fleet, id: str
) -> None:
    again = operations.apply(store, world, fleet, agreed=None, actor="tester", id=id)
    assert again == operations.find(store, id)


def test_a_second_rollout_of_the_same_servers_is_refused(
    store: MemoryStore, world: World, fleet: Fleet, id: str
) -> None:
    with pytest.raises(Locked, match=id):
        operations.apply(store, world, fleet, agreed=None, actor="tester")
    assert len(store.rollouts()) == 1


def test_a_refused_creation_leaves_no_file_for_a_later_one(
    store: MemoryStore, world: World, fleet: Fleet, id: str
) -> None:
    with pytest.raises(Locked):
        operations.apply(store, world, fleet, agreed=None, actor="tester", id="r-again")
    assert store.document("spec", "r-again") is None
    spec = store.document("spec", id)
    assert spec is not None
    with pytest.raises(Locked):
        operations.apply(store, world, fleet, agreed=None, actor="tester", id="r-again")
    assert store.document("spec", id) == spec


def test_no_rollout_comes_to_be_with_the_file_of_another_creation(
    store: MemoryStore, world: World, fleet: Fleet
) -> None:
    """A creation ended between the two, its process with it."""
    first = operations.plan(store, world, fleet)
    store.put_document("spec", "r-cut", {"plan": asdict(first)})
    other = fleet_file.read(FLEET.replace("256MiB", "512MiB"), name="fleet.yaml")
    with pytest.raises(Conflict, match=f"created from plan {first.id}"):
        operations.apply(store, world, other, agreed=None, actor="tester", id="r-cut")
    assert store.rollout("r-cut") is None
    made = operations.apply(store, world, fleet, agreed=None, actor="tester", id="r-cut")
    assert made.plan == first.id


def test_a_plan_that_the_world_has_moved_away_from_is_refused(store: MemoryStore, world: World, fleet: Fleet) -> None:
    agreed = operations.plan(store, world, fleet)
    world.change = {"memory": 2**28}
    with pytest.raises(PlanMoved, match="web-1: memory was 134217728, is 268435456"):
        operations.apply(store, world, fleet, agreed=agreed, actor="tester")
    world.change = {}
    other = fleet_file.read(FLEET.replace("256MiB", "512MiB"), name="fleet.yaml")
    with pytest.raises(PlanMoved, match="the fleet file is another one"):
        operations.apply(store, world, other, agreed=agreed, actor="tester")
    assert store.rollouts() == []
    assert operations.apply(store, world, fleet, agreed=agreed, actor="tester").plan == agreed.id


def test_blockers_refuse_and_create_nothing(store: MemoryStore, world: World, fleet: Fleet) -> None:
    world.change = {"problem": "it does not answer from inside"}
    with pytest.raises(Conflict, match="web-3: it does not answer from inside"):
        operations.apply(store, world, fleet, agreed=None, actor="tester")
    assert store.rollouts() == []


# -- the whole rollout -----------------------------------------------------------------------------------------------


def test_pausing_twice_is_pausing_once(store: MemoryStore, id: str) -> None:
    at_step(store, id, "web-1", "provision")
    first = operations.pause(store, id, actor="ann", why="lunch")
    assert first.changed
    assert first.rollout.state == "paused"
    assert first.rollout.why == "lunch"
    assert [u.server for u in first.in_flight] == ["web-1"]
    again = operations.pause(store, id, actor="bob")
    assert not again.changed
    assert again.rollout == first.rollout
    assert [e.event for e in operations.events(store, id) if not e.server] == ["created", "paused"]


def test_resume_moves_deadlines_by_the_pause_and_wakes_what_waited(store: MemoryStore, clock: Clock, id: str) -> None:
    deadline = clock.now + 100
    at_step(store, id, "web-1", "provision", deadline=deadline)
    operations.pause(store, id, actor="ann")
    clock.now += 500
    answer = operations.resume(store, id, actor="ann")
    assert answer.rollout.state == "running"
    assert row(store, id, "web-1").upgrade.deadline == deadline + 500
    assert (id, "web-1") in store.due(limit=10)
    assert not operations.resume(store, id, actor="ann").changed
    assert row(store, id, "web-1").upgrade.deadline == deadline + 500


def test_an_ended_rollout_refuses_with_what_it_is(store: MemoryStore, id: str) -> None:
    was = operations.find(store, id)
    store.change(was, replace(was, state="succeeded", ended_at=store.now()), entry=ENTRY)
    for verb in (operations.pause, operations.abort):
        with pytest.raises(IllegalTransition, match="is succeeded") as caught:
            verb(store, id, actor="ann")
        assert caught.value.next == f"changeover show {id}"
    with pytest.raises(IllegalTransition):
        operations.resume(store, id, actor="ann")


def test_abort_and_rollback_are_taken_once(store: MemoryStore, id: str) -> None:
    assert operations.abort(store, id, actor="ann").rollout.state == "aborting"
    assert not operations.abort(store, id, actor="ann").changed
    assert operations.rollback(store, id, actor="ann").rollout.state == "rolling_back"
    assert not operations.rollback(store, id, actor="ann").changed


def test_a_verb_outlasts_others_who_change_the_same(
    store: MemoryStore, id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, lost = store.change, iter([True, True, False])

    def contended(*args: Any, **kwargs: Any) -> Any:
        return None if next(lost) else change(*args, **kwargs)

    monkeypatch.setattr(store, "change", contended)
    assert operations.pause(store, id, actor="ann").changed
    monkeypatch.setattr(store, "change", lambda *_a, **_k: None)
    with pytest.raises(Conflict, match="changed by others"):
        operations.abort(store, id, actor="ann")


def test_an_unknown_rollout_or_server_is_named(store: MemoryStore, id: str) -> None:
    for ask in (operations.pause, operations.resume, operations.abort, operations.rollback):
        with pytest.raises(NotFound, match="r000"):
            ask(store, "r000", actor="ann")
    with pytest.raises(NotFound, match="db-9"):
        operations.rollback_server(store, id, "db-9", actor="ann")
    with pytest.raises(NotFound, match="db-9"):
        operations.explain(store, "db-9", rollout=None)


# -- one server ------------------------------------------------------------------------------------------------------


def test_an_upgraded_server_goes_back_until_its_old_one_is_ended(store: MemoryStore, id: str) -> None:
    upgraded(store, id, "web-1")
    answer = operations.rollback_server(store, id, "web-1", actor="ann", why="slow")
    assert answer.changed
    u = row(store, id, "web-1").upgrade
    assert (u.direction, u.step, u.asked, u.cause) == ("undo", "drain_old", True, "slow")
    assert (id, "web-1") in store.due(limit=10)
    assert not operations.rollback_server(store, id, "web-1", actor="ann").changed

    gone = upgraded(store, id, "web-2").after(Began(intent=intent("retire"), deadline=None))
    put(store, id, "web-2", gone)
    with pytest.raises(PointOfNoReturn) as caught:
        operations.rollback_server(store, id, "web-2", actor="ann")
    assert "the new server of web-2 serves" in caught.value.traffic


def test_a_held_server_goes_on_where_it_was(store: MemoryStore, id: str) -> None:
    held = put(store, id, "web-1", at_step(store, id, "web-1", "swap").after(Held(why="quota")))
    assert held.state == "held"
    answer = operations.retry(store, id, None, actor="ann")
    assert [u.server for u in answer.servers] == ["web-1"]
    after = row(store, id, "web-1").upgrade
    assert (after.state, after.step) == ("waiting", "swap")
    assert (id, "web-1") in store.due(limit=10)
    assert not operations.retry(store, id, ["web-1"], actor="ann").changed


def test_a_failed_server_starts_anew_and_its_rollout_runs_on(store: MemoryStore, id: str) -> None:
    failed = row(store, id, "web-1").upgrade.after(Admitted(at=1.0)).after(TurnedBack(why="bad", at=2.0, asked=False))
    assert put(store, id, "web-1", failed).state == "failed"
    was = operations.find(store, id)
    ended = store.change(was, replace(was, state="failed", wave=1, ended_at=3.0), entry=ENTRY)
    assert ended is not None
    answer = operations.retry(store, id, ["web-1"], actor="ann")
    assert answer.changed
    assert (answer.rollout.state, answer.rollout.wave) == ("running", 0)
    assert row(store, id, "web-1").upgrade.state == "pending"


@pytest.mark.parametrize("state", ["running", "baking", "paused"])
def test_a_retry_keeps_others_from_ending_the_wave_without_it(store: MemoryStore, id: str, state: Any) -> None:
    failed = row(store, id, "web-1").upgrade.after(Admitted(at=1.0)).after(TurnedBack(why="bad", at=2.0, asked=False))
    put(store, id, "web-1", failed)
    was = operations.find(store, id)
    resume_to: Any = "baking" if state == "paused" else None
    seen = store.change(was, replace(was, state=state, bake_until=9.0, resume_to=resume_to), entry=ENTRY)
    assert seen is not None
    answer = operations.retry(store, id, ["web-1"], actor="ann")
    assert answer.rollout.state == ("paused" if state == "paused" else "running")
    assert answer.rollout.resume_to in (None, "running")
    assert row(store, id, "web-1").upgrade.state == "pending"
    late = replace(seen, state="failed")
    assert store.change(seen, late, entry=ENTRY) is None, "a decision made before the retry is void"


def close(store: MemoryStore, id: str) -> None:
    was = operations.find(store, id)
    store.change(was, replace(was, state="aborted", closed=True, ended_at=3.0), entry=ENTRY)


def test_a_server_that_a_closed_rollout_left_pending_is_not_turned_back(store: MemoryStore, id: str) -> None:
    close(store, id)
    before = row(store, id, "web-1")
    with pytest.raises(Conflict, match=f"rollout {id} is closed, and web-1 stays as it left it: pending") as refused:
        operations.rollback_server(store, id, "web-1", actor="ann")
    assert refused.value.next and refused.value.traffic
    assert row(store, id, "web-1") == before
    assert not operations.retry(store, id, ["web-1"], actor="ann").changed


@pytest.mark.parametrize("verb", [operations.rollback_server, operations.retry])
def test_a_rollout_that_closes_between_the_look_and_the_write_keeps_its_records(
    store: MemoryStore, id: str, verb: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if verb is operations.retry:
        u = put(store, id, "web-1", row(store, id, "web-1").upgrade.after(Admitted(at=1.0)))
        put(store, id, "web-1", u.after(TurnedBack(why="smoke", at=2.0, asked=False)))
    before, turn = row(store, id, "web-1").upgrade, store.turn

    def closes_first(*args: Any, **more: Any) -> Any:
        close(store, id)
        return turn(*args, **more)

    monkeypatch.setattr(store, "turn", closes_first)
    with pytest.raises(Conflict, match="closed"):
        verb(store, id, "web-1" if verb is operations.rollback_server else ["web-1"], actor="ann")
    assert row(store, id, "web-1").upgrade == before


@pytest.mark.parametrize("verb", [operations.rollback_server, operations.retry])
def test_a_rollout_that_is_changed_between_the_look_and_the_write_is_not_as_it_was_seen(
    store: MemoryStore, id: str, verb: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if verb is operations.retry:
        u = put(store, id, "web-1", row(store, id, "web-1").upgrade.after(Admitted(at=1.0)))
        put(store, id, "web-1", u.after(TurnedBack(why="smoke", at=2.0, asked=False)))
    before, turn = row(store, id, "web-1").upgrade, store.turn
    seen = operations.find(store, id).version

    def pauses_first(*args: Any, **more: Any) -> Any:
        operations.pause(store, id, actor="bob")
        return turn(*args, **more)

    monkeypatch.setattr(store, "turn", pauses_first)
    with pytest.raises(Outdated, match="it is paused"):
        verb(store, id, "web-1" if verb is operations.rollback_server else ["web-1"], actor="ann", seen=seen)
    assert row(store, id, "web-1").upgrade == before


def test_a_server_that_somebody_else_decided_about_is_not_as_it_was_seen(
    store: MemoryStore, id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgraded(store, id, "web-1")
    was, turn = operations.seen_of(row(store, id, "web-1").upgrade), store.turn

    def turns_first(*args: Any, **more: Any) -> Any:
        monkeypatch.setattr(store, "turn", turn)
        operations.rollback_server(store, id, "web-1", actor="bob", why="slow")
        return turn(*args, **more)

    monkeypatch.setattr(store, "turn", turns_first)
    with pytest.raises(Outdated, match="web-1 was changed since you looked"):
        operations.rollback_server(store, id, "web-1", actor="ann", was=was)
    u = row(store, id, "web-1").upgrade
    assert (u.direction, u.cause) == ("undo", "slow")


def test_a_retry_that_comes_after_the_rollout_closed_changes_nothing(store: MemoryStore, id: str) -> None:
    failed = row(store, id, "web-1").upgrade.after(Admitted(at=1.0)).after(TurnedBack(why="bad", at=2.0, asked=False))
    put(store, id, "web-1", failed)
    was = operations.find(store, id)
    store.change(was, replace(was, state="failed", closed=True, ended_at=3.0), entry=ENTRY)
    with pytest.raises(IllegalTransition, match="closed"):
        operations.retry(store, id, ["web-1"], actor="ann")
    assert row(store, id, "web-1").upgrade.state == "failed"


def test_explain_tells_the_newest_rollout_of_a_server(store: MemoryStore, id: str) -> None:
    at_step(store, id, "web-1", "smoke_test")
    told = operations.explain(store, "web-1", rollout=None)
    assert told.rollout.id == id
    assert told.upgrade is not None
    assert told.upgrade.step == "smoke_test"
    assert {entry.server for entry in told.entries} == {"web-1"}


def test_explain_tells_of_an_api_that_was_asked_too_often_lately(store: MemoryStore, id: str) -> None:
    store.spend("aws here ec2 read", Limit(rate=10, burst=5), patience=1)
    assert not operations.explain(store, "web-1", rollout=None).slowed
    store.refused("aws here ec2 read", Limit(rate=10, burst=5))
    told = operations.explain(store, "web-1", rollout=None)
    assert [bucket.rate for bucket in told.slowed.values()] == [pytest.approx(5, rel=0.01)]
    assert "aws here ec2 read was asked too often" in words.slowed(*next(iter(told.slowed.items())))


# -- everything ------------------------------------------------------------------------------------------------------


def test_freeze_keeps_the_first_reason_until_it_is_lifted(store: MemoryStore, id: str) -> None:
    at_step(store, id, "web-1", "provision")
    first = operations.freeze(store, actor="ann", reason="incident")
    assert first.changed
    assert first.in_flight == 1
    again = operations.freeze(store, actor="bob")
    assert not again.changed
    assert again.why == first.why == "incident (by ann)"
    assert operations.unfreeze(store, actor="bob").changed
    assert not operations.unfreeze(store, actor="bob").changed
    assert store.frozen() is None


def test_gc_lists_and_touches_nothing_unless_told(store: MemoryStore, world: World, clock: Clock, id: str) -> None:
    upgraded(store, id, "web-1")
    store.put_ledger(
        id, [LedgerItem(key="old:web-1", kind="old server", server="web-1", state="retained", id="web-1", until=1.0)]
    )
    world.orphans = [
        Sighting(
            lane="fake/default/default",
            kind="image",
            id="img-9",
            name="co-9",
            state="available",
            rollout="r0",
            server="db-1",
            first=clock.now,
            last=clock.now,
        )
    ]
    sent: list[list[Message]] = []
    early = operations.gc(store, world, lambda: sent.append, collect=True, grace=5.0)
    assert early.due == ()
    clock.now += 61
    dry = operations.gc(store, world, lambda: sent.append, collect=False, grace=5.0)
    assert dry.due == ((id, "web-1"),)
    assert dry.sent == ()
    assert sent == []
    assert [orphan.id for orphan in dry.orphans] == ["img-9"]
    assert [kept.item.key for kept in dry.kept] == ["old:web-1"]
    wet = operations.gc(store, world, lambda: sent.append, collect=True, grace=5.0)
    assert wet.sent == ((id, "web-1"),)
    assert [message["task"] for message in sent[0]] == ["tasks.retire"]


def test_gc_goes_on_without_a_lane_that_cannot_be_read(store: MemoryStore, world: World, id: str) -> None:
    world.error = "no credentials"
    found = operations.gc(store, world, lambda: lambda _: None, collect=False, grace=5.0)
    assert "no credentials" in found.unread["fake/default/default"]


def test_doctor_tells_each_check_and_how_to_mend_it(store: MemoryStore, world: World, fleet: Fleet) -> None:
    found = operations.doctor(store, world, fleet, dev=True)
    assert [(c.name, c.ok) for c in found] == [("Redis", True), ("workers", False)]
    assert found[1].fix
    store.beat("w1", {}, ttl=1000)
    assert [c.name for c in operations.doctor(store, world, fleet, dev=True)] == ["Redis", "workers", "pool web"]
    store.freeze(True, actor="ann")
    world.error = "no credentials"
    ill = [c for c in operations.doctor(store, world, fleet, dev=True) if not c.ok]
    assert [c.name for c in ill] == ["freeze", "providers"]
    assert "doctor" not in ill[1].fix, "that is where one is"
