"""`python -m benchmarks.aws`: what a rollout asks of AWS, counted by the simulated one, and what it leaves there.

EC2 instances in several accounts behind a target group each; real workers over AWS' protocols; a part of all answers is
faulty (half of these failed before, half lost after the effect). What the plan takes is not counted.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.figures import table
from benchmarks.machine import OURS, Site, site, wait_for
from orchestrator import operations
from orchestrator.demo.aws import SimulatedAws, cut_off, family
from orchestrator.domain.fleet import Fleet
from orchestrator.domain.plan import FoundServer
from orchestrator.messaging import make_app
from orchestrator.settings import Settings
from orchestrator.store.redis import RedisStore
from tasks.step import next_look

REGION, PORT = "eu-west-1", 8080
CALLS = 16  # a server, in all: what is wanted
BATCH = 100
POLL = 15  # seconds between looks, as in the examples for EC2
DELAY = 3  # seconds that a target drains
TIMINGS = {"image": 2.0, "pending": 1.0, "checks": 2.0, "agent": 1.0, "registering": 0.5, "health": 10.0}
RESOURCES = ("instance", "image", "snapshot", "volume", "address", "stack")


@dataclass(frozen=True, kw_only=True)
class Asked:
    servers: int
    accounts: int
    faults: float
    workers: int
    max_in_flight: int
    poll: int
    patience: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """`looks`: of those that wait, as the workers wrote them down. `left_over`: what nobody should have left."""

    asked: Asked
    seconds: float
    states: Mapping[str, int]
    calls: Mapping[str, int]
    spoiled: Mapping[str, int]
    looks: Sequence[Mapping[str, Any]]
    left_over: Sequence[str]
    stopped: str

    @property
    def each(self) -> float:
        return sum(self.calls.values()) / self.asked.servers

    @property
    def well(self) -> bool:
        return not self.left_over and self.states == {"upgraded": self.asked.servers}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.aws", description=__doc__)
    parser.add_argument("--servers", type=int, default=200)
    parser.add_argument("--accounts", type=int, default=2, help="AWS paces its callers by account")
    parser.add_argument("--faults", type=float, default=0.1, help="share of faulty answers")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--max-in-flight", type=int, default=100)
    parser.add_argument("--poll", type=int, default=POLL, help="seconds between looks")
    parser.add_argument("--patience", type=float, default=3600.0, help="seconds")
    asked = Asked(**vars(parser.parse_args()))
    outcome = measure(asked)
    print(report(outcome), flush=True)
    return 0 if outcome.well else 1


def measure(asked: Asked) -> Outcome:
    """One rollout, from its creation to its end."""
    environment: dict[str, str] = {}
    cut_off(environment, "http://127.0.0.1:9")
    with site(CHANGEOVER_CONCURRENCY="32", **environment) as place:
        accounts = [str(number) * 12 for number in range(1, asked.accounts + 1)]
        share = {
            a: asked.servers // asked.accounts + (i < asked.servers % asked.accounts) for i, a in enumerate(accounts)
        }
        wish = {"accounts": share, "region": REGION, "port": PORT, "delay": DELAY, "timings": TIMINGS}
        cloud = SimulatedAws(place.folder / "aws.log", environment=dict(place.environment))
        try:
            made = cloud.start(wish)
            store = RedisStore(f"{place.url}&client_name={OURS}")
            for number in range(1, asked.workers + 1):
                looks = str(place.folder / f"looks-{number}")
                place.python(f"worker-{number}", "benchmarks.aws_worker", "--name", f"bench-{number}", "--looks", looks)
            place.python("coordinator", "orchestrator.coordinate", "--ready-file", str(place.folder / "ready"))
            wait_for(place, lambda: len(store.workers()) == asked.workers, "the workers", seconds=180)
            wait_for(place, (place.folder / "ready").exists, "the coordinator", seconds=180)
            return _roll_out(place, store, cloud, made, asked)
        finally:
            cloud.end()


def _roll_out(place: Site, store: RedisStore, cloud: SimulatedAws, made: Mapping[str, Any], asked: Asked) -> Outcome:
    fleet = _fleet(made, asked)
    ask = operations.celery_asker(make_app(Settings(redis_url=place.url)))
    plan = operations.plan(store, ask, fleet, operations.Waiter(timeout=900))
    operations.refuse_blockers(plan)
    before = Counter(cloud.ask("calls"))
    for fault in ({"code": "ServiceUnavailable", "http": 503}, {"after": True, "drop": True}):
        cloud.ask("faults", rate=asked.faults / 2, count=-1, **fault)
    began = time.time()
    rollout = operations.create(store, fleet, plan, actor="bench").id
    end = time.monotonic() + asked.patience
    while True:
        place.check()
        found = store.rollout(rollout)
        assert found is not None
        if found.ended or found.state == "paused" or time.monotonic() > end:
            break
        time.sleep(0.5)
    seconds = time.time() - began
    told = cloud.ask("tally")
    calls = Counter(told["calls"]) - before
    cloud.ask("calm")
    rows = store.rows(rollout)
    looks = [
        json.loads(line)
        for path in sorted(place.folder.glob("looks-*"))
        for line in path.read_text().splitlines()
        if json.loads(line)["at"] >= began
    ]
    return Outcome(
        asked=asked,
        seconds=seconds,
        states=Counter(row.upgrade.state for row in rows),
        calls=calls,
        spoiled={how: sum(told[how].values()) for how in ("throttled", "lost", "refused")},
        looks=looks,
        left_over=left_over(
            cloud, made, plan.survey.servers, {row.upgrade.server for row in rows if row.upgrade.state == "upgraded"}
        ),
        stopped=found.why or found.state,
    )


def _fleet(made: Mapping[str, Any], asked: Asked) -> Fleet:
    """One pool in each account; everything else is as a person would write it."""
    there = {"endpoint": made["endpoint"], "role": "arn:aws:iam::{account}:role/changeover"}
    sizes = Counter(server["account"] for server in made["servers"])
    whole = {
        "version": 1,
        "fleet": "bench",
        "provider": {"name": "aws", "region": REGION, "account": next(iter(sizes)), "settings": there},
        "target": {"size": {"memory": "4GiB", "disk": "16GiB", "type": "t3.medium"}},
        "servers": [
            {"name": each["name"], "id": each["id"], "account": each["account"], "pools": [f"web-{each['account'][0]}"]}
            for each in made["servers"]
        ],
        "traffic": {
            "provider": "elbv2",
            "settings": {**there, "region": REGION, "poll": asked.poll},
            "pools": {
                f"web-{account[0]}": {
                    "backend": "shop",
                    "port": PORT,
                    "account": account,
                    "min_healthy": max(1, count // 2),
                }
                for account, count in sizes.items()
            },
        },
        "checks": {"smoke": {"requests": [{"url": "http://shop.test/health"}], "passes": 1}},
        "state": "stateless",
        "rollout": {
            "waves": ["rest"],
            "bake": "0s",
            "soak": "0s",
            "max_in_flight": asked.max_in_flight,
            "attempts": 50,
            "poll": f"{asked.poll}s",
            "drain": {"deadline": "10m", "quiet": "0s"},
        },
    }
    return Fleet.model_validate_json(json.dumps(whole))


def left_over(
    cloud: SimulatedAws, made: Mapping[str, Any], old: Sequence[FoundServer], upgraded: set[str]
) -> list[str]:
    """By AWS' own tables: of each upgraded server there are A, B and the image with its snapshot, and nothing else."""
    olds = {server.id for server in old}
    wrong = []
    found: dict[str, list[str]] = defaultdict(list)
    for pool in made["pools"]:
        for kind, things in cloud.ask("billable", account=pool["account"], region=REGION).items():
            ours = [tags for id, tags in things.items() if tags.get("changeover:managed") == "1" and id not in olds]
            found[kind] += [tags.get("changeover:server", "") for tags in ours]
    for kind in RESOURCES:
        wanted = sorted(upgraded) if kind in ("instance", "image", "snapshot", "volume") else []
        more = Counter(found[kind]) - Counter(wanted)
        less = Counter(wanted) - Counter(found[kind])
        if more:
            wrong.append(f"{sum(more.values())} {kind}s too many: {', '.join(sorted(more)[:5])}")
        if less and kind in ("instance", "image"):
            wrong.append(f"{sum(less.values())} {kind}s missing: {', '.join(sorted(less)[:5])}")
    return wrong


def report(outcome: Outcome) -> str:
    asked = outcome.asked
    n = asked.servers
    kinds: Counter[str] = Counter()
    for name, count in outcome.calls.items():
        kinds[family(name)] += count
    rows = [(name, f"{count:,}", f"{count / n:.2f}") for name, count in sorted(kinds.items())]
    rows.append(("all", f"{sum(kinds.values()):,}", f"{outcome.each:.2f}"))
    named = [
        (name, f"{count:,}", f"{count / n:.2f}")
        for name, count in sorted(outcome.calls.items(), key=lambda item: -item[1])
    ]
    states = ", ".join(f"{count} {state}" for state, count in sorted(outcome.states.items()))
    reached = "reached" if outcome.each <= CALLS else "NOT REACHED"
    early, again, most = crowded(outcome.looks, asked.poll)
    return "\n".join(
        [
            f"{n} servers in {asked.accounts} accounts, {asked.faults:.0%} of all answers faulty, {asked.workers} "
            f"workers: {outcome.seconds:.0f} s; {states} ({outcome.stopped})",
            f"answers spoiled: {', '.join(f'{count} {how}' for how, count in outcome.spoiled.items())}",
            f"left over at AWS: {'; '.join(outcome.left_over) or 'nothing'}",
            "",
            table(("kind of call", "calls", "a server"), rows),
            "",
            table(("call", "calls", "a server"), named),
            "",
            f"  {reached}: at most {CALLS} calls a server: {outcome.each:.1f}",
            f"  {len(outcome.looks)} looks for those that wait, of at most {most} at once; {early} more than one "
            f"for each {BATCH} of a lane and kind in a poll interval of {asked.poll} s, beside {again} again after a "
            "faulty answer",
        ]
    )


def crowded(looks: Sequence[Mapping[str, Any]], poll: float) -> tuple[int, int, int]:
    """How many looks were one too many in their poll interval, beyond ceil(waiting / 100) of their lane and kind; how
    many were more since an earlier one there came to nothing; and how many waited at most. An interval is one of those
    in which all who wait in a lane are looked at together."""
    by: dict[tuple[str, str, float], list[Mapping[str, Any]]] = defaultdict(list)
    for look in looks:
        by[look["lane"], look["kind"], next_look(look["lane"], poll, look["at"])].append(look)
    early = repeated = 0
    for some in by.values():
        more = max(0, len(some) - math.ceil(sum(look["waiting"] for look in some) / BATCH))
        after = min(more, sum(not look["answered"] for look in some))
        early, repeated = early + more - after, repeated + after
    return early, repeated, max((look["waiting"] for look in looks), default=0)


if __name__ == "__main__":
    sys.exit(main())
