"""Refusals as problem details (RFC 9457). Their types are stable; docs/api.md lists them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from starlette.responses import JSONResponse

from orchestrator.documents import Fault
from orchestrator.documents import Problem as Document
from orchestrator.errors import (
    BadInput,
    ChangeoverError,
    Conflict,
    IllegalTransition,
    Locked,
    NotFound,
    Outdated,
    PlanMoved,
    PointOfNoReturn,
    Unreachable,
    UnsafeStore,
    WaitTimeout,
    next_of,
    traffic_of,
)

MEDIA = "application/problem+json"
PREFIX = "urn:changeover:problem:"
MORE = 5  # seconds after which it is worth asking again
# By the end of the type: status and title.
KINDS: Mapping[str, tuple[int, str]] = {
    "malformed": (400, "The request cannot be read"),
    "unauthorized": (401, "No valid token"),
    "unsigned": (401, "No valid signature"),
    "forbidden": (403, "This token may not do that"),
    "not-found": (404, "There is no such thing"),
    "method-not-allowed": (405, "That cannot be done to it"),
    "too-slow": (408, "The body took too long"),
    "conflict": (409, "It would go against something that holds"),
    "plan-moved": (409, "The world is no longer what the plan saw"),
    "locked": (409, "Another rollout has the server"),
    "point-of-no-return": (409, "The old server is gone, or about to be"),
    "illegal-transition": (409, "Not in this state"),
    "in-progress": (409, "The same request is being worked on"),
    "outdated": (412, "It was changed since you looked"),
    "too-large": (413, "The body is too large"),
    "unsupported-media-type": (415, "The body is of the wrong kind"),
    "bad-input": (422, "Something in it is wrong"),
    "key-reused": (422, "The Idempotency-Key stands for another request"),
    "too-many-requests": (429, "Asked too often"),
    "internal": (500, "Something unexpected happened"),
    "world-unread": (502, "A worker could not read the world"),
    "unreachable": (503, "Redis or the broker does not answer"),
    "unsafe-store": (503, "Redis would lose what it is told"),
    "timeout": (504, "No worker answered in time"),
}
RETRYABLE = frozenset(
    {"too-slow", "in-progress", "too-many-requests", "world-unread", "unreachable", "unsafe-store", "timeout"}
)
OF: Sequence[tuple[type[ChangeoverError], str]] = (
    (BadInput, "bad-input"),
    (NotFound, "not-found"),
    (Unreachable, "unreachable"),
    (UnsafeStore, "unsafe-store"),
    (WaitTimeout, "timeout"),
    (Outdated, "outdated"),
    (PlanMoved, "plan-moved"),
    (Locked, "locked"),
    (PointOfNoReturn, "point-of-no-return"),
    (IllegalTransition, "illegal-transition"),
    (Conflict, "conflict"),
)


class Problem(Exception):  # RFC 9457's word for it
    """`kind` is the end of its type. `headers` go with the answer."""

    def __init__(
        self,
        kind: str,
        detail: str,
        *,
        next: str = "see docs/api.md",
        traffic: str = "unchanged; nothing was done",
        faults: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        instance: str = "",
    ) -> None:
        super().__init__(detail)
        self.kind, self.status, self.headers = kind, KINDS[kind][0], dict(headers or {})
        if kind in RETRYABLE:
            self.headers.setdefault("Retry-After", str(MORE))
        self.document: Document = {
            "type": PREFIX + kind,
            "title": KINDS[kind][1],
            "status": self.status,
            "detail": detail,
            "retryable": kind in RETRYABLE,
            "traffic": traffic,
            "next": next,
        }
        if faults:
            self.document["errors"] = [Fault(pointer=pointer, detail=what) for pointer, what in faults]
        if instance:
            self.document["instance"] = instance

    def response(self) -> JSONResponse:
        return JSONResponse(self.document, status_code=self.status, headers=self.headers, media_type=MEDIA)


def problem_of(error: ChangeoverError) -> Problem:
    kind = next((kind for type, kind in OF if isinstance(error, type)), "world-unread")
    faults = error.faults if isinstance(error, BadInput) else ()
    return Problem(kind, error.message, next=next_of(error), traffic=traffic_of(error), faults=faults)
