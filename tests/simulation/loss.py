"""The store's last second: kept, and brought back."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any

from orchestrator.store.memory import MemoryStore
from orchestrator.store.redis import RedisStore


def keep(store: Any) -> Any:
    """All that it knows now."""
    if isinstance(store, MemoryStore):
        return _copy(vars(store))
    assert isinstance(store, RedisStore)
    client = store._redis
    keys = sorted(client.scan_iter(match=f"{store._prefix}*", count=1000))
    pipe = client.pipeline(transaction=False)
    for key in keys:
        pipe.dump(key)
        pipe.pttl(key)
    answers = pipe.execute()
    return list(zip(keys, answers[::2], answers[1::2], strict=True))


def bring_back(store: Any, kept: Any) -> None:
    """It knows what it knew then, and nothing since."""
    if isinstance(store, MemoryStore):
        for name, value in _copy(kept).items():
            setattr(store, name, value)
        return
    client = store._redis
    pipe = client.pipeline(transaction=False)
    for key in client.scan_iter(match=f"{store._prefix}*", count=1000):
        pipe.delete(key)
    for key, dumped, ttl in kept:
        pipe.restore(key, max(0, ttl), dumped)
    pipe.execute()


def empty(store: Any) -> None:
    """It knows nothing any more."""
    if isinstance(store, MemoryStore):
        for name, value in vars(MemoryStore(store._clock)).items():
            if name not in _NOT_ITS_OWN:
                setattr(store, name, value)
        return
    bring_back(store, [])


_NOT_ITS_OWN = ("_clock", "_lock", "_news")


def _copy(all_of_it: dict[str, Any]) -> dict[str, Any]:
    """Records and entries do not change; what holds them does."""
    out = {name: copy(value) for name, value in all_of_it.items() if name not in _NOT_ITS_OWN}
    out["_look"] = {lane: dict(agenda) for lane, agenda in out["_look"].items()}
    out["_leases"] = {name: replace(lease) for name, lease in out["_leases"].items()}
    out["_rollouts"] = {
        id: replace(
            stored,
            records={name: replace(record) for name, record in stored.records.items()},
            counts=dict(stored.counts),
            domains=dict(stored.domains),
            ledger=dict(stored.ledger),
            audit=list(stored.audit),
        )
        for id, stored in out["_rollouts"].items()
    }
    return out
