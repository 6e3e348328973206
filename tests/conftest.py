"""What every test may ask for."""

from __future__ import annotations

import os
import uuid
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from orchestrator.store import Store
from orchestrator.store.memory import MemoryStore
from orchestrator.store.redis import RedisStore
from tests.support.valkey import running_valkey

if TYPE_CHECKING:
    from orchestrator.api.routes import Api
    from tests.support.api import Served

# Many more histories of the state machines: `pytest tests/unit --hypothesis-profile=thorough`.
settings.register_profile("thorough", deadline=None, database=None)
# A busy machine takes its time: no example has a deadline.
settings.register_profile("unhurried", deadline=None, database=None)
settings.load_profile("unhurried")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--simulate", type=int, default=1000, help="how many seeds tests/simulation plays")
    parser.addoption("--first", type=int, default=0, help="the first of them")
    parser.addoption("--slices", type=int, default=3, help="how many processes may share them, with `-n`")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("first") is None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where everything that a test may need is promised to be there, a skipped test is a failed one."""
    report = yield
    if report.skipped and os.environ.get("CHANGEOVER_REQUIRE_ALL") and not hasattr(report, "wasxfail"):
        reason: Any = report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped, though CHANGEOVER_REQUIRE_ALL is set: {reason[2] if reason else ''}"
    return report


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    """One Valkey for the whole run. Take a namespace, or a database, of your own."""
    with running_valkey() as valkey:
        yield valkey.url


@pytest.fixture(scope="module")
def door() -> Iterator[tuple[str, Api]]:
    """Where an API of this process listens, and what it serves from. Loaded only for who asks: it takes a second."""
    from tests.support.api import listening

    with listening() as found:
        yield found


@pytest.fixture
def api(door: tuple[str, Api]) -> Iterator[Served]:
    """The same with an empty store of its own."""
    from tests.support.api import served

    with served(*door) as found:
        yield found


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """An empty store of each kind, on the real clock."""
    if request.param == "memory":
        yield MemoryStore()
        return
    redis_store = RedisStore(request.getfixturevalue("valkey_url"), namespace=uuid.uuid4().hex[:12])
    yield redis_store
    redis_store.close()
