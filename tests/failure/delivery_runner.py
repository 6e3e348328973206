"""One message, delivered by many processes at once: `test_many_deliveries.py` asks what came of it.

    python -m tests.failure.delivery_runner VALKEY_URL CLOUD_SOCKET NAME STEP PROCESSES TIMES

Brings a server to that step, takes the step's message from the queue, and forks: each process delivers it so many times
as fast as it can, all beginning at the same moment. Prints every answer, as one JSON list.
"""

from __future__ import annotations

import gc
import json
import logging
import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

import structlog

from orchestrator.dispatch import Message
from orchestrator.store.redis import RedisStore
from tasks import BODIES
from tasks.step import run
from tests.failure.crash_runner import Cell, Fates, Stage

BUSY = 0.3  # seconds for which the cloud makes the call that makes something: most of the deliveries come meanwhile
PATIENT = 60.0  # seconds of lease, so that nobody has to take over from one that is only slow


class Waylaid(Stage):
    """The messages of one step are kept, and delivered to nobody."""

    def __init__(self, url: str, cloud: Path, name: str, *, step: str) -> None:
        super().__init__(url, cloud, Cell(journey="forward", name=name))
        self.task, self.kept = f"tasks.{step}", list[Message]()

    def publish(self, messages: list[Message]) -> None:
        if messages[0]["task"] == self.task:
            self.kept.append(messages[0])
        else:
            super().publish(messages)

    def message(self) -> Any:
        """Whom the step's first message means, once the server has come that far."""
        self.begin()
        calm = Fates(self.cell, self.memory, self.operator, lambda _point: None)
        self.live(calm, lambda: bool(self.kept), time.time() + 60)
        return self.kept[0]["kwargs"]


def deliver(stage: Stage, step: str, message: Any, times: int, start: Any, answers: Any) -> None:
    world = stage.world(RedisStore(stage.url, namespace=stage.cell.name, connections=2))
    world.lease = PATIENT
    world.spec(stage.rollout)
    world.store.now()  # connected, before it begins
    start.wait(60)
    answers.put([dict(run(world, BODIES[step], step, undo=False, **message).result) for _ in range(times)])


def main() -> None:
    url, cloud, name, step = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    processes, times = (int(each) for each in sys.argv[5:])
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    stage = Waylaid(url, cloud, name, step=step)
    message = stage.message()
    stage.operator.fault("ensure_*", "slow", seconds=BUSY)
    stage.close()
    gc.freeze()
    fork = multiprocessing.get_context("fork")
    start, answers = fork.Barrier(processes), fork.SimpleQueue()
    workers = [
        fork.Process(
            target=lambda: deliver(Waylaid(url, cloud, name, step=step), step, message, times, start, answers),
            daemon=True,
        )
        for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    print(json.dumps([answer for _ in workers for answer in answers.get()]))
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    main()
