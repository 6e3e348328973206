"""What nobody accounts for: found by looking twice, kept for a day, ended when a person says so; and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace

import pytest
import structlog

from orchestrator import operations
from orchestrator.domain.plan import make_plan, token
from orchestrator.domain.upgrade import Upgrade
from orchestrator.lanes import NEWEST, lanes, remember
from orchestrator.store import Entry, LedgerItem
from providers import Key
from providers.compute import Server, Size
from providers.compute.fake import FakeCompute, Fault, GiB
from providers.errors import NotFound, Transient
from providers.traffic import MemberView
from tasks import keys, orphans
from tasks.survey import look
from tests.support.runner import PORT, Runner, running


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


def leave(r: Runner, *, rollout: str = "", server: str = "web-1", attempt: int = 1) -> tuple[str, str]:
    """An image and a server of that attempt, made by a call that came after everybody had looked; their ids."""
    compute = FakeCompute({"world": r.fleet.provider.settings["world"]})
    where, id = r.fleet.provider, rollout or r.rollout

    def key(step: str) -> Key:
        made = token(id, where.name, where.account, where.region, server, step, attempt, 0)
        tags = {keys.MANAGED: "1", keys.ROLLOUT: id, keys.SERVER: server, keys.STEP: step}
        return Key(token=made, name=f"co-{made[:40]}", tags=tags)

    image = compute.ensure_image(key("create_image"), source=server)
    size = Size(memory=GiB, disk=20 * GiB)
    made = compute.ensure_server(key("provision"), image=image.id, like=server, size=size)
    r.clock.now += 30
    return image.id, made.id


def gc(r: Runner, *, yes: bool = True, foreign: bool = False, only: Sequence[str] = ()) -> operations.Inventory:
    how = {"collect": yes, "foreign": foreign, "only": only}
    return operations.gc(r.store, r.ask, lambda: r.queue.append, grace=5.0, **how)  # type: ignore[arg-type] # as named


def state(r: Runner, id: str) -> str:
    thing = r.cloud.things.get(id)
    return "gone" if thing is None else r.cloud.now(thing).state


@pytest.mark.parametrize("never_came", [False, True], ids=["taken out", "never put in"])
def test_what_does_not_say_that_it_is_in_quarantine_is_not_deleted_and_watched_anew(never_came: bool) -> None:
    with running(["web-1", "web-2"]) as r:
        r.finish()
        _, server = leave(r)
        gc(r)
        r.clock.now += 901
        gc(r)
        compute = r.world.compute(r.fleet)
        compute.tag(server, {keys.PHASE: None})
        if never_came:
            compute.start(server)
        r.clock.now += 86500
        was = state(r, server)
        (told,) = gc(r).not_done
        assert server in told and "it was taken out of quarantine" in told
        assert state(r, server) == was and not gc(r).done
        for done in ("in quarantine", "deleted"):
            r.clock.now += 901 if done == "in quarantine" else 86401
            assert gc(r).done == (f"server {server} {done}",)
        events = [e.event for e in operations.events(r.store, r.rollout) if e.detail.get("id") == server]
        assert events == ["Quarantined", "Quarantined", "OrphanDeleted"]


def test_an_orphan_is_quarantined_and_a_day_later_deleted() -> None:
    with running(["web-1", "web-2"]) as r:
        r.finish()
        image, server = leave(r)
        assert {s.id for s in gc(r).orphans} == {image, server}
        assert state(r, server) == "running", "one look is not enough"
        r.clock.now += 901
        found = gc(r)
        assert len(found.done) == 2 and not found.not_done
        assert state(r, server) == "stopped" and state(r, image) == "available"
        assert r.cloud.things[server].view.tags[keys.PHASE] == "quarantine"
        ledger = {item.id: item for item in r.store.ledger(r.rollout)}
        assert ledger[server].state == ledger[image].state == "quarantined"
        assert ledger[server].until == pytest.approx(r.clock() + 86400, abs=10)
        r.clock.now += 86000
        assert not gc(r).done
        r.clock.now += 500
        assert len(gc(r).done) == 2
        assert state(r, server) == "terminated" and state(r, image) == "gone"
        assert gc(r).orphans == ()
        assert {item.state for item in r.store.ledger(r.rollout) if item.id in (server, image)} == {"deleted"}
        events = [e.event for e in operations.events(r.store, r.rollout) if e.server == "web-1"]
        assert events.count("Quarantined") == events.count("OrphanDeleted") == 2
        assert r.serving() == {"web-1.g2", "web-2.g2"}


def test_what_has_no_server_to_stop_is_in_quarantine_all_the_same() -> None:
    """A stack that failed is paid for by name alone: nothing of it can be tagged or stopped."""
    with running(["web-1"]) as r:
        r.finish()
        _, server = leave(r)

        def fault(name: str) -> Fault:
            if name == "tag":
                raise NotFound("it has no server")
            return ""

        gc(r)
        r.clock.now += 901
        r.cloud.fault = fault
        found = gc(r)
        assert f"server {server} in quarantine" in found.done and not found.not_done
        assert {item.id: item.state for item in r.store.ledger(r.rollout)}[server] == "quarantined"


def test_what_is_in_use_is_no_orphan_at_any_moment_of_a_rollout() -> None:
    """Every thing of a whole rollout, and of the way back, looked at after every turn; one look would be enough."""
    with running(["web-1", "web-2"], retain={"old_servers": "60s"}) as r:
        r.world.patience = replace(r.world.patience, seen=0.0, kept=0.0)

        def looked() -> bool:
            found = gc(r)
            assert not found.orphans and not found.unread, (found, r.upgrades())
            return r.record().ended

        r.until(looked)
        operations.rollback_server(r.store, r.rollout, "web-2", actor="test")
        r.until(lambda: looked() and r.record().closed)
        assert {u.state for u in (r.upgrade("web-1"), r.upgrade("web-2"))} == {"upgraded", "rolled_back"}


def test_a_dry_run_touches_nothing() -> None:
    with running(["web-1"]) as r:
        r.finish()
        image, server = leave(r)
        before = r.cloud.calls.copy()
        for _ in range(5):
            r.clock.now += 1000
            found = gc(r, yes=False)
            assert {s.id for s in found.orphans} == {image, server} and not found.done
        assert {call for call, n in r.cloud.calls.items() if n != before.get(call, 0)} <= {"inventory", "members"}
        assert state(r, server) == "running"


def test_a_message_that_says_yes_by_itself_is_not_believed() -> None:
    """Whoever may write to the broker is nobody whom a person has asked."""
    with running(["web-1"]) as r:
        r.finish()
        _, server = leave(r, rollout="r0elsewhere")
        gc(r)
        r.clock.now += 1000
        forged = {"lane": r.fleet.lane, "act": True, "foreign": True}
        r.ask("collect", request="forged", **forged)
        answer = r.store.document("collect", "forged")
        assert answer is not None and not answer["done"] and "nobody has said yes" in answer["not_done"][0]
        assert state(r, server) == "running"
        r.store.put_document("yes", "another", {"lane": "elsewhere", "foreign": True})
        r.ask("collect", request="another", **forged)
        assert state(r, server) == "running", "what was said of another lane"
        r.store.put_document("yes", "theirs", {"lane": r.fleet.lane, "foreign": False})
        r.ask("collect", request="theirs", **forged)
        assert state(r, server) == "running", "it does not say more than the person did"
        assert r.store.document("yes", "theirs") is None, "and it is used up"
        r.store.put_document("yes", "all", {"lane": r.fleet.lane, "foreign": True})
        r.ask("collect", request="all", only=[server], **forged)
        assert state(r, server) == "running", "a message names nobody"
        assert len(gc(r, foreign=True, only=[server]).done) == 1


def test_what_is_of_a_rollout_not_known_here_is_touched_only_when_told() -> None:
    with running(["web-1"]) as r:
        r.finish()
        _, server = leave(r, rollout="r0elsewhere")
        gc(r)
        r.clock.now += 1000
        found = gc(r)
        assert not found.done and all(s.foreign for s in found.orphans)
        assert state(r, server) == "running"
        assert [line.split()[0] for line in gc(r, foreign=True).done] == ["image"]
        assert state(r, server) == "running", "which pools it is in nobody knows here: it may have users"
        assert not gc(r, foreign=True, only=["srv-other"]).done and not gc(r, only=[server]).done
        assert len(gc(r, foreign=True, only=[server]).done) == 1
        assert state(r, server) == "stopped"


def test_a_doctor_names_rebuild_first_where_a_rollout_is_not_known_here() -> None:
    with running(["web-1"]) as r:
        _, server = leave(r, rollout="r0elsewhere")
        r.ask("doctor", request="q", fleet=r.fleet.canonical())
        answer = r.store.document("doctor", "q")
        assert answer is not None
        first = answer["checks"][0]
        assert server in first["detail"] and "may be serving users" in first["detail"]
        assert (first["ok"], first["fix"].partition(",")[0]) == (False, "changeover rebuild FILE")


@pytest.mark.parametrize(
    ("name", "server", "why"),
    [
        ("payroll", "web-1", "would not have called it so"),
        (f"co-{'f' * 40}", "web-1", "would not have called it so"),
        ("", "web-2", "would not have called it so"),
        ("", "db-1", "has no server db-1"),
    ],
)
def test_a_strangers_server_that_carries_our_tags_is_never_touched(name: str, server: str, why: str) -> None:
    """Its tags say that a known rollout made it; its name, which nobody gives later, says otherwise."""
    with running(["web-1", "web-2"]) as r:
        r.finish()
        image, stranger = leave(r)
        thing = r.cloud.things[stranger]
        tags = {**thing.view.tags, keys.SERVER: server}
        thing.view = replace(thing.view, name=name or thing.view.name, tags=tags)
        for _ in range(4):
            found = gc(r)
            assert {s.id for s in found.orphans} >= {stranger}
            (seen,) = (s for s in found.orphans if s.id == stranger)
            assert seen.foreign and why in seen.doubt and stranger not in " ".join(found.done)
            r.clock.now += 100000
        assert (state(r, stranger), state(r, image)) == ("running", "gone"), "what is ours goes all the same"
        assert stranger not in {item.id for item in r.store.ledger(r.rollout)}
        gc(r, foreign=True)
        assert state(r, stranger) == "running", "it may have users: it has to be named"
        gc(r, foreign=True, only=[stranger])
        assert state(r, stranger) == "stopped", "a person has said that it is ours"


def test_an_undo_leaves_a_strangers_server_that_carries_our_tags_alone() -> None:
    with running(["web-1", "web-2"]) as r:
        r.until(lambda: "provision" in r.upgrade("web-1").results)
        stranger = r.cloud.server("theirs").id
        thing = r.cloud.things[stranger]
        thing.view = replace(thing.view, tags={keys.MANAGED: "1", keys.ROLLOUT: r.rollout, keys.SERVER: "web-1"})
        operations.rollback(r.store, r.rollout, actor="ops")
        r.finish()
        assert not r.alive("target"), "what is ours has gone"
        assert state(r, stranger) == "running"


def test_an_orphan_in_a_pool_stays() -> None:
    with running(["web-1"]) as r:
        r.finish()
        _, server = leave(r)
        gc(r)
        r.clock.now += 1000
        view = r.cloud.things[server].view
        assert isinstance(view, Server)
        r.cloud.pools["web"]["x"] = MemberView(name="x", address=view.address, port=PORT, state="draining")
        found = gc(r)
        assert {s.id: s.pools for s in found.orphans}[server] == ("web",)
        assert len(found.done) == 1, "its image is in no pool"
        assert state(r, server) == "running"


def test_nothing_is_done_while_a_pool_or_a_record_cannot_be_read() -> None:
    with running(["web-1"]) as r:
        r.finish()
        _, server = leave(r)
        gc(r)
        r.clock.now += 1000

        def away(name: str) -> str:
            if name == "members":
                raise Transient("the balancer does not answer", ambiguous=False)
            return ""

        r.cloud.fault = away  # type: ignore[assignment] # it answers no fault, or raises
        found = gc(r)
        assert not found.done and all("does not answer" in s.unsure for s in found.orphans)
        assert state(r, server) == "running"


def test_an_orphan_that_is_accounted_for_at_the_last_moment_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(["web-1"]) as r:
        r.finish()
        _, server = leave(r)
        gc(r)
        r.clock.now += 1000
        honest, looks = orphans.look, []

        def look(*args: object) -> object:
            looks.append(1)
            if len(looks) == 2:
                item = LedgerItem(key="server:x", kind="server", server="web-1", state="live", id=server)
                r.store.put_ledger(r.rollout, [item])
            return honest(*args)  # type: ignore[arg-type] # as it was called

        monkeypatch.setattr(orphans, "look", look)
        found = gc(r)
        assert any("no orphan any more" in line for line in found.not_done)
        assert state(r, server) == "running"


def test_one_run_acts_on_so_many_and_no_more() -> None:
    with running(["web-1"]) as r:
        r.finish()
        for n in range(8):
            leave(r, attempt=n + 1)
        gc(r)
        r.clock.now += 1000
        assert len(gc(r).done) == r.world.patience.at_once == 10
        assert len(gc(r).done) == 6


def test_a_search_settles_the_ledgers() -> None:
    with running(["web-1"]) as r:
        r.finish()
        new = r.upgrade("web-1").results["provision"]["server"]
        items = {item.id: item for item in r.store.ledger(r.rollout)}
        r.store.put_ledger(
            r.rollout,
            [
                replace(items[new], id="", state="intended"),
                LedgerItem(key=f"image:{'a' * 64}", kind="image", server="web-1", state="intended"),
            ],
        )
        lane = r.fleet.lane
        orphans.scan(r.world, lane=lane)
        ledger = {item.key: item for item in r.store.ledger(r.rollout)}
        assert ledger[items[new].key] == items[new], "what the record remembers is in the ledger again"
        assert ledger[f"image:{'a' * 64}"].state == "intended"
        r.clock.now += 4000
        orphans.scan(r.world, lane=lane)
        assert {item.key: item.state for item in r.store.ledger(r.rollout)}[f"image:{'a' * 64}"] == "deleted"
        told = [e for e in operations.events(r.store, r.rollout) if e.event == "LedgerSettled"]
        assert len(told) == 2
        assert not r.store.sightings()


@contextmanager
def two_hosts() -> Iterator[tuple[Runner, Runner]]:
    """Two worlds that call themselves the same, in one installation: `r2` is the rollout in the second."""
    with running(["web-1"]) as first, running(["web-1"]) as second:
        spec = second.store.document("spec", second.rollout)
        assert spec is not None
        first.store.put_document("spec", "r2", spec)
        remember(first.store, second.fleet, "r2")
        upgrades = [Upgrade(rollout="r2", server="web-1", wave=0)]
        first.store.create(replace(second.record(), id="r2", state="paused"), upgrades, locks={})
        assert first.fleet.lane == second.fleet.lane
        yield first, second


def test_a_second_host_of_the_same_name_is_searched_as_well() -> None:
    with two_hosts() as (r, other):
        r.until(lambda: r.upgrade("web-1").state == "upgraded")
        here, there = leave(r), leave(other, rollout="r2")
        r.clock.now += 30  # the clock of one is not the other's
        found = gc(r).orphans
        assert {s.name for s in found} == {
            run.cloud.things[id].view.name for run, ids in ((r, here), (other, there)) for id in ids
        }
        assert len({s.key for s in found}) == 4, "what has the same id in two worlds is two things"
        r.clock.now += 901
        assert len(gc(r).done) == 4
        assert state(r, here[1]) == state(other, there[1]) == "stopped"
        assert r.serving() == {"web-1.g2"}


def test_what_was_intended_on_one_host_is_not_given_up_for_not_being_on_another() -> None:
    with two_hosts() as (r, _):
        r.until(lambda: r.upgrade("web-1").state == "upgraded")
        new = r.upgrade("web-1").results["provision"]["server"]
        item = next(item for item in r.store.ledger(r.rollout) if item.id == new)
        r.store.put_ledger(r.rollout, [replace(item, id="", state="intended")])
        r.clock.now += 4000
        for lane in lanes(r.store, {}):
            orphans.scan(r.world, lane=lane)
        assert {item.key: item.state for item in r.store.ledger(r.rollout)}[item.key] == "live"


def test_two_files_that_reach_one_world_with_other_settings_explain_each_others_things() -> None:
    with running(["web-1"]) as r:
        r.until(lambda: r.upgrade("web-1").state == "upgraded")
        settings = {**r.fleet.provider.settings, "spoken": "otherwise"}
        other = r.fleet.model_copy(update={"provider": r.fleet.provider.model_copy(update={"settings": settings})})
        plan = replace(make_plan(other, look(r.world, other)), fleet=other.canonical())
        r.store.put_document("spec", "r2", {"plan": asdict(plan)})
        remember(r.store, other, "r2")
        r.store.create(replace(r.record(), id="r2", state="failed"), [], locks={})
        image, _ = leave(r, rollout="r2")  # which a ledger has, and no record
        r.store.put_ledger("r2", [LedgerItem(key="image:k", kind="image", server="web-1", state="live", id=image)])
        assert len(lanes(r.store, {})) == 2
        left = leave(r)
        for _ in range(2):
            gc(r)
            r.clock.now += 901
        assert image not in {s.id for s in r.store.sightings()}
        assert {s.id for s in r.store.sightings() if not s.foreign} >= set(left)
        assert len({s.id for s in r.store.sightings()}) == len(r.store.sightings()), "each is listed once"


def test_a_world_whose_rollouts_are_long_closed_is_still_searched() -> None:
    with running(["web-1"]) as r:
        plan = make_plan(r.fleet, look(r.world, r.fleet))
        elsewhere = r.fleet.model_copy(
            update={"provider": r.fleet.provider.model_copy(update={"account": "of-last-year"})}
        )
        for n in range(NEWEST + 2):
            fleet = r.fleet if n else elsewhere
            made = replace(plan, id=f"p{n}", fleet=fleet.canonical())
            (lock,) = r.store.open_rollouts()
            r.store.change(lock, replace(lock, state="succeeded", closed=True), entry=Entry(event="x", actor="test"))
            operations.create(r.store, fleet, made, actor="test", id=f"o{n}")
            r.clock.now += 10
        assert len(lanes(r.store, {})) == 2
        assert elsewhere.lane in lanes(r.store, {})


def test_coordinators_send_one_search_in_five_minutes() -> None:
    with running(["web-1"]) as r:
        sent: list[str] = []
        others = [replace(r.coordinator, name=f"c{n}", scan=sent.append) for n in range(3)]
        for _ in range(60):
            for each in others:
                each.tick()
            r.clock.now += 10
        assert sent == [r.fleet.lane] * 2
