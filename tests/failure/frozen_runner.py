"""A worker's process that stands still right before one call, as `test_frozen_process.py` tells it to.

    python -m tests.failure.frozen_runner VALKEY_URL POINT

Messages come as JSON lines on stdin. To each it answers with one line: what became of the message, and what each call
of a provider was answered. At the crash point of that name it stops itself, by SIGSTOP, once.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

import structlog

from orchestrator.store.redis import RedisStore
from providers import find
from providers.errors import ProviderError
from tasks import BODIES
from tasks.step import run
from tasks.world import World

LEASE, GRACE, LATE = 2.0, 0.5, 1.0  # seconds


class Noting:
    """A real provider, and a note of what each call of it was answered."""

    def __init__(self, provider: Any, notes: list[tuple[str, str]]) -> None:
        self._provider, self._notes = provider, notes

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._provider, name)
        if not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                answer = found(*args, **kwargs)
            except ProviderError as error:
                self._notes.append((name, f"{type(error).__name__}: {error}"))
                raise
            self._notes.append((name, "done"))
            return answer

        return call


def main() -> None:
    url, freezing = sys.argv[1:]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    notes: list[tuple[str, str]] = []
    points = [freezing]

    def at(point: str) -> None:
        if point in points:
            points.remove(point)
            os.kill(os.getpid(), signal.SIGSTOP)

    def noting(role: str, name: str, settings: Mapping[str, Any]) -> Any:
        return Noting(find(role, name, settings), notes)  # type: ignore[arg-type] # a role is a text here

    world = World(
        store=RedisStore(url, connections=2),
        publish=lambda _messages: None,
        worker="frozen",
        lease=LEASE,
        grace=GRACE,
        late=LATE,
        crash=at,
        find=noting,
    )
    for line in sys.stdin:
        message = json.loads(line)
        notes.clear()
        step = message["task"].removeprefix("tasks.")
        ran = run(world, BODIES[step], step, undo=False, **message["kwargs"])
        print(json.dumps({"result": dict(ran.result), "goes_on": ran.goes_on, "calls": notes}), flush=True)


if __name__ == "__main__":
    main()
