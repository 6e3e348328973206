"""Names in a zone as pools: who has an address in the record set is a member. Shared by what can change a zone.

DNS knows neither a member's name, nor whether it is well, nor who still believes an older answer. So:

- What it cannot tell is noted beside it, in a TXT record set at `_changeover.<name>`, changed in the same transaction
  as the addresses: the members' names and how far each has come, the TTL that was lowered, and who needs it low.
- Nothing is believed but the authoritative servers themselves: a member serves when each of them has been seen to
  answer with it, values and TTL; it is away when none does any more, and the TTL has passed since.
- Whether a server is well is asked of the server, at its port in the pool.

In: noted; once it is well, and the TTL has been low for as long as it had been high, into the record set; seen at every
authoritative server, it serves. Out: the record set without it, only while others serve; then `draining`, until no
answer with it can be in a cache that keeps to the TTL; then `leaving`, until somebody who can see its connections says
so by removing it once more.
"""

from __future__ import annotations

import ipaddress
import math
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeVar
from urllib.parse import quote, unquote

from providers import Caps, Finding
from providers.errors import Busy, Conflict, GuardRefused, NotFound, ProviderError, Refused, Transient
from providers.rights import Rights
from providers.traffic import Guard, Member, MemberView, PoolCounters
from providers.traffic.health import Health

# An advance is read and decided anew when somebody else has changed the name, or an answer was lost.
TRIES = 4
# How long one advance may wait for what it has just asked for to show everywhere.
MOMENT_SECONDS = 0.1
# A secondary, and whoever asks it, may be this late without being noticed.
MARGIN_SECONDS = 5.0
NOTE_TTL = 30
DEFAULT_TTL = 30
DEFAULT_CANARY, DEFAULT_CANARY_SECONDS = 5, 60
FULL = 100  # the weight of whoever comes into a name where nobody is
PREFIX = "_changeover"

Phase = Literal["joining", "entered", "serving", "draining"]
_PHASES = ("joining", "entered", "serving", "draining")
_SETTINGS = frozenset({"type", "ttl", "margin", "check", "addresses", "pools"})
_WEIGHTED = frozenset({"canary", "canary_seconds"})
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,127}")
T = TypeVar("T")


class _Lost(Exception):
    """The name was not as expected any more, so nothing changed: look again, and decide anew."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """An address that has a record set of its own, called `id`: it gets its `weight` of all weights there together."""

    address: str
    weight: int
    id: str


@dataclass(frozen=True, kw_only=True)
class AddressSet:
    """The addresses of a name at one server. `ttl` in seconds, 0 without addresses. `shares`: of a name that is
    weighted, one for each address; empty otherwise."""

    addresses: frozenset[str] = frozenset()
    ttl: int = 0
    shares: frozenset[Share] = frozenset()

    def share(self, address: str) -> Share | None:
        return next((one for one in self.shares if one.address == address), None)

    def without(self, address: str) -> AddressSet:
        rest = frozenset(one for one in self.shares if one.address != address)
        return replace(self, addresses=self.addresses - {address}, shares=rest)

    def sharing(self, share: Share) -> AddressSet:
        rest = self.without(share.address)
        return replace(rest, addresses=rest.addresses | {share.address}, shares=rest.shares | {share})

    def explains(self, said: AddressSet) -> bool:
        """Whether a server that has this may answer with these addresses: all of them, or where they are weighted with
        one at a time."""
        return (
            bool(said.addresses) and said.addresses <= self.addresses
            if self.shares
            else self.addresses == said.addresses
        )


@dataclass(frozen=True, kw_only=True)
class Found:
    """One name: its addresses and our notes (lines of text) where changes are made, and the addresses at every
    authoritative server; a text where one did not answer, saying so. `wrong`: why it can be no pool, if so."""

    here: AddressSet
    notes: frozenset[str]
    everywhere: Mapping[str, AddressSet | str]
    wrong: str = ""


class Zone(Protocol):
    """What can be asked and changed. Names are as in the fleet file."""

    @property
    def lane(self) -> str: ...

    def check(self, name: str) -> None:
        """`Refused`, with the reason, for a name that cannot be a pool: an alias, or one with addresses of another kind
        that nobody would move."""
        ...

    def look(self, names: Collection[str], *, ahead: bool = False) -> Mapping[str, Found]:
        """Each name, now. Raises if the place where changes are made does not answer; another that does not is told,
        and so is a name that has become none that can be changed: the others are not to suffer from it. `ahead`: to
        decide a change on, so that changes of this process that are under way may count as made."""
        ...

    def examine(self, name: str, *, low: int) -> Sequence[Finding]:
        """What a doctor says of that name: every server reached and of one opinion, changes allowed, its TTL. Changes
        nothing."""
        ...

    def change(self, name: str, was: Found, to: AddressSet, notes: frozenset[str]) -> bool:
        """Addresses and notes together, if both are as they were in `was`; else False, and nothing changed. An answer
        that was lost is `Transient`, ambiguous."""
        ...


@dataclass(frozen=True, kw_only=True)
class Note:
    """How far a member has come. joining: not in the record set yet. entered: in it, not seen everywhere. serving: was
    seen everywhere. draining: out of it; `until` (epoch seconds) nobody may have forgotten it, 0 as long as a server
    still answers with it. `weight` and `id`: of its record set, where the name is weighted, once it gets all that
    it is to get; while it is entered with less, `until` is when it gets more, 0 as long as a server may not know of the
    last change."""

    address: str
    phase: Phase
    until: float = 0.0
    weight: int = 0
    id: str = ""


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """The TTL before it was lowered, in seconds, and since when (epoch seconds) every server has the low one; 0: not
    yet."""

    was: int
    since: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Notes:
    members: Mapping[str, Note] = field(default_factory=dict)
    held: frozenset[str] = frozenset()
    lowered: Lowered | None = None
    former: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    others: frozenset[str] = frozenset()

    @classmethod
    def read(cls, lines: Iterable[str]) -> Notes:
        """Lines that are not ours, or of a later version, are kept as they are."""
        members: dict[str, Note] = {}
        held: set[str] = set()
        others: set[str] = set()
        former: dict[str, tuple[int, str]] = {}
        lowered = None
        for line in sorted(lines):
            match line.split(" "):
                case ["member", name, address, phase, until, *more] if (
                    phase in _PHASES and _number(until) is not None and _weighted(more)
                ):
                    weight, id = (int(more[0]), unquote(more[1])) if more else (0, "")
                    members[name] = Note(address=address, phase=phase, until=float(until), weight=weight, id=id)  # type: ignore[arg-type] # one of the four
                case ["former", name, share, of] if share.isdigit():
                    former[name] = (int(share), unquote(of))
                case ["hold", name]:
                    held.add(name)
                case ["ttl", was, since] if was.isdigit() and _number(since) is not None:
                    lowered = Lowered(was=int(was), since=float(since))
                case _:
                    others.add(line)
        return cls(members=members, held=frozenset(held), lowered=lowered, former=former, others=frozenset(others))

    def lines(self) -> frozenset[str]:
        said = {
            f"member {name} {one.address} {one.phase} {one.until:.3f}"
            + (f" {one.weight} {quote(one.id, safe='')}" if one.id else "")
            for name, one in self.members.items()
            if (name, one.phase) != (one.address, "serving")  # which needs no note
        }
        said |= {f"hold {name}" for name in self.held}
        said |= {f"former {name} {weight} {quote(id, safe='')}" for name, (weight, id) in self.former.items()}
        if self.lowered is not None:
            said.add(f"ttl {self.lowered.was} {self.lowered.since:.3f}")
        return frozenset(said | self.others)

    def gone(self, name: str, note: Note) -> Notes:
        """Without a member that has left. Which record set it had is kept for as long as there is a way back."""
        rest = self.with_member(name, None)
        return replace(rest, former={**self.former, name: (note.weight, note.id)}) if note.id and self.held else rest

    def with_member(self, name: str, note: Note | None) -> Notes:
        rest = {other: one for other, one in self.members.items() if other != name}
        return replace(self, members=rest if note is None else {**rest, name: note})


@dataclass(frozen=True, kw_only=True)
class Look:
    """One name, read. Pure: what follows from it is decided here."""

    found: Found
    notes: Notes
    now: float
    margin: float

    @property
    def addresses(self) -> frozenset[str]:
        return self.found.here.addresses

    @property
    def ttl(self) -> int:
        return self.found.here.ttl

    def note(self, name: str) -> Note | None:
        """What is known of a member. One that was there before us has its address for a name, and serves. Whoever
        serves has the weight that its record set says."""
        note = self.notes.members.get(name)
        if note is None and name in self.addresses and self.named(name) is None:
            note = Note(address=name, phase="serving")
        share = None if note is None else self.found.here.share(note.address)
        if note is None or share is None or (note.id and note.phase != "serving"):
            return note
        return replace(note, weight=share.weight, id=share.id)

    def lacks(self, note: Note) -> int:
        """Which part of its weight a member does not have yet; 0 where it has all, or weights mean nothing."""
        share = self.found.here.share(note.address)
        return 0 if share is None or note.phase != "entered" else max(0, note.weight - share.weight)

    def named(self, address: str) -> str | None:
        """Which member this address is noted for."""
        return next((name for name, one in self.notes.members.items() if one.address == address), None)

    def names(self) -> list[str]:
        return sorted(self.notes.members) + sorted(one for one in self.addresses if self.named(one) is None)

    def disagreement(self) -> str:
        """Which authoritative server answers otherwise than the one where changes are made; empty if none does."""
        for server, seen in sorted(self.found.everywhere.items()):
            if isinstance(seen, str):
                return seen
            if not self.found.here.explains(seen):
                return f"{server} still answers {', '.join(sorted(seen.addresses)) or 'nothing'}"
            if seen.ttl != self.ttl:
                return f"{server} still answers with a TTL of {seen.ttl} s"
        return ""

    def too_soon(self, low: int) -> float:
        """Seconds until no cache keeps an answer for longer than the low TTL; infinite if that time has not begun."""
        if self.ttl > low:
            return math.inf
        lowered = self.notes.lowered
        if lowered is None:
            return 0.0
        if not lowered.since:
            return math.inf
        return max(0.0, lowered.since + lowered.was + self.margin - self.now)

    def forgotten_at(self) -> float:
        """Epoch seconds at which nobody believes any more what was true until now."""
        until = self.now + self.ttl
        if (lowered := self.notes.lowered) is not None:
            until = max(until, (lowered.since or self.now) + lowered.was)
        return until + self.margin

    def restless(self) -> bool:
        return any(one.phase != "serving" for one in self.notes.members.values())


class NameTraffic:
    """`pools`: pool to (name, port). `ttl`: seconds, as long as anybody needs it low. `check`: `tcp`, `none`, or a path
    that must be answered with 2xx or 3xx. `one`: the name has one address at any time; the new one takes the place of
    the old one, instead of standing beside it. `canary`: each address has a weighted record set of its own, and a new
    one gets these parts of its weight, one after the other, before all of it."""

    def __init__(
        self,
        zone: Zone,
        *,
        pools: Mapping[str, tuple[str, int]],
        ttl: int,
        check: str = "tcp",
        one: bool = False,
        canary: Canary | None = None,
        margin: float = MARGIN_SECONDS,
        tries: int = TRIES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._zone, self._pools, self._ttl, self._health = zone, pools, ttl, Health(check)
        self._one, self._canary = one, canary
        self._margin, self._tries, self._clock = margin, tries, clock

    @property
    def caps(self) -> Caps:
        return Caps(
            additive=not self._one,
            counts_sessions=False,
            prepares=True,
            poll=1.0,
            notes=(
                "names in DNS: resolvers and programs may keep an address longer than its TTL says, so a server that "
                "leaves also waits until its own connections have ended; what connects anew after that is refused",
            ),
        )

    def rights(self, *, fleet: str) -> Sequence[Rights]:  # noqa: ARG002 - a zone's servers have rules of their own
        return ()

    def lane(self, pool: str) -> str:
        self._where(pool)
        return self._zone.lane

    def members(self, pool: str) -> Sequence[MemberView]:
        name, port = self._where(pool)
        self._zone.check(name)
        look = self._look(pool)
        if look.found.wrong:
            raise Refused(look.found.wrong)
        if not look.found.here.addresses:
            raise NotFound(f"{name} has no address: pool {pool} needs a name that serves")
        if self._one and len(look.addresses) > 1:
            many = ", ".join(sorted(look.addresses))
            raise Refused(f"{name} has {many}, and the settings say `addresses: one`: say `many`, or leave it one")
        health = self._ask(port, {one.address for one in map(look.note, look.names()) if one is not None})
        return tuple(self._view(look, member, port, health) for member in look.names())

    def proven(self, wanted: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], MemberView]:
        names = {pool: self._where(pool) for pool, _ in wanted}
        found = self._zone.look({name for name, _ in names.values()}) if names else {}
        looks = {pool: self._read(found[name]) for pool, (name, _) in names.items()}
        ask: dict[tuple[str, int], None] = {}
        for pool, member in wanted:
            note = looks[pool].note(member)
            if note is not None and note.phase != "draining":
                ask[note.address, names[pool][1]] = None
        health = self._health.ask(list(ask))
        return {(pool, member): self._view(looks[pool], member, names[pool][1], health) for pool, member in wanted}

    def idle(self, wanted: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], MemberView]:
        return self.proven(wanted)

    def counters(self, pool: str) -> PoolCounters | None:
        self._where(pool)
        return None

    def elsewhere(self, _addresses: Collection[str]) -> Mapping[str, Sequence[str]]:
        """Nobody tells all names that an address has."""
        return {}

    def reaches(self, pool: str, zone: str, /) -> str:  # noqa: ARG002 - it asks servers by their addresses
        return ""

    def examine(self) -> Sequence[Finding]:
        """Of each name, what its zone says (`Zone.examine`), and what its TTL means for a rollout."""
        return [finding for name, _ in self._pools.values() for finding in self._zone.examine(name, low=self._ttl)]

    # -- the TTL ---------------------------------------------------------------------------------------------------

    def prepare(self, pool: str, name: str) -> float:
        self._where(pool)
        _valid(name)

        def act(look: Look) -> float:
            notes = replace(look.notes, held=look.notes.held | {name})
            look = self._agreeing(pool, self._lower(pool, look, notes))
            look = self._lower(pool, look, look.notes)
            left = look.too_soon(self._ttl)
            was = look.notes.lowered.was if look.notes.lowered is not None else look.ttl
            return left if left < math.inf else was + self._margin

        self._zone.check(self._where(pool)[0])
        return self._advance(pool, act)

    def settled(self, pool: str, name: str) -> None:
        _valid(name)

        def act(look: Look) -> None:
            held = look.notes.held - {name}
            notes = replace(look.notes, held=held, former=look.notes.former if held else {})
            to = look.found.here
            if notes.lowered is not None and not notes.held and not look.restless() and look.addresses:
                to = replace(to, ttl=notes.lowered.was)
                notes = replace(notes, lowered=None)
            self._write(pool, look, to, notes)

        self._advance(pool, act)

    def _lower(self, pool: str, look: Look, notes: Notes) -> Look:
        """The TTL is low, or on its way there, and noted; with `notes` besides."""
        to = look.found.here
        if look.addresses and look.ttl > self._ttl:
            # Somebody may have raised it since we had lowered it: then that is what it goes back to.
            notes = replace(notes, lowered=Lowered(was=look.ttl))
            to = replace(to, ttl=self._ttl)
        elif notes.lowered is not None and not notes.lowered.since and not look.disagreement():
            notes = replace(notes, lowered=replace(notes.lowered, since=look.now))
        return self._write(pool, look, to, notes)

    # -- in ---------------------------------------------------------------------------------------------------------

    def add(self, pool: str, member: Member) -> MemberView:
        return self._advance(pool, lambda look: self._add(pool, look, member, back=False))

    def restore(self, pool: str, member: Member) -> MemberView:
        return self._advance(pool, lambda look: self._add(pool, look, member, back=True))

    def _add(self, pool: str, look: Look, member: Member, *, back: bool) -> MemberView:
        """`back`: it has served before."""
        name, port = self._where(pool)
        address = _address(member)
        note = look.note(member.name)
        taken = look.named(address)
        if note is not None and note.address != address:
            raise Conflict(f"{member.name} of {name} is {note.address}, not {address}")
        if taken not in (None, member.name):
            raise Conflict(f"{address} of {name} is known as {taken}, not as {member.name}")
        if member.port != port:
            raise Conflict(f"{member.name} has port {member.port}, pool {pool} has {port}: DNS knows no ports")
        if note is None:
            # An address that is there already, and whose note somebody has taken away, was proven when it came.
            phase: Phase = "serving" if address in look.addresses else "joining"
            notes = look.notes.with_member(member.name, self._first_note(look, member, address, phase))
            look = self._lower(pool, look, notes)
        elif note.phase == "draining":
            look = self._enter(pool, look, member, address, back=back)
        elif note.phase == "joining":
            look = self._lower(pool, look, look.notes)
            if not look.too_soon(self._ttl) and not self._ask(port, {address})[address, port]:
                look = self._enter(pool, look, member, address, back=back)
        elif address not in look.addresses:  # somebody has taken it out
            look = self._enter(pool, look, member, address, back=back)
        elif note.phase == "entered":
            look = self._seen_everywhere(pool, look, member.name)
        return self._view(look, member.name, port, self._ask(port, {address}))

    def _enter(self, pool: str, look: Look, member: Member, address: str, *, back: bool) -> Look:
        """Into the record set: beside the others, or in the place of the one that is there."""
        name, allowed = member.name, member.instead_of
        former = look.note(name)
        assert former is not None  # who enters was noted before
        notes = look.notes.with_member(name, replace(former, phase="entered", until=0.0))
        addresses = look.addresses | {address}
        if self._canary is not None:
            weight = former.weight if back or former.phase == "draining" else self._canary.after(0, former.weight)
            to = look.found.here.sharing(Share(address=address, weight=weight, id=former.id))
            look = self._write(pool, look, replace(to, ttl=look.ttl or self._ttl), notes)
            return self._seen_everywhere(pool, look, name)
        if self._one:
            for other in look.addresses - {address}:
                leaving = look.named(other) or other
                if allowed and leaving not in allowed:
                    raise Conflict(f"{self._where(pool)[0]} is {leaving}, whose place {name} was not to take")
                notes = notes.with_member(leaving, Note(address=other, phase="draining"))
            addresses = frozenset({address})
        look = self._write(pool, look, AddressSet(addresses=addresses, ttl=look.ttl or self._ttl), notes)
        return self._seen_everywhere(pool, look, name)

    def _seen_everywhere(self, pool: str, look: Look, name: str) -> Look:
        """Noted as serving, if every authoritative server answers with it by now, or in a moment."""
        look = self._agreeing(pool, look)
        note = look.note(name)
        if look.disagreement() or note is None or note.phase != "entered" or note.address not in look.addresses:
            return look
        if self._canary is not None and look.lacks(note):
            return self._step(pool, look, name, note, self._canary)
        notes = look.notes.with_member(name, replace(note, phase="serving"))
        return self._write(pool, look, look.found.here, notes)

    def _first_note(self, look: Look, member: Member, address: str, phase: Phase) -> Note:
        """Where the name is weighted: as much as whoever it comes for, or else as the largest one there."""
        if self._canary is None:
            return Note(address=address, phase=phase)
        if (share := look.found.here.share(address)) is not None:
            return Note(address=address, phase=phase, weight=share.weight, id=share.id)
        if member.name in look.notes.former:  # it comes back
            weight, id = look.notes.former[member.name]
            return Note(address=address, phase=phase, weight=weight, id=id)
        known = (look.note(name) for name in member.instead_of)
        weights = [note.weight for note in known if note is not None] or [one.weight for one in look.found.here.shares]
        return Note(address=address, phase=phase, weight=max(weights, default=FULL), id=member.name)

    def _step(self, pool: str, look: Look, name: str, note: Note, canary: Canary) -> Look:
        """More for a member that has been well with less, for as long as it was to be looked at."""
        share = look.found.here.share(note.address)
        if share is None or (note.until and note.until > look.now):
            return look
        if not note.until:
            notes = look.notes.with_member(name, replace(note, until=look.now + canary.seconds))
            return self._write(pool, look, look.found.here, notes)
        _, port = self._where(pool)
        if self._ask(port, {note.address})[note.address, port]:
            return look
        to = look.found.here.sharing(replace(share, weight=canary.after(share.weight, note.weight)))
        return self._write(pool, look, to, look.notes.with_member(name, replace(note, until=0.0)))

    def _agreeing(self, pool: str, look: Look) -> Look:
        deadline = time.monotonic() + MOMENT_SECONDS
        while look.disagreement() and time.monotonic() < deadline:
            time.sleep(0.01)
            look = self._look(pool, ahead=True)
        return look

    # -- out --------------------------------------------------------------------------------------------------------

    def remove(self, pool: str, name: str, *, guard: Guard, cut: bool) -> MemberView:  # noqa: ARG002 - see there
        """As promised; what a cache still believes cannot be cut: `cut` waits for it all the same."""
        _valid(name)
        return self._advance(pool, lambda look: self._remove(pool, look, name, guard))

    def _remove(self, pool: str, look: Look, name: str, guard: Guard) -> MemberView:
        _, port = self._where(pool)
        note = look.note(name)
        if note is None:
            return _absent(name)
        inside = note.address in look.addresses
        if not inside and note.phase == "joining":
            self._write(pool, look, look.found.here, look.notes.with_member(name, None))
            return _absent(name)
        self._refuse_unless(guard, pool, look, name, note.address)
        if inside or note.phase != "draining":
            notes = look.notes.with_member(name, replace(note, phase="draining", until=0.0))
            look = self._agreeing(pool, self._write(pool, look, look.found.here.without(note.address), notes))
            note = look.note(name)
        if note is not None and note.phase == "draining" and not note.until and not look.disagreement():
            notes = look.notes.with_member(name, replace(note, until=look.forgotten_at()))
            look = self._write(pool, look, look.found.here, notes)
        elif note is not None and note.until and note.until <= look.now:
            self._write(pool, look, look.found.here, look.notes.gone(name, note))
            return _absent(name)
        return self._view(look, name, port, {})

    def _refuse_unless(self, guard: Guard, pool: str, look: Look, leaving: str, address: str) -> None:
        where, port = self._where(pool)
        others = {
            other: note.address
            for other in look.names()
            if other != leaving
            and (note := look.note(other)) is not None
            and note.phase == "serving"
            and note.address in look.addresses
        }
        health = self._ask(port, set(others.values()))
        up = {other for other, at in others.items() if not health[at, port]}
        missing = [other for other in guard.serving if other not in up]
        why = ""
        if missing:
            seen = (f"{other} ({health[others[other], port]})" if other in others else other for other in missing)
            why = f"does not serve: {', '.join(seen)}"
        elif len(up) < guard.min_healthy:
            why = f"only {len(up)} others serve, {guard.min_healthy} are needed"
        elif not up and address in look.addresses:
            why = "it is the last one that serves"
        if why:
            raise GuardRefused(f"{leaving} stays at {where}: {why}")

    # -- looking ----------------------------------------------------------------------------------------------------

    def _view(self, look: Look, name: str, port: int, health: Mapping[tuple[str, int], str]) -> MemberView:
        note = look.note(name)
        if note is None:
            return _absent(name)
        ill = health.get((note.address, port), "")
        inside = note.address in look.addresses
        lag = look.disagreement()
        if look.found.wrong:
            return MemberView(name=name, address=note.address, port=port, state="down", detail=look.found.wrong)
        view = MemberView(name=name, address=note.address, port=port, state="joining", detail=lag)
        if note.phase == "draining" and not inside:
            left = note.until - look.now
            if not note.until:
                return replace(view, state="draining", actionable=not lag)
            if left > 0:
                return replace(view, state="draining", detail=f"answers with it may be kept for {left:.0f} s more")
            return replace(view, state="leaving", actionable=True, detail="no answer with it is valid any more")
        if note.phase == "serving" and inside:
            return replace(view, state="down" if ill else "serving", detail=ill or lag)
        if note.phase == "entered" and inside and (share := look.found.here.share(note.address)) is not None and ill:
            return replace(view, state="down", detail=f"{ill}, with {share.weight} of {note.weight} of its weight")
        if ill:
            return replace(view, detail=ill)
        if inside and not lag and look.lacks(note):
            left = note.until - look.now
            share = look.found.here.share(note.address)
            has = f"has {share.weight if share else 0} of {note.weight} of its weight"
            wait = f" for {left:.0f} s more" if left > 0 else ""
            return replace(view, actionable=left <= 0, detail=f"{has}{wait}")
        if note.phase == "joining" and (left := look.too_soon(self._ttl)):
            if left < math.inf:
                lowered = look.notes.lowered
                was = f"the TTL was {lowered.was} s: " if lowered is not None else ""
                return replace(view, detail=f"{was}{left:.0f} s until nobody keeps an answer so long")
            return replace(view, actionable=look.ttl > self._ttl or not lag, detail=lag or "the TTL is to be lowered")
        return replace(view, actionable=note.phase != "entered" or not inside or not lag)

    def _where(self, pool: str) -> tuple[str, int]:
        try:
            return self._pools[pool]
        except KeyError:
            raise NotFound(f"no pool is called {pool!r}; the fleet file has {', '.join(sorted(self._pools))}") from None

    def _look(self, pool: str, *, ahead: bool = False) -> Look:
        name, _ = self._where(pool)
        return self._read(self._zone.look([name], ahead=ahead)[name])

    def _read(self, found: Found) -> Look:
        return Look(found=found, notes=Notes.read(found.notes), now=self._clock(), margin=self._margin)

    def _ask(self, port: int, addresses: Collection[str]) -> Mapping[tuple[str, int], str]:
        return self._health.ask([(address, port) for address in addresses])

    # -- changing ---------------------------------------------------------------------------------------------------

    def _advance(self, pool: str, act: Callable[[Look], T]) -> T:
        """An answer that was lost says nothing: what is there now says whether it happened."""
        trouble: ProviderError = Busy(f"others keep changing {self._where(pool)[0]}")
        for _ in range(self._tries):
            try:
                look = self._look(pool, ahead=True)
                if look.found.wrong:
                    raise Refused(look.found.wrong)
                return act(look)
            except _Lost:
                continue
            except Transient as error:
                if not error.ambiguous:
                    raise
                trouble = error
        raise trouble

    def _write(self, pool: str, look: Look, to: AddressSet, notes: Notes) -> Look:
        """Changed, and looked at again; as it was if there is nothing to change."""
        lines = notes.lines()
        if to == look.found.here and lines == look.found.notes:
            return look
        if not self._zone.change(self._where(pool)[0], look.found, to, lines):
            raise _Lost
        after = self._look(pool, ahead=True)
        if after.found.here != to and after.found.here == look.found.here:
            raise Transient(f"{self._where(pool)[0]} was changed without an error, and is as before", ambiguous=True)
        return after


@dataclass(frozen=True, kw_only=True)
class Canary:
    """`steps`: percents of its weight that a new member gets first, rising; each for `seconds`, in which it is looked
    at."""

    steps: tuple[int, ...]
    seconds: float

    def after(self, weight: int, full: int) -> int:
        """What comes after that weight, 0 for one that has none yet. A weight is a whole number, and at least 1."""
        wanted = (max(1, full * percent // 100) for percent in self.steps)
        return next((one for one in wanted if weight < one < full), full)


def _absent(name: str) -> MemberView:
    return MemberView(name=name, address="", port=0, state="absent")


def _address(member: Member) -> str:
    _valid(member.name)
    try:
        return str(ipaddress.ip_address(member.address))
    except ValueError:
        raise Refused(f"{member.name} has the address {member.address!r}, which is no IP address") from None


def _valid(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise Refused(f"{name!r} is no name of a member")


def _weighted(more: Sequence[str]) -> bool:
    """What a note of a weighted member has besides; nothing where it is not."""
    return not more or (len(more) == 2 and more[0].isdigit())


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def pools_from(pools: object) -> dict[str, tuple[str, int]]:
    """Pool to (name, port), of what a traffic provider is given as `pools`."""
    known: dict[str, tuple[str, int]] = {}
    for pool, said in pools.items() if isinstance(pools, Mapping) else ():
        one = said if isinstance(said, Mapping) else {}
        name, port = one.get("backend", pool), one.get("port")
        if not isinstance(name, str) or not isinstance(port, int):
            raise Refused(f"traffic settings: pool {pool!r} must be {{backend: NAME, port: NUMBER}}")
        known[pool] = (name, port)
    twice = sorted({name for name, _ in known.values() if [n for n, _ in known.values()].count(name) > 1})
    if twice:
        raise Refused(f"traffic settings: several pools are the name {twice[0]}; say it once")
    return known


def whole(settings: Mapping[str, Any], key: str, default: int, *, most: int, least: int = 0) -> int:
    value = settings.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise Refused(f"traffic settings: {key} is {least} to {most} (seconds, without a unit), not {value!r}")
    return value


@dataclass(frozen=True, kw_only=True)
class Said:
    """The settings that all zones share. `rest`: what `NameTraffic` takes of them."""

    type: str
    rest: Mapping[str, Any]


def _canary(settings: Mapping[str, Any]) -> Canary:
    said = str(settings.get("canary", DEFAULT_CANARY)).split()
    steps = [int(one) for one in said if one.isdigit() and 1 <= int(one) <= 99]
    if not said or len(steps) != len(said) or steps != sorted(set(steps)):
        raise Refused(
            f'traffic settings: canary is percents from 1 to 99 that rise, such as 5 or "5 25", not '
            f"{settings.get('canary')!r}"
        )
    return Canary(steps=tuple(steps), seconds=whole(settings, "canary_seconds", DEFAULT_CANARY_SECONDS, most=3600))


def named_settings(settings: Mapping[str, Any], *, also: frozenset[str], weights: bool = False) -> Said:
    """`also`: what this zone has besides; `weights`: that includes record sets that are weighted. `Refused` for
    anything else, or a value that is none."""
    known = _SETTINGS | also | (_WEIGHTED if weights else frozenset())
    if settings.get("addresses") != "weighted" and (alone := sorted(_WEIGHTED & set(settings))) and weights:
        raise Refused(f"traffic settings: {alone[0]} needs addresses: weighted")
    if unknown := sorted(set(settings) - known):
        raise Refused(f"traffic settings: unknown {', '.join(map(repr, unknown))}; known: {', '.join(sorted(known))}")
    kind, addresses = settings.get("type", "A"), settings.get("addresses", "many")
    known_styles = ("many", "one", *(("weighted",) if weights else ()))
    if kind not in ("A", "AAAA"):
        raise Refused(f"traffic settings: type is A or AAAA, not {kind!r}")
    if addresses not in known_styles:
        raise Refused(f"traffic settings: addresses is {' or '.join(known_styles)}, not {addresses!r}")
    rest = {
        "pools": pools_from(settings.get("pools")),
        "ttl": whole(settings, "ttl", DEFAULT_TTL, most=3600, least=1),
        "check": settings.get("check", "tcp"),
        "one": addresses == "one",
        "canary": _canary(settings) if addresses == "weighted" else None,
        "margin": whole(settings, "margin", int(MARGIN_SECONDS), most=3600),
    }
    return Said(type=kind, rest=rest)


def servers_finding(title: str, found: Found, here: str, *, fix: str) -> Finding:
    """Whether each authoritative server answers, as it is where changes are made (`here`, in words)."""
    silent = sorted(seen for seen in found.everywhere.values() if isinstance(seen, str))
    stale = sorted(
        server
        for server, seen in found.everywhere.items()
        if not isinstance(seen, str) and not (found.here.explains(seen) and seen.ttl == found.here.ttl)
    )
    wrong = [*silent, *([f"{', '.join(stale)} differ from {here}"] if stale else [])]
    detail = "; ".join(wrong) or f"{', '.join(found.everywhere)} agree"
    return Finding(name=f"{title}: servers", ok=not wrong, detail=detail, fix=fix if wrong else "")


def ttl_finding(title: str, found: Found, low: int) -> Finding:
    said = f"{found.here.ttl} s"
    lowered = Notes.read(found.notes).lowered
    if lowered is not None:
        held = ", ".join(sorted(Notes.read(found.notes).held)) or "nobody"
        said += f", lowered from {lowered.was} s as long as a way back is open (for {held})"
    elif found.here.ttl > low:
        said += f": it is lowered to {low} s when a rollout begins, and the first swap waits for it"
    return Finding(name=f"{title}: TTL", ok=True, detail=said)
