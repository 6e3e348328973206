"""Pools that are names, as a step comes and goes with their members."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from providers.errors import Busy, Transient
from providers.traffic import Guard, Member, MemberView, Traffic
from tests.support.haproxy import until

NO_GUARD = Guard(min_healthy=0)
A, B, C = "192.0.2.1", "192.0.2.2", "192.0.2.3"  # nobody is there: these tests ask no server whether it is well


class Server(Protocol):
    def put(self, name: str, type: str, ttl: int, *values: str) -> None: ...

    def get(self, name: str, type: str = "A") -> tuple[int, set[str]]: ...

    def settings(self, pools: dict[str, int], **changes: Any) -> dict[str, Any]: ...


def look(traffic: Traffic, pool: str, name: str) -> MemberView:
    return traffic.proven([(pool, name)])[pool, name]


def bring_in(traffic: Traffic, pool: str, member: Member, *, back: bool = False) -> None:
    act = traffic.restore if back else traffic.add
    until(lambda: act(pool, member).state == "serving", what=f"{member.name} serves", seconds=30)


def take_out(traffic: Traffic, pool: str, name: str, guard: Guard = NO_GUARD) -> None:
    def gone() -> bool:
        return traffic.remove(pool, name, guard=guard, cut=False).state == "absent"

    until(gone, what=f"{name} is out", seconds=30)


def the_new(address: str = B, name: str = "web-1.g2") -> Member:
    return Member(name=name, address=address, port=80)


def patient(act: Callable[[], bool]) -> None:
    """As a step does it: where somebody is busy, or has not answered in time, it comes again."""

    def once() -> bool:
        try:
            return act()
        except (Busy, Transient):
            return False

    until(once, seconds=60)
