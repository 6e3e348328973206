"""What people and programs can ask of Changeover. The command line asks here, and so would any other door.

Each verb takes what it works on, returns values and prints nothing. Asking twice is the same as asking once: a verb
that finds its work done says so with `changed=False`. None of them touches the world: they change the record, and
workers and coordinators follow it.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from orchestrator import tracing
from orchestrator.domain import rollout as decisions
from orchestrator.domain.budget import Bucket
from orchestrator.domain.orphans import Patience, Sighting
from orchestrator.domain.rollout import Rollout
from orchestrator.domain.upgrade import Released, Settled, Shifted, Side, TurnedBack, Upgrade
from orchestrator.errors import (
    BadInput,
    ChangeoverError,
    Conflict,
    IllegalTransition,
    Locked,
    NotFound,
    Outdated,
    PlanMoved,
    Unreachable,
    UnsafeStore,
    WaitTimeout,
)
from orchestrator.reading import readable
from orchestrator.store import AuditEntry, Entry, LedgerItem, LedgerState, Row, Store, Tally

if TYPE_CHECKING:
    from celery import Celery

    from orchestrator.dispatch import Sender
    from orchestrator.domain.fleet import Fleet
    from orchestrator.domain.plan import Plan, Survey
    from orchestrator.domain.rebuild import Position, Rebuilt
    from orchestrator.domain.settlement import Whereabouts
    from orchestrator.report.certificate import Observed

TRIES = 20  # of a compare-and-set that others keep winning
PATIENCE = 60.0  # seconds to wait for a worker's answer
WITHOUT_WORKERS = 10.0  # seconds after which a lack of any living worker is the answer
LEASED = 3.0  # seconds to let a worker finish what it holds, before its record is changed under it
OTHERS = ("valkey", "coordinator", "flower", "page")  # what `up` runs beside workers
LOST = "changeover rebuild FILE, which only looks unless --yes"  # of a Redis that is empty, or has lost what it knew
SLOWED = 600.0  # seconds for which it is worth telling that a provider has refused a call as one too many
KEEP_PLANS = 30 * 86400.0
YES = 600.0  # seconds for which a person's yes to what is left over waits for a worker
_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"  # in the order of their codes, without i, l, o and u


# -- the world, read by a worker ---------------------------------------------------------------------------------------


class Asker(Protocol):
    """Sends a question (`survey`, `doctor`, `findings`: `about` a fleet; `whereabouts`: about a rollout's server;
    `collect`: about a lane) to the workers; its answer is a document of that kind."""

    def __call__(self, task: str, *, request: str, **about: Any) -> None: ...


def celery_asker(app: Celery) -> Asker:
    """Raises `Unreachable` when the broker does not take the message."""

    def ask(task: str, *, request: str, **about: Any) -> None:
        from kombu.exceptions import OperationalError

        try:
            app.send_task(
                f"tasks.{task}",
                kwargs={"request": request, **about},
                task_id=f"{task}:{request}",
                priority=0,
                ignore_result=True,
            )
        except OperationalError as error:
            raise Unreachable(f"the broker does not take messages: {error}", next="changeover doctor FILE") from error

    return ask


@dataclass(frozen=True, kw_only=True)
class Waiter:
    """How to wait for an answer. `timeout` and `every` in seconds."""

    timeout: float = PATIENCE
    every: float = 0.05
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


def request_survey(store: Store, ask: Asker, fleet: Fleet) -> str:
    """A worker is asked to read the world as far as this fleet goes; the id under which it will answer."""
    return _request(store, ask, "survey", fleet)


def await_survey(store: Store, id: str, waiter: Waiter | None = None) -> Survey:
    """Raises `WaitTimeout` saying whether any worker lives, and `ChangeoverError` when the world cannot be read."""
    from orchestrator.domain.plan import survey_from

    return survey_from(_answer(store, "survey", id, waiter or Waiter())["survey"])


def _request(store: Store, ask: Asker, kind: str, fleet: Fleet) -> str:
    request = new_id("q", store.now())
    ask(kind, request=request, fleet=fleet.canonical())
    return request


def _answer(store: Store, kind: str, request: str, waiter: Waiter) -> Mapping[str, Any]:
    start, before = waiter.monotonic(), store.workers()
    while True:
        found = store.document(kind, request)
        if found is not None:
            break
        waited = waiter.monotonic() - start
        if waited >= waiter.timeout or (waited >= WITHOUT_WORKERS and not store.workers()):
            raise _unanswered(store, kind, waited, before)
        waiter.sleep(min(waiter.every, max(0.001, waiter.timeout - waited)))
    store.forget_document(kind, request)  # nobody asks for it again, and it may be of a large fleet
    if not found.get("ok"):
        refused = found.get("refused", False)  # for what was asked, and not for how the world is just now
        raise (Conflict if refused else ChangeoverError)(
            f"the worker could not read the world: {found.get('error', 'it did not say why')}",
            traffic="unchanged; nothing was created",
            next="changeover doctor FILE",
        )
    return found


def _unanswered(store: Store, kind: str, waited: float, before: Collection[str]) -> WaitTimeout:
    workers = store.workers()
    if not workers and before:
        return WaitTimeout(
            f"{', '.join(sorted(before))} fell silent, so the {kind} was not answered in {waited:.0f} s",
            next="changeover doctor FILE   says which processes they are",
        )
    if not workers:
        return WaitTimeout(
            f"no worker is alive, so the {kind} was not answered in {waited:.0f} s", next="changeover up"
        )
    alive = "1 worker is" if len(workers) == 1 else f"{len(workers)} workers are"
    return WaitTimeout(
        f"{alive} alive and the {kind} was not answered in {waited:.0f} s; "
        f"messages have lately waited {store.queue_wait():.1f} s",
        next="try again with a longer --timeout",
    )


# -- plans -------------------------------------------------------------------------------------------------------------


def plan(store: Store, ask: Asker, fleet: Fleet, waiter: Waiter | None = None) -> Plan:
    """What would happen, computed from the world as it is now, and saved under its id."""
    from orchestrator.domain.plan import make_plan

    made = make_plan(fleet, await_survey(store, request_survey(store, ask, fleet), waiter))
    store.put_document("plan", made.id, asdict(made), ttl=KEEP_PLANS)
    return made


def saved_plan(store: Store, id: str) -> Plan:
    from orchestrator.domain.plan import plan_from

    found = store.document("plan", id)
    if found is None:
        raise NotFound(f"there is no plan {id}", next="changeover plan FILE")
    return plan_from(found)


def apply(
    store: Store,
    ask: Asker,
    fleet: Fleet,
    *,
    agreed: Plan | None,
    actor: str,
    id: str = "",
    waiter: Waiter | None = None,
) -> Rollout:
    """The rollout is created, with a lock on every server; coordinators admit from then on. The world is read anew.

    `agreed` is the plan that somebody said yes to. With an `id` that exists, that rollout is returned. Raises
    `PlanMoved` when the world or the file is no longer what the plan saw, `Conflict` for blockers, `Locked` when
    another rollout owns one of the servers; in each case nothing was created.
    """
    if id and (there := store.rollout(id)) is not None:
        return there
    fresh = plan(store, ask, fleet, waiter)
    if agreed is not None and agreed.hash != fresh.hash:
        raise moved(agreed, fresh)
    refuse_blockers(fresh)
    id = id or new_id("r", store.now())
    with tracing.beginning(id, fleet=fleet.fleet, plan=fresh.id):
        return create(store, fleet, fresh, actor=actor, id=id)


def moved(agreed: Plan, fresh: Plan) -> PlanMoved:
    from orchestrator.domain.plan import differences

    lines = differences(agreed.survey, fresh.survey)
    if agreed.fleet != fresh.fleet:
        lines.insert(0, "the fleet file is another one, or was changed")
    told = "".join(f"\n  {line}" for line in lines[:20])
    more = f"\n  and {len(lines) - 20} more" if len(lines) > 20 else ""
    return PlanMoved(
        f"plan {agreed.id} no longer holds:{told}{more}",
        traffic="unchanged; nothing was created",
        next="changeover plan FILE",
    )


def refuse_blockers(plan: Plan) -> None:
    if not plan.blockers:
        return
    told = "".join(f"\n  {line}" for line in plan.blockers[:20])
    more = f"\n  and {len(plan.blockers) - 20} more" if len(plan.blockers) > 20 else ""
    raise Conflict(
        f"plan {plan.id} cannot be applied:{told}{more}",
        traffic="unchanged; nothing was created",
        next=LOST if plan.survey.strangers else "changeover plan FILE",
    )


def create(store: Store, fleet: Fleet, plan: Plan, *, actor: str, id: str = "") -> Rollout:
    """The rollout of this plan, its upgrades and its locks. Raises `Locked`, and `Conflict` where another plan was
    about to become the rollout of that id."""
    from orchestrator.lanes import remember

    now = store.now()
    rollout = _rollout(fleet, plan, id=id or new_id("r", now), now=now, actor=actor)
    domains = {server.name: server.domain or "" for server in fleet.servers}
    upgrades = [
        Upgrade(rollout=rollout.id, server=name, wave=wave, domain=domains[name])
        for wave, names in enumerate(plan.waves)
        for name in names
    ]
    # The spec first: whoever finds the rollout finds what it is about.
    mine = store.put_document("spec", rollout.id, {"plan": asdict(plan)})
    if not mine and (there := store.rollout(rollout.id)) is not None:
        return there
    if not mine and (spec := store.document("spec", rollout.id)) is not None and spec["plan"]["hash"] != plan.hash:
        raise Conflict(
            f"rollout {rollout.id} is being created from plan {spec['plan']['id']}, or was about to be",
            traffic="unchanged; nothing was created",
            next="take another --id",
        )
    try:
        made = store.create(rollout, upgrades, locks=fleet.locks)
    except (Locked, BadInput):  # nothing has come of it, and nothing will
        if mine:
            store.forget_document("spec", rollout.id)
        raise
    remember(store, fleet, rollout.id)
    store.wake()
    return made


def _rollout(fleet: Fleet, plan: Plan, *, id: str, now: float, actor: str) -> Rollout:
    policy = fleet.rollout
    return Rollout(
        id=id,
        plan=plan.id,
        fleet=fleet.fleet,
        created_at=now,
        created_by=actor,
        waves=plan.waves,
        max_in_flight=policy.max_in_flight,
        allowed_failures=policy.budget.allowed(len(fleet.servers)),
        bake=policy.bake,
        on_abort=policy.on_abort,
        approvals=policy.asked_before(len(plan.waves)),
        windows=policy.windows.decided_by() if policy.windows else None,
    )


# -- from nothing but the world ----------------------------------------------------------------------------------------


def rebuild(
    store: Store,
    ask: Asker,
    fleet: Fleet,
    *,
    rollout: str,
    act: bool,
    actor: str,
    without: Collection[str] = (),
    waiter: Waiter | None = None,
) -> tuple[Rebuilt, Rollout | None]:
    """Where every server of this file stands, as the world says; with `act` the rollout is there again, under its own
    id and paused, with its records, locks and ledger. `rollout` says which, where marks of several are found; servers
    in `without` are left out of it, and stay as they are.

    Raises `Conflict` with every reason for which nothing can be rebuilt, and if this Redis knows the rollout already,
    `Locked` if another one holds a server; then nothing was created.
    """
    from orchestrator.domain.rebuild import findings_from
    from orchestrator.domain.rebuild import rebuild as positions_of

    unknown = sorted(set(without) - {server.name for server in fleet.servers})
    left = tuple(server for server in fleet.servers if server.name not in without)
    if unknown or not left:
        what = f"{unknown[0]} is not in the file" if unknown else "nothing of the file is left"
        raise BadInput(what, place="--without", next="changeover rebuild --help")
    fleet = fleet.model_copy(update={"servers": left})
    request = _request(store, ask, "findings", fleet)
    findings = findings_from(_answer(store, "findings", request, waiter or Waiter())["findings"])
    found = positions_of(fleet, findings, rollout=rollout, now=store.now(), without=without)
    if found.refusals or found.plan is None:
        told = "".join(f"\n  {line}" for line in found.refusals[:20])
        more = f"\n  and {len(found.refusals) - 20} more" if len(found.refusals) > 20 else ""
        next = "put these right by hand, or leave the server out: changeover rebuild FILE --without NAME"
        if any(thing.quarantined for thing in findings.marked):
            next = (
                "lift the quarantine of what is to serve (start it, take its tag changeover:phase off, put it back "
                "into its pools); then changeover rebuild FILE"
            )
        elif not found.rollout and found.marks:
            next = f"changeover rebuild FILE --rollout {found.marks[-1]}"
        elif not found.rollout and len(found.refusals) == 1:
            next = "changeover plan FILE: there is nothing to rebuild"
        raise Conflict(
            f"where the servers stand cannot be told from the world:{told}{more}",
            traffic="unchanged; nothing was created",
            next=next,
        )
    _refuse_known(store, found.rollout)
    lanes = {server.name: at.lane for at in fleet.places for server in at.servers}
    names = {position.upgrade.server: position.new for position in found.positions if position.new}
    locks = {**fleet.locks, **{f"{lanes[server]}/{new}": server for server, new in names.items()}}
    for lock, server in locks.items():
        if (owner := store.owner_of(lock)) is not None:
            raise Locked(f"{server} belongs to rollout {owner}", next=f"changeover show {owner}")
    return found, _put(store, fleet, found, found.plan, locks, actor) if act else None


def _refuse_known(store: Store, rollout: str) -> None:
    if store.rollout(rollout) is not None:
        raise Conflict(
            f"this Redis knows rollout {rollout}: there is nothing to rebuild",
            traffic="unchanged; nothing was created",
            next=f"changeover show {rollout}",
        )


def _put(store: Store, fleet: Fleet, found: Rebuilt, plan: Plan, locks: Mapping[str, str], actor: str) -> Rollout:
    from orchestrator.domain.rebuild import wave_of

    now = store.now()
    whole = replace(
        _rollout(fleet, plan, id=found.rollout, now=now, actor=actor),
        state="paused",
        resume_to="running",
        paused_at=now,
        wave=wave_of(found.positions),
        why=f"rebuilt from the world by {actor}: look at each server, then resume",
    )
    from orchestrator.lanes import remember

    # Only one at a time: the file of the rollout that comes to be is to be the one that its records were told by.
    who = f"{actor}:{new_id('q', now)}"
    if store.lease("rebuild", owner=who, seconds=PATIENCE) is None:
        raise Conflict("somebody else is rebuilding at this moment; nothing was created", next="changeover rollouts")
    try:
        _refuse_known(store, whole.id)  # somebody else has rebuilt it since it was looked for
        store.forget_document("spec", whole.id)  # of a rebuild that did not come to its end
        store.put_document("spec", whole.id, {"plan": asdict(plan)})
        remember(store, fleet, whole.id)
        made = store.create(whole, [position.upgrade for position in found.positions], locks=locks)
        store.put_ledger(whole.id, [item for position in found.positions for item in _ledger_of(position)])
        for position in found.positions:
            detail = {"found": position.found, "resumes": position.resumes}
            store.note(whole.id, Entry(event="Rebuilt", actor=actor, detail=detail), server=position.upgrade.server)
    finally:
        store.unlease("rebuild", owner=who)
    return made


def _ledger_of(position: Position) -> list[LedgerItem]:
    u = position.upgrade
    items = [
        LedgerItem(key=f"{kind}:{token}", kind=kind, server=u.server, state="live", id=id)
        for kind, token, id in position.made
    ]
    if u.state == "upgraded":
        state: LedgerState = "deleted" if u.old_gone else "retained"
        old = LedgerItem(key=f"old:{u.server}", kind="old server", server=u.server, state=state, id=position.old.id)
        items.append(replace(old, until=None if u.old_gone else u.retain_until))
    return items


def new_id(prefix: str, now: float) -> str:
    """Sorts by time, and is unlike any other: the second in seven digits, then twenty random bits."""
    number = (int(now) << 20) | secrets.randbits(20)
    digits = [_DIGITS[(number >> shift) & 31] for shift in range(50, -1, -5)]
    return prefix + "".join(digits)


# -- to look at --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class View:
    """A rollout as it is now. `held` wait for a person; `orphans` carry its mark and nobody accounts for them.
    `unread`: servers whose records cannot be read, and why; `upgrades` are the others."""

    rollout: Rollout
    upgrades: tuple[Upgrade, ...]
    tally: Tally
    frozen: str | None
    orphans: tuple[Sighting, ...] = ()
    unread: Mapping[str, str] = field(default_factory=dict)

    @property
    def held(self) -> tuple[Upgrade, ...]:
        return tuple(u for u in self.upgrades if u.state == "held")

    @property
    def alarms(self) -> tuple[Upgrade, ...]:
        """Whose new server does not serve as it must, of those that nobody turns back by itself."""
        return tuple(u for u in self.upgrades if u.alarming)

    @property
    def exit_code(self) -> int:
        return decisions.exit_code(self.rollout, len(self.held) + len(self.alarms) + len(self.unread))


@dataclass(frozen=True, kw_only=True)
class Story:
    """What happened to one server, oldest first. Without `upgrade` its record cannot be read, and `unread` says why."""

    rollout: Rollout
    server: str
    upgrade: Upgrade | None
    entries: tuple[AuditEntry, ...]
    unread: str = ""
    frozen: str | None = None
    slowed: Mapping[str, Bucket] = field(default_factory=dict)


def find(store: Store, id: str) -> Rollout:
    found = store.rollout(id)
    if found is None:
        known = store.rollouts() or store.unread()
        raise NotFound(
            f"there is no rollout {id}" + ("" if known else ", nor any other: if there were some, Redis has lost them"),
            traffic="unchanged; every server goes on serving as it is",
            next="changeover rollouts" if known else LOST,
        )
    return found


def listed(
    store: Store, choose: Callable[[Sequence[Rollout]], Sequence[Rollout]] = lambda all_of_them: all_of_them
) -> tuple[list[tuple[Rollout, Tally]], Mapping[str, str]]:
    """The chosen rollouts with their counts, newest first; and what cannot be read, and why: rollouts, and of the
    chosen that are not closed servers too, as `rollout/server`."""
    found: list[tuple[Rollout, Tally]] = []
    unread = dict(store.unread())
    for rollout in choose(store.rollouts()):
        try:
            found.append((rollout, store.tally(rollout.id)))
        except UnsafeStore as error:
            unread[rollout.id] = error.message
        if not rollout.closed:
            _, those = _read(store, rollout)
            unread |= {f"{rollout.id}/{server}": why for server, why in those.items()}
    return found, unread


def view(store: Store, id: str) -> View:
    rollout = find(store, id)
    rows, unread = _read(store, rollout)
    place = {name: n for n, name in enumerate(name for wave in rollout.waves for name in wave)}
    upgrades = sorted((row.upgrade for row in rows), key=lambda u: place.get(u.server, 0))
    return View(
        rollout=rollout,
        upgrades=tuple(upgrades),
        tally=store.tally(id),
        frozen=store.frozen(),
        orphans=tuple(s for s in store.sightings() if s.rollout == id),
        unread=unread,
    )


def _read(store: Store, rollout: Rollout) -> tuple[list[Row], dict[str, str]]:
    """The rows of a rollout; of servers whose records cannot be read the name, and why."""
    return readable(store, rollout.id, [name for wave in rollout.waves for name in wave])


def explain(store: Store, server: str, *, rollout: str | None) -> Story:
    """The server's way through that rollout, or through the newest that has it."""
    among = [find(store, rollout)] if rollout else store.rollouts()
    for each in among:
        if any(server in wave for wave in each.waves):
            rows, unread = readable(store, each.id, [server])
            upgrade = None if unread else rows[0].upgrade
            entries = tuple(entry for entry in events(store, each.id) if entry.server == server)
            why, frozen = unread.get(server, ""), store.frozen()
            slowed = {
                name: bucket for name, bucket in store.buckets().items() if store.now() - bucket.refused_at < SLOWED
            }
            return Story(
                rollout=each,
                server=server,
                upgrade=upgrade,
                entries=entries,
                unread=why,
                frozen=frozen,
                slowed=slowed,
            )
    if not among and not store.unread():
        raise NotFound(
            f"there is no server {server}, as this Redis knows of no rollout: if there were some, it has lost them",
            traffic="unchanged; every server goes on serving as it is",
            next=LOST,
        )
    where = f"rollout {rollout}" if rollout else "any rollout"
    unknown = ", ".join(store.unread()) if not rollout else ""
    raise NotFound(
        f"there is no server {server} in {where}" + (f" that can be read; {unknown} cannot" if unknown else ""),
        next=f"changeover show {rollout}" if rollout else "changeover rollouts",
    )


def events(store: Store, rollout: str, *, after: str = "0") -> Sequence[AuditEntry]:
    """The whole audit log after that id."""
    found: list[AuditEntry] = []
    while batch := store.events(rollout, after=after):
        found += batch
        after = batch[-1].id
    return found


def observed(store: Store, ask: Asker, id: str, waiter: Waiter | None = None) -> Observed | None:
    """What the balancers have counted of the users of this rollout's pools, from its plan until now; None where they
    do not count, or were started anew. Raises `WaitTimeout` when no worker answers."""
    from orchestrator.domain.fleet import Fleet
    from orchestrator.domain.plan import plan_from, users_between
    from orchestrator.report.certificate import Observed

    spec = store.document("spec", id)
    if spec is None:
        raise NotFound(f"there is no rollout {id}", next="changeover rollouts")
    planned = plan_from(spec["plan"])
    fleet = Fleet.model_validate_json(json.dumps(planned.fleet))
    counted = users_between(planned.survey, await_survey(store, request_survey(store, ask, fleet), waiter))
    return None if counted is None else Observed(requests=counted[0], failed=counted[1])


def report(
    store: Store, ask: Asker, id: str, waiter: Waiter | None = None
) -> tuple[dict[str, Any], View, ChangeoverError | None]:
    """What happened, as a document for `orchestrator.report`, with the certificate of what the balancers counted, or
    why there is none; and the rollout as it was then."""
    from orchestrator.report.certificate import certify
    from orchestrator.report.telling import tell

    seen, entries, now = view(store, id), events(store, id), store.now()
    document = tell(seen.rollout, seen.upgrades, entries, store.document("spec", id), now=now)
    try:
        users = observed(store, ask, id, waiter)
    except ChangeoverError as error:
        return document, seen, error
    if users is not None:
        document["certificate"] = certify(users).as_dict()
    return document, seen, None


# -- the rollout as a whole --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a verb did to a rollout. `in_flight`: the servers under way when it was asked. `confirmed`: see there.
    `unread`: servers that could not be asked along, since their records cannot be read, and why. Nothing of ours
    touches them or their traffic until they can; the rollout begins nothing new and does not end."""

    rollout: Rollout
    changed: bool
    confirmed: bool | None = None
    in_flight: tuple[Upgrade, ...] = ()
    servers: tuple[Upgrade, ...] = ()
    unread: Mapping[str, str] = field(default_factory=dict)


def refuse_outdated(rollout: Rollout, seen: int | None) -> None:
    """Raises `Outdated` if its version is not the one that whoever asks has seen; None: asked without having looked."""
    if seen is not None and rollout.version != seen:
        raise Outdated(
            f"rollout {rollout.id} was changed since you looked: it is {rollout.state}",
            traffic="unchanged; nothing was done",
            next=f"changeover show {rollout.id}",
        )


def pause(store: Store, id: str, *, actor: str, why: str = "", seen: int | None = None, dry: bool = False) -> Answer:
    """Nothing new begins; what a worker has in hand finishes its step. Raises `IllegalTransition`; and here as in the
    other verbs, `Outdated` unless its version is `seen`, where that is given. `dry`: nothing is changed; the answer is
    what it would be, and what would be refused is."""
    reason = why or f"paused by {actor}"
    to = decisions.paused
    return _ask(store, id, lambda r: to(r, why=reason, now=store.now()), "paused", actor, reason, seen=seen, dry=dry)


def resume(store: Store, id: str, *, actor: str, seen: int | None = None, dry: bool = False) -> Answer:
    """It goes on where it was. Deadlines of open upgrades move by the pause, before anything may begin again, so that
    none is judged by the time in which it was not allowed to work."""
    was = find(store, id)
    refuse_outdated(was, seen)
    if was.state == "paused":
        decisions.resumed(was, failed_before_swap=0, now=store.now())
        if not dry:
            _shift(store, was, actor=actor)

    def to(r: Rollout) -> Rollout:
        return decisions.resumed(r, failed_before_swap=store.tally(id).failed_before_swap, now=store.now())

    return _ask(store, id, to, "resumed", actor, "", seen=seen, dry=dry)


def _shift(store: Store, rollout: Rollout, *, actor: str) -> None:
    patience = time.monotonic() + LEASED
    for row in _read(store, rollout)[0]:
        if row.upgrade.state not in ("running", "waiting"):
            continue

        def shifted(u: Upgrade, now: float) -> Upgrade:
            if u.state not in ("running", "waiting"):
                return u
            return u.after(Shifted(seconds=max(0.0, now - (rollout.paused_at or now))))

        unleased = _unleased(store, row, patience)
        entry = Entry(event="Shifted", actor=actor, detail={"why": "the rollout was resumed"})
        _turn(store, unleased, shifted, entry, always=True)


def _unleased(store: Store, row: Row, until: float) -> Row:
    """The row once its worker has given it back, or at that time the row as it is."""
    while row.lease_until > store.now() and time.monotonic() < until:
        time.sleep(0.05)
        row = _row(store, row.upgrade.rollout, row.upgrade.server)
    return row


def approve(
    store: Store,
    id: str,
    *,
    who: str,
    actor: str,
    wave: int | None = None,
    seen: int | None = None,
    dry: bool = False,
) -> Answer:
    """`who` says yes to the wave that waits for it. `wave`: only if it is this one, from 0. Raises `IllegalTransition`
    where none waits, or another's yes is wanted."""

    def to(r: Rollout) -> Rollout:
        return decisions.approved(r, who=who, wave=wave)

    return _ask(store, id, to, "approved", actor, "", seen=seen, dry=dry)


def promote(store: Store, id: str, *, actor: str, seen: int | None = None, dry: bool = False) -> Answer:
    """The bake of its wave ends now. Raises `IllegalTransition` where none bakes."""
    return _ask(store, id, lambda r: decisions.promoted(r, now=store.now()), "promoted", actor, "", seen=seen, dry=dry)


def abort(store: Store, id: str, *, actor: str, why: str = "", seen: int | None = None, dry: bool = False) -> Answer:
    """Nothing new begins, and what was begun is undone (or finished behind its swap, as the fleet file says)."""
    reason = why or f"aborted by {actor}"
    return _ask(store, id, lambda r: decisions.aborting(r, why=reason), "aborting", actor, reason, seen=seen, dry=dry)


def rollback(store: Store, id: str, *, actor: str, why: str = "", seen: int | None = None, dry: bool = False) -> Answer:
    """Every server whose old one is still there goes back to it."""
    reason = why or f"rolled back by {actor}"
    return _ask(
        store, id, lambda r: decisions.rolling_back(r, why=reason), "rolling back", actor, reason, seen=seen, dry=dry
    )


def rollback_server(
    store: Store, id: str, server: str, *, actor: str, why: str = "", seen: int | None = None, dry: bool = False
) -> Answer:
    """This server goes back to its old one. Raises `PointOfNoReturn` once that is terminated or about to be, `Conflict`
    for one that was left pending by a rollout that is closed."""
    rollout = find(store, id)
    refuse_outdated(rollout, seen)
    reason = why or f"rolled back by {actor}"
    entry = Entry(event="TurnedBack", actor=actor, detail={"why": reason})

    def back(u: Upgrade, now: float) -> Upgrade:
        return u.after(TurnedBack(why=reason, at=now, asked=True))

    if dry:
        turned, changed = _would_turn(store, rollout, _row(store, id, server), back)
        return Answer(rollout=rollout, changed=changed, servers=(turned,))
    row, changed = _turn(store, _row(store, id, server), back, entry)
    if not changed:
        _due_again(store, row)
    return Answer(rollout=rollout, changed=changed, confirmed=confirmed(store), servers=(row.upgrade,))


def retry(
    store: Store,
    id: str,
    servers: Sequence[str] | None,
    *,
    actor: str,
    seen: int | None = None,
    dry: bool = False,
) -> Answer:
    """A held server goes on where it was; a failed or rolled back one starts anew, with new attempts. None: every
    server that is held or failed."""
    rollout = find(store, id)
    refuse_outdated(rollout, seen)
    unread: Mapping[str, str] = {}
    if servers is None:
        rows, unread = _read(store, rollout)
        servers = [row.upgrade.server for row in rows if row.upgrade.state in ("held", "failed")]
    if dry:
        done = [_would_retry(store, rollout, server) for server in servers]
    else:
        done = [_retry(store, id, server, actor=actor) for server in servers]
    return Answer(
        rollout=find(store, id),
        changed=any(changed for _, changed in done),
        confirmed=None if dry else confirmed(store),
        servers=tuple(u for u, _ in done),
        unread=unread,
    )


def _retry(store: Store, id: str, server: str, *, actor: str) -> tuple[Upgrade, bool]:
    row = _row(store, id, server)
    if row.upgrade.state not in ("held", "failed", "rolled_back"):
        _due_again(store, row)
        return row.upgrade, False
    entry = Entry(event="Released", actor=actor, detail={"why": f"retried by {actor}"})
    if row.upgrade.state == "held":
        row, changed = _turn(store, row, _released, entry)
        return row.upgrade, changed

    upgrades = [row.upgrade]

    def to(r: Rollout) -> Rollout:
        return decisions.reopened(r, upgrades, server)

    to(find(store, id))  # refused before anything is changed
    row, changed = _turn(store, row, _released, entry)
    # Always a new version: whoever decided before the server was pending again must not end its wave.
    _ask(store, id, to, "reopened", actor, f"retry of {server}", always=True)
    return row.upgrade, changed


def _would_retry(store: Store, rollout: Rollout, server: str) -> tuple[Upgrade, bool]:
    row = _row(store, rollout.id, server)
    if row.upgrade.state in ("failed", "rolled_back"):
        decisions.reopened(rollout, [row.upgrade], server)
    return _would_turn(store, rollout, row, _released)


def settle(
    store: Store,
    ask: Asker,
    id: str,
    server: str,
    *,
    serving: Side,
    because: str,
    unchecked: bool,
    actor: str,
    waiter: Waiter | None = None,
) -> Answer:
    """A server that is held, or upgraded while its new one ails, stays as it is: this one of the two serves, and
    nothing more is done for it. A worker looks first whether it does, and whether the other is out of every pool,
    unless `unchecked`. In the ledger, what we made and nobody uses then is quarantined; an old server that is left is
    retained without an end.

    Raises `IllegalTransition` for any other and for one settled the other way, `Conflict` with what was seen.
    """
    from orchestrator.domain.settlement import contradictions

    if not because.strip():
        raise BadInput("a reason is wanted: it is all that will be known of why", place="--because")
    rollout, row = find(store, id), _row(store, id, server)
    if row.upgrade.terminal and row.upgrade.by_hand and (row.upgrade.state == "upgraded") == (serving == "new"):
        return Answer(rollout=rollout, changed=False, confirmed=confirmed(store), servers=(row.upgrade,))
    event = Settled(serving=serving, why=because, at=store.now())
    if not row.upgrade.asks_person:
        was = "was settled already" if row.upgrade.by_hand else f"is {row.upgrade.state}"
        raise IllegalTransition(
            f"{server} {was}; only a held server can be settled, or one whose new server ails",
            traffic=row.upgrade.traffic,
            next=f"changeover explain {server}",
        )
    seen = None if unchecked else _whereabouts(store, ask, id, server, waiter)
    if seen is not None and (against := contradictions(serving, seen)):
        told = "".join(f"\n  {line}" for line in against)
        raise Conflict(
            f"{server} cannot be settled as served by its {serving} server:{told}",
            traffic="; ".join(member for member in seen.told() if "pool" in member),
            next=f"bring that about and repeat it, or add --unchecked: changeover settle {id} {server} --help",
        )
    old = _old_id(store, id, server)
    event = replace(event, old_gone=row.upgrade.old_lost or (seen is not None and seen.gone(old)))
    left = _left_behind(store.ledger(id), row.upgrade, event, seen, old)
    entry = Entry(
        event="Settled",
        actor=actor,
        detail={
            "why": because,
            "serving": serving,
            "checked": seen is not None,
            "seen": seen.told() if seen is not None else [],
            "left": [f"{item.kind} {item.id} {item.state}" for item in left],
        },
    )
    stored = store.turn(row, row.upgrade.after(event), entry=entry, due=None, ledger=left)
    if stored is None:
        raise Conflict(f"{server} was changed meanwhile; nothing was done", next=f"changeover explain {server}")
    return Answer(rollout=rollout, changed=True, confirmed=confirmed(store), servers=(stored.upgrade,))


def _whereabouts(store: Store, ask: Asker, rollout: str, server: str, waiter: Waiter | None) -> Whereabouts:
    from orchestrator.domain.settlement import whereabouts_from

    request = new_id("q", store.now())
    ask("whereabouts", request=request, rollout=rollout, server=server)
    return whereabouts_from(_answer(store, "whereabouts", request, waiter or Waiter())["seen"])


def _old_id(store: Store, rollout: str, server: str) -> str:
    from orchestrator.domain.plan import plan_from

    spec = store.document("spec", rollout)
    return plan_from(spec["plan"]).server(server).id if spec is not None else ""


def _left_behind(
    ledger: Sequence[LedgerItem], u: Upgrade, event: Settled, seen: Whereabouts | None, old: str
) -> tuple[LedgerItem, ...]:
    """What the ledger says of this server's things from now on."""
    mine = [item for item in ledger if item.server == u.server]
    user = u.results.get("provision", {}).get("server") if event.serving == "new" else None
    left: list[LedgerItem] = []
    for item in mine:
        if item.kind == "old server" or item.state == "deleted" or not item.id:
            continue  # what was only intended may still show: it is looked for until then
        gone = seen is not None and seen.gone(item.id)
        state: LedgerState = "deleted" if gone else "live" if item.id == user else "quarantined"
        left.append(replace(item, state=state, until=None))
    known = {item.id for item in mine}
    left += [
        LedgerItem(key=f"{thing.kind}:{thing.id}", kind=thing.kind, server=u.server, state="quarantined", id=thing.id)
        for thing in (seen.things if seen is not None else ())
        if thing.side == "new" and not thing.gone and thing.id not in (*known, user)
    ]
    key = f"old:{u.server}"
    if event.serving == "new":
        state = "deleted" if event.old_gone else "retained"
        left.append(LedgerItem(key=key, kind="old server", server=u.server, state=state, id=old))
    elif any(item.key == key for item in mine):
        left.append(LedgerItem(key=key, kind="old server", server=u.server, state="live", id=old))
    return tuple(left)


def _due_again(store: Store, row: Row) -> None:
    """One that is under way already does not lie in its agenda for longer than its record asks for."""
    if row.upgrade.state in ("running", "waiting"):
        store.mend(row.upgrade.rollout, [row], late=0.0)


def _released(u: Upgrade, now: float) -> Upgrade:
    return u.after(Released(at=now)) if u.state in ("held", "failed", "rolled_back") else u


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """`why` is None when not frozen; `in_flight` counts servers under way in all rollouts. `confirmed`: see there."""

    why: str | None
    changed: bool
    in_flight: int
    confirmed: bool | None = None


def freeze(store: Store, *, actor: str, reason: str = "") -> Frozen:
    """From its return on no step of any rollout begins, forward or back."""
    before = store.frozen()
    if before is None:
        store.freeze(True, actor=actor, reason=reason)
    return _frozen(store, changed=before is None)


def unfreeze(store: Store, *, actor: str) -> Frozen:
    before = store.frozen()
    if before is not None:
        store.freeze(False, actor=actor)
        store.wake()
    return _frozen(store, changed=before is not None)


def _frozen(store: Store, *, changed: bool) -> Frozen:
    return Frozen(why=store.frozen(), changed=changed, in_flight=_flying(store), confirmed=confirmed(store))


def _flying(store: Store) -> int:
    tallies = (store.tally(rollout.id).by_state for rollout in store.open_rollouts())
    return sum(states.get("running", 0) + states.get("waiting", 0) for states in tallies)


# -- kept, should a server be lost -------------------------------------------------------------------------------------


def confirmed(store: Store) -> bool | None:
    """Whether what was done before this call is on a replica too: None where the server has none. False is no failure
    of what was done: it is done, and would be lost with its server. Asking again, or doing it again, is safe."""
    try:
        return store.confirmed()
    except (Unreachable, UnsafeStore):  # of all moments, right after it had answered
        return False


# -- compare and set ---------------------------------------------------------------------------------------------------


def _ask(
    store: Store,
    id: str,
    to: Callable[[Rollout], Rollout],
    event: str,
    actor: str,
    why: str,
    *,
    always: bool = False,
    seen: int | None = None,
    dry: bool = False,
) -> Answer:
    """`always`: stored as a new version even where nothing of it changes. `seen`: only if this is its version. `dry`:
    nothing is stored, and the answer says what would be."""
    for _ in range(TRIES):
        was = find(store, id)
        refuse_outdated(was, seen)
        rows, unread = _read(store, was)
        flying = tuple(row.upgrade for row in rows if decisions.in_flight(row.upgrade))
        now = to(was)
        if dry:
            return Answer(rollout=now, changed=now != was, in_flight=flying, unread=unread)
        if now == was and not always:
            return Answer(rollout=was, changed=False, confirmed=confirmed(store), in_flight=flying, unread=unread)
        stored = store.change(was, now, entry=Entry(event=event, actor=actor, detail={"why": why} if why else {}))
        if stored is not None:
            return Answer(rollout=stored, changed=True, confirmed=confirmed(store), in_flight=flying, unread=unread)
    raise _contended(f"rollout {id}", f"changeover show {id}")


def _turn(
    store: Store, row: Row, to: Callable[[Upgrade, float], Upgrade], entry: Entry, *, always: bool = False
) -> tuple[Row, bool]:
    """The record moved on, and due at once. `always`: made due even where nothing of it changes. Raises `Conflict` when
    its rollout is closed: another one may have its servers by now."""
    for _ in range(TRIES):
        now = store.now()
        moved = to(row.upgrade, now)
        if moved == row.upgrade and not (always and moved.state in ("running", "waiting")):
            return row, False
        at_rest = moved.state in ("pending", "held") or moved.settled
        stored = store.turn(row, moved, entry=entry, due=None if at_rest else now)
        if stored is not None:
            return stored, True
        refuse_closed(find(store, row.upgrade.rollout), row.upgrade)
        row = _row(store, row.upgrade.rollout, row.upgrade.server)
    raise _contended(row.upgrade.server, f"changeover explain {row.upgrade.server}")


def _would_turn(
    store: Store, rollout: Rollout, row: Row, to: Callable[[Upgrade, float], Upgrade]
) -> tuple[Upgrade, bool]:
    moved = to(row.upgrade, store.now())
    if moved != row.upgrade:
        refuse_closed(rollout, row.upgrade)
    return moved, moved != row.upgrade


def refuse_closed(rollout: Rollout, u: Upgrade) -> None:
    """Raises `Conflict` when it is closed: another rollout may have its servers by now."""
    if rollout.closed:
        raise Conflict(
            f"rollout {rollout.id} is closed, and {u.server} stays as it left it: {u.state}",
            traffic="unchanged",
            next="changeover plan FILE",
        )


def _row(store: Store, rollout: str, server: str) -> Row:
    row = store.row(rollout, server)
    if row is None:
        raise NotFound(f"there is no server {server} in rollout {rollout}", next=f"changeover show {rollout}")
    return row


def _contended(what: str, next: str) -> Conflict:
    return Conflict(f"{what} was changed by others {TRIES} times in a row; nothing was done", next=next)


# -- what is left over -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Kept:
    """One entry of a rollout's ledger."""

    rollout: str
    item: LedgerItem

    @property
    def yours(self) -> bool:
        """Whether a person's `settle` has left it behind: nothing of ours ends it."""
        return self.item.until is None and self.item.state in ("quarantined", "retained")


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """`due`: (rollout, server) whose old server's time is up; `sent`: those sent on their way now; `kept_on`: those
    whose old server is kept though its time is up, and why. `orphans` carry our mark and nobody accounts for them;
    something is due for the `ripe` among them (keys), as the workers' `patience` has it. `done` is what became of some
    now, `not_done` what did not, and why. `searched`: the lanes that this Redis knows of. `unread`: lanes that could
    not be asked, and rollouts that could not be read, and why."""

    kept: tuple[Kept, ...]
    due: tuple[tuple[str, str], ...]
    sent: tuple[tuple[str, str], ...] = ()
    kept_on: Mapping[tuple[str, str], str] = field(default_factory=dict)
    orphans: tuple[Sighting, ...] = ()
    ripe: frozenset[str] = frozenset()
    patience: Patience | None = None
    done: tuple[str, ...] = ()
    not_done: tuple[str, ...] = ()
    unread: Mapping[str, str] = field(default_factory=dict)
    searched: tuple[str, ...] = ()


def gc(
    store: Store,
    ask: Asker,
    publish: Callable[[], Sender],
    *,
    collect: bool,
    grace: float,
    foreign: bool = False,
    only: Sequence[str] = (),
    waiter: Waiter | None = None,
) -> Inventory:
    """Every billable thing that we know of, what is due to go, and what nobody accounts for. With `collect` the
    retirements that are due are sent on their way now, and of the orphans those that were seen for long enough go into
    quarantine, and those that were in it for long enough are deleted; `foreign` ones only when told, and a server among
    them only when `only` has its id. Nothing else is touched, and with `only` nothing that it does not name."""
    rollouts = store.rollouts()
    kept: list[Kept] = []
    due: list[Row] = []
    kept_on: dict[tuple[str, str], str] = {}
    unread = dict(store.unread())
    now = store.now()
    for rollout in rollouts:
        try:
            if not rollout.closed:
                rows, those = _read(store, rollout)
                up = [row for row in rows if _time_is_up(row.upgrade, now)]
                due += [row for row in up if not row.upgrade.keeps_old]
                kept_on |= {(rollout.id, u.server): u.keeps_old for u in (row.upgrade for row in up) if u.keeps_old}
                unread |= {f"{rollout.id}/{server}": why for server, why in those.items()}
        except UnsafeStore as error:  # it holds up nothing else
            unread[rollout.id] = error.message
    sent = [row for row in due if collect and not only and _send(store, publish, row, grace)]
    from orchestrator.lanes import lanes

    done: list[str] = []
    not_done: list[str] = []
    ripe: set[str] = set()
    patience: Patience | None = None
    named = {"only": list(only)} if only else {}  # a worker of the version before knows no such thing
    searched = lanes(store, {})
    for lane in searched:
        request = new_id("q", now)
        try:
            if collect:  # whoever may send a message is not whoever may say yes: the worker believes the store alone
                store.put_document("yes", request, {"lane": lane, "foreign": foreign, **named}, ttl=YES)
            ask("collect", request=request, lane=lane, act=collect, foreign=foreign, **named)
            answer = _answer(store, "collect", request, waiter or Waiter(timeout=20.0))
            done += answer["done"]
            not_done += answer["not_done"]
            ripe.update(answer.get("due", ()))  # of a worker of the version before there is neither
            patience = Patience(**answer["patience"]) if "patience" in answer else patience
        except ChangeoverError as error:
            unread[lane] = error.message
    for rollout in rollouts:  # now, after what was done
        try:
            kept += [Kept(rollout=rollout.id, item=item) for item in store.ledger(rollout.id)]
        except UnsafeStore as error:
            unread[rollout.id] = error.message
    return Inventory(
        kept=tuple(kept),
        due=tuple((row.upgrade.rollout, row.upgrade.server) for row in due),
        sent=tuple((row.upgrade.rollout, row.upgrade.server) for row in sent),
        kept_on=kept_on,
        orphans=tuple(store.sightings()),
        ripe=frozenset(ripe),
        patience=patience,
        done=tuple(done),
        not_done=tuple(not_done),
        unread=unread,
        searched=tuple(searched),
    )


def _time_is_up(u: Upgrade, now: float) -> bool:
    return u.state == "upgraded" and not u.settled and (u.retain_until or now) <= now


def _send(store: Store, publish: Callable[[], Sender], row: Row, grace: float) -> bool:
    from orchestrator import dispatch

    return dispatch.send(store, publish(), row, grace=grace) is not None


# -- doctor ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at. `fix` is what to do when it is not ok."""

    name: str
    ok: bool
    detail: str
    fix: str = ""


def doctor(
    store: Store,
    ask: Asker,
    fleet: Fleet,
    *,
    dev: bool,
    up: Mapping[str, Any] | None = None,
    waiter: Waiter | None = None,
) -> tuple[Check, ...]:
    """Store, workers, and what a worker sees of the fleet. `up` is what the `up` that runs here has written down of
    itself, if one does. Raises nothing that it can tell as a check."""
    checks: list[Check] = []
    try:
        store.check(dev=dev)
        checks.append(Check(name="Redis", ok=True, detail="answers, keeps what it is told"))
    except ChangeoverError as error:
        checks.append(Check(name="Redis", ok=False, detail=error.message, fix=error.next))
        if isinstance(error, Unreachable):
            return tuple(checks)
    workers = store.workers()
    if not workers:
        started = {name: {"pid": pid} for name, pid in (up or {}).get("processes", {}).items() if name not in OTHERS}
        none = Check(name="workers", ok=False, detail="none is alive", fix="changeover up, or changeover worker")
        return (*checks, _silent(started, up, told="were started here") if started else none)
    checks.append(Check(name="workers", ok=True, detail=", ".join(sorted(workers))))
    frozen = store.frozen()
    if frozen is not None:
        checks.append(
            Check(name="freeze", ok=False, detail=f"everything is frozen: {frozen}", fix="changeover unfreeze")
        )
    try:
        answer = _answer(store, "doctor", _request(store, ask, "doctor", fleet), waiter or Waiter())
    except ChangeoverError as error:
        if isinstance(error, WaitTimeout) and not store.workers():  # all of them fell silent while we waited
            return (*(c for c in checks if c.name != "workers"), _silent(workers, up, told="are registered"))
        again = error.next.startswith("changeover doctor")  # which is where we are
        return (*checks, Check(name="providers", ok=False, detail=error.message, fix="" if again else error.next))
    checks += [
        Check(name=str(c["name"]), ok=bool(c["ok"]), detail=str(c.get("detail", "")), fix=str(c.get("fix", "")))
        for c in answer["checks"]
    ]
    return tuple(checks)


def needed_rights(store: Store, ask: Asker, fleet: Fleet, waiter: Waiter | None = None) -> Sequence[Mapping[str, Any]]:
    """What the credentials that workers use for this fleet have to allow, as its providers declare it: `who` needs
    which `policy`."""
    answer = _answer(store, "doctor", _request(store, ask, "doctor", fleet), waiter or Waiter())
    return [{"who": str(each["who"]), "policy": each["policy"]} for each in answer.get("policies", ())]


def _silent(workers: Mapping[str, Mapping[str, Any]], up: Mapping[str, Any] | None, *, told: str) -> Check:
    """Workers that hang. A start of anything else beside them would be refused, and an end of everything mends less."""
    names = ", ".join(f"{name} (process {info.get('pid', '?')})" for name, info in sorted(workers.items()))
    logs = f"{up['logs']}/{min(workers)}.log" if up else "the log of each, on its host"
    pids = " ".join(str(info["pid"]) for _, info in sorted(workers.items()) if "pid" in info)
    return Check(
        name="workers",
        ok=False,
        detail=f"{names} {told} and do not answer",
        fix=f"less {logs}; then kill -9 {pids or 'them'}: `up` starts them again, and no server is touched",
    )
