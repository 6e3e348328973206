"""Finds what carries our mark and nobody accounts for, and ends it when a person says so: after a while in quarantine,
and never what another installation may own. What it decides by is `orchestrator.domain.orphans`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import structlog

from orchestrator.domain.fleet import Fleet
from orchestrator.domain.orphans import Deed, Sighting, Thing, deed, doubt, explained, forgotten, remembered, sighted
from orchestrator.domain.rollout import Rollout
from orchestrator.domain.upgrade import Upgrade
from orchestrator.errors import ChangeoverError, UnsafeStore
from orchestrator.lanes import NEWEST, where
from orchestrator.store import Entry, LedgerItem, Row
from providers.compute import Compute, Image, Server
from providers.errors import GuardRefused, NotFound, ProviderError
from tasks import keys
from tasks.survey import KEEP
from tasks.world import World

log = structlog.get_logger()
ONE_RUN = 120.0  # seconds for which one run has a lane for itself


@dataclass
class _Known:
    """What the store knows of the rollouts whose marks were found, read once for one look."""

    world: World
    rollouts: dict[str, Rollout | None] = field(default_factory=dict)
    ledgers: dict[str, Sequence[LedgerItem]] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)

    def of(self, id: str) -> Rollout | None:
        """None if it is unknown, or cannot be read."""
        if id not in self.rollouts:
            self.rollouts[id] = None
            try:
                self.rollouts[id] = self.world.store.rollout(id) if id else None
                self.ledgers[id] = self.world.store.ledger(id) if id else ()
            except UnsafeStore as error:
                self.unreadable[id] = str(error)
        return self.rollouts[id]

    def row(self, thing: Thing) -> Row | None:
        return self.world.store.row(thing.rollout, thing.server) if thing.server else None

    def kept(self, place: str) -> set[tuple[str, str]]:
        """Every id that a ledger holds on to, with the rollout whose things it explains: each its own, and those of
        this world any thing (""), since two hosts may give the same. What was quarantined by us has an end, by a person
        none."""
        found: set[tuple[str, str]] = set()
        for id, ledger in self.ledgers.items():
            mine = {item.id for item in ledger if item.id and not _ends(item)}
            found |= {(id, each) for each in mine}
            if self.may_be_at(id, place):
                found |= {("", each) for each in mine}
        return found

    def may_be_at(self, id: str, place: str) -> bool:
        """Whether this rollout's servers are in that world, as far as can be told."""
        try:
            return any(where(at) == place for at in self.world.spec(id).fleet.places)
        except ChangeoverError:
            return True


def _ends(item: LedgerItem) -> bool:
    return item.state == "deleted" or (item.state == "quarantined" and item.until is not None)


def scan(world: World, *, lane: str) -> Mapping[str, Any]:
    """One look at a lane; what nobody accounts for is kept in the store, and the ledgers are settled."""
    fleets = world.lanes().get(lane)
    if fleets is None:
        return {"orphans": 0}
    try:
        return {"orphans": len(look(world, lane, fleets))}
    except (ProviderError, ChangeoverError) as error:
        log.warning("a lane could not be searched", lane=lane, error=str(error))
        return {"orphans": None, "error": str(error)}


def look(world: World, lane: str, fleets: Sequence[Fleet]) -> list[Sighting]:
    """The orphans of this lane as seen now, stored. Raises `ProviderError`."""
    things = [
        _thing(found)
        for found in world.compute(fleets[0]).inventory({keys.MANAGED: "1"})
        if found.state != "terminated"
    ]
    known = _Known(world)
    for id in [*(rollout.id for rollout in world.store.open_rollouts()), *(thing.rollout for thing in things)]:
        known.of(id)
    place = where(fleets[0])
    _settle_ledgers(world, place, things, known)
    kept = known.kept(place) | {("", id) for id in _replaced(world, known)}
    elsewhere = _listed_elsewhere(world, lane, place)
    things = [thing for thing in things if (thing.kind, thing.id, thing.name) not in elsewhere]
    orphans = [thing for thing in (_judged(thing, known, kept) for thing in things) if thing is not None]
    foreign = {t.rollout for t in orphans if known.of(t.rollout) is None and t.rollout not in known.unreadable}
    pools, unread = _pools(world, [*fleets, *_fleets_of(world, orphans, known)])
    found = sighted(
        [s for s in world.store.sightings() if s.lane == lane],
        [replace(thing, unsure=thing.unsure or unread) for thing in orphans],
        lane=lane,
        foreign=foreign,
        pools=pools,
        now=world.store.now(),
    )
    world.store.sighted(lane, found)
    return found


def _listed_elsewhere(world: World, lane: str, place: str) -> set[tuple[str, str, str]]:
    """Two worlds of the same name may be one, reached with other settings: what is found in both is listed once."""
    base, _, apart = lane.rpartition("@")
    if apart != place:
        return set()
    world.store.sighted(base, [])  # it was the only world of its name once; those are found anew
    return {(s.kind, s.id, s.name) for s in world.store.sightings() if s.lane < lane and s.lane.startswith(f"{base}@")}


def _thing(found: Server | Image) -> Thing:
    return Thing(
        kind="server" if isinstance(found, Server) else "image",
        id=found.id,
        name=found.name,
        state=found.state,
        rollout=found.tags.get(keys.ROLLOUT, ""),
        server=found.tags.get(keys.SERVER, ""),
        address=found.address if isinstance(found, Server) else "",
    )


def _judged(thing: Thing, known: _Known, kept: Collection[tuple[str, str]]) -> Thing | None:
    """The thing, if nobody accounts for it."""
    rollout = known.of(thing.rollout)
    if thing.rollout in known.unreadable:
        return replace(thing, unsure=known.unreadable[thing.rollout])
    row = None
    try:
        row = known.row(thing) if rollout is not None else None
    except UnsafeStore as error:
        return replace(thing, unsure=str(error))
    leased = row is not None and row.lease_until > known.world.store.now()
    upgrade = row.upgrade if row is not None else None
    held = not {("", thing.id), (thing.rollout, thing.id)}.isdisjoint(kept)
    if explained(thing, kept=held, upgrade=upgrade, leased=leased):
        return None
    if rollout is None:
        return thing
    try:
        return replace(thing, doubt=doubt(thing, known.world.spec(thing.rollout).at(thing.server), upgrade))
    except ChangeoverError as error:
        return replace(thing, unsure=str(error))


def _replaced(world: World, known: _Known) -> set[str]:
    """The old servers of every open rollout: one may be the new server of an earlier rollout."""
    found: set[str] = set()
    for id, rollout in known.rollouts.items():
        if rollout is not None and not rollout.closed:
            with suppress(ChangeoverError):
                found |= {server.id for server in world.spec(id).plan.survey.servers}
    return found


def _fleets_of(world: World, orphans: Iterable[Thing], known: _Known) -> list[Fleet]:
    """Where else what was found may be a member."""
    found = []
    for id in {thing.rollout for thing in orphans if known.of(thing.rollout) is not None}:
        with suppress(ChangeoverError):
            found.append(world.spec(id).fleet)
    return found


def _pools(world: World, fleets: Sequence[Fleet]) -> tuple[dict[str, list[str]], str]:
    """Pools by the address of their members; and which pool could not be asked."""
    found: dict[str, list[str]] = {}
    asked: set[tuple[int, str]] = set()
    unread = ""
    for fleet in fleets:
        traffic = world.traffic(fleet)
        for pool in sorted(fleet.traffic.pools):
            if (id(traffic), pool) in asked:
                continue
            asked.add((id(traffic), pool))
            try:
                for member in traffic.members(pool):
                    if pool not in found.setdefault(member.address, []):
                        found[member.address].append(pool)
            except ProviderError as error:
                unread = f"pool {pool} could not be asked: {error}"
    return found, unread


# -- ledgers -----------------------------------------------------------------------------------------------------------


def _settle_ledgers(world: World, place: str, things: Sequence[Thing], known: _Known) -> None:
    """What was only intended, and never showed, is given up; what a record remembers and its ledger lacks is added."""
    there = {thing.id: thing for thing in things}
    names = {thing.name for thing in things}
    for id in [id for id, rollout in known.rollouts.items() if rollout is not None]:
        with suppress(ChangeoverError):
            here = _servers_of(world, id, place)
            if not here:
                continue
            mine = {id: thing for id, thing in there.items() if thing.server in here}
            ledger = known.ledgers[id]
            items = _given_up(world, id, [i for i in ledger if i.server in here], names)
            items += _added(world, id, ledger, mine)
            if items:
                world.store.put_ledger(id, items)
                told = [f"{item.kind} {item.id or item.key} {item.state}" for item in items]
                world.store.note(id, Entry(event="LedgerSettled", actor=world.worker, detail={"items": told}))
                known.ledgers[id] = world.store.ledger(id)


def _servers_of(world: World, rollout: str, place: str) -> set[str]:
    """The names of a rollout's servers in that world."""
    return {server.name for at in world.spec(rollout).fleet.places if where(at) == place for server in at.servers}


def _given_up(world: World, rollout: str, ledger: Sequence[LedgerItem], names: set[str]) -> list[LedgerItem]:
    intended = [i for i in ledger if i.state == "intended" and f"co-{i.key.partition(':')[2][:40]}" not in names]
    rows = {row.upgrade.server: row.upgrade for row in world.store.rows(rollout, {item.server for item in intended})}
    now = world.store.now()
    return [
        replace(item, state="deleted")
        for item in intended
        if item.server in rows and forgotten(rows[item.server], _intended_at(rows[item.server], item), now=now)
    ]


def _intended_at(u: Upgrade, item: LedgerItem) -> float:
    return max((intent.at for intent in u.begun if item.key.endswith(intent.token)), default=0.0)


def _added(world: World, rollout: str, ledger: Sequence[LedgerItem], there: Mapping[str, Thing]) -> list[LedgerItem]:
    mine = [thing for thing in there.values() if thing.rollout == rollout]
    listed = {item.id for item in ledger}
    servers = {thing.server for thing in mine if thing.id not in listed}
    items = []
    for row in world.store.rows(rollout, servers):
        for id in remembered(row.upgrade):
            if id not in listed and id in there:
                thing = there[id]
                items.append(
                    LedgerItem(key=_key(ledger, thing), kind=thing.kind, server=thing.server, state="live", id=id)
                )
    return items


def _key(ledger: Sequence[LedgerItem], thing: Thing | Sighting) -> str:
    """Of a thing in its rollout's ledger: the entry of its token, whose beginning is in its name."""
    start = f"{thing.kind}:{thing.name.removeprefix('co-')}"
    return next((item.key for item in ledger if item.key.startswith(start)), f"{thing.kind}:{thing.id}")


# -- what a person has said yes to -------------------------------------------------------------------------------------


def collect(
    world: World, *, request: str, lane: str, act: bool, foreign: bool, only: Collection[str] | None = None
) -> Mapping[str, Any]:
    """A look, and with `act` what is due of it, if a person has said yes: that is a document of kind `yes` under this
    request, used up by this, and nothing that a message says is taken for it. The answer is a document of kind
    `collect`: what was done, what was not and why, what was due (keys of sightings), and how patient this worker is."""
    done: list[str] = []
    not_done: list[str] = []
    body: dict[str, Any] = {"ok": True, "done": done, "not_done": not_done, "patience": asdict(world.patience)}
    try:
        fleets = world.lanes().get(lane, ())
        found = look(world, lane, fleets) if fleets else []
        now = world.store.now()
        yes = _said_yes(world, request, lane) if act else None
        foreign = foreign if yes is None else bool(yes.get("foreign"))
        only = only if yes is None else yes.get("only")
        body["due"] = [s.key for s in found if deed(s, world.patience, now=now, foreign=foreign, only=only)]
        if act and yes is None:
            not_done.append(f"{lane}: nobody has said yes to it, or too long ago: changeover gc --yes")
        elif act and fleets:
            _strike(world, fleets, done)
            _act(world, request, lane, fleets, found, foreign, only, done, not_done)
    except (ProviderError, ChangeoverError) as error:
        body = {"ok": False, "error": str(error)}
    world.store.put_document("collect", request, body, ttl=KEEP)
    return {"ok": body["ok"], "done": len(done)}


def _strike(world: World, fleets: Sequence[Fleet], done: list[str]) -> None:
    """What a person has settled, and has ended since by other means, is listed no more: it costs nobody anything."""
    store, compute = world.store, world.compute(fleets[0])
    for id in {rollout.id: None for rollout in (*store.open_rollouts(), *store.rollouts()[:NEWEST])}:
        with suppress(ChangeoverError):
            here = _servers_of(world, id, where(fleets[0]))
            ledger = [item for item in store.ledger(id) if item.server in here] if here else []
            left = [i for i in ledger if i.id and i.until is None and i.state in ("quarantined", "retained")]
            rows = {row.upgrade.server: row.upgrade for row in store.rows(id, {item.server for item in left})}
            left = [item for item in left if item.server in rows and rows[item.server].settled]
            if not left:
                continue
            there: dict[str, Server | Image] = {}
            there |= compute.images([item.id for item in left if item.kind == "image"])
            there |= compute.servers([item.id for item in left if item.kind != "image"])
            gone = [item for item in left if item.id not in there or there[item.id].state == "terminated"]
            if gone:
                store.put_ledger(id, [replace(item, state="deleted") for item in gone])
                told = [f"{item.kind} {item.id} of {item.server} is gone: listed no more" for item in gone]
                store.note(id, Entry(event="LedgerSettled", actor=world.worker, detail={"items": told}))
                done += told


def _said_yes(world: World, request: str, lane: str) -> Mapping[str, Any] | None:
    said = world.store.document("yes", request)
    if said is None or said.get("lane") != lane:
        return None
    world.store.forget_document("yes", request)
    return said


def _act(
    world: World,
    request: str,
    lane: str,
    fleets: Sequence[Fleet],
    found: Sequence[Sighting],
    foreign: bool,
    only: Collection[str] | None,
    done: list[str],
    not_done: list[str],
) -> None:
    store, compute = world.store, world.compute(fleets[0])
    if store.lease(f"collect:{lane}", owner=request, seconds=ONE_RUN) is None:
        not_done.append(f"{lane}: somebody else is at it at this moment")
        return
    try:

        def due_of(s: Sighting) -> Deed:
            return deed(s, world.patience, now=store.now(), foreign=foreign, only=only)

        due = [s for s in sorted(found, key=lambda s: s.first) if due_of(s)]
        for sighting in due[: world.patience.at_once]:
            try:
                # Once more, all of it: minutes may have passed, and this is the moment that counts.
                fresh = next((s for s in look(world, lane, fleets) if s.key == sighting.key), None)
                what = due_of(fresh) if fresh is not None else ""
                if fresh is None or not what:
                    not_done.append(f"{sighting.kind} {sighting.id}: it is no orphan any more")
                    continue
                _quarantine(world, compute, fresh) if what == "quarantine" else _delete(world, compute, fresh)
                done.append(f"{fresh.kind} {fresh.id} {'in quarantine' if what == 'quarantine' else 'deleted'}")
            except ProviderError as error:
                not_done.append(f"{sighting.kind} {sighting.id}: {error}")
    finally:
        store.unlease(f"collect:{lane}", owner=request)


def _quarantine(world: World, compute: Compute, s: Sighting) -> None:
    """Written down first: whoever finds it stopped finds why. An image has nothing to stop. A server says itself that
    it is in quarantine: whoever takes that off, takes it out."""
    now = world.store.now()
    _keep(world, replace(s, quarantined_at=now))
    _write(world, s, "quarantined", until=now + world.patience.kept, event="Quarantined")
    if s.kind == "server":
        with suppress(NotFound):  # one that never came to be, as of a stack that failed: its time passes all the same
            compute.tag(s.id, {keys.PHASE: keys.QUARANTINE}, given={keys.MANAGED: "1"})
            compute.stop(s.id, given={keys.PHASE: keys.QUARANTINE})


def _delete(world: World, compute: Compute, s: Sighting) -> None:
    """Raises `GuardRefused` if it is not in quarantine any more, or never came there: then its time begins anew."""
    _write(world, s, "quarantined", until=world.store.now(), event="")
    try:
        if s.kind == "server":
            compute.terminate(s.id, given={keys.PHASE: keys.QUARANTINE})
        else:
            compute.delete_image(s.id)
    except NotFound:
        pass
    except GuardRefused as refused:
        _keep(world, replace(s, first=world.store.now(), scans=1, quarantined_at=None))
        raise GuardRefused(f"{refused}; it was taken out of quarantine, and is watched anew") from refused
    _write(world, s, "deleted", until=None, event="OrphanDeleted")
    world.store.sighted(s.lane, [other for other in _of_lane(world, s.lane) if other.key != s.key])


def _keep(world: World, s: Sighting) -> None:
    world.store.sighted(s.lane, [s if other.key == s.key else other for other in _of_lane(world, s.lane)])


def _of_lane(world: World, lane: str) -> list[Sighting]:
    return [s for s in world.store.sightings() if s.lane == lane]


def _write(world: World, s: Sighting, state: Any, *, until: float | None, event: str) -> None:
    """Into the ledger and the audit log of its rollout; one that is not known here has none."""
    store = world.store
    log.info("orphan", lane=s.lane, kind=s.kind, id=s.id, now=state, event_=event)
    if s.foreign or store.rollout(s.rollout) is None:
        return
    ledger = store.ledger(s.rollout)
    item = LedgerItem(key=_key(ledger, s), kind=s.kind, server=s.server, state=state, id=s.id, until=until)
    store.put_ledger(s.rollout, [item])
    if event:
        known = store.row(s.rollout, s.server) is not None
        detail = {"kind": s.kind, "id": s.id, "name": s.name, "looks": s.scans, "since": s.first}
        store.note(s.rollout, Entry(event=event, actor=world.worker, detail=detail), server=s.server if known else "")
