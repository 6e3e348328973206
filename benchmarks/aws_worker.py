"""`python -m benchmarks.aws_worker`: a real worker that writes down each look it makes for those that wait."""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.domain.fleet import Fleet
from tasks import observe
from tasks.world import World


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True)
    parser.add_argument("--looks", type=Path, required=True)
    options = parser.parse_args()
    out, lock = options.looks.open("a", buffering=1), threading.Lock()

    def noted(kind: str, ask: Callable[..., observe.Answers]) -> Callable[..., observe.Answers]:
        def look(world: World, fleet: Fleet, ids: Sequence[str]) -> observe.Answers:
            paired = kind in observe.PAIRED
            lane = world.traffic(fleet).lane(ids[0]) if paired else fleet.lane
            waiting = len(ids) // 2 if paired else len(ids)
            told = {"at": time.time(), "lane": lane, "kind": kind, "waiting": waiting, "answered": False}
            try:
                answers = ask(world, fleet, ids)
                told["answered"] = True
            finally:
                with lock:
                    out.write(json.dumps(told) + "\n")
            return answers

        return look

    asks: Mapping[str, Any] = {kind: noted(kind, ask) for kind, ask in observe.ASK.items()}
    observe.ASK = asks  # type: ignore[misc] # only here, to count from within
    from workers.app import run

    return run(options.name)


if __name__ == "__main__":
    sys.exit(main())
