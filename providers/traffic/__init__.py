"""Who gets the users' requests: what a traffic provider promises.

The order is always: B in, B proven in the balancer's own view, A out, A proven idle. `add` and `remove` are
*advances*: each call reads the balancer's present state, does at most the next one thing that is due, and returns
the view after it; calling again goes on. A view with `actionable` says that calling again now would advance it;
without it, there is nothing to do but look again later.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from providers import Caps, Finding
from providers.rights import Rights

MemberState = Literal["absent", "joining", "serving", "down", "draining", "leaving"]


@dataclass(frozen=True, kw_only=True)
class Member:
    """One server in one pool. `name` carries a generation (`web-013.g2`): a late command for the former one
    finds nothing. `instead_of`: whose place it may take, where the switch is not additive; without any, anybody's."""

    name: str
    address: str
    port: int
    instead_of: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MemberView:
    """A member as the balancer itself sees it now.

    joining: known, not yet proven: it gets no user request, or (slow start) less than its share. serving: proven
    healthy and gets requests. down: meant to serve, but the balancer's check fails. draining: gets no new requests, old
    ones go on (a name: answers with it may still be kept). leaving: taken out, the balancer still counts connections (a
    name: no valid answer leads there any more; a target group: it has been let go of). absent: unknown to the balancer.
    `sessions` counts requests and connections in flight or queued, where `caps.counts_sessions`; else it is 0.
    `detail` is in the balancer's own words.
    """

    name: str
    address: str
    port: int
    state: MemberState
    actionable: bool = False
    sessions: int = 0
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Guard:
    """What must hold in the balancer's own view at the very moment before a member is taken out.

    At least `min_healthy` members other than the leaving one are serving, and each of `serving` is among them.
    """

    min_healthy: int
    serving: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PoolCounters:
    """Since the balancer started: user requests, and those it could not have answered well (connect errors,
    response errors, retries used up, 5xx of the servers)."""

    requests: int
    failed: int
    epoch: str


class Traffic(Protocol):
    @property
    def caps(self) -> Caps: ...

    def lane(self, pool: str) -> str:
        """The balancer or zone that this pool lives in: the unit of batched looks and of one writer at a time."""
        ...

    def members(self, pool: str) -> Sequence[MemberView]:
        """All members of the pool, now. One call. `NotFound` for an unknown pool."""
        ...

    def proven(self, wanted: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], MemberView]:
        """The views of many (pool, member name) pairs in one look per balancer; an unknown member is `absent`."""
        ...

    def prepare(self, pool: str, name: str, /) -> float:
        """Long before that member comes: what takes its time begins (a TTL is lowered, and has to be waited for).
        Seconds until `add` can go on; 0 at a balancer. Users notice nothing. Safe to repeat."""
        ...

    def settled(self, pool: str, name: str, /) -> None:
        """That member is not going to come or go any more: what `prepare` has changed is put back, once nobody else
        needs it. Safe to repeat, and without a `prepare`."""
        ...

    def elsewhere(self, addresses: Collection[str], /) -> Mapping[str, Sequence[str]]:
        """By address: where else this switch sends users to it, in words, beyond the pools that it was given. Who is in
        nothing else is left out; so is everybody where the switch cannot tell."""
        ...

    def reaches(self, pool: str, zone: str, /) -> str:
        """Why nobody would be sent to a member of that pool in that zone; empty where users would. A look at most."""
        ...

    def examine(self) -> Sequence[Finding]:
        """What a doctor should say of this switch beyond its pools' members. Changes nothing."""
        ...

    def rights(self, *, fleet: str) -> Sequence[Rights]:
        """What credentials have to allow for members to be changed, and no more. No call is made."""
        ...

    def add(self, pool: str, member: Member) -> MemberView:
        """Advance the member towards serving: in, unproven; proven; serving. Never takes a serving member out of
        service, even for a moment, unless the switch is not additive: then the former one begins to drain.
        `Conflict` if the name has another address, or a stranger has the place that it would take. Safe to repeat and
        to abandon."""
        ...

    def remove(self, pool: str, name: str, *, guard: Guard, cut: bool) -> MemberView:
        """Advance the member towards absent: draining, then, once idle, leaving, then absent.

        `GuardRefused` if the guard does not hold at that moment; then nothing changed. With `cut` it does not wait for
        sessions to end: it ends them, where it can. Absence is the only proof of being idle; where sessions are not
        counted, whoever removes a `leaving` one answers for its connections."""
        ...

    def restore(self, pool: str, member: Member) -> MemberView:
        """Advance a member that was draining, leaving or removed back towards serving. A draining one at once, where
        `caps.restores_at_once`; else through its proof. Where the switch is not additive, whoever has its place begins
        to drain."""
        ...

    def idle(self, wanted: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], MemberView]:
        """As `proven`, asked while members are leaving; one that is draining without sessions is `actionable`."""
        ...

    def counters(self, pool: str) -> PoolCounters | None:
        """How many user requests the pool has seen and failed; None where the balancer does not count."""
        ...
