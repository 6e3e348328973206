"""Checks that run inside a server: what a guest provider promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from providers import Caps, Finding
from providers.guest.quiesce import Hook
from providers.rights import Rights


@dataclass(frozen=True, kw_only=True)
class PathFacts:
    """Of one path in the server. `mode` as octal text such as "0640"; owner and group by name, or number if unnamed.
    `kind` is file, directory, link, other or missing."""

    path: str
    kind: str
    mode: str = ""
    owner: str = ""
    group: str = ""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What one look inside a server found. Bytes. `clock_offset` is seconds against the asker's clock.

    `memory_total` is the limit that holds for the server's processes, read back from where it is enforced.
    `connections`: TCP connections that are open at each port where the server listens, by the port's number as text;
    None if that cannot be seen from inside.
    """

    server: str
    boot: str
    disk_total: int
    disk_used: int
    memory_total: int
    memory_used: int
    paths: tuple[PathFacts, ...] = ()
    listening: tuple[int, ...] = ()
    connections: Mapping[str, int] | None = None
    failed_units: tuple[str, ...] = ()
    clock_offset: float = 0.0
    extra: Mapping[str, str] = field(default_factory=dict)


class Guest(Protocol):
    @property
    def caps(self) -> Caps: ...

    def facts(self, ids: Sequence[str], *, paths: Sequence[str]) -> Mapping[str, Facts]:
        """Facts of those servers that answer, read-only, in one call per `caps.batch`. A server that does not
        answer (still booting, gone) is left out and harms no other. `paths` are looked at inside the server, and
        nothing outside it is ever read, whatever a path says."""
        ...

    def quiesce(self, id: str, key: str, /, *, hook: Hook, by: float) -> None:
        """After it returns, `hook.before` has ended well inside that server, and a watchdog of the server itself will
        run `hook.after` in `hook.seconds`, unless `release` has: nobody else is needed for that. What was on before,
        of whatever key, was released first. `Refused` if `before` did not end well in `COMMAND_SECONDS`, and then
        nothing is on; or if by the server's own clock it is later than `by` (epoch seconds): who comes so late was cut
        off. An answer that was lost is `Transient`, ambiguous: it may be on until its time is over."""
        ...

    def release(self, id: str, key: str, /, *, hook: Hook) -> bool:
        """After it returns, nothing is on inside that server, of whatever key. True if what this key has begun was on
        until now, or until a former `release` of the key; False if it was over before, or never began. `Refused` while
        `after` does not end well: its watchdog goes on trying. `Transient` if the server does not answer."""
        ...

    def examine(self, ids: Sequence[str]) -> Sequence[Finding]:
        """What a doctor should say of the way into these servers. Changes nothing, and raises nothing that it can tell
        as a finding."""
        ...

    def rights(self, *, fleet: str) -> Sequence[Rights]:
        """What credentials have to allow for such looks, and no more. No call is made."""
        ...
