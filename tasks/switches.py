"""Pools of one fleet in several accounts or regions: each is asked of the switch that it is in."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from providers import Caps, Finding
from providers.errors import NotFound
from providers.rights import Rights
from providers.traffic import Guard, Member, MemberView, PoolCounters, Traffic


class Switches:
    """Several of one kind as one `providers.traffic.Traffic`, by pool. An address may be several servers', each in a
    network of its own: `elsewhere` is right for a fleet whose servers are all in one place."""

    def __init__(self, pools: Mapping[str, Traffic]) -> None:
        self._pools = pools

    def _of(self, pool: str) -> Traffic:
        if pool not in self._pools:
            raise NotFound(f"no pool is called {pool!r}; the fleet file has {', '.join(sorted(self._pools))}")
        return self._pools[pool]

    @property
    def _all(self) -> Sequence[Traffic]:
        return list({id(switch): switch for switch in self._pools.values()}.values())

    @property
    def caps(self) -> Caps:
        return self._all[0].caps

    def lane(self, pool: str) -> str:
        return self._of(pool).lane(pool)

    def members(self, pool: str) -> Sequence[MemberView]:
        return self._of(pool).members(pool)

    def proven(self, wanted: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], MemberView]:
        views: dict[tuple[str, str], MemberView] = {}
        for switch, pairs in self._divided(wanted):
            views |= switch.proven(pairs)
        return views

    def idle(self, wanted: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], MemberView]:
        views: dict[tuple[str, str], MemberView] = {}
        for switch, pairs in self._divided(wanted):
            views |= switch.idle(pairs)
        return views

    def _divided(self, wanted: Collection[tuple[str, str]]) -> Sequence[tuple[Traffic, Sequence[tuple[str, str]]]]:
        parts: dict[int, tuple[Traffic, list[tuple[str, str]]]] = {}
        for pool, name in wanted:
            switch = self._of(pool)
            parts.setdefault(id(switch), (switch, []))[1].append((pool, name))
        return list(parts.values())

    def prepare(self, pool: str, name: str) -> float:
        return self._of(pool).prepare(pool, name)

    def settled(self, pool: str, name: str) -> None:
        self._of(pool).settled(pool, name)

    def elsewhere(self, addresses: Collection[str]) -> Mapping[str, Sequence[str]]:
        found: dict[str, list[str]] = {}
        for switch in self._all:
            for address, places in switch.elsewhere(addresses).items():
                found.setdefault(address, []).extend(places)
        return found

    def reaches(self, pool: str, zone: str) -> str:
        return self._of(pool).reaches(pool, zone)

    def examine(self) -> Sequence[Finding]:
        return [finding for switch in self._all for finding in switch.examine()]

    def rights(self, *, fleet: str) -> Sequence[Rights]:
        return [rights for switch in self._all for rights in switch.rights(fleet=fleet)]

    def add(self, pool: str, member: Member) -> MemberView:
        return self._of(pool).add(pool, member)

    def remove(self, pool: str, name: str, *, guard: Guard, cut: bool) -> MemberView:
        return self._of(pool).remove(pool, name, guard=guard, cut=cut)

    def restore(self, pool: str, member: Member) -> MemberView:
        return self._of(pool).restore(pool, member)

    def counters(self, pool: str) -> PoolCounters | None:
        return self._of(pool).counters(pool)
