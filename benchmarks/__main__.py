"""`python -m benchmarks` (make bench): every candidate at every size, and what was found."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks import chains, plain, rollout
from benchmarks.figures import Figures, report, verdicts
from benchmarks.machine import Load, site

CANDIDATES = ("changeover", "bare", "retry", "plain")
SIZES = (300, 1000)
WORKERS = (1, 2)


@dataclass(frozen=True, kw_only=True)
class _Options:
    sizes: Sequence[int]
    only: Sequence[str]
    workers: Sequence[int]
    quick: bool


def main() -> int:
    options = _read()
    first = load(options.sizes[0], quick=options.quick)
    print(
        f"An image takes I = {first.image:g} s, a server is ready after R = {first.ready:g} s. A worker has "
        f"{first.threads} threads; at most {first.max_in_flight} servers are in flight.\n"
        f"The limit is ceil(N / {first.max_in_flight}) * (I + R): nothing with that bound can be faster."
    )
    began = time.monotonic()
    found: list[Figures] = []
    for servers in options.sizes:
        some = measure(load(servers, quick=options.quick), options.only, options.workers)
        print(report(some, first), flush=True)
        found += some
    print(f"\n{verdicts(found)}\n\nAll of it took {time.monotonic() - began:.0f} s.")
    return 0


def _read() -> _Options:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="60 servers, I = 1 s, R = 2 s: a smoke run, no figures")
    parser.add_argument("--servers", type=int, nargs="+", metavar="N", help="sizes; 300 and 1000 if not given")
    parser.add_argument("--only", choices=CANDIDATES, nargs="+", help="some of the candidates")
    parser.add_argument(
        "--workers", type=int, nargs="+", metavar="W", help="processes of ours at work; 1 and 2 if not given"
    )
    given = parser.parse_args()
    sizes = given.servers or ([60] if given.quick else SIZES)
    workers = given.workers or WORKERS
    if min(*sizes, *workers) < 1:
        parser.error("--servers and --workers: 1 or more")
    return _Options(sizes=sizes, only=given.only or CANDIDATES, workers=workers, quick=given.quick)


def load(servers: int, *, quick: bool) -> Load:
    if quick:
        return Load(servers=servers, image=1.0, ready=2.0, max_in_flight=30, threads=32)
    return Load(servers=servers, image=5.0, ready=10.0, max_in_flight=100, threads=32)


def measure(load: Load, only: Sequence[str], workers: Sequence[int]) -> list[Figures]:
    """One after the other, but for the plain script: it runs beside `retry`, since it only sleeps."""
    found: list[Figures] = []
    if "changeover" in only:
        for count in workers:
            _say(load, f"changeover, {count} worker{'s' if count > 1 else ''}")
            found.append(rollout.measure(replace(load, workers=count)))
    if "bare" in only:
        _say(load, "bare Celery chain")
        found.append(chains.measure("bare", load))
    with site() as beside:
        if "plain" in only:
            _say(load, "plain asyncio")
            plain.begin(beside, load)
        if "retry" in only:
            _say(load, "Celery chain with self.retry")
            found.append(chains.measure("retry", load))
        if "plain" in only:
            found.append(plain.finish(beside, load))
    return found


def _say(load: Load, what: str) -> None:
    print(f"... {load.servers} servers: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
