"""What a rollout proves about its users, in exact numbers.

With N requests observed and k failed, the share of all requests that fail lies, with 95 % confidence, at or below the
one-sided Clopper-Pearson bound: the share p at which k or fewer failures out of N would happen in 5 % of all cases.
For k = 0 that is 1 - 0.05 ** (1 / N). (Clopper and Pearson, Biometrika 26, 1934.)
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

CONFIDENCE = 0.95

Verdict = Literal["held", "broken", "unproven"]


@dataclass(frozen=True, kw_only=True)
class Orders:
    """Writes that can be counted on both sides. `sent` by users, `acknowledged` to them, `stored` in the database;
    `repeated`: stored more than once; `lost`: acknowledged and not stored."""

    sent: int
    acknowledged: int
    stored: int
    repeated: int
    lost: int


@dataclass(frozen=True, kw_only=True)
class Sessions:
    """Long requests of one kind. `whole` ended as planned, `cut` before, `refused` never began."""

    whole: int
    cut: int
    refused: int


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What users saw. `requests` includes every order, download and WebSocket; `failed` is a part of it."""

    requests: int
    failed: int
    orders: Orders | None = None
    downloads: Sessions | None = None
    websockets: Sessions | None = None


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """`held`: not one request failed. `broken`: `faults` says what did. `unproven`: nobody looked.

    `bound` is the share of requests, 0 to 1, that fail at most, with confidence `confidence`.
    """

    observed: Observed
    verdict: Verdict
    bound: float
    confidence: float
    faults: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with the plain text beside the numbers."""
        return {**asdict(self), "faults": list(self.faults), "lines": list(self.lines())}

    def lines(self) -> tuple[str, ...]:
        """For people: one sentence a line."""
        seen = self.observed
        if self.verdict == "unproven":
            return ("No request was observed, so nothing is proven.",)
        told = [f"{count(seen.requests, 'request')} observed, {f'{seen.failed:,}' if seen.failed else 'none'} failed."]
        told.append(f"With {self.confidence * 100:g} % confidence at most {share(self.bound)} of all requests fail.")
        if seen.orders:
            told.append(tell_orders(seen.orders))
        for name, sessions in (("download", seen.downloads), ("WebSocket", seen.websockets)):
            if sessions:
                told.append(tell_sessions(name, sessions))
        return tuple(told)


def certify(observed: Observed) -> Certificate:
    """The certificate of what was observed. Raises ValueError for counts that cannot be."""
    faults = find_faults(observed)
    verdict: Verdict = "broken" if faults else "held" if observed.requests else "unproven"
    bound = upper_bound(requests=observed.requests, failed=observed.failed)
    return Certificate(observed=observed, verdict=verdict, bound=bound, confidence=CONFIDENCE, faults=faults)


def find_faults(observed: Observed) -> tuple[str, ...]:
    """Everything that a user would complain of, in words."""
    faults = [f"{count(observed.failed, 'request')} failed"] if observed.failed else []
    if orders := observed.orders:
        missing, surplus = orders.sent - orders.stored, orders.stored - orders.sent
        faults += [f"{count(orders.lost, 'order')} acknowledged and not stored"] if orders.lost else []
        faults += [f"{count(orders.repeated, 'order')} stored more than once"] if orders.repeated else []
        faults += [f"{count(missing, 'order')} sent and not stored"] if missing > 0 else []
        faults += [f"{count(surplus, 'order')} stored that nobody sent"] if surplus > 0 else []
    for name, sessions in (("download", observed.downloads), ("WebSocket", observed.websockets)):
        if sessions:
            faults += [f"{count(sessions.cut, name)} cut"] if sessions.cut else []
            faults += [f"{count(sessions.refused, name)} refused"] if sessions.refused else []
    return tuple(faults)


def upper_bound(*, requests: int, failed: int, confidence: float = CONFIDENCE) -> float:
    """The largest share of failures that these counts do not rule out. 1.0 for no requests: nothing is ruled out."""
    if not 0 <= failed <= requests:
        raise ValueError(f"{failed} failed of {requests} requests cannot be")
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence lies between 0 and 1, and {confidence} does not")
    risk = 1 - confidence
    if failed == requests:
        return 1.0
    if failed == 0:
        return -math.expm1(math.log(risk) / requests)
    low, high = failed / requests, 1.0
    while low < (middle := (low + high) / 2) < high:  # until no number lies between them
        if at_most(failed, requests=requests, p=middle) > risk:
            low = middle
        else:
            high = middle
    return high


def at_most(failed: int, *, requests: int, p: float) -> float:
    """The chance of `failed` or fewer failures, where each request fails with chance `p` > failed / requests.

    Summed downwards from the largest term, each from the one before, until the rest cannot be seen.
    """
    log_term = (
        math.lgamma(requests + 1)
        - math.lgamma(failed + 1)
        - math.lgamma(requests - failed + 1)
        + failed * math.log(p)
        + (requests - failed) * math.log1p(-p)
    )
    total = term = 1.0  # in units of the largest term
    for k in range(failed, 0, -1):
        term *= k / (requests - k + 1) * (1 - p) / p
        total += term
        if term < total * 1e-17:
            break
    return min(1.0, math.exp(log_term + math.log(total)))


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def share(value: float) -> str:
    """As a percentage, rounded up in its third digit, since a bound must not come out smaller than it is."""
    if value >= 1:
        return "100 %"
    percent = value * 100
    digits = 2 - math.floor(math.log10(percent))
    scaled = math.ceil(percent * 10**digits * (1 - 1e-12)) / 10**digits
    return f"{scaled:.{max(0, digits)}f} %"


def tell_orders(orders: Orders) -> str:
    if orders.sent == orders.stored and not (orders.lost or orders.repeated):
        return f"{count(orders.sent, 'order')} sent, {orders.stored:,} stored, each once."
    return (
        f"{count(orders.sent, 'order')} sent, {orders.acknowledged:,} acknowledged, {orders.stored:,} stored, "
        f"{orders.repeated:,} of them more than once, {orders.lost:,} lost."
    )


def tell_sessions(name: str, sessions: Sessions) -> str:
    begun = count(sessions.whole + sessions.cut + sessions.refused, name)
    if not (sessions.cut or sessions.refused):
        return f"{begun}, none cut."
    return f"{begun}, {sessions.cut:,} cut, {sessions.refused:,} refused."
