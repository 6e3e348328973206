"""A worker for the test beside it, whose only task naps. Arguments: the broker's URL, a folder for marks, and in how
many seconds it has to end once it was told."""

import sys
import time
from pathlib import Path

from celery import Celery

from orchestrator.store.memory import MemoryStore
from workers import lifecycle as life

broker, marks = sys.argv[1], Path(sys.argv[2])
life.WARM_SHUTDOWN = float(sys.argv[3])
app = Celery("ending", broker=broker, set_as_current=False)
app.conf.update(task_acks_late=True, worker_prefetch_multiplier=1, task_ignore_result=True)


@app.task(name="nap")  # type: ignore[untyped-decorator]  # Celery has no types
def nap(mark: str, seconds: float) -> None:
    (marks / f"{mark}.begun").touch()
    time.sleep(seconds)
    (marks / f"{mark}.done").touch()


if __name__ == "__main__":
    lifecycle = life.Lifecycle(store=MemoryStore(), name="w1")
    worker = app.Worker(pool="threads", concurrency=1, without_mingle=True, without_gossip=True, quiet=True)
    worker.install_platform_tweaks = lambda _worker: lifecycle.handle_signals()
    worker.start()
    lifecycle.ended()
    sys.exit(worker.exitcode)
