"""The process that serves the API and the page until SIGTERM: one event loop, threads for what waits for Redis."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import socket
import threading
from collections.abc import Callable

import structlog
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from orchestrator import logs, tokens
from orchestrator.api.app import ASGIApp, make_app
from orchestrator.api.callers import Pace
from orchestrator.api.routes import Api
from orchestrator.errors import BadInput
from orchestrator.hook_file import Hooks, Reread
from orchestrator.hooks import LAST_WORDS, Carrier
from orchestrator.messaging import make_app as make_celery
from orchestrator.operations import celery_asker
from orchestrator.settings import Settings
from orchestrator.store.redis import RedisStore

CONNECTIONS = 160  # to Redis: a thread of each kind may want one
HEAD_WITHIN = 10.0  # seconds from the first byte of a request, or a connection's beginning, to the end of its head
STALLED = 30.0  # seconds in which a reader must take what is to be sent, or `LEAST` of it
LEAST = 32 * 1024  # bytes
MOST = 2000  # connections
DRAIN = 10  # seconds that requests are given to end
log = structlog.get_logger(__name__)


class Protocol(H11Protocol):
    """Ends a connection on which no whole head of a request comes in time, and one whose client does not read: uvicorn
    itself waits for ever. Aborts it, since to close it is to wait until all has been read."""

    _head: asyncio.TimerHandle | None = None
    _reader: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # writing is paused as soon as anything has to wait
        self._await_head()

    def data_received(self, data: bytes) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif idle and self._head is None:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._stop_watching()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        self._stop_watching()
        super().resume_writing()

    def _await_head(self) -> None:
        self._head = self.loop.call_later(HEAD_WITHIN, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _watch_reader(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._reader = self.loop.call_later(STALLED, self._look_at_reader, left)

    def _look_at_reader(self, before: int) -> None:
        if before - self.transport.get_write_buffer_size() < LEAST:
            self.transport.abort()
        else:
            self._watch_reader()

    def _stop_watching(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None


def refuse_open_door(address: str, store: RedisStore) -> None:
    """Raises `BadInput` for an address beyond this host as long as nobody has a token."""
    if not ipaddress.ip_address(address).is_loopback and not tokens.holding(store):
        raise BadInput(
            f"{address} is beyond this host, and there is no token by which anybody could be let in",
            place="--address",
            next="changeover token create NAME --scope read",
        )


def open_store(settings: Settings) -> RedisStore:
    return RedisStore(settings.store_url(), namespace=settings.namespace, connections=CONNECTIONS)


def serve(
    settings: Settings,
    store: RedisStore,
    listener: socket.socket,
    *,
    rate: float,
    hooks: Reread[Hooks] | None,
    site: Callable[[Api], ASGIApp],
) -> None:
    """Until SIGTERM or Ctrl-C. `rate`: how often a token may ask, a second. `hooks`: who else may knock. `site` makes
    the pages for people."""
    logs.configure("api")
    celery = make_celery(settings)
    # Somebody waits: an absent broker is told at once instead of being tried for ever.
    celery.conf.update(broker_connection_max_retries=2, broker_connection_timeout=3)
    ask = celery_asker(celery)
    carrier = Carrier(store=store, ask=ask, hooks=hooks(), fresh=hooks) if hooks is not None else None
    api = Api(store=store, ask=ask, pace=Pace(rate=rate), dev=settings.dev, carrier=carrier)
    for which in (signal.SIGTERM, signal.SIGINT):  # which uvicorn hands on once it has ended in order
        signal.signal(which, lambda *_: None)
    log.info("serving", at="{}:{}".format(*listener.getsockname()[:2]))
    carrying = threading.Thread(target=carrier.run, name="webhooks", daemon=True) if carrier is not None else None
    if carrying is not None:
        carrying.start()
    server_of(api, site(api)).run(sockets=[listener])
    if carrier is not None and carrying is not None:
        carrier.end()
        carrying.join(2 * LAST_WORDS)
    store.close()


def server_of(api: Api, site: ASGIApp | None = None) -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(
            make_app(api, site),
            http=Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=MOST,
            timeout_keep_alive=75,  # above what a proxy in front keeps its connections idle for
            timeout_graceful_shutdown=DRAIN,
            h11_max_incomplete_event_size=32 * 1024,
            proxy_headers=False,
        )
    )
