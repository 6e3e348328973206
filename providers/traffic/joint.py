"""Changes of a pool that threads ask for at the same moment, made in one call by a balancer whose API takes many."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from providers.clients.rounds import Rounds, own
from providers.errors import ProviderError
from providers.traffic import Guard, Member, MemberView

Said = MemberView | ProviderError  # what became of one of those that were asked for together


@dataclass(frozen=True, kw_only=True)
class Coming:
    """One that is to serve in that pool."""

    pool: str
    member: Member


@dataclass(frozen=True, kw_only=True)
class Going:
    """One that is to leave it."""

    pool: str
    name: str
    guard: Guard
    cut: bool


class Joint:
    """`add`, `restore` and `remove` of `providers.traffic.Traffic`, by calls for many. Whoever answers such a call
    decides for each of them alone, one after another: what is refused to one is refused to no other."""

    def __init__(
        self,
        *,
        add: Callable[[Collection[Coming]], Mapping[Coming, Said]],
        restore: Callable[[Collection[Coming]], Mapping[Coming, Said]],
        remove: Callable[[Collection[Going]], Mapping[Going, Said]],
        pause: float,
    ) -> None:
        """`pause`: see `providers.clients.rounds.linger`."""
        self._adding, self._restoring = Rounds(add, pause=pause), Rounds(restore, pause=pause)
        self._removing = Rounds(remove, pause=pause)

    def add(self, pool: str, member: Member) -> MemberView:
        return own(self._adding, Coming(pool=pool, member=member))

    def restore(self, pool: str, member: Member) -> MemberView:
        return own(self._restoring, Coming(pool=pool, member=member))

    def remove(self, pool: str, name: str, *, guard: Guard, cut: bool) -> MemberView:
        return own(self._removing, Going(pool=pool, name=name, guard=guard, cut=cut))
