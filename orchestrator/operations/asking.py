"""Questions to the world, which workers answer: a request in the store, a message, and the wait for what came."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from orchestrator.errors import ChangeoverError, Conflict, Unreachable, WaitTimeout
from orchestrator.ids import new_id
from orchestrator.store import Store

if TYPE_CHECKING:
    from celery import Celery

    from orchestrator.domain.fleet import Fleet
    from orchestrator.domain.plan import Survey


PATIENCE = 60.0  # seconds to wait for a worker's answer
WITHOUT_WORKERS = 10.0  # seconds after which a lack of any living worker is the answer


class Asker(Protocol):
    """Sends a question (`survey`, `doctor`, `findings`: `about` a fleet; `whereabouts`: about a rollout's server;
    `collect`: about a lane) to the workers; its answer is a document of that kind."""

    def __call__(self, task: str, *, request: str, **about: Any) -> None: ...


def celery_asker(app: Celery) -> Asker:
    """Raises `Unreachable` when the broker does not take the message."""

    def ask(task: str, *, request: str, **about: Any) -> None:
        from kombu.exceptions import OperationalError

        try:
            app.send_task(
                f"tasks.{task}",
                kwargs={"request": request, **about},
                task_id=f"{task}:{request}",
                priority=0,
                ignore_result=True,
            )
        except OperationalError as error:
            raise Unreachable(f"the broker does not take messages: {error}", next="changeover doctor FILE") from error

    return ask


@dataclass(frozen=True, kw_only=True)
class Waiter:
    """How to wait for an answer. `timeout` and `every` in seconds."""

    timeout: float = PATIENCE
    every: float = 0.05
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


def request_survey(store: Store, ask: Asker, fleet: Fleet) -> str:
    """A worker is asked to read the world as far as this fleet goes; the id under which it will answer."""
    return send_request(store, ask, "survey", fleet)


def await_survey(store: Store, id: str, waiter: Waiter | None = None) -> Survey:
    """Raises `WaitTimeout` saying whether any worker lives, and `ChangeoverError` when the world cannot be read."""
    from orchestrator.domain.plan import survey_from

    return survey_from(await_answer(store, "survey", id, waiter or Waiter())["survey"])


def send_request(store: Store, ask: Asker, kind: str, fleet: Fleet) -> str:
    request = new_id("q", store.now())
    ask(kind, request=request, fleet=fleet.canonical())
    return request


def await_answer(store: Store, kind: str, request: str, waiter: Waiter) -> Mapping[str, Any]:
    start, before = waiter.monotonic(), store.workers()
    while True:
        found = store.document(kind, request)
        if found is not None:
            break
        waited = waiter.monotonic() - start
        if waited >= waiter.timeout or (waited >= WITHOUT_WORKERS and not store.workers()):
            raise _unanswered(store, kind, waited, before)
        waiter.sleep(min(waiter.every, max(0.001, waiter.timeout - waited)))
    store.forget_document(kind, request)  # nobody asks for it again, and it may be of a large fleet
    if not found.get("ok"):
        refused = found.get("refused", False)  # for what was asked, and not for how the world is just now
        raise (Conflict if refused else ChangeoverError)(
            f"the worker could not read the world: {found.get('error', 'it did not say why')}",
            traffic="unchanged; nothing was created",
            next="changeover doctor FILE",
        )
    return found


def _unanswered(store: Store, kind: str, waited: float, before: Collection[str]) -> WaitTimeout:
    workers = store.workers()
    if not workers and before:
        return WaitTimeout(
            f"{', '.join(sorted(before))} fell silent, so the {kind} was not answered in {waited:.0f} s",
            next="changeover doctor FILE   says which processes they are",
        )
    if not workers:
        return WaitTimeout(
            f"no worker is alive, so the {kind} was not answered in {waited:.0f} s", next="changeover up"
        )
    alive = "1 worker is" if len(workers) == 1 else f"{len(workers)} workers are"
    return WaitTimeout(
        f"{alive} alive and the {kind} was not answered in {waited:.0f} s; "
        f"messages have lately waited {store.queue_wait():.1f} s",
        next="try again with a longer --timeout",
    )
