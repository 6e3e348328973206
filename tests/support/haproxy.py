"""A real HAProxy on loopback, real servers behind it, and users who never stop asking."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

from providers.clients.haproxy import RuntimeSocket, Server
from providers.clients.haproxy_config import bundled_binary, environment
from providers.errors import Busy, GuardRefused, Transient
from providers.traffic import Guard, Member, MemberView
from providers.traffic.haproxy import HAProxyTraffic

T = TypeVar("T")
CHECK = "check inter 200ms fastinter 50ms rise 2 fall 2"
NO_GUARD = Guard(min_healthy=0)
_addresses = itertools.count(os.getpid() * 97)


def until(look: Callable[[], T], *, what: str = "", seconds: float = 20.0) -> T:
    """The first truthy answer; fails the test after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        if found := look():
            return found
        assert time.monotonic() < deadline, f"still not after {seconds} s: {what or look}"
        time.sleep(0.01)


def own_address() -> str:
    """A loopback address that hardly anybody else uses."""
    number = next(_addresses) % (254 * 254 * 100)
    return f"127.{100 + number // (254 * 254)}.{1 + number // 254 % 254}.{1 + number % 254}"


class Loop:
    """One event loop in a thread, for all sites and users of a test."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def close(self) -> None:
        async def cancel() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self.run(cancel())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)
        self.loop.close()


class Site:
    """A small HTTP server that says its name. `/slow` answers when `release` is called, `/ws` becomes an echo."""

    def __init__(self, loop: Loop, name: str) -> None:
        self.name = name
        self.address = own_address()
        self.port = 0
        self.healthy = True
        self.served = 0
        self._loop = loop
        self._release = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.StreamWriter] = set()
        self.start()

    @property
    def member(self) -> Member:
        return Member(name=self.name, address=self.address, port=self.port)

    def start(self) -> None:
        self._loop.run(self._start())

    def stop(self) -> None:
        """As a crash: nobody listens, open connections end."""
        self._loop.run(self._stop())

    def release(self) -> None:
        self._loop.loop.call_soon_threadsafe(self._release.set)

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._serve, self.address, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        if self._server:
            self._server.close()
        for link in list(self._links):
            link.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._links.add(writer)
        # Cancelled at the end of the test, which asyncio would otherwise report as an error of this callback.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                path = head.split()[1]
                if path == "/health":
                    status, body = (200, "well") if self.healthy else (503, "ill")
                    # A check that keeps its connection would hold the server's deletion.
                    writer.write(_answer(status, body, close=True))
                    break
                self.served += 1
                if path == "/ws":
                    writer.write(_SWITCH)
                    while line := await reader.readline():
                        writer.write(line)
                        await writer.drain()
                    break
                if path == "/slow":
                    await self._release.wait()
                writer.write(_answer(500 if path == "/error" else 200, self.name))
                await writer.drain()
        with contextlib.suppress(OSError):
            await writer.drain()
        self._links.discard(writer)
        writer.close()


_SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


def _answer(status: int, body: str, *, close: bool = False) -> bytes:
    extra = "Connection: close\r\n" if close else ""
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n{extra}\r\n{body}".encode()


class Users:
    """Some keep their connection, some bring a new one each time. `failures` says what went wrong."""

    def __init__(self, loop: Loop, where: tuple[str, int], *, count: int = 6) -> None:
        self.answers: dict[str, int] = {}
        self.failures: list[str] = []
        self._on = True
        self._where = where
        self._tasks = [
            asyncio.run_coroutine_threadsafe(self._ask(number % 2 == 0), loop.loop) for number in range(count)
        ]

    @property
    def total(self) -> int:
        return sum(self.answers.values())

    def stop(self) -> None:
        self._on = False
        for task in self._tasks:
            task.result(25)

    def go_on(self, requests: int = 60) -> None:
        """Returns when so many more requests were answered."""
        goal = self.total + requests
        until(lambda: self.total >= goal or self.failures, what=f"{requests} more answers")

    async def _ask(self, keep: bool) -> None:
        link: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while self._on:
            try:
                link = link or await asyncio.open_connection(*self._where)
                body = await asyncio.wait_for(get(*link), 20)
                self.answers[body] = self.answers.get(body, 0) + 1
            except (OSError, asyncio.IncompleteReadError, TimeoutError, BadAnswer) as error:
                self.failures.append(repr(error))
                if link:
                    link[1].close()
                link = None
            if link and not keep:
                link[1].close()
                link = None
            await asyncio.sleep(0.005)
        if link:
            link[1].close()


class BadAnswer(Exception): ...


async def get(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str = "/", cookie: str = "") -> str:
    extra = f"Cookie: {cookie}\r\n" if cookie else ""
    writer.write(f"GET {path} HTTP/1.1\r\nHost: site\r\n{extra}\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    if not head.startswith("HTTP/1.1 200"):
        raise BadAnswer(head.splitlines()[0])
    length = next(int(line.split(":")[1]) for line in head.lower().splitlines() if line.startswith("content-length"))
    return (await reader.readexactly(length)).decode()


class Visit:
    """One user's connection, asked step by step. `set_cookie` is what the balancer gave."""

    def __init__(self, where: tuple[str, int]) -> None:
        self._link = socket.create_connection(where, timeout=5)
        self._file = self._link.makefile("rb")
        self.set_cookie = ""

    def ask(self, path: str, *, headers: str = "") -> None:
        self._link.sendall(f"GET {path} HTTP/1.1\r\nHost: site\r\n{headers}\r\n".encode())

    def say(self, line: str) -> str:
        self._link.sendall(line.encode() + b"\n")
        return self._file.readline().decode().strip()

    def answer(self) -> tuple[int, str]:
        """Status and body; status 0 if the connection was cut."""
        first = self._file.readline().decode()
        if not first:
            return 0, ""
        length = 0
        while (line := self._file.readline().decode().strip()) != "":
            name, _, value = line.partition(": ")
            length = int(value) if name.lower() == "content-length" else length
            self.set_cookie = value.split(";")[0] if name.lower() == "set-cookie" else self.set_cookie
        return int(first.split()[1]), self._file.read(length).decode()

    def close(self) -> None:
        self._file.close()
        self._link.close()


class HAProxy:
    """One HAProxy with a backend `web` of these servers, to be killed, restarted and reloaded at will."""

    def __init__(self, *sites: Site, backend: str = "", server: str = CHECK, check: str = "option httpchk GET /health"):
        self.folder = Path(tempfile.mkdtemp(prefix="co-", dir="/tmp"))
        self.socket = str(self.folder / "s")
        self.config = self.folder / "haproxy.cfg"
        self.users = (own_address(), _free_port())
        self.binary = bundled_binary()
        lines = "".join(f"  server {s.name} {s.address}:{s.port} {server}\n" for s in sites)
        self.config.write_text(
            _CONFIG.format(socket=self.socket, bind="{}:{}".format(*self.users))
            + f"""\
backend web
  balance roundrobin
  {check}
{backend}{lines}
# kept as it is: the end\n"""
        )
        self._running: list[subprocess.Popen[bytes]] = []
        self.wire = RuntimeSocket(self.socket)
        self.start()

    def __enter__(self) -> HAProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def traffic(self, **settings: Any) -> HAProxyTraffic:
        given = {"socket": self.socket, "config": str(self.config), "check": CHECK.removeprefix("check "), **settings}
        return HAProxyTraffic(given)

    def start(self, *args: str) -> None:
        process = subprocess.Popen(
            [self.binary, "-db", "-f", str(self.config), *args],
            env=environment(self.binary),
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / "log").open("ab"),
        )
        self._running.append(process)

        def answers() -> bool:
            assert process.poll() is None, (self.folder / "log").read_text()
            with contextlib.suppress(Transient):
                return self.wire.snapshot().process.pid == process.pid
            return False

        until(answers, what="HAProxy answers")

    def kill(self) -> None:
        for process in self._running:
            process.kill()
            process.wait()
        self._running.clear()

    def restart(self) -> None:
        self.kill()
        self.start()

    def reload(self) -> None:
        """The old process finishes its sessions, the new one knows nothing of them."""
        self.start("-sf", str(self._running[-1].pid))

    def end_old(self) -> None:
        for process in self._running[:-1]:
            process.kill()
            process.wait()
        del self._running[:-1]

    def server(self, name: str) -> Server:
        return self.wire.snapshot("web").servers("web")[name]

    def line(self, name: str) -> str:
        """The server's line in the file, without indent; empty if none."""
        lines = self.config.read_text().splitlines()
        return next((line.strip() for line in lines if line.split()[:2] == ["server", name]), "")

    def all_up(self) -> None:
        until(lambda: all(one.up for one in self.wire.snapshot("web").servers("web").values()), what="all UP")


_CONFIG = """\
# A file of somebody's own.
global
  stats socket {socket} mode 600 level admin expose-fd listeners
  stats maxconn 500
  hard-stop-after 60s

defaults
  mode http
  option idle-close-on-response
  option redispatch 1
  timeout connect 5s
  timeout check 5s
  timeout client 30s
  timeout server 30s
  timeout queue 5s
  timeout tunnel 1h
frontend users
  bind {bind}
  default_backend web

"""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def bring_in(traffic: Any, pool: str, member: Member, *, verb: str = "add", seconds: float = 20.0) -> list[MemberView]:
    """Advances until it serves for good; all views on the way."""
    views: list[MemberView] = []

    def step() -> bool:
        with contextlib.suppress(Busy, Transient):
            view = traffic.proven([(pool, member.name)])[pool, member.name]
            if not views or view.actionable or view.state == "absent":
                view = getattr(traffic, verb)(pool, member)
            if not views or views[-1] != view:
                views.append(view)
            return view.state == "serving" and not view.actionable
        return False

    until(step, what=f"{member.name} serves: {views[-3:]}", seconds=seconds)
    return views


def take_out(
    traffic: Any, pool: str, name: str, *, guard: Guard = NO_GUARD, cut: bool = False, seconds: float = 20.0
) -> list[str]:
    """Advances until it is absent; the states on the way."""
    states: list[str] = []

    def step() -> bool:
        with contextlib.suppress(Busy, Transient, GuardRefused):
            states.append(traffic.remove(pool, name, guard=guard, cut=cut).state)
            return states[-1] == "absent"
        return False

    until(step, what=f"{name} absent: {states[-3:]}", seconds=seconds)
    return list(dict.fromkeys(states))


@contextlib.contextmanager
def stage(*names: str, **options: str) -> Iterator[tuple[HAProxy, dict[str, Site], Loop]]:
    """Sites of these names; those that begin with a capital are not yet behind the HAProxy."""
    loop = Loop()
    try:
        sites = {name: Site(loop, name) for name in names}
        with HAProxy(*(site for name, site in sites.items() if not name[0].isupper()), **options) as haproxy:
            haproxy.all_up()
            yield haproxy, sites, loop
    finally:
        loop.close()
