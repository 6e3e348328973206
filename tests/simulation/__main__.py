"""`python -m tests.simulation SEED [COUNT]`: what happens under that seed, or whether all of so many hold."""

from __future__ import annotations

import sys
import time
from collections import Counter

from tests.simulation.simulation import Failed, simulate


def main(argv: list[str]) -> int:
    seed, count = int(argv[0]), int(argv[1]) if len(argv) > 1 else 1
    failed, states, events, began = 0, Counter[str](), 0, time.monotonic()
    for each in range(seed, seed + count):
        try:
            outcome = simulate(each)
        except Failed as error:
            failed += 1
            print("\n".join(error.trace) if count == 1 else "", str(error).splitlines()[0], sep="\n")
            continue
        states += outcome.states
        events += outcome.events
        if count == 1:
            print("\n".join(outcome.trace), outcome.rollout.state, dict(outcome.states), sep="\n")
    if count > 1:
        print(f"{count} seeds, {failed} failed, {events} events, {dict(states)}, {time.monotonic() - began:.1f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
