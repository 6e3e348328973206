"""A balancer in memory over the servers of a `FakeCloud`. A member takes one advance after another, as a real one does
when `steps` is on; else it is in, or out, at once.

With `switch: names` it is like names in DNS instead: it has to be prepared, what it once said is believed for a while,
and it sees no sessions. With `switch: one` it is like a name with one address, too: whoever comes takes the other's
place."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from providers import Caps, Finding
from providers.clients.fake_cloud import PAUSE, Remote
from providers.clients.rounds import each
from providers.compute.fake import FakeCloud
from providers.errors import Conflict, GuardRefused, NotFound, Refused
from providers.rights import Rights
from providers.traffic import Guard, Member, MemberView, PoolCounters
from providers.traffic.joint import Coming, Going, Joint, Said

TTL = 5.0  # seconds, by the cloud's clock: so long is believed what a name has said
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*")


class _Remote(Joint, Remote):
    """Threads of this process share a call over the wire, too."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        Remote.__init__(self, "traffic", settings)
        Joint.__init__(self, add=self.add_all, restore=self.restore_all, remove=self.remove_all, pause=PAUSE)


class FakeTraffic(Joint):
    def __new__(cls, settings: Mapping[str, Any]) -> Any:
        return _Remote(settings) if "socket" in settings else super().__new__(cls)

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(add=self.add_all, restore=self.restore_all, remove=self.remove_all, pause=PAUSE)
        self.cloud = FakeCloud.of(settings)
        self.steps = settings.get("steps", "on") == "on"
        self.switch = str(settings.get("switch", "balancer"))
        self.lane_each = settings.get("lanes", "one") == "each"
        self.named = frozenset(settings.get("pools", {}))
        for pool in self.named:
            self.cloud.pools.setdefault(pool, {})

    @property
    def caps(self) -> Caps:
        named = self.switch != "balancer"
        return Caps(
            additive=self.switch != "one",
            counts_sessions=not named,
            prepares=named,
            decides_together=True,
            poll=1.0 if named else 0.0,
        )

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

    def prepare(self, pool: str, name: str) -> float:
        with self.cloud.lock:
            fault = self.cloud.call("prepare")
            self._pool(pool)
            if self.switch != "balancer":
                self.cloud.prepared.setdefault(pool, {}).setdefault(name, self.cloud.clock() + TTL)
            self.cloud.answer(fault, "prepare")
            return self._unprepared(pool)

    def settled(self, pool: str, name: str) -> None:
        with self.cloud.lock:
            fault = self.cloud.call("settled")
            self._pool(pool)
            self.cloud.prepared.get(pool, {}).pop(name, None)
            self.cloud.answer(fault, "settled")

    def _unprepared(self, pool: str) -> float:
        """Seconds until somebody may join."""
        if self.switch == "balancer":
            return 0.0
        return max(0.0, min(self.cloud.prepared.get(pool, {}).values(), default=0.0) - self.cloud.clock())

    def elsewhere(self, addresses: Collection[str]) -> Mapping[str, Sequence[str]]:
        with self.cloud.lock:
            self.cloud.call("elsewhere")
            found: dict[str, list[str]] = {}
            for pool in self.cloud.pools.keys() - self.named:
                for view in self.views(pool):
                    if view.address in addresses and view.state in ("serving", "down"):
                        found.setdefault(view.address, []).append(f"pool {pool}")
            return found

    def reaches(self, pool: str, zone: str, /) -> str:
        return self.cloud.unreached.get((pool, zone), "")

    def examine(self) -> Sequence[Finding]:
        return ()

    def rights(self, *, fleet: str) -> Sequence[Rights]:  # noqa: ARG002
        return ()

    def restore(self, pool: str, member: Member) -> MemberView:
        return self.add(pool, member)

    def add_all(self, asked: Collection[Coming]) -> Mapping[Coming, Said]:
        """One call."""
        with self.cloud.lock:
            fault = self.cloud.call("add")
            said = each(lambda one: self._add(one.pool, one.member), asked)
            self.cloud.answer(fault, "add")
            return said

    restore_all = add_all

    def remove_all(self, asked: Collection[Going]) -> Mapping[Going, Said]:
        """One call. Each is decided as those before it have left the pool."""
        with self.cloud.lock:
            fault = self.cloud.call("remove")
            said = each(self._remove, asked)
            self.cloud.answer(fault, "remove")
            return said

    def _add(self, pool: str, member: Member) -> MemberView:
        _named(member.name)
        found = self._pool(pool).get(member.name)
        if found is None:
            state = "joining" if self.steps else "serving"
            self._set(pool, MemberView(name=member.name, address=member.address, port=member.port, state=state))  # type: ignore[arg-type] # one of two states
        elif (found.address, found.port) != (member.address, member.port):
            raise Conflict(f"{member.name} is {found.address}:{found.port} in {pool}")
        elif found.state != "serving" and self._may_serve(pool, found):
            if self.switch == "one":
                others = [view for view in self._pool(pool).values() if view.state == "serving"]
                if strangers := [view.name for view in others if view.name not in (member.instead_of or [view.name])]:
                    raise Conflict(f"{strangers[0]} serves in {pool}, whose place {member.name} was not to take")
                for other in others:
                    self._drain(pool, other)
            self._set(pool, replace(found, state="serving"))
        return self._view(pool, member.name)

    def _remove(self, going: Going) -> MemberView:
        pool, name = going.pool, going.name
        _named(name)
        found = self._pool(pool).get(name)
        if found is not None:
            self._check(pool, name, going.guard)
            if found.state == "serving" and self.steps:
                self._drain(pool, found)
            elif found.state == "draining" and (self._believed(pool, found) or (self._busy(found) and not going.cut)):
                pass
            else:
                del self._pool(pool)[name]
        return self._view(pool, name)

    def counters(self, pool: str) -> PoolCounters | None:
        self._pool(pool)
        return None

    def _may_serve(self, pool: str, found: MemberView) -> bool:
        return self.cloud.healthy(found.address) and (found.state == "draining" or not self._unprepared(pool))

    def _drain(self, pool: str, found: MemberView) -> None:
        self._set(pool, replace(found, state="draining"))
        self.cloud.believed[pool, found.name] = self.cloud.clock() + (TTL if self.switch != "balancer" else 0.0)

    def _believed(self, pool: str, found: MemberView) -> bool:
        return self.cloud.clock() < self.cloud.believed.get((pool, found.name), 0.0)

    def _busy(self, found: MemberView) -> bool:
        return found.sessions > 0 and self.switch == "balancer"

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
        if found.state == "draining" and self.switch != "balancer":
            waits = self._believed(pool, found)
            return replace(found, state="draining" if waits else "leaving", actionable=not waits, sessions=0)
        idle = found.state == "draining" and not found.sessions
        joins = found.state == "joining" and healthy and not self._unprepared(pool)
        actionable = joins or idle
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
