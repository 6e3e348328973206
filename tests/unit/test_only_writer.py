"""One writer at a balancer: other workers wait their turn for a moment, and come again after it."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.store.memory import MemoryStore
from providers.errors import Busy
from tasks.world import Turn, World


def turn(store: MemoryStore, owner: str, *, handover: float) -> Turn:
    made: Any = Turn.__new__(Turn)
    made._world = World(store=store, publish=lambda _messages: None, worker=owner, handover=handover)
    made.claim = SimpleNamespace(owner=owner)
    return made  # type: ignore[no-any-return] # made without its claim on an upgrade, which this does not look at


def test_a_worker_waits_for_a_balancer_that_another_one_has_for_a_moment() -> None:
    store = MemoryStore()
    first, second = turn(store, "one", handover=0), turn(store, "two", handover=30)
    order: list[str] = []

    def waits() -> None:
        with second.only_writer("lb"):
            order.append("second")

    with first.only_writer("lb"):
        thread = threading.Thread(target=waits)
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]


def test_a_worker_that_has_waited_long_enough_comes_again() -> None:
    store = MemoryStore()
    first, second = turn(store, "one", handover=0), turn(store, "two", handover=0.05)
    with first.only_writer("lb"), pytest.raises(Busy, match="another worker"), second.only_writer("lb"):
        raise AssertionError("two writers at once")
