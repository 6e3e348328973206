"""Where every server of a rollout stands, told from the world alone: for when Redis has lost all that it knew.

The world says less than the records did, so what cannot be told apart is decided for the users' sake, and what cannot
be decided is refused. A position is made by replaying the events that the world proves, so that it is a record like
any other; a step that may have had effects counts as begun, and is done again from its beginning.

    nothing of ours                         pending; or rolled back, where A says so
    image                                   create_image, or provision once available (quiesced: create_image)
    B, in no pool                           poll_readiness, and so the smoke test again
    A and B in every pool                   swap: B is proven again, and soaks again; drain_old once A is leaving
    B in every pool, A running              drain_old
    B in every pool, A stopped              upgraded, kept for as long as the file says, from now
    A says that it is being rolled back     all of the undo, from its beginning
    neither in some pool                    held; a retry puts A back
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import TypeAdapter

from orchestrator.domain.fleet import MOST_ATTEMPTS, Fleet, FleetServer, TargetSize
from orchestrator.domain.plan import (
    FoundServer,
    Plan,
    Seat,
    Survey,
    generation,
    make_plan,
    next_generation,
    numbered,
    seats_of,
    token,
)
from orchestrator.domain.rollout import is_id, split
from orchestrator.domain.steps import RETIRE, STEPS
from orchestrator.domain.upgrade import Admitted, Began, Finished, Held, Intent, TurnedBack, UndoBegan, Undone, Upgrade


@dataclass(frozen=True, kw_only=True)
class Found:
    """A server or an image as a provider shows it, with what its tags say. Bytes. `undoing` and `disposable` are marks
    on A: the name of the image of the life that is being undone, and that its end had been decided. `quarantined`: a
    `gc --yes` has stopped it."""

    kind: Literal["image", "server"]
    id: str
    name: str
    state: str
    rollout: str = ""
    server: str = ""
    attempt: int = 0
    undoing: str = ""
    disposable: bool = False
    address: str = ""
    boot: str = ""
    memory: int = 0
    disk: int = 0
    quarantined: bool = False

    def __str__(self) -> str:
        return f"{self.kind} {self.id} ({self.state}{', in quarantine' if self.quarantined else ''})"


@dataclass(frozen=True, kw_only=True)
class Place:
    """A member of a pool, in the balancer's own view."""

    pool: str
    name: str
    address: str
    port: int
    state: str


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a worker has seen: all that carries our mark, the servers that the file names, and all members of its pools.
    `unread` are pools that could not be asked, and why."""

    survey: Survey
    marked: tuple[Found, ...]
    old: tuple[Found, ...]
    places: tuple[Place, ...]
    unread: tuple[str, ...] = ()


_FINDINGS = TypeAdapter(Findings)


def findings_from(document: Mapping[str, Any]) -> Findings:
    """What was stored as `asdict(findings)`."""
    return _FINDINGS.validate_python(document)


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where one server stands. `found` and `resumes` are for a person; `old` is A as a plan would describe it; `made`
    is what the ledger is to hold: kind, token and id; `new` is B's id."""

    upgrade: Upgrade
    found: str
    resumes: str
    old: FoundServer
    made: tuple[tuple[Literal["image", "server"], str, str], ...]
    new: str = ""


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """`refusals`: why nothing can be rebuilt, one line each; then there are no positions that count. `marks`: of which
    rollouts marks were found then, oldest first."""

    rollout: str
    positions: tuple[Position, ...]
    refusals: tuple[str, ...]
    plan: Plan | None = None
    marks: tuple[str, ...] = ()


class _Unclear(Exception):
    """It cannot be told where this server stands."""


def rebuild(fleet: Fleet, findings: Findings, *, rollout: str, now: float, without: Collection[str] = ()) -> Rebuilt:
    """The positions of all servers of the file. `rollout` is asked for only where marks of several are found; servers
    that a person leaves out (`without`) are not in the file any more, and what was made for them stays as it is."""
    old = {fleet.id_of(server) for server in fleet.servers}
    marked = [thing for thing in findings.marked if thing.id not in old and thing.state != "terminated"]
    names = {server.name for server in fleet.servers}
    told = sorted({thing.rollout for thing in marked if thing.server in names and is_id(thing.rollout)})
    id = rollout or (told[0] if len(told) == 1 else "")
    refusals = [f"pool {line}" for line in findings.unread]
    if id and not is_id(id):
        refusals.append(f"{id!r} is no id of a rollout")
    if not id:
        several = f"marks of several rollouts were found, {', '.join(told)} (the newest): say which by --rollout"
        refusals.append(several if told else "nothing of a rollout of these servers was found")
    named = {*names, *without}
    strangers = sorted({thing.server for thing in marked if thing.rollout == id and thing.server not in named})
    if id and strangers:
        refusals.append(f"rollout {id} had {', '.join(strangers[:5])} too, which this file does not name")
    if refusals:
        return Rebuilt(rollout=id, positions=(), refusals=tuple(refusals), marks=tuple(told))
    positions = []
    waves = {
        name: wave
        for wave, group in enumerate(split([s.name for s in fleet.servers], fleet.rollout.waves))
        for name in group
    }
    at = {server.name: place for place in fleet.places for server in place.servers}
    for server in fleet.servers:
        mine = [thing for thing in marked if thing.rollout == id and thing.server == server.name]
        try:
            positions.append(_Server(at[server.name], findings, id, server, waves[server.name], mine, now).position())
        except _Unclear as why:
            refusals.append(f"{server.name}: {why}")
    survey = replace(findings.survey, servers=tuple(position.old for position in positions), strangers=())
    plan = make_plan(fleet, survey) if not refusals else None
    return Rebuilt(rollout=id, positions=tuple(positions), refusals=tuple(refusals), plan=plan)


def wave_of(positions: Sequence[Position]) -> int:
    """The wave that the rollout goes on with: the first with something left to do, or the last."""
    left = [p.upgrade.wave for p in positions if p.upgrade.state in ("pending", "running", "waiting", "held")]
    return min(left) if left else max(p.upgrade.wave for p in positions)


class _Server:
    """One server: what of the world concerns it, and the record that it proves."""

    def __init__(
        self,
        fleet: Fleet,
        findings: Findings,
        rollout: str,
        server: FleetServer,
        wave: int,
        mine: Sequence[Found],
        now: float,
    ) -> None:
        self.fleet, self.rollout, self.server, self.now = fleet, rollout, server, now
        self.name = server.name
        self.surveyed = next(s for s in findings.survey.servers if s.name == server.name)
        self.old = next((t for t in findings.old if t.id == fleet.id_of(server) and t.state != "terminated"), None)
        self.images = sorted((t for t in mine if t.kind == "image"), key=lambda t: t.attempt)
        self.servers = sorted((t for t in mine if t.kind == "server"), key=lambda t: t.attempt)
        usable = [t for t in self.servers if t.state != "failed"]
        if len(usable) > 1:
            raise _Unclear(
                f"{' and '.join(str(t) for t in usable)} were both made for it: end the one that is not to stay"
            )
        self.new = usable[0] if usable else self.servers[-1] if self.servers else None
        self.image = self.images[-1] if self.images else None
        self.intents = [self._intent(thing) for thing in (*self.images, *self.servers)]
        self.pools = seats_of(server, fleet)
        self.places = [place for place in findings.places if place.pool in fleet.traffic.pools]  # of where it is
        self.a = self._seats(self.old.address if self.old else "")
        self.b = self._seats(self.new.address if self.new else "")
        elsewhere = {p.pool for p in self.places if self.new and p.address == self.new.address} - {
            p for p, _ in self.pools
        }
        if elsewhere:
            raise _Unclear(
                f"its new server is in pool {', '.join(sorted(elsewhere))}, which this file does not give it"
            )
        self.upgrade = Upgrade(
            rollout=rollout,
            server=server.name,
            wave=wave,
            domain=server.domain or "",
            attempts={
                step: things[-1].attempt
                for step, things in (("create_image", self.images), ("provision", self.servers))
                if things and things[-1].attempt
            },
        )

    def _seats(self, address: str) -> dict[str, Place]:
        """Where that address is a member, of the pools that this server has."""
        return {
            place.pool: place
            for place in self.places
            if address and (place.pool, place.port) in self.pools and place.address == address
        }

    # -- who made what ------------------------------------------------------------------------------------------------

    def _token(self, step: str, attempt: int, rung: int) -> str:
        where = self.fleet.provider
        return token(self.rollout, where.name, where.account, where.region, self.name, step, attempt, rung)

    def _intent(self, thing: Found) -> Intent:
        """The intent that has made it: it is known by its name."""
        step = "create_image" if thing.kind == "image" else "provision"
        sizes = self._sizes()
        for rung in range(len(sizes) if thing.kind == "server" else 1):
            made = self._token(step, thing.attempt, rung)
            if thing.name == f"co-{made[:40]}":
                wanted = sizes[rung]
                if thing.kind == "server" and (thing.memory, thing.disk) != (wanted.memory, wanted.disk):
                    raise _Unclear(f"{thing} has another size than this file gives it: it is not the file of then")
                return self._began(step, thing.attempt, rung)
        raise _Unclear(
            f"{thing} is called {thing.name}, which rollout {self.rollout} would not have called it: "
            "the provider, account or region of this file is another, or its fallback sizes"
        )

    def _sizes(self) -> tuple[TargetSize, ...]:
        return (self.fleet.target.size, *self.fleet.target.fallback)

    def _began(self, step: str, attempt: int = 0, rung: int = 0) -> Intent:
        made = self._token(step, attempt, rung)
        return Intent(step=step, attempt=attempt, rung=rung, token=made, name=f"co-{made[:40]}", at=self.now)

    # -- where it stands ----------------------------------------------------------------------------------------------

    def position(self) -> Position:
        upgrade, resumes = self._stands()
        made = [(t.kind, i.token, t.id) for t, i in zip((*self.images, *self.servers), self.intents, strict=True)]
        return Position(
            upgrade=upgrade,
            found=self._told(),
            resumes=resumes,
            old=self._described(),
            made=tuple(made),
            new=self.new.id if self.new else "",
        )

    def _stands(self) -> tuple[Upgrade, str]:
        if self._undone():
            if not self.new and not self.image and self._old_serves():
                return self._rolled_back(), "done: its old server serves again"
            return self._back("rolled back, as its old server says"), "the whole way back, from its beginning"
        bare = [pool for pool, _ in self.pools if pool not in self.a and pool not in self.b]
        if bare:
            return self._lost(f"neither its old nor its new server is in pool {', '.join(bare)}")
        if self.new is None:
            return self._before_new()
        if not self.b:
            return self._at("poll_readiness", begun=False), "poll_readiness, and its smoke test again"
        if len(self.a) == len(self.pools):
            leaving = len(self.b) == len(self.pools) and any(
                p.state in ("draining", "leaving") for p in self.a.values()
            )
            step = "drain_old" if leaving else "swap"
            return self._at(step, begun=True), f"{step}, from its beginning"
        if len(self.b) < len(self.pools):
            raise _Unclear("its old server has left some pools, and its new one is not in all of them")
        return self._old_left()

    def _before_new(self) -> tuple[Upgrade, str]:
        if self.old is None or self.old.state != "running":
            state = self.old.state if self.old else "gone"
            return self._lost(f"its old server is {state}, and there is no new one")
        if self.image is None:
            return self.upgrade, "nothing has begun, or nothing is left of it: it starts with its wave"
        if self.image.state == "available" and self.fleet.quiesce is not None:
            return self._at("create_image", begun=True), "create_image, anew: nobody knows whether that one is whole"
        if self.image.state == "available":
            return self._at("provision", begun=False), "provision"
        return self._at("create_image", begun=True), "create_image, with the image that is there"

    def _old_left(self) -> tuple[Upgrade, str]:
        """B is in every pool, and A has left some of them, or all."""
        ill = [place for pool, place in sorted(self.b.items()) if place.state != "serving" and pool not in self.a]
        if ill:
            return self._lost(f"its new server is {ill[0].state} in pool {ill[0].pool}, and its old one has left it")
        if self.old is None:
            if self.image is not None and self.fleet.retain.images == "delete":
                return self._ending(), "the end of its image: its old server is gone"
            return self._ended(old_gone=True), "done: its old server is gone"
        if self.a or self.old.state != "stopped":
            return self._at("drain_old", begun=True), "drain_old, from its beginning"
        if self.old.disposable:
            return self._ending(), "the end of its old server, which had been decided"
        return self._ended(old_gone=False), "done: its old server is kept, for as long as the file says, from now"

    def _undone(self) -> bool:
        """Whether A says that this life is being undone, and not an earlier one."""
        mark = self.old.undoing if self.old else ""
        if not mark:
            return False
        if self.image is not None:
            return mark == self.image.name
        return any(mark == self._began("create_image", attempt).name for attempt in range(MOST_ATTEMPTS))

    def _old_serves(self) -> bool:
        return len(self.a) == len(self.pools) and all(place.state == "serving" for place in self.a.values())

    # -- the record that says so --------------------------------------------------------------------------------------

    def _at(self, step: str, *, begun: bool) -> Upgrade:
        """Due at that step, everything before it done."""
        u = self.upgrade.after(Admitted(at=self.now))
        for done in STEPS[: STEPS.index(step)]:
            u = self._done(u, done)
        return self._open(u, step) if begun else u

    def _open(self, u: Upgrade, step: str) -> Upgrade:
        """The step counts as begun, and is announced once more by whoever does it."""
        for intent in self._intents(step):
            u = replace(_begun(u, intent), intent=None)
        return u

    def _done(self, u: Upgrade, step: str) -> Upgrade:
        *former, last = self._intents(step)
        for intent in former:
            u = replace(_begun(u, intent), intent=None)
        u = _begun(u, last)
        until = self.now + self.fleet.retain.old_servers if step == STEPS[-1] else None
        return u.after(Finished(result=self._result(step), at=self.now, retain_until=until))

    def _intents(self, step: str) -> list[Intent]:
        return [i for i in self.intents if i.step == step] or [self._began(step, self.upgrade.attempt(step))]

    def _result(self, step: str) -> Mapping[str, Any]:
        address, boot = (self.new.address, self.new.boot) if self.new else ("", "")
        id = self.new.id if self.new else ""
        match step:
            case "create_image":
                image = self.image
                return {"image": image.id if image else "", "disk": image.disk if image else 0}
            case "provision":
                return {"server": id, "address": address, "state": self.new.state if self.new else ""}
            case "poll_readiness":
                return {"server": id, "address": address, "boot": boot}
            case "smoke_test":  # long ago: it is made again before users are sent
                return {"address": address, "boot": boot, "passes": 0, "rounds": 0, "at": 0.0}
            case "swap":
                return {"since": self.now}
            case _:
                return {"stopped": self.fleet.id_of(self.server)}

    def _ended(self, *, old_gone: bool) -> Upgrade:
        u = self.upgrade.after(Admitted(at=self.now))
        for step in STEPS:
            u = self._done(u, step)
        if not old_gone:
            return u
        u = _begun(replace(u, retain_until=self.now), self._began(RETIRE))
        return u.after(Finished(result={"terminated": self.fleet.id_of(self.server)}, at=self.now))

    def _ending(self) -> Upgrade:
        """A's end has been decided, and goes on."""
        due = replace(self._ended(old_gone=False), retain_until=self.now)
        return replace(_begun(due, self._began(RETIRE)), intent=None)

    def _back(self, why: str) -> Upgrade:
        u = self._open(self._at("drain_old", begun=False), "drain_old")
        return u.after(TurnedBack(why=why, at=self.now, asked=True))

    def _rolled_back(self) -> Upgrade:
        u = self._back("rolled back, as its old server says")
        while not u.terminal:
            u = u.after(UndoBegan(deadline=None)).after(Undone(at=self.now))
        return u

    def _lost(self, why: str) -> tuple[Upgrade, str]:
        if self.old is None:
            raise _Unclear(f"{why}, and its old server is gone: put it right by hand, or leave it out")
        return self._back(why).after(Held(why=why)), "held: a retry puts its old server back"

    # -- in words, and as a plan has it -------------------------------------------------------------------------------

    def _told(self) -> str:
        parts = [str(thing) for thing in (*self.images, *self.servers)] or ["nothing of ours"]
        a = ", ".join(f"{p.state} in {pool}" for pool, p in sorted(self.a.items())) or "in no pool"
        parts.append(f"its old server {self.old.state if self.old else 'gone'}, {a}")
        if self.new:
            parts.append(
                f"its new one {', '.join(f'{p.state} in {pool}' for pool, p in sorted(self.b.items())) or 'in no pool'}"
            )
        return "; ".join(parts)

    def _described(self) -> FoundServer:
        """A, and its seats. Where it is a member no more its name there is the one before B's."""
        address = self.old.address if self.old else self.surveyed.address
        seats = tuple(self._seat(pool, port, address) for pool, port in self.pools)
        return replace(self.surveyed, address=address, seats=seats, problem="")

    def _seat(self, pool: str, port: int, address: str) -> Seat:
        a, b = self.a.get(pool), self.b.get(pool)
        name = a.name if a else _former(b.name, self.name) if b else self.name
        # One further for every attempt: a late command for a former B is to find nothing.
        later = max([self.upgrade.attempt(step) for step in STEPS])
        new = b.name if b else generation(next_generation(name, self.name), later)
        return Seat(pool=pool, name=name, new_name=new, address=address, port=port, state=a.state if a else "absent")


def _begun(u: Upgrade, intent: Intent) -> Upgrade:
    """After that attempt has begun; the refusals before it left nothing to tell of."""
    attempts = {**u.attempts, intent.step: intent.attempt} if intent.attempt != u.attempt(intent.step) else u.attempts
    return replace(u, attempts=attempts).after(Began(intent=intent, deadline=None))


def _former(name: str, server: str) -> str:
    """The name in the balancer before this one: web-013.g3 → web-013.g2 → web-013."""
    stem, number = numbered(name) or ("", 0)
    if number < 2:
        return server
    return f"{stem}.g{number - 1}" if number > 2 else stem
