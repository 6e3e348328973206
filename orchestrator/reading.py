"""Records read so that one that cannot be read holds up nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.errors import UnsafeStore
from orchestrator.store import Row, Store


def readable(store: Store, rollout: str, servers: Sequence[str]) -> tuple[list[Row], dict[str, str]]:
    """The rows of those whose records can be read, in the order of their names; of the others the name, and why. One
    whose key is gone altogether is among the others.

    Raises `Unreachable`.
    """
    try:
        found = list(store.rows(rollout, servers))
    except UnsafeStore as error:
        if len(servers) == 1:
            return [], {servers[0]: error.message}
    else:
        there = {row.upgrade.server for row in found}
        return found, {name: f"the record of {name} is gone" for name in sorted(servers) if name not in there}
    # Halves: few of thousands are broken, and each of the others is read once or twice more.
    ordered = sorted(servers)
    middle = len(ordered) // 2
    rows, unread = readable(store, rollout, ordered[:middle])
    more, others = readable(store, rollout, ordered[middle:])
    return rows + more, unread | others
