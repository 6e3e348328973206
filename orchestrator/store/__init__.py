"""What is true after each call returns. `redis.py` and `memory.py` keep the same promises under one test suite.

Every change of a record is one atomic call that compares what the caller saw, and writes record, audit entry,
counters, ledger and due time together, or nothing. Time is the store's own (`now`), in epoch seconds.

Every upgrade that is neither pending, held nor settled is in exactly one agenda: `due` (start it again by itself at
that time) or the agenda of a lane (look at it there). What a crashed worker leaves behind is therefore found again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from orchestrator.domain.budget import Bucket, Limit
from orchestrator.domain.delivery import Delivery
from orchestrator.domain.orphans import Sighting
from orchestrator.domain.outbox import Feed
from orchestrator.domain.rollout import Rollout
from orchestrator.domain.token import Session, Token
from orchestrator.domain.upgrade import Direction, Upgrade

Kind = Literal["image", "server", "old server"]
WORLDS = 100  # that are remembered
DELIVERIES = 1000  # that the log keeps, beside those that wait
MOST_WAITING = 500  # deliveries
LedgerState = Literal["intended", "live", "retained", "quarantined", "deleted"]
IgnoredReason = Literal["stale epoch", "another step", "leased", "settled", "unknown", "newer schema"]
Failure = Literal["", "before", "after"]
RefusedReason = Literal["frozen", "paused", "aborting", "stopped"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """An upgrade as stored. `version` rises with every change of the record and every `issue`, to the microsecond of
    the store's clock at least: no number is given twice, though the store forgot its last second. `epoch` counts
    chains; `lease_until` is 0 when nobody holds it. `entry` counts its audit entries, without a gap."""

    upgrade: Upgrade
    version: int
    epoch: int
    entry: int
    owner: str = ""
    fence: int = 0
    lease_until: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A lease on one upgrade: the right to act on it until `lease_until` of the store's clock. `lost`: the processes
    (`worker/pid`) that had it since its record was last committed, and lost it without giving it back; the last six."""

    rollout: str
    server: str
    owner: str
    fence: int
    version: int
    lease_until: float
    row: Row
    lost: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Ignored:
    """The message does not apply any more, or not now. Nothing changed but a count of it."""

    reason: IgnoredReason


@dataclass(frozen=True, kw_only=True)
class RefusedIntent:
    """Nothing may begin now. The claim stays as it was."""

    reason: RefusedReason


@dataclass(frozen=True, kw_only=True)
class Once:
    """Of something that is asked for under a key: `mine`, whoever is told so does it; `busy`, somebody does it now;
    `done`; or `other`, the key stands for something else. What comes of it is known by `id`."""

    state: Literal["mine", "busy", "done", "other"]
    id: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What goes to the audit log with a change. `event` is the event's name; `detail` is JSON-able, without secrets."""

    event: str
    actor: str
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LedgerItem:
    """A billable resource that we made (or A, from when it is ours to end). `until`: epoch seconds it is kept."""

    key: str
    kind: Kind
    server: str
    state: LedgerState
    id: str = ""
    until: float | None = None


@dataclass(frozen=True, kw_only=True)
class AuditEntry:
    """One entry of the audit log. `id` orders the log of a rollout; `n` counts an upgrade's entries from 1 without a
    gap, and is 0 for entries of the rollout itself. `after` is the record after the change, as stored."""

    id: str
    at: float
    server: str
    n: int
    event: str
    actor: str
    was: str
    now: str
    detail: Mapping[str, Any]
    after: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Counts of a rollout's upgrades by state, kept by the same scripts that change them."""

    by_state: Mapping[str, int]
    failed_before_swap: int
    failed_after_swap: int


@dataclass(frozen=True, kw_only=True)
class Counts:
    """`lost`: leases that ended and were not given back. `resent`: chains that were sent again since no worker had
    taken a message of theirs. `ignored`: messages that did not apply, by the reason."""

    lost: int = 0
    resent: int = 0
    ignored: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Users:
    """User requests that the balancers of a rollout have seen since its plan, and those that failed; `at`: until when,
    epoch seconds."""

    requests: int
    failed: int
    at: float


class Store(Protocol):
    # -- the store itself ------------------------------------------------------------------------------------------

    def now(self) -> float:
        """The store's clock, epoch seconds."""
        ...

    def check(self, *, dev: bool) -> None:
        """Raises `Unreachable`, or `UnsafeStore` unless `dev` when it would evict keys, keeps no append-only file, is
        read-only or full."""
        ...

    def confirmed(self) -> bool | None:
        """Whether a replica has everything that was written before this call, asked for half a second; None where the
        server has no replica. Changes nothing that anybody reads."""
        ...

    # -- plans and rollouts ------------------------------------------------------------------------------------------

    def put_document(self, kind: str, id: str, body: Mapping[str, Any], *, ttl: float | None = None) -> bool:
        """A document that never changes (a plan, a survey's answer, a doctor's report) is stored under its id: by this
        call, or it was there before, and then False."""
        ...

    def forget_document(self, kind: str, id: str) -> None:
        """There is none under that id, and another may be put."""
        ...

    def document(self, kind: str, id: str) -> Mapping[str, Any] | None: ...

    def create(self, rollout: Rollout, upgrades: Sequence[Upgrade], *, locks: Mapping[str, str]) -> Rollout:
        """The rollout, its upgrades and the locks (lock key → server) exist, all or none; a repeat with the same id
        returns what is there. Upgrades that are neither pending, held nor settled are due, in ten seconds or when
        their old server's time is up. Raises `Locked` with the owning rollout's id in its text when another holds a
        lock."""
        ...

    def rollout(self, id: str) -> Rollout | None: ...

    def rollouts(self) -> Sequence[Rollout]:
        """All that can be read, newest first."""
        ...

    def unread(self) -> Mapping[str, str]:
        """Ids of the rollouts that cannot be read, and why."""
        ...

    def open_rollouts(self) -> Sequence[Rollout]:
        """Those not closed: something may still happen to one of their servers."""
        ...

    def change(self, was: Rollout, now: Rollout, *, entry: Entry) -> Rollout | None:
        """`now` is stored, with a greater `version`, if the stored version is still `was.version`; else None. Setting
        `closed` releases every lock of the rollout. Wakes the coordinators."""
        ...

    def freeze(self, on: bool, *, actor: str, reason: str = "") -> None:
        """While on, no intent of any rollout is granted, forward or undo."""
        ...

    def frozen(self) -> str | None:
        """Why, and by whom; None when not frozen."""
        ...

    def put_token(self, token: Token) -> bool:
        """The token is known from now on: by this call, or its id was known before, and then False."""
        ...

    def token(self, id: str) -> Token | None: ...

    def token_now(self, id: str) -> tuple[Token | None, float]:
        """And the store's clock, in one question: it is asked before everything else that is asked of the API."""
        ...

    def tokens(self) -> Sequence[Token]:
        """All that ever were, those revoked too, oldest first."""
        ...

    def revoke_token(self, id: str) -> bool:
        """From now on it does not hold: by this call, or it was revoked before, or never known, and then False."""
        ...

    def used_token(self, id: str) -> None:
        """It was last used now."""
        ...

    def put_session(self, key: str, session: Session) -> None:
        """It is known by that key until its time, or until its token has more than `SESSIONS`: then of the others the
        one ends whose time is first."""
        ...

    def session(self, key: str) -> Session | None: ...

    def end_session(self, key: str) -> bool:
        """It is not known any more: since this call, or it was not before, and then False."""
        ...

    def once(self, key: str, *, asked: str, id: str, seconds: float, ttl: float) -> Once:
        """Of all that ask under this key within `ttl` seconds, one at a time may do what is asked, for `seconds`, and
        always under the id of the first; as soon as it is done nobody. `asked` says what: another is `other`."""
        ...

    def once_ended(self, key: str, *, how: Literal["done", "again", "forgotten"], id: str = "") -> None:
        """It is done, and what came of it known by `id`; or whoever asks next may do it; or nobody ever asked."""
        ...

    # -- webhooks -------------------------------------------------------------------------------------------------

    def put_delivery(self, delivery: Delivery, payload: Any, *, once: str, keep: float) -> str | None:
        """It is in the log, and due as it says, unless one came for the same `once` within the last `keep` seconds. One
        script: of any number at once one is kept, whose id is returned to all. None, and nothing kept, when too many
        wait. The log keeps those that wait, and of the others the newest."""
        ...

    def delivery(self, id: str) -> Delivery | None: ...

    def deliveries(self) -> Sequence[Delivery]:
        """The log, newest first. One that cannot be read is left out."""
        ...

    def payload(self, id: str) -> Any:
        """What came with it. Raises `NotFound`."""
        ...

    def due_deliveries(self) -> Sequence[Delivery]:
        """All that wait, in the order of their due times."""
        ...

    def change_delivery(self, was: Delivery, now: Delivery) -> Delivery | None:
        """`now` is stored, with a greater version, and due as it says, if the stored version is still `was.version`;
        else None."""
        ...

    def feeds(self) -> Sequence[Feed]:
        """Of every receiver through every log that it follows, in the order of their names."""
        ...

    def change_feed(self, was: Feed | None, now: Feed | None) -> Feed | None:
        """`now` is stored, with a greater version, if the stored version is still `was.version`, or where `was` is None
        if there is none yet; else None. Without `now` there is none any more."""
        ...

    # -- upgrades -------------------------------------------------------------------------------------------------

    def row(self, rollout: str, server: str) -> Row | None: ...

    def rows(self, rollout: str, servers: Collection[str] | None = None) -> Sequence[Row]:
        """Of those servers, or all, in the order of their names."""
        ...

    def tally(self, rollout: str) -> Tally: ...

    def admit(
        self, rollout: str, server: str, *, to: Upgrade, limit: int, wave: int, domain: str, entry: Entry
    ) -> int | None:
        """`to` is stored and due at once if the upgrade is still pending, the rollout is running, neither paused,
        stopped nor aborting, nor everything frozen, its wave is the rollout's, fewer than `limit` of the rollout are in
        flight, and, where `domain` is not empty, none of another domain is: the version it is stored as, else None. One
        script: any number of coordinators never overshoot."""
        ...

    def issue(self, rollout: str, server: str, *, version: int, grace: float) -> int | None:
        """The epoch to send a chain under; its due time is now + grace. A new epoch, unless a message of the present
        one is still out and not taken: that is sent again under the same, and due again after as long as it has been
        out already, or twice as long as messages have lately waited for a worker (five minutes at the most), so that a
        time without workers does not multiply it. None if the record
        has changed since `version`, or someone holds a live lease: then it is due when that lease ends. `version`
        rises, so that of several coordinators that saw the same, one sends. A lease that ended and was not given back
        counts as lost; from the second one lost in a row on it is due some moments later instead, and sent then."""
        ...

    def claim(
        self, rollout: str, server: str, *, epoch: int, step: str, direction: Direction, owner: str, lease: float
    ) -> Claim | Ignored:
        """A lease, with a new and greater fence, if the epoch is the record's, the step and direction are the due
        ones, and nobody else holds a live lease. The same owner may claim again. It is due when the lease ends."""
        ...

    def take(self, row: Row, *, owner: str, lease: float) -> Claim | None:
        """A lease on the record as it was seen, in whatever state, for somebody who puts right what belongs to it. None
        if it has changed since, somebody holds a live lease, or everything is frozen. Unless at rest it is due when the
        lease ends."""
        ...

    def renew(self, claim: Claim, *, lease: float) -> Claim:
        """The lease lasts that long from now. Raises `Fenced` if it ended, was taken, or the record was changed by
        somebody else meanwhile."""
        ...

    def intent(
        self, claim: Claim, to: Upgrade, *, entry: Entry, ledger: Sequence[LedgerItem], undo: bool, finishing: bool
    ) -> Claim | RefusedIntent:
        """`to` is stored, and the effect may follow. Refused when frozen; and unless `undo` when the rollout is
        paused (or anything but running or baking), stopped, or aborting. With `finishing` an aborting rollout does not
        refuse. For an upgraded server, whose old one is to be ended, only a paused, aborting or rolling back rollout
        refuses. Raises `Fenced`."""
        ...

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
        """`to` is stored and the lease given back. It is due at `due`, in the agenda of lane `look` if given; None: in
        none. `locks` are taken for this rollout too. `failure` counts one before or after the swap; `stop` is the
        reason for which the whole rollout stops, set in the same script. Counters follow the states. Wakes the
        coordinators. Raises `Fenced`."""
        ...

    def release(self, claim: Claim, *, due: float | None = None, look: str | None = None, died: bool = False) -> None:
        """The lease is given back if still held, the upgrade due now, or at `due`, in the agenda of lane `look` if
        given. `died`: it counts as lost all the same, since a call of its holder may still take effect. Never raises
        `Fenced`."""
        ...

    def release_owner(self, prefix: str, *, died: bool = False) -> int:
        """Every lease whose owner begins with `prefix` is given back, the named ones too, its upgrade due now; how many
        upgrades there were. For a supervisor that has reaped that worker. `died`: nobody had told it to end, so these
        leases count as lost."""
        ...

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
        """`to` is stored though somebody may hold the lease, if the record is still `row.version` and the rollout not
        closed, and of the version `seen` where one is given; else None. The holder is fenced at its next call; it is
        due at `due`, or when that lease ends if that is later. Where an upgrade that had ended moves again the
        rollout's version rises, so that nobody closes it, or moves it on, who has not seen that. Which leases were
        lost stays known, unless its direction changes or it was held."""
        ...

    # -- waits -------------------------------------------------------------------------------------------------------

    def due(self, *, limit: int) -> Sequence[tuple[str, str]]:
        """(rollout, server) of those whose time has come in the agenda without a lane, oldest first."""
        ...

    def due_lanes(self) -> Sequence[str]:
        """Lanes in which a look is due."""
        ...

    def due_in_lane(self, lane: str, *, limit: int, postpone: float) -> Sequence[Row]:
        """Rows whose look is due there, oldest first; each is postponed by that many seconds, so that no second
        observer asks the same at the same time."""
        ...

    def next_due(self) -> float | None:
        """When the earliest entry of any agenda comes due; None without any."""
        ...

    def look_again(self, lane: str, due: Mapping[tuple[str, str], float]) -> None:
        """Those (rollout, server) of the lane that are due later are due at that time instead; whoever has left the
        lane stays out of it, and no record changes."""
        ...

    def looked(self, row: Row, to: Upgrade, *, due: float) -> Row | None:
        """`to`, which differs only by its observation, is stored, due at `due` in its lane, if the record is still
        `row.version` and unleased; else None. No audit entry; `version` rises."""
        ...

    def wake_up(self, row: Row, to: Upgrade, *, grace: float) -> Row | None:
        """The same with what is worth waking it for, and `issue` with it: the row, whose epoch a chain is to be sent
        under."""
        ...

    def put_off(self, due: Sequence[tuple[str, str]], *, seconds: float) -> None:
        """Those (rollout, server) in the agenda without a lane are due that much later, or no more if they have no
        record at all: what cannot be read must not keep the coordinators running."""
        ...

    # -- mending: what follows from the records, and does not --------------------------------------------------------

    def mend(self, rollout: str, rows: Sequence[Row], *, late: float) -> Sequence[tuple[str, str]]:
        """Each of these upgrades is in the agenda that its record asks for, and in no other; one that was in none is
        due now, and so is one under way that nobody has, and that was due more than `late` seconds after now and what
        its record waits for. What scripts read beside a record says what the record says, if that is still the row's
        version. Server and what was wrong, for each fault."""
        ...

    def last_event(self, rollout: str) -> str:
        """The id of the newest audit entry; "0" without any. As long as it is the same no upgrade changes its state."""
        ...

    def changed(self, rollout: str, *, after: str, limit: int) -> tuple[str, Sequence[str]] | None:
        """`last_event`, and the servers that have an audit entry after `after`, which was the last: whoever has read
        all records since then knows the state of every other. None if there are more than `limit` such entries, or
        the log is another one than that was the last of."""
        ...

    def beside(self, rollout: str) -> tuple[str, str | None, Sequence[Sighting]]:
        """`last_event` of it, `frozen`, and those of the `sightings` that are of it, in one question as a rule."""
        ...

    def recount(self, rollout: str, upgrades: Sequence[Upgrade], *, seen: str) -> Sequence[str]:
        """Counters by state and of failure domains in flight are those of all these upgrades, unless the audit log has
        grown since `seen`: then nothing happens. What was wrong. Failures are counted by their commits alone."""
        ...

    def relock(self, rollout: str, locks: Sequence[str]) -> Sequence[tuple[str, str]]:
        """Those of the locks that nobody holds are this open rollout's again. Lock and holder of those that were not
        its own; empty where there was none."""
        ...

    def reopen(self) -> Sequence[str]:
        """Every rollout that is not closed is among the open ones; those that were not."""
        ...

    # -- the rest ---------------------------------------------------------------------------------------------------

    def ledger(self, rollout: str) -> Sequence[LedgerItem]: ...

    def put_ledger(self, rollout: str, items: Sequence[LedgerItem]) -> None: ...

    def sightings(self) -> Sequence[Sighting]:
        """What carries our mark and nobody accounts for, as last seen, by its key. One that cannot be read is left
        out."""
        ...

    def sighted(self, lane: str, found: Sequence[Sighting]) -> None:
        """Of that lane these are the sightings from now on, and no others."""
        ...

    def put_world(self, world: str, rollout: str) -> None:
        """That rollout's file says how to reach that world, from now on. Of the newest `WORLDS` one is kept each."""
        ...

    def worlds(self) -> Sequence[str]:
        """The rollouts whose files say how to reach each world, newest first."""
        ...

    def owner_of(self, lock: str) -> str | None:
        """The rollout that holds this lock."""
        ...

    def lease(self, name: str, *, owner: str, seconds: float) -> int | None:
        """A fence if the named lease is free or already the owner's; None if another holds it."""
        ...

    def unlease(self, name: str, *, owner: str) -> None: ...

    def spend(self, bucket: str, limit: Limit, *, patience: float) -> float:
        """Seconds until one more call may be made from that bucket, which all workers share: it is accounted for,
        unless these are more than `patience`."""
        ...

    def refused(self, bucket: str, limit: Limit) -> None:
        """A call from that bucket was refused as one too many: it is slower from now on, and recovers."""
        ...

    def buckets(self) -> Mapping[str, Bucket]:
        """All that were used within a day, by name, as they stood at their last use."""
        ...

    def events(self, rollout: str, *, after: str = "0", limit: int = 1000, block: float = 0.0) -> Sequence[AuditEntry]:
        """Audit entries after that id, oldest first; waits up to `block` seconds for the first."""
        ...

    def counts(self) -> Counts:
        """How often, of all rollouts since there are records here."""
        ...

    def put_users(self, rollout: str, users: Users) -> None:
        """What its balancers have counted of its users by now."""
        ...

    def users(self, rollout: str) -> Users | None:
        """As last put; None where nobody counts."""
        ...

    def note(self, rollout: str, entry: Entry, *, server: str = "") -> None:
        """An audit entry that belongs to no change of a record."""
        ...

    def wake(self) -> None:
        """Every waiting coordinator looks again."""
        ...

    def sleep(self, seconds: float, *, cursor: str) -> str:
        """Returns when somebody woke the coordinators since `cursor` ("$": since now), or after the time; the new
        cursor."""
        ...

    def queue_wait(self) -> float:
        """Seconds that messages have lately waited before a worker took them: a decaying maximum, kept by `claim`."""
        ...

    def beat(self, worker: str, info: Mapping[str, Any], *, ttl: float) -> None:
        """The worker is known to live for `ttl` seconds."""
        ...

    def workers(self) -> Mapping[str, Mapping[str, Any]]: ...
