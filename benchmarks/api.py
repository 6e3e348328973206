"""`python -m benchmarks.api`: how long the API lets one wait, while many follow live events and others decide.

One `changeover api` over a Valkey of its own; no worker and no coordinator. Rollouts of 50 servers are paused and
resumed in turn at a fixed pace, while readers follow all of them live. A request's time counts from when it was due, so
that a slow answer does not spare the ones behind it. Before it in the same run: `/healthz` at the same pace, which
touches no Redis: the floor of this server and this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.figures import table
from benchmarks.machine import READY, Site, cpu, peak, site, wait_for
from orchestrator import tokens
from orchestrator.api.routes import STREAMS_OF_ONE
from orchestrator.domain.rollout import Rollout
from orchestrator.domain.upgrade import Upgrade
from orchestrator.store.redis import RedisStore

WANTED = 0.100  # seconds that 99 of 100 writes may take
SERVERS = 50  # of a rollout


@dataclass(frozen=True, kw_only=True)
class Asked:
    readers: int
    rollouts: int
    pace: float
    seconds: float


@dataclass
class Seen:
    """Seconds, of each write and each look at the floor; and of each event until a reader had it."""

    writes: list[float] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)
    events: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.api", description=__doc__)
    parser.add_argument("--readers", type=int, default=200, help="that follow live events")
    parser.add_argument("--rollouts", type=int, default=10, help="among which readers and writes are shared")
    parser.add_argument("--pace", type=float, default=50.0, help="writes a second")
    parser.add_argument("--seconds", type=float, default=30.0)
    asked = Asked(**vars(parser.parse_args()))
    with site() as place:
        store = RedisStore(place.url)
        ids = [f"r{number}" for number in range(asked.rollouts)]
        for id in ids:
            _create(store, id)
        people = 1 + asked.readers // STREAMS_OF_ONE
        shown = [tokens.create(store, f"bench{n}", ["read", "run"], actor="bench")[1] for n in range(people)]
        start = "import sys; from orchestrator.cli import main; sys.exit(main())"
        place.start("api", sys.executable, "-c", start, "api", "--port", "0", "--rate", "10000")
        wait_for(place, lambda: _port(place) and _listens(_port(place)), "the API")
        port = _port(place)
        before = cpu(place.pids["api"])
        seen = asyncio.run(_measure(asked, port, shown, ids))
        used = (cpu(place.pids["api"]) - before, peak(place.pids["api"]))
        place.check()
        store.close()
    print(_report(asked, seen, *used), flush=True)
    return 0 if seen.writes and not seen.failed and _share(seen.writes, 0.99) <= WANTED else 1


def _create(store: RedisStore, id: str) -> None:
    names = [f"{id}-s{n:02d}" for n in range(SERVERS)]
    rollout = Rollout(
        id=id,
        plan="p",
        fleet="bench",
        created_at=store.now(),
        created_by="bench",
        waves=(tuple(names),),
        max_in_flight=1,
        allowed_failures=0,
        bake=0.0,
        on_abort="finish",
    )
    upgrades = [Upgrade(rollout=id, server=name, wave=0) for name in names]
    store.create(rollout, upgrades, locks={f"bench/{name}": name for name in names})


def _port(place: Site) -> int:
    """As it says itself; 0 before it does."""
    said = re.search(r"API  http://127\.0\.0\.1:(\d+)/", (place.folder / "api.log").read_text())
    return int(said[1]) if said else 0


def _listens(port: int) -> bool:
    async def asks() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    return asyncio.run(asks())


async def _measure(asked: Asked, port: int, shown: Sequence[str], ids: Sequence[str]) -> Seen:
    seen = Seen()
    counting = asyncio.Event()
    here = asyncio.Semaphore(0)
    readers = [
        asyncio.create_task(_follow(port, shown[n % len(shown)], ids[n % len(ids)], seen, counting, here))
        for n in range(asked.readers)
    ]
    async with asyncio.timeout(READY):
        for _ in readers:
            await here.acquire()
    counting.set()
    number = int(asked.pace * asked.seconds)
    verbs = [f"/v1/rollouts/{ids[n % len(ids)]}:{('pause', 'resume')[n // len(ids) % 2]}" for n in range(number)]
    await _paced(asked, port, shown[0], [("GET", "/healthz")] * number, seen.floor, seen)
    await _paced(asked, port, shown[0], [("POST", verb) for verb in verbs], seen.writes, seen)
    await _until_quiet(seen)
    dead = [reader for reader in readers if reader.done()]
    seen.failed += [f"a stream ended: {reader.exception() or 'by itself'}" for reader in dead]
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    return seen


async def _until_quiet(seen: Seen) -> None:
    """What was written last is on its way to its readers."""
    before = -1
    while len(seen.events) > before:
        before = len(seen.events)
        await asyncio.sleep(0.5)


async def _paced(
    asked: Asked, port: int, token: str, requests: Sequence[tuple[str, str]], times: list[float], seen: Seen
) -> None:
    begin = time.perf_counter() + 0.5
    todo = [(begin + n / asked.pace, *request) for n, request in enumerate(requests)]
    each = asked.rollouts  # a connection for each: one that is late is not overtaken by what is to come after it
    await asyncio.gather(*(_act(port, token, todo[w::each], times, seen) for w in range(each)))


async def _follow(port: int, token: str, id: str, seen: Seen, counting: asyncio.Event, here: asyncio.Semaphore) -> None:
    """`here` is released once, when what had happened before has come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    try:
        writer.write(_request("GET", f"/v1/rollouts/{id}/events", token, "Accept: text/event-stream\r\n"))
        greeted = False
        while line := await reader.readline():
            if line.startswith(b"data:") and not greeted:
                greeted = True
                here.release()
            if line.startswith(b"data:") and counting.is_set():
                seen.events.append(time.time() - json.loads(line[5:])["at"])
    finally:
        writer.close()


async def _act(port: int, token: str, todo: Sequence[tuple[float, str, str]], times: list[float], seen: Seen) -> None:
    """One connection that is kept, and on it one request after the other, none before it is due."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for due, method, path in todo:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            writer.write(_request(method, path, token))
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
            )
            await reader.readexactly(length)
            times.append(time.perf_counter() - due)
            if b" 200 " not in head.split(b"\r\n")[0]:
                seen.failed.append(head.split(b"\r\n")[0].decode())
    finally:
        writer.close()


def _request(method: str, path: str, token: str, more: str = "") -> bytes:
    length = "Content-Length: 0\r\n" if method == "POST" else ""
    return f"{method} {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\n{more}{length}\r\n".encode()


def _share(times: Sequence[float], share: float) -> float:
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def _report(asked: Asked, seen: Seen, used: float, most: float) -> str:
    heads = ("what", "number", "p50 ms", "p95 ms", "p99 ms", "most ms")
    rows = [
        (what, f"{len(times):,}", *(f"{1000 * _share(times, share):.1f}" for share in (0.5, 0.95, 0.99, 1.0)))
        for what, times in (("a write", seen.writes), ("/healthz", seen.floor), ("an event to a reader", seen.events))
    ]
    p99, floor = _share(seen.writes, 0.99), _share(seen.floor, 0.99)
    reached = "reached" if p99 <= WANTED else "NOT REACHED"
    load = f"{asked.readers} readers and {asked.pace:g} writes a second over {asked.rollouts} rollouts"
    times = f"{1000 * p99:.1f} ms, {p99 / floor:.1f} times the floor"
    lines = [
        f"{load}, {asked.seconds:g} s",
        "",
        table(heads, rows),
        "",
        f"{reached}: 99 of 100 writes within {1000 * WANTED:g} ms: {times}",
        f"CPU of the API: {used:.1f} s; memory: {most:.0f} MiB; failed: {len(seen.failed)}",
        *seen.failed[:5],
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
