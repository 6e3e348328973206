"""`python -m benchmarks.feeder`: who sends the peers' chains, as the coordinator sends ours."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from benchmarks.chains import feed
from benchmarks.machine import cpu, peak


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("bare", "retry"))
    parser.add_argument("--servers", type=int, required=True)
    parser.add_argument("--max-in-flight", type=int, required=True)
    parser.add_argument("--used", type=Path, required=True)
    options = parser.parse_args()
    before, began = cpu(os.getpid()), time.monotonic()  # importing is not feeding: ours had started as well
    feed(options.kind, servers=options.servers, max_in_flight=options.max_in_flight)
    used = {
        "cpu": cpu(os.getpid()) - before,
        "memory": peak(os.getpid()),
        "start": max(0.0, began - _started()),
    }
    options.used.write_text(json.dumps(used))
    return 0


def _started() -> float:
    """When this process began, on the monotonic clock."""
    words = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return int(words[19]) / os.sysconf("SC_CLK_TCK") + time.monotonic() - time.clock_gettime(time.CLOCK_BOOTTIME)


if __name__ == "__main__":
    sys.exit(main())
