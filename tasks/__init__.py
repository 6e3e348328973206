"""One step per file: do, check, undo. This page binds them to Celery by name; it is read by workers only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import structlog
from celery import Celery
from celery.exceptions import Retry

from orchestrator import secrets, tracing
from orchestrator.domain.steps import RETIRE, STEPS, task_name
from orchestrator.domain.upgrade import FIRST, SCHEMA
from orchestrator.errors import ChangeoverError
from tasks import (
    create_image,
    drain_old,
    notify,
    observe,
    orphans,
    patrol,
    poll_readiness,
    provision,
    retire,
    smoke_test,
    survey,
    swap,
)
from tasks.step import Ran, Step, run
from tasks.world import World

log = structlog.get_logger()

BODIES: Mapping[str, Step] = {
    name: cast(Step, module)
    for name, module in {
        "create_image": create_image,
        "provision": provision,
        "poll_readiness": poll_readiness,
        "smoke_test": smoke_test,
        "swap": swap,
        "drain_old": drain_old,
        RETIRE: retire,
    }.items()
}

# What a person's command asks of a worker, and waits for.
QUESTIONS: Mapping[str, Callable[..., Mapping[str, Any]]] = {
    "survey": survey.survey,
    "doctor": survey.doctor,
    "whereabouts": survey.whereabouts,
    "findings": survey.findings,
    "collect": orphans.collect,
}


class WaitingFor(Exception):
    """What a parked step waits for, as Flower and the result backend show it."""


class Parked(Retry):  # type: ignore[misc] # celery has no types
    """Ends a message whose step waits: acknowledged, the rest of its chain not sent, nothing held anywhere."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, exc=WaitingFor(reason))
        self.reason = reason

    def __reduce__(self) -> tuple[type[Parked], tuple[str]]:
        return Parked, (self.reason,)

    def __repr__(self) -> str:
        return self.reason

    __str__ = __repr__


class SetAside(Exception):
    """Ends the message of a step that failed for good: its upgrade goes back, and the rest of its chain is void."""


def register(app: Celery, world: World) -> None:
    """Give the app the body of every task, by the names that the orchestrator sends. Another app of this process, which
    only sends, is not given them."""
    for step in (*STEPS, RETIRE):
        _register_step(app, world, step, undo=False)
        if step != RETIRE:
            _register_step(app, world, step, undo=True)

    @app.task(name="tasks.observe", ignore_result=True, shared=False)  # type: ignore[untyped-decorator] # celery has no types
    def look(*, lane: str, ticket: str) -> Mapping[str, Any]:
        with _unspoken():
            return observe.run(world, BODIES, lane=lane, ticket=ticket)

    @app.task(name="tasks.patrol", ignore_result=True, shared=False)  # type: ignore[untyped-decorator] # celery has no types
    def look_after(*, rollout: str) -> Mapping[str, Any]:
        with _unspoken():
            return patrol.run(world, rollout=rollout)

    @app.task(name="tasks.notify", ignore_result=True, shared=False)  # type: ignore[untyped-decorator] # celery has no types
    def tell(*, receiver: str, rollout: str) -> Mapping[str, Any]:
        with _unspoken():
            return notify.run(world, receiver=receiver, rollout=rollout)

    @app.task(name="tasks.scan", ignore_result=True, shared=False)  # type: ignore[untyped-decorator] # celery has no types
    def scan(*, lane: str) -> Mapping[str, Any]:
        with _unspoken():
            return orphans.scan(world, lane=lane)

    for name in QUESTIONS:
        _register_question(app, world, name)


def _register_step(app: Celery, world: World, step: str, *, undo: bool) -> None:
    @app.task(name=task_name(step, undo=undo), bind=True, throws=(SetAside,), shared=False)  # type: ignore[untyped-decorator] # celery has no types
    def body(self: Any, **said: Any) -> Mapping[str, Any]:
        """`said`: `rollout`, `server` and `epoch`; of another schema it may be anything."""
        if (why := refused(self.request.get("schema"))) is not None:
            log.warning("message left alone", task=self.name, id=self.request.id, why=why)
            return _end(self, Ran(result={"ignored": why}, goes_on=False))
        with _unspoken(), tracing.step(self.name, **said):
            ran = run(world, BODIES[step], step, undo=undo, **said)
        return _end(self, ran)


def refused(schema: object) -> str | None:
    """Why a message of that schema is not for us; None if it is. One that names none is of the first."""
    said = FIRST if schema is None else schema
    if isinstance(said, int) and max(FIRST, SCHEMA - 1) <= said <= SCHEMA:
        return None
    return f"message of schema {said}, this version reads up to {SCHEMA}"


def _end(task: Any, ran: Ran) -> Mapping[str, Any]:
    """A step that waits parks its message; one that ends its chain drops the rest of it."""
    if ran.parked:
        raise Parked(secrets.redact(ran.parked))
    if ran.failed:
        raise SetAside(secrets.redact(ran.failed))
    if not ran.goes_on:
        task.request.chain = None
    result: Mapping[str, Any] = secrets.redacted(dict(ran.result))
    return result


class Unspoken(Exception):
    """An error whose own words held a secret: these are the same without it."""


@contextmanager
def _unspoken() -> Iterator[None]:
    """Celery keeps an exception's words as a result and sends them to Flower: none of them is a secret."""
    try:
        yield
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        if secrets.redact(said) == said:
            raise
        raise Unspoken(secrets.redact(said)) from None


def _register_question(app: Celery, world: World, name: str) -> None:
    @app.task(name=f"tasks.{name}", ignore_result=True, shared=False)  # type: ignore[untyped-decorator] # celery has no types
    def body(*, request: str, **about: Any) -> Mapping[str, Any]:
        with _unspoken():
            try:
                return QUESTIONS[name](world, request=request, **about)
            except ChangeoverError as error:
                world.store.put_document(name, request, {"ok": False, "error": str(error)}, ttl=survey.KEEP)
                return {"ok": False}
