"""The shape of each JSON document that `orchestrator.schema` writes: what a program may rely on, and what the API's
OpenAPI description says. Within v1 keys are only added.

Times are seconds of the epoch, or null. `confirmed`: whether a replica of Redis has it too; null where it has none.
"""

from __future__ import annotations

from typing import (
    Any,
    NotRequired,  # pydantic reads those of `typing` from Python 3.12 on only
)

from typing_extensions import TypedDict


class Document(TypedDict):
    """`schema`, the first key of every answer, is `changeover/v1/` and the document's kind."""

    schema: NotRequired[str]


class Approval(TypedDict):
    """What a wave waits for, numbered from 0: so many people, of `by` where it names any; `until` then `otherwise`."""

    wave: int
    count: int
    by: list[str]
    approved_by: list[str]
    until: float | None
    otherwise: str


class Rollout(TypedDict):
    """`approval` and `opens_at` where it waits for them."""

    id: str
    fleet: str
    plan: str
    state: str
    why: str
    alarm: str
    version: int
    wave: int
    waves: list[list[str]]
    max_in_flight: int
    allowed_failures: int
    created_at: float
    created_by: str
    paused_at: float | None
    bake_until: float | None
    approval: Approval | None
    opens_at: float | None
    ended_at: float | None
    closed: bool


class Listed(Rollout):
    """`counts`: servers by state."""

    counts: dict[str, int]


class Upgrade(TypedDict):
    """One server's way."""

    server: str
    wave: int
    domain: str
    state: str
    direction: str
    step: str
    why: str
    cause: str
    traffic: str
    attempts: dict[str, int]
    tries: int
    deadline: float | None
    waits_for: str | None
    looks_at: float | None
    results: dict[str, dict[str, Any]]
    admitted_at: float | None
    ended_at: float | None
    retain_until: float | None
    old_gone: bool
    by_hand: str
    ails: str | None
    keeps_old: str | None


class Bucket(TypedDict):
    """How often all workers together ask an API, a second, since it refused a call as one too many."""

    rate: float
    refused: int
    refused_at: float


class Event(Document):
    """`server` is empty for the rollout's own; `n` counts a server's events from 1, without a gap."""

    id: str
    at: float
    server: str
    n: int
    event: str
    actor: str
    was: str
    now: str
    detail: dict[str, Any]


class Plan(Document):
    id: str
    hash: str
    fleet: str
    created_at: float
    waves: list[list[str]]
    target: dict[str, Any]
    servers: list[dict[str, Any]]
    pools: list[dict[str, Any]]
    blockers: list[str]
    caveats: list[str]
    least_seconds: float
    provider_calls: int
    changes: int


class Applied(Document):
    rollout: Rollout
    confirmed: bool | None
    next: str


class Rollouts(Document):
    """`unread`: what cannot be read, a rollout or `rollout/server`, and why."""

    frozen: str | None
    rollouts: list[Listed]
    unread: dict[str, str]


class Shown(Document):
    """`exit_code`: what `changeover watch` would end with now."""

    rollout: Rollout
    counts: dict[str, int]
    frozen: str | None
    servers: list[Upgrade]
    unread: dict[str, str]
    orphans: list[str]
    exit_code: int
    next: str


class Servers(Document):
    servers: list[Upgrade]
    unread: dict[str, str]


class Story(Document):
    """`server` is null if its record cannot be read, and `unread` says why."""

    rollout: Rollout
    server: Upgrade | None
    unread: str | None
    events: list[Event]
    slowed: dict[str, Bucket]
    next: str


class Events(Document):
    """`next`: what to ask for the events that follow these; the id of the last one."""

    events: list[Event]
    next: str


class Answer(Document):
    """`changed`: whether it was this request that did it. `in_flight`: servers under way when it was asked."""

    verb: str
    changed: bool
    confirmed: bool | None
    rollout: Rollout
    in_flight: list[Upgrade]
    servers: list[Upgrade]
    unread: dict[str, str]
    next: str


class Freeze(Document):
    """`frozen`: why, and by whom; null when not frozen. `in_flight` counts servers under way in all rollouts."""

    frozen: str | None
    changed: bool
    confirmed: bool | None
    in_flight: int
    next: str


class Report(Document):
    """`uncertified`: why the report has no certificate, where the balancers could not be asked."""

    report: dict[str, Any]
    uncertified: str | None


class Delivery(TypedDict):
    """What came in by a webhook. `key`: the sender's id of it. `state`: waiting, done, failed or ignored, and `why`.
    `rollout`: the id under which a start makes its rollout; `due`: when it is tried next."""

    id: str
    hook: str
    key: str
    event: str
    verb: str
    fleet: str
    rollout: str
    state: str
    why: str
    attempts: int
    received_at: float
    due: float | None


class Received(Document):
    """`again`: it had come before, and nothing follows of its coming once more."""

    delivery: str
    state: str
    again: bool
    confirmed: bool | None


class Deliveries(Document):
    deliveries: list[Delivery]


class DeliveryShown(Document):
    delivery: Delivery


class Redelivered(Document):
    """`changed`: whether it was this request that did it."""

    delivery: Delivery
    changed: bool
    confirmed: bool | None
    next: str


class Health(Document):
    ok: bool


class Readiness(Document):
    """`workers`: how many live. `why`: what is missing, where it is not ready."""

    ready: bool
    workers: int
    why: str


class Fault(TypedDict):
    """`pointer` is a JSON pointer (RFC 6901) into the body, or into the fleet file; or names a parameter."""

    pointer: str
    detail: str


class Problem(TypedDict):
    """Problem details (RFC 9457). `type` is stable. `retryable`: the same request may go through later. `traffic`:
    where users are served now. `next`: what to do."""

    type: str
    title: str
    status: int
    detail: str
    retryable: bool
    traffic: str
    next: str
    errors: NotRequired[list[Fault]]
    instance: NotRequired[str]
