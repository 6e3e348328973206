"""Run by test_intake.py: a worker on the given broker, whose task `note` leaves a file."""

from __future__ import annotations

import sys
from pathlib import Path

from celery import Celery

from workers import guard, plain
from workers.intake import CONSUMER


def main(broker: str, marks: str, *, guarded: bool) -> None:
    app = Celery("intake", broker=broker, set_as_current=False)
    app.conf.update(accept_content=["json"], task_acks_late=True)
    if guarded:
        guard.apply()
        plain.apply()
        app.conf.worker_consumer = CONSUMER

    @app.task(name="note")  # type: ignore[untyped-decorator] # celery has no types
    def note(mark: str) -> None:
        Path(marks, mark).touch()

    app.Worker(pool="threads", concurrency=2, loglevel="WARNING", without_mingle=True, without_gossip=True).start()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], guarded=sys.argv[3] == "guarded")
