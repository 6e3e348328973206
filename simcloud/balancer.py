"""The balancers themselves: they ask each target whether it is well, and pass users' requests on to those that are.

HTTP/1.1 with bodies of a known length, and WebSockets; of a listener only its default action is followed, with its
weights. A request goes to one target and is never tried again at another: what fails at a target the user sees, as 502,
503 or 504.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from moto.elbv2.models import elbv2_backends

from simcloud.elbv2 import Target

if TYPE_CHECKING:
    from simcloud.cloud import SimCloud

TICK = 0.02  # seconds between two looks at what there is to do, at least
HASTE = 50  # looks in the time between two checks of a target
PATIENCE = 60.0  # seconds for which a target may be silent
LONGEST_HEAD = 65536  # bytes
SWITCHING = 101  # from HTTP to what was asked for
Trouble = tuple[str, str]


class Balancers:
    """All balancers of one cloud, in a thread of their own until `close`. `places`: ARN of a listener -> where users
    reach it. `answers`: HTTP status -> how often users got it."""

    def __init__(self, cloud: SimCloud) -> None:
        self._cloud = cloud
        self.places: dict[str, tuple[str, int]] = {}
        self.answers: dict[int, int] = {}
        self._asking: set[tuple[str, str, int]] = set()
        self._flights: dict[int, set[asyncio.StreamWriter]] = {}  # of a target, by its own identity
        self._servers: dict[str, asyncio.Server] = {}
        self._chance = random.Random(1)  # noqa: S311 - whose turn it is, is no secret
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        # Not waited for: whoever makes this holds the lock that the first round takes.
        self._loop.call_soon_threadsafe(lambda: self._start(self._go_round()))

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        for server in self._servers.values():
            server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- checks -------------------------------------------------------------------------------------------------------

    async def _go_round(self) -> None:
        while True:
            with self._cloud.lock:
                over = [each for group in _groups() for each in self._cloud.groups.sweep(group)]
                self._ask_all()
                new = [
                    (arn, listener, balancer)
                    for balancer in _balancers()
                    for arn, listener in balancer.listeners.items()
                    if arn not in self._servers
                ]
            for target in over:  # whatever still runs there is cut
                for writer in self._flights.pop(id(target), ()):
                    writer.transport.abort()
            for arn, listener, balancer in new:
                await self._listen(arn, listener, balancer)
            await asyncio.sleep(max(TICK, self._cloud.timings.health / HASTE))

    def _ask_all(self) -> None:
        """A check of each target whose turn it is."""
        cloud, groups = self._cloud, self._cloud.groups
        for group, target in groups.all():
            key = (group.arn, target.id, target.port)
            begun = cloud.now() - target.since >= cloud.timings.registering
            if key in self._asking or not begun or not group.health_check_enabled:
                continue
            if groups.unusable(group, target) is not None:
                target.verdict, target.passes, target.fails = "initial", 0, 0
                continue
            self._asking.add(key)
            self._start(self._ask(group, target, groups.address(group, target), key))

    async def _ask(self, group: Any, target: Target, address: str, key: tuple[str, str, int]) -> None:
        cloud = self._cloud
        try:
            if target.id in cloud.groups.ill:
                trouble: Trouble | None = cloud.groups.ill[target.id]
            elif cloud.machines is None:
                trouble = None
            else:
                port = target.port if group.health_check_port == "traffic-port" else int(group.health_check_port)
                limit = float(group.health_check_timeout_seconds)
                trouble = await _probe(group, address, port, limit)
            with cloud.lock:
                target.checked(
                    trouble,
                    passes=int(group.healthy_threshold_count),
                    fails=int(group.unhealthy_threshold_count),
                    used=cloud.now() + cloud.timings.propagation,
                )
            await asyncio.sleep(cloud.timings.health)
        finally:
            self._asking.discard(key)

    # -- users --------------------------------------------------------------------------------------------------------

    async def _listen(self, arn: str, listener: Any, balancer: Any) -> None:
        """At an address of its own in the balancer's first subnet, which no target may have."""
        first = balancer.subnets[0].cidr_block.rpartition(".")[0]
        backend = elbv2_backends[balancer.arn.split(":")[4]][balancer.arn.split(":")[3]]
        number = list(backend.load_balancers).index(balancer.arn)
        at = (f"{first}.{250 - number}", int(listener.port))

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            try:
                await self._serve(listener, backend, reader, writer)
            except (OSError, EOFError, asyncio.LimitOverrunError, asyncio.CancelledError):
                pass  # a user has gone, or the cloud ends
            finally:
                self._tasks.discard(task)
                writer.transport.abort()

        self._servers[arn] = await asyncio.start_server(serve, *at, limit=LONGEST_HEAD)
        self._cloud.groups.reserved.add(at[0])
        self.places[arn] = at

    async def _serve(
        self, listener: Any, backend: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            first, headers = _read(head)
            if "transfer-encoding" in headers:
                await self._say(writer, 501)
                return
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            with self._cloud.lock:
                found = self._choose(listener, backend)
            if found is None:
                await self._say(writer, 503)
                continue
            target, address = found
            kept = {name: value for name, value in headers.items() if name != "connection"}
            how = "upgrade" if "upgrade" in headers else "close"
            lines = [first, *(f"{name}: {value}" for name, value in kept.items()), f"connection: {how}", "", ""]
            if not await self._pass_on(target, address, "\r\n".join(lines).encode() + body, reader, writer):
                return

    def _choose(self, listener: Any, backend: Any) -> tuple[Target, str] | None:
        action = next((each for each in listener.default_actions if each.type == "forward"), None)
        arns = backend._get_target_group_arns_from(action_data=action.data) if action is not None else []
        weights = (
            {
                each["TargetGroupArn"]: int(each.get("Weight", 1))
                for each in (action.data.get("ForwardConfig") or {}).get("TargetGroups", ())
            }
            if action is not None
            else {}
        )
        if not arns:
            return None
        (arn,) = self._chance.choices(arns, [weights.get(arn, 1) for arn in arns])
        group = backend.target_groups[arn]
        candidates = self._cloud.groups.receive(group)
        if not candidates:
            return None
        target = self._chance.choice(candidates)
        return target, self._cloud.groups.address(group, target)

    async def _pass_on(
        self, target: Target, address: str, request: bytes, asks: asyncio.StreamReader, user: asyncio.StreamWriter
    ) -> bool:
        """Whether the user's connection may go on."""
        try:
            reader, writer = await asyncio.open_connection(address, target.port, limit=LONGEST_HEAD)
        except OSError:
            await self._say(user, 502)
            return True
        flights = self._flights.setdefault(id(target), set())
        flights.add(writer)
        begun = False
        try:
            writer.write(request)
            await writer.drain()
            async with asyncio.timeout(PATIENCE):
                head = await reader.readuntil(b"\r\n\r\n")
            first, headers = _read(head)
            status = int(first.split()[1])
            length = headers.get("content-length")
            kept = [f"{name}: {value}" for name, value in headers.items() if name != "connection"]
            begun = True
            if status == SWITCHING:
                self.answers[status] = self.answers.get(status, 0) + 1
                user.write(head)
                await asyncio.gather(_pump(asks, writer), _pump(reader, user))
                return False
            user.write(
                "\r\n".join([first, *kept, f"connection: {'keep-alive' if length else 'close'}", "", ""]).encode()
            )
            left = int(length) if length else None
            while left is None or left > 0:
                part = await reader.read(65536 if left is None else min(65536, left))
                if not part:
                    break
                left = None if left is None else left - len(part)
                user.write(part)
                await user.drain()
            self.answers[status] = self.answers.get(status, 0) + 1
        except TimeoutError:
            await self._say(user, 504)
            return True
        except (OSError, EOFError):
            if not begun:
                await self._say(user, 502)
            return not begun
        else:
            return left == 0
        finally:
            flights.discard(writer)
            writer.transport.abort()

    async def _say(self, user: asyncio.StreamWriter, status: int) -> None:
        self.answers[status] = self.answers.get(status, 0) + 1
        with suppress(OSError):
            user.write(f"HTTP/1.1 {status} Trouble\r\ncontent-length: 0\r\nconnection: keep-alive\r\n\r\n".encode())
            await user.drain()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """All that comes, until it ends."""
    while part := await source.read(65536):
        sink.write(part)
        await sink.drain()
    with suppress(OSError):
        sink.write_eof()


def _groups() -> list[Any]:
    return [
        group
        for account in elbv2_backends.values()
        for backend in account.values()
        for group in backend.target_groups.values()
    ]


def _balancers() -> list[Any]:
    return [
        balancer
        for account in elbv2_backends.values()
        for backend in account.values()
        for balancer in backend.load_balancers.values()
    ]


def _read(head: bytes) -> tuple[str, dict[str, str]]:
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return first, {name.strip().lower(): value.strip() for name, _, value in pairs}


async def _probe(group: Any, address: str, port: int, limit: float) -> Trouble | None:
    """What is wrong with a target, by its own answer."""
    try:
        async with asyncio.timeout(limit):
            reader, writer = await asyncio.open_connection(address, port)
            try:
                if group.health_check_protocol not in ("HTTP", "HTTPS"):
                    return None
                path = group.health_check_path or "/"
                ask = f"GET {path} HTTP/1.1\r\nhost: {address}\r\nuser-agent: ELB-HealthChecker/2.0\r\n"
                writer.write(f"{ask}connection: close\r\n\r\n".encode())
                await writer.drain()
                status = int((await reader.readuntil(b"\r\n")).split()[1])
            finally:
                writer.transport.abort()
    except TimeoutError:
        return "Target.Timeout", "Request timed out"
    except (OSError, EOFError, ValueError, IndexError):
        return "Target.FailedHealthChecks", "Health checks failed"
    if _expected(status, str((group.matcher or {}).get("HttpCode", "200"))):
        return None
    return "Target.ResponseCodeMismatch", f"Health checks failed with these codes: [{status}]"


def _expected(status: int, codes: str) -> bool:
    for part in codes.split(","):
        first, _, last = part.partition("-")
        if int(first) <= status <= int(last or first):
            return True
    return False
