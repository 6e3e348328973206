"""I1 to I8, asked after every event: of the faked world when something is done to it, of the store when it has stored
something, and of everything together at the end.

What the outside takes away by itself (A dies, somebody deletes B by hand, B falls ill) is subtracted, and no more: see
`hurt`. I9 needs nothing of its own: with the control plane dead, I1 goes on being asked. I10 is not asked here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from orchestrator.domain.fleet import Fleet
from orchestrator.domain.rollout import GOING, Rollout
from orchestrator.domain.steps import RETIRE
from orchestrator.domain.upgrade import Upgrade
from orchestrator.store import AuditEntry, Claim, Ignored, LedgerItem, RefusedIntent, Row, codec
from providers import Key
from providers.compute import Image, Server
from providers.traffic import Member
from tasks import keys, swap
from tests.simulation.cloud import Cloud
from tests.simulation.evidence import Evidence

FLYING: Final = ("running", "waiting", "held")
SLACK: Final = 1e-6
LATE: Final = 400.0  # seconds that a call may come late after what it was decided from: frozen, throttled, in the air

# State -> what may follow it. Whatever else happens is no way.
LEGAL: Final[Mapping[str, frozenset[str]]] = {
    "pending": frozenset({"pending", "running", "rolled_back", "failed"}),
    "running": frozenset({"running", "waiting", "held", "upgraded", "rolled_back", "failed"}),
    "waiting": frozenset({"running", "waiting", "held", "upgraded", "rolled_back", "failed"}),
    "held": frozenset({"held", "running", "waiting", "upgraded", "rolled_back", "failed"}),
    "upgraded": frozenset({"upgraded", "running", "rolled_back"}),
    "rolled_back": frozenset({"rolled_back", "pending"}),
    "failed": frozenset({"failed", "pending"}),
}


class Violated(AssertionError):
    """An invariant does not hold."""


@dataclass
class Shadow:
    """What the store has last said of an upgrade."""

    version: int = 0
    entry: int = 0
    state: str = "pending"


@dataclass(kw_only=True)
class Invariants:
    """`fail` ends the simulation. `forgotten`: the store has lost its last second at least once, and with it what it
    knew of its own acts. `hurt` are the servers of the fleet that the outside has touched, and when; `unpooled` those
    whose place in a balancer it has taken. `left_out` are those that a person has rebuilt the rollout without."""

    fleet: Fleet
    cloud: Cloud
    clock: Callable[[], float]
    fail: Callable[[BaseException], None]
    evidence: Evidence
    hurt: dict[str, float] = field(default_factory=dict)
    touched: set[str] = field(default_factory=set)
    left_out: set[str] = field(default_factory=set)
    forgotten: bool = False
    store: Any = None
    count: int = 0
    shadows: dict[tuple[str, str], Shadow] = field(default_factory=dict)
    announced: set[tuple[str, str]] = field(default_factory=set)
    tokens: set[str] = field(default_factory=set)
    fences: dict[tuple[str, str], int] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    serving_since: dict[tuple[str, str], float] = field(default_factory=dict)
    late_made: set[str] = field(default_factory=set)
    made_by: dict[str, str] = field(default_factory=dict)
    _pools_of: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._pools_of = {server.name: server.pools for server in self.fleet.servers}

    def must(self, holds: bool, invariant: str, why: str | Callable[[], str]) -> None:
        """`why` is put into words only where it does not hold."""
        self.count += 1
        if not holds:
            error = Violated(f"{invariant}: {why if isinstance(why, str) else why()}")
            self.fail(error)
            raise error

    # -- the outside ------------------------------------------------------------------------------------------------

    def taken(self, server: str) -> None:
        """The outside has taken something of this server of the fleet: I1 counts it as gone."""
        self.hurt[server] = self.clock()

    def server_of(self, id: str) -> str:
        """The server of the fleet that this one is, or is made for."""
        return self.cloud.made_for.get(id, id)

    # -- what is done to the cloud and the balancer ----------------------------------------------------------------

    def before(self, name: str, args: Sequence[Any]) -> Any:
        """What `done` must know of how it was before."""
        if name in ("ensure_image", "ensure_server"):
            return self.cloud.made.get(args[0].token, 0)
        if name in ("add", "restore"):
            return args[1].name in self.cloud.pools[args[0]]
        if name == "remove":
            pool, member = args[0], args[1]
            found = self.cloud.pools[pool].get(member)
            return found, self.up(pool)
        if name in ("stop", "terminate"):
            thing = self.cloud.things.get(args[0])
            return None if thing is None else self.cloud.now(thing).state
        return None

    def done(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], answer: Any, before: Any, *, late: bool
    ) -> None:
        match name:
            case "ensure_image" | "ensure_server":
                self._made(name, args[0], answer, before, late=late)
            case "add" | "restore":
                self._came_in(args[0], args[1], was_there=before)
            case "remove":
                self._went_out(args[0], args[1], before, cut=kwargs["cut"], late=late)
            case "stop":
                self._stopped(args[0], before)
            case "terminate":
                self._terminated(args[0], before)
        if name in ("add", "restore", "remove"):
            self.i1_enough_serve(args[0])
        elif name in ("stop", "terminate", "start"):
            self.everybody_is_served()

    def changed_by_outside(self) -> None:
        self.evidence.pools()
        self.everybody_is_served()

    def everybody_is_served(self) -> None:
        for pool in self.cloud.pools:
            self.i1_enough_serve(pool)

    def up(self, pool: str) -> set[str]:
        """Members that serve users, as the balancer and the users see it."""
        members = self.cloud.pools[pool].values()
        return {view.name for view in members if view.state == "serving" and self.cloud.alive(view.address)}

    def i1_enough_serve(self, pool: str) -> None:
        """At least `min_healthy` serve, less those that the outside took."""
        up = self.up(pool)
        lost = {server for server in self.hurt if pool in self._pools(server) and not _of(server, up)}
        wanted = self.fleet.traffic.pools[pool].min_healthy - len(lost)
        self.must(
            len(up) >= wanted,
            "I1",
            lambda: f"{sorted(up)} serve in {pool}, {wanted} must (outside took {sorted(lost)})",
        )

    def _made(self, name: str, key: Key, answer: Any, before: int, *, late: bool) -> None:
        self.must(key.token in self.tokens, "I6", lambda: f"{key.name} was made without an intent")
        if self.cloud.made[key.token] == before:
            return  # adopted
        by_hand = self.made_by.get(key.token) in self.touched  # somebody has deleted the first
        self.made_by[key.token] = answer.id
        row = self.store.row(key.tags[keys.ROLLOUT], key.tags[keys.SERVER])
        intent = None if row is None else row.upgrade.intent
        if late or intent is None or intent.token != key.token:
            # Of a frozen worker, or of what was undone meanwhile: it is found in the end.
            self.late_made.add(answer.id)
            return
        self.must(self.cloud.made[key.token] == 1 or by_hand, "I4", lambda: f"{key.name} was made twice")
        kind = Server if name == "ensure_server" else Image
        others = [
            thing.view.id
            for thing in self.cloud.things.values()
            if isinstance(thing.view, kind)
            and thing.view.id not in (answer.id, *self.late_made, *self.touched)
            and all(thing.view.tags.get(tag) == key.tags[tag] for tag in (keys.ROLLOUT, keys.SERVER))
            and thing.view.state not in ("terminated", "failed")
        ]
        # An attempt that the store has forgotten is made anew: what the former one left is found in the end.
        self.must(
            not others or self.forgotten, "I4", f"{answer.id} was made for {key.tags[keys.SERVER]} beside {others}"
        )

    def _came_in(self, pool: str, member: Member, *, was_there: bool) -> None:
        view = self.cloud.pools[pool].get(member.name)
        if view is None:
            return
        id = self.cloud.addresses.get(member.address, "")
        if id in self.cloud.made_for and not was_there:
            self.i2_tested(pool, member, id)
        if view.state == "serving":
            self.serving_since.setdefault((pool, member.name), self.clock())

    def i2_tested(self, pool: str, member: Member, id: str) -> None:
        """B comes in only as tested: this very instance, this boot, often enough in a row."""
        passes = self.fleet.checks.smoke.passes
        probed = self.cloud.probed.get(member.address, [])
        view = self.cloud.things[id].view
        assert isinstance(view, Server)
        if view.state == "terminated" or id in self.touched:
            return  # nobody is sent there: the balancer sees nothing answer
        last = probed[-passes:]
        good = len(last) == passes and all(probe.passed and probe.boot == view.boot for probe in last)
        fresh = bool(last) and self.clock() - last[-1].at <= swap.FRESH + LATE
        self.must(good and fresh, "I2", lambda: f"{member.name} comes into {pool}, and its smoke tests were {last}")

    def _went_out(self, pool: str, name: str, before: Any, *, cut: bool, late: bool) -> None:
        view, up = before
        now = self.cloud.pools[pool].get(name)
        if view is None or now == view:
            return
        if now is None or now.state != "serving":
            self.serving_since.pop((pool, name), None)
        if view.state == "serving":
            left = self.up(pool)
            least = self.fleet.traffic.pools[pool].min_healthy
            self.must(
                name not in up or len(left) >= least, "I1", f"{name} left {pool}, where only {sorted(left)} serve"
            )
        if now is None and view.sessions:
            told = self.fleet.rollout.drain.at_deadline == "cut"
            self.must(cut and told, "I1", lambda: f"{name} left {pool} with {view.sessions} requests in flight")

    def _in_rotation(self, id: str) -> list[str]:
        thing = self.cloud.things.get(id)
        if thing is None or not isinstance(thing.view, Server):
            return []
        return [
            f"{view.name} is {view.state} in {pool}"
            for pool, members in self.cloud.pools.items()
            for view in members.values()
            if view.address == thing.view.address and (view.state == "serving" or view.sessions)
        ]

    def _stopped(self, id: str, before: str | None) -> None:
        """I7: A is stopped when nobody is sent to it, and B has served for the soak."""
        if before != "running":
            return
        self.must(not self._in_rotation(id), "I7", lambda: f"{id} was stopped while {self._in_rotation(id)}")
        if id not in self._pools_of:
            return
        self.must((id, "drain_old") in self.announced, "I6", lambda: f"{id} was stopped without an intent")
        if id in self.hurt:
            return
        soak = self.fleet.rollout.soak
        for pool in self._pools(id):
            since = [
                at
                for (where, name), at in self.serving_since.items()
                if where == pool and name.startswith(f"{id}.g") and name in self.up(pool)
            ]
            served = bool(since) and self.clock() - min(since) >= soak - SLACK
            self.must(served, "I7", f"{id} was stopped, and its new server serves in {pool} since {since}")

    def _terminated(self, id: str, before: str | None) -> None:
        if before is None or before == "terminated":
            return
        self.must(not self._in_rotation(id), "I1", lambda: f"{id} was terminated while {self._in_rotation(id)}")
        if id not in self._pools_of or self.forgotten:
            return
        self.must((id, RETIRE) in self.announced, "I7", lambda: f"the old server {id} was terminated without an intent")
        upgrade = self.upgrade(id)
        if upgrade is not None:
            until = upgrade.retain_until
            self.must(
                until is not None and self.clock() >= until and upgrade.beyond_return,
                "I7",
                f"the old server {id} was terminated before its time, {until}",
            )

    def _pools(self, server: str) -> tuple[str, ...]:
        return self._pools_of.get(server, ())

    def upgrade(self, server: str) -> Upgrade | None:
        """As it is stored in the newest rollout that has it."""
        for rollout in self.store.rollouts():
            row = self.store.row(rollout.id, server)
            if row is not None:
                found: Upgrade = row.upgrade
                return found
        return None

    # -- what is stored ---------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """The store has lost its last second, or all: from here on it is believed anew."""
        self.forgotten = True
        self.shadows.clear()
        for rollout in self.store.rollouts():
            for row in self.store.rows(rollout.id):
                self._believe(row.upgrade, row)

    def _believe(self, to: Upgrade, row: Row) -> None:
        self.shadows[to.rollout, to.server] = Shadow(version=row.version, entry=row.entry, state=to.state)

    def _moved(self, to: Upgrade, *, version: int, entry: int) -> None:
        shadow = self.shadows.setdefault((to.rollout, to.server), Shadow())
        who = f"{to.server} of {to.rollout}"
        self.must(to.state in LEGAL[shadow.state], "I3", lambda: f"{who} went from {shadow.state} to {to.state}")
        self.must(entry == shadow.entry + 1, "I6", lambda: f"{who}: audit entry {entry} follows {shadow.entry}")
        self.must(version > shadow.version, "I6", lambda: f"{who}: version {version} follows {shadow.version}")
        self._given_once(who, version)
        shadow.version, shadow.entry, shadow.state = version, entry, to.state

    def _given_once(self, who: str, version: int) -> None:
        """Whatever the store has forgotten: whoever saw the forgotten one may still change what he saw."""
        before = self.versions.get(who, -1)
        self.must(version > before, "I3", lambda: f"{who}: version {version} follows {before}")
        self.versions[who] = version

    def stored_admit(
        self,
        answer: int | None,
        rollout: str,
        server: str,
        *,
        to: Upgrade,
        limit: int,
        wave: int,
        domain: str,
        entry: Any,
    ) -> None:
        if answer is None:
            return
        row = self.store.row(rollout, server)
        self.must(answer == row.version, "I3", lambda: f"{server} is at {row.version}, and {answer} was told")
        self._moved(to, version=row.version, entry=row.entry)
        now: Rollout = self.store.rollout(rollout)
        self.must(self._may_go_on(now, "running"), "admission", lambda: f"{server} was admitted while {now.state}")
        flying = [u for u in self.upgrades(rollout) if u.state in FLYING]
        self.must(len(flying) <= limit, "admission", lambda: f"{len(flying)} are in flight, {limit} may be")
        self.must(
            now.wave == wave == to.wave, "admission", lambda: f"{server} of wave {to.wave} was admitted in {now.wave}"
        )
        domains = {u.domain for u in flying if u.domain}
        self.must(len(domains) <= 1 or not domain, "admission", lambda: f"{sorted(domains)} are in flight at once")

    def _may_go_on(self, now: Rollout, *states: str) -> bool:
        return self.store.frozen() is None and not now.stop and now.state in states

    def upgrades(self, rollout: str) -> list[Upgrade]:
        return [row.upgrade for row in self.store.rows(rollout)]

    def _compared(self, u: Upgrade, version: int) -> None:
        """What is changed is what was seen."""
        shadow = self.shadows.get((u.rollout, u.server))
        last = shadow.version if shadow is not None else version
        self.must(version >= last, "I3", lambda: f"{u.server} was changed as of version {version}, and it is at {last}")

    def stored_claim(self, answer: Claim | Ignored, *_args: Any, **_how: Any) -> None:
        if isinstance(answer, Claim):
            self._fenced(answer)

    def stored_take(self, answer: Claim | None, *_args: Any, **_how: Any) -> None:
        if answer is not None:
            self._fenced(answer)

    def _fenced(self, claim: Claim) -> None:
        """A fence is given once, whatever the store has forgotten: whoever had it may still live."""
        self.evidence.claimed(claim)
        who = (claim.rollout, claim.server)
        before = self.fences.get(who, 0)
        self.must(claim.fence > before, "I8", lambda: f"{claim.server}: fence {claim.fence} follows {before}")
        self.fences[who] = claim.fence

    def stored_intent(self, answer: Claim | RefusedIntent, claim: Claim, to: Upgrade, **how: Any) -> None:
        if isinstance(answer, RefusedIntent):
            return
        self._compared(to, claim.version)
        self._moved(to, version=answer.version, entry=answer.row.entry)
        undo = to.direction == "undo" and to.state != "upgraded"
        self.announced.add((to.server, f"undo_{to.step}" if undo else to.step))
        if to.intent is not None and not undo:
            self.tokens.add(to.intent.token)
        self.must(self.store.frozen() is None, "freeze", lambda: f"{to.server} began {to.step} while all is frozen")
        if to.state == "upgraded":
            self.must(
                to.ailing is None, "I7", lambda: f"the end of {to.server}'s old server began while the new one ails"
            )
        if undo or to.state == "upgraded":
            return
        now: Rollout = self.store.rollout(to.rollout)
        allowed = self._may_go_on(now, *GOING) or (now.state == "aborting" and how["finishing"])
        self.must(
            allowed, "pause", lambda: f"{to.server} began {to.step} while the rollout is {now.state} ({now.stop})"
        )

    def stored_commit(self, answer: Row, claim: Claim, to: Upgrade, **_how: Any) -> None:
        self._compared(to, claim.version)
        self._moved(to, version=answer.version, entry=answer.entry)

    def stored_turn(self, answer: Row | None, row: Row, to: Upgrade, **_how: Any) -> None:
        if answer is not None:
            self._compared(to, row.version)
            self._moved(to, version=answer.version, entry=answer.entry)

    def stored_looked(self, answer: Row | None, row: Row, to: Upgrade, **_how: Any) -> None:
        if answer is not None:
            self._compared(to, row.version)
            self._given_once(f"{to.server} of {to.rollout}", answer.version)
            self._believe(to, answer)

    def stored_wake_up(self, answer: Row | None, row: Row, to: Upgrade, **_how: Any) -> None:
        self.stored_looked(answer, row, to)

    def stored_note(self, _answer: None, rollout: str, _entry: Any, *, server: str = "") -> None:
        if server:
            self.shadows.setdefault((rollout, server), Shadow()).entry += 1

    def stored_change(self, answer: Rollout | None, was: Rollout, now: Rollout, **_how: Any) -> None:
        if answer is not None:
            self._given_once(was.id, answer.version)

    def stored_issue(self, answer: int | None, rollout: str, server: str, *, version: int, **_how: Any) -> None:
        if answer is not None:
            self._given_once(f"{server} of {rollout}", now := self.store.row(rollout, server).version)
            self.shadows.setdefault((rollout, server), Shadow()).version = now

    # -- at the end -------------------------------------------------------------------------------------------------

    def at_the_end(self) -> None:
        """Everything is told again from the beginning, and the world is counted."""
        self.everybody_is_served()
        newer: set[str] = set()
        for rollout in self.store.rollouts():
            entries = _all_events(self.store, rollout.id)
            for row in self.store.rows(rollout.id):
                self.i6_audit_folds_back(row, [e for e in entries if e.server == row.upgrade.server])
                if row.upgrade.server not in newer:  # which has replaced it once more
                    self.i3_ended_well(row.upgrade)
            newer |= {server for wave in rollout.waves for server in wave}
            tally = self.store.tally(rollout.id).by_state
            counted: dict[str, int] = {}
            for u in self.upgrades(rollout.id):
                counted[u.state] = counted.get(u.state, 0) + 1
            self.must(dict(tally) == counted, "counters", f"{dict(tally)} are told, {counted} are there")
        self.i4_all_is_accounted_for()

    def i6_audit_folds_back(self, row: Row, entries: Sequence[AuditEntry]) -> None:
        """Numbered without a gap, in order of time, each from where the last has ended, the last the record itself."""
        who = row.upgrade.server
        numbers = [entry.n for entry in entries]
        self.must(numbers == list(range(1, len(entries) + 1)), "I6", f"{who}: the audit log counts {numbers}")
        self.must(row.entry == len(entries), "I6", f"{who}: {row.entry} entries are told, {len(entries)} are there")
        state, at = (entries[0].was if self.forgotten and entries else "pending"), 0.0
        for entry in entries:
            self.must(entry.was == state and entry.at >= at, "I6", f"{who}: entry {entry.n} does not follow")
            state, at = entry.now, entry.at
        changes = [entry for entry in entries if entry.after]
        if changes:
            last = codec.UPGRADE.of(changes[-1].after)
            self.must(last.state == row.upgrade.state and last.step == row.upgrade.step, "I6", f"{who}: does not fold")

    def i3_ended_well(self, u: Upgrade) -> None:
        """It is where its state says, and its users too."""
        if u.state == "held":
            self.must(bool(u.why), "I3", f"{u.server} is held without a reason")
            return
        if u.state == "pending":
            return
        self.must(u.terminal, "I3", f"{u.server} is {u.state} at {u.step} ({u.direction}): {u.why}")
        ended = u.ended_at or 0.0
        if self.hurt.get(u.server, 0.0) > ended - LATE:
            return  # what the outside did after it had ended, or was about to
        untouched = u.life == 1 and not u.begun  # where and how it is, is nobody's doing
        for pool in self._pools(u.server):
            members = self.cloud.pools[pool]
            mine = _of(u.server, members)
            up = mine & self.up(pool)
            new = {name for name in mine if name != u.server}
            if u.state == "upgraded":
                self.must(bool(up) and u.server not in mine, "I3", f"{u.server} is upgraded; in {pool}: {sorted(mine)}")
            else:
                whole = (u.server in up or untouched) and not new
                self.must(whole, "I3", f"{u.server} is {u.state}; in {pool}: {sorted(mine)}, of them up: {sorted(up)}")

    def i4_nothing_is_left_but_what_came_late(self) -> None:
        """Before anybody collects: what nobody accounts for was made behind our back, or in a second that was lost."""
        if not self.forgotten:
            excused = self.late_made | self.touched
            left = [view for view in self._unaccounted() if view.id not in excused]
            told = [f"{view.id} of {view.tags.get(keys.SERVER)}" for view in left]
            self.must(not left, "I4", f"nobody accounts for {', '.join(told)}")

    def i4_all_is_accounted_for(self) -> None:
        """What carries our tag is in a ledger as live, retained or quarantined. What was made for a server that a
        person has left out of a rebuild is theirs to end, and told to them: it may be all that is left of it."""
        told = {sighting.id for sighting in self.store.sightings() if sighting.foreign}
        for view in self._unaccounted():
            server = view.tags.get(keys.SERVER)
            if view.id not in self.touched and not (server in self.left_out and view.id in told):
                self.must(False, "I4", f"nobody accounts for {view.id} of {server}")

    def _unaccounted(self) -> list[Server | Image]:
        known: dict[str, LedgerItem] = {}
        for rollout in self.store.rollouts():
            for item in self.store.ledger(rollout.id):
                if item.state in ("live", "retained", "quarantined"):
                    known[item.id] = item
        views = [thing.view for thing in self.cloud.things.values()]
        ours = [view for view in views if view.tags.get(keys.MANAGED) == "1" and view.state != "terminated"]
        return [view for view in ours if view.id not in known]


def _of(server: str, members: Iterable[str]) -> set[str]:
    """Those names in a balancer that are this server's, of whichever generation."""
    return {name for name in members if name == server or name.startswith(f"{server}.g")}


def _all_events(store: Any, rollout: str) -> list[AuditEntry]:
    found: list[AuditEntry] = []
    after = "0"
    while batch := store.events(rollout, after=after):
        found += batch
        after = batch[-1].id
    return found
