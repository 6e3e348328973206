"""Who may ask what over the network: a token's scopes, its fleets, and until when it holds; and the visit of a browser,
which may what its token may. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Scope = Literal["read", "plan", "run", "approve", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

SESSIONS = 20  # of one token at a time


@dataclass(frozen=True, kw_only=True)
class Token:
    """What is kept of one: `digest` is the SHA-256 of what was shown once. Without `fleets` it is for all of them.
    Times in epoch seconds; `used_at` is about a minute coarse."""

    id: str
    name: str
    digest: str
    scopes: tuple[Scope, ...]
    fleets: tuple[str, ...] = ()
    created_at: float
    created_by: str
    expires_at: float | None = None
    revoked_at: float | None = None
    used_at: float | None = None

    def holds(self, now: float) -> bool:
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def may(self, scope: Scope) -> bool:
        """`admin` may everything."""
        return scope in self.scopes or "admin" in self.scopes

    def sees(self, fleet: str) -> bool:
        return not self.fleets or fleet in self.fleets


@dataclass(frozen=True, kw_only=True)
class Session:
    """A browser that is let in as whoever has the token with that id, until then (epoch seconds). `link`: not yet a
    browser, but an address by which one can come in, once."""

    token: str
    until: float
    link: bool = False
