"""The worlds that the contract tests run in. A provider joins by one entry here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from tests.contract.worlds import (
    ComputeWorld,
    aws_world,
    cloudformation_world,
    fake_world,
    fake_world_of_its_own,
    local_world,
)

COMPUTE_WORLDS: dict[str, Callable[[], AbstractContextManager[ComputeWorld]]] = {
    "aws": aws_world,
    "cloudformation": cloudformation_world,
    "fake": fake_world,
    "fake in a process of its own": fake_world_of_its_own,
    "local": local_world,
}


@pytest.fixture(scope="module", params=sorted(COMPUTE_WORLDS))
def compute_world(request: pytest.FixtureRequest) -> Iterator[ComputeWorld]:
    with COMPUTE_WORLDS[request.param]() as world:
        yield world
