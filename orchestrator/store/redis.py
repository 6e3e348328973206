"""The store on Redis or Valkey, 7 or newer. Each transition is one script of `lua/`: all of it happens, or nothing.

Keys, all under `co:{namespace}:` and so in one hash slot. Times are epoch seconds with microseconds.

    ro:<rollout>            hash     the rollout, and beside it what scripts read: state, wave, stop, version, closed
    sv:<rollout>:<server>   hash     the upgrade, and beside it version, epoch, entry, owner, fence, lease, lane, lost
    servers:<rollout>       set      names
    cnt:<rollout>           hash     upgrades by state, failed:before, failed:after
    fly:<rollout>           hash     failure domain -> upgrades of it in flight
    ledger:<rollout>        hash     key -> what we made
    audit:<rollout>         stream   one entry a change
    lock:<lock>             string   the rollout that owns it
    locks:<rollout>         set      its locks, to give them back
    rollouts, open          zset by creation; set of those not closed
    due, look:<lane>        zset     the agendas; `lanes` is the set of lanes with one
    owners                  zset     owner and upgrade of every lease, by name
    wake                    stream   a few entries: coordinators block on it
    lease:<name>            hash     owner, fence, until
    orphans:<lane>          hash     kind and id -> what carries our mark and nobody accounts for; `orphans`: the lanes
    worker, workers         hash, zset by the end of their beat
    bucket:<name>, buckets  hash; zset by last use: how often an API may be called
    tokens                  hash     id -> a token; beside it <id>:revoked and <id>:used, when
    once:<key>              hash     asked, id, until: what is asked for under a key, and not done twice
    delivery:<id>           hash     of a webhook: the delivery, version, payload; `nonce:<once>` is the id that it got
    deliveries              zset by arrival: the log; `deliveries_due`: those that wait
    session:<key>           string   a browser that is let in, as long as it is
    sessions:<token>        zset     by their ends: the keys of one token's
    outbox                  hash     <receiver>/<rollout> -> how far it has been told; beside it <...>:version
    document:<kind>:<id>    string   frozen, queue_wait, confirm: strings; counts, users: hashes
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import resources
from itertools import islice
from typing import Any, Final, Literal, cast

import redis

from orchestrator.addresses import parse
from orchestrator.domain import budget
from orchestrator.domain.budget import Bucket, Limit
from orchestrator.domain.delivery import Delivery
from orchestrator.domain.orphans import Sighting
from orchestrator.domain.outbox import Feed
from orchestrator.domain.rollout import Rollout
from orchestrator.domain.token import SESSIONS, Session, Token
from orchestrator.domain.upgrade import SCHEMA, Direction, Upgrade
from orchestrator.errors import NotFound, Unreachable, UnsafeStore
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
    Row,
    Tally,
    Users,
    codec,
    health,
)
from orchestrator.store.connecting import Told, connect
from orchestrator.store.shapes import (
    RESEND,
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
    target,
)

log = logging.getLogger(__name__)

_FIELDS: Final = ("doc", "version", "epoch", "entry", "owner", "fence", "lease", "lane")
_LOCKS = 90  # a script touches each lock's key and its owner's
_ROWS = 50
_READ = 500
_IGNORED = "ignored "  # and the reason: a field of the counts
_KNOWN = 5000  # records that are not decoded again as long as they are as they were: about 7 KB each
_MAKING = 60.0  # seconds for which a creation's locks bind while its next batch does not come
_SLICE = 5.0  # seconds of one blocking read: below the socket's time-out
_BUCKETS_KEPT = 86400  # seconds
_CONFIRM = 500  # milliseconds that a replica is given to confirm


class RedisStore:
    """Any number may be made, in any number of processes and threads; each has up to `connections` of its own.

    `url` is of a form of `orchestrator.addresses`. `clock` replaces the server's time, for tests. Every method raises
    `Unreachable` when Redis does not answer or let us in, and `UnsafeStore` when it refuses writes or holds what cannot
    be read; either says which server, never the password.
    """

    def __init__(
        self,
        url: str,
        *,
        namespace: str = "default",
        clock: Callable[[], float] | None = None,
        connections: int = 32,
    ) -> None:
        self._address = parse(url)
        self.where = self._address.where
        self._clock = clock
        self._prefix = f"co:{{{namespace}}}:"
        self._redis = connect(self._address, connections=connections)
        self._told = Told(self._address)
        self._passed_over: set[str] = set()
        self._upgrades_read = codec.Reader(codec.UPGRADE, room=_KNOWN)
        self._rollouts_read = codec.Reader(codec.ROLLOUT, room=_KNOWN // 100)

    def close(self) -> None:
        """Ends its connections."""
        self._redis.connection_pool.disconnect()

    # -- the store itself ------------------------------------------------------------------------------------------

    def now(self) -> float:
        if self._clock is not None:
            return round(self._clock(), 6)
        with self._told:
            return _seconds(self._redis.time())

    def check(self, *, dev: bool) -> None:
        with self._told:
            self._redis.ping()
            if not dev:
                health.check(self._redis, self._address, "records")

    def confirmed(self) -> bool | None:
        with self._told:
            try:
                replicas = int(self._redis.info("replication").get("connected_slaves", 0))
            except redis.exceptions.NoPermissionError:
                replicas = 1  # nobody tells us: ask for one all the same
            if not replicas:
                return None
            # WAIT asks for what its own connection wrote. Replication is one stream: who has this, has all before it.
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.set(self._key("confirm"), "1")
            pipeline.wait(1, _CONFIRM)
            return bool(int(pipeline.execute()[-1]) >= 1)

    # -- plans and rollouts ------------------------------------------------------------------------------------------

    def put_document(self, kind: str, id: str, body: Mapping[str, Any], *, ttl: float | None = None) -> bool:
        with self._told:
            stored = self._redis.set(
                self._key("document", kind, id),
                codec.text(body),
                nx=True,
                px=None if ttl is None else max(1, round(ttl * 1000)),
            )
        return stored is not None

    def forget_document(self, kind: str, id: str) -> None:
        with self._told:
            self._redis.delete(self._key("document", kind, id))

    def document(self, kind: str, id: str) -> Mapping[str, Any] | None:
        key = self._key("document", kind, id)
        with self._told:
            stored = self._redis.get(key)
        return None if stored is None else codec.mapping(stored, key=key)

    def create(self, rollout: Rollout, upgrades: Sequence[Upgrade], *, locks: Mapping[str, str]) -> Rollout:
        check_creation(rollout, upgrades)
        for _ in range(5):
            answer = self._create(rollout, upgrades, locks)
            if answer != "lost":
                return cast(Rollout, self.rollout(rollout.id))
        raise Unreachable(
            f"{self.where} was too slow to create rollout {rollout.id}; nothing was created", next="try again"
        )

    def _create(self, rollout: Rollout, upgrades: Sequence[Upgrade], locks: Mapping[str, str]) -> str:
        """One run over the batches: ready, ok, or lost when the marker ran out meanwhile."""
        whole: dict[str, Any] = {"rollout": rollout.id, "seconds": _MAKING}
        if self._text("create_begin", whole) == "ready":
            return "ready"
        names = sorted(locks)  # in one order: of two creations that want the same locks, one gets them
        for check in (True, False):
            for batch in _batches(names, _LOCKS):
                answer = self._texts("create_locks", {**whole, "locks": batch, "check": check})
                if answer[0] == "locked":
                    self._give_up(rollout.id)
                    raise locked(locks[answer[1]], answer[2])
                if answer[0] != "ok":
                    return answer[0]
        for some in _batches(upgrades, _ROWS):
            servers = [{**target(u), "server": u.server, "domain": u.domain, "wave": u.wave} for u in some]
            said = self._text("create_rows", {**whole, "servers": servers}, *(codec.UPGRADE.dump(u) for u in some))
            if said != "ok":
                return said
        doc = codec.ROLLOUT.dump(rollout)
        counts, domains = counted(upgrades)
        agenda = {f"{rollout.id}/{u.server}": due_at(u, self.now()) for u in upgrades}
        due = {member: at for member, at in agenda.items() if at is not None}
        return self._text(
            "create_end",
            {**whole, **_rollout(rollout), "created_at": rollout.created_at, "version": rollout.version}
            | {"counts": counts, "domains": domains, "due": due}
            | {"entry": {"event": "created", "actor": rollout.created_by}},
            doc,
            b"{}",
            codec.pack(doc),
        )

    def _give_up(self, rollout: str) -> None:
        self._run("create_undo", {"rollout": rollout})
        self._unlock(rollout)

    def _unlock(self, rollout: str) -> None:
        """If it does not come to its end, the locks of a closed rollout are free all the same."""
        while self._run("unlock", {"rollout": rollout}):
            pass

    def rollout(self, id: str) -> Rollout | None:
        return next(iter(self._rollouts([id])), None)

    def rollouts(self) -> Sequence[Rollout]:
        with self._told:
            found = self._redis.zrange(self._key("rollouts"), 0, -1, desc=True)
        return self._rollouts([name.decode() for name in found], skip=True)

    def unread(self) -> Mapping[str, str]:
        with self._told:
            found = self._redis.zrange(self._key("rollouts"), 0, -1, desc=True)
        why: dict[str, str] = {}
        for id, key, values in self._rollout_hashes(_texts(found)):
            try:
                self._rollout(key, values)
            except UnsafeStore as error:
                why[id] = error.message
        return why

    def open_rollouts(self) -> Sequence[Rollout]:
        with self._told:
            found = self._redis.smembers(self._key("open"))
        return sorted(
            self._rollouts([name.decode() for name in found], skip=True),
            key=lambda r: (r.created_at, r.id),
            reverse=True,
        )

    def _rollouts(self, ids: Sequence[str], *, skip: bool = False) -> list[Rollout]:
        """With `skip` what cannot be read is left out, and told in the log."""
        found = []
        for _, key, values in self._rollout_hashes(ids):
            with self._unreadable(key, skip=skip):
                found += self._rollout(key, values)
        return found

    def _rollout_hashes(self, ids: Sequence[str]) -> Iterator[tuple[str, str, list[bytes | None] | Exception]]:
        for some in _batches(ids, _READ):
            keys = [self._key("ro", id) for id in some]
            yield from zip(some, keys, self._hashes(keys, ("ready", "doc", "version", "stop")), strict=True)

    def _rollout(self, key: str, values: list[bytes | None] | Exception) -> list[Rollout]:
        """The one that is stored there, if it has come to be."""
        ready, doc, version, stop = self._hash(key, values)
        if ready != b"1":
            return []
        stored = self._rollouts_read.load(doc, key=key)
        return [replace(stored, version=_int(version, key), stop=(stop or b"").decode())]

    def change(self, was: Rollout, now: Rollout, *, entry: Entry) -> Rollout | None:
        doc = codec.ROLLOUT.dump(now)
        version = self._run(
            "change",
            {"rollout": was.id, "version": was.version, "entry": _entry(entry), **_rollout(now)},
            doc,
            codec.text(entry.detail),
            codec.pack(doc),
        )
        if version is None:
            return None
        if now.closed:
            self._unlock(now.id)
        return replace(now, version=int(version))

    def freeze(self, on: bool, *, actor: str, reason: str = "") -> None:
        with self._told:
            if on:
                self._redis.set(self._key("frozen"), frozen_text(actor, reason))
            else:
                self._redis.delete(self._key("frozen"))
        entry = Entry(event="frozen" if on else "unfrozen", actor=actor, detail={"reason": reason} if reason else {})
        for rollout in self.open_rollouts():
            self.note(rollout.id, entry)
        self.wake()

    def frozen(self) -> str | None:
        with self._told:
            stored = self._redis.get(self._key("frozen"))
        return None if stored is None else cast(bytes, stored).decode()

    def put_token(self, token: Token) -> bool:
        with self._told:
            return bool(self._redis.hsetnx(self._key("tokens"), token.id, codec.TOKEN.dump(token)))

    def token(self, id: str) -> Token | None:
        return self.token_now(id)[0]

    def token_now(self, id: str) -> tuple[Token | None, float]:
        key = self._key("tokens")
        now, (answer,) = self._ask_at([("HMGET", key, id, f"{id}:revoked", f"{id}:used")])
        with self._told:
            doc, *times = _given(answer)
        return None if doc is None else _token(doc, *times, key=key), now

    def tokens(self) -> Sequence[Token]:
        key = self._key("tokens")
        with self._told:
            stored = self._redis.hgetall(key)
        found = []
        for name, doc in stored.items():
            if b":" not in name:
                with self._unreadable(f"{key} {name.decode()}", skip=True):
                    times = (stored.get(name + b":revoked"), stored.get(name + b":used"))
                    found.append(_token(doc, *times, key=key))
        return sorted(found, key=lambda token: (token.created_at, token.id))

    def revoke_token(self, id: str) -> bool:
        return bool(self._run("revoke_token", {"id": id}))

    def used_token(self, id: str) -> None:
        with self._told:
            self._redis.hset(self._key("tokens"), f"{id}:used", f"{self.now():.6f}")

    def put_session(self, key: str, session: Session) -> None:
        now, all = self.now(), self._key("sessions", session.token)
        with self._told, self._redis.pipeline(transaction=True) as pipeline:
            pipeline.set(
                self._key("session", key), codec.SESSION.dump(session), px=max(1, round((session.until - now) * 1000))
            )
            pipeline.zremrangebyscore(all, "-inf", now)
            pipeline.zadd(all, {key: session.until})
            pipeline.zrange(all, 0, -1, withscores=True)
            known = cast("list[tuple[bytes, float]]", pipeline.execute()[-1])
            # One call more than may be in one: whoever is cut off here leaves it to whoever comes next.
            others = [each for each, _ in known if each != key.encode()]
            for old in others[: max(0, len(others) - SESSIONS + 1)]:
                pipeline.delete(self._key("session", old.decode()))
                pipeline.zrem(all, old)
            pipeline.pexpire(all, max(1, round((known[-1][1] - now) * 1000)))
            pipeline.execute()

    def session(self, key: str) -> Session | None:
        where = self._key("session", key)
        with self._told:
            stored = cast("bytes | None", self._redis.get(where))
        found = None if stored is None else codec.SESSION.load(stored, key=where)
        return found if found is not None and found.until > self.now() else None

    def end_session(self, key: str) -> bool:
        found = self.session(key)
        with self._told, self._redis.pipeline(transaction=True) as pipeline:
            pipeline.delete(self._key("session", key))
            if found is not None:
                pipeline.zrem(self._key("sessions", found.token), key)
            return bool(pipeline.execute()[0])

    def once(self, key: str, *, asked: str, id: str, seconds: float, ttl: float) -> Once:
        state, known = self._texts("once", {"key": key, "asked": asked, "id": id, "seconds": seconds, "ttl": ttl})
        return Once(state=cast("Literal['mine', 'busy', 'done', 'other']", state), id=known)

    def once_ended(self, key: str, *, how: Literal["done", "again", "forgotten"], id: str = "") -> None:
        self._run("once_ended", {"key": key, "how": how, "id": id})

    # -- webhooks -------------------------------------------------------------------------------------------------

    def put_delivery(self, delivery: Delivery, payload: Any, *, once: str, keep: float) -> str | None:
        asked = {
            "id": delivery.id,
            "once": once,
            "keep": keep,
            "at": delivery.received_at,
            "most": MOST_WAITING,
            "log": DELIVERIES,
            **_due(delivery.due),
        }
        packed = codec.pack(codec.text(payload))
        return self._text("put_delivery", asked, _delivery(delivery), packed) or None

    def delivery(self, id: str) -> Delivery | None:
        return next(iter(self._deliveries([id], skip=False)), None)

    def deliveries(self) -> Sequence[Delivery]:
        with self._told:
            ids = _texts(self._redis.zrevrange(self._key("deliveries"), 0, -1))
        return self._deliveries(ids, skip=True)

    def payload(self, id: str) -> Any:
        key = self._key("delivery", id)
        with self._told:
            stored = self._redis.hget(key, "payload")
        if stored is None:
            raise no_delivery(id)
        try:
            return json.loads(codec.unpack(stored, key=key))
        except ValueError as error:
            raise UnsafeStore(f"the payload at {key} cannot be read: {error}") from error

    def due_deliveries(self) -> Sequence[Delivery]:
        with self._told:
            ids = _texts(self._redis.zrange(self._key("deliveries_due"), 0, -1))
        return self._deliveries(ids, skip=True)

    def change_delivery(self, was: Delivery, now: Delivery) -> Delivery | None:
        asked = {"id": was.id, "version": was.version, **_due(now.due)}
        version = self._run("change_delivery", asked, _delivery(now))
        return None if version is None else replace(now, version=int(version))

    def _deliveries(self, ids: Sequence[str], *, skip: bool) -> list[Delivery]:
        found = []
        keys = [self._key("delivery", id) for id in ids]
        for key, answer in zip(keys, self._hashes(keys, ("doc", "version")), strict=True):
            with self._unreadable(key, skip=skip):
                doc, version = self._hash(key, answer)
                if doc is not None:
                    found.append(replace(codec.DELIVERY.load(doc, key=key), version=_int(version, key)))
        return found

    def feeds(self) -> Sequence[Feed]:
        key = self._key("outbox")
        with self._told:
            stored = self._redis.hgetall(key)
        found = []
        for name, doc in sorted(stored.items()):
            if not name.endswith(b":version"):
                with self._unreadable(f"{key} {name.decode()}", skip=True):
                    version = _int(stored.get(name + b":version"), key)
                    found.append(replace(codec.FEED.load(doc, key=key), version=version))
        return found

    def change_feed(self, was: Feed | None, now: Feed | None) -> Feed | None:
        asked = {"name": feed_name(was, now), "was": "" if was is None else str(was.version), "gone": now is None}
        doc = b"" if now is None else codec.FEED.dump(replace(now, version=0))
        version = self._run("change_feed", asked, doc)
        if version is None:
            return None
        return was if now is None else replace(now, version=int(version))

    # -- upgrades -------------------------------------------------------------------------------------------------

    def row(self, rollout: str, server: str) -> Row | None:
        return next(iter(self._rows([(rollout, server)])), None)

    def rows(self, rollout: str, servers: Collection[str] | None = None) -> Sequence[Row]:
        if servers is None:
            with self._told:
                servers = [name.decode() for name in self._redis.smembers(self._key("servers", rollout))]
        return self._rows([(rollout, server) for server in sorted(set(servers))])

    def _rows(self, who: Sequence[tuple[str, str]], *, lane: str | None = None) -> list[Row]:
        """Those that exist. Where a lane is given: those in it that can be read, since one that cannot be must not hold
        up the others there."""
        if not who:
            return []
        found = []
        for some in _batches(who, _READ):
            keys = [self._key("sv", *pair) for pair in some]
            now, answers = self._ask_at([("HMGET", key, *_FIELDS) for key in keys])
            for key, answer in zip(keys, answers, strict=True):
                with self._unreadable(key, skip=lane is not None):
                    values = self._hash(key, answer)
                    if values[1] is not None and (lane is None or values[-1] == lane.encode()):
                        found.append(self._row(key, values, now=now))
        return found

    @contextmanager
    def _unreadable(self, key: str, *, skip: bool) -> Iterator[None]:
        """With `skip` what is stored there and cannot be read is told once, and passed over."""
        try:
            yield
        except UnsafeStore as error:
            if not skip:
                raise
            if key not in self._passed_over:
                self._passed_over.add(key)
                log.error("%s", error)
        else:
            self._passed_over.discard(key)

    def _row(self, key: str, values: Sequence[bytes | None], *, now: float | None = None) -> Row:
        upgrade = self._upgrades_read.load(values[0], key=key)
        version, epoch, entry, fence = (_int(values[i], key) for i in (1, 2, 3, 5))
        row = Row(upgrade=upgrade, version=version, epoch=epoch, entry=entry, fence=fence)
        lease = float(values[6] or b"0")
        if now is not None and lease <= now:
            return row
        return replace(row, owner=(values[4] or b"").decode(), lease_until=lease)

    def tally(self, rollout: str) -> Tally:
        key = self._key("cnt", rollout)
        with self._told:
            stored = self._redis.hgetall(key)
        counts = {name.decode(): _int(n, key) for name, n in stored.items()}
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
        version = self._change(
            "admit",
            to,
            entry,
            {
                "rollout": rollout,
                "server": server,
                "limit": limit,
                "wave": wave,
                "domain": domain,
                "from": attempts(to),
            },
        )
        return None if version is None else int(version)

    def issue(self, rollout: str, server: str, *, version: int, grace: float) -> int | None:
        epoch = self._run(
            "issue",
            {"rollout": rollout, "server": server, "version": version, "grace": grace, "longest": RESEND},
        )
        return None if epoch is None else int(epoch)

    def claim(
        self, rollout: str, server: str, *, epoch: int, step: str, direction: Direction, owner: str, lease: float
    ) -> Claim | Ignored:
        reason, *values = self._run(
            "claim",
            {
                "rollout": rollout,
                "server": server,
                "epoch": epoch,
                "step": step,
                "direction": direction,
                "owner": owner,
                "schema": SCHEMA,
                "lease": lease,
            },
        )
        if reason:
            return Ignored(reason=reason.decode())
        *values, lost = values
        row = self._row(self._key("sv", rollout, server), values)
        return Claim(
            rollout=rollout,
            server=server,
            owner=owner,
            fence=row.fence,
            version=row.version,
            lease_until=row.lease_until,
            row=row,
            lost=tuple(lost.decode().split()),
        )

    def take(self, row: Row, *, owner: str, lease: float) -> Claim | None:
        values = self._run("take", {**_seen(row), "owner": owner, "lease": lease})
        if values is None:
            return None
        *values, lost = values
        u = row.upgrade
        taken = self._row(self._key("sv", u.rollout, u.server), values)
        return Claim(
            rollout=u.rollout,
            server=u.server,
            owner=owner,
            fence=taken.fence,
            version=taken.version,
            lease_until=taken.lease_until,
            row=taken,
            lost=tuple(lost.decode().split()),
        )

    def renew(self, claim: Claim, *, lease: float) -> Claim:
        said, value = self._texts("renew", {**_claim(claim), "lease": lease})
        if said == "fenced":
            raise fenced(claim, value)
        until = float(value)
        return replace(claim, lease_until=until, row=replace(claim.row, lease_until=until))

    def intent(
        self, claim: Claim, to: Upgrade, *, entry: Entry, ledger: Sequence[LedgerItem], undo: bool, finishing: bool
    ) -> Claim | RefusedIntent:
        check_goes_on(to)
        said, *values = _texts(
            self._change(
                "intent",
                to,
                entry,
                {
                    **_claim(claim),
                    "undo": undo,
                    "finishing": finishing,
                    "ledger": _ledger(ledger),
                },
            )
        )
        if said == "fenced":
            raise fenced(claim, values[0])
        if said == "refused":
            return RefusedIntent(reason=cast(Any, values[0]))
        version, count = int(values[0]), int(values[1])
        return replace(claim, version=version, row=replace(claim.row, upgrade=to, version=version, entry=count))

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
        said, *values = _texts(
            self._change(
                "commit",
                to,
                entry,
                {
                    **_claim(claim),
                    **_due(due),
                    "look": (look or "") if due is not None else "",
                    "handed_on": handed_on(to, look),
                    "ledger": _ledger(ledger),
                    "locks": list(locks),
                    "failure": failure,
                    "stop": stop,
                },
            )
        )
        if said == "fenced":
            raise fenced(claim, values[0])
        if said == "locked":
            raise locked(values[0], values[1])
        return replace(claim.row, upgrade=to, version=int(values[0]), entry=int(values[1]), owner="", lease_until=0.0)

    def release(self, claim: Claim, *, due: float | None = None, look: str | None = None, died: bool = False) -> None:
        self._run("release", {**_claim(claim), **_due(due), "look": look or "", "died": died})

    def release_owner(self, prefix: str, *, died: bool = False) -> int:
        total = 0
        while True:
            released, found = self._run("release_owner", {"prefix": prefix, "died": died})
            total += int(released)
            if not found:
                return total

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
        values = self._change(
            "turn",
            to,
            entry,
            {
                **_seen(row),
                **_due(check_agenda(to, due)),
                "ledger": _ledger(ledger),
                "failure": failure,
                "stop": stop,
                **({} if seen is None else {"seen": seen}),
            },
        )
        return None if values is None else self._row(self._key("sv", to.rollout, to.server), values)

    # -- waits -------------------------------------------------------------------------------------------------------

    def due(self, *, limit: int) -> Sequence[tuple[str, str]]:
        return [_pair(member) for member in self._texts("due", {"limit": limit})]

    def due_lanes(self) -> Sequence[str]:
        return sorted(self._texts("due_lanes", {}))

    def due_in_lane(self, lane: str, *, limit: int, postpone: float) -> Sequence[Row]:
        members = self._texts("due_in_lane", {"lane": lane, "limit": limit, "postpone": postpone})
        return self._rows([_pair(member) for member in members], lane=lane)

    def look_again(self, lane: str, due: Mapping[tuple[str, str], float]) -> None:
        scores = {f"{rollout}/{server}": f"{at:.6f}" for (rollout, server), at in due.items()}
        for some in _batches(list(scores.items()), _READ):
            with self._told:
                self._redis.zadd(self._key("look", lane), dict(some), xx=True, lt=True)

    def next_due(self) -> float | None:
        least = self._run("next_due", {})
        return None if least is None else float(least)

    def looked(self, row: Row, to: Upgrade, *, due: float) -> Row | None:
        values = self._run("looked", {**_seen(row), "due": due}, codec.UPGRADE.dump(to))
        return None if values is None else self._row(self._key("sv", to.rollout, to.server), values)

    def wake_up(self, row: Row, to: Upgrade, *, grace: float) -> Row | None:
        values = self._run("wake", {**_seen(row), "grace": grace, "longest": RESEND}, codec.UPGRADE.dump(to))
        return None if values is None else self._row(self._key("sv", to.rollout, to.server), values)

    def put_off(self, due: Sequence[tuple[str, str]], *, seconds: float) -> None:
        for some in _batches([f"{rollout}/{server}" for rollout, server in due], _ROWS):
            self._run("put_off", {"members": some, "seconds": seconds})

    # -- mending -----------------------------------------------------------------------------------------------------

    def mend(self, rollout: str, rows: Sequence[Row], *, late: float) -> Sequence[tuple[str, str]]:
        told: list[tuple[str, str]] = []
        for some in _batches(rows, _ROWS):
            seen = [
                {"server": u.server, "version": row.version, "to": target(u), "latest": latest(u)}
                for row, u in ((row, row.upgrade) for row in some)
            ]
            asked = [{name: value for name, value in each.items() if value is not None} for each in seen]
            told += _pairs(self._texts("mend", {"rollout": rollout, "rows": asked, "late": late}))
        return told

    def last_event(self, rollout: str) -> str:
        with self._told:
            last = self._redis.xrevrange(self._key("audit", rollout), count=1)
        return last[0][0].decode() if last else "0"

    def changed(self, rollout: str, *, after: str, limit: int) -> tuple[str, Sequence[str]] | None:
        found = self._texts("changed", {"rollout": rollout, "after": check_cursor(after), "limit": limit})
        return (found[0], sorted(found[1:])) if found else None

    def beside(self, rollout: str) -> tuple[str, str | None, Sequence[Sighting]]:
        audit = ("XREVRANGE", self._key("audit", rollout), "+", "-", "COUNT", "1")
        with self._told:
            last, frozen, lanes = map(
                _given,
                self._redis.ask_all([audit, ("GET", self._key("frozen")), ("SMEMBERS", self._key("orphans"))]),
            )
        return (
            last[0][0].decode() if last else "0",
            None if frozen is None else frozen.decode(),
            [s for s in self._sightings(sorted(_texts(lanes))) if s.rollout == rollout],
        )

    def recount(self, rollout: str, upgrades: Sequence[Upgrade], *, seen: str) -> Sequence[str]:
        states, domains = counted(upgrades)
        return self._texts("recount", {"rollout": rollout, "counts": states, "domains": domains, "seen": seen})

    def relock(self, rollout: str, locks: Sequence[str]) -> Sequence[tuple[str, str]]:
        told: list[tuple[str, str]] = []
        for some in _batches(locks, _LOCKS):
            told += _pairs(self._texts("relock", {"rollout": rollout, "locks": some}))
        return told

    def reopen(self) -> Sequence[str]:
        with self._told:
            known = set(_texts(self._redis.smembers(self._key("open"))))
        closed = [rollout.id for rollout in self.rollouts() if not rollout.closed and rollout.id not in known]
        if closed:
            with self._told:
                self._redis.sadd(self._key("open"), *closed)
        return closed

    # -- the rest ---------------------------------------------------------------------------------------------------

    def ledger(self, rollout: str) -> Sequence[LedgerItem]:
        key = self._key("ledger", rollout)
        with self._told:
            stored = self._redis.hgetall(key)
        return [codec.LEDGER.load(item, key=key) for _, item in sorted(stored.items())]

    def put_ledger(self, rollout: str, items: Sequence[LedgerItem]) -> None:
        if items:
            with self._told:
                self._redis.hset(self._key("ledger", rollout), mapping=dict(_ledger(items)))

    def sightings(self) -> Sequence[Sighting]:
        with self._told:
            lanes = sorted(_texts(self._redis.smembers(self._key("orphans"))))
        return self._sightings(lanes)

    def _sightings(self, lanes: Sequence[str]) -> Sequence[Sighting]:
        found: dict[str, Sighting] = {}
        for lane in lanes:
            key = self._key("orphans", lane)
            with self._told:
                stored = self._redis.hgetall(key)
            for name, doc in stored.items():
                with self._unreadable(f"{key} {name.decode()}", skip=True):
                    sighting = codec.SIGHTING.load(doc, key=key)
                    found[sighting.key] = sighting
        return [found[key] for key in sorted(found)]

    def sighted(self, lane: str, found: Sequence[Sighting]) -> None:
        key = self._key("orphans", lane)
        with self._told:
            whole = self._redis.pipeline(transaction=True)
            whole.delete(key)
            if found:
                whole.hset(key, mapping={sighting.key: codec.SIGHTING.dump(sighting) for sighting in found})
                whole.sadd(self._key("orphans"), lane)
            else:
                whole.srem(self._key("orphans"), lane)
            whole.execute()

    def put_world(self, world: str, rollout: str) -> None:
        with self._told:
            whole = self._redis.pipeline(transaction=True)
            whole.zadd(self._key("worlds"), {world: self.now()})
            whole.hset(self._key("worlds", "files"), world, rollout)
            whole.zrange(self._key("worlds"), 0, -WORLDS - 1)
            forgotten = whole.execute()[-1]
            if forgotten:
                whole.zrem(self._key("worlds"), *forgotten)
                whole.hdel(self._key("worlds", "files"), *forgotten)
                whole.execute()

    def worlds(self) -> Sequence[str]:
        with self._told:
            order = self._redis.zrevrange(self._key("worlds"), 0, -1)
            files = self._redis.hgetall(self._key("worlds", "files"))
        return [files[world].decode() for world in order if world in files]

    def owner_of(self, lock: str) -> str | None:
        rollout = self._run("owner_of", {"lock": lock})
        return None if rollout is None else cast(bytes, rollout).decode()

    def lease(self, name: str, *, owner: str, seconds: float) -> int | None:
        fence = self._run("lease", {"name": name, "owner": owner, "seconds": seconds})
        return None if fence is None else int(fence)

    def unlease(self, name: str, *, owner: str) -> None:
        self._run("unlease", {"name": name, "owner": owner})

    def spend(self, bucket: str, limit: Limit, *, patience: float) -> float:
        return float(self._spend(bucket, limit, refused=False, patience=patience))

    def refused(self, bucket: str, limit: Limit) -> None:
        self._spend(bucket, limit, refused=True, patience=0.0)

    def _spend(self, bucket: str, limit: Limit, *, refused: bool, patience: float) -> bytes:
        asked = {"bucket": bucket, "rate": limit.rate, "burst": limit.burst, "refused": refused, "patience": patience}
        how = {"recovery": budget.RECOVERY, "least": budget.LEAST, "apart": budget.APART, "kept": _BUCKETS_KEPT}
        return cast(bytes, self._run("spend", {**asked, **how}))

    def buckets(self) -> Mapping[str, Bucket]:
        with self._told:
            names = _texts(self._redis.zrangebyscore(self._key("buckets"), self.now() - _BUCKETS_KEPT, "+inf"))
        found = {}
        for name in sorted(names):
            key = self._key("bucket", name)
            with self._told:
                stored = self._redis.hgetall(key)
            if stored:
                with self._unreadable(key, skip=True):
                    found[name] = _bucket(stored, key)
        return found

    def counts(self) -> Counts:
        key = self._key("counts")
        with self._told:
            stored = self._redis.hgetall(key)
        found = {name.decode(): _int(number, key) for name, number in stored.items()}
        ignored = {name.removeprefix(_IGNORED): n for name, n in sorted(found.items()) if name.startswith(_IGNORED)}
        return Counts(lost=found.get("lost", 0), resent=found.get("resent", 0), ignored=ignored)

    def put_users(self, rollout: str, users: Users) -> None:
        with self._told:
            self._redis.hset(self._key("users"), rollout, f"{users.requests} {users.failed} {users.at:.6f}")

    def users(self, rollout: str) -> Users | None:
        key = self._key("users")
        with self._told:
            stored = self._redis.hget(key, rollout)
        if stored is None:
            return None
        try:
            requests, failed, at = stored.split()
            return Users(requests=int(requests), failed=int(failed), at=float(at))
        except ValueError:
            raise UnsafeStore(f"what is stored at {key} of {rollout} is no count: {stored[:40]!r}") from None

    def events(self, rollout: str, *, after: str = "0", limit: int = 1000, block: float = 0.0) -> Sequence[AuditEntry]:
        key = self._key("audit", rollout)
        found = self._read(key, check_cursor(after), limit=limit, block=block)
        return [_audit(at, fields, key) for at, fields in found]

    def note(self, rollout: str, entry: Entry, *, server: str = "") -> None:
        if not self._run(
            "note", {"rollout": rollout, "server": server, "entry": _entry(entry)}, codec.text(entry.detail)
        ):
            raise NotFound(
                f"no {f'server {server} in ' if server else ''}rollout {rollout}", next="changeover rollouts"
            )

    def wake(self) -> None:
        with self._told:
            self._redis.xadd(self._key("wake"), {"w": "1"}, maxlen=16, approximate=False)

    def sleep(self, seconds: float, *, cursor: str) -> str:
        cursor = self._last_wake() if cursor == "$" else check_cursor(cursor)
        found = self._read(self._key("wake"), cursor, limit=16, block=seconds)
        return found[-1][0].decode() if found else cursor

    def _last_wake(self) -> str:
        with self._told:
            last = self._redis.xrevrange(self._key("wake"), count=1)
        return last[0][0].decode() if last else "0"

    def queue_wait(self) -> float:
        with self._told:
            return float(self._redis.get(self._key("queue_wait")) or 0)

    def beat(self, worker: str, info: Mapping[str, Any], *, ttl: float) -> None:
        self._run("beat", {"worker": worker, "ttl": ttl}, codec.text(info))

    def workers(self) -> Mapping[str, Mapping[str, Any]]:
        found = iter(self._run("workers", {}))
        key = self._key("worker")
        return {name.decode(): codec.mapping(info, key=key) for name, info in zip(found, found, strict=True)}

    # -- how it talks --------------------------------------------------------------------------------------------------

    def _key(self, *parts: str) -> str:
        return self._prefix + ":".join(parts)

    def _ask_at(self, commands: Sequence[Sequence[str]]) -> tuple[float, list[Any]]:
        """`now`, and the answers of these commands, of each that was refused why: all in one question."""
        with self._told:
            if self._clock is not None:
                return self.now(), self._redis.ask_all(commands)
            time, *answers = self._redis.ask_all([("TIME",), *commands])
            seconds, micros = _given(time)
            return _seconds((int(seconds), int(micros))), answers

    def _hashes(self, keys: Sequence[str], fields: Sequence[str]) -> list[list[bytes | None] | Exception]:
        """One answer a key, or why that key has none: see `_hash`."""
        with self._told:
            answers = self._redis.ask_all([("HMGET", key, *fields) for key in keys])
            return cast(list[list[bytes | None] | Exception], answers)

    def _hash(self, key: str, answer: list[bytes | None] | Exception) -> list[bytes | None]:
        with self._told:
            if isinstance(answer, Exception):
                raise type(answer)(f"{answer} ({key})") from answer
            return answer

    def _read(self, key: str, after: str, *, limit: int, block: float) -> list[tuple[bytes, dict[bytes, bytes]]]:
        end = time.monotonic() + block
        with self._told:
            while True:
                left = end - time.monotonic()
                wait = max(1, round(min(left, _SLICE) * 1000)) if left > 0 else None
                answer = self._redis.xread({key: after}, count=limit, block=wait)
                if answer:
                    return cast(list[tuple[bytes, dict[bytes, bytes]]], answer[0][1])
                if left <= 0:
                    return []

    def _run(self, name: str, arguments: Mapping[str, Any], *documents: bytes) -> Any:
        source, sha = _SCRIPTS[name]
        now = "" if self._clock is None else f"{self._clock():.6f}"
        rest = (self._prefix, now, codec.text(arguments), *documents)
        with self._told:
            try:
                return self._redis.evalsha(sha, 1, *rest)
            except redis.exceptions.NoScriptError:
                return self._redis.eval(source, 1, *rest)

    def _change(self, name: str, to: Upgrade, entry: Entry, arguments: Mapping[str, Any]) -> Any:
        doc = codec.UPGRADE.dump(to)
        rest = {"to": target(to), "entry": _entry(entry)}
        return self._run(name, {**arguments, **rest}, doc, codec.text(entry.detail), codec.pack(doc))

    def _text(self, name: str, arguments: Mapping[str, Any], *documents: bytes) -> str:
        return cast(bytes, self._run(name, arguments, *documents)).decode()

    def _texts(self, name: str, arguments: Mapping[str, Any], *documents: bytes) -> list[str]:
        return _texts(self._run(name, arguments, *documents))


# -- scripts ---------------------------------------------------------------------------------------------------------


def _load_scripts() -> dict[str, tuple[bytes, str]]:
    """With the shebang a full server refuses a script before its first line, and so changes nothing."""
    folder = resources.files("orchestrator.store") / "lua"
    common = (folder / "common.lua").read_bytes()
    found = {}
    for file in folder.iterdir():
        name = file.name.removesuffix(".lua")
        if name not in ("common", file.name):
            flags = b" flags=no-writes" if name in _READS else b""
            source = b"#!lua" + flags + b"\n" + common + file.read_bytes()
            found[name] = (source, hashlib.sha1(source, usedforsecurity=False).hexdigest())
    return found


_READS = frozenset({"changed", "due", "due_lanes", "next_due", "owner_of", "workers"})
_SCRIPTS = _load_scripts()


# -- shapes ------------------------------------------------------------------------------------------------------------


def _rollout(rollout: Rollout) -> dict[str, Any]:
    return {
        "state": rollout.state,
        "wave": rollout.wave,
        "stop": rollout.stop,
        "closed": "1" if rollout.closed else "0",
    }


def _claim(claim: Claim) -> dict[str, Any]:
    return {
        "rollout": claim.rollout,
        "server": claim.server,
        "owner": claim.owner,
        "fence": claim.fence,
        "version": claim.version,
        "epoch": claim.row.epoch,
    }


def _seen(row: Row) -> dict[str, Any]:
    return {"rollout": row.upgrade.rollout, "server": row.upgrade.server, "version": row.version}


def _delivery(delivery: Delivery) -> bytes:
    """Its version stands beside it."""
    return codec.DELIVERY.dump(replace(delivery, version=0))


def _due(due: float | None) -> dict[str, float]:
    return {} if due is None else {"due": due}


def _entry(entry: Entry) -> dict[str, str]:
    return {"event": entry.event, "actor": entry.actor}


def _ledger(items: Sequence[LedgerItem]) -> list[tuple[str, str]]:
    return [(item.key, codec.LEDGER.dump(item).decode()) for item in items]


def _texts(values: Iterable[bytes]) -> list[str]:
    return [value.decode() for value in values]


def _bucket(stored: Mapping[bytes, bytes], key: str) -> Bucket:
    try:
        number = {name.decode(): float(value) for name, value in stored.items()}
        whole = {"refused": int(number["refused"]), "calls": int(number.get("calls", 0))}
        return Bucket(**{**number, **whole})  # type: ignore[arg-type] # the others are floats
    except (ValueError, LookupError, TypeError) as error:
        raise UnsafeStore(f"{key} cannot be read") from error


def _token(doc: bytes, revoked: bytes | None, used: bytes | None, *, key: str) -> Token:
    try:
        revoked_at, used_at = (None if stored is None else float(stored) for stored in (revoked, used))
    except ValueError as error:
        raise UnsafeStore(f"a token's times at {key} cannot be read") from error
    return replace(codec.TOKEN.load(doc, key=key), revoked_at=revoked_at, used_at=used_at)


def _pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(words[::2], words[1::2], strict=True))


def _pair(member: str) -> tuple[str, str]:
    rollout, _, server = member.partition("/")
    return rollout, server


def _audit(id: bytes, fields: Mapping[bytes, bytes], key: str) -> AuditEntry:
    after = fields.get(b"r")
    try:
        return AuditEntry(
            id=id.decode(),
            at=float(fields[b"at"]),
            server=fields[b"s"].decode(),
            n=int(fields[b"n"]),
            event=fields[b"e"].decode(),
            actor=fields[b"a"].decode(),
            was=fields[b"w"].decode(),
            now=fields[b"x"].decode(),
            detail=codec.mapping(fields[b"d"], key=key),
            after={} if after is None else codec.mapping(codec.unpack(after, key=key), key=key),
        )
    except (KeyError, ValueError) as error:
        raise UnsafeStore(f"the audit entry {id.decode()} at {key} cannot be read: {error!r}") from error


def _int(stored: bytes | None, key: str) -> int:
    try:
        return int(stored or b"")
    except ValueError:
        raise UnsafeStore(f"what is stored at {key} cannot be read: {stored!r} is no number") from None


def _given(answer: Any) -> Any:
    """What Redis answered. Raises what it refused with."""
    if isinstance(answer, Exception):
        raise answer
    return answer


def _seconds(answer: tuple[int, int]) -> float:
    return float(f"{answer[0]}.{answer[1]:06d}")


def _batches(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    source = iter(items)
    while batch := list(islice(source, size)):
        yield batch
