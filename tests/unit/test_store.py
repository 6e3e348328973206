"""Every promise of the store's protocol, kept by both implementations; and both alike under the same operations."""

from __future__ import annotations

import json
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import pytest
import redis

from orchestrator.addresses import parse
from orchestrator.domain.budget import Limit
from orchestrator.domain.delivery import Delivery
from orchestrator.domain.orphans import Sighting
from orchestrator.domain.outbox import Feed
from orchestrator.domain.rollout import Rollout, aborting, paused
from orchestrator.domain.steps import STEPS
from orchestrator.domain.token import SESSIONS, Session, Token
from orchestrator.domain.upgrade import (
    Admitted,
    Began,
    Event,
    Finished,
    Held,
    Intent,
    Looked,
    Observe,
    Released,
    Seen,
    Stumbled,
    TurnedBack,
    UndoBegan,
    Undone,
    Upgrade,
    Waiting,
    Waits,
)
from orchestrator.errors import BadInput, ChangeoverError, Fenced, Locked, NotFound, Unreachable, UnsafeStore
from orchestrator.store import (
    WORLDS,
    Claim,
    Counts,
    Entry,
    Ignored,
    LedgerItem,
    RefusedIntent,
    Row,
    Store,
    Users,
    codec,
)
from orchestrator.store.connecting import plainly
from orchestrator.store.health import check
from orchestrator.store.memory import MemoryStore
from orchestrator.store.redis import RedisStore
from tests.simulation.loss import bring_back, keep
from tests.support.valkey import RunningValkey, running_valkey

# Where Debian's own Redis is there, all of it once more, on that.
pytestmark = [pytest.mark.debian] if os.environ.get("CHANGEOVER_REQUIRE_ALL") else []

START = 1_800_000_000.0
LANE = "local/host"
DID = Entry(event="did", actor="test", detail={"n": 1})


@dataclass
class Clock:
    now: float = START

    def __call__(self) -> float:
        return self.now


@dataclass
class Site:
    """A store with its clock, and short words for what most tests do."""

    store: Store
    clock: Clock
    names: tuple[str, ...] = ("a", "b", "c")
    rollout: Rollout = field(init=False)

    def create(self, id: str = "r1", *, domains: tuple[str, ...] = (), waves: int = 1, limit: int = 5) -> Rollout:
        per = len(self.names) // waves
        self.rollout = Rollout(
            id=id,
            plan="p1",
            fleet="shop",
            created_at=self.clock.now,
            created_by="anna",
            waves=tuple(self.names[i * per : (i + 1) * per] for i in range(waves)),
            max_in_flight=limit,
            allowed_failures=0,
            bake=0.0,
            on_abort="finish",
        )
        upgrades = [
            Upgrade(rollout=id, server=name, wave=i // per, domain=domains[i] if domains else "")
            for i, name in enumerate(self.names)
        ]
        return self.store.create(self.rollout, upgrades, locks={f"lock/{name}": name for name in self.names})

    def row(self, server: str = "a", rollout: str = "r1") -> Row:
        row = self.store.row(rollout, server)
        assert row is not None
        return row

    def admit(
        self, server: str = "a", *, limit: int = 5, wave: int = 0, domain: str = "", at: Upgrade | None = None
    ) -> int | None:
        to = (at or self.row(server).upgrade).after(Admitted(at=self.clock.now))
        return self.store.admit("r1", server, to=to, limit=limit, wave=wave, domain=domain, entry=DID)

    def issue(self, server: str = "a", *, grace: float = 10.0) -> int | None:
        return self.store.issue("r1", server, version=self.row(server).version, grace=grace)

    def take(
        self, server: str = "a", *, owner: str = "w1", lease: float = 60.0, epoch: int | None = None
    ) -> Claim | Ignored:
        row = self.row(server)
        return self.store.claim(
            "r1",
            server,
            epoch=row.epoch if epoch is None else epoch,
            step=row.upgrade.step,
            direction=row.upgrade.direction,
            owner=owner,
            lease=lease,
        )

    def claim(self, server: str = "a", *, owner: str = "w1", lease: float = 60.0) -> Claim:
        claim = self.take(server, owner=owner, lease=lease)
        assert isinstance(claim, Claim), claim
        return claim

    def running(self, server: str = "a", *, owner: str = "w1", lease: float = 60.0) -> Claim:
        """Admitted, sent and claimed."""
        assert self.admit(server)
        assert self.issue(server) is not None
        return self.claim(server, owner=owner, lease=lease)

    def began(self, claim: Claim, *, undo: bool = False, finishing: bool = False) -> Claim | RefusedIntent:
        to = claim.row.upgrade.after(Began(intent=an_intent(claim.row.upgrade), deadline=None))
        return self.store.intent(claim, to, entry=DID, ledger=[], undo=undo, finishing=finishing)

    def parked(self, server: str = "a", *, at: float = 5.0) -> Row:
        """Waits in its lane for what the look at `at` seconds from now will say."""
        claim = self.began(self.running(server))
        assert isinstance(claim, Claim)
        return self.store.commit(
            claim, waits(claim.row.upgrade, self.clock.now + at), entry=DID, due=self.clock.now + at, look=LANE
        )

    def become(self, change: Callable[[Rollout], Rollout], event: str = "changed") -> Rollout:
        was = self.store.rollout("r1")
        assert was is not None
        now = self.store.change(was, change(was), entry=Entry(event=event, actor="test"))
        assert now is not None
        return now


def an_intent(u: Upgrade) -> Intent:
    return Intent(
        step=u.step,
        attempt=u.attempt(u.step),
        rung=0,
        token=f"{u.server}-{u.step}",
        name="co-1",
        at=max(START, u.retain_until or 0.0),
        params={"k": [1]},
    )


def waits(u: Upgrade, at: float) -> Upgrade:
    return u.after(Waits(wait=Waiting(reason="image", at=at, observe=Observe(kind="image", lane=LANE, ids=("i1",)))))


@pytest.fixture(params=["memory", "redis"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    clock = Clock()
    if request.param == "memory":
        yield Site(MemoryStore(clock), clock)
        return
    store = a_redis_store(request.getfixturevalue("valkey_url"), clock)
    yield Site(store, clock)
    store.close()


def a_redis_store(url: str, clock: Clock | None = None) -> RedisStore:
    return RedisStore(url, namespace=uuid.uuid4().hex[:12], clock=clock)


@pytest.fixture
def redis_site(valkey_url: str) -> Iterator[Site]:
    clock = Clock()
    store = a_redis_store(valkey_url, clock)
    yield Site(store, clock)
    store.close()


def spoil(site: Site, what: str) -> None:
    """As after an edit by hand, a lost key or a fault of ours: of r1's server a, unless it says otherwise."""
    if isinstance(site.store, MemoryStore):
        _spoil_memory(site.store, what)
        return
    assert isinstance(site.store, RedisStore)
    raw, prefix = site.store._redis, site.store._prefix
    match what:
        case "no agenda":
            raw.zrem(f"{prefix}due", "r1/a")
            raw.zrem(f"{prefix}look:{LANE}", "r1/a")
        case "both agendas":
            raw.zadd(f"{prefix}due", {"r1/a": START})
        case "due at rest":
            raw.zadd(f"{prefix}due", {"r1/a": START})
        case "another lane":
            raw.zadd(f"{prefix}look:other", {"r1/a": START})
            raw.sadd(f"{prefix}lanes", "other")
        case "counters":
            raw.hset(f"{prefix}cnt:r1", mapping={"running": 7, "held": 1})
            raw.hset(f"{prefix}fly:r1", "y", 3)
        case "locks":
            raw.delete(f"{prefix}lock:lock/a", f"{prefix}locks:r1")
        case "no record":
            raw.zadd(f"{prefix}due", {"r1/nobody": START})


def _spoil_memory(store: MemoryStore, what: str) -> None:
    who = ("r1", "a")
    match what:
        case "no agenda":
            store._due.pop(who, None)
            store._look.pop(LANE, None)
        case "both agendas" | "due at rest":
            store._due[who] = START
        case "another lane":
            store._look["other"] = {who: START}
        case "counters":
            store._rollouts["r1"].counts |= {"running": 7, "held": 1}
            store._rollouts["r1"].domains["y"] = 3
        case "locks":
            del store._locks["lock/a"]
        case "no record":
            store._due["r1", "nobody"] = START


# -- creation and locks ------------------------------------------------------------------------------------------------


def test_a_created_rollout_is_there_with_its_upgrades_and_locks(site: Site) -> None:
    created = site.create()
    assert created == site.rollout == site.store.rollout("r1")
    assert [row.upgrade.server for row in site.store.rows("r1")] == ["a", "b", "c"]
    assert site.store.rows("r1", ["c", "a", "nobody"])[0].upgrade == Upgrade(rollout="r1", server="a", wave=0)
    assert site.store.owner_of("lock/b") == "r1"
    assert site.store.tally("r1").by_state == {"pending": 3}
    assert site.store.next_due() is None


def test_a_rollout_may_be_created_with_upgrades_that_stand_anywhere(site: Site) -> None:
    """As one is that was told from the world alone."""
    site.names = ("a", "b", "c", "d")
    rollout = replace(site.create("other"), id="r1", state="paused")
    at = site.clock.now
    going = Upgrade(rollout="r1", server="a", wave=0, domain="x").after(Admitted(at=at))
    done = replace(going, server="b", domain="y", state="upgraded", step="retire", retain_until=at + 500)
    held = replace(going, server="c").after(Held(why="it is in no pool"))
    site.store.create(rollout, [going, done, held, Upgrade(rollout="r1", server="d", wave=0)], locks={"l": "a"})
    assert site.store.tally("r1").by_state == {"held": 1, "pending": 1, "running": 1, "upgraded": 1}
    assert [site.row(name).upgrade for name in "abc"] == [going, done, held]
    assert site.store.next_due() == at + 10
    site.clock.now += 10
    assert site.store.due(limit=9) == [("r1", "a")]
    assert site.issue("a") == 1
    assert isinstance(site.take("a"), Claim)
    site.clock.now += 490
    assert ("r1", "b") in site.store.due(limit=9)
    running = site.store.change(rollout, replace(rollout, state="running"), entry=DID)
    assert running is not None
    d = site.row("d").upgrade.after(Admitted(at=at))
    admit = partial(site.store.admit, "r1", "d", to=d, wave=0, entry=DID)
    assert not admit(limit=2, domain=""), "those that were there count"
    assert not admit(limit=9, domain="z"), "and so do their failure domains"
    assert admit(limit=9, domain="x")


def test_a_document_that_was_forgotten_may_be_put_anew(site: Site) -> None:
    assert site.store.put_document("spec", "r1", {"n": 1})
    assert not site.store.put_document("spec", "r1", {"n": 2})
    assert site.store.document("spec", "r1") == {"n": 1}
    site.store.forget_document("spec", "r1")
    site.store.forget_document("spec", "r1")
    assert site.store.document("spec", "r1") is None
    site.store.put_document("spec", "r1", {"n": 2})
    assert site.store.document("spec", "r1") == {"n": 2}


def test_creating_again_returns_what_is_there(site: Site) -> None:
    site.create()
    site.admit("a")
    later = site.become(lambda r: replace(r, why="moved on"))
    assert site.create() == later
    assert site.row("a").upgrade.state == "running"
    assert len(site.store.rollouts()) == 1


def test_a_server_of_another_rollout_is_refused_by_its_name_and_nothing_is_created(site: Site) -> None:
    site.names = ("a", "b")
    site.create("r1")
    site.names = ("b", "c")
    with pytest.raises(Locked, match=r"b belongs to rollout r1") as refused:
        site.create("r2")
    assert "changeover show r1" in str(refused.value)
    assert site.store.rollout("r2") is None
    assert site.store.owner_of("lock/c") is None
    assert [r.id for r in site.store.rollouts()] == ["r1"]


def test_of_many_creations_over_the_same_servers_one_wins(site: Site) -> None:
    names = tuple(f"s{i:03}" for i in range(120))

    def create(n: int) -> bool:
        mine = Site(site.store, site.clock, names if n % 2 else names[::-1])
        try:
            mine.create(f"r{n}")
        except Locked:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(create, range(6))) == 1
    (winner,) = site.store.rollouts()
    assert {site.store.owner_of(f"lock/{name}") for name in names} == {winner.id}


def test_a_closed_rollout_gives_its_locks_back(site: Site) -> None:
    site.names = tuple(f"s{i:03}" for i in range(200))
    site.create("r1")
    site.become(lambda r: replace(r, state="aborted", closed=True))
    assert site.store.owner_of("lock/s000") is None
    assert site.store.open_rollouts() == []
    assert site.create("r2").id == "r2"
    assert site.store.owner_of("lock/s199") == "r2"


def test_rollouts_come_newest_first(site: Site) -> None:
    for n in range(3):
        site.clock.now += 1
        site.names = (f"s{n}",)
        site.create(f"r{n}")
    assert [r.id for r in site.store.rollouts()] == ["r2", "r1", "r0"]
    assert [r.id for r in site.store.open_rollouts()] == ["r2", "r1", "r0"]


def test_an_id_that_would_break_a_key_is_refused(site: Site) -> None:
    for id in ("", "a/b", "a:b", "a\nb", "../x"):
        with pytest.raises(BadInput):
            site.create(id)


def test_a_creation_whose_maker_died_is_invisible_and_can_be_completed(
    redis_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, store = redis_site, cast(RedisStore, redis_site.store)
    site.names = tuple(f"s{i:03}" for i in range(120))
    whole = RedisStore._run
    died = threading.Event()

    def run(self: RedisStore, name: str, arguments: Any, *documents: bytes) -> Any:
        if name == "create_rows" and arguments["servers"][0]["server"] == "s050":
            died.set()
            raise KeyboardInterrupt
        return whole(self, name, arguments, *documents)

    with monkeypatch.context() as patched:
        patched.setattr(RedisStore, "_run", run)
        with pytest.raises(KeyboardInterrupt):
            site.create("r1")
    assert died.is_set()
    assert store.rollout("r1") is None
    assert store.rollouts() == store.open_rollouts() == []
    assert store.owner_of("lock/s000") == "r1"
    with pytest.raises(Locked, match="r1"):
        Site(store, site.clock, ("s000",)).create("r2")
    assert site.create("r1") == site.rollout
    assert len(store.rows("r1")) == 120
    assert store.tally("r1").by_state == {"pending": 120}


def test_locks_of_a_creation_that_was_given_up_are_free_after_a_while(
    redis_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = redis_site
    whole = RedisStore._run

    def run(self: RedisStore, name: str, arguments: Any, *documents: bytes) -> Any:
        if name == "create_end":
            raise KeyboardInterrupt
        return whole(self, name, arguments, *documents)

    with monkeypatch.context() as patched:
        patched.setattr(RedisStore, "_run", run)
        with pytest.raises(KeyboardInterrupt):
            site.create("r1")
    site.clock.now += 61
    assert site.store.owner_of("lock/a") is None
    assert site.create("r2").id == "r2"
    with pytest.raises(Locked, match="r2"):
        site.create("r1")
    assert site.store.owner_of("lock/a") == "r2"


def test_no_version_is_given_twice_though_the_last_second_was_lost(site: Site) -> None:
    """Of a record by every way in which it changes, and of its rollout."""
    site.create()
    site.running()
    kept = keep(site.store)
    given: set[int] = set()
    for _ in range(3):
        bring_back(site.store, kept)
        site.clock.now += 0.5
        claim = site.claim()
        after = site.began(claim)
        assert isinstance(after, Claim)
        site.store.release(after)
        row = site.store.turn(site.row(), site.row().upgrade, entry=DID, due=START)
        assert row is not None
        assert site.issue() is not None
        sent = site.row()
        was = site.become(lambda r: replace(r, wave=0))
        told = site.store.turn(sent, sent.upgrade, entry=DID, due=START, failure="after", stop="hurt")
        stopped = site.store.rollout("r1")
        assert told is not None
        assert stopped is not None
        versions = {after.version, row.version, sent.version, told.version, was.version, stopped.version}
        assert not versions & given
        given |= versions


# -- the rollout -------------------------------------------------------------------------------------------------------


def test_a_change_from_an_older_version_is_refused(site: Site) -> None:
    was = site.create()
    entry = Entry(event="paused", actor="anna")
    now = site.store.change(was, paused(was, why="lunch", now=START), entry=entry)
    assert now is not None
    assert now == replace(paused(was, why="lunch", now=START), version=now.version)
    assert now.version > was.version
    assert site.store.rollout("r1") == now
    assert site.store.change(was, replace(was, wave=1), entry=entry) is None
    assert site.store.rollout("r1") == now


def test_a_stop_is_not_lost_to_a_change_that_had_not_seen_it(site: Site) -> None:
    was = site.create()
    claim = site.running()
    site.store.commit(
        claim, claim.row.upgrade.after(Held(why="x")), entry=DID, due=None, failure="after", stop="a failed"
    )
    stopped = site.store.rollout("r1")
    assert stopped is not None
    assert stopped.stop == "a failed"
    assert site.store.change(was, replace(was, wave=1), entry=DID) is None
    assert site.become(lambda r: replace(r, stop="")).stop == ""
    again = site.store.rollout("r1")
    assert again is not None
    assert again.stop == ""


def test_the_first_reason_to_stop_stays(site: Site) -> None:
    site.create()
    for server in ("a", "b"):
        claim = site.running(server) if server == "a" else None
        if claim is not None:
            second = site.admit("b")
            assert second
            site.store.commit(claim, claim.row.upgrade.after(Held(why="x")), entry=DID, due=None, stop="first")
        else:
            row = site.row("b")
            site.store.turn(row, row.upgrade.after(Held(why="x")), entry=DID, due=None, stop="second")
    now = site.store.rollout("r1")
    assert now is not None
    assert now.stop == "first"


def test_frozen_says_why_and_by_whom(site: Site) -> None:
    site.create()
    assert site.store.frozen() is None
    site.store.freeze(True, actor="anna", reason="fire")
    assert site.store.beside("r1")[1] == site.store.frozen() == "fire (by anna)"
    site.store.freeze(False, actor="anna")
    assert site.store.frozen() is None
    assert [e.event for e in site.store.events("r1")] == ["created", "frozen", "unfrozen"]
    assert site.store.beside("r1") == (site.store.last_event("r1"), None, [])


# -- admission ---------------------------------------------------------------------------------------------------------


def test_an_admitted_server_is_due_at_once(site: Site) -> None:
    site.create()
    assert site.admit("a")
    assert site.store.due(limit=10) == [("r1", "a")]
    assert site.row("a").entry == 1
    assert site.store.tally("r1").by_state == {"pending": 2, "running": 1}
    assert not site.store.admit("r1", "a", to=site.row("a").upgrade, limit=9, wave=0, domain="", entry=DID)


@pytest.mark.parametrize(
    "why",
    ["frozen", "paused", "awaiting_approval", "awaiting_window", "stopped", "aborting", "wave", "limit", "unknown"],
)
def test_nothing_is_admitted(site: Site, why: str) -> None:
    site.create()
    wave, limit, server = 0, 5, "a"
    if why == "frozen":
        site.store.freeze(True, actor="anna")
    elif why == "paused":
        site.become(lambda r: paused(r, why="x", now=START))
    elif why in ("awaiting_approval", "awaiting_window"):
        site.become(lambda r: replace(r, state=cast(Any, why)))
    elif why == "stopped":
        site.become(lambda r: replace(r, stop="x"))
    elif why == "aborting":
        site.become(lambda r: aborting(r, why="x"))
    elif why == "wave":
        wave = 1
    elif why == "limit":
        assert site.admit("b")
        limit = 1
    if why == "unknown":
        to = Upgrade(rollout="r1", server="z", wave=0).after(Admitted(at=START))
        assert not site.store.admit("r1", "z", to=to, limit=5, wave=0, domain="", entry=DID)
    else:
        assert not site.admit(server, limit=limit, wave=wave)
        assert site.row("a").upgrade.state == "pending"
        assert site.row("a").version == 0


def test_one_failure_domain_at_a_time(site: Site) -> None:
    site.create(domains=("x", "y", "x"))
    assert site.admit("a", domain="x")
    assert not site.admit("b", domain="y")
    assert site.admit("c", domain="x")
    for server in ("a", "c"):
        row = site.row(server)
        assert site.store.turn(row, row.upgrade.after(TurnedBack(why="x", at=START, asked=False)), entry=DID, due=None)
    assert site.admit("b", domain="y")


def test_a_held_server_counts_as_in_flight(site: Site) -> None:
    site.create(domains=("x", "y", ""))
    assert site.admit("a", domain="x")
    row = site.row("a")
    assert site.store.turn(row, row.upgrade.after(Held(why="?")), entry=DID, due=None)
    assert not site.admit("b", domain="y")
    assert not site.admit("c", limit=1)


def test_any_number_of_coordinators_never_overshoot(site: Site) -> None:
    site.names = tuple(f"s{i:02}" for i in range(40))
    site.create()

    def admit(n: int) -> bool:
        name = site.names[n % 40]
        return site.admit(name, limit=7, at=Upgrade(rollout="r1", server=name, wave=0)) is not None

    with ThreadPoolExecutor(20) as pool:
        admitted = sum(pool.map(admit, range(80)))
    assert admitted == 7
    assert site.store.tally("r1").by_state == {"pending": 33, "running": 7}
    assert sum(row.upgrade.state == "running" for row in site.store.rows("r1")) == 7


def test_an_admission_decided_before_a_retry_does_not_bring_old_tokens_back(site: Site) -> None:
    site.create()
    old = site.row("a").upgrade
    claim = site.running()
    began = site.began(claim)
    assert isinstance(began, Claim)
    back = began.row.upgrade.after(TurnedBack(why="x", at=START, asked=False)).after(UndoBegan(deadline=None))
    back = back.after(Undone(at=START))
    row = site.store.commit(began, back, entry=DID, due=None)
    retried = site.store.turn(row, back.after(Released(at=START)), entry=DID, due=None)
    assert retried is not None
    assert retried.upgrade.attempts == {"create_image": 1, "drain_old": 1}
    assert not site.admit("a", at=old)
    assert site.admit("a")
    assert site.row("a").upgrade.attempts == {"create_image": 1, "drain_old": 1}


# -- issue and claim ---------------------------------------------------------------------------------------------------


def test_each_new_chain_has_a_new_epoch_and_is_due_again_after_its_grace(site: Site) -> None:
    site.create()
    site.admit()
    assert site.issue(grace=10) == 1
    assert site.store.due(limit=10) == []
    assert site.store.next_due() == START + 10
    site.take()
    site.clock.now += 100
    assert site.issue(grace=30) == 2
    assert site.store.next_due() == START + 130


def test_while_a_message_is_out_that_nobody_took_it_is_sent_again_under_its_epoch(site: Site) -> None:
    site.create()
    site.admit()
    assert site.issue(grace=10) == 1
    assert site.issue(grace=20) == 1
    assert site.store.next_due() == START + 20
    assert site.store.counts().resent == 1
    row = site.row()
    assert site.store.turn(row, row.upgrade.after(Stumbled(why="turned", at=START)), entry=DID, due=START)
    assert site.issue() == 2


def test_what_nobody_takes_for_an_hour_is_sent_again_a_few_times_only(site: Site) -> None:
    site.create()
    site.admit()
    gaps, end = [], START + 3600
    while site.clock.now < end:
        assert site.issue(grace=5) == 1
        due = site.store.next_due()
        assert due is not None
        gaps.append(due - site.clock.now)
        site.clock.now = due
    assert gaps[:6] == [5, 5, 10, 20, 40, 80] and max(gaps) == 300 and len(gaps) < 20
    site.take()
    site.clock.now += 1000
    assert site.issue(grace=5) == 2
    assert site.store.next_due() == site.clock.now + 300, "while messages wait for an hour, the next one may as well"


def test_of_many_that_saw_the_same_one_sends(site: Site) -> None:
    site.create()
    site.admit()
    version = site.row().version

    def issue(n: int) -> int | None:
        return site.store.issue("r1", "a", version=version, grace=9)

    with ThreadPoolExecutor(8) as pool:
        assert len([epoch for epoch in pool.map(issue, range(16)) if epoch is not None]) == 1


def test_what_is_leased_is_not_sent_but_due_when_the_lease_ends(site: Site) -> None:
    site.create()
    claim = site.running(lease=60)
    assert site.store.issue("r1", "a", version=claim.version, grace=1) is None
    assert site.store.next_due() == START + 60
    site.clock.now += 60
    assert site.store.due(limit=1) == [("r1", "a")]
    assert site.issue() == 2


def test_what_is_at_rest_is_never_sent(site: Site) -> None:
    site.create()
    assert site.issue("a") is None
    site.admit("b")
    row = site.row("b")
    assert site.store.turn(row, row.upgrade.after(Held(why="?")), entry=DID, due=START)
    assert site.issue("b") is None
    assert site.store.issue("r1", "z", version=0, grace=1) is None
    assert site.store.next_due() is None


def test_a_claim_is_a_lease_that_comes_due_at_its_end(site: Site) -> None:
    site.create()
    claim = site.running(lease=30)
    row = site.row()
    assert (row.owner, row.lease_until, row.fence) == ("w1", START + 30, claim.fence)
    assert claim.row == row
    assert site.store.next_due() == START + 30
    assert site.store.due_lanes() == []
    site.clock.now += 30
    assert (site.row().owner, site.row().lease_until) == ("", 0.0)


def test_messages_that_do_not_apply_are_ignored_with_the_reason(site: Site) -> None:
    site.create()

    def take(server: str = "a", **other: Any) -> Any:
        asked = {"epoch": 1, "step": "create_image", "direction": "forward", "owner": "w2", "lease": 60, **other}
        return site.store.claim("r1", server, **asked)

    assert take() == Ignored(reason="settled")
    assert take("z") == Ignored(reason="unknown")
    site.running()
    assert take() == Ignored(reason="leased")
    assert take(epoch=0) == Ignored(reason="stale epoch")
    assert take(epoch=2) == Ignored(reason="stale epoch")
    assert take(step="swap") == Ignored(reason="another step")
    assert take(direction="undo") == Ignored(reason="another step")
    ignored = {"another step": 2, "leased": 1, "settled": 1, "stale epoch": 2, "unknown": 1}
    assert site.store.counts() == Counts(ignored=ignored)
    before = site.row()
    assert before.owner == "w1"
    row = site.store.turn(before, before.upgrade.after(Held(why="?")), entry=DID, due=None)
    assert row is not None
    site.clock.now += 60
    assert take() == Ignored(reason="settled")


def test_a_later_claim_has_a_greater_fence_and_fences_the_earlier(site: Site) -> None:
    site.create()
    first = site.running(lease=5)
    site.clock.now += 5
    second = site.claim(owner="w2")
    assert second.fence > first.fence
    to = second.row.upgrade.after(Stumbled(why="x", at=START))
    with pytest.raises(Fenced):
        site.store.commit(first, to, entry=DID, due=START)
    with pytest.raises(Fenced, match="w2"):
        site.store.renew(first, lease=60)
    site.store.release(first)
    assert site.row().owner == "w2"
    assert site.store.renew(second, lease=60).fence == second.fence


def test_the_same_owner_may_claim_again_and_its_older_claim_is_fenced(site: Site) -> None:
    site.create()
    first = site.running()
    second = site.claim(owner="w1")
    assert second.fence > first.fence
    with pytest.raises(Fenced):
        site.began(first)
    assert isinstance(site.began(second), Claim)


def test_a_fence_rises_though_the_clock_goes_back(site: Site) -> None:
    site.create()
    first = site.running()
    site.clock.now -= 1000
    assert site.claim().fence == first.fence + 1


def test_of_many_workers_one_gets_the_claim(site: Site) -> None:
    site.create()
    site.admit()
    site.issue()
    with ThreadPoolExecutor(12) as pool:
        taken = list(pool.map(lambda n: site.take(owner=f"w{n}", epoch=1), range(24)))
    assert sum(isinstance(claim, Claim) for claim in taken) == 1


# -- with a claim ------------------------------------------------------------------------------------------------------


def test_a_renewed_lease_lasts_from_now(site: Site) -> None:
    site.create()
    claim = site.running(lease=10)
    site.clock.now += 9
    renewed = site.store.renew(claim, lease=10)
    assert renewed.lease_until == site.row().lease_until == START + 19
    assert site.store.next_due() == START + 19


def test_nothing_of_a_lease_that_ended_is_accepted(site: Site) -> None:
    site.create()
    claim = site.running(lease=10)
    site.clock.now += 10
    before = site.row()
    for call in (
        lambda: site.store.renew(claim, lease=10),
        lambda: site.began(claim),
        lambda: site.store.commit(claim, claim.row.upgrade, entry=DID, due=START, failure="after", stop="x"),
    ):
        with pytest.raises(Fenced, match="ended"):
            call()
    assert site.row() == before
    assert site.store.tally("r1").failed_after_swap == 0
    assert cast(Rollout, site.store.rollout("r1")).stop == ""


def test_another_owner_with_the_same_fence_is_fenced(site: Site) -> None:
    site.create()
    claim = site.running()
    with pytest.raises(Fenced):
        site.store.commit(replace(claim, owner="w2"), claim.row.upgrade, entry=DID, due=START)


def test_an_intent_is_stored_and_the_claim_goes_on(site: Site) -> None:
    site.create()
    claim = site.running()
    item = LedgerItem(key="image/1", kind="image", server="a", state="intended")
    to = claim.row.upgrade.after(Began(intent=an_intent(claim.row.upgrade), deadline=START + 60))
    after = site.store.intent(claim, to, entry=DID, ledger=[item], undo=False, finishing=False)
    assert isinstance(after, Claim)
    assert site.row() == after.row
    assert site.row().upgrade == to
    assert after.version > claim.version
    assert after.row.entry == 2
    assert site.store.ledger("r1") == [item]
    assert site.store.next_due() == START + 60
    with pytest.raises(Fenced):
        site.began(claim)


@pytest.mark.parametrize(
    ("how", "reason", "finishing", "undo"),
    [
        ("freeze", "frozen", "frozen", "frozen"),
        ("pause", "paused", "paused", None),
        ("abort", "aborting", None, None),
        ("stop", "stopped", "stopped", None),
        ("roll back", "paused", "paused", None),
        ("end", "paused", "paused", None),
        ("bake", None, None, None),
        ("ask", None, None, None),
        ("shut", None, None, None),
    ],
)
def test_an_intent_is_refused(
    site: Site, how: str, reason: str | None, finishing: str | None, undo: str | None
) -> None:
    site.create()
    claim = site.running()
    if how == "freeze":
        site.store.freeze(True, actor="anna")
    elif how == "stop":
        site.admit("b")
        row = site.row("b")
        site.store.turn(
            row, row.upgrade.after(Held(why="?")), entry=DID, due=None, failure="after", stop="b hurt users"
        )
    else:
        states = {
            "pause": "paused",
            "abort": "aborting",
            "roll back": "rolling_back",
            "end": "succeeded",
            "bake": "baking",
            "ask": "awaiting_approval",
            "shut": "awaiting_window",
        }
        site.become(lambda r: replace(r, state=cast(Any, states[how])))

    for kwargs, expected in (({}, reason), ({"finishing": True}, finishing), ({"undo": True}, undo)):
        before = site.row()
        answer = site.began(claim, **kwargs)
        if expected is None:
            assert isinstance(answer, Claim)
            return
        assert answer == RefusedIntent(reason=cast(Any, expected))
        assert site.row() == before
    assert site.store.renew(claim, lease=60)


def test_a_commit_gives_the_lease_back_and_names_the_next_time(site: Site) -> None:
    site.create()
    claim = site.began(site.running())
    assert isinstance(claim, Claim)
    to = claim.row.upgrade.after(Finished(result={"id": "ami-1"}, at=START))
    item = LedgerItem(key="image/1", kind="image", server="a", state="live", id="ami-1", until=START + 3600)
    row = site.store.commit(claim, to, entry=DID, due=START + 9, ledger=[item], locks=["lock/new-a"])
    assert row == site.row()
    assert (row.upgrade, row.owner, row.lease_until, row.entry) == (to, "", 0.0, 3)
    assert site.store.next_due() == START + 9
    assert site.store.ledger("r1") == [item]
    assert site.store.owner_of("lock/new-a") == "r1"
    with pytest.raises(Fenced):
        site.store.commit(claim, to, entry=DID, due=START)
    with pytest.raises(Fenced):
        site.store.renew(claim, lease=1)


def test_the_next_step_of_a_chain_is_claimed_under_the_same_epoch(site: Site) -> None:
    site.create()
    claim = site.began(site.running())
    assert isinstance(claim, Claim)
    site.store.commit(claim, claim.row.upgrade.after(Finished(result={}, at=START)), entry=DID, due=START + 9)
    following = site.claim(owner="w2")
    assert following.row.upgrade.step == "provision"
    assert following.row.epoch == 1


def test_a_commit_takes_no_lock_of_another_rollout(site: Site) -> None:
    site.create()
    Site(site.store, site.clock, ("z",)).create("r2")
    claim = site.running()
    before = site.row()
    with pytest.raises(Locked, match="r2"):
        site.store.commit(claim, claim.row.upgrade, entry=DID, due=START, locks=["lock/new", "lock/z"])
    assert site.row() == before
    assert site.store.owner_of("lock/new") is None


def test_failures_are_counted_with_the_commit(site: Site) -> None:
    site.create()
    claim = site.running()
    site.store.commit(claim, claim.row.upgrade.after(Held(why="x")), entry=DID, due=None, failure="before")
    site.admit("b")
    row = site.row("b")
    assert site.store.turn(row, row.upgrade.after(Held(why="x")), entry=DID, due=None, failure="after", stop="b")
    tally = site.store.tally("r1")
    assert (tally.failed_before_swap, tally.failed_after_swap) == (1, 1)
    assert tally.by_state == {"held": 2, "pending": 1}


def test_what_is_not_at_rest_cannot_be_left_out_of_every_agenda(site: Site) -> None:
    site.create()
    claim = site.running()
    before = site.row()
    with pytest.raises(ValueError, match="due time"):
        site.store.commit(claim, claim.row.upgrade, entry=DID, due=None)
    with pytest.raises(ValueError, match="due time"):
        site.store.turn(before, before.upgrade, entry=DID, due=None)
    with pytest.raises(ValueError, match="nothing can begin"):
        site.store.intent(claim, before.upgrade.after(Held(why="?")), entry=DID, ledger=[], undo=True, finishing=False)
    assert site.row() == before


def test_a_released_lease_is_due_now_and_releasing_late_harms_nobody(site: Site) -> None:
    site.create()
    claim = site.running()
    site.store.release(claim)
    assert site.store.due(limit=9) == [("r1", "a")]
    assert site.row().owner == ""
    site.store.release(claim)
    other = site.claim(owner="w2")
    site.store.release(claim)
    assert site.row().owner == "w2"
    assert site.store.renew(other, lease=60)
    site.store.release(replace(claim, server="z"))


def test_a_reaped_workers_leases_are_given_back_at_once(site: Site) -> None:
    site.names = tuple(f"s{i:02}" for i in range(70))
    site.create()
    for i, name in enumerate(site.names[:64]):
        assert site.admit(name, limit=99)
        site.issue(name)
        site.claim(name, owner=f"host:1:{i}" if i < 60 else f"host:11:{i}")
    assert site.store.due(limit=99) == []
    assert site.store.release_owner("host:1:") == 60
    assert len(site.store.due(limit=99)) == 60
    assert site.row("s63").owner == "host:11:63"
    assert site.store.release_owner("host:1:") == 0
    assert site.claim("s00", owner="host:2:1").owner == "host:2:1"
    assert site.store.release_owner("host:1:") == 0


# -- leases that are lost ----------------------------------------------------------------------------------------------


def lose(site: Site, owner: str, how: str) -> None:
    """A claim of that owner ends without being given back."""
    while site.issue() is None:
        site.clock.now += 1  # due some moments later
    site.claim(owner=owner, lease=5)
    if how == "its worker was reaped":
        site.store.release_owner(owner.partition(":")[0], died=True)
    else:
        site.clock.now += 6


@pytest.mark.parametrize("how", ["it ended", "its worker was reaped"])
def test_leases_that_are_lost_in_a_row_are_remembered_until_a_change_is_committed(site: Site, how: str) -> None:
    site.create()
    site.admit()
    site.clock.now += 0.001234  # the microseconds of a claim are as good as chance
    for number in range(8):
        lose(site, f"w{number}/7:x", how)
    if how == "it ended":
        assert site.issue() is None
    due = site.store.next_due()
    assert due is not None and 0 < due - site.clock.now <= 2, "not at once, nor with all others"
    site.clock.now += 2
    site.issue()
    claim = site.claim(owner="w9/7:x")
    assert claim.lost == tuple(f"w{number}/7" for number in range(6))
    assert site.store.counts().lost == 8
    claim = site.began(claim)
    assert isinstance(claim, Claim) and len(claim.lost) == 6, "an intent is no end"
    site.store.commit(claim, waits(claim.row.upgrade, site.clock.now), entry=DID, due=site.clock.now, look=LANE)
    site.issue()
    assert site.claim().lost == ()


def test_a_lease_that_is_given_back_or_freed_for_a_worker_that_was_told_to_end_is_not_lost(site: Site) -> None:
    site.create()
    site.store.release(site.running(owner="w1/1:x"))
    site.issue()
    site.claim(owner="w2/1:x")
    site.store.release_owner("w2/1:")
    site.issue()
    assert site.claim(owner="w3/1:x").lost == ()
    assert site.store.counts() == Counts()


def test_what_users_saw_is_told_as_it_was_last_counted(site: Site) -> None:
    site.create()
    assert site.store.users("r1") is None
    for counted in (Users(requests=7, failed=0, at=START), Users(requests=9_000_000_000, failed=2, at=START + 1.5)):
        site.store.put_users("r1", counted)
        assert site.store.users("r1") == counted
    assert site.store.users("r2") is None


def test_one_that_takes_over_by_the_message_alone_knows_of_the_loss_as_well(site: Site) -> None:
    site.create()
    site.running(owner="w1/1:x", lease=5)
    site.clock.now += 6
    assert site.claim(owner="w2/1:x").lost == ("w1/1",)


def test_one_that_gives_back_while_its_call_may_still_take_effect_counts_as_lost(site: Site) -> None:
    site.create()
    site.store.release(site.running(owner="w1/1:x"), died=True)
    site.issue()
    overtaken = site.claim(owner="w2/1:x")
    row = site.row()
    assert site.store.turn(row, row.upgrade.after(Stumbled(why="x", at=START)), entry=DID, due=START) is not None
    site.store.release(overtaken, died=True)
    taken = site.store.take(site.row(), owner="w3/1:p", lease=5)
    assert taken is not None and taken.lost == ("w1/1", "w2/1")
    site.clock.now += 6
    site.store.release(taken, died=True)
    again = site.store.take(site.row(), owner="w4/1:p", lease=5)
    assert again is not None and again.lost == ("w1/1", "w2/1", "w3/1")


def test_a_word_that_leaves_it_on_its_way_does_not_end_the_memory_of_who_was_lost(site: Site) -> None:
    """As a pause and a resume: a call of the lost one may still take effect."""
    site.create()
    site.admit()
    site.issue()
    site.claim(owner="w1/1:x", lease=5)
    site.clock.now += 6  # nobody has noticed yet
    for _ in range(2):
        row = site.row()
        assert site.store.turn(row, row.upgrade.after(Stumbled(why="x", at=START)), entry=DID, due=START) is not None
    site.issue()
    assert site.claim().lost == ("w1/1",)


@pytest.mark.parametrize("held", [True, False])
def test_a_person_who_sends_it_on_a_new_way_ends_the_memory_of_who_was_lost(site: Site, held: bool) -> None:
    site.create()
    site.began(site.running(owner="w1/1:x", lease=5))
    site.clock.now += 6
    back = TurnedBack(why="x", at=START, asked=True)
    for event in (Held(why="x"), Released(at=START)) if held else (back,):
        row = site.row()
        to = row.upgrade.after(event)
        due = None if to.state == "held" else START
        assert site.store.turn(row, to, entry=DID, due=due) is not None
    row = site.row()
    taken = site.store.take(row, owner="w2/1:p", lease=5)
    assert taken is not None and taken.lost == ()


# -- taking what is not due --------------------------------------------------------------------------------------------


def test_a_record_is_taken_as_it_was_seen_or_not_at_all(site: Site) -> None:
    site.create()
    row = site.row()
    claim = site.store.take(row, owner="w1/1:p", lease=60)
    assert claim is not None and claim.row.upgrade.state == "pending" and site.row().owner == "w1/1:p"
    assert site.store.next_due() is None, "it rests, and its lease makes nothing due"
    assert site.store.renew(claim, lease=60) and site.store.next_due() is None
    assert site.store.take(site.row(), owner="w2/1:p", lease=60) is None
    site.store.release(claim)
    assert site.store.next_due() is None
    site.admit()
    assert site.store.take(row, owner="w2/1:p", lease=60) is None, "it has changed since"
    site.store.freeze(True, actor="x")
    assert site.store.take(site.row(), owner="w2/1:p", lease=60) is None


def test_what_waits_is_given_back_to_its_own_agenda(site: Site) -> None:
    site.create()
    row = site.parked(at=50)
    claim = site.store.take(row, owner="w1/1:p", lease=20)
    assert claim is not None and site.store.next_due() == START + 20
    assert site.take() == Ignored(reason="leased")
    site.store.release(claim, due=START + 50, look=LANE)
    assert site.store.next_due() == START + 50
    site.clock.now += 50
    assert site.store.due_lanes() == [LANE] and site.store.due(limit=9) == []
    taken = site.store.take(site.row(), owner="w1/1:p", lease=20)
    assert taken is not None
    kept = site.store.commit(taken, taken.row.upgrade, entry=DID, due=START + 90, look=LANE)
    assert (kept.upgrade, site.store.next_due()) == (row.upgrade, START + 90)


def test_a_change_fences_whoever_has_taken_it(site: Site) -> None:
    site.create()
    claim = site.store.take(site.row(), owner="w1/1:p", lease=60)
    assert claim is not None
    site.admit()
    with pytest.raises(Fenced):
        site.store.renew(claim, lease=60)


# -- turn --------------------------------------------------------------------------------------------------------------


def test_a_turn_fences_the_holder_and_waits_for_the_end_of_its_lease(site: Site) -> None:
    site.create()
    claim = site.began(site.running(lease=60))
    assert isinstance(claim, Claim)
    row = site.row()
    turned = site.store.turn(
        row, row.upgrade.after(TurnedBack(why="x", at=START, asked=True)), entry=DID, due=START + 1
    )
    assert turned is not None
    assert turned == site.row()
    assert turned.upgrade.direction == "undo"
    assert (turned.owner, turned.lease_until) == ("w1", START + 60)
    assert site.store.next_due() == START + 60
    with pytest.raises(Fenced, match="changed"):
        site.store.renew(claim, lease=60)
    with pytest.raises(Fenced):
        site.store.commit(claim, claim.row.upgrade, entry=DID, due=START)
    assert site.issue() is None
    site.store.release(claim)
    assert site.store.due(limit=9) == [("r1", "a")]
    assert site.issue() == 2
    assert site.claim(owner="w2").row.upgrade.direction == "undo"


def test_a_turn_changes_the_ledger_with_the_record_or_not_at_all(site: Site) -> None:
    site.create()
    row, item = site.row(), LedgerItem(key="image:1", kind="image", server="a", state="quarantined", id="img-1")
    to = row.upgrade.after(TurnedBack(why="x", at=START, asked=True))
    assert site.store.turn(row, to, entry=DID, due=None, ledger=[item]) is not None
    assert site.store.ledger("r1") == [item]
    assert site.store.turn(row, to, entry=DID, due=None, ledger=[replace(item, state="live")]) is None
    assert site.store.ledger("r1") == [item]


def test_a_turn_from_an_older_record_does_nothing(site: Site) -> None:
    site.create()
    row = site.row()
    site.admit()
    assert (
        site.store.turn(row, row.upgrade.after(TurnedBack(why="x", at=START, asked=True)), entry=DID, due=None) is None
    )
    assert site.row().upgrade.state == "running"


def test_nothing_of_a_closed_rollout_is_turned(site: Site) -> None:
    site.create()
    row = site.row()
    site.become(lambda r: replace(r, state="aborted", closed=True))
    to = row.upgrade.after(TurnedBack(why="x", at=START, asked=True))
    assert site.store.turn(row, to, entry=DID, due=None, ledger=[], failure="after", stop="x") is None
    assert site.row() == row
    closed = site.store.rollout("r1")
    assert closed is not None and closed.stop == "" and site.store.tally("r1").failed_after_swap == 0


def test_a_turn_that_wants_its_rollout_as_it_was_seen_does_nothing_once_it_is_not(site: Site) -> None:
    seen, row = site.create().version, site.row()
    to = row.upgrade.after(TurnedBack(why="x", at=START, asked=True))
    now = site.become(lambda r: replace(r, state="paused")).version
    assert site.store.turn(row, to, entry=DID, due=None, seen=seen) is None
    assert site.row() == row
    assert site.store.turn(row, to, entry=DID, due=None, seen=now) is not None


def test_a_rollout_is_not_closed_by_who_has_not_seen_that_a_server_moves_again(site: Site) -> None:
    site.create()
    row = site.row()
    row = site.store.turn(row, row.upgrade.after(TurnedBack(why="x", at=START, asked=False)), entry=DID, due=None)
    seen = site.store.rollout("r1")
    assert row is not None and seen is not None
    row = site.store.turn(row, row.upgrade.after(Released(at=START)), entry=DID, due=None)
    assert row is not None and row.upgrade.state == "pending"
    assert site.store.change(seen, replace(seen, closed=True), entry=DID) is None
    now = site.store.rollout("r1")
    assert now is not None and not now.closed
    assert site.store.change(now, replace(now, closed=True), entry=DID) is not None


def test_a_pending_server_is_turned_back_to_rest(site: Site) -> None:
    site.create()
    row = site.row()
    turned = site.store.turn(row, row.upgrade.after(TurnedBack(why="x", at=START, asked=True)), entry=DID, due=None)
    assert turned is not None
    assert turned.upgrade.state == "rolled_back"
    assert site.store.next_due() is None
    assert site.store.tally("r1").by_state == {"pending": 2, "rolled_back": 1}


# -- waits -------------------------------------------------------------------------------------------------------------


def test_a_look_is_due_in_its_lane_only_and_postponed_for_others(site: Site) -> None:
    site.create()
    site.parked("a", at=5)
    site.parked("b", at=3)
    assert site.store.next_due() == START + 3
    assert site.store.due_lanes() == []
    site.clock.now += 5
    assert site.store.due(limit=9) == []
    assert site.store.due_lanes() == [LANE]
    assert [row.upgrade.server for row in site.store.due_in_lane(LANE, limit=9, postpone=2)] == ["b", "a"]
    assert site.store.due_in_lane(LANE, limit=9, postpone=2) == []
    assert site.store.due_lanes() == []
    assert site.store.next_due() == START + 7
    site.clock.now += 2
    assert len(site.store.due_in_lane(LANE, limit=1, postpone=2)) == 1
    assert site.store.due_in_lane("no lane", limit=1, postpone=2) == []


def test_what_is_to_be_looked_at_again_is_due_then_if_it_still_waits_there_and_no_later_than_it_was(site: Site) -> None:
    site.create()
    for name in ("a", "b", "c"):
        site.parked(name)
    site.clock.now += 6
    assert len(site.store.due_in_lane(LANE, limit=9, postpone=15)) == 3
    left = site.claim("c")
    rows = [site.row(name) for name in ("a", "b", "c")]
    now = site.clock.now
    site.store.look_again(LANE, {("r1", "a"): now + 1, ("r1", "b"): now + 99, ("r1", "c"): now + 1, ("r1", "x"): now})
    site.store.look_again("no lane", {("r1", "a"): now})
    site.store.look_again(LANE, {})
    assert site.store.next_due() == now + 1
    site.clock.now += 2
    assert [row.upgrade.server for row in site.store.due_in_lane(LANE, limit=9, postpone=15)] == ["a"]
    assert [site.row(name) for name in ("a", "b", "c")] == rows, "no record changes"
    site.clock.now = now + 15
    assert [row.upgrade.server for row in site.store.due_in_lane(LANE, limit=9, postpone=15)] == ["b"]
    assert site.store.renew(left, lease=60).owner == "w1"


def test_what_was_seen_is_stored_without_an_audit_entry(site: Site) -> None:
    site.create()
    row = site.parked()
    site.clock.now += 5
    seen = Seen(kind="image", at=site.clock.now, answers={"i1": {"state": "pending"}})
    to = row.upgrade.after(Looked(seen=seen, again=site.clock.now + 1))
    after = site.store.looked(row, to, due=site.clock.now + 1)
    assert after == site.row()
    assert after is not None
    assert after.version > row.version
    assert (after.entry, after.upgrade) == (row.entry, to)
    assert site.store.next_due() == site.clock.now + 1
    assert site.store.looked(row, to, due=START) is None


@pytest.mark.parametrize("how", ["turned", "sent", "claimed", "claimed and lost"])
def test_a_look_at_what_has_moved_on_is_dropped(site: Site, how: str) -> None:
    site.create()
    row = site.parked()
    if how == "turned":
        site.store.turn(row, row.upgrade.after(TurnedBack(why="x", at=START, asked=True)), entry=DID, due=START)
    elif how == "sent":
        site.issue()
    else:
        site.claim(lease=10)
        site.clock.now += 10 if how == "claimed and lost" else 0
    before = site.row()
    assert site.store.looked(row, row.upgrade, due=START + 1) is None
    assert site.store.wake_up(row, row.upgrade, grace=1) is None
    assert site.row() == before
    assert site.store.due_lanes() == []


def test_what_is_worth_waking_for_is_stored_and_sent_in_one(site: Site) -> None:
    site.create()
    row = site.parked()
    site.clock.now += 5
    seen = Seen(kind="image", at=site.clock.now, answers={"i1": {"state": "available"}})
    to = row.upgrade.after(Looked(seen=seen, again=site.clock.now + 1))
    woken = site.store.wake_up(row, to, grace=7)
    assert woken is not None
    assert woken == site.row()
    assert (woken.upgrade, woken.entry, woken.epoch) == (to, row.entry, row.epoch + 1)
    assert woken.version > row.version
    assert (site.store.due_lanes(), site.store.next_due()) == ([], site.clock.now + 7)
    assert site.store.wake_up(row, to, grace=7) is None
    assert site.store.wake_up(woken, to, grace=7) is None
    assert site.claim().row.epoch == woken.epoch


def test_what_is_sent_while_messages_wait_long_is_given_as_long_twice(site: Site) -> None:
    site.create()
    site.admit()
    site.issue()
    site.clock.now += 30
    site.claim()  # having waited for 30 s
    site.admit("b")
    site.issue("b", grace=5)
    assert site.store.due(limit=9) == []
    site.clock.now += 59
    assert site.store.due(limit=9) == []
    site.clock.now += 2
    assert ("r1", "b") in site.store.due(limit=9)


def test_a_wait_for_time_is_due_without_a_lane(site: Site) -> None:
    site.create()
    claim = site.running()
    site.store.commit(claim, claim.row.upgrade.after(Stumbled(why="x", at=START + 4)), entry=DID, due=START + 4)
    assert site.store.due(limit=9) == []
    site.clock.now += 4
    assert site.store.due(limit=9) == [("r1", "a")]
    assert site.store.due_lanes() == []


def test_due_comes_oldest_first_and_no_more_than_asked(site: Site) -> None:
    site.create()
    for name in ("c", "a", "b"):
        site.admit(name)
        site.clock.now += 1
    assert site.store.due(limit=2) == [("r1", "c"), ("r1", "a")]


# -- audit -------------------------------------------------------------------------------------------------------------


def test_the_audit_log_is_without_a_gap_and_folds_to_the_record(site: Site) -> None:
    site.create()
    claim = site.began(site.running())
    assert isinstance(claim, Claim)
    row = site.store.commit(claim, waits(claim.row.upgrade, START + 1), entry=DID, due=START + 1, look=LANE)
    site.store.note("r1", Entry(event="remark", actor="anna", detail={"text": "ä\n"}), server="a")
    turned = site.store.turn(row, row.upgrade.after(TurnedBack(why="x", at=START, asked=True)), entry=DID, due=START)
    assert turned is not None
    site.store.note("r1", Entry(event="remark", actor="anna"))
    paused_now = site.become(lambda r: paused(r, why="x", now=START), "paused")
    log = site.store.events("r1")
    mine = [e for e in log if e.server == "a"]
    assert [e.n for e in mine] == [1, 2, 3, 4, 5]
    assert [(e.was, e.now) for e in mine] == [
        ("pending", "running"),
        ("running", "running"),
        ("running", "waiting"),
        ("waiting", "waiting"),
        ("waiting", "running"),
    ]
    assert mine[3].detail == {"text": "ä\n"}
    assert mine[3].after == {}
    assert codec.UPGRADE.of(mine[-1].after) == site.row().upgrade
    assert site.row().entry == 5
    own = [e for e in log if not e.server]
    assert [(e.event, e.n) for e in own] == [("created", 0), ("remark", 0), ("paused", 0)]
    assert replace(codec.ROLLOUT.of(own[-1].after), version=paused_now.version) == paused_now
    assert {e.at for e in log} == {START}


def test_events_go_on_after_an_id_and_no_more_than_asked(site: Site) -> None:
    site.create()
    for n in range(5):
        site.store.note("r1", Entry(event=f"e{n}", actor="x"))
    first = site.store.events("r1", limit=3)
    rest = site.store.events("r1", after=first[-1].id)
    assert [e.event for e in (*first, *rest)] == ["created", "e0", "e1", "e2", "e3", "e4"]
    assert site.store.events("r1", after=rest[-1].id) == []
    assert site.store.events("no such") == []
    with pytest.raises(BadInput, match="nonsense"):
        site.store.events("r1", after="nonsense")


def test_events_wait_for_the_first(site: Site) -> None:
    site.create()
    last = site.store.events("r1")[-1].id
    begun = time.monotonic()
    assert site.store.events("r1", after=last, block=0.05) == []
    assert time.monotonic() - begun >= 0.04
    found: list[str] = []
    reader = threading.Thread(
        target=lambda: found.extend(e.event for e in site.store.events("r1", after=last, block=20))
    )
    reader.start()
    site.store.note("r1", Entry(event="news", actor="x"))
    reader.join(10)
    assert found == ["news"]


def test_a_note_about_nobody_is_refused(site: Site) -> None:
    site.create()
    with pytest.raises(NotFound, match="z in rollout r1"):
        site.store.note("r1", DID, server="z")
    with pytest.raises(NotFound, match="r9"):
        site.store.note("r9", DID)


def test_the_log_tells_whose_records_have_changed(site: Site) -> None:
    site.create()
    began = site.store.last_event("r1")
    assert site.store.changed("r1", after=began, limit=9) == (began, [])
    site.admit("b")
    site.admit("a")
    site.store.turn(site.row("a"), site.row().upgrade.after(Held(why="ask")), entry=DID, due=None)
    site.store.note("r1", DID)
    last = site.store.last_event("r1")
    assert site.store.changed("r1", after=began, limit=4) == (last, ["a", "b"])
    assert site.store.changed("r1", after="0", limit=5) == (last, ["a", "b"])
    assert site.store.changed("r1", after=began, limit=3) is None
    assert site.store.changed("r1", after=last, limit=0) == (last, [])
    assert site.store.changed("nobody", after="0", limit=9) == ("0", [])
    assert site.store.changed("nobody", after=last, limit=9) is None, "another log than the one that was read"
    site.store.looked(site.row("b"), site.row("b").upgrade, due=site.clock.now)
    assert site.store.changed("r1", after=last, limit=9) == (last, []), "what a look has seen is no change of state"
    with pytest.raises(BadInput):
        site.store.changed("r1", after="yesterday", limit=9)


# -- mending -----------------------------------------------------------------------------------------------------------


def waits_in_lane(site: Site) -> None:
    claim = site.take()
    assert isinstance(claim, Claim)
    wait = Waiting(reason="boots", at=site.clock.now + 5, observe=Observe(lane=LANE, kind="server", ids=("x",)))
    to = replace(claim.row.upgrade, state="waiting", wait=wait)
    site.store.commit(claim, to, entry=DID, due=site.clock.now + 5, look=LANE)


def going(site: Site) -> None:
    site.create(domains=("x", "x", "x"))
    site.admit()
    site.issue()


def mended(site: Site) -> list[str]:
    return [what for server, what in site.store.mend("r1", site.store.rows("r1"), late=600.0) if server == "a"]


def to_come(site: Site) -> tuple[Any, ...]:
    """Everything that is due by then, and where."""
    site.clock.now += 100_000
    due = site.store.due(limit=99)
    lanes = {lane: len(site.store.due_in_lane(lane, limit=99, postpone=1.0)) for lane in site.store.due_lanes()}
    site.clock.now -= 100_000
    return due, lanes


def test_nothing_is_mended_where_all_is_well(site: Site) -> None:
    going(site)
    for change in (lambda: None, lambda: waits_in_lane(site), site.issue, site.take):
        change()
        seen = site.store.last_event("r1")
        assert mended(site) == []
        assert site.store.recount("r1", [row.upgrade for row in site.store.rows("r1")], seen=seen) == []
        assert site.store.relock("r1", ["lock/a", "lock/b"]) == []
    assert site.store.reopen() in ([], ())


@pytest.mark.parametrize("where", ["due", "lane", "leased"])
def test_what_is_in_no_agenda_is_found_again(site: Site, where: str) -> None:
    going(site)
    if where == "lane":
        waits_in_lane(site)
    if where == "leased":
        site.take(lease=60.0)
    spoil(site, "no agenda")
    assert to_come(site) == ([], {})
    assert mended(site)
    assert mended(site) == []
    assert site.store.next_due() == site.clock.now + (60 if where == "leased" else 0)
    assert to_come(site) == ([("r1", "a")], {})
    site.clock.now += 61
    assert site.issue() is not None
    assert isinstance(site.take(), Claim)


def test_what_is_in_too_many_agendas_is_left_in_its_own(site: Site) -> None:
    going(site)
    spoil(site, "another lane")
    assert mended(site)
    assert to_come(site) == ([("r1", "a")], {})
    waits_in_lane(site)
    spoil(site, "both agendas")
    assert mended(site)
    assert to_come(site) == ([], {LANE: 1})
    held = site.store.turn(site.row(), site.row().upgrade.after(Held(why="ask")), entry=DID, due=None)
    assert held is not None
    spoil(site, "due at rest")
    assert mended(site)
    assert to_come(site) == ([], {})
    assert mended(site) == []


def test_counters_are_counted_anew_if_nothing_has_happened_meanwhile(site: Site) -> None:
    going(site)
    spoil(site, "counters")
    seen = site.store.last_event("r1")
    upgrades = [row.upgrade for row in site.store.rows("r1")]
    site.store.note("r1", DID)
    assert site.store.recount("r1", upgrades, seen=seen) == []
    assert site.store.tally("r1").by_state["running"] == 7
    told = site.store.recount("r1", upgrades, seen=site.store.last_event("r1"))
    assert sorted(line.partition(" ")[0] for line in told) == ["held", "running", "y"]
    assert site.store.tally("r1").by_state == {"pending": 2, "running": 1}
    assert not site.admit("b", domain="z"), "of another failure domain"
    assert site.admit("b", domain="x")


def test_locks_that_nobody_holds_are_taken_back_and_another_owner_is_told(site: Site) -> None:
    going(site)
    spoil(site, "locks")
    site.names = ("x",)
    site.store.create(
        replace(site.rollout, id="r2", waves=(("x",),)),
        [Upgrade(rollout="r2", server="x", wave=0)],
        locks={"lock/x": "x"},
    )
    assert site.store.relock("r1", ["lock/a", "lock/b", "lock/x"]) == [("lock/a", ""), ("lock/x", "r2")]
    assert [site.store.owner_of(f"lock/{name}") for name in "abx"] == ["r1", "r1", "r2"]
    closed = site.store.change(site.rollout, replace(site.rollout, closed=True), entry=DID)
    assert closed is not None
    assert [site.store.owner_of(f"lock/{name}") for name in "abx"] == [None, None, "r2"]
    assert site.store.relock("r1", ["lock/a"]) == []
    assert site.store.owner_of("lock/a") is None


def test_what_is_put_off_comes_later_and_what_has_no_record_never(site: Site) -> None:
    going(site)
    spoil(site, "no record")
    site.clock.now += 60
    assert set(site.store.due(limit=9)) == {("r1", "a"), ("r1", "nobody")}
    site.store.put_off([("r1", "a"), ("r1", "nobody"), ("r1", "b")], seconds=30.0)
    assert site.store.due(limit=9) == []
    site.clock.now += 30
    assert site.store.due(limit=9) == [("r1", "a")]


# -- the rest ----------------------------------------------------------------------------------------------------------


def test_a_document_never_changes(site: Site) -> None:
    site.store.put_document("plan", "p1", {"a": [1, None, "ä"]})
    site.store.put_document("plan", "p1", {"other": 1})
    assert site.store.document("plan", "p1") == {"a": [1, None, "ä"]}
    assert site.store.document("survey", "p1") is None


def test_a_lane_has_the_sightings_of_its_last_search_and_no_others(site: Site) -> None:
    seen = Sighting(
        lane="a/b/c",
        kind="server",
        id="srv-1",
        name="co-1",
        state="running",
        rollout="r1",
        server="a",
        first=START,
        last=START + 1.5,
        scans=2,
        pools=("web",),
    )
    image = replace(seen, kind="image", id="img-1", pools=(), quarantined_at=START)
    other = replace(seen, lane="x/y/z")
    site.store.sighted("a/b/c", [seen, image])
    site.store.sighted("x/y/z", [other])
    assert site.store.sightings() == [image, seen, other]
    assert site.store.beside("r1") == ("0", None, [image, seen, other])
    assert site.store.beside("r2") == ("0", None, [])
    site.store.sighted("a/b/c", [seen])
    assert site.store.sightings() == [seen, other]
    site.store.sighted("a/b/c", [])
    site.store.sighted("x/y/z", [])
    assert site.store.sightings() == []


@pytest.mark.parametrize("packed", ["too long", "cut off", "no zlib"])
def test_what_would_fill_a_readers_memory_is_not_unpacked(packed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "UNPACKED", 1000)
    whole = codec.pack(b'"' + b"x" * 998 + b'"')
    assert len(codec.unpack(whole, key="k")) == 1000
    bad = {"too long": codec.pack(b"x" * 5_000_000), "cut off": whole[:-6], "no zlib": b"x" * 50}[packed]
    with pytest.raises(UnsafeStore, match="stored at k cannot be read"):
        codec.unpack(bad, key="k")


def test_the_newest_rollout_of_each_world_is_remembered_and_the_oldest_world_makes_room(site: Site) -> None:
    for n in range(WORLDS + 2):
        site.store.put_world(f"w{n}", f"r{n}")
        site.clock.now += 1
    site.store.put_world("w2", "again")
    assert site.store.worlds() == ["again", *(f"r{n}" for n in range(WORLDS + 1, 2, -1))]


def a_token(id: str, *, at: float = START) -> Token:
    return Token(id=id, name="ci", digest="d" * 64, scopes=("read", "run"), created_at=at, created_by="anna")


def test_a_token_is_known_once_and_told_oldest_first(site: Site) -> None:
    second, first = a_token("t1", at=START + 1), replace(a_token("t2"), fleets=("shop",), expires_at=START + 60)
    assert site.store.put_token(second)
    assert site.store.put_token(first)
    assert not site.store.put_token(replace(second, scopes=("admin",)))
    assert site.store.token("t1") == second
    assert site.store.token_now("t1") == (second, START)
    assert site.store.token_now("t3") == (None, START)
    assert site.store.tokens() == [first, second]
    assert site.store.token("t3") is None


def test_a_token_is_revoked_by_one_call_and_its_uses_do_not_bring_it_back(site: Site) -> None:
    site.store.put_token(a_token("t1"))
    site.clock.now += 5
    site.store.used_token("t1")
    site.clock.now += 5
    assert site.store.revoke_token("t1")
    site.clock.now += 5
    assert not site.store.revoke_token("t1")
    assert not site.store.revoke_token("t9")
    site.store.used_token("t1")
    revoked = replace(a_token("t1"), revoked_at=START + 10, used_at=START + 15)
    assert site.store.token("t1") == revoked
    assert site.store.tokens() == [revoked]


def test_of_many_that_revoke_a_token_at_once_one_has_done_it(site: Site) -> None:
    site.store.put_token(a_token("t1"))
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(site.store.revoke_token, ["t1"] * 24)) == 1


def test_a_token_that_cannot_be_read_hides_no_other(redis_site: Site) -> None:
    store = cast(RedisStore, redis_site.store)
    store.put_token(a_token("t1"))
    store.put_token(a_token("t2"))
    store._redis.hset(store._key("tokens"), "t1", b"{}")
    assert [token.id for token in store.tokens()] == ["t2"]
    with pytest.raises(UnsafeStore):
        store.token("t1")


def test_a_visit_is_known_until_its_time_or_its_end_and_ended_by_one_call(site: Site) -> None:
    visit = Session(token="t1", until=START + 60)
    site.store.put_session("k1", visit)
    site.store.put_session("k2", replace(visit, until=START + 5, link=True))
    assert (site.store.session("k1"), site.store.session("k3")) == (visit, None)
    link = site.store.session("k2")
    assert link is not None and link.link
    site.clock.now += 6
    assert (site.store.session("k1"), site.store.session("k2")) == (visit, None)
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(site.store.end_session, ["k1"] * 24)) == 1
    assert site.store.session("k1") is None
    assert not site.store.end_session("k3")


def test_a_token_has_so_many_visits_at_a_time_and_the_oldest_ends_for_a_new_one(site: Site) -> None:
    for n in range(SESSIONS):
        site.store.put_session(f"k{n}", Session(token="t1", until=START + 100 + n))
    site.store.put_session("other", Session(token="t2", until=START + 1))
    assert site.store.end_session("k7")
    site.store.put_session("new", Session(token="t1", until=START + 50))
    gone = {"k7"}

    def lost() -> set[str]:
        return {key for key in (*(f"k{n}" for n in range(SESSIONS)), "new", "newer") if site.store.session(key) is None}

    assert lost() == gone | {"newer"}, "one that has ended counts no more"
    site.store.put_session("newer", Session(token="t1", until=START + 10))
    assert lost() == gone | {"new"}
    site.clock.now += 20
    site.store.put_session("newer", Session(token="t1", until=START + 500))
    assert lost() == gone | {"new"}, "nor does one whose time is over"
    assert site.store.session("other") is None
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: site.store.put_session(f"x{n}", Session(token="t1", until=START + 900)), range(60)))
    left = [n for n in range(60) if site.store.session(f"x{n}") is not None]
    assert 1 <= len(left) <= SESSIONS and len(lost()) == SESSIONS + 2


def asked(site: Site, *, id: str, what: str = "deploy", key: str = "k") -> tuple[str, str]:
    found = site.store.once(key, asked=what, id=id, seconds=60.0, ttl=3600.0)
    return found.state, found.id


def test_what_is_asked_for_under_a_key_is_done_by_one_at_a_time_and_once(site: Site) -> None:
    assert asked(site, id="r1") == ("mine", "r1")
    assert asked(site, id="r2") == ("busy", "r1")
    assert asked(site, id="r3", what="another") == ("other", "r1")
    assert asked(site, id="r4", key="another") == ("mine", "r4")
    site.store.once_ended("k", how="done", id="r1")
    site.clock.now += 100
    assert asked(site, id="r5") == ("done", "r1")
    assert asked(site, id="r6", what="another") == ("other", "r1")


def test_who_takes_over_what_was_asked_does_it_under_the_id_of_the_first(site: Site) -> None:
    asked(site, id="r1")
    site.clock.now += 61
    assert asked(site, id="r2") == ("mine", "r1")
    assert asked(site, id="r3") == ("busy", "r1")
    site.store.once_ended("k", how="again")
    assert asked(site, id="r4") == ("mine", "r1")
    site.store.once_ended("k", how="forgotten")
    site.store.once_ended("k", how="done", id="r9")  # of one who was too slow
    assert asked(site, id="r5", what="another") == ("mine", "r5")


def test_of_many_that_ask_at_once_under_a_key_one_may(site: Site) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: asked(site, id=f"r{n}"), range(32)))
    (mine,) = [id for state, id in found if state == "mine"]
    assert set(found) == {("mine", mine), ("busy", mine)}


def a_delivery(id: str, *, at: float = START, due: float | None = START) -> Delivery:
    return Delivery(id=id, hook="h", key=f"k-{id}", event="e", received_at=at, asked_at=at, rollout="r1", due=due)


def kept(site: Site, delivery: Delivery, *, once: str = "") -> str | None:
    return site.store.put_delivery(delivery, {"about": delivery.id}, once=once or delivery.id, keep=3600.0)


def test_a_delivery_is_kept_once_for_what_stands_for_it(site: Site) -> None:
    assert kept(site, a_delivery("d1"), once="n") == "d1"
    assert kept(site, a_delivery("d2"), once="n") == "d1"
    assert kept(site, a_delivery("d3", at=START + 1)) == "d3"
    assert site.store.delivery("d2") is None
    assert [replace(d, version=0) for d in site.store.deliveries()] == [
        a_delivery("d3", at=START + 1),
        a_delivery("d1"),
    ]
    assert site.store.payload("d1") == {"about": "d1"}
    for gone in ("d2", "d9"):
        with pytest.raises(NotFound):
            site.store.payload(gone)


def test_of_many_that_come_at_once_for_the_same_one_is_kept(site: Site) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda n: kept(site, a_delivery(f"d{n}"), once="n"), range(64)))
    assert {d.id for d in site.store.deliveries()} == found and len(found) == 1


def test_deliveries_wait_in_the_order_of_their_times_until_they_have_ended(site: Site) -> None:
    for id, due in (("d1", START + 9), ("d2", START + 3), ("d3", None)):
        kept(site, a_delivery(id, due=due))
    assert [d.id for d in site.store.due_deliveries()] == ["d2", "d1"]
    first, second = site.store.due_deliveries()
    later = site.store.change_delivery(first, replace(first, due=START + 20, why="later"))
    assert later is not None and later.version > first.version
    assert site.store.change_delivery(first, first) is None, "it was changed meanwhile"
    assert site.store.change_delivery(a_delivery("d9"), a_delivery("d9")) is None
    assert site.store.change_delivery(second, replace(second, due=None, state="done")) is not None
    assert site.store.due_deliveries() == [later]
    assert site.store.delivery("d2") == later


def test_of_many_that_change_a_delivery_at_once_one_has_done_it(site: Site) -> None:
    kept(site, a_delivery("d1"))
    (seen,) = site.store.due_deliveries()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: site.store.change_delivery(seen, replace(seen, attempts=n)), range(24)))
    assert sum(changed is not None for changed in found) == 1


def test_the_log_keeps_the_newest_and_all_that_wait(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("memory", "redis"):
        monkeypatch.setattr(f"orchestrator.store.{module}.DELIVERIES", 3)
        monkeypatch.setattr(f"orchestrator.store.{module}.MOST_WAITING", 2)
    for n in range(6):
        kept(site, a_delivery(f"d{n}", at=START + n, due=START if n == 1 else None))
    assert [d.id for d in site.store.deliveries()] == ["d5", "d4", "d3", "d1"]
    assert kept(site, a_delivery("d9", at=START + 9), once="d0") == "d0", "it is forgotten, and still known"
    assert kept(site, a_delivery("d6", at=START + 6)) == "d6"
    assert kept(site, a_delivery("d7", at=START + 7)) is None, "too many wait"
    assert site.store.delivery("d7") is None
    (first, _) = site.store.due_deliveries()
    site.store.change_delivery(first, replace(first, due=None))
    assert kept(site, a_delivery("d7", at=START + 7)) == "d7"


def test_a_delivery_that_cannot_be_read_hides_no_other(redis_site: Site) -> None:
    store = cast(RedisStore, redis_site.store)
    for id in ("d1", "d2"):
        kept(redis_site, a_delivery(id))
    store._redis.hset(store._key("delivery", "d1"), "doc", b"{}")
    assert [d.id for d in store.deliveries()] == [d.id for d in store.due_deliveries()] == ["d2"]
    with pytest.raises(UnsafeStore):
        store.delivery("d1")


def test_a_feed_moves_on_for_one_who_has_seen_it_as_it_is(site: Site) -> None:
    fresh = Feed(receiver="chat", rollout="r1")
    first = site.store.change_feed(None, fresh)
    assert first is not None
    assert site.store.change_feed(None, fresh) is None, "it is there already"
    second = site.store.change_feed(first, first.past("5-1", told=1, due=START))
    assert second is not None and (second.cursor, second.told) == ("5-1", 1) and second.version > first.version
    assert site.store.change_feed(first, replace(first, due=9.0)) is None, "it was changed meanwhile"
    assert site.store.change_feed(first, None) is None
    other = site.store.change_feed(None, Feed(receiver="a", rollout="r1"))
    assert site.store.feeds() == [other, second]
    assert site.store.change_feed(second, None) is not None
    assert site.store.feeds() == [other]
    assert site.store.change_feed(second, second) is None, "it is gone"
    for wrong in ((None, None), (second, other)):
        with pytest.raises(ValueError, match="a feed is changed into itself alone"):
            site.store.change_feed(*wrong)


def test_of_many_that_move_a_feed_on_at_once_one_has_done_it(site: Site) -> None:
    seen = site.store.change_feed(None, Feed(receiver="chat", rollout="r1"))
    assert seen is not None
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: site.store.change_feed(seen, replace(seen, told=n)), range(24)))
    assert sum(changed is not None for changed in found) == 1


def test_a_feed_that_cannot_be_read_hides_no_other(redis_site: Site) -> None:
    store = cast(RedisStore, redis_site.store)
    for name in ("a", "b"):
        store.change_feed(None, Feed(receiver=name, rollout="r1"))
    store._redis.hset(store._key("outbox"), "a/r1", b"{}")
    assert [feed.receiver for feed in store.feeds()] == ["b"]


def test_a_ledger_keeps_the_last_word_about_a_key(site: Site) -> None:
    site.create()
    first = LedgerItem(key="k2", kind="server", server="a", state="intended")
    other = LedgerItem(key="k1", kind="image", server="a", state="live")
    site.store.put_ledger("r1", [first, other])
    site.store.put_ledger("r1", [replace(first, state="deleted", id="i-1")])
    site.store.put_ledger("r1", [])
    assert site.store.ledger("r1") == [other, replace(first, state="deleted", id="i-1")]
    assert site.store.ledger("r9") == []


def test_a_reaped_workers_named_leases_are_given_back_at_once(site: Site) -> None:
    first = site.store.lease("lb:x", owner="w1/7:a", seconds=60)
    assert first is not None
    assert site.store.lease("lb:x", owner="w2/8:b", seconds=60) is None
    site.store.release_owner("w1/7:")
    second = site.store.lease("lb:x", owner="w2/8:b", seconds=60)
    assert second is not None and second > first
    site.store.release_owner("w1/7:")
    assert site.store.lease("lb:x", owner="w1/9:c", seconds=60) is None


def test_a_named_lease_has_one_owner_and_its_fence_rises_with_each(site: Site) -> None:
    first = site.store.lease("lb:web", owner="x", seconds=10)
    assert first is not None
    assert site.store.lease("lb:web", owner="x", seconds=20) == first
    assert site.store.lease("lb:web", owner="y", seconds=10) is None
    site.store.unlease("lb:web", owner="y")
    assert site.store.lease("lb:web", owner="y", seconds=10) is None
    site.store.unlease("lb:web", owner="x")
    second = site.store.lease("lb:web", owner="y", seconds=10)
    assert second is not None
    assert second > first
    site.clock.now += 10
    third = site.store.lease("lb:web", owner="x", seconds=10)
    assert third is not None
    assert third > second
    site.store.unlease("nobody", owner="x")


def test_a_worker_is_known_while_it_beats(site: Site) -> None:
    site.store.beat("w1", {"pid": 1}, ttl=10)
    site.clock.now += 6
    site.store.beat("w2", {"pid": 2}, ttl=10)
    assert site.store.workers() == {"w1": {"pid": 1}, "w2": {"pid": 2}}
    site.clock.now += 4
    assert site.store.workers() == {"w2": {"pid": 2}}


def test_the_wait_of_messages_is_measured_and_decays(site: Site) -> None:
    site.create()
    site.admit()
    site.issue()
    site.clock.now += 8
    claim = site.began(site.claim(lease=60))
    assert isinstance(claim, Claim)
    assert site.store.queue_wait() == 8
    site.store.commit(claim, claim.row.upgrade.after(Finished(result={}, at=START)), entry=DID, due=START + 99)
    site.clock.now += 2
    site.claim()
    assert site.store.queue_wait() == pytest.approx(8 * 0.98)
    site.claim()
    assert site.store.queue_wait() == pytest.approx(8 * 0.98**2)


def test_a_message_that_was_sent_again_has_waited_since_its_first_sending(site: Site) -> None:
    site.create()
    site.admit()
    site.issue(grace=5)
    site.clock.now += 5
    assert site.issue(grace=5) == 1
    site.clock.now += 4
    site.claim()
    assert site.store.queue_wait() == 9


def test_a_wait_is_not_taken_for_a_slow_message(site: Site) -> None:
    site.create()
    site.parked(at=5)
    site.clock.now += 100
    site.issue()
    site.claim()
    assert site.store.queue_wait() == 0


def test_sleepers_wake_when_told_and_miss_nothing_between_sleeps(site: Site) -> None:
    site.create()
    cursor = site.store.sleep(0, cursor="$")
    assert site.store.sleep(0.01, cursor=cursor) == cursor
    site.store.wake()
    begun = time.monotonic()
    after = site.store.sleep(20, cursor=cursor)
    assert after != cursor
    site.admit()
    assert site.store.sleep(20, cursor=after) != after
    assert time.monotonic() - begun < 10
    latest = site.store.sleep(20, cursor="")
    assert site.store.sleep(0, cursor=latest) == latest
    woken: list[str] = []
    sleeper = threading.Thread(target=lambda: woken.append(site.store.sleep(20, cursor=latest)))
    sleeper.start()
    site.store.wake()
    sleeper.join(10)
    assert woken


def test_a_settled_server_is_in_no_agenda_and_a_kept_old_server_is(site: Site) -> None:
    site.create()
    site.admit()
    at = START
    for step in STEPS:
        site.issue()
        claim = site.began(site.claim())
        assert isinstance(claim, Claim)
        at += 1
        done = claim.row.upgrade.after(Finished(result={"step": step}, at=at, retain_until=START + 500))
        site.store.commit(claim, done, entry=DID, due=START + 500)
    assert site.row().upgrade.state == "upgraded"
    assert site.store.next_due() == START + 500
    site.issue()
    retire = site.began(site.claim(), undo=True)
    assert isinstance(retire, Claim)
    gone = retire.row.upgrade.after(Finished(result={}, at=at))
    site.store.commit(retire, gone, entry=DID, due=START + 1)
    assert site.row().upgrade.settled
    assert site.store.next_due() is None
    assert site.take() == Ignored(reason="settled")


# -- what Redis can do to us -------------------------------------------------------------------------------------------


def test_a_full_redis_refuses_everything_and_nothing_has_changed() -> None:
    with running_valkey("--maxmemory", "100mb") as valkey:
        site = Site(RedisStore(valkey.url), Clock())
        site.create()
        claim = site.running()
        parked = site.parked("b")
        raw = redis.Redis.from_url(valkey.url)
        before = dump(raw)
        raw.config_set("maxmemory", "1mb")
        to = claim.row.upgrade.after(Stumbled(why="x", at=START))
        calls: list[Callable[[], Any]] = [
            lambda: site.admit("c"),
            lambda: site.store.issue("r1", "b", version=parked.version, grace=1),
            lambda: site.take("b", owner="w2"),
            lambda: site.store.renew(claim, lease=99),
            lambda: site.began(claim),
            lambda: site.store.commit(claim, to, entry=DID, due=START, failure="after", stop="x"),
            lambda: site.store.turn(parked, parked.upgrade, entry=DID, due=START),
            lambda: site.store.looked(parked, parked.upgrade, due=START),
            lambda: site.store.wake_up(parked, parked.upgrade, grace=1),
            lambda: site.store.release(claim),
            lambda: site.store.release_owner("w"),
            lambda: site.become(lambda r: replace(r, closed=True)),
            lambda: site.create("r2"),
            lambda: site.store.note("r1", DID),
            lambda: site.store.freeze(True, actor="x"),
            lambda: site.store.lease("x", owner="x", seconds=1),
            lambda: site.store.beat("w", {}, ttl=1),
            site.store.wake,
            lambda: site.store.put_document("plan", "p", {}),
            lambda: site.store.put_ledger("r1", [LedgerItem(key="k", kind="image", server="a", state="live")]),
            lambda: site.store.check(dev=False),
        ]
        for call in calls:
            with pytest.raises(UnsafeStore, match="full"):
                call()
        assert dump(raw) == before
        assert site.store.rollout("r1") is not None
        raw.config_set("maxmemory", "100mb")
        assert isinstance(site.began(claim), Claim)
        raw.close()


def dump(raw: Any) -> dict[bytes, bytes]:
    return {key: raw.dump(key) for key in raw.scan_iter()}


@pytest.mark.parametrize(
    ("stored", "says"),
    [
        ("{not json", "no JSON"),
        ('{"schema":2,"rollout":"r1"}', "schema 2"),
        ('{"rollout":"r1"}', "names no schema"),
        ('{"schema":1,"rollout":"r1","server":"a","wave":0,"state":"dancing"}', "state"),
        ('{"schema":1,"rollout":"r1","wave":0}', "server"),
        ('{"schema":1,"rollout":"r1","server":"a","wave":0,"step":"swap"}', "makes no sense .pending at swap"),
        ('{"schema":1,"rollout":"r1","server":"a","wave":"x"}', "wave"),
        ("[]", "names no schema"),
    ],
)
def test_a_record_that_cannot_be_read_is_named_by_its_key(
    redis_site: Site, valkey_url: str, stored: str, says: str
) -> None:
    redis_site.create()
    key = cast(RedisStore, redis_site.store)._key("sv", "r1", "a")
    with redis.Redis.from_url(valkey_url) as raw:
        raw.hset(key, "doc", stored)
    for read in (lambda: redis_site.row("a"), lambda: redis_site.store.rows("r1")):
        with pytest.raises(UnsafeStore, match=says) as told:
            read()
        assert key in str(told.value)
    assert redis_site.row("b")


def test_a_key_of_the_wrong_type_is_named(redis_site: Site, valkey_url: str) -> None:
    redis_site.create()
    store = cast(RedisStore, redis_site.store)
    key = store._key("sv", "r1", "a")
    to = redis_site.row("a").upgrade.after(Admitted(at=START))
    with redis.Redis.from_url(valkey_url) as raw:
        raw.delete(key)
        raw.set(key, "x")
        with pytest.raises(UnsafeStore, match="WRONGTYPE") as told:
            store.admit("r1", "a", to=to, limit=5, wave=0, domain="", entry=DID)
        assert key in str(told.value)
        with pytest.raises(UnsafeStore) as told:
            store.rows("r1")
        assert key in str(told.value)
        raw.delete(key)
        raw.hset(key, mapping={"version": "many", "doc": "{}"})
    with pytest.raises(UnsafeStore, match="GARBAGE") as told:
        store.admit("r1", "a", to=to, limit=5, wave=0, domain="", entry=DID)
    assert key in str(told.value)


def test_scripts_come_back_after_the_server_forgot_them(redis_site: Site, valkey_url: str) -> None:
    redis_site.create()
    with redis.Redis.from_url(valkey_url) as raw:
        raw.script_flush()
    assert redis_site.admit("a")


def test_the_stores_own_time_is_the_servers(valkey_url: str) -> None:
    store = a_redis_store(valkey_url)
    assert abs(store.now() - time.time()) < 5
    fence = store.lease("x", owner="x", seconds=1)
    assert fence is not None
    assert abs(fence / 1e6 - time.time()) < 5
    store.close()


def test_namespaces_do_not_see_each_other(valkey_url: str) -> None:
    one, two = Site(a_redis_store(valkey_url), Clock()), Site(a_redis_store(valkey_url), Clock())
    one.create()
    assert two.store.rollouts() == []
    two.create()
    cast(RedisStore, one.store).close()
    cast(RedisStore, two.store).close()


def test_a_silent_redis_is_not_said_to_have_changed_nothing() -> None:
    """The script may have run, and only its answer be late."""
    told = plainly(redis.exceptions.TimeoutError("Timeout reading from socket"), parse("unix:///run/valkey.sock"))
    assert "it did not say" in told.traffic
    assert told.next == "changeover up"


def test_nothing_answers_is_said_without_the_password() -> None:
    store = RedisStore("redis://anna:secret@127.0.0.1:1/3")
    with pytest.raises(Unreachable, match=r"redis://127\.0\.0\.1:1/3 does not answer") as told:
        store.check(dev=True)
    assert "secret" not in str(told.value)
    assert told.value.next == "redis-cli -u redis://127.0.0.1:1/3 PING"
    with pytest.raises(Unreachable):
        store.rollouts()
    with pytest.raises(Unreachable):
        RedisStore("unix:///tmp/co-there-is-no-such.sock").now()


@pytest.mark.parametrize(
    "url", ["", "nonsense", "http://x:secret@y", "redis://x:port/0", "redis://h:1/0?socket_timeout=x"]
)
def test_what_is_no_address_is_refused_plainly(url: str) -> None:
    with pytest.raises(BadInput) as told:
        RedisStore(url)
    assert "secret" not in str(told.value)


def test_a_wrong_password_is_said_so() -> None:
    with running_valkey("--requirepass", "right") as valkey:
        with pytest.raises(Unreachable, match="refused our password") as told:
            RedisStore(valkey.url.replace("unix://", "unix://:wrong@")).check(dev=False)
        assert "wrong" not in str(told.value)
        with pytest.raises(Unreachable, match="wants a password"):
            RedisStore(valkey.url).check(dev=False)
        RedisStore(valkey.url.replace("unix://", "unix://:right@")).check(dev=False)


@pytest.fixture(scope="module")
def strange() -> Iterator[RunningValkey]:
    """One that tests may set up badly; each puts it right again."""
    with running_valkey() as valkey:
        yield valkey


@pytest.mark.parametrize(
    ("setting", "bad", "good", "says"),
    [
        ("maxmemory-policy", "allkeys-lru", "noeviction", "evict"),
        ("appendonly", "no", "yes", "append-only"),
        ("replicaof", "127.0.0.1 1", "no one", "replica"),
        ("maxmemory", "1mb", "0", "full"),
    ],
)
def test_a_redis_that_would_lose_what_it_is_told_is_unsafe(
    strange: RunningValkey, setting: str, bad: str, good: str, says: str
) -> None:
    store = RedisStore(strange.url)
    store.check(dev=False)
    with redis.Redis.from_url(strange.url) as raw:

        def put(value: str) -> None:
            if setting == "replicaof":
                raw.execute_command("REPLICAOF", *value.split())
            else:
                raw.config_set(setting, value)

        put(bad)
        with pytest.raises(UnsafeStore, match=says):
            store.check(dev=False)
        store.check(dev=True)
        if setting == "replicaof":
            with pytest.raises(UnsafeStore, match="replica"):
                store.wake()
        put(good)
    store.check(dev=False)
    store.close()


class Managed:
    """A Redis of a managed service: it has no append-only file."""

    def __init__(self, replicas: int) -> None:
        self._replicas = replicas

    def info(self) -> dict[str, object]:
        return {"redis_version": "7.1.0", "role": "master", "aof_enabled": 0, "connected_slaves": self._replicas}


def test_where_replicas_keep_the_records_one_has_to_be_there_and_somebody_has_to_say_so() -> None:
    silent, said = parse("redis://cache.example"), parse("redis://cache.example?kept_by=replicas")
    check(Managed(replicas=1), said, "records")
    check(Managed(replicas=0), silent, "messages")
    with pytest.raises(UnsafeStore, match="no replica now"):
        check(Managed(replicas=0), said, "records")
    with pytest.raises(UnsafeStore, match="no append-only file: it would forget"):
        check(Managed(replicas=1), silent, "records")


def test_a_user_that_may_see_little_is_checked_by_what_it_may_see(strange: RunningValkey) -> None:
    base = ["on", "nopass", "~*", "&*", "+@all"]
    with redis.Redis.from_url(strange.url) as raw:
        for name, denied in (("noconfig", ["-config"]), ("noinfo", ["-info"]), ("blind", ["-config", "-info"])):
            raw.execute_command("ACL", "SETUSER", name, *base, *denied)
        raw.execute_command("ACL", "SETUSER", "reader", *base, "-@write")
    at = strange.url.replace("unix://", "unix://{}:x@")
    RedisStore(at.format("noconfig")).check(dev=False)
    RedisStore(at.format("noinfo")).check(dev=False)
    with pytest.raises(UnsafeStore, match="does not let our user see"):
        RedisStore(at.format("blind")).check(dev=False)
    with pytest.raises(Unreachable, match="does not let our user"):
        RedisStore(at.format("reader")).wake()


def test_one_under_way_is_not_due_later_than_its_record_asks_for(site: Site) -> None:
    site.create()
    claim = site.running()
    site.store.release(claim, due=site.clock.now + 86400)
    assert site.store.mend("r1", [site.row()], late=90_000.0) == []
    assert site.store.mend("r1", [site.row()], late=600.0) == [("a", "was due later than its record asks for")]
    assert site.store.due(limit=9) == [("r1", "a")]
    assert site.store.mend("r1", [site.row()], late=600.0) == []


def test_a_wait_is_not_looked_at_later_than_its_record_asks_for(site: Site) -> None:
    site.create()
    row = site.parked(at=5.0)
    assert site.store.mend("r1", [row], late=0.0) == []
    site.clock.now += 6
    site.store.due_in_lane(LANE, limit=9, postpone=86400)
    assert site.store.due_in_lane(LANE, limit=9, postpone=1) == []
    assert site.store.mend("r1", [row], late=600.0) == [("a", "was due later than its record asks for")]
    assert [found.upgrade for found in site.store.due_in_lane(LANE, limit=9, postpone=1)] == [row.upgrade]


def test_a_key_of_a_wrong_type_leaves_nothing_half_done(redis_site: Site, valkey_url: str) -> None:
    """Each key that a change writes: the record is as it was, and goes on once the key is gone."""
    redis_site.create()
    claim = redis_site.running()
    raw, prefix = redis.Redis.from_url(valkey_url), redis_site.store._prefix  # type: ignore[attr-defined] # whose keys they are
    for name in ("due", "owners", "wake", "lanes", "open", "audit:r1", "cnt:r1", "fly:r1", "ledger:r1"):
        kept, key = redis_site.row(), prefix + name
        dumped = raw.dump(key)
        raw.delete(key)
        raw.set(key, "x")
        with pytest.raises(UnsafeStore, match="WRONGTYPE"):
            redis_site.store.turn(kept, kept.upgrade, entry=DID, due=START)
        with pytest.raises(UnsafeStore, match="WRONGTYPE"):
            redis_site.began(claim)
        assert redis_site.row() == kept, name
        raw.delete(key)
        if dumped is not None:
            raw.restore(key, 0, dumped)
    assert isinstance(redis_site.began(claim), Claim)
    raw.close()


def test_what_was_answered_outlives_the_servers_death() -> None:
    with running_valkey() as valkey:
        site = Site(RedisStore(valkey.url), Clock())
        site.create()
        claim = site.running()
        with redis.Redis.from_url(valkey.url) as raw:  # while its disk is at the second before, it holds back a write
            end = time.monotonic() + 30
            while raw.info("persistence")["aof_buffer_length"] and time.monotonic() < end:
                time.sleep(0.01)
        valkey.kill()
        with pytest.raises(Unreachable):
            site.row()
        valkey.start()
        assert isinstance(site.began(claim), Claim)
        assert site.store.release_owner("w1") == 1


def test_a_large_rollout_is_created_in_small_scripts(redis_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script stops everybody else for as long as it runs."""
    honest, given = RedisStore._run, []

    def run(store: RedisStore, name: str, arguments: Any, *documents: bytes) -> Any:
        given.append(len(json.dumps(arguments)) + sum(map(len, documents)))
        return honest(store, name, arguments, *documents)

    monkeypatch.setattr(RedisStore, "_run", run)
    redis_site.names = tuple(f"web-{i:05}" for i in range(2000))
    redis_site.create()
    assert len(redis_site.store.rows("r1")) == 2000
    assert len(given) > 2000 / 100
    assert max(given) < 100_000


# -- both alike --------------------------------------------------------------------------------------------------------


class Pair:
    """The same operations on two stores under one clock: every answer must be equal."""

    def __init__(self, seed: int, one: Store, two: Store, clock: Clock) -> None:
        self.random = random.Random(seed)
        self.stores = (one, two)
        self.clock = clock
        self.names = ("a", "b", "c", "d")
        self.claims: list[tuple[Claim, Claim]] = []
        self.seen: list[tuple[Row, Row]] = []
        self.rollouts: list[tuple[Rollout, Rollout]] = []

    def both(self, ask: Callable[[Store], Any]) -> tuple[Any, Any]:
        answers = []
        for store in self.stores:
            try:
                answers.append(ask(store))
            except (ChangeoverError, ValueError) as error:
                answers.append(f"{type(error).__name__}: {error}")
        assert answers[0] == answers[1]
        return answers[0], answers[1]

    def step(self) -> None:
        pick = self.random
        name = pick.choice(self.names)
        self.clock.now += pick.choice((0, 0, 0.25, 1, 3.5))
        row = self.both(lambda s: s.row("r1", name))[0]
        assert isinstance(row, Row)
        if pick.random() < 0.3:
            self.seen.append((row, row))
        old = pick.choice(self.seen)[0] if self.seen and pick.random() < 0.3 else row
        now = self.clock.now
        due = now + pick.choice((-1, 0, 0.5, 2))
        match pick.randrange(16):
            case 0:
                to = old.upgrade if old.upgrade.state != "pending" else old.upgrade.after(Admitted(at=now))
                domain = pick.choice(("", row.upgrade.domain))
                limit, wave = pick.randrange(1, 4), pick.choice((0, 0, 0, 1))
                self.both(
                    lambda s: s.admit("r1", old.upgrade.server, to=to, limit=limit, wave=wave, domain=domain, entry=DID)
                )
            case 1 | 2:
                grace = pick.choice((1, 5))
                server = old.upgrade.server
                self.both(lambda s: s.issue("r1", server, version=old.version, grace=grace))
            case 3 | 4 | 5:
                owner, lease = pick.choice(("w1", "w1:x", "w2")), pick.choice((1, 4))
                u = old.upgrade
                step = u.step if pick.random() < 0.9 else "swap"
                taken = self.both(
                    lambda s: s.claim(
                        "r1", u.server, epoch=old.epoch, step=step, direction=u.direction, owner=owner, lease=lease
                    )
                )
                if isinstance(taken[0], Claim):
                    self.claims.append(taken)
            case 6 | 7 | 8 | 9 if self.claims:
                self.act(pick.choice(self.claims[-3:]), due)
            case 10:
                to = self.moved(old.upgrade, now)
                stop, at = pick.choice(("", "", "", "hurt")), pick.choice((due, due, None))
                failure: Any = pick.choice(("", "before", "after"))
                self.both(lambda s: s.turn(old, to, entry=DID, due=at, failure=failure, stop=stop))
            case 11:
                waiting = old.upgrade
                if waiting.wait is not None and waiting.wait.observe is not None:
                    seen = Seen(kind="image", at=now, answers={"i1": {"n": pick.random()}})
                    to = waiting.after(Looked(seen=seen, again=due))
                    grace = pick.choice((None, 2.0))
                    if grace is None:
                        self.both(lambda s: s.looked(old, to, due=due))
                    else:
                        self.both(lambda s: s.wake_up(old, to, grace=grace))
            case 12:
                lane, limit = pick.choice((LANE, "other")), pick.randrange(1, 4)
                self.both(lambda s: s.due_in_lane(lane, limit=limit, postpone=1.5))
                self.both(lambda s: s.look_again(lane, {("r1", "a"): self.clock.now + 1}))
            case 13:
                self.roll()
            case 14:
                taken = self.both(lambda s: s.take(old, owner="w3/1:p", lease=2))
                if isinstance(taken[0], Claim):
                    self.claims.append(taken)
            case _:
                prefix, died = pick.choice(("w1", "w1:", "w", "x")), pick.random() < 0.5
                self.both(lambda s: s.release_owner(prefix, died=died))
        self.compare()
        agendas(self.stores[1])

    def act(self, claims: tuple[Claim, Claim], due: float) -> None:
        pick, now = self.random, self.clock.now
        claim = claims[0]
        mine = dict(zip(map(id, self.stores), claims, strict=True))
        to = self.moved(claim.row.upgrade, now)
        what = pick.randrange(6)
        item = LedgerItem(key=f"k{pick.randrange(3)}", kind="image", server=claim.server, state="live")
        if what == 0:
            renewed = self.both(lambda s: s.renew(mine[id(s)], lease=3))
            if isinstance(renewed[0], Claim):
                self.claims.append(renewed)
        elif what in (1, 2):
            undo, finishing = pick.random() < 0.3, pick.random() < 0.3
            after = self.both(
                lambda s: s.intent(mine[id(s)], to, entry=DID, ledger=[item], undo=undo, finishing=finishing)
            )
            if isinstance(after[0], Claim):
                self.claims.append(after)
        elif what in (3, 4):
            look, at = pick.choice((None, LANE, "other")), pick.choice((due, due, None))
            failure: Any = pick.choice(("", "", "before", "after"))
            locks = [pick.choice(("lock/a", "lock/n", "lock/z"))]
            stop = pick.choice(("", "", "", "hurt"))
            self.both(
                lambda s: s.commit(
                    mine[id(s)],
                    to,
                    entry=DID,
                    due=at,
                    look=look,
                    ledger=[item],
                    locks=locks,
                    failure=failure,
                    stop=stop,
                )
            )
        else:
            at, look = pick.choice((None, due)), pick.choice((None, LANE))
            self.both(lambda s: s.release(mine[id(s)], due=at, look=look))

    def moved(self, u: Upgrade, now: float) -> Upgrade:
        """The record after some event that applies."""
        wait = Waiting(reason="w", at=now, observe=Observe(kind="image", lane=LANE, ids=("i1",)))
        events: list[Event] = [
            Began(intent=replace(an_intent(u), at=now), deadline=now + 9),
            Waits(wait=wait),
            Finished(result={"x": 1}, at=now, retain_until=now + 5),
            Stumbled(why="s", at=now),
            TurnedBack(why="t", at=now, asked=self.random.random() < 0.5),
            Undone(at=now),
            Held(why="h"),
            Released(at=now),
        ]
        self.random.shuffle(events)
        for event in events:
            try:
                return u.after(event)
            except ChangeoverError:
                continue
        return u

    def roll(self) -> None:
        pick = self.random
        current = self.both(lambda s: s.rollout("r1"))[0]
        self.rollouts.append((current, current))
        was = pick.choice(self.rollouts[-2:])[0]
        state: Any = pick.choice(("running", "running", "running", "paused", "aborting", "baking"))
        to = replace(was, state=state, stop="", wave=0)
        what = pick.randrange(4)
        if what == 0:
            on = pick.random() < 0.3
            self.both(lambda s: s.freeze(on, actor="x"))
        elif what == 1:
            server = pick.choice(("", "a", "z"))
            self.both(lambda s: s.note("r1", DID, server=server))
        else:
            self.both(lambda s: s.change(was, to, entry=DID))

    def compare(self) -> None:
        self.both(lambda s: s.rows("r1"))
        self.both(lambda s: s.tally("r1"))
        self.both(lambda s: s.rollout("r1"))
        self.both(lambda s: s.due(limit=9))
        self.both(lambda s: s.due_lanes())
        self.both(lambda s: s.next_due())
        self.both(lambda s: s.queue_wait())
        self.both(lambda s: s.owner_of("lock/n"))

    def settle(self) -> None:
        """What must hold at the end, in each by itself."""
        self.both(lambda s: s.ledger("r1"))
        self.both(lambda s: [replace(e, id="") for e in s.events("r1", limit=10_000)])
        for store in self.stores:
            rows = store.rows("r1")
            counted: dict[str, int] = {}
            for row in rows:
                counted[row.upgrade.state] = counted.get(row.upgrade.state, 0) + 1
                mine = [e for e in store.events("r1", limit=10_000) if e.server == row.upgrade.server]
                assert [e.n for e in mine] == list(range(1, row.entry + 1))
                if records := [e.after for e in mine if e.after]:
                    last = codec.UPGRADE.of(records[-1])
                    assert replace(last, seen=None, wait=None) == replace(row.upgrade, seen=None, wait=None)
            assert store.tally("r1").by_state == counted


def agendas(store: Store) -> None:
    """Each upgrade is in exactly one agenda, or at rest and in none."""
    assert isinstance(store, RedisStore)
    found: list[str] = [m.decode() for m in store._redis.zrange(store._key("due"), 0, -1)]
    for lane in store._redis.smembers(store._key("lanes")):
        found += [m.decode() for m in store._redis.zrange(store._key("look", lane.decode()), 0, -1)]
    active = [
        f"r1/{row.upgrade.server}"
        for row in store.rows("r1")
        if not (row.upgrade.state in ("pending", "held") or row.upgrade.settled)
    ]
    assert sorted(found) == active
    held = [m.decode() for m in store._redis.zrange(store._key("owners"), 0, -1)]
    assert {f"{row.owner}\nr1/{row.upgrade.server}" for row in store.rows("r1") if row.owner} <= set(held)
    assert len(held) <= len(store.rows("r1"))


@pytest.mark.parametrize("seed", range(12))
def test_both_stores_answer_the_same(valkey_url: str, seed: int) -> None:
    clock = Clock()
    both = (MemoryStore(clock), a_redis_store(valkey_url, clock))
    for store in both:
        Site(store, clock, ("a", "b", "c", "d")).create(domains=("x", "x", "", "y"))
        Site(store, clock, ("z",)).create("r2")
    pair = Pair(seed, *both, clock)
    for _ in range(250):
        pair.step()
    pair.settle()
    both[1].close()


def test_a_record_with_everything_in_it_comes_back_as_it_was() -> None:
    u = Upgrade(rollout="r1", server="ä b", wave=3, domain="d").after(Admitted(at=1.25))
    begun = u.after(Began(intent=an_intent(u), deadline=START + 9.5))
    full = replace(
        waits(begun, 2.5),
        seen=Seen(kind="image", at=1.5, answers={"i": {"x": [1, {"y": None}]}}),
        results={"create_image": {"id": "i", "n": 1}},
        attempts={"provision": 2},
        retain_until=9.125,
        old_gone=True,
    )
    text = codec.UPGRADE.dump(full)
    assert codec.UPGRADE.load(text, key="k") == full
    assert codec.UPGRADE.of(json.loads(text)) == full
    with pytest.raises(ValueError, match="schema"):
        codec.UPGRADE.dump(replace(full, schema=2))
    with pytest.raises(ValueError, match="serialize"):
        codec.UPGRADE.dump(replace(full, notes={"x": object()}))


# -- how often a provider may be asked --------------------------------------------------------------------------------

ASKED = Limit(rate=10.0, burst=3.0)


def test_a_bucket_is_shared_and_tells_who_comes_too_soon_to_wait(site: Site) -> None:
    waits = [site.store.spend("aws here", ASKED, patience=1.0) for _ in range(5)]
    assert waits == pytest.approx([0, 0, 0, 0.1, 0.2], abs=1e-5)
    assert site.store.spend("aws there", ASKED, patience=1.0) == 0
    site.clock.now += 10
    assert site.store.spend("aws here", ASKED, patience=1.0) == 0


def test_a_bucket_that_was_refused_is_slower_and_recovers(site: Site) -> None:
    site.store.spend("aws here", ASKED, patience=1.0)
    site.store.refused("aws here", ASKED)
    slowed = site.store.buckets()["aws here"]
    assert (slowed.rate, slowed.tokens, slowed.refused, slowed.refused_at) == (5.0, 0.0, 1, START)
    assert site.store.spend("aws here", ASKED, patience=0.1) == pytest.approx(0.2)
    assert site.store.buckets()["aws here"].tokens == 0.0, "who does not wait takes no turn"
    site.clock.now += 300
    site.store.spend("aws here", ASKED, patience=1.0)
    assert site.store.buckets()["aws here"].rate == 10.0


def test_buckets_of_either_store_are_the_same_whatever_happens(valkey_url: str) -> None:
    clock = Clock()
    stores = [MemoryStore(clock), a_redis_store(valkey_url, clock)]
    chance = random.Random(7)
    for _ in range(400):
        clock.now = round(clock.now + chance.expovariate(5) - (chance.random() < 0.02) * 60, 6)
        if chance.random() < 0.1:
            for store in stores:
                store.refused("api", ASKED)
        else:
            patience = chance.random()
            one, other = (store.spend("api", ASKED, patience=patience) for store in stores)
            assert one == pytest.approx(other, abs=1e-3)
    one, other = (store.buckets()["api"] for store in stores)
    assert (one.refused, one.rate, one.tokens) == pytest.approx((other.refused, other.rate, other.tokens), abs=1e-3)
