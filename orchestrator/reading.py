"""Records read so that one that cannot be read holds up nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.errors import UnsafeStore
from orchestrator.store import Row, Store


def readable(store: Store, rollout: str, servers: Sequence[str]) -> tuple[list[Row], dict[str, str]]:
    """The rows of those whose records can be read, in the order of their names; of the others the name, and why.

    Raises `Unreachable`.
    """
    try:
        return list(store.rows(rollout, servers)), {}
    except UnsafeStore as error:
        if len(servers) == 1:
            return [], {servers[0]: error.message}
    # Halves: few of thousands are broken, and each of the others is read once or twice more.
    ordered = sorted(servers)
    middle = len(ordered) // 2
    rows, unread = readable(store, rollout, ordered[:middle])
    more, others = readable(store, rollout, ordered[middle:])
    return rows + more, unread | others
