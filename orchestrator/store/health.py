"""Whether a Redis would keep what it is told, as far as what it is told needs that.

records     nothing may be lost: append-only file (or at least a replica, where the address says that replicas keep
            them: managed services have no file), nothing evicted
messages    nothing evicted: a lost message costs time, and an evicted one is lost while its server is well
results     nothing reads them for truth: they may be evicted and forgotten
"""

from __future__ import annotations

from typing import Any, Literal

import redis

from orchestrator.addresses import Address, parse
from orchestrator.errors import UnsafeStore
from orchestrator.settings import Urls
from orchestrator.store.connecting import MORE_MEMORY, Told, connect

Role = Literal["records", "messages", "results"]
WHOSE: dict[Role, str] = {"records": "Redis", "messages": "the broker's Redis", "results": "the results' Redis"}
_FULL = 0.95  # of its limit


def check_messages(urls: Urls, *, dev: bool) -> None:
    """Of the servers of messages and results, where they are not the records' own: raises `Unreachable`, or unless
    `dev` `UnsafeStore`."""
    records = parse(urls.records)
    roles: tuple[tuple[Role, str], ...] = (("messages", urls.messages), ("results", urls.results))
    for role, url in roles:
        address = parse(url)
        if address.same_server(records):
            continue
        client = connect(address, connections=1)
        try:
            with Told(address, whose=WHOSE[role]):
                client.ping()
                if not dev:
                    check(client, address, role)
        finally:
            client.connection_pool.disconnect()


def check(client: Any, address: Address, role: Role) -> None:
    """Reads INFO, and where its user may not, CONFIG. Raises `UnsafeStore`, and what redis-py raises."""
    who = f"{WHOSE[role]} at {address.where}"
    try:
        info = client.info()
    except redis.exceptions.NoPermissionError:
        info = _configured(client, who)
    version = str(info.get("redis_version", "7"))
    policy = info.get("maxmemory_policy", "noeviction")
    limit, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    if role == "records" and int(version.split(".", maxsplit=1)[0]) < 7:
        raise UnsafeStore(f"{who} is {version}: 7 or newer is needed", next="redis-server --version")
    if role != "results" and policy != "noeviction":
        raise UnsafeStore(
            f"{who} would evict keys when it is full (maxmemory-policy {policy})",
            next="redis-cli CONFIG SET maxmemory-policy noeviction",
        )
    by_replicas = bool(address.kept_by)
    kept = int(info.get("aof_enabled", 0)) or (by_replicas and int(info.get("connected_slaves", 0)))
    if role == "records" and not kept:
        alone = ", and has no replica now" if by_replicas else ""
        raise UnsafeStore(
            f"{who} keeps no append-only file{alone}: it would forget what it was told",
            next="redis-cli INFO replication" if by_replicas else "redis-cli CONFIG SET appendonly yes",
        )
    if info.get("aof_last_write_status", "ok") != "ok":
        raise UnsafeStore(f"{who} cannot write its append-only file", next="redis-cli INFO persistence")
    if info.get("role") == "slave":
        raise UnsafeStore(f"{who} is a replica, not the primary", next="name the primary's address")
    if policy == "noeviction" and limit and used > _FULL * limit:
        raise UnsafeStore(f"{who} is full: {used >> 20} of {limit >> 20} MiB are used", next=MORE_MEMORY)


def _configured(client: Any, who: str) -> dict[str, Any]:
    try:
        config = client.config_get("maxmemory-policy", "appendonly", "replicaof")
    except redis.exceptions.NoPermissionError:
        raise UnsafeStore(
            f"{who} does not let our user see whether it would keep what it is told",
            next="redis-cli ACL SETUSER <our user> +info",
        ) from None
    return {
        "maxmemory_policy": config.get("maxmemory-policy", "noeviction"),
        "aof_enabled": int(config.get("appendonly") == "yes"),
        "role": "slave" if config.get("replicaof") else "master",
    }
