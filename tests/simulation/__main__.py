"""`python -m tests.simulation SEED [COUNT] [--lua]`: what happens under that seed, or whether all of so many hold.
With `--lua` on Redis' own scripts."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter
from contextlib import ExitStack

import structlog

from tests.simulation.quick import without_collector
from tests.simulation.simulation import TAIL, Failed, on_redis, simulate
from tests.support.valkey import running_valkey


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("count", type=int, nargs="?", default=1)
    parser.add_argument("--lua", action="store_true")
    asked = parser.parse_args()
    # What workers log has the time of day in it.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with ExitStack() as stack:
        url = stack.enter_context(running_valkey()).url if asked.lua else ""
        return tell(asked.seed, url) if asked.count == 1 else play(asked.seed, asked.count, url)


def tell(seed: int, url: str) -> int:
    try:
        outcome = simulate(seed, store=on_redis(url, seed) if url else None)
    except Failed as error:
        print("\n".join(error.trace), f"{type(error.why).__name__}: {error.why}", sep="\n")
        return 1
    print("\n".join(outcome.trace), outcome.rollout, dict(outcome.states), sep="\n")
    return 0


def play(first: int, count: int, url: str) -> int:
    failed, events, checks, states, began = 0, 0, 0, Counter[str](), time.monotonic()
    with without_collector():
        for seed in range(first, first + count):
            try:
                outcome = simulate(seed, store=on_redis(url, seed) if url else None, lines=TAIL)
            except Failed as error:
                failed += 1
                print(str(error).splitlines()[0], flush=True)
                continue
            states += outcome.states
            events += outcome.events
            checks += outcome.checks
    print(f"{count} seeds, {failed} failed; {events} events, {checks} checks; servers: {dict(states)};", end=" ")
    print(f"{time.monotonic() - began:.1f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
