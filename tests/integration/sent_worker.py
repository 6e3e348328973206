"""Run by test_sent.py: a worker that tells of what it sends, whose task `step` leaves a file, and whose task `begin`
sends a step by another app, as a coordinating step does."""

from __future__ import annotations

import sys
from pathlib import Path

from orchestrator.messaging import make_app
from orchestrator.settings import Settings
from workers import guard, plain, sent, taken
from workers.intake import CONSUMER


def main(url: str, marks: str) -> None:
    guard.apply()
    taken.apply()
    plain.apply()
    settings = Settings(redis_url=url, state_dir=Path(marks))
    app, sending = make_app(settings), make_app(settings)
    app.conf.worker_consumer = CONSUMER
    for each in (app, sending):
        sent.apply(each)

    @app.task(name="step")  # type: ignore[untyped-decorator] # celery has no types
    def step(mark: str) -> None:
        Path(marks, mark).touch()

    @app.task(name="begin")  # type: ignore[untyped-decorator] # celery has no types
    def begin(mark: str) -> None:
        sending.send_task("step", args=[mark], task_id=mark)

    options = {"pool": "threads", "concurrency": 2, "loglevel": "WARNING"}
    app.Worker(hostname="w1@here", without_mingle=True, without_gossip=True, **options).start()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
