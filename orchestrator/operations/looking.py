"""What is known: rollouts, servers, their stories, and the report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.domain import rollout as decisions
from orchestrator.domain.budget import Bucket
from orchestrator.domain.orphans import Sighting
from orchestrator.domain.rollout import Rollout
from orchestrator.domain.upgrade import Upgrade
from orchestrator.errors import ChangeoverError, NotFound, UnsafeStore
from orchestrator.operations.asking import Asker, Waiter, await_survey, request_survey
from orchestrator.reading import readable
from orchestrator.store import AuditEntry, Row, Store, Tally

if TYPE_CHECKING:
    from orchestrator.report.certificate import Observed

LOST = "changeover rebuild FILE, which only looks unless --yes"  # of a Redis that is empty, or has lost what it knew
SLOWED = 600.0  # seconds for which it is worth telling that a provider has refused a call as one too many


@dataclass(frozen=True, kw_only=True)
class View:
    """A rollout as it is now. `held` wait for a person; `orphans` carry its mark and nobody accounts for them.
    `unread`: servers whose records cannot be read, and why; `upgrades` are the others. `alone`: something is under way,
    and no worker is alive."""

    rollout: Rollout
    upgrades: tuple[Upgrade, ...]
    tally: Tally
    frozen: str | None
    orphans: tuple[Sighting, ...] = ()
    unread: Mapping[str, str] = field(default_factory=dict)
    alone: bool = False

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
            _, those = rows_of(store, rollout)
            unread |= {f"{rollout.id}/{server}": why for server, why in those.items()}
    return found, unread


def view(store: Store, id: str) -> View:
    rollout = find(store, id)
    rows, unread = rows_of(store, rollout)
    _, frozen, orphans = store.beside(id)
    place = {name: n for n, name in enumerate(name for wave in rollout.waves for name in wave)}
    upgrades = sorted((row.upgrade for row in rows), key=lambda u: place.get(u.server, 0))
    return View(
        rollout=rollout,
        upgrades=tuple(upgrades),
        tally=store.tally(id),
        frozen=frozen,
        orphans=tuple(orphans),
        unread=unread,
        alone=any(u.state in ("running", "waiting") for u in upgrades) and not store.workers(),
    )


def rows_of(store: Store, rollout: Rollout) -> tuple[list[Row], dict[str, str]]:
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
