"""Records read so that one that cannot be read holds up nothing else, and not again where they have not changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from orchestrator.domain.rollout import Rollout
from orchestrator.errors import UnsafeStore
from orchestrator.store import Row, Store

STALE = 5.0  # seconds after which all records of a rollout are read again, whatever its audit log says
SHARE = 20.0  # reading the records of a rollout may take one part in so many of the time
NEWS = 500  # entries of the audit log up to which only those are read again of whom they tell


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


@dataclass(kw_only=True)
class Known:
    """What this process last read of a rollout's records: a cache, and never a reason by itself. Each change of a state
    is in the audit log, so that it tells whose are to be read again; a version may rise without. `rows` and `unread`
    are as `readable` tells them. All were last read at `whole_at` (of `monotonic`), which took `cost` seconds: it is
    done again after `STALE` seconds, or `SHARE` times as long as it took.

    Reading raises `Unreachable`, and `UnsafeStore` where the log cannot be read.
    """

    store: Store
    monotonic: Callable[[], float]
    rows: dict[str, Row] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    whole_at: float = 0.0
    cost: float = 0.0
    _seen: str = "0"  # the newest entry of the log that no row is older than

    @property
    def stale(self) -> bool:
        """Whether what no log tells of would go unseen for too long."""
        return self.monotonic() - self.whole_at >= max(STALE, self.cost * SHARE)

    @property
    def tired(self) -> bool:
        """Whether it would take too much of the time to read all again so soon."""
        return self.monotonic() - self.whole_at < self.cost * SHARE

    def read_all(self, rollout: Rollout) -> None:
        began = self.monotonic()
        seen = self.store.last_event(rollout.id)
        rows, unread = readable(self.store, rollout.id, [name for wave in rollout.waves for name in wave])
        self.rows, self.unread, self._seen = {row.upgrade.server: row for row in rows}, unread, seen
        self.whole_at = self.monotonic()
        self.cost = self.whole_at - began

    def read_news(self, rollout: Rollout) -> bool:
        """Whether it was enough to read those of whom the log tells."""
        if not self.rows or self.unread or self.stale:
            return False
        news = self.store.changed(rollout.id, after=self._seen, limit=NEWS)
        if news is None or not self.read(rollout, news[1]):
            return False
        self._seen = news[0]
        return True

    def read(self, rollout: Rollout, servers: Sequence[str]) -> bool:
        """Whether all of these can be read."""
        rows, unread = readable(self.store, rollout.id, servers)
        self.rows |= {row.upgrade.server: row for row in rows}
        return not unread

    def still(self, rollout: Rollout, servers: Sequence[str]) -> bool:
        """Whether their records say what they said when they were last read."""
        was = [self.rows[name].upgrade for name in servers]
        return self.read(rollout, servers) and was == [self.rows[name].upgrade for name in servers]
