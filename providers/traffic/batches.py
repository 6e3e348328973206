"""Changes of many names of one zone of Route 53, made together: few requests, and each a compare-and-swap.

Whoever wants a name changed says from what to what. While a request is under way others gather, and go with the next.
Changes of one name that were decided one after another, each on what the one before makes of it, become one: from what
the first has found to what the last wants. What is refused for one name is not refused for the others.

Which change last touched the addresses of a name is noted beside it as soon as Route 53 has told its id, so that every
worker can ask whether all servers have it.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import quote

from providers.clients.route53 import CHANGES, CHARACTERS, RECORDS, REMEMBERED, Action, HostedZone, RecordSet
from providers.errors import Busy, Conflict, ProviderError, Refused, Transient, Unauthorized
from providers.traffic.names import NOTE_TTL, PREFIX, AddressSet, Share

# Others may join a change before it is sent: as long as within this time somebody does, and no longer than that.
GATHER_SECONDS, GATHERED_SECONDS = 0.04, 0.4
# For so long a change waits for those before it.
PATIENCE = 12.0
# For so long what this process has read or written is believed: every change is compared at Route 53 itself.
FRESH_SECONDS = 1.0
# After that it is not to be expected any more that whoever has made a change notes its id.
NOTED_SECONDS = 15.0
# A batch is sent again without those whom it was refused for, so many times.
ROUNDS = 12
LONGEST_ID = 120  # of a set identifier, as a note holds it
SPREAD = "spread"
_SPREAD = re.compile(r"spread (\? [0-9]{1,12}\.[0-9]{3}|[A-Z0-9]{1,32})")
# What changes are decided on: addresses, and notes.
Seen = tuple[AddressSet, frozenset[str]]


@dataclass(frozen=True, kw_only=True)
class State:
    """A name, as Route 53 has it. `spread`: the note of the change that last touched its addresses, `spread ID`, or
    `spread ? SINCE` while the id is not known. `notes_ttl` in seconds. `wrong`: why it is none that can be changed.
    `other`: it has addresses of the other kind besides."""

    here: AddressSet
    notes: frozenset[str]
    spread: str = ""
    notes_ttl: int = NOTE_TTL
    wrong: str = ""
    other: bool = False

    @property
    def seen(self) -> Seen:
        return self.here, self.notes


@dataclass(eq=False)
class Swap:
    """A change of one name that somebody waits for. `made`: None as long as it is not decided."""

    name: str
    was: Seen
    to: Seen
    made: bool | None = None
    error: ProviderError | None = None


@dataclass(frozen=True, kw_only=True)
class Chain:
    """What is sent for one name: its swaps as one. Without any, the id of the change before is noted."""

    name: str
    was: State
    to: State
    swaps: Sequence[Swap] = ()

    def changes(self, type: str) -> list[tuple[Action, RecordSet]]:
        """What is there goes and what is wanted comes, be it the same: the batch insists on it."""
        made: list[tuple[Action, RecordSet]] = []
        sides: tuple[tuple[Action, State], ...] = (("DELETE", self.was), ("CREATE", self.to))
        for action, state in sides:
            if self.swaps:
                made += [(action, one) for one in record_sets(self.name, type, state.here)]
        for action, state in sides:
            if lines := state.notes | ({state.spread} if state.spread else frozenset()):
                values = frozenset(map(_value, lines))
                beside = RecordSet(name=f"{PREFIX}.{self.name}", type="TXT", ttl=state.notes_ttl, values=values)
                made.append((action, beside))
        return made


class Batches:
    """What this process knows of a zone, and wants of it. `type`: A or AAAA. `weighted`: each address has a record set
    of its own. Names are absolute, in lower case."""

    def __init__(
        self, hosted: HostedZone, *, type: str, weighted: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        self.hosted, self.type, self.weighted, self._clock = hosted, type, weighted, clock
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._queue: list[Swap] = []
        self._tips: dict[str, Seen] = {}  # names that are being changed -> what they will be
        self._known: dict[str, tuple[float, State]] = {}
        self._ids: dict[str, str] = {}  # the note that has no id -> the id
        self._unnamed: set[str] = set()  # names whose id is to be noted

    # -- looking ------------------------------------------------------------------------------------------------------

    def states(self, names: Collection[str], *, ahead: bool = False) -> Mapping[str, State]:
        """Each name, as old as `FRESH_SECONDS` at most; with `ahead` as it will be once what is under way is made."""
        found: dict[str, State] = {}
        with self._lock:
            for name in names:
                at, state = self._known.get(name, (0.0, None))
                if state is not None and time.monotonic() - at < FRESH_SECONDS:
                    found[name] = state
        if missing := set(names) - set(found):
            found |= self.read(missing)
        if ahead:
            with self._lock:
                for name in names:
                    if name in self._tips:
                        here, notes = self._tips[name]
                        spread = found[name].spread if here == found[name].here else self._unknown()
                        found[name] = replace(found[name], here=here, notes=notes, spread=spread)
        return found

    def read(self, names: Collection[str]) -> Mapping[str, State]:
        """Each name, now."""
        began = time.monotonic()
        told = self.hosted.sets([*names, *(f"{PREFIX}.{name}" for name in names)])
        found = {name: _state(self.type, told[name], told[f"{PREFIX}.{name}"], self.weighted) for name in names}
        with self._lock:
            for name, state in found.items():
                if self._known.get(name, (0.0, state))[0] <= began:  # else it was changed meanwhile
                    self._known[name] = (began, state)
        return found

    def under_way(self, state: State) -> str:
        """Why it may be that not every server of Route 53 has these addresses yet; empty when each has."""
        if not state.spread:
            return ""
        id = self._id(state.spread)
        if not id:
            return "Route 53 has not said yet which change this is"
        return "" if self.hosted.in_sync(id) else f"Route 53 is still telling its servers (PENDING, change {id})"

    def forgotten(self, state: State) -> bool:
        """Whether nobody knows the id of its last change any more: who made it has died, or was never answered."""
        if not state.spread or self._id(state.spread):
            return False
        return self._clock() - float(state.spread.rpartition(" ")[2]) > NOTED_SECONDS

    def _id(self, spread: str) -> str:
        word = spread.split(" ")[1] if spread else ""
        return self._ids.get(spread, "") if word == "?" else word

    def _unknown(self) -> str:
        return f"{SPREAD} ? {self._clock():.3f}"

    # -- changing -----------------------------------------------------------------------------------------------------

    def change(self, name: str, was: Seen, to: Seen) -> bool:
        """False, and nothing changed, if it is not as it was. Together with what others want by then. Where nothing is
        to change, it is written anew as it is: then it has a change that can be asked about."""
        swap = Swap(name, was, to)
        with self._lock:
            _, known = self._known.get(name, (0.0, None))
            if was != self._tips.get(name, known.seen if known is not None else was):
                return False
            self._tips[name] = to
            self._queue.append(swap)
        if not self._sending.acquire(timeout=PATIENCE):
            with self._lock:
                waiting = swap in self._queue
                if waiting:
                    self._drop(name)
            if waiting:
                raise Busy(f"many changes of {self.hosted.name} are under way")
            raise Transient(f"Route 53 has not answered the change of {name} yet", ambiguous=True)
        try:
            while swap.made is None and swap.error is None:
                self._gather()
                self._send()
            if self._unnamed:
                self._send()
        finally:
            self._sending.release()
        if swap.error is not None:
            raise swap.error
        return bool(swap.made)

    def _drop(self, name: str) -> None:
        """What is still to be sent for that name was decided on what does not come true. With the lock."""
        for swap in self._queue:
            if swap.name == name:
                swap.made = False
        self._queue = [swap for swap in self._queue if swap.name != name]
        self._tips.pop(name, None)

    def _gather(self) -> None:
        end = time.monotonic() + GATHERED_SECONDS
        waiting = -1
        while waiting != (waiting := len(self._queue)) and time.monotonic() < end:
            time.sleep(GATHER_SECONDS)

    def _send(self) -> None:
        """One batch of what waits, as far as one holds it."""
        with self._lock:
            names = list(dict.fromkeys([*(swap.name for swap in self._queue), *sorted(self._unnamed)]))
            batch: list[Chain] = []
            for name in names:
                swaps = [swap for swap in self._queue if swap.name == name]
                chain = self._chain(name, swaps)
                if batch and not _fits([*batch, chain], self.type):
                    continue
                batch.append(chain)
                self._queue = [swap for swap in self._queue if swap.name != name]
                self._unnamed.discard(name)
        try:
            self._attempt([chain for chain in batch if chain.swaps or chain.to != chain.was], rounds=ROUNDS)
        finally:
            with self._lock:
                going = {swap.name for swap in self._queue}
                for chain in batch:
                    if chain.name not in going:
                        self._tips.pop(chain.name, None)

    def _chain(self, name: str, swaps: Sequence[Swap]) -> Chain:
        """With the lock."""
        _, known = self._known.get(name, (0.0, None))
        if known is None:  # forgotten after an answer that was lost: read again if this is refused
            here, notes = swaps[0].was if swaps else (AddressSet(), frozenset[str]())
            known = State(here=here, notes=notes)
        id = self._id(known.spread)
        spread = f"{SPREAD} {id}" if id else known.spread
        if not swaps:
            return Chain(name=name, was=known, to=replace(known, spread=spread, notes_ttl=NOTE_TTL))
        was = replace(known, here=swaps[0].was[0], notes=swaps[0].was[1])
        here, notes = swaps[-1].to
        if here != was.here or swaps[-1].to == swaps[0].was:
            spread = self._unknown()
        return Chain(name=name, was=was, to=State(here=here, notes=notes, spread=spread if notes else ""), swaps=swaps)

    def _attempt(self, batch: Sequence[Chain], *, rounds: int) -> None:
        """Sent; where it is refused, for as few as that is about."""
        if not batch:
            return
        try:
            id = self.hosted.submit([change for chain in batch for change in chain.changes(self.type)])
        except (Conflict, Unauthorized, Refused) as error:
            try:
                self._refused(batch, error, rounds=rounds - 1)
            except ProviderError as trouble:  # of reading what is there
                self._failed(batch, trouble)
        except ProviderError as error:
            self._failed(batch, error)
        else:
            self._made(batch, id)

    def _refused(self, batch: Sequence[Chain], error: ProviderError, *, rounds: int) -> None:
        """Whose name is not as it was is told so; the others go again, and if that is none, each with fewer others."""
        now = self.read([chain.name for chain in batch])
        with self._lock:
            again = [
                self._chain(chain.name, chain.swaps)
                for chain in batch
                if now[chain.name].seen == chain.was.seen and not now[chain.name].wrong
            ]
        going = {chain.name for chain in again}
        self._lost([chain for chain in batch if chain.name not in going])
        again = [chain for chain in again if chain.swaps or chain.to != chain.was]
        if rounds <= 0:
            self._failed(again, Busy(f"others keep changing {self.hosted.name}"))
        elif len(again) < len(batch) or any(now[chain.name].spread != chain.was.spread for chain in batch):
            self._attempt(again, rounds=rounds)
        elif len(again) == 1:
            self._failed(again, Refused(str(error), code=error.code) if isinstance(error, Conflict) else error)
        else:
            half = len(again) // 2
            self._attempt(again[:half], rounds=rounds)
            self._attempt(again[half:], rounds=rounds)

    def _made(self, batch: Sequence[Chain], id: str) -> None:
        with self._lock:
            for chain in batch:
                if chain.swaps and chain.to.spread.startswith(f"{SPREAD} ? "):
                    self._ids[chain.to.spread] = id
                    if len(self._ids) > REMEMBERED:
                        del self._ids[next(iter(self._ids))]
                    self._unnamed.add(chain.name)
                self._known[chain.name] = (time.monotonic(), chain.to)
                for swap in chain.swaps:
                    swap.made = True

    def _lost(self, batch: Sequence[Chain]) -> None:
        with self._lock:
            for chain in batch:
                self._drop(chain.name)
                for swap in chain.swaps:
                    swap.made = False

    def _failed(self, batch: Sequence[Chain], error: ProviderError) -> None:
        with self._lock:
            for chain in batch:
                self._drop(chain.name)
                self._known.pop(chain.name, None)
                for swap in chain.swaps:
                    swap.error = error


def _fits(batch: Sequence[Chain], type: str) -> bool:
    sets = [one for chain in batch for _, one in chain.changes(type)]
    records, characters = (sum(each) for each in zip(*(one.weight for one in sets), strict=True))
    return len(sets) <= CHANGES and records <= RECORDS and characters <= CHARACTERS


def record_sets(name: str, type: str, here: AddressSet) -> list[RecordSet]:
    """Those that a name consists of."""
    if here.shares:
        return [
            RecordSet(name=name, type=type, ttl=here.ttl, values=frozenset({one.address}), id=one.id, share=one.weight)
            for one in sorted(here.shares, key=lambda one: one.id)
        ]
    return [RecordSet(name=name, type=type, ttl=here.ttl, values=here.addresses)] if here.addresses else []


def _state(type: str, sets: Sequence[RecordSet], beside: Sequence[RecordSet], weighted: bool) -> State:
    mine = [one for one in sets if one.type == type and (one.share is not None if weighted else not one.special)]
    notes = next((one for one in beside if one.type == "TXT"), None)
    lines = frozenset(map(_line, notes.values)) if notes is not None else frozenset[str]()
    spread = next((line for line in sorted(lines) if _SPREAD.fullmatch(line)), "")
    return State(
        here=_address_set(mine, weighted),
        notes=lines - {spread},
        spread=spread,
        notes_ttl=notes.ttl if notes is not None else NOTE_TTL,
        wrong=next(filter(None, (_wrong(one, weighted, type) for one in (*sets, *beside))), "")
        or (_unfit(mine) if weighted else ""),
        other=any(one.type in ("A", "AAAA") and one.type != type for one in sets),
    )


def _address_set(sets: Sequence[RecordSet], weighted: bool) -> AddressSet:
    """Who has a weight of 0 gets no answers, and is none of its members."""
    if not weighted:
        return AddressSet(addresses=sets[0].values, ttl=sets[0].ttl) if sets else AddressSet()
    shares = frozenset(
        Share(address=address, weight=one.share, id=one.id) for one in sets if one.share for address in one.values
    )
    ttl = max((one.ttl for one in sets if one.share), default=0)
    return AddressSet(addresses=frozenset(one.address for one in shares), ttl=ttl, shares=shares)


def _unfit(sets: Sequence[RecordSet]) -> str:
    """Why these weighted record sets are none that servers can come into and leave one by one."""
    serving = [one for one in sets if one.share]
    if sets and not serving:
        return (
            f"{sets[0].name} has weights of 0 alone: Route 53 answers with all of them then. Give its servers weights"
        )
    if many := next((one for one in serving if len(one.values) != 1), None):
        return f"{many.name} {many.id!r} has {len(many.values)} addresses: give each a weighted record set of its own"
    if len({value for one in serving for value in one.values}) < len(serving):
        return f"{serving[0].name} has an address in two record sets: leave it one"
    if len({one.ttl for one in serving}) > 1:
        return f"{serving[0].name} has record sets of several TTLs: give them the same"
    if long := next((one for one in serving if len(quote(one.id, safe="")) > LONGEST_ID), None):
        return f"{long.name} {long.id!r}: the set identifier is too long to be noted"
    return ""


def _wrong(one: RecordSet, weighted: bool, type: str) -> str:
    if weighted and one.type == type and one.share is not None:
        return ""
    if weighted and one.type == type and not one.special:
        return (
            f"{one.name} {one.type} is a plain record set, and the settings say `addresses: weighted`: give each "
            "server a weighted one of its own, or say `many`"
        )
    if one.type == "CNAME" and not one.special:
        target = next(iter(one.values), "?")
        return f"{one.name} is an alias (CNAME) of {target} and has no addresses of its own. Name {target} instead"
    if one.special and one.type in ("A", "AAAA", "CNAME", "TXT"):
        other = ", or say `addresses: weighted`" if one.share is not None and not weighted else ""
        return (
            f"{one.name} {one.type} is {one.special}, and only plain record sets are changed here. Give the servers a "
            f"plain name of their own, and let that one lead to it{other}; behind an AWS load balancer, its target "
            "groups are the switch"
        )
    return ""


def _line(value: str) -> str:
    """The text of a TXT record of one plain string; any other as it stands."""
    inner = value[1:-1]
    return inner if value == f'"{inner}"' and '"' not in inner and "\\" not in inner else value


def _value(line: str) -> str:
    return line if line.startswith('"') else f'"{line}"'
