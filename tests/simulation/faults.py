"""Which misfortunes a seed has, and when they strike. A seed takes some kinds and leaves others, so that each kind is
also met alone; a few seeds have none, and there everything must go well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Final

from kombu.exceptions import OperationalError

from orchestrator.errors import Unreachable
from providers import errors

# Kind -> how often it strikes at most, per call (or message, or server, or rollout) where it may.
KINDS: Final = {
    # processes
    "crash": 0.03,  # killed where it stands
    "crash at a point": 0.08,  # killed at one of the journal's own points
    "crash in a call": 0.1,  # killed while its call is under way: the cloud does it all the same
    "freeze": 0.03,  # stopped for longer than its lease, then goes on with what it was about to do
    # messages
    "lose": 0.12,
    "double": 0.15,
    "delay": 0.15,
    "repeat": 0.08,  # comes again, long after
    "no broker": 0.04,  # publishing fails
    "flush": 0.3,  # once: every message is gone
    # the cloud
    "throttled": 0.08,
    "no answer": 0.08,
    "answer lost": 0.12,
    "late effect": 0.08,  # no answer in time, and the effect long after
    "not yet visible": 0.3,  # of what was made: it shows late
    "no capacity": 0.08,
    "refused": 0.05,
    "unauthorized": 0.01,
    "storm": 0.4,  # once: everything is throttled for two minutes
    # B, and the users of A
    "bad B": 0.3,
    "endless request": 0.4,
    # the store
    "store away": 0.01,  # nothing happens
    "store silent": 0.015,  # it happens, and the answer is lost
    "store outage": 0.4,  # once: for some seconds
    "store forgets": 0.5,  # up to three times: its last second
    "store is emptied": 0.2,  # once: it has lost everything, and somebody rebuilds it from the world
    # people, and A
    "people": 1.0,  # pause, abort, rollback, freeze ...: up to six acts
    "hands": 0.4,  # somebody deletes, stops, untags or removes things by hand
    "A dies": 0.1,
}
PROVIDER: Final = ("throttled", "no answer", "answer lost", "late effect", "no capacity", "refused", "unauthorized")
STORE: Final = ("store away", "store silent")
MAKING: Final = frozenset({"ensure_image", "ensure_server", "start"})
READING: Final = frozenset(
    {"servers", "images", "inventory", "facts", "members", "proven", "idle", "check", "compare", "counters"}
)


class Faults:
    """`struck` counts what struck where: (kind, place)."""

    def __init__(self, random: Random, *, calm: bool) -> None:
        self.random = random
        self.active = False
        self.struck: Counter[tuple[str, str]] = Counter()
        share = random.choice((0.15, 0.3, 0.6, 1.0))
        self.rates = {
            kind: rate * random.uniform(0.2, 1.0)
            for kind, rate in KINDS.items()
            if random.random() < share and not calm
        }
        self._sums: dict[tuple[str, ...], float] = {}

    def _any_of(self, kinds: tuple[str, ...]) -> float:
        """How often one of them strikes; a little too often rather than too seldom."""
        found = self._sums.get(kinds)
        if found is None:
            found = self._sums[kinds] = sum(self.rates.get(kind, 0.0) for kind in kinds) + 1e-9
        return found

    def strikes(self, kind: str, place: str) -> bool:
        if not self.active:
            return False
        rate = self.rates.get(kind)
        if rate is None or self.random.random() >= rate:
            return False
        self.struck[kind, place] += 1
        return True

    def one_of(self, kinds: tuple[str, ...], place: str) -> str:
        """Which of these strikes, if any: one draw for all of them."""
        if not self.active:
            return ""
        draw = self.random.random()
        if draw >= self._any_of(kinds):
            return ""
        for kind in kinds:
            draw -= self.rates.get(kind, 0.0)
            if draw < 0:
                self.struck[kind, place] += 1
                return kind
        return ""


RAISED: Final[dict[str, Callable[[str], Exception]]] = {
    "throttled": lambda what: errors.Throttled(f"{what}: slow down", retry_after=3.0),
    "no answer": lambda what: errors.Transient(f"{what}: no answer", ambiguous=False),
    "answer lost": lambda what: errors.Transient(f"{what}: the answer was lost", ambiguous=True),
    "late effect": lambda what: errors.Transient(f"{what}: no answer in time", ambiguous=True),
    "no capacity": lambda what: errors.NoCapacity(f"{what}: no room"),
    "refused": lambda what: errors.Refused(f"{what}: no"),
    "unauthorized": lambda what: errors.Unauthorized(f"{what}: who are you"),
    "not yet visible": lambda what: errors.NotYetVisible(f"{what}: not yet"),
    "store away": lambda what: Unreachable(f"{what}: Redis does not answer"),
    "store silent": lambda what: Unreachable(f"{what}: Redis did not answer in time"),
    "no broker": lambda what: OperationalError(f"{what}: the broker does not answer"),
}
