"""Many coordinators and workers at once over the real scripts: what one of them has committed binds all the others."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial

import pytest

from orchestrator import operations
from orchestrator.coordinator import Coordinator
from orchestrator.dispatch import Message
from orchestrator.domain.rollout import Rollout, aborting, paused, rolling_back
from orchestrator.domain.upgrade import Admitted, Began, TurnedBack, Upgrade
from orchestrator.errors import Fenced, Locked
from orchestrator.store import AuditEntry, Claim, Entry, RefusedIntent, Row, Store
from orchestrator.store.redis import RedisStore
from tests.unit.test_every_transition import hoped_for

DID = Entry(event="did", actor="test")


def a_rollout(names: Sequence[str], *, limit: int) -> Rollout:
    return Rollout(
        id="r1",
        plan="p",
        fleet="f",
        created_at=0.0,
        created_by="t",
        waves=(tuple(names),),
        max_in_flight=limit,
        allowed_failures=0,
        bake=0.0,
        on_abort="roll_back",
    )


@contextmanager
def stores(
    url: str, names: Sequence[str], *, limit: int, clock: Callable[[], float] | None = None
) -> Iterator[Callable[[], RedisStore]]:
    """A rollout of those servers, and a way to open stores on it: each with its own connections, as processes have."""
    namespace, opened = uuid.uuid4().hex[:12], []

    def another() -> RedisStore:
        opened.append(RedisStore(url, namespace=namespace, connections=2, clock=clock))
        return opened[-1]

    upgrades = [Upgrade(rollout="r1", server=name, wave=0) for name in names]
    another().create(a_rollout(names, limit=limit), upgrades, locks={f"lock/{name}": name for name in names})
    try:
        yield another
    finally:
        for store in opened:
            store.close()


def coordinator(store: Store, publish: Callable[[list[Message]], None]) -> Coordinator:
    return Coordinator(store=store, publish=publish, observe=lambda *_: None, monotonic=time.monotonic, grace=5.0)


def repeatedly(act: Callable[[], object], end: threading.Event) -> None:
    while not end.is_set():
        with suppress(Fenced):
            act()


def test_any_number_of_coordinators_decide_at_once_and_never_overshoot(valkey_url: str) -> None:
    names, limit = [f"s{n:02d}" for n in range(60)], 5
    end = threading.Event()
    with stores(valkey_url, names, limit=limit) as another, ThreadPoolExecutor(9) as pool:

        def finish_one(store: Store) -> None:
            for row in store.rows("r1"):
                if row.upgrade.state == "running":
                    to = row.upgrade.after(TurnedBack(why="done", at=store.now(), asked=True))
                    store.turn(row, to, entry=DID, due=None)

        running = [pool.submit(repeatedly, coordinator(another(), lambda _: None).tick, end) for _ in range(6)]
        for _ in range(3):
            running.append(pool.submit(repeatedly, partial(finish_one, another()), end))
        looking = another()
        until = time.monotonic() + 90
        while looking.tally("r1").by_state.get("rolled_back", 0) < len(names):
            assert time.monotonic() < until, looking.tally("r1")
            time.sleep(0.05)
        end.set()
        for each in running:
            each.result(30)
        flying, most, admitted = 0, 0, []
        for entry in (entry for entry in operations.events(looking, "r1") if entry.server):
            flying += (entry.now == "running") - (entry.was == "running")
            most = max(most, flying)
            admitted += [entry.server] if entry.event == "Admitted" else []
        assert most == limit, "and all the places were used"
        assert sorted(admitted) == names


def work(store: Store, row: Row) -> None:
    """What a worker does with a message: claim, intent, commit. Began is what the store may refuse."""
    epoch = store.issue("r1", row.upgrade.server, version=row.version, grace=5.0)
    if epoch is None or row.upgrade.terminal:
        return
    u = row.upgrade
    claim = store.claim(
        "r1", u.server, epoch=epoch, step=u.step, direction=u.direction, owner=uuid.uuid4().hex, lease=5.0
    )
    if not isinstance(claim, Claim):
        return
    event = hoped_for(claim.row.upgrade, store.now())
    if isinstance(event, Began):
        to = claim.row.upgrade.after(event)
        answer = store.intent(
            claim, to, entry=Entry(event="Began", actor="test"), ledger=[], undo=False, finishing=False
        )
        if isinstance(answer, RefusedIntent):
            store.release(claim)
            return
        claim = answer
    to = claim.row.upgrade.after(hoped_for(claim.row.upgrade, store.now()))
    store.commit(claim, to, entry=DID, due=store.now() + 60)


def _changed(store: Store, to: Callable[[Rollout], Rollout]) -> None:
    was = store.rollout("r1")
    assert was is not None
    assert store.change(was, to(was), entry=DID) is not None


def _stopped(store: Store) -> None:
    """A failure behind a swap, as the commit that counts it stores it."""
    for row in store.rows("r1"):
        if row.upgrade.state in ("running", "waiting") and row.upgrade.begun:
            to = row.upgrade.after(TurnedBack(why="bad", at=store.now(), asked=False))
            if store.turn(row, to, entry=DID, due=store.now() + 60, failure="after", stop="bad") is not None:
                return
    raise AssertionError("nobody to stop for")


REFUSALS: dict[str, Callable[[Store], None]] = {
    "pause": lambda store: _changed(store, lambda r: paused(r, why="w", now=store.now())),
    "abort": lambda store: _changed(store, lambda r: aborting(r, why="w")),
    "rollback": lambda store: _changed(store, lambda r: rolling_back(r, why="w")),
    "freeze": lambda store: store.freeze(True, actor="test"),
    "spent budget": _stopped,
}


@pytest.mark.parametrize("verb", REFUSALS)
def test_what_is_committed_is_followed_by_no_new_intent(valkey_url: str, verb: str) -> None:
    names = [f"s{n:02d}" for n in range(60)]
    end = threading.Event()
    with stores(valkey_url, names, limit=len(names)) as another, ThreadPoolExecutor(6) as pool:
        store = another()
        for row in store.rows("r1"):
            to = row.upgrade.after(Admitted(at=store.now()))
            assert store.admit("r1", to.server, to=to, limit=100, wave=0, domain="", entry=DID)

        def work_on(store: Store) -> None:
            for row in store.rows("r1"):
                if end.is_set():
                    return
                with suppress(Fenced):
                    work(store, row)

        running = [pool.submit(repeatedly, partial(work_on, another()), end) for _ in range(6)]
        until = time.monotonic() + 60
        while len(begun(store)) < 40:
            assert time.monotonic() < until
            time.sleep(0.005)
        REFUSALS[verb](store)
        mark = operations.events(store, "r1")[-1].id
        ignored = time.monotonic() + 0.5
        while time.monotonic() < ignored:  # they go on asking
            time.sleep(0.05)
        end.set()
        for each in running:
            each.result(30)
        late = [entry for entry in begun(store) if _number(entry.id) > _number(mark)]
        assert late == []
        if verb == "freeze":
            store.freeze(False, actor="test")
            work(
                store, next(row for row in store.rows("r1") if row.upgrade.intent is None and not row.upgrade.terminal)
            )
            assert [entry for entry in begun(store) if _number(entry.id) > _number(mark)], "they would have begun"


def begun(store: Store) -> list[AuditEntry]:
    return [entry for entry in operations.events(store, "r1") if entry.event == "Began"]


def _number(id: str) -> tuple[int, ...]:
    return tuple(int(part) for part in id.split("-"))


@pytest.mark.timeout(300)
def test_a_backlog_of_ten_thousand_is_worked_off_and_not_multiplied(valkey_url: str) -> None:
    """For half a minute no worker takes anything, and four coordinators look after it; then one comes back."""
    names = [f"s{n:05d}" for n in range(10_000)]
    now = [1_800_000_000.0]
    sent: list[list[Message]] = []
    with stores(valkey_url, names, limit=len(names), clock=lambda: now[0]) as another:
        store = another()
        for name in names:
            to = Upgrade(rollout="r1", server=name, wave=0).after(Admitted(at=now[0]))
            assert store.admit("r1", name, to=to, limit=20_000, wave=0, domain="", entry=DID)
        four = [coordinator(another(), sent.append) for _ in range(4)]
        for _ in range(7):
            while store.due(limit=1):
                for each in four:
                    each._send_due()
            now[0] += 5.0
        assert len({messages[0]["id"] for messages in sent}) == len(names), "each under one epoch"
        assert len(sent) <= 4 * len(names), "after 0, 5, 10 and 20 s"
        taken = 0
        for messages in sent:
            first = messages[0]["kwargs"]
            owner = f"w/{first['server']}"
            claim = store.claim(
                "r1",
                first["server"],
                epoch=first["epoch"],
                step="create_image",
                direction="forward",
                owner=f"{owner}/{taken}",
                lease=600.0,
            )
            taken += isinstance(claim, Claim)
        assert taken == len(names), "and each is taken once"


def test_a_second_rollout_over_a_server_whose_undo_is_open_is_refused_with_the_owners_name(store: Store) -> None:
    first = a_rollout(["a"], limit=1)
    store.create(first, [Upgrade(rollout="r1", server="a", wave=0)], locks={"lock/a": "a"})
    row = store.row("r1", "a")
    assert row is not None
    u = row.upgrade.after(Admitted(at=1.0))
    u = u.after(hoped_for(u, 1.0)).after(TurnedBack(why="bad", at=2.0, asked=True))
    assert (u.state, u.direction) == ("running", "undo")
    assert store.turn(row, u, entry=DID, due=store.now()) is not None
    ended = store.change(first, rolling_back(first, why="w"), entry=DID)
    assert ended is not None
    second = [Upgrade(rollout="r2", server="a", wave=0)]
    with pytest.raises(Locked, match="a belongs to rollout r1"):
        store.create(replace(first, id="r2"), second, locks={"lock/a": "a"})
    assert store.rollout("r2") is None
