"""A worker for the test beside it: two threads, one of which takes a nap while the broker dies.

Arguments: the broker's URL, a folder for marks, and `guarded` or `bare`.
"""

import sys
import time
from pathlib import Path

from celery import Celery

from workers import guard

broker, marks, mode = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
if mode == "guarded":
    guard.apply()

app = Celery("guard", broker=broker, set_as_current=False)
app.conf.update(
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_connection_retry_delay=0.1,
    worker_cancel_long_running_tasks_on_connection_loss=False,
)


@app.task(name="nap")  # type: ignore[untyped-decorator]  # Celery has no types
def nap(mark: str, seconds: float) -> None:
    (marks / mark).touch()
    time.sleep(seconds)


if __name__ == "__main__":
    worker = app.Worker(
        pool="threads", concurrency=2, loglevel="INFO", without_mingle=True, without_gossip=True, quiet=True
    )
    worker.start()
    sys.exit(worker.exitcode)
