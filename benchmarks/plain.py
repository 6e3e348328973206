"""`python -m benchmarks.plain`: the same calls in one asyncio program, with nothing kept: the floor of the cost.

A crash loses who was where. It is what a person would write first.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import cloud
from benchmarks.figures import Figures
from benchmarks.machine import Load, Site, cpu, peak, wait_for


async def _one(world: object, server: str, room: asyncio.Semaphore) -> None:
    steps: tuple[tuple[str, float], ...] = (
        ("imaged", cloud.POLL),
        ("provisioned", cloud.POLL),
        ("is_ready", cloud.POLL),
        ("smoked", cloud.POLL),
        ("swapped", cloud.BALANCER_POLL),
        ("drained", cloud.BALANCER_POLL),
    )
    async with room:
        for verb, every in steps:
            ready: Callable[[str], bool] = getattr(world, verb)
            while not ready(server):
                await asyncio.sleep(every)


async def _all(servers: int, max_in_flight: int) -> None:
    from benchmarks.chains import Straight

    settings = {"world": cloud.WORLD, "sites": cloud.WORLD, "ports": [cloud.PORT], "pools": {cloud.POOL: {}}}
    world, room = Straight(settings), asyncio.Semaphore(max_in_flight)
    await asyncio.gather(*(_one(world, server, room) for server in cloud.names(servers)))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--servers", type=int, required=True)
    parser.add_argument("--image", type=float, required=True)
    parser.add_argument("--ready", type=float, required=True)
    parser.add_argument("--max-in-flight", type=int, required=True)
    parser.add_argument("--used", type=Path, required=True)
    options = parser.parse_args()
    cloud.make(servers=options.servers, image_seconds=options.image, ready_seconds=options.ready)
    before, began = cpu(os.getpid()), time.monotonic()
    asyncio.run(_all(options.servers, options.max_in_flight))
    used = {
        "seconds": time.monotonic() - began,
        "cpu": cpu(os.getpid()) - before,
        "memory": peak(os.getpid()),
        "calls": cloud.calls(),
    }
    options.used.write_text(json.dumps(used))
    return 0


def begin(place: Site, load: Load) -> None:
    """It starts in a process of its own, beside whatever else is measured: it takes next to nothing."""
    used = str(place.folder / "used")
    place.python(
        "plain",
        *("benchmarks.plain", *load.arguments(), "--max-in-flight", str(load.max_in_flight), "--used", used),
    )


def finish(place: Site, load: Load) -> Figures:
    wait_for(place, lambda: not place.runs("plain"), "the end of the plain script", seconds=3 * load.limit + 60)
    used = json.loads((place.folder / "used").read_text())
    return Figures(
        candidate="plain asyncio, nothing kept",
        servers=load.servers,
        seconds=used["seconds"],
        limit=load.limit,
        cpu={"script": used["cpu"]},
        memory={"script": used["memory"]},
        calls=used["calls"],
    )


if __name__ == "__main__":
    sys.exit(main())
