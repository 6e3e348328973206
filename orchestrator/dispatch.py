"""The only place that sends an upgrade on its way: the Celery chain of the steps that remain, read from the record."""

from __future__ import annotations

from typing import Any, Protocol

from celery import Celery

from orchestrator.domain.steps import PRIORITY, RETIRE, STEPS, UNDO_PRIORITY, task_name
from orchestrator.domain.upgrade import SCHEMA, Upgrade
from orchestrator.store import Row, Store


class Sender(Protocol):
    """Publishes one chain. Celery's in production; the simulation has its own."""

    def __call__(self, messages: list[Message], /) -> None: ...


class Message(dict[str, Any]):
    """One step of a chain: `task` (name), `id`, `priority`, and the kwargs `rollout`, `server`, `epoch`."""


def send(store: Store, publish: Sender, row: Row, *, grace: float) -> int | None:
    """Send the upgrade's remaining steps, beginning with the due one; the epoch, or None if somebody works on it or it
    has changed meanwhile: then whoever changed it takes care.

    First start, wake, retry, resume, change of direction and what seems lost all come through here.
    """
    messages = row.upgrade.remaining
    if not messages:
        return None
    epoch = store.issue(row.upgrade.rollout, row.upgrade.server, version=row.version, grace=grace)
    if epoch is not None:
        publish(compose(row.upgrade, epoch))
    return epoch


def wake(store: Store, publish: Sender, row: Row, to: Upgrade, *, grace: float) -> bool:
    """The same for one that waits for a look, with what it has seen, `to`; whether it was sent."""
    woken = store.wake_up(row, to, grace=grace)
    if woken is not None:
        publish(compose(woken.upgrade, woken.epoch))
    return woken is not None


def compose(upgrade: Upgrade, epoch: int) -> list[Message]:
    """The messages of the chain. Ids read `r42:web-013:3:smoke_test:e5`: Flower finds a server or a rollout by them."""
    undo = upgrade.direction == "undo"
    return [
        Message(
            task=task_name(step, undo=undo),
            id=f"{upgrade.rollout}:{upgrade.server}:{_place(step)}:{'undo_' if undo else ''}{step}:e{epoch}",
            priority=UNDO_PRIORITY if undo else PRIORITY[step],
            kwargs={"rollout": upgrade.rollout, "server": upgrade.server, "epoch": epoch},
        )
        for step in upgrade.remaining
    ]


def _place(step: str) -> int:
    return len(STEPS) + 1 if step == RETIRE else STEPS.index(step) + 1


def celery_sender(app: Celery) -> Sender:
    """Publishes chains of immutable signatures, by name: this package knows no task's body. Each message says in its
    head of which schema it is."""

    def publish(messages: list[Message]) -> None:
        first, *later = messages
        # What `celery.chain` sends and what a worker sends on of it: the first task, with the others in its message,
        # the next one last. Its canvas copies all of them some times over first, which costs half as much again.
        app.send_task(
            first["task"],
            kwargs=first["kwargs"],
            task_id=first["id"],
            priority=first["priority"],
            headers={"schema": SCHEMA},
            chain=[
                app.signature(message["task"], kwargs=message["kwargs"], immutable=True).set(
                    task_id=message["id"], priority=message["priority"], headers={"schema": SCHEMA}
                )
                for message in reversed(later)
            ],
        )

    return publish
