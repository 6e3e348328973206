"""What a person or a program is told when something cannot be done.

ChangeoverError              every message says what happened; `traffic` where users are served now; `next` one command
├── BadInput                 the file, the argument or the request is wrong, at `place`; nothing was changed   exit 64
├── NotFound                 no such plan, rollout or server                                               exit 64
├── Unreachable              Redis or the host does not answer; nothing half done                            exit 69
├── UnsafeStore              Redis answers but would lose what it is told (eviction, no AOF, full)             exit 69
├── Conflict                 it would go against something that holds                                        exit 1
│   ├── Outdated             the rollout is no longer as whoever asks has seen it
│   ├── PlanMoved            the world is no longer what the plan saw
│   ├── Locked               another rollout owns the server
│   ├── PointOfNoReturn      the old server is being terminated, or is gone
│   └── IllegalTransition    that event does not apply to that state
├── Fenced                   this worker no longer owns what it works on: stop at once, no further call
└── WaitTimeout              what was waited for did not happen in time                                      exit 124
"""

from __future__ import annotations

from collections.abc import Sequence


class ChangeoverError(Exception):
    """Base. `exit_code` is what the command line ends with."""

    exit_code = 1

    def __init__(self, message: str, *, traffic: str = "", next: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.traffic = traffic
        self.next = next

    def __str__(self) -> str:
        parts = [self.message]
        if self.traffic:
            parts.append(f"Traffic: {self.traffic}.")
        if self.next:
            parts.append(f"Next: {self.next}")
        return " ".join(parts)


class BadInput(ChangeoverError):
    """`place` is where, for example `fleet.yaml:12: servers[3].name`. `faults` are the single ones, each with its JSON
    pointer into what was read, where they are known."""

    exit_code = 64

    def __init__(
        self, message: str, *, place: str = "", next: str = "", faults: Sequence[tuple[str, str]] = ()
    ) -> None:
        super().__init__(f"{place}: {message}" if place else message, next=next)
        self.place = place
        self.faults = tuple(faults)


class NotFound(ChangeoverError):
    exit_code = 64


class Unreachable(ChangeoverError):
    exit_code = 69


class UnsafeStore(ChangeoverError):
    exit_code = 69


class Conflict(ChangeoverError): ...


class Outdated(Conflict): ...


class PlanMoved(Conflict): ...


class Locked(Conflict): ...


class PointOfNoReturn(Conflict): ...


class IllegalTransition(Conflict): ...


class Fenced(ChangeoverError): ...


class WaitTimeout(ChangeoverError):
    exit_code = 124


def traffic_of(error: ChangeoverError) -> str:
    """Where users are served, of an error that does not say it itself."""
    match error:
        case _ if error.traffic:
            return error.traffic
        case BadInput() | NotFound():
            return "unchanged; nothing was created"
        case Unreachable() | UnsafeStore():
            return "every site goes on serving as it is; nothing was left half done"
        case WaitTimeout():
            return "unchanged by this command"
        case Conflict():
            return "unchanged; nothing was done"
        case _:
            return "unchanged by this command; the record says where it is"


def next_of(error: ChangeoverError) -> str:
    """The next command, after an error that does not say it itself."""
    match error:
        case _ if error.next:
            return error.next
        case BadInput():
            return "changeover --help"
        case Unreachable() | UnsafeStore():
            return "changeover up, or set CHANGEOVER_REDIS_URL"
        case _:
            return "changeover rollouts"
