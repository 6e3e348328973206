"""What a user would see, asked by address before any user is sent there: what a probe promises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request as a user of `url` would send it. `url` has the site's own host name; it is used for Host, SNI and
    certificate verification, while the connection goes to the probed address. `ca` is a path of a PEM bundle that
    replaces the system's. Seconds. `secrets` are values in it that nobody may read in an outcome or a comparison: where
    a server sends them back they are hidden before anything is judged."""

    url: str
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""
    timeout: float = 5.0
    ca: str = ""
    secrets: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True, kw_only=True)
class Expect:
    """What a good answer is. `headers` maps a name to a regular expression that must be found in its value.
    `latency` in seconds, measured until the body was read."""

    status: tuple[int, ...] = (200,)
    headers: Mapping[str, str] = field(default_factory=dict)
    body_contains: tuple[str, ...] = ()
    body_matches: str = ""
    latency: float | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How it went. `why` is empty when it passed, else one line: what was asked, at which address, what came."""

    passed: bool
    why: str
    status: int = 0
    latency: float = 0.0
    evidence: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The same request to the old and the new server. `differences` are unified-diff lines after masking."""

    same: bool
    differences: tuple[str, ...]
    masked: tuple[str, ...] = ()


class Probe(Protocol):
    def check(self, address: str, port: int, request: Request, expect: Expect) -> Outcome:
        """Ask once, follow nothing, read at most 1 MiB. Never raises for what the server did: that is an Outcome."""
        ...

    def compare(
        self, old: tuple[str, int], new: tuple[str, int], request: Request, *, masks: tuple[str, ...]
    ) -> Comparison:
        """Ask the old one twice and the new one once; what differs between the old one's two answers is volatile and
        masked, as are the matches of the regular expressions `masks`; then status, content-type, location,
        cache-control, the names of cookies, and the body must be equal. Refuses methods other than GET and HEAD."""
        ...
