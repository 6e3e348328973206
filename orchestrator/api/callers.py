"""Who asks: bearer tokens, what they may, and how often."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated

import anyio
from fastapi import Depends
from starlette.requests import Request

from orchestrator import tokens
from orchestrator.api.problems import Problem
from orchestrator.domain.token import Scope, Token
from orchestrator.store import Store

BURST = 4.0  # seconds' worth of requests that may come at once
_MOST = 10_000  # tokens whose pace is remembered


@dataclass(kw_only=True)
class Pace:
    """How often each token may ask, in this process: `rate` a second, and some at once."""

    rate: float
    monotonic: Callable[[], float] = time.monotonic
    _left: dict[str, tuple[float, float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def wait(self, who: str) -> float:
        """Seconds until it may ask; 0: now, and this was it."""
        now, most = self.monotonic(), max(1.0, self.rate * BURST)
        with self._lock:
            left, at = self._left.pop(who, (most, now))
            left = min(most, left + (now - at) * self.rate)
            if left >= 1:
                left, wait = left - 1, 0.0
            else:
                wait = (1 - left) / self.rate
            self._left[who] = (left, now)  # at the end: who has not asked for longest is first
            if len(self._left) > _MOST:
                del self._left[next(iter(self._left))]
            return wait


@dataclass(frozen=True, kw_only=True)
class Caller:
    """`actor` is what the audit log says."""

    token: Token

    @property
    def actor(self) -> str:
        return f"{self.token.name} ({self.token.id})"


async def caller(request: Request) -> Caller:
    """Whose token it is. Every reason for which nobody is let in gets the same answer."""
    store: Store = request.app.state.api.store
    pace: Pace = request.app.state.api.pace
    given = request.headers.getlist("authorization")
    scheme, _, shown = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    bearer = scheme.lower() == "bearer"
    found = await anyio.to_thread.run_sync(tokens.whose, store, shown) if bearer else None
    if found is None:
        raise Problem(
            "unauthorized",
            "Authorization: Bearer TOKEN is wanted, with a token that holds",
            next="changeover token create --help",
            headers={"WWW-Authenticate": "Bearer"},
        )
    refuse_haste(pace, found)
    known = Caller(token=found)
    request.state.caller = known
    return known


def refuse_haste(pace: Pace, token: Token) -> None:
    if wait := pace.wait(token.id):
        told = f"this token may ask {pace.rate:g} times a second"
        raise Problem("too-many-requests", told, headers={"Retry-After": str(int(wait) + 1)})


def needs(scope: Scope) -> Callable[..., Awaitable[Caller]]:
    async def allowed(known: Annotated[Caller, Depends(caller)]) -> Caller:
        refuse_scope(known, scope)
        return known

    return allowed


def refuse_scope(known: Caller, scope: Scope) -> None:
    if not known.token.may(scope):
        has = ", ".join(known.token.scopes)
        raise Problem("forbidden", f"this needs the scope {scope}; this token has {has}", next=_OTHER)


def refuse_part(known: Caller) -> None:
    """For what concerns all fleets at once."""
    if known.token.fleets:
        raise Problem("forbidden", f"this concerns every fleet; this token is for {_fleets(known)}", next=_OTHER)


def refuse_fleet(known: Caller, fleet: str) -> None:
    if not known.token.sees(fleet):
        raise Problem("forbidden", f"this token is not for the fleet {fleet}, but {_fleets(known)}", next=_OTHER)


def _fleets(known: Caller) -> str:
    return ", ".join(known.token.fleets)


_OTHER = "use another token: changeover token create --help"
Reader = Annotated[Caller, Depends(needs("read"))]
Planner = Annotated[Caller, Depends(needs("plan"))]
Runner = Annotated[Caller, Depends(needs("run"))]
Admin = Annotated[Caller, Depends(needs("admin"))]
