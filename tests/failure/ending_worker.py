"""A worker for the test beside it, whose only task naps. Arguments: the broker's URL, and a folder for marks."""

import sys
import time
from pathlib import Path

from celery import Celery

from orchestrator.store.memory import MemoryStore
from workers.lifecycle import Lifecycle

broker, marks = sys.argv[1], Path(sys.argv[2])
app = Celery("ending", broker=broker, set_as_current=False)
app.conf.update(task_acks_late=True, worker_prefetch_multiplier=1, task_ignore_result=True)


@app.task(name="nap")  # type: ignore[untyped-decorator]  # Celery has no types
def nap(mark: str, seconds: float) -> None:
    (marks / f"{mark}.begun").touch()
    time.sleep(seconds)
    (marks / f"{mark}.done").touch()


if __name__ == "__main__":
    lifecycle = Lifecycle(store=MemoryStore(), name="w1")
    worker = app.Worker(pool="threads", concurrency=1, without_mingle=True, without_gossip=True, quiet=True)
    worker.install_platform_tweaks = lambda _worker: lifecycle.handle_signals()
    worker.start()
    lifecycle.ended()
    sys.exit(worker.exitcode)
