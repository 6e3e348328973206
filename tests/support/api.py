"""The API over a real socket of this process, over a store in memory and a world that answers at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import httpx2
from structlog.testing import capture_logs

from orchestrator import fleet_file, operations, tokens
from orchestrator.api.callers import Pace
from orchestrator.api.live import Live
from orchestrator.api.routes import Api
from orchestrator.api.serving import server_of
from orchestrator.flower import listen
from orchestrator.operations import Waiter
from orchestrator.store.memory import MemoryStore
from orchestrator.web.site import make_site
from tests.unit.test_operations import FLEET, Clock, World

FLOWER = "http://flower.test:5555"
SCOPES = ("read", "plan", "run", "admin")


@dataclass
class Served:
    """`http` asks with a token that may everything."""

    url: str
    api: Api
    store: MemoryStore
    world: World
    clock: Clock
    clients: list[httpx2.Client] = field(default_factory=list)

    @cached_property
    def http(self) -> httpx2.Client:
        return self.client(self.token())

    def token(self, *scopes: str, fleets: tuple[str, ...] = (), seconds: float | None = None) -> str:
        return tokens.create(self.store, "ci", scopes or SCOPES, actor="anna", fleets=fleets, seconds=seconds)[1]

    def client(self, shown: str | None = None) -> httpx2.Client:
        headers = {} if shown is None else {"Authorization": f"Bearer {shown}"}
        plain: Any = {"timeout": 60, "trust_env": False, "verify": False}  # to load authorities takes long
        self.clients.append(httpx2.Client(base_url=self.url, headers=headers, **plain))
        return self.clients[-1]

    def applied(self, text: str = FLEET) -> str:
        """A rollout, as the command line starts one."""
        fleet = fleet_file.read(text, name="fleet")
        return operations.apply(self.store, self.world, fleet, agreed=None, actor="anna").id


@contextmanager
def listening() -> Iterator[tuple[str, Api]]:
    """A server for any number of tests, one after the other: each gives it a store and a world of its own."""
    store = MemoryStore()
    api = Api(store=store, ask=World(store), pace=Pace(rate=1), dev=True)
    server = server_of(api, make_site(api, flower=FLOWER))
    listener = listen(0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    end = time.monotonic() + 60
    while not server.started:
        assert thread.is_alive() and time.monotonic() < end, "the API did not start"
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", api
    finally:
        server.should_exit = True
        thread.join(60)
        listener.close()
        assert not thread.is_alive(), "the API did not end"


@contextmanager
def served(url: str, api: Api) -> Iterator[Served]:
    """What was not there before, behind a server that listens."""
    clock = Clock()
    store = MemoryStore(clock)
    world = World(store)
    api.store, api.ask, api.live = store, world, Live(store)
    api.pace, api.waiter, api.carrier = Pace(rate=100_000), Waiter(timeout=20, every=0.005), None
    found = Served(url, api, store, world, clock)
    # As the process itself logs: without the values of variables.
    with capture_logs():
        try:
            yield found
        finally:
            for client in found.clients:
                client.close()
