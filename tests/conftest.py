"""What every test may ask for."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from orchestrator.store import Store
from orchestrator.store.memory import MemoryStore
from orchestrator.store.redis import RedisStore
from tests.support.valkey import running_valkey


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    """One Valkey for the whole run. Take a namespace, or a database, of your own."""
    with running_valkey() as valkey:
        yield valkey.url


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """An empty store of each kind, on the real clock."""
    if request.param == "memory":
        yield MemoryStore()
        return
    redis_store = RedisStore(request.getfixturevalue("valkey_url"), namespace=uuid.uuid4().hex[:12])
    yield redis_store
    redis_store.close()
