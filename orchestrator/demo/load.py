"""The demo's users: an open-loop load on one or more sites, and an exact count of what they saw.

Open loop: every request has its moment by the schedule, whatever became of those before, and its latency counts from
that moment, so a site that stalls cannot hide it by slowing its users down (no coordinated omission). The event loop's
timers tick in milliseconds, so a request leaves up to 1 ms after its moment, and its latency includes that.

Nothing is ever sent twice. A refused connection, a reset, a timeout, an answer other than the one that was due: each is
one failed request, with its reason. One thing is no failure, as for any browser: a pooled connection that was closed
while it lay idle, and seen to be so before the next request is put on it. Closed under a request that was sent is one.

Beside the requests run downloads and WebSockets of a few seconds, begun anew at their planned end. Each is a request
too. One that opened, and ended before its plan, is cut.

What is written to `--out`:
    load.jsonl    a line a request: {"t": when it was due, "ms", "kind", "ok", "why", "fresh": on its own connection}
    load.json     once a second and at the end: totals, reasons, seconds, orders, downloads, WebSockets, phases
`marks.jsonl` there, if others append {"t": epoch, "mark": "before" | "during" | "after"}, divides the latencies into
phases; any other mark is left alone. SIGTERM or SIGINT: stop sending, wait for what is in flight, write, exit 0.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
import os
import random
import re
import resource
import select
import signal
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httptools
import uvloop
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.protocol import State

MIX = {"home": 30, "item": 44, "order": 25, "slow": 1}  # per cent of the scheduled requests
FRESH = 0.20  # share of requests that open a connection of their own, and close it
POOL = 40  # keep-alive connections, over all sites
TIMEOUT = 10.0  # seconds for a request, connecting included; a download gets its own duration on top
REPORTED = 100  # failures that load.json quotes; load.jsonl has all
DOWNLOADS, WEBSOCKETS = 4, 12
SESSION = (2.0, 5.0)  # seconds that a download or a WebSocket is planned to last
STAGGER = 0.15  # seconds between the first ones, so that they do not all end together either
ECHO_EVERY = 0.25
REDIAL_AFTER_FAILURE = 0.25  # seconds, so that a dead site does not become a busy loop
SHORT = frozenset({"home", "item", "order"})  # whose latency is measured; the others last as long as they are asked to
CYCLE = bytes(range(251))  # what a download of the site consists of
clock = time.monotonic  # the event loop's own clock ticks in milliseconds


class Failed(Exception):
    """A request that its user would call failed. The message is the reason, in a few words that can be counted."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where to connect to, and the name to ask for."""

    host: str
    port: int
    name: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    status: int
    body: bytes
    size: int
    digest: str


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection, for one request at a time."""

    def __init__(self) -> None:
        self.reusable = True
        self.served_by = b""
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[Answer] | None = None
        self._body: list[bytes] = []
        self._hash: hashlib._Hash | None = None
        self._size = 0
        self.begun = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transport does not derive from it
        self._poll = select.poll()
        self._poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN | select.POLLRDHUP)

    def usable(self) -> bool:
        """Whether a request may be put on it: asks the kernel, since the event loop hears of a close a moment later."""
        return self.reusable and not self._poll.poll(0)

    async def ask(self, request: bytes, *, hashed: bool = False) -> Answer:
        """The whole answer. `hashed`: the body is digested and not kept."""
        self._answer = asyncio.get_running_loop().create_future()
        self._body, self._size, self.begun, self.served_by = [], 0, False, b""
        self._hash = hashlib.sha256() if hashed else None
        self._transport.write(request)
        try:
            return await self._answer
        finally:
            self._answer = None

    def close(self) -> None:
        self.reusable = False
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():
            self.close()  # an answer that nobody asked for
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._fail("the answer is not HTTP")

    def connection_lost(self, exc: Exception | None) -> None:
        how = "reset" if exc else "closed"
        self._fail(f"{how} in the middle of the answer" if self.begun else f"{how} before the answer")

    def _fail(self, why: str) -> None:
        self.close()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(Failed(why))

    def on_message_begin(self) -> None:
        self.begun = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if name == b"x-served-by":
            self.served_by = value

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._hash is not None:
            self._hash.update(body)
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        self.reusable = self.reusable and self._parser.should_keep_alive()
        if self._answer is not None and not self._answer.done():
            digest = self._hash.hexdigest() if self._hash else ""
            status = self._parser.get_status_code()
            self._answer.set_result(Answer(status=status, body=b"".join(self._body), size=self._size, digest=digest))


class Pool:
    """Keep-alive connections to one site, longest idle first: last-in-first-out would use two and let the rest go cold.

    It grows to its size before it reuses, and beyond it when all are busy; on return the surplus is closed.
    """

    def __init__(self, site: Site, *, size: int, tally: Tally) -> None:
        self._site, self._size, self._tally = site, size, tally
        self._idle: deque[Connection] = deque()
        self._open = 0

    async def take(self) -> Connection:
        while self._idle and self._open >= self._size:
            connection = self._idle.popleft()
            if connection.usable():
                self._tally.reused += 1
                return connection
            self._tally.closed_idle += 1
            self.drop(connection)
        self._open += 1
        try:
            return await self.open()
        except BaseException:
            self._open -= 1
            raise

    async def open(self) -> Connection:
        """A new connection of its own. Raises `Failed`."""
        self._tally.opened += 1
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                Connection, self._site.host, self._site.port
            )
        except OSError as problem:
            raise Failed(f"cannot connect: {problem.strerror or problem}") from problem
        return connection

    def give(self, connection: Connection) -> None:
        if connection.reusable and self._open <= self._size:
            self._idle.append(connection)
        else:
            self.drop(connection)

    def drop(self, connection: Connection) -> None:
        self._open -= 1
        connection.close()

    def close(self) -> None:
        while self._idle:
            self.drop(self._idle.popleft())


@dataclass
class Second:
    """What was due in one second of the clock."""

    count: int = 0
    failed: int = 0
    latencies: array[float] = field(default_factory=lambda: array("d"))


@dataclass
class Sessions:
    """Downloads, or WebSockets. `whole` ended as planned, `cut` after they opened, `refused` before."""

    whole: int = 0
    cut: int = 0
    refused: int = 0


class Tally:
    """All that was seen, and the files that say so."""

    def __init__(self, *, run: str, rate: float, out: Path) -> None:
        self.run, self.rate, self.out = run, rate, out
        self.started = time.time()
        self.sent = self.finished = self.failed = 0
        self.opened = self.reused = self.closed_idle = 0
        self.echoes = 0
        self.latest_ms = 0.0
        self.orders_sent = self.orders_acknowledged = 0
        self.unacknowledged: set[str] = set()
        self.kinds: Counter[str] = Counter()
        self.failed_kinds: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.served_by: Counter[str] = Counter()
        self.downloads, self.websockets = Sessions(), Sessions()
        self._failures: list[dict[str, Any]] = []
        self._seconds: dict[int, Second] = {}
        self._rows: dict[int, dict[str, Any]] = {}
        self._changed: set[int] = set()
        self._due: array[float] = array("d")
        self._latency: array[float] = array("d")
        self._lines: list[str] = []
        self._log = (out / "load.jsonl").open("w", encoding="utf-8")

    def count(self, *, due: float, ms: float, kind: str, why: str | None, fresh: bool) -> None:
        """One request has ended. `due` in seconds of the epoch."""
        self.finished += 1
        self.kinds[kind] += 1
        at = int(due)
        second = self._seconds.setdefault(at, Second())
        second.count += 1
        self._changed.add(at)
        if why is not None:
            self.failed += 1
            second.failed += 1
            self.failed_kinds[kind] += 1
            self.reasons[f"{kind}: {why}"] += 1
            if len(self._failures) < REPORTED:
                self._failures.append({"t": due, "ms": round(ms, 2), "kind": kind, "why": why, "fresh": fresh})
        if kind in SHORT:
            second.latencies.append(ms)
            self._due.append(due)
            self._latency.append(ms)
        told = "null" if why is None else json.dumps(why)
        self._lines.append(
            f'{{"t":{due:.4f},"ms":{ms:.2f},"kind":"{kind}","ok":{"true" if why is None else "false"},'
            f'"why":{told},"fresh":{"true" if fresh else "false"}}}\n'
        )

    def write(self, state: str) -> None:
        """Bring both files up to date."""
        self._log.write("".join(self._lines))
        self._log.flush()
        self._lines.clear()
        for at in self._changed:
            second = self._seconds[at]
            self._rows[at] = {"t": at, "count": second.count, "failed": second.failed, **spread(second.latencies)}
        self._changed.clear()
        fresh = self.out / ".load.json.new"
        fresh.write_text(json.dumps(self.summary(state)), encoding="utf-8")
        fresh.replace(self.out / "load.json")

    def summary(self, state: str) -> dict[str, Any]:
        """The content of load.json. The phases, which cost a sort of everything, are told at the end only."""
        return {
            "schema": 1,
            "run": self.run,
            "state": state,
            "started": self.started,
            "now": time.time(),
            "rate": self.rate,
            "requests": self.finished,
            "failed": self.failed,
            "in_flight": self.sent - self.finished,
            "kinds": {kind: {"count": n, "failed": self.failed_kinds[kind]} for kind, n in sorted(self.kinds.items())},
            "reasons": dict(self.reasons.most_common()),
            "failures": self._failures,
            "connections": {"opened": self.opened, "reused": self.reused, "closed_idle": self.closed_idle},
            "served_by": dict(sorted(self.served_by.items())),
            "orders": {
                "sent": self.orders_sent,
                "acknowledged": self.orders_acknowledged,
                "unacknowledged": sorted(self.unacknowledged),
            },
            "downloads": vars(self.downloads),
            "websockets": vars(self.websockets),
            "echoes": self.echoes,
            "latency": self.phases() if state == "done" else None,
            "seconds": [self._rows[at] for at in sorted(self._rows)],
            "generator": {"late_ms": round(self.latest_ms, 1), "cpu_seconds": round(time.process_time(), 3)},
        }

    def phases(self) -> dict[str, dict[str, float | int | None]]:
        parts = divide(self._due, self._latency, read_marks(self.out / "marks.jsonl"))
        return {phase: {"count": len(part), **spread(part)} for phase, part in parts.items()}

    def close(self) -> None:
        self._log.close()


def spread(latencies: Iterable[float]) -> dict[str, float | None]:
    """Median, 99th percentile (nearest rank) and largest, in ms; None of nothing."""
    ordered = sorted(latencies)
    if not ordered:
        return {"p50_ms": None, "p99_ms": None, "max_ms": None}

    def rank(share: float) -> float:
        return round(ordered[max(0, math.ceil(share * len(ordered)) - 1)], 2)

    return {"p50_ms": rank(0.50), "p99_ms": rank(0.99), "max_ms": round(ordered[-1], 2)}


def read_marks(file: Path) -> list[tuple[float, str]]:
    """Where the phases begin, in order. A line that is torn or says something else is passed over: others write it."""
    marks = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            said = json.loads(line)
        except ValueError:
            continue
        match said:
            case {"t": float() | int() as at, "mark": "before" | "during" | "after" as phase}:
                marks.append((float(at), str(phase)))
            case _:
                continue
    return sorted(marks)


def divide(due: Iterable[float], latencies: Iterable[float], marks: list[tuple[float, str]]) -> dict[str, array[float]]:
    """The latencies by phase. What was due ahead of the first mark was before."""
    parts = {phase: array("d") for phase in ("before", "during", "after")}
    for at, ms in zip(due, latencies, strict=True):
        phase = "before"
        for begins, name in marks:
            if begins > at:
                break
            phase = name
        parts[phase].append(ms)
    return parts


def cycle_digest(size: int) -> str:
    """The SHA-256 of the first `size` bytes of a download."""
    return hashlib.sha256((CYCLE * (size // len(CYCLE) + 1))[:size]).hexdigest()


class Users:
    """Everybody who visits one site."""

    def __init__(self, site: Site, *, pool: int, tally: Tally, dice: random.Random, stopping: asyncio.Event) -> None:
        self._site, self._tally, self._dice, self._stopping = site, tally, dice, stopping
        self._pool = Pool(site, size=pool, tally=tally)
        self._name = site.name.encode()

    def visit(self, *, kind: str, fresh: bool, due: float) -> Coroutine[Any, Any, None]:
        """One request, due at `due` of `clock`."""
        match kind:
            case "order":
                order = f"{self._tally.run}-{self._tally.orders_sent:08d}"
                self._tally.orders_sent += 1
                self._tally.unacknowledged.add(order)
                return self._measured(kind, fresh, due, self._order(order, fresh))
            case "item":
                return self._measured(kind, fresh, due, self._item(self._dice.randrange(10_000), fresh))
            case "slow":
                return self._measured(kind, fresh, due, self._page("/slow", fresh))
            case _:
                return self._measured(kind, fresh, due, self._page("/", fresh))

    async def _measured(self, kind: str, fresh: bool, due: float, visit: Coroutine[Any, Any, None]) -> None:
        why = None
        try:
            async with asyncio.timeout(TIMEOUT):
                await visit
        except TimeoutError:
            why = f"no answer within {TIMEOUT:.0f} s"
        except Failed as problem:
            why = str(problem)
        ms = (clock() - due) * 1000
        self._tally.count(due=time.time() - ms / 1000, ms=ms, kind=kind, why=why, fresh=fresh)

    async def _page(self, path: str, fresh: bool) -> None:
        answer = await self._ask(self._get(path, fresh), fresh)
        expect(answer, status=200)

    async def _item(self, number: int, fresh: bool) -> None:
        answer = await self._ask(self._get(f"/api/item/{number}", fresh), fresh)
        expect(answer, status=200)
        if not answer.body.startswith(b'{"id":%d,' % number):
            raise Failed("another item than asked for")

    async def _order(self, id: str, fresh: bool) -> None:
        body = b'{"id":"%s","item":%d,"quantity":1}' % (id.encode(), self._dice.randrange(10_000))
        head = b"POST /orders HTTP/1.1\r\nhost: %s\r\n%scontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        answer = await self._ask(
            head % (self._name, b"connection: close\r\n" if fresh else b"", len(body)) + body, fresh
        )
        expect(answer, status=201)
        self._tally.orders_acknowledged += 1
        self._tally.unacknowledged.discard(id)

    def _get(self, path: str, fresh: bool) -> bytes:
        last = b"connection: close\r\n" if fresh else b""
        return b"GET %s HTTP/1.1\r\nhost: %s\r\n%s\r\n" % (path.encode(), self._name, last)

    async def _ask(self, request: bytes, fresh: bool) -> Answer:
        connection = await (self._pool.open() if fresh else self._pool.take())
        try:
            answer = await connection.ask(request)
        except BaseException:  # a timeout too: what is left of its answer must not meet the next request
            connection.close() if fresh else self._pool.drop(connection)
            raise
        connection.close() if fresh else self._pool.give(connection)
        if connection.served_by:  # an answer of the balancer's own has no server
            self._tally.served_by[connection.served_by.decode("latin-1")] += 1
        return answer

    async def downloading(self, after: float) -> None:
        """One download after the other, beginning `after` seconds, until told to stop."""
        await asyncio.sleep(after)
        while not self._stopping.is_set():
            await self._session("download", self._tally.downloads, self._download)

    async def talking(self, after: float) -> None:
        """One WebSocket after the other, beginning `after` seconds, until told to stop."""
        await asyncio.sleep(after)
        while not self._stopping.is_set():
            await self._session("websocket", self._tally.websockets, self._websocket)

    async def _session(
        self, kind: str, sessions: Sessions, hold: Callable[[float, Callable[[], None]], Coroutine[Any, Any, None]]
    ) -> None:
        seconds = self._dice.uniform(*SESSION)
        opened = False

        def mark_open() -> None:
            nonlocal opened
            opened = True

        self._tally.sent += 1
        due, began, why = time.time(), clock(), None
        try:
            async with asyncio.timeout(seconds + TIMEOUT):
                await hold(seconds, mark_open)
        except TimeoutError:
            why = f"not over {TIMEOUT:.0f} s after its planned end"
        except Failed as problem:
            why = str(problem)
        self._tally.count(due=due, ms=(clock() - began) * 1000, kind=kind, why=why, fresh=True)
        if why is None:
            sessions.whole += 1
            return
        sessions.cut += opened
        sessions.refused += not opened
        await asyncio.sleep(REDIAL_AFTER_FAILURE)

    async def _download(self, seconds: float, opened: Callable[[], None]) -> None:
        size = self._dice.randrange(200_000, 600_000)
        connection = await self._pool.open()
        try:
            answer = await connection.ask(self._get(f"/download?bytes={size}&seconds={seconds:.2f}", True), hashed=True)
        except (Failed, asyncio.CancelledError):
            if connection.begun:
                opened()
            raise
        finally:
            connection.close()
        expect(answer, status=200)
        opened()
        if answer.size != size:
            raise Failed(f"the download has {answer.size} bytes instead of {size}")
        if answer.digest != cycle_digest(size):
            raise Failed("the download's content is damaged")

    async def _websocket(self, seconds: float, opened: Callable[[], None]) -> None:
        end = clock() + seconds
        try:
            socket = await connect(
                f"ws://{self._site.name}/ws",
                host=self._site.host,
                port=self._site.port,
                proxy=None,
                compression=None,
                ping_interval=None,
                open_timeout=None,  # the session's own timeout holds
                close_timeout=2,
            )
        except OSError as problem:
            raise Failed(f"cannot connect: {problem.strerror or problem}") from problem
        except (WebSocketException, EOFError) as problem:
            raise Failed(f"no WebSocket: {problem}") from problem
        opened()
        try:
            await self._converse(socket, end)
        except ConnectionClosed as problem:
            code = problem.rcvd.code if problem.rcvd else "no close frame"
            raise Failed(f"closed by the server before its planned end ({code})") from problem
        finally:
            await socket.close()

    async def _converse(self, socket: ClientConnection, end: float) -> None:
        number = 0
        while clock() < end and not self._stopping.is_set():
            said = f"{self._tally.run} {number}"
            await socket.send(said)
            if await socket.recv() != said:
                raise Failed("the echo is out of sequence")
            self._tally.echoes += 1
            number += 1
            await asyncio.sleep(min(ECHO_EVERY, max(0.0, end - clock())))
        if socket.state is not State.OPEN:
            raise Failed("closed by the server before its planned end")

    def close(self) -> None:
        self._pool.close()


def expect(answer: Answer, *, status: int) -> None:
    if answer.status != status:
        raise Failed(f"status {answer.status}")
    if not answer.size:
        raise Failed("an empty answer")


async def run(*, sites: list[Site], rate: float, out: Path, name: str) -> None:
    """Send until a signal says stop; returns when everything is answered and written."""
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    tally, dice = Tally(run=name, rate=rate, out=out), random.Random(name)  # noqa: S311 - no secret depends on it
    users = [Users(site, pool=POOL // len(sites), tally=tally, dice=dice, stopping=stopping) for site in sites]
    async with asyncio.TaskGroup() as flight:
        writing = asyncio.create_task(keep_writing(tally, stopping))
        for index in range(DOWNLOADS):
            flight.create_task(users[index % len(users)].downloading(index * STAGGER))
        for index in range(WEBSOCKETS):
            flight.create_task(users[index % len(users)].talking(index * STAGGER))
        await schedule(flight, users=users, rate=rate, tally=tally, dice=dice, stopping=stopping)
    writing.cancel()
    for visitors in users:
        visitors.close()
    tally.write("done")
    tally.close()


async def schedule(
    flight: asyncio.TaskGroup,
    *,
    users: list[Users],
    rate: float,
    tally: Tally,
    dice: random.Random,
    stopping: asyncio.Event,
) -> None:
    """Start every request at its moment, evenly spaced, until told to stop."""
    kinds, weights = list(MIX), list(MIX.values())
    began, number = clock(), 0
    while not stopping.is_set():
        due = began + number / rate
        early = due - clock()
        if early > 0:
            await asyncio.sleep(math.ceil(early * 1000) / 1000)  # never early: a latency must not come out too small
        elif number % 64 == 0:
            await asyncio.sleep(0)  # behind schedule: catch up, but let answers in
        tally.latest_ms = max(tally.latest_ms, (clock() - due) * 1000)
        kind = dice.choices(kinds, weights)[0]
        tally.sent += 1
        flight.create_task(users[number % len(users)].visit(kind=kind, fresh=dice.random() < FRESH, due=due))
        number += 1


async def keep_writing(tally: Tally, stopping: asyncio.Event) -> None:
    while True:
        await asyncio.sleep(1)
        tally.write("draining" if stopping.is_set() else "sending")


def read_sites(targets: list[str], names: list[str]) -> list[Site]:
    """A name for each target, or one for all. Raises ValueError."""
    if len(names) not in (1, len(targets)):
        raise ValueError(
            f"{len(targets)} targets and {len(names)} site hosts: give one for each target, or one for all"
        )
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9.:-]+", name):
            raise ValueError(f"--site-host {name!r}: want a host name")
    sites = []
    for index, target in enumerate(targets):
        host, _, port = target.rpartition(":")
        if not (host and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise ValueError(f"--target {target!r}: want HOST:PORT")
        sites.append(Site(host=host, port=int(port), name=names[index % len(names)]))
    return sites


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m orchestrator.demo.load", description="the demo's users")
    parser.add_argument("--target", action="append", required=True, metavar="HOST:PORT", help="may be given again")
    parser.add_argument("--site-host", action="append", required=True, metavar="NAME", help="the name to ask for")
    parser.add_argument("--rate", type=float, default=300, help="scheduled requests a second, over all targets")
    parser.add_argument("--out", type=Path, required=True, help="the folder for load.json and load.jsonl")
    parser.add_argument("--run", default=None, help="what the ids of the orders begin with")
    asked = parser.parse_args()
    if not 0 < asked.rate <= 100_000:
        parser.error("--rate: want a number above 0, at most 100000")
    try:
        sites = read_sites(asked.target, asked.site_host)
    except ValueError as problem:
        parser.error(str(problem))
    asked.out.mkdir(parents=True, exist_ok=True)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a site that hangs holds rate x timeout connections
    name = asked.run or f"{int(time.time()):x}{os.getpid():x}"
    uvloop.run(run(sites=sites, rate=asked.rate, out=asked.out, name=name))


if __name__ == "__main__":
    main()
