"""`python -m benchmarks.worker`: a real worker that holds the fake cloud, and writes down what its slots do.

`changeover` runs our tasks exactly as `changeover worker` does; `chains` runs the peers' tasks on the same settings.
With `--name` it is one of several of ours, and the cloud is in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from pathlib import Path

from benchmarks import cloud

EVERY = 0.1  # seconds between two entries


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("changeover", "chains"))
    parser.add_argument("--servers", type=int, required=True)
    parser.add_argument("--image", type=float, required=True)
    parser.add_argument("--ready", type=float, required=True)
    parser.add_argument("--gauge", type=Path, required=True)
    parser.add_argument("--name")
    options = parser.parse_args()
    if options.name is None:
        cloud.make(servers=options.servers, image_seconds=options.image, ready_seconds=options.ready)
    threading.Thread(target=_write_down, args=(options.gauge,), daemon=True).start()
    if options.what == "changeover":
        from workers.app import run

        return run(options.name or "bench")
    from benchmarks.chains import work

    return work()


def _write_down(path: Path) -> None:
    """A line each 100 ms: the time, slots that run a step or a look, tasks taken and provider calls so far."""
    from celery.worker import state

    with path.open("w", buffering=1) as out:
        while True:
            try:
                running = [request.name for request in list(state.active_requests)]
            except RuntimeError:  # the set changed under the copy; there is another moment
                continue
            looks = running.count("tasks.observe")
            line = {
                "at": time.time(),
                "steps": len(running) - looks,
                "looks": looks,
                "taken": state.total_count,
                "calls": cloud.calls(),
            }
            out.write(json.dumps(line) + "\n")
            time.sleep(EVERY)


if __name__ == "__main__":
    sys.exit(main())
