"""Admits, wakes and sweeps. Any number may run, without a leader: every act compares what it changes.

If none runs, nothing proceeds, nothing is destroyed, and every site still serves.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import structlog
from kombu.exceptions import OperationalError

from orchestrator import dispatch, garbage
from orchestrator.dispatch import Sender
from orchestrator.domain.membership import look_every
from orchestrator.domain.outbox import Feed
from orchestrator.domain.rollout import Admit, Become, Decision, Rollout, Turn, decide, may_begin
from orchestrator.domain.upgrade import Admitted, TurnedBack
from orchestrator.errors import ChangeoverError, Conflict, Unreachable, UnsafeStore
from orchestrator.mending import mend
from orchestrator.reading import SHARE, STALE, Known, readable
from orchestrator.settings import Settings
from orchestrator.store import Entry, Row, Store, Tally

if TYPE_CHECKING:
    from orchestrator.domain.receivers import Receiver
    from orchestrator.lanes import Reach

log = structlog.get_logger()

LONGEST_SLEEP = 1.0  # seconds between sweeps when nothing wakes it
SHORTEST_SLEEP = 0.05  # a look may be due and sent, and not have begun
AT_ONCE = 500  # due upgrades that one sweep sends
OBSERVER_LOST = 5.0  # seconds after which a look that was sent and has not begun is sent again
SCAN_EVERY = 300.0  # seconds between two searches for what nobody accounts for
MEND_EVERY = 30.0  # seconds between two looks whether the agendas agree with the records
STRANGE = 3600.0  # seconds after which what only receivers follow that nobody knows is given up
PUT_OFF = 30.0  # seconds after which a due record that cannot be read is tried again
_AWAY = (Unreachable, OperationalError, OSError)  # Redis or the broker: the whole sweep waits for it


class Scanner(Protocol):
    """Sends one message that asks a worker to search a lane for what nobody accounts for."""

    def __call__(self, lane: str, /) -> None: ...


class Observer(Protocol):
    """Sends one message that asks a worker to look at a lane."""

    def __call__(self, lane: str, ticket: str, /) -> None: ...


class Patroller(Protocol):
    """Sends one message that asks a worker to look after the pools of a rollout."""

    def __call__(self, rollout: str, ticket: str, /) -> None: ...


class Notifier(Protocol):
    """Sends one message that asks a worker to tell a receiver what has happened in a rollout."""

    def __call__(self, receiver: str, rollout: str, /) -> None: ...


def _nobody(_rollout: str, _ticket: str, /) -> None: ...


@dataclass
class _View:
    """What this coordinator knows of a rollout. It last read of it at `read_at`, and does not again for `pause` seconds
    (of `monotonic`); `woken` are those that were lately sent since they may begin again, and when."""

    known: Known
    version: int = -1
    tally: tuple[object, ...] = ()
    read_at: float = 0.0
    pause: float = 0.0
    woken: dict[str, float] = field(default_factory=dict)
    look_every: float | None = None
    patrolled_at: float = 0.0
    mended_at: float = 0.0


@dataclass(kw_only=True)
class Coordinator:
    store: Store
    publish: Sender
    observe: Observer
    monotonic: Callable[[], float]
    grace: float
    scan: Scanner | None = None
    patrol: Patroller = _nobody
    notify: Notifier = _nobody
    receivers: Callable[[], Mapping[str, Receiver]] = dict
    name: str = field(default_factory=lambda: f"coordinator-{uuid.uuid4().hex[:6]}")
    _views: dict[str, _View] = field(default_factory=dict)
    _left_alone: dict[str, str] = field(default_factory=dict)
    _reaches: dict[str, Reach] = field(default_factory=dict)
    _scan_at: float = 0.0
    _reopen_at: float = 0.0

    def tick(self) -> None:
        """Do everything that is due now, once."""
        open_now = self.store.open_rollouts()
        if receivers := self.receivers():
            with self._alone("receivers"):
                self._notify(open_now, receivers)
        for rollout in open_now:
            with self._alone(rollout.id):
                self._advance(rollout)
            with self._alone(f"the pools of {rollout.id}"):
                self._patrol(rollout)
            with self._alone(f"the agendas of {rollout.id}"):
                self._mend(rollout)
        for gone in self._views.keys() - {rollout.id for rollout in open_now}:
            del self._views[gone]
        for lane in self.store.due_lanes():
            ticket = f"{self.name}:{uuid.uuid4().hex[:8]}"
            if self.store.lease(f"observe:{lane}", owner=ticket, seconds=OBSERVER_LOST) is not None:
                self.observe(lane, ticket)
        self._send_due()
        self._search()
        self._reopen()

    def _mend(self, rollout: Rollout) -> None:
        """Of all coordinators one compares the agendas with the records: half a minute after it was first seen, and
        every half a minute from then on."""
        view = self._view(rollout)
        clock = self.monotonic()
        view.mended_at = view.mended_at or clock
        if clock - view.mended_at < max(MEND_EVERY, 2 * view.known.cost * SHARE):
            return
        view.mended_at = clock
        ticket = f"{self.name}:{uuid.uuid4().hex[:8]}"
        if self.store.lease(f"mend:{rollout.id}", owner=ticket, seconds=0.9 * MEND_EVERY) is not None:
            mend(self.store, rollout, actor=self.name, grace=self.grace)

    def _reopen(self) -> None:
        """An open rollout that is missing in the list of them would be looked at by nobody."""
        if self.monotonic() < self._reopen_at:
            return
        self._reopen_at = self.monotonic() + MEND_EVERY
        for id in self.store.reopen():
            log.warning("mended", rollout=id, what="it was not among the open rollouts")

    def _notify(self, open_now: Sequence[Rollout], receivers: Mapping[str, Receiver]) -> None:
        """Every log that is open is followed by all who want to know of it, and to its end."""
        feeds = {feed.name: feed for feed in self.store.feeds()}
        still = {rollout.id for rollout in open_now}
        for name, receiver in receivers.items():
            for rollout in open_now:
                fresh = Feed(receiver=name, rollout=rollout.id)
                if receiver.sees(rollout.fleet) and fresh.name not in feeds:
                    self.store.change_feed(None, fresh)
        now = self.store.now()
        for feed in feeds.values():
            if feed.due > now:
                continue
            if feed.receiver not in receivers:  # others may know it, if they have a newer file
                if feed.rollout not in still and now - feed.due > STRANGE:
                    self.store.change_feed(feed, None)
            elif not feed.behind(self.store.last_event(feed.rollout)):
                if feed.rollout not in still:
                    self.store.change_feed(feed, None)
            elif self.store.change_feed(feed, feed.taken(now)) is not None:
                self.notify(feed.receiver, feed.rollout)

    def _search(self) -> None:
        """One of all coordinators, once in a while, sends a search to every lane."""
        if self.scan is None or self.monotonic() < self._scan_at:
            return
        self._scan_at = self.monotonic() + SCAN_EVERY / 10
        ticket = f"{self.name}:{uuid.uuid4().hex[:8]}"
        if self.store.lease("scan", owner=ticket, seconds=SCAN_EVERY) is None:
            return
        from orchestrator.lanes import lanes  # with the fleet file's model, which nothing else of this needs

        for lane in lanes(self.store, self._reaches):
            self.scan(lane)

    def _send_due(self) -> None:
        due = self.store.due(limit=AT_ONCE)
        stuck = set(due)
        for rollout, servers in _grouped(due).items():
            rows, unread = readable(self.store, rollout, servers)
            for server, why in unread.items():
                self._tell(f"{rollout}/{server}", why)
            for row in rows:
                with self._alone(f"{rollout}/{row.upgrade.server}"):
                    dispatch.send(self.store, self.publish, row, grace=self.grace)
                    stuck.discard((rollout, row.upgrade.server))
        if stuck:
            self.store.put_off(sorted(stuck), seconds=PUT_OFF)

    @contextmanager
    def _alone(self, what: str) -> Iterator[None]:
        """A rollout or a server with which something is wrong holds up nothing else. What is away is so for all."""
        try:
            yield
        except _AWAY:
            raise
        except UnsafeStore as error:
            self._tell(what, str(error))
        except Exception as error:  # whatever an edit by hand or a fault of ours made of it
            self._tell(what, repr(error), error)
        else:
            self._tell(what, "")

    def _tell(self, what: str, why: str, error: Exception | None = None) -> None:
        """Once, until it is another reason or well again."""
        if why and self._left_alone.get(what) != why:
            log.error("left alone", what=what, error=why, exc_info=error)
        if why:
            self._left_alone[what] = why
        else:
            self._left_alone.pop(what, None)

    # -- rollouts -------------------------------------------------------------------------------------------------

    def _view(self, rollout: Rollout) -> _View:
        if rollout.id not in self._views:
            self._views[rollout.id] = _View(known=Known(store=self.store, monotonic=self.monotonic))
        return self._views[rollout.id]

    def _advance(self, rollout: Rollout) -> None:
        view = self._view(rollout)
        tally = self.store.tally(rollout.id)
        moved = _moved(tally)
        until = rollout.wakes_at
        timed = until is not None and self.store.now() >= until
        clock = self.monotonic()
        known = (view.version, view.tally) == (rollout.version, moved) and not view.known.stale
        if (known and not timed) or clock - view.read_at < view.pause:
            return
        found = self._consider(rollout, view, tally)
        if found is None:
            return
        decisions, now = found
        view.look_every = look_every(rollout, [row.upgrade for row in view.known.rows.values()], now=now)
        for decision in decisions:
            self._act(rollout, view, decision, now)
        if not decisions:
            if view.version != rollout.version:
                view.woken.clear()
            view.version, view.tally = rollout.version, moved
            self._wake_refused(rollout, view)

    def _consider(self, rollout: Rollout, view: _View, tally: Tally) -> tuple[list[Decision], float] | None:
        """What follows from the records, and as of when; None if that cannot be said yet. Only an admission may follow
        from records read before, since its script checks all that it depends on; for everything else all are read."""
        known, began = view.known, self.monotonic()
        try:
            if known.read_news(rollout):
                decisions, now = self._decide(rollout, view, tally)
                admitted = [decision.server for decision in decisions if isinstance(decision, Admit)]
                if len(admitted) == len(decisions) and known.still(rollout, admitted):
                    return decisions, now
        finally:
            view.read_at = self.monotonic()
            view.pause = (view.read_at - began) * SHARE
        if known.tired:
            return None
        known.read_all(rollout)
        self._tell(f"records of {rollout.id}", "; ".join(known.unread.values()))
        return self._decide(rollout, view, tally)

    def _decide(self, rollout: Rollout, view: _View, tally: Tally) -> tuple[list[Decision], float]:
        now = self.store.now()
        # In the order of the fleet file: who stands first there goes first.
        rows = view.known.rows
        upgrades = [rows[name].upgrade for wave in rollout.waves for name in wave if name in rows]
        decisions = decide(rollout, upgrades, failed_before_swap=tally.failed_before_swap, now=now)
        if view.known.unread:
            decisions = [decision for decision in decisions if _holds_without_all(decision)]
        return decisions, now

    def _wake_refused(self, rollout: Rollout, view: _View) -> None:
        """Those that were not allowed to begin their step may try again as soon as the rollout goes on."""

        def allowed(row: Row) -> bool:
            wait = row.upgrade.wait
            return wait is not None and wait.refused and may_begin(rollout, row.upgrade)

        clock = self.monotonic()
        told = {name for name, at in view.woken.items() if clock - at < STALE}
        names = [name for name, row in view.known.rows.items() if allowed(row) and name not in told]
        if not names or self.store.frozen() is not None:
            return
        view.woken.update(dict.fromkeys(names, clock))
        for row in filter(allowed, readable(self.store, rollout.id, names)[0]):
            dispatch.send(self.store, self.publish, row, grace=self.grace)

    def _patrol(self, rollout: Rollout) -> None:
        """The pools are looked after as long as the rollout is open, by one worker at a time, whoever sends it."""
        view = self._view(rollout)
        clock, every = self.monotonic(), view.look_every
        if every is None or clock - view.patrolled_at < max(every, view.known.cost * SHARE):
            return
        view.patrolled_at = clock
        ticket = f"{self.name}:{uuid.uuid4().hex[:8]}"
        if self.store.lease(f"patrol:{rollout.id}", owner=ticket, seconds=0.9 * every) is not None:
            self.patrol(rollout.id, ticket)

    def _act(self, rollout: Rollout, view: _View, decision: Decision, now: float) -> None:
        match decision:
            case Admit(server=server):
                self._admit(rollout, view.known.rows[server], now)
            case Turn(server=server, why=why):
                self._turn(view.known.rows[server], why, now)
            case Become(rollout=to, event=event):
                entry = Entry(event=event, actor=self.name, detail={"why": to.why, "wave": to.wave})
                if self.store.change(rollout, to, entry=entry) is not None:
                    log.info("rollout", rollout=rollout.id, tells=event, was=rollout.state, now=to.state, why=to.why)

    def _admit(self, rollout: Rollout, row: Row, now: float) -> None:
        to = row.upgrade.after(Admitted(at=now))
        version = self.store.admit(
            rollout.id,
            to.server,
            to=to,
            limit=rollout.max_in_flight,
            wave=rollout.wave,
            domain=to.domain,
            entry=Entry(event="Admitted", actor=self.name),
        )
        if version is not None:
            # If it was changed since it was read, this sends nothing: it is due at once, and read anew.
            fresh = replace(row, upgrade=to, version=version)
            dispatch.send(self.store, self.publish, fresh, grace=self.grace)

    def _turn(self, row: Row, why: str, now: float) -> None:
        try:
            to = row.upgrade.after(TurnedBack(why=why, at=now, asked=True))
        except Conflict as late:
            log.warning("not turned back", server=row.upgrade.server, why=str(late))
            return
        if to == row.upgrade:
            return
        entry = Entry(event="TurnedBack", actor=self.name, detail={"why": why})
        turned = self.store.turn(row, to, entry=entry, due=None if to.terminal else now)
        if turned is not None and not to.terminal:
            dispatch.send(self.store, self.publish, turned, grace=self.grace)


def _holds_without_all(decision: Decision) -> bool:
    """Whether it is right though some records cannot be read: what puts back or stops. Nothing new begins then, and no
    wave and no rollout ends, because that says something of every server."""
    match decision:
        case Turn():
            return True
        case Become(rollout=to):
            return to.state == "paused"
        case _:
            return False


def _moved(tally: Tally) -> tuple[object, ...]:
    """What of a tally can change a decision: not how many of those in flight happen to wait at the moment."""
    states = dict(tally.by_state)
    states["running"] = states.get("running", 0) + states.pop("waiting", 0)
    return (*sorted(states.items()), tally.failed_before_swap, tally.failed_after_swap)


def _grouped(pairs: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for rollout, server in pairs:
        groups.setdefault(rollout, []).append(server)
    return groups


def _receivers(settings: Settings) -> Callable[[], Mapping[str, Receiver]]:
    if settings.notify is None:
        return dict
    from orchestrator.hook_file import Reread, named_receivers  # with the fleet file's model

    return Reread(named_receivers, settings.notify, names=lambda _: ())


def run(settings: Settings, stop: threading.Event) -> None:
    """The loop of `changeover coordinator`, until `stop`. It outlives an absent Redis. Raises `UnsafeStore` when at its
    start Redis would lose what it is told."""
    import time

    from orchestrator.dispatch import celery_sender
    from orchestrator.messaging import make_app
    from orchestrator.store.health import check_messages
    from orchestrator.store.redis import RedisStore

    app = make_app(settings)
    store: Store = RedisStore(settings.store_url(), namespace=settings.namespace)

    def observe(lane: str, ticket: str) -> None:
        kwargs = {"lane": lane, "ticket": ticket}
        id = f"observe:{lane}:{ticket}"
        app.send_task("tasks.observe", kwargs=kwargs, task_id=id, priority=0, ignore_result=True)

    def scan(lane: str) -> None:
        app.send_task("tasks.scan", kwargs={"lane": lane}, priority=9, ignore_result=True)

    def patrol(rollout: str, ticket: str) -> None:
        id = f"patrol:{rollout}:{ticket}"
        app.send_task("tasks.patrol", kwargs={"rollout": rollout}, task_id=id, priority=0, ignore_result=True)

    def notify(receiver: str, rollout: str) -> None:
        kwargs = {"receiver": receiver, "rollout": rollout}
        app.send_task("tasks.notify", kwargs=kwargs, priority=6, ignore_result=True)

    coordinator = Coordinator(
        store=store,
        publish=celery_sender(app),
        observe=observe,
        scan=scan,
        patrol=patrol,
        notify=notify,
        receivers=_receivers(settings),
        monotonic=time.monotonic,
        grace=settings.grace,
    )
    garbage.settle()
    cursor, checked, away = "$", False, ""
    while not stop.is_set():
        began = time.monotonic()
        try:
            if not checked:
                store.check(dev=settings.dev)
                check_messages(settings.urls(), dev=settings.dev)
                checked = True
            coordinator.tick()
            if away:
                log.info("store", was="away", now="back")
                away = ""
            next_due = store.next_due()
            pause = (
                LONGEST_SLEEP if next_due is None else min(LONGEST_SLEEP, max(SHORTEST_SLEEP, next_due - store.now()))
            )
            cursor = store.sleep(pause, cursor=cursor)
            # Commits wake us, hundreds of them a second in a large rollout: one sweep answers all of a moment.
            stop.wait(max(0.0, began + SHORTEST_SLEEP - time.monotonic()))
        except ChangeoverError as error:
            if isinstance(error, UnsafeStore) and not checked:
                raise
            if away != error.message:
                log.warning("store", was="answering", now="away", error=str(error))
            away = error.message
            stop.wait(1.0)
        except Exception as error:  # whatever it was, the next sweep reads everything anew
            log.error("tick failed", error=repr(error), exc_info=error)
            stop.wait(1.0)
