"""What a plan is: the computed answer to "what would happen", bound by a hash to the file and to the world it saw."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter

from orchestrator.domain.fleet import Fleet, FleetServer
from orchestrator.domain.rollout import split
from orchestrator.domain.upgrade import FIRST, SCHEMA
from orchestrator.errors import NotFound, UnsafeStore

_GENERATION = re.compile(r"(.+)\.g([1-9][0-9]{0,8})\Z", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Seat:
    """A server's place in one pool, as the balancer sees it. `name` is A's there, `new_name` will be B's."""

    pool: str
    name: str
    new_name: str
    address: str
    port: int
    state: str


@dataclass(frozen=True, kw_only=True)
class FoundServer:
    """What a survey read of one server. Bytes. `paths` are facts of the paths that the file names; `listening` are the
    ports at which something listens on A, but for those given by chance; `memory_used` and `disk_used` are what A takes
    now. `problem` says why it cannot be upgraded. `recipe` names what its new server is made of beside the image, where
    that is something of the user's own."""

    name: str
    id: str
    address: str = ""
    state: str = ""
    memory: int = 0
    disk: int = 0
    memory_used: int = 0
    disk_used: int = 0
    paths: tuple[Mapping[str, str], ...] = ()
    listening: tuple[int, ...] = ()
    seats: tuple[Seat, ...] = ()
    problem: str = ""
    recipe: str = ""


@dataclass(frozen=True, kw_only=True)
class FoundPool:
    """`serving`: how many members the balancer has up; `lane` is the balancer. `requests` and `failed` are what it has
    counted of its users since it started, and `epoch` names that start; empty where it does not count."""

    pool: str
    lane: str
    serving: int
    requests: int = 0
    failed: int = 0
    epoch: str = ""
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What the world looks like, read by a worker at `at` (epoch seconds). `strangers` are servers that a rollout has
    made for one of these, and this Redis knows nothing of it; one line each."""

    at: float
    servers: tuple[FoundServer, ...]
    pools: tuple[FoundPool, ...]
    caveats: tuple[str, ...] = ()
    strangers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`id` is the beginning of `hash`. `blockers` forbid applying it; `caveats` are to be read. Seconds."""

    id: str
    hash: str
    created_at: float
    fleet: Mapping[str, Any]
    survey: Survey
    waves: tuple[tuple[str, ...], ...]
    blockers: tuple[str, ...]
    caveats: tuple[str, ...]
    least_seconds: float
    provider_calls: int
    changes: int = field(default=0)
    schema: int = SCHEMA

    def server(self, name: str) -> FoundServer:
        """Raises `NotFound`."""
        for server in self.survey.servers:
            if server.name == name:
                return server
        raise NotFound(f"{name} is not in plan {self.id}", next="changeover rollouts")


_PLAN = TypeAdapter(Plan)
_SURVEY = TypeAdapter(Survey)


def plan_from(document: Mapping[str, Any]) -> Plan:
    """The plan that was stored as `asdict(plan)`. Raises `UnsafeStore` for one of a later version."""
    said = document.get("schema", FIRST)
    if not isinstance(said, int) or not FIRST <= said <= SCHEMA:
        raise UnsafeStore(
            f"the plan {document.get('id')} is of schema {said}, this version reads up to {SCHEMA}: another version of "
            "Changeover made it",
            next="changeover version",
        )
    return _PLAN.validate_python(document)


def survey_from(document: Mapping[str, Any]) -> Survey:
    """The survey that was stored as `asdict(survey)`."""
    return _SURVEY.validate_python(document)


def make_plan(fleet: Fleet, survey: Survey) -> Plan:
    """The plan for this file in this world."""
    names = [server.name for server in fleet.servers]
    waves = split(names, fleet.rollout.waves)
    hashed = fingerprint(fleet, survey)
    return Plan(
        id=f"p{hashed[:12]}",
        hash=hashed,
        created_at=survey.at,
        fleet=fleet.canonical(),
        survey=survey,
        waves=waves,
        blockers=tuple(blockers(fleet, survey)),
        caveats=tuple(caveats(fleet, survey)),
        least_seconds=least_seconds(fleet, waves),
        provider_calls=calls_of(fleet),
        changes=len(names),
    )


def fingerprint(fleet: Fleet, survey: Survey) -> str:
    """SHA-256 over the file and over what of the world would make another plan; not over what changes by itself
    (how much is used, when it was read)."""
    world = [
        {
            "name": server.name,
            "id": server.id,
            "address": server.address,
            "state": server.state,
            "memory": server.memory,
            "disk": server.disk,
            "paths": [dict(path) for path in server.paths],
            "seats": [{k: v for k, v in asdict(seat).items() if k != "state"} for seat in server.seats],
            **({"recipe": server.recipe} if server.recipe else {}),
        }
        for server in survey.servers
    ]
    body = json.dumps([fleet.canonical(), world], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(body.encode()).hexdigest()


def differences(was: Survey, now: Survey) -> list[str]:
    """What of the world has moved, one line each."""
    before = {server.name: server for server in was.servers}
    lines = []
    for server in now.servers:
        old = before.get(server.name)
        if old is None:
            lines.append(f"{server.name} was not in the plan")
            continue
        lines += [
            f"{server.name}: {what} was {getattr(old, what)!r}, is {getattr(server, what)!r}"
            for what in ("id", "address", "state", "memory", "disk", "paths", "recipe")
            if getattr(old, what) != getattr(server, what)
        ]
        if {(s.pool, s.name) for s in old.seats} != {(s.pool, s.name) for s in server.seats}:
            lines.append(f"{server.name}: its places in the balancer have changed")
    gone = before.keys() - {server.name for server in now.servers}
    return lines + [f"{name} is no longer there" for name in sorted(gone)]


def users_between(was: Survey, now: Survey) -> tuple[int, int] | None:
    """User requests that the balancers have seen from one survey to the other, and those that failed; None where one of
    them does not count, or has started anew meanwhile."""
    before = {pool.pool: pool for pool in was.pools}
    requests = failed = 0
    for pool in now.pools:
        old = before.get(pool.pool)
        if old is None or not pool.epoch or old.epoch != pool.epoch:
            return None
        requests += pool.requests - old.requests
        failed += pool.failed - old.failed
    return requests, failed


def blockers(fleet: Fleet, survey: Survey) -> list[str]:
    """Why this plan must not be applied, one line each."""
    lines = [f"{server.name}: {server.problem}" for server in survey.servers if server.problem]
    lines += [f"pool {pool.pool}: {pool.problem}" for pool in survey.pools if pool.problem]
    lines += survey.strangers
    size = fleet.target.size
    for server in survey.servers:
        if server.problem:
            continue
        if server.disk_used > size.disk:
            lines.append(
                f"{server.name}: its disk holds {human(server.disk_used)}, the target size has {human(size.disk)}"
            )
        if server.memory_used > size.memory:
            lines.append(
                f"{server.name}: it uses {human(server.memory_used)} of memory, the target has {human(size.memory)}"
            )
    for found in survey.pools:
        wanted = fleet.traffic.pools[found.pool].min_healthy
        if not found.problem and found.serving < wanted:
            lines.append(f"pool {found.pool}: min_healthy is {wanted}, and only {found.serving} servers are up")
    return lines


def caveats(fleet: Fleet, survey: Survey) -> list[str]:
    """What a person should know before saying yes."""
    lines = list(survey.caveats)
    if fleet.state != "stateless":
        lines.append(
            "the servers keep state: what A writes after its image reaches B only by your sync hook, if at all"
        )
    smaller = [s.name for s in survey.servers if s.memory > fleet.target.size.memory]
    if smaller:
        lines.append(f"{smaller[0]}{' and others' if len(smaller) > 1 else ''} get less memory than now")
    if fleet.rollout.drain.at_deadline == "cut":
        lines.append(f"requests that take longer than {fleet.rollout.drain.deadline:g} s are cut when A leaves")
    lines.append(
        "a stopped A may fail to start again for lack of capacity, and can come back with another public address"
    )
    return lines


def least_seconds(fleet: Fleet, waves: Sequence[Sequence[str]]) -> float:
    """Bakes and soaks alone, without what the provider and the checks take."""
    rounds = sum(-(-len(wave) // fleet.rollout.max_in_flight) for wave in waves)
    smoke = fleet.checks.smoke
    each = fleet.rollout.soak + fleet.rollout.drain.quiet + (smoke.passes - 1) * smoke.every
    return rounds * each + len(waves) * fleet.rollout.bake


def calls_of(fleet: Fleet) -> int:
    """Calls of every server by itself: image, server, look inside and stop; for each pool B in, B open, A draining and
    A out; and its smoke test. Where a provider takes many servers in one call they are fewer; looks at those that wait
    come on top."""
    smoke = fleet.checks.smoke
    calls = 0
    for server in fleet.servers:
        calls += 4 + 4 * len(server.pools)
        for request in smoke.requests:
            asked = sum(request.pool in (None, pool) for pool in server.pools)
            calls += smoke.passes * asked * (4 if request.same_as_old else 1)
    return calls


def seats_of(server: FleetServer, fleet: Fleet) -> list[tuple[str, int]]:
    """(pool, port) of a server, pools in sorted order: the order in which balancers are changed."""
    return [(pool, fleet.traffic.pools[pool].port) for pool in sorted(server.pools)]


def next_generation(name: str, server: str, taken: Collection[str] = ()) -> str:
    """The name in the balancer that follows `name`, and that nobody has there: web-013 → web-013.g2 → web-013.g3."""
    found = generation(name, 1) if numbered(name) else f"{server}.g2"
    while found in taken:  # left by a late call, or by hand
        found = generation(found, 1)
    return found


def numbered(name: str) -> tuple[str, int] | None:
    """The stem and the number of a generation's name; None for any other. A balancer may show any name."""
    found = _GENERATION.match(name)
    return (found[1], int(found[2])) if found else None


def generation(name: str, later: int) -> str:
    """That many generations after `name`, which has one: web-013.g2 and 2 give web-013.g4."""
    stem, _, number = name.rpartition(".g")
    return f"{stem}.g{int(number) + later}"


def token(*parts: str | int) -> str:
    """The identity of an effect: SHA-256 of its parts, 64 hex digits. Parts contain no slash."""
    words = [str(part) for part in parts]
    if any("/" in word for word in words):
        raise ValueError(f"a part of a token contains a slash: {words}")
    return hashlib.sha256("/".join(words).encode()).hexdigest()


def human(size: int) -> str:
    """Bytes as a person reads them."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} TiB"
