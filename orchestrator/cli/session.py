"""What a command needs of its surroundings, opened when it is needed."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from orchestrator.errors import BadInput

if TYPE_CHECKING:
    from celery import Celery

    from orchestrator.api.client import Client
    from orchestrator.dispatch import Sender
    from orchestrator.operations import Asker
    from orchestrator.settings import Settings
    from orchestrator.store import Store

BESIDE = 15.0  # seconds of an answer's way


@dataclass(frozen=True)
class Session:
    """The store, and ways to send messages; these are made only by who sends some."""

    store: Store
    settings: Settings

    @cached_property
    def _app(self) -> Celery:
        from orchestrator.messaging import make_app

        app = make_app(self.settings)
        # A person waits: an absent broker is told at once instead of being tried for ever.
        app.conf.update(broker_connection_max_retries=2, broker_connection_timeout=3)
        return app

    @cached_property
    def ask(self) -> Asker:
        from orchestrator.operations import celery_asker

        return celery_asker(self._app)

    def check_messages(self) -> None:
        """Raises `Unreachable` or `UnsafeStore` for servers of messages and results that are not the records' own."""
        from orchestrator.store.health import check_messages

        check_messages(self.settings.urls(), dev=self.settings.dev)

    def publish(self) -> Sender:
        from orchestrator.dispatch import celery_sender

        return celery_sender(self._app)


def remote() -> bool:
    """Whether the API is to be asked, and not Redis."""
    return bool(os.environ.get("CHANGEOVER_URL"))


@contextmanager
def api(timeout: float = 60.0) -> Iterator[Client]:
    """The API that `CHANGEOVER_URL` names. `timeout`: seconds that a worker's answer may take."""
    from orchestrator.api.client import Client
    from orchestrator.settings import Settings

    found = Settings.load()
    if not found.token:
        raise BadInput("is not set", place="CHANGEOVER_TOKEN", next="changeover token create --help")
    with Client(found.url, found.token, timeout=timeout + BESIDE, insecure=found.insecure) as client:
        yield client


@contextmanager
def opened() -> Iterator[Session]:
    """Raises `Unreachable` when no Redis is known or it does not answer."""
    import logging

    from orchestrator.settings import Settings
    from orchestrator.store.redis import RedisStore

    # What the store passes over it tells the log, which a command has none of: the command says it itself, and once.
    logging.getLogger("orchestrator").addHandler(logging.NullHandler())
    found = Settings.load()
    if found.url:
        raise BadInput(
            f"is set to {found.url}, and this command does not ask the API: it is done where Redis is",
            place="CHANGEOVER_URL",
            next="unset CHANGEOVER_URL",
        )
    store = RedisStore(found.store_url(), namespace=found.namespace)
    try:
        yield Session(store, found)
    finally:
        store.close()


def person() -> str:
    """The name of who asks."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a name for its user
        return "somebody"


def actor() -> str:
    """Who asks, for the audit log."""
    return f"{person()}@{socket.gethostname()}"
