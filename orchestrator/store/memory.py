"""The store in this process, for simulations and tests: every promise of `RedisStore`, except that of outliving it.

One lock makes each method atomic. Records go through the same JSON, so that what cannot be stored is found here too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Condition, RLock
from typing import Any, Literal

from orchestrator.domain.budget import Bucket, Limit, fresh
from orchestrator.domain.delivery import Delivery
from orchestrator.domain.orphans import Sighting
from orchestrator.domain.outbox import Feed
from orchestrator.domain.rollout import GOING, Rollout
from orchestrator.domain.token import SESSIONS, Session, Token
from orchestrator.domain.upgrade import Direction, Upgrade
from orchestrator.errors import NotFound
from orchestrator.store import (
    DELIVERIES,
    MOST_WAITING,
    WORLDS,
    AuditEntry,
    Claim,
    Counts,
    Entry,
    Failure,
    Ignored,
    LedgerItem,
    Once,
    RefusedIntent,
    RefusedReason,
    Row,
    Tally,
    Users,
    codec,
)
from orchestrator.store.shapes import (
    MOST_LOST,
    RESEND,
    at_rest,
    attempts,
    check_agenda,
    check_creation,
    check_cursor,
    check_goes_on,
    counted,
    due_at,
    feed_name,
    fenced,
    frozen_text,
    handed_on,
    latest,
    locked,
    no_delivery,
)

_FLYING = ("running", "waiting", "held")


@dataclass(kw_only=True)
class _Record:
    upgrade: Upgrade
    version: int = 0
    epoch: int = 0
    entry: int = 0
    owner: str = ""
    fence: int = 0
    lease: float = 0.0
    lane: str = ""
    sent: float | None = None
    lost: tuple[str, ...] = ()
    row: Row | None = None  # as last read


@dataclass(kw_only=True)
class _Rollout:
    rollout: Rollout
    records: dict[str, _Record]
    counts: dict[str, int]
    domains: dict[str, int] = field(default_factory=dict)
    ledger: dict[str, LedgerItem] = field(default_factory=dict)
    audit: list[tuple[tuple[int, int], dict[str, Any]]] = field(default_factory=list)


@dataclass(kw_only=True)
class _Lease:
    owner: str
    fence: int
    until: float


@dataclass(kw_only=True)
class _Asked:
    asked: str
    id: str
    ends: float
    until: float = 0.0
    done: bool = False


class MemoryStore:
    """For any number of threads of one process."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = RLock()
        self._news = Condition(self._lock)
        self._documents: dict[tuple[str, str], tuple[bytes, float | None]] = {}
        self._rollouts: dict[str, _Rollout] = {}
        self._locks: dict[str, str] = {}
        self._frozen: str | None = None
        self._due: dict[tuple[str, str], float] = {}
        self._look: dict[str, dict[tuple[str, str], float]] = {}
        self._leases: dict[str, _Lease] = {}
        self._buckets: dict[str, Bucket] = {}
        self._sightings: dict[str, tuple[str, bytes]] = {}
        self._worlds: dict[str, str] = {}
        self._tokens: dict[str, Token] = {}
        self._sessions: dict[str, Session] = {}
        self._once: dict[str, _Asked] = {}
        self._nonces: dict[str, tuple[str, float]] = {}
        self._feeds: dict[str, Feed] = {}
        self._deliveries: dict[str, tuple[Delivery, bytes]] = {}
        self._workers: dict[str, tuple[bytes, float]] = {}
        self._ignored: dict[str, int] = {}
        self._lost = 0
        self._resent = 0
        self._users: dict[str, Users] = {}
        self._queue_wait = 0.0
        self._last_id = (0, 0)
        self._woken = (0, 0)

    def close(self) -> None:
        """Nothing to end."""

    # -- the store itself ------------------------------------------------------------------------------------------

    def now(self) -> float:
        return round(self._clock(), 6)

    def check(self, *, dev: bool) -> None:
        """Nothing to check."""

    def confirmed(self) -> bool | None:
        return None

    # -- plans and rollouts ------------------------------------------------------------------------------------------

    def put_document(self, kind: str, id: str, body: Mapping[str, Any], *, ttl: float | None = None) -> bool:
        with self._lock:
            if self.document(kind, id) is not None:
                return False
            self._documents[kind, id] = (codec.text(body), None if ttl is None else self.now() + ttl)
            return True

    def forget_document(self, kind: str, id: str) -> None:
        with self._lock:
            self._documents.pop((kind, id), None)

    def document(self, kind: str, id: str) -> Mapping[str, Any] | None:
        with self._lock:
            stored, until = self._documents.get((kind, id), (None, None))
            if stored is None or (until is not None and until <= self.now()):
                return None
            return codec.mapping(stored, key=f"document:{kind}:{id}")

    def create(self, rollout: Rollout, upgrades: Sequence[Upgrade], *, locks: Mapping[str, str]) -> Rollout:
        check_creation(rollout, upgrades)
        doc = codec.ROLLOUT.dump(rollout)
        with self._lock:
            if rollout.id in self._rollouts:
                return self._rollouts[rollout.id].rollout
            for lock in sorted(locks):
                other = self.owner_of(lock)
                if other is not None:
                    raise locked(locks[lock], other)
            records = {u.server: _record(u) for u in upgrades}
            counts, domains = counted(upgrades)
            stored = _Rollout(rollout=rollout, records=records, counts=counts, domains=domains)
            self._rollouts[rollout.id] = stored
            self._locks.update(dict.fromkeys(locks, rollout.id))
            for record in records.values():
                self._place(record, due_at(record.upgrade, self.now()), "")
            self._audit(stored, Entry(event="created", actor=rollout.created_by), doc, was="", now=rollout.state)
            self._wake()
            return rollout

    def rollout(self, id: str) -> Rollout | None:
        with self._lock:
            stored = self._rollouts.get(id)
            return None if stored is None else stored.rollout

    def rollouts(self) -> Sequence[Rollout]:
        with self._lock:
            found = [stored.rollout for stored in self._rollouts.values()]
        return sorted(found, key=lambda r: (r.created_at, r.id), reverse=True)

    def unread(self) -> Mapping[str, str]:
        return {}

    def open_rollouts(self) -> Sequence[Rollout]:
        return [rollout for rollout in self.rollouts() if not rollout.closed]

    def change(self, was: Rollout, now: Rollout, *, entry: Entry) -> Rollout | None:
        doc = codec.ROLLOUT.dump(now)
        with self._lock:
            stored = self._rollouts.get(was.id)
            if stored is None or stored.rollout.version != was.version:
                return None
            before = stored.rollout.state
            after = replace(codec.ROLLOUT.load(doc, key=was.id), version=_version_after(was.version, self.now()))
            stored.rollout = after
            if after.closed:
                self._locks = {lock: owner for lock, owner in self._locks.items() if owner != was.id}
            self._audit(stored, entry, doc, was=before, now=after.state)
            self._wake()
            return after

    def freeze(self, on: bool, *, actor: str, reason: str = "") -> None:
        with self._lock:
            self._frozen = frozen_text(actor, reason) if on else None
            entry = Entry(
                event="frozen" if on else "unfrozen", actor=actor, detail={"reason": reason} if reason else {}
            )
            for rollout in self.open_rollouts():
                self.note(rollout.id, entry)
            self._wake()

    def frozen(self) -> str | None:
        return self._frozen

    def put_token(self, token: Token) -> bool:
        with self._lock:
            if token.id in self._tokens:
                return False
            self._tokens[token.id] = codec.TOKEN.load(codec.TOKEN.dump(token), key=token.id)
            return True

    def token(self, id: str) -> Token | None:
        return self._tokens.get(id)

    def token_now(self, id: str) -> tuple[Token | None, float]:
        return self.token(id), self.now()

    def tokens(self) -> Sequence[Token]:
        with self._lock:
            return sorted(self._tokens.values(), key=lambda token: (token.created_at, token.id))

    def revoke_token(self, id: str) -> bool:
        with self._lock:
            token = self._tokens.get(id)
            if token is None or token.revoked_at is not None:
                return False
            self._tokens[id] = replace(token, revoked_at=self.now())
            return True

    def used_token(self, id: str) -> None:
        with self._lock:
            if id in self._tokens:
                self._tokens[id] = replace(self._tokens[id], used_at=self.now())

    def put_session(self, key: str, session: Session) -> None:
        with self._lock:
            now = self.now()
            self._sessions = {known: each for known, each in self._sessions.items() if each.until > now}
            others = [known for known, each in self._sessions.items() if each.token == session.token and known != key]
            others.sort(key=lambda known: self._sessions[known].until)
            for old in others[: max(0, len(others) - SESSIONS + 1)]:
                del self._sessions[old]
            self._sessions[key] = session

    def session(self, key: str) -> Session | None:
        with self._lock:
            found = self._sessions.get(key)
            return found if found is not None and found.until > self.now() else None

    def end_session(self, key: str) -> bool:
        with self._lock:
            return self.session(key) is not None and self._sessions.pop(key) is not None

    def once(self, key: str, *, asked: str, id: str, seconds: float, ttl: float) -> Once:
        with self._lock:
            now = self.now()
            found = self._once.get(key)
            if found is None or found.ends <= now:
                found = self._once[key] = _Asked(asked=asked, id=id, ends=now + ttl)
            elif found.asked != asked:
                return Once(state="other", id=found.id)
            elif found.done:
                return Once(state="done", id=found.id)
            elif found.until > now:
                return Once(state="busy", id=found.id)
            found.until = now + seconds
            return Once(state="mine", id=found.id)

    def once_ended(self, key: str, *, how: Literal["done", "again", "forgotten"], id: str = "") -> None:
        with self._lock:
            found = self._once.get(key)
            if found is None:
                return
            match how:
                case "done":
                    found.done, found.id = True, id
                case "again":
                    found.until = 0.0
                case "forgotten":
                    del self._once[key]

    # -- webhooks -------------------------------------------------------------------------------------------------

    def put_delivery(self, delivery: Delivery, payload: Any, *, once: str, keep: float) -> str | None:
        with self._lock:
            there, until = self._nonces.get(once, ("", 0.0))
            if until > self.now():
                return there
            if len(self.due_deliveries()) >= MOST_WAITING:
                return None
            self._nonces[once] = (delivery.id, self.now() + keep)
            self._keep_delivery(replace(delivery, version=_version_after(0, self.now())), codec.text(payload))
            for old in self.deliveries()[DELIVERIES:]:
                if old.due is None:
                    del self._deliveries[old.id]
            return delivery.id

    def _keep_delivery(self, delivery: Delivery, payload: bytes) -> Delivery:
        kept = codec.DELIVERY.load(codec.DELIVERY.dump(delivery), key=delivery.id)
        self._deliveries[delivery.id] = (kept, payload)
        return kept

    def delivery(self, id: str) -> Delivery | None:
        with self._lock:
            return self._deliveries[id][0] if id in self._deliveries else None

    def deliveries(self) -> Sequence[Delivery]:
        with self._lock:
            known = [delivery for delivery, _ in self._deliveries.values()]
            return sorted(known, key=lambda each: (each.received_at, each.id), reverse=True)

    def payload(self, id: str) -> Any:
        with self._lock:
            if id not in self._deliveries:
                raise no_delivery(id)
            return json.loads(self._deliveries[id][1])

    def due_deliveries(self) -> Sequence[Delivery]:
        with self._lock:
            waiting = [known for known, _ in self._deliveries.values() if known.due is not None]
            return sorted(waiting, key=lambda each: (each.due, each.id))

    def change_delivery(self, was: Delivery, now: Delivery) -> Delivery | None:
        with self._lock:
            stored = self._deliveries.get(was.id)
            if stored is None or stored[0].version != was.version:
                return None
            after = replace(now, version=_version_after(was.version, self.now()))
            return self._keep_delivery(after, stored[1])

    def feeds(self) -> Sequence[Feed]:
        with self._lock:
            return sorted(self._feeds.values(), key=lambda feed: feed.name)

    def change_feed(self, was: Feed | None, now: Feed | None) -> Feed | None:
        with self._lock:
            name = feed_name(was, now)
            there = self._feeds.get(name)
            if (None if there is None else there.version) != (None if was is None else was.version):
                return None
            if now is None:
                return self._feeds.pop(name, None)
            version = _version_after(0 if was is None else was.version, self.now())
            self._feeds[name] = codec.FEED.load(codec.FEED.dump(replace(now, version=version)), key=name)
            return self._feeds[name]

    # -- upgrades -------------------------------------------------------------------------------------------------

    def row(self, rollout: str, server: str) -> Row | None:
        with self._lock:
            record = self._record(rollout, server)
            return None if record is None else self._row(record)

    def rows(self, rollout: str, servers: Collection[str] | None = None) -> Sequence[Row]:
        with self._lock:
            stored = self._rollouts.get(rollout)
            records = {} if stored is None else stored.records
            names = records.keys() if servers is None else records.keys() & set(servers)
            return [self._row(records[name]) for name in sorted(names)]

    def tally(self, rollout: str) -> Tally:
        with self._lock:
            stored = self._rollouts.get(rollout)
            counts = {} if stored is None else dict(stored.counts)
        before, after = counts.pop("failed:before", 0), counts.pop("failed:after", 0)
        return Tally(
            by_state={state: n for state, n in sorted(counts.items()) if n},
            failed_before_swap=before,
            failed_after_swap=after,
        )

    def admit(
        self, rollout: str, server: str, *, to: Upgrade, limit: int, wave: int, domain: str, entry: Entry
    ) -> int | None:
        check_goes_on(to)
        doc = codec.UPGRADE.dump(to)
        with self._lock:
            record = self._record(rollout, server)
            if record is None or record.upgrade.state != "pending" or attempts(record.upgrade) != attempts(to):
                return None
            stored = self._rollouts[rollout]
            now = stored.rollout
            if self._frozen is not None or now.state != "running" or now.stop or now.closed:
                return None
            if now.wave != wave or record.upgrade.wave != wave:
                return None
            if sum(stored.counts.get(state, 0) for state in _FLYING) >= limit:
                return None
            if domain and any(other != domain for other in stored.domains):
                return None
            record.lane, record.sent = "", None
            self._change(stored, record, to, doc, entry=entry)
            self._place(record, self.now(), "")
            self._wake()
            return record.version

    def issue(self, rollout: str, server: str, *, version: int, grace: float) -> int | None:
        with self._lock:
            record = self._record(rollout, server)
            if record is None or at_rest(record.upgrade):
                return None
            if self._live(record):
                self._place(record, record.lease, "")
                return None
            if record.version != version:
                return None
            now = self.now()
            if record.owner:
                record.version = _version_after(record.version, now)
                again = self._struck(record, now)
                record.owner, record.lease = "", 0.0
                if again > now:
                    self._place(record, again, "")
                    return None
            return self._sent_out(record, now, grace)

    def _sent_out(self, record: _Record, now: float, grace: float) -> int:
        record.version = _version_after(record.version, now)
        if record.sent is None:
            record.epoch += 1
            record.sent = now
        else:
            self._resent += 1
        record.owner, record.lease = "", 0.0
        self._place(record, now + max(grace, min(max(2 * self._queue_wait, now - record.sent), RESEND)), "")
        return record.epoch

    def claim(
        self, rollout: str, server: str, *, epoch: int, step: str, direction: Direction, owner: str, lease: float
    ) -> Claim | Ignored:
        with self._lock:
            record = self._record(rollout, server)
            if record is None:
                return self._ignore(Ignored(reason="unknown"))
            if at_rest(record.upgrade):
                return self._ignore(Ignored(reason="settled"))
            if record.epoch != epoch:
                return self._ignore(Ignored(reason="stale epoch"))
            if (record.upgrade.step, record.upgrade.direction) != (step, direction):
                return self._ignore(Ignored(reason="another step"))
            if self._live(record) and record.owner != owner:
                return self._ignore(Ignored(reason="leased"))
            now = self.now()
            if record.owner and not self._live(record):
                self._struck(record, now)
            record.fence = _fence_after(record.fence, now)
            record.owner, record.lease = owner, round(now + lease, 6)
            self._place(record, record.lease, "")
            self._queue_wait *= 0.98
            if record.sent is not None:
                self._queue_wait = max(self._queue_wait, now - record.sent)
            self._queue_wait = round(self._queue_wait, 6)
            record.sent = None
            return Claim(
                rollout=rollout,
                server=server,
                owner=owner,
                fence=record.fence,
                version=record.version,
                lease_until=record.lease,
                row=self._row(record),
                lost=record.lost,
            )

    def take(self, row: Row, *, owner: str, lease: float) -> Claim | None:
        rollout, server = row.upgrade.rollout, row.upgrade.server
        with self._lock:
            record = self._record(rollout, server)
            if record is None or record.version != row.version or self._live(record) or self._frozen is not None:
                return None
            now = self.now()
            if record.owner:
                self._struck(record, now)
            record.fence = _fence_after(record.fence, now)
            record.owner, record.lease = owner, round(now + lease, 6)
            self._rest_or_place(record)
            return Claim(
                rollout=rollout,
                server=server,
                owner=owner,
                fence=record.fence,
                version=record.version,
                lease_until=record.lease,
                row=self._row(record),
                lost=record.lost,
            )

    def renew(self, claim: Claim, *, lease: float) -> Claim:
        with self._lock:
            record = self._held(claim)
            record.lease = round(self.now() + lease, 6)
            self._rest_or_place(record)
            return replace(claim, lease_until=record.lease, row=replace(claim.row, lease_until=record.lease))

    def intent(
        self, claim: Claim, to: Upgrade, *, entry: Entry, ledger: Sequence[LedgerItem], undo: bool, finishing: bool
    ) -> Claim | RefusedIntent:
        check_goes_on(to)
        doc = codec.UPGRADE.dump(to)
        with self._lock:
            record = self._held(claim)
            stored = self._rollouts[claim.rollout]
            reason = self._refusal(stored.rollout, to, undo=undo, finishing=finishing)
            if reason is not None:
                return RefusedIntent(reason=reason)
            self._change(stored, record, to, doc, entry=entry, ledger=ledger)
            row = replace(claim.row, upgrade=to, version=record.version, entry=record.entry)
            return replace(claim, version=record.version, row=row)

    def _refusal(self, rollout: Rollout, to: Upgrade, *, undo: bool, finishing: bool) -> RefusedReason | None:
        if self._frozen is not None:
            return "frozen"
        if to.state == "upgraded":
            return "paused" if rollout.state in ("paused", "aborting", "rolling_back") else None
        if undo:
            return None
        if rollout.state == "aborting":
            return None if finishing else "aborting"
        if rollout.state not in GOING:
            return "paused"
        return "stopped" if rollout.stop else None

    def commit(
        self,
        claim: Claim,
        to: Upgrade,
        *,
        entry: Entry,
        due: float | None,
        look: str | None = None,
        ledger: Sequence[LedgerItem] = (),
        locks: Sequence[str] = (),
        failure: Failure = "",
        stop: str = "",
    ) -> Row:
        due = check_agenda(to, due)
        doc = codec.UPGRADE.dump(to)
        with self._lock:
            record = self._held(claim)
            for lock in locks:
                other = self.owner_of(lock)
                if other not in (None, claim.rollout):
                    raise locked(lock, str(other))
            stored = self._rollouts[claim.rollout]
            record.owner, record.lease = "", 0.0
            record.sent = self.now() if handed_on(to, look) else None
            record.lost = ()
            self._change(stored, record, to, doc, entry=entry, ledger=ledger)
            self._place(record, due, look or "")
            self._fail(stored, failure, stop)
            self._locks.update(dict.fromkeys(locks, claim.rollout))
            self._wake()
            return replace(claim.row, upgrade=to, version=record.version, entry=record.entry, owner="", lease_until=0.0)

    def release(self, claim: Claim, *, due: float | None = None, look: str | None = None, died: bool = False) -> None:
        with self._lock:
            record = self._record(claim.rollout, claim.server)
            if record is not None and record.owner == claim.owner and record.fence == claim.fence:
                if died:
                    self._struck(record, self.now())
                self._give_back(record, self.now() if due is None else due, look or "")
                self._wake()

    def release_owner(self, prefix: str, *, died: bool = False) -> int:
        with self._lock:
            released = 0
            for lease in self._leases.values():
                if lease.owner.startswith(prefix):
                    lease.owner, lease.until = "", 0.0
            for stored in self._rollouts.values():
                for record in stored.records.values():
                    if record.owner and record.owner.startswith(prefix):
                        released += self._live(record)
                        self._give_back(record, self._struck(record, self.now()) if died else self.now())
            if released:
                self._wake()
            return released

    def turn(
        self,
        row: Row,
        to: Upgrade,
        *,
        entry: Entry,
        due: float | None,
        ledger: Sequence[LedgerItem] = (),
        failure: Failure = "",
        stop: str = "",
        seen: int | None = None,
    ) -> Row | None:
        due = check_agenda(to, due)
        doc = codec.UPGRADE.dump(to)
        with self._lock:
            record = self._record(to.rollout, to.server)
            if record is None or record.version != row.version:
                return None
            stored = self._rollouts[to.rollout]
            if stored.rollout.closed or seen not in (None, stored.rollout.version):
                return None
            if not self._live(record):
                if record.owner:
                    self._struck(record, self.now())
                record.owner, record.lease = "", 0.0
            elif due is not None:
                due = max(due, record.lease)
            if record.upgrade.terminal and not to.terminal:
                self._outdate(stored)
            record.sent = None
            if record.upgrade.state == "held" or record.upgrade.direction != to.direction:
                record.lost = ()
            self._change(stored, record, to, doc, entry=entry, ledger=ledger)
            self._place(record, due, "")
            self._fail(stored, failure, stop)
            self._wake()
            return self._row(record)

    # -- waits -------------------------------------------------------------------------------------------------------

    def due(self, *, limit: int) -> Sequence[tuple[str, str]]:
        with self._lock:
            return _ripe(self._due, self.now(), limit)

    def due_lanes(self) -> Sequence[str]:
        with self._lock:
            now = self.now()
            return sorted(lane for lane, agenda in self._look.items() if any(at <= now for at in agenda.values()))

    def due_in_lane(self, lane: str, *, limit: int, postpone: float) -> Sequence[Row]:
        with self._lock:
            now = self.now()
            agenda = self._look.get(lane, {})
            found = _ripe(agenda, now, limit)
            agenda.update(dict.fromkeys(found, round(now + postpone, 6)))
            return [self._row(self._rollouts[rollout].records[server]) for rollout, server in found]

    def look_again(self, lane: str, due: Mapping[tuple[str, str], float]) -> None:
        with self._lock:
            agenda = self._look.get(lane, {})
            agenda.update({who: round(at, 6) for who, at in due.items() if who in agenda and at < agenda[who]})

    def next_due(self) -> float | None:
        with self._lock:
            return min((at for agenda in (self._due, *self._look.values()) for at in agenda.values()), default=None)

    def looked(self, row: Row, to: Upgrade, *, due: float) -> Row | None:
        doc = codec.UPGRADE.dump(to)
        with self._lock:
            record = self._record(to.rollout, to.server)
            if (
                record is None
                or record.version != row.version
                or at_rest(record.upgrade)
                or not record.lane
                or self._live(record)
            ):
                return None
            self._store(record, to, doc)
            self._place(record, due, record.lane)
            return self._row(record)

    def wake_up(self, row: Row, to: Upgrade, *, grace: float) -> Row | None:
        doc = codec.UPGRADE.dump(to)
        with self._lock:
            record = self._record(to.rollout, to.server)
            if (
                record is None
                or record.version != row.version
                or at_rest(record.upgrade)
                or not record.lane
                or record.owner
            ):
                return None
            self._store(record, to, doc)
            self._sent_out(record, self.now(), grace)
            return self._row(record)

    def put_off(self, due: Sequence[tuple[str, str]], *, seconds: float) -> None:
        with self._lock:
            for who in due:
                if self._record(*who) is None:
                    self._due.pop(who, None)
                elif who in self._due:
                    self._due[who] = round(self.now() + seconds, 6)

    # -- mending -----------------------------------------------------------------------------------------------------

    def mend(self, rollout: str, rows: Sequence[Row], *, late: float) -> Sequence[tuple[str, str]]:
        with self._lock:
            told = [fault for row in rows for fault in self._mend(rollout, row, late)]
            if told:
                self._wake()
            return told

    def _mend(self, rollout: str, row: Row, late: float) -> list[tuple[str, str]]:
        server = row.upgrade.server
        record = self._record(rollout, server)
        if record is None:
            return []
        until = latest(row.upgrade) if record.version == row.version else None
        who, told = (rollout, server), []
        for lane, agenda in self._look.items():
            if lane != record.lane and agenda.pop(who, None) is not None:
                told.append((server, f"was in the agenda of {lane}, which it does not wait in"))
        due, look = who in self._due, record.lane != "" and who in self._look.get(record.lane, {})
        if at_rest(record.upgrade):
            if due or look:
                told.append((server, "was in an agenda, and nothing is to happen to it"))
                self._place(record, None, "")
        elif self._live(record) and not due:
            told.append((server, "was in no agenda while a worker had it"))
            self._place(record, record.lease, "")
        elif not self._live(record) and due and look:
            told.append((server, "was in two agendas"))
            del self._due[who]
        elif not due and not look:
            told.append((server, "was in no agenda"))
            self._place(record, self.now(), "")
        elif until is not None and not self._live(record):
            at = self._due[who] if due else self._look[record.lane][who]
            if at > max(self.now(), until) + late:
                told.append((server, "was due later than its record asks for"))
                self._place(record, self.now(), "" if due else record.lane)
        return told

    def last_event(self, rollout: str) -> str:
        with self._lock:
            stored = self._rollouts.get(rollout)
            last = stored.audit[-1][0] if stored is not None and stored.audit else None
            return "0" if last is None else f"{last[0]}-{last[1]}"

    def changed(self, rollout: str, *, after: str, limit: int) -> tuple[str, Sequence[str]] | None:
        cursor = _position(check_cursor(after))
        with self._lock:
            stored, last = self._rollouts.get(rollout), self.last_event(rollout)
            found = [] if stored is None else [fields for at, fields in stored.audit if at > cursor]
        if len(found) > limit or (not found and last != after):
            return None
        return last, sorted({fields["server"] for fields in found} - {""})

    def beside(self, rollout: str) -> tuple[str, str | None, Sequence[Sighting]]:
        return self.last_event(rollout), self.frozen(), [s for s in self.sightings() if s.rollout == rollout]

    def recount(self, rollout: str, upgrades: Sequence[Upgrade], *, seen: str) -> Sequence[str]:
        states, domains = counted(upgrades)
        with self._lock:
            stored = self._rollouts.get(rollout)
            if stored is None or self.last_event(rollout) != seen:
                return []
            failures = {name: n for name, n in stored.counts.items() if name.startswith("failed:")}
            told = _miscounted(stored.counts, {**states, **failures}) + _miscounted(stored.domains, domains)
            stored.counts, stored.domains = {**states, **failures}, domains
            if told:
                self._wake()
            return told

    def relock(self, rollout: str, locks: Sequence[str]) -> Sequence[tuple[str, str]]:
        with self._lock:
            stored = self._rollouts.get(rollout)
            if stored is None or stored.rollout.closed:
                return []
            told = [(lock, self.owner_of(lock) or "") for lock in locks if self.owner_of(lock) != rollout]
            self._locks.update({lock: rollout for lock, other in told if not other})
            return told

    def reopen(self) -> Sequence[str]:
        return ()  # open is what is not closed: there is no other list

    # -- the rest ---------------------------------------------------------------------------------------------------

    def ledger(self, rollout: str) -> Sequence[LedgerItem]:
        with self._lock:
            stored = self._rollouts.get(rollout)
            return [] if stored is None else [item for _, item in sorted(stored.ledger.items())]

    def put_ledger(self, rollout: str, items: Sequence[LedgerItem]) -> None:
        with self._lock:
            if rollout in self._rollouts:
                self._rollouts[rollout].ledger.update({item.key: _through_json(item) for item in items})

    def sightings(self) -> Sequence[Sighting]:
        with self._lock:
            stored = sorted(self._sightings.items())
        return [codec.SIGHTING.load(doc, key=key) for key, (_, doc) in stored]

    def sighted(self, lane: str, found: Sequence[Sighting]) -> None:
        fresh = {sighting.key: (lane, codec.SIGHTING.dump(sighting)) for sighting in found}
        with self._lock:
            others = {key: kept for key, kept in self._sightings.items() if kept[0] != lane}
            self._sightings = {**others, **fresh}

    def put_world(self, world: str, rollout: str) -> None:
        with self._lock:
            self._worlds.pop(world, None)
            self._worlds[world] = rollout
            for oldest in list(self._worlds)[:-WORLDS]:
                del self._worlds[oldest]

    def worlds(self) -> Sequence[str]:
        with self._lock:
            return list(reversed(self._worlds.values()))

    def counts(self) -> Counts:
        with self._lock:
            return Counts(lost=self._lost, resent=self._resent, ignored=dict(sorted(self._ignored.items())))

    def put_users(self, rollout: str, users: Users) -> None:
        with self._lock:
            self._users[rollout] = users

    def users(self, rollout: str) -> Users | None:
        with self._lock:
            return self._users.get(rollout)

    def owner_of(self, lock: str) -> str | None:
        with self._lock:
            owner = self._locks.get(lock)
            return None if owner is None or self._rollouts[owner].rollout.closed else owner

    def lease(self, name: str, *, owner: str, seconds: float) -> int | None:
        with self._lock:
            now = self.now()
            held = self._leases.setdefault(name, _Lease(owner="", fence=0, until=0.0))
            if held.owner and held.until > now:
                if held.owner != owner:
                    return None
            else:
                held.fence = _fence_after(held.fence, now)
            held.owner, held.until = owner, round(now + seconds, 6)
            return held.fence

    def unlease(self, name: str, *, owner: str) -> None:
        with self._lock:
            held = self._leases.get(name)
            if held is not None and held.owner == owner:
                held.owner, held.until = "", 0.0

    def spend(self, bucket: str, limit: Limit, *, patience: float) -> float:
        with self._lock:
            now = self.now()
            before = self._buckets.get(bucket) or fresh(limit, now)
            self._buckets[bucket], wait = before.spend(limit, now, patience=patience)
            return wait

    def refused(self, bucket: str, limit: Limit) -> None:
        with self._lock:
            now = self.now()
            self._buckets[bucket] = (self._buckets.get(bucket) or fresh(limit, now)).slowed(limit, now)

    def buckets(self) -> Mapping[str, Bucket]:
        with self._lock:
            return {name: self._buckets[name] for name in sorted(self._buckets)}

    def events(self, rollout: str, *, after: str = "0", limit: int = 1000, block: float = 0.0) -> Sequence[AuditEntry]:
        cursor = _position(check_cursor(after))
        end = time.monotonic() + block
        with self._news:
            while True:
                stored = self._rollouts.get(rollout)
                log = [] if stored is None else stored.audit
                found = [found for found in log if found[0] > cursor][:limit]
                left = end - time.monotonic()
                if found or left <= 0:
                    break
                self._news.wait(left)
        return [AuditEntry(id=f"{at[0]}-{at[1]}", **_parsed(fields)) for at, fields in found]

    def note(self, rollout: str, entry: Entry, *, server: str = "") -> None:
        with self._lock:
            stored = self._rollouts.get(rollout)
            record = self._record(rollout, server)
            if stored is None or (server and record is None):
                raise NotFound(
                    f"no {f'server {server} in ' if server else ''}rollout {rollout}", next="changeover rollouts"
                )
            if record is not None:
                record.entry += 1
                state: str = record.upgrade.state
                self._audit(stored, entry, None, was=state, now=state, server=server, n=record.entry)
            else:
                state = stored.rollout.state
                self._audit(stored, entry, None, was=state, now=state)

    def wake(self) -> None:
        with self._lock:
            self._wake()

    def sleep(self, seconds: float, *, cursor: str) -> str:
        end = time.monotonic() + seconds
        with self._news:
            cursor = f"{self._woken[0]}-{self._woken[1]}" if cursor == "$" else check_cursor(cursor)
            while self._woken <= _position(cursor):
                left = end - time.monotonic()
                if left <= 0:
                    return cursor
                self._news.wait(left)
            return f"{self._woken[0]}-{self._woken[1]}"

    def queue_wait(self) -> float:
        return self._queue_wait

    def beat(self, worker: str, info: Mapping[str, Any], *, ttl: float) -> None:
        with self._lock:
            self._workers[worker] = (codec.text(info), round(self.now() + ttl, 6))

    def workers(self) -> Mapping[str, Mapping[str, Any]]:
        with self._lock:
            now = self.now()
            self._workers = {name: beat for name, beat in self._workers.items() if beat[1] > now}
            return {name: codec.mapping(info, key=name) for name, (info, _) in self._workers.items()}

    # -- what the methods share: always called with the lock ----------------------------------------------------------

    def _record(self, rollout: str, server: str) -> _Record | None:
        stored = self._rollouts.get(rollout)
        return None if stored is None else stored.records.get(server)

    def _row(self, record: _Record) -> Row:
        """The same one as long as nothing of it has changed: much is read, and little is written."""
        owner, until = (record.owner, record.lease) if self._live(record) else ("", 0.0)
        was = record.row
        if (
            was is None
            or was.upgrade is not record.upgrade
            or was.version != record.version
            or was.epoch != record.epoch
            or was.entry != record.entry
            or was.owner != owner
            or was.fence != record.fence
            or was.lease_until != until
        ):
            was = record.row = Row(
                upgrade=record.upgrade,
                version=record.version,
                epoch=record.epoch,
                entry=record.entry,
                owner=owner,
                fence=record.fence,
                lease_until=until,
            )
        return was

    def _live(self, record: _Record) -> bool:
        return record.owner != "" and record.lease > self.now()

    def _held(self, claim: Claim) -> _Record:
        """The record, if the claim still holds. Raises `Fenced`."""
        record = self._record(claim.rollout, claim.server)
        if record is None:
            raise fenced(claim, "its record is gone")
        if record.owner != claim.owner or record.fence != claim.fence:
            taken = f"its lease was taken by {record.owner}" if record.owner else "its lease was given back"
            raise fenced(claim, taken)
        if not self._live(record):
            raise fenced(claim, "its lease has ended")
        if record.version != claim.version or record.epoch != claim.row.epoch:
            raise fenced(claim, "its record was changed by somebody else")
        return record

    def _struck(self, record: _Record, now: float) -> float:
        """Its holder has lost the lease without giving it back. When it may be tried again: see `struck` of
        common.lua."""
        self._lost += 1
        before = len(record.lost)
        process = record.owner.rpartition(":")[0] or record.owner
        record.lost = (*record.lost, process) if before < MOST_LOST else record.lost
        return now + record.fence % 2000 / 1000 if before else now

    def _ignore(self, ignored: Ignored) -> Ignored:
        self._ignored[ignored.reason] = self._ignored.get(ignored.reason, 0) + 1
        return ignored

    def _give_back(self, record: _Record, due: float, lane: str = "") -> None:
        record.owner, record.lease = "", 0.0
        if not at_rest(record.upgrade):
            self._place(record, due, lane)

    def _store(self, record: _Record, to: Upgrade, doc: bytes) -> None:
        record.upgrade = codec.UPGRADE.load(doc, key=to.server)
        record.version = _version_after(record.version, self.now())

    def _change(
        self,
        stored: _Rollout,
        record: _Record,
        to: Upgrade,
        doc: bytes,
        *,
        entry: Entry,
        ledger: Sequence[LedgerItem] = (),
    ) -> None:
        was, domain = record.upgrade.state, record.upgrade.domain
        self._store(record, to, doc)
        record.entry += 1
        self._audit(stored, entry, doc, was=was, now=to.state, server=to.server, n=record.entry)
        stored.counts[was] -= 1
        stored.counts[to.state] = stored.counts.get(to.state, 0) + 1
        if domain and (was in _FLYING) != (to.state in _FLYING):
            stored.domains[domain] = stored.domains.get(domain, 0) + (1 if to.state in _FLYING else -1)
            if stored.domains[domain] <= 0:
                del stored.domains[domain]
        stored.ledger.update({item.key: _through_json(item) for item in ledger})

    def _fail(self, stored: _Rollout, failure: Failure, stop: str) -> None:
        if failure:
            name = f"failed:{failure}"
            stored.counts[name] = stored.counts.get(name, 0) + 1
        if stop and not stored.rollout.stop:
            stored.rollout = replace(stored.rollout, stop=stop)
            self._outdate(stored)

    def _outdate(self, stored: _Rollout) -> None:
        """Nobody moves it on who has not seen what has just changed."""
        version = _version_after(stored.rollout.version, self.now())
        stored.rollout = replace(stored.rollout, version=version)

    def _place(self, record: _Record, due: float | None, lane: str) -> None:
        who = (record.upgrade.rollout, record.upgrade.server)
        self._due.pop(who, None)
        if record.lane:
            agenda = self._look.get(record.lane, {})
            agenda.pop(who, None)
            if not agenda:
                self._look.pop(record.lane, None)
        record.lane = ""
        if due is not None:
            record.lane = lane
            agenda = self._look.setdefault(lane, {}) if lane else self._due
            agenda[who] = round(due, 6)

    def _rest_or_place(self, record: _Record) -> None:
        """Due when its lease ends, unless nothing happens to it by itself."""
        if not at_rest(record.upgrade):
            self._place(record, record.lease, "")

    def _next_id(self) -> tuple[int, int]:
        now = int(self.now() * 1000)
        last, count = self._last_id
        self._last_id = (now, 0) if now > last else (last, count + 1)
        return self._last_id

    def _audit(
        self, stored: _Rollout, entry: Entry, doc: bytes | None, *, was: str, now: str, server: str = "", n: int = 0
    ) -> None:
        fields = {
            "at": self.now(),
            "server": server,
            "n": n,
            "event": entry.event,
            "actor": entry.actor,
            "was": was,
            "now": now,
            "detail": codec.text(entry.detail),
            "after": doc or b"{}",
        }
        stored.audit.append((self._next_id(), fields))
        self._news.notify_all()

    def _wake(self) -> None:
        self._woken = self._next_id()
        self._news.notify_all()


def _record(upgrade: Upgrade) -> _Record:
    return _Record(upgrade=codec.UPGRADE.load(codec.UPGRADE.dump(upgrade), key=upgrade.server))


def _through_json(item: LedgerItem) -> LedgerItem:
    return codec.LEDGER.load(codec.LEDGER.dump(item), key=item.key)


def _number_after(previous: int, now: float) -> int:
    """See `number_after` of common.lua."""
    return max(previous + 1, int(now * 1_000_000 + 0.5))


_fence_after = _version_after = _number_after


def _miscounted(was: Mapping[str, int], wanted: Mapping[str, int]) -> list[str]:
    gone = [f"{name} was counted as {n}, and is none" for name, n in was.items() if n and name not in wanted]
    return gone + [
        f"{name} was counted as {was.get(name) or 'none'}, and is {n}"
        for name, n in wanted.items()
        if was.get(name) != n
    ]


def _ripe(agenda: Mapping[tuple[str, str], float], now: float, limit: int) -> list[tuple[str, str]]:
    ripe = sorted((at, "/".join(who).encode(), who) for who, at in agenda.items() if at <= now)
    return [who for _, _, who in ripe[:limit]]


def _position(cursor: str) -> tuple[int, int]:
    milliseconds, _, count = cursor.partition("-")
    return int(milliseconds), int(count or 0)


def _parsed(fields: Mapping[str, Any]) -> dict[str, Any]:
    detail = codec.mapping(fields["detail"], key="audit")
    return {**fields, "detail": detail, "after": codec.mapping(fields["after"], key="audit")}
