"""What dashboards and alarms need, for Prometheus. It is read from the store alone, so any process can tell it, and all
that are asked tell the same.

Counters count since the records began: of what rollouts have done, from their audit logs; of the store's own, by its
scripts. Seconds throughout.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from orchestrator.domain.rollout import Rollout
from orchestrator.domain.steps import STEPS
from orchestrator.errors import UnsafeStore
from orchestrator.report.stretches import Stretch, Stretches
from orchestrator.store import AuditEntry, Store, Tally

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BOUNDS = (1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200)  # seconds of a step
_BATCH = 1000


class _Log:
    """How far the audit log of one rollout was read, and where its servers are in it."""

    def __init__(self) -> None:
        self.after = "0"
        self.servers: dict[str, Stretches] = defaultdict(Stretches)


class Metrics:
    """Of one store. It remembers how far it has read each audit log: the first reading reads them whole, each later one
    what is new. Any thread may ask."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._logs: dict[str, _Log] = {}
        self._over: set[str] = set()  # rollouts that are closed, and read to their end
        self._took: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0] * (len(BOUNDS) + 1))
        self._spent: dict[tuple[str, str], float] = defaultdict(float)
        self._waits: Counter[str] = Counter()

    def text(self) -> bytes:
        """In the text format of Prometheus, `CONTENT_TYPE`. Raises `Unreachable` and `UnsafeStore`."""
        registry = CollectorRegistry(auto_describe=False)
        with self._lock:
            registry.register(_Read(list(self._families())))
            return generate_latest(registry)

    def _families(self) -> Iterator[Metric]:
        rollouts = self._store.rollouts()
        tallies = {rollout.id: tally for rollout in rollouts if (tally := self._tally(rollout)) is not None}
        yield from self._of_rollouts(rollouts, tallies)
        yield from self._of_steps(rollouts)
        yield from self._of_users(rollouts)
        yield from self._of_the_whole()
        yield from self._of_lanes()

    def _tally(self, rollout: Rollout) -> Tally | None:
        try:
            return self._store.tally(rollout.id)
        except UnsafeStore:  # told of as unreadable
            return None

    def _of_rollouts(self, rollouts: Sequence[Rollout], tallies: dict[str, Tally]) -> Iterator[Metric]:
        states = GaugeMetricFamily("changeover_rollouts", "Rollouts by state.", labels=["fleet", "state"])
        for (fleet, state), number in sorted(Counter((r.fleet, r.state) for r in rollouts).items()):
            states.add_metric([fleet, state], number)
        yield states
        unread = len(self._store.unread()) + len(rollouts) - len(tallies)
        yield GaugeMetricFamily("changeover_rollouts_unreadable", "Rollouts that cannot be read.", value=unread)
        labels = ["fleet", "rollout", "state"]
        servers = GaugeMetricFamily("changeover_servers", "Servers of rollouts that are not closed.", labels=labels)
        for rollout in rollouts:
            if not rollout.closed and rollout.id in tallies:
                for of_server, number in tallies[rollout.id].by_state.items():
                    servers.add_metric([rollout.fleet, rollout.id, of_server], number)
        yield servers
        failures: Counter[tuple[str, str]] = Counter()
        for rollout in rollouts:
            if rollout.id in tallies:
                failures[rollout.fleet, "before"] += tallies[rollout.id].failed_before_swap
                failures[rollout.fleet, "after"] += tallies[rollout.id].failed_after_swap
        failed = CounterMetricFamily(
            "changeover_server_failures", "Servers that went back, before or after the swap.", labels=["fleet", "swap"]
        )
        for (fleet, swap), number in sorted(failures.items()):
            failed.add_metric([fleet, swap], number)
        yield failed

    def _of_steps(self, rollouts: Sequence[Rollout]) -> Iterator[Metric]:
        for rollout in rollouts:
            if rollout.id not in self._over:
                self._read_on(rollout)
        took = HistogramMetricFamily(
            "changeover_step_seconds", "How long steps took, waits included.", labels=["step", "outcome"]
        )
        for (step, outcome), counts in sorted(self._took.items()):
            bounds = map(floatToGoString, (*BOUNDS, math.inf))
            buckets = list(zip(bounds, accumulate(counts), strict=True))
            took.add_metric([step, outcome], buckets=buckets, sum_value=self._spent[step, outcome])
        yield took
        waits = CounterMetricFamily("changeover_waits", "How often steps had to wait.", labels=["step"])
        for step, number in sorted(self._waits.items()):
            waits.add_metric([step], number)
        yield waits

    def _read_on(self, rollout: Rollout) -> None:
        log = self._logs.setdefault(rollout.id, _Log())
        while entries := self._store.events(rollout.id, after=log.after, limit=_BATCH):
            for entry in entries:
                if entry.server:
                    self._count(entry, log.servers[entry.server].add(entry))
            log.after = entries[-1].id
        if rollout.closed:
            self._over.add(rollout.id)
            del self._logs[rollout.id]

    def _count(self, entry: AuditEntry, ended: Stretch | None) -> None:
        if entry.event == "Waits":
            self._waits[str(entry.after.get("step", STEPS[0]))] += 1
        if ended is not None:
            seconds, key = ended.end - ended.start, (ended.step, ended.outcome)
            place = next((number for number, bound in enumerate(BOUNDS) if seconds <= bound), len(BOUNDS))
            self._took[key][place] += 1
            self._spent[key] += seconds

    def _of_users(self, rollouts: Sequence[Rollout]) -> Iterator[Metric]:
        labels = ["fleet", "rollout"]
        seen = CounterMetricFamily(
            "changeover_user_requests", "User requests that balancers have counted since the plan.", labels=labels
        )
        failed = CounterMetricFamily(
            "changeover_user_requests_failed", "Those of them that the balancers have counted as failed.", labels=labels
        )
        for rollout in rollouts:
            users = None if rollout.closed else self._store.users(rollout.id)
            if users is not None:
                seen.add_metric([rollout.fleet, rollout.id], users.requests)
                failed.add_metric([rollout.fleet, rollout.id], users.failed)
        yield seen
        yield failed

    def _of_the_whole(self) -> Iterator[Metric]:
        due, now = self._store.next_due(), self._store.now()
        lag = 0.0 if due is None else max(0.0, now - due)
        counts = self._store.counts()
        gauges = {
            "workers": ("Workers that live.", len(self._store.workers())),
            "frozen": ("1 while everything is frozen.", int(self._store.frozen() is not None)),
            "due_lag_seconds": ("For how long that which is due has waited for somebody.", lag),
            "queue_wait_seconds": ("How long messages have lately waited for a worker.", self._store.queue_wait()),
        }
        for name, (told, value) in gauges.items():
            yield GaugeMetricFamily(f"changeover_{name}", told, value=value)
        yield CounterMetricFamily("changeover_leases_lost", "Leases that were not given back.", value=counts.lost)
        yield CounterMetricFamily(
            "changeover_chains_resent", "Chains sent again since nobody had taken them.", value=counts.resent
        )
        ignored = CounterMetricFamily(
            "changeover_messages_ignored", "Messages that did not apply any more.", labels=["reason"]
        )
        for reason, number in sorted(counts.ignored.items()):
            ignored.add_metric([reason], number)
        yield ignored

    def _of_lanes(self) -> Iterator[Metric]:
        labels, now = ["api"], self._store.now()
        rate = GaugeMetricFamily("changeover_api_rate", "Calls a second that an API is asked at most.", labels=labels)
        queue = GaugeMetricFamily("changeover_api_waiting", "Calls that wait for their turn at an API.", labels=labels)
        calls = CounterMetricFamily("changeover_api_calls", "Calls that had their turn at an API.", labels=labels)
        refused = CounterMetricFamily("changeover_api_refused", "Calls that an API refused as too many.", labels=labels)
        for name, bucket in sorted(self._store.buckets().items()):
            rate.add_metric([name], bucket.rate)
            queue.add_metric([name], max(0.0, -bucket.tokens - max(0.0, now - bucket.at) * bucket.rate))
            calls.add_metric([name], bucket.calls)
            refused.add_metric([name], bucket.refused)
        yield from (rate, queue, calls, refused)


class _Read(Collector):
    """What was read already: a registry asks whenever it likes."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)
