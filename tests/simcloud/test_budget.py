"""All workers together ask a cloud no more often than it lets them, and learn how often that is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from orchestrator.domain.budget import Limit
from orchestrator.store.memory import MemoryStore
from providers import budget
from providers.clients.aws import Aws
from providers.errors import Throttled
from simcloud.cloud import SimCloud
from tasks.world import SharedBudget
from tests.support.aws import credentials, wire

THREADS, EACH = 8, 2


@pytest.fixture
def cloud() -> Iterator[SimCloud]:
    with credentials(), SimCloud() as made:
        made.troubles.limit("ec2:Describe*", size=4, refill=8)
        yield made


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    made = MemoryStore(time.time)
    budget.use(SharedBudget(made))
    yield made
    budget.use(None)


def asks(clouds: list[Aws], *, again: Callable[[Throttled], None]) -> int:
    """How often workers that all want their answers were told that they had asked too often."""

    def worker(aws: Aws) -> int:
        refused = 0
        for _ in range(EACH):
            while True:
                try:
                    aws.write("ec2", "describe_key_pairs")  # sent once, so that the SDK repeats nothing by itself
                    break
                except Throttled as error:
                    refused += error.code is not None
                    again(error)
        return refused

    with ThreadPoolExecutor(len(clouds)) as pool:
        return sum(pool.map(worker, clouds))


def test_a_throttle_storm_stays_within_what_the_cloud_allows(cloud: SimCloud, store: MemoryStore) -> None:
    refused = asks([wire(cloud) for _ in range(THREADS)], again=lambda error: time.sleep(error.retry_after))
    bucket = store.buckets()["aws default/eu-west-1 ec2 write"]
    assert bucket.refused == refused
    assert refused <= THREADS, "only those that were under way before anybody knew"
    assert 0 < bucket.rate <= 4.0


def test_a_call_that_would_wait_for_too_long_is_not_made(cloud: SimCloud, store: MemoryStore) -> None:
    pace = wire(cloud).pace("ec2", "describe_key_pairs", writes=False)
    assert pace is not None
    while store.spend(pace.bucket, Limit(rate=pace.rate, burst=pace.burst), patience=60) < budget.PATIENCE + 1:
        pass
    with pytest.raises(Throttled, match="no more often") as caught:
        wire(cloud).read("ec2", "describe_key_pairs")
    assert caught.value.code is None
    assert caught.value.retry_after > budget.PATIENCE
