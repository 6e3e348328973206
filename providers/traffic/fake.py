"""A balancer in memory over the servers of a `FakeCloud`. A member takes one advance after another, as a real one does
when `steps` is on; else it is in, or out, at once. It counts the moments when a pool had nobody to serve."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from providers import Caps, Finding
from providers.clients.fake_cloud import Remote
from providers.compute.fake import FakeCloud
from providers.errors import Conflict, GuardRefused, NotFound, Refused
from providers.traffic import Guard, Member, MemberView, PoolCounters

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*")


class FakeTraffic:
    def __new__(cls, settings: Mapping[str, Any]) -> Any:
        return Remote("traffic", settings) if "socket" in settings else super().__new__(cls)

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.cloud = FakeCloud.of(settings)
        self.steps = settings.get("steps", "on") == "on"
        self.lane_each = settings.get("lanes", "one") == "each"
        for pool in settings.get("pools", {}):
            self.cloud.pools.setdefault(pool, {})

    @property
    def caps(self) -> Caps:
        return Caps()

    def lane(self, pool: str) -> str:
        return f"fake:{pool}" if self.lane_each else "fake balancer"

    def members(self, pool: str) -> Sequence[MemberView]:
        with self.cloud.lock:
            self.cloud.call("members")
            return self.views(pool)

    def views(self, pool: str) -> list[MemberView]:
        """As `members`, and not counted as a call."""
        return [self._view(pool, name) for name in self._pool(pool)]

    def proven(self, wanted: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], MemberView]:
        with self.cloud.lock:
            self.cloud.call("proven")
            return {(pool, name): self._view(pool, name) for pool, name in wanted}

    def idle(self, wanted: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], MemberView]:
        with self.cloud.lock:
            self.cloud.call("idle")
            return {(pool, name): self._view(pool, name) for pool, name in wanted}

    def prepare(self, pool: str, _name: str) -> float:
        self._pool(pool)
        return 0.0

    def settled(self, pool: str, _name: str) -> None:
        self._pool(pool)

    def examine(self) -> Sequence[Finding]:
        return ()

    def add(self, pool: str, member: Member) -> MemberView:
        with self.cloud.lock:
            fault = self.cloud.call("add")
            _named(member.name)
            found = self._pool(pool).get(member.name)
            if found is None:
                state = "joining" if self.steps else "serving"
                self._set(pool, MemberView(name=member.name, address=member.address, port=member.port, state=state))  # type: ignore[arg-type] # one of two states
            elif (found.address, found.port) != (member.address, member.port):
                raise Conflict(f"{member.name} is {found.address}:{found.port} in {pool}")
            elif found.state != "serving" and self.cloud.healthy(found.address):
                self._set(pool, replace(found, state="serving"))
            self.cloud.answer(fault, "add")
            return self._view(pool, member.name)

    def restore(self, pool: str, member: Member) -> MemberView:
        return self.add(pool, member)

    def remove(self, pool: str, name: str, *, guard: Guard, cut: bool) -> MemberView:
        with self.cloud.lock:
            fault = self.cloud.call("remove")
            _named(name)
            found = self._pool(pool).get(name)
            if found is not None:
                self._check(pool, name, guard)
                if found.state == "serving" and self.steps:
                    self._set(pool, replace(found, state="draining"))
                elif found.state == "draining" and found.sessions and not cut:
                    pass
                else:
                    del self._pool(pool)[name]
            self.cloud.answer(fault, "remove")
            return self._view(pool, name)

    def counters(self, pool: str) -> PoolCounters | None:
        self._pool(pool)
        return None

    def _check(self, pool: str, leaving: str, guard: Guard) -> None:
        others = (name for name in self._pool(pool) if name != leaving and self._serves(pool, name))
        missing = [name for name in guard.serving if name == leaving or not self._serves(pool, name)]
        if missing:
            raise GuardRefused(f"{', '.join(missing)} does not serve in {pool}: {leaving} stays")
        wanted = max(guard.min_healthy, 1 if self._serves(pool, leaving) else 0)  # the last one stays, whatever is said
        up = sum(1 for _ in islice(others, wanted))  # no more are looked at than are wanted
        if up < wanted:
            raise GuardRefused(f"{up} others serve in {pool}, {wanted} are wanted: {leaving} stays")

    def _serves(self, pool: str, name: str) -> bool:
        found = self._pool(pool).get(name)
        return found is not None and found.state == "serving" and self.cloud.healthy(found.address)

    def _view(self, pool: str, name: str) -> MemberView:
        found = self._pool(pool).get(name)
        if found is None:
            return MemberView(name=name, address="", port=0, state="absent")
        healthy = self.cloud.healthy(found.address)
        if found.state == "serving" and not healthy:
            return replace(found, state="down", detail="no answer to its check")
        idle = found.state == "draining" and not found.sessions
        actionable = (found.state == "joining" and healthy) or idle
        return found if actionable == found.actionable else replace(found, actionable=actionable)

    def _pool(self, pool: str) -> dict[str, MemberView]:
        found: dict[str, MemberView] | None = self.cloud.pools.get(pool)
        if found is None:
            raise NotFound(f"there is no pool {pool}")
        return found

    def _set(self, pool: str, view: MemberView) -> None:
        self._pool(pool)[view.name] = view


def _named(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise Refused(f"{name!r} is no name of a member")
