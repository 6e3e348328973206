"""What goes wrong, as asked for: faults by service and action, token buckets, and the error bodies of each protocol."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any
from xml.sax.saxutils import escape


@dataclass(kw_only=True)
class Fault:
    """From now on the calls that `service` and `action` match (shell patterns) fail: `count` of them (-1: all), each
    with the chance `rate`. With `code` the answer is that error; with `drop` there is none, the connection is closed.
    `after`: the call has its effect first. `delay`: seconds before the answer, with or without an error. `writes`: only
    calls that change something."""

    service: str = "*"
    action: str = "*"
    code: str = ""
    message: str = "as asked for"
    http: int = 500
    drop: bool = False
    after: bool = False
    delay: float = 0.0
    count: int = 1
    rate: float = 1.0
    writes: bool = False


READS = ("Describe*", "List*", "Get*", "AssumeRole")


def changes(action: str) -> bool:
    """Whether a call of this action changes something."""
    return not any(fnmatchcase(action, pattern) for pattern in READS)


@dataclass
class Bucket:
    """`size` calls at once, then `refill` a second."""

    size: float
    refill: float
    clock: Callable[[], float] = time.monotonic
    left: float = field(init=False)
    at: float = field(init=False)

    def __post_init__(self) -> None:
        self.left, self.at = self.size, self.clock()

    def take(self) -> bool:
        now = self.clock()
        self.left, self.at = min(self.size, self.left + (now - self.at) * self.refill), now
        if self.left < 1:
            return False
        self.left -= 1
        return True


class Troubles:
    """All faults and limits of one cloud. Threads share it."""

    def __init__(self, seed: int = 1) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._limits: dict[str, tuple[float, float]] = {}
        self._buckets: dict[tuple[str, str, str], Bucket] = {}
        self._random = random.Random(seed)  # noqa: S311 - which call fails is no secret
        self.throttled = 0

    def add(self, fault: Fault) -> None:
        with self._lock:
            self._faults.append(fault)

    def clear(self) -> None:
        with self._lock:
            self._faults, self._limits, self._buckets = [], {}, {}

    def limit(self, pattern: str, *, size: float, refill: float) -> None:
        """Calls whose `service:action` matches the pattern share one bucket an account and region."""
        with self._lock:
            self._limits[pattern] = (size, refill)

    def fault(self, service: str, action: str) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.count == 0 or (fault.writes and not changes(action)):
                    continue
                if not (fnmatchcase(service, fault.service) and fnmatchcase(action, fault.action)):
                    continue
                if self._random.random() >= fault.rate:
                    continue
                fault.count -= fault.count > 0
                return fault
        return None

    def too_often(self, account: str, region: str, service: str, action: str) -> bool:
        with self._lock:
            for pattern, (size, refill) in self._limits.items():
                if fnmatchcase(f"{service}:{action}", pattern):
                    bucket = self._buckets.setdefault((account, region, pattern), Bucket(size, refill))
                    if not bucket.take():
                        self.throttled += 1
                        return True
        return False


# What each service says when it is asked too often: code and HTTP status.
THROTTLES: Mapping[str, tuple[str, int]] = {
    "ec2": ("RequestLimitExceeded", 503),
    "ssm": ("ThrottlingException", 400),
    "servicequotas": ("TooManyRequestsException", 400),
}
THROTTLE = ("Throttling", 400)
REQUESTS = 5.0  # of Route 53, a second and account
# What each says of credentials whose time is over.
EXPIRIES: Mapping[str, tuple[str, int]] = {
    "ec2": ("RequestExpired", 400),
    "ssm": ("ExpiredTokenException", 400),
    "servicequotas": ("ExpiredTokenException", 400),
}
EXPIRY = ("ExpiredToken", 403)
# What each says of a call that no policy allows.
DENIALS: Mapping[str, tuple[str, int]] = {
    "ec2": ("UnauthorizedOperation", 403),
    "ssm": ("AccessDeniedException", 400),
    "servicequotas": ("AccessDeniedException", 400),
}
DENIAL = ("AccessDenied", 403)


def error_body(service: str, code: str, message: str, request: str) -> tuple[str, bytes]:
    """Content type and body of an error, in the words of the service's own protocol."""
    said, why = escape(code), escape(message)
    match service:
        case "ssm" | "servicequotas":
            return "application/x-amz-json-1.1", json.dumps({"__type": code, "message": message}).encode()
        case "ec2":
            whole = f"<Errors><Error><Code>{said}</Code><Message>{why}</Message></Error></Errors>"
            return "text/xml", f"<Response>{whole}<RequestID>{request}</RequestID></Response>".encode()
        case _:
            whole = f"<Error><Type>Sender</Type><Code>{said}</Code><Message>{why}</Message></Error>"
            return "text/xml", f"<ErrorResponse>{whole}<RequestId>{request}</RequestId></ErrorResponse>".encode()


def fault_of(told: Mapping[str, Any]) -> Fault:
    """The fault that a JSON document describes. `TypeError` for a key that is none."""
    return Fault(**told)
