"""A fleet and its policy, drawn from a seed."""

from __future__ import annotations

import json
from random import Random
from typing import Any, Final

from orchestrator import operations
from orchestrator.domain.fleet import Fleet
from orchestrator.domain.plan import make_plan
from orchestrator.domain.rollout import Rollout
from orchestrator.store import Store
from providers.traffic import MemberView
from tasks.survey import look
from tasks.world import World
from tests.simulation.cloud import FATES, Cloud

PORTS: Final = {"web": 8080, "api": 9090}
DEADLINES: Final = {
    "create_image": 300,
    "provision": 300,
    "poll_readiness": 90,
    "smoke_test": 120,
    "swap": 240,
    "drain_old": 240,
}
ROLLOUT: Final = "r1"


def draw_fleet(random: Random, world: str) -> Fleet:
    """Mostly 2 to 10 servers in one or two pools, one fleet in twenty of 50."""
    size = 50 if random.random() < 0.05 else min(random.randint(2, 10), random.randint(2, 10))
    names = [f"s-{number}" for number in range(1, size + 1)]
    both = random.random() < 0.3
    member_of = {name: random.choice((["web"], ["api"], ["web", "api"])) if both else ["web"] for name in names}
    pools = {
        pool: {"port": port, "min_healthy": random.randint(1, count)}
        for pool, port in PORTS.items()
        if (count := sum(pool in pools for pools in member_of.values()))
    }
    domains = random.random() < 0.15
    policy: dict[str, Any] = {
        "waves": random.choice((["rest"], [1, "rest"], [1, "50%", "rest"])),
        "bake": f"{random.choice((0, 0, 5, 30))}s",
        "soak": f"{random.choice((0, 2, 10, 30))}s",
        "max_in_flight": random.randint(1, 10) if size < 50 else 25,
        "budget": {"before_swap": random.choice((0, 1, 2, 50))},
        "attempts": random.randint(3, 5),
        "back_off": "4s",
        "deadlines": {step: f"{seconds}s" for step, seconds in DEADLINES.items()},
        "poll": f"{random.uniform(2, 6):.1f}s",
        "drain": {
            "deadline": f"{random.choice((5, 30))}s",
            "at_deadline": random.choice(("keep", "cut")),
            "quiet": random.choice(("0s", "1s")),
        },
        "on_abort": random.choice(("finish", "roll_back")),
    }
    policy |= _leave_to_begin(Random(json.dumps(policy)), len(policy["waves"]))
    whole = {
        "version": 1,
        "fleet": "shop",
        "provider": {"name": "fake", "settings": {"world": world}},
        "target": {
            "size": {"memory": "2GiB", "disk": "20GiB"},
            "fallback": [{"memory": "3GiB", "disk": "20GiB"}] if random.random() < 0.3 else [],
        },
        "servers": [
            {"name": name, "pools": member_of[name]} | ({"domain": f"rack-{number % 3}"} if domains else {})
            for number, name in enumerate(names)
        ],
        "traffic": {
            "provider": "fake",
            "settings": {"world": world, "lanes": random.choice(("one", "each"))},
            "pools": pools,
        },
        "checks": {
            "smoke": {
                "requests": [{"url": "http://shop.test/health"}],
                "passes": random.randint(1, 3),
                "tries": 8,
                "every": random.choice(("0s", "1s")),
                "probe": "fake",
            }
        },
        "state": "stateless",
        "rollout": policy,
        "retain": {
            "old_servers": f"{random.choice((30, 120, 600))}s",
            "images": random.choice(("delete", "keep")),
        },
    }
    return Fleet.model_validate_json(json.dumps(whole))


def _leave_to_begin(random: Random, waves: int) -> dict[str, Any]:
    """Sometimes a wave is to be approved, and sometimes no server may be begun for some minutes. The time of a
    simulation begins at 13:46:40."""
    found: dict[str, Any] = {}
    if random.random() < 0.25:
        approval: dict[str, Any] = {"before": random.choice(("every", random.randint(1, waves)))}
        approval["count"] = random.choice((1, 2))
        if random.random() < 0.5:
            approval |= {"within": "60s", "otherwise": random.choice(("pause", "abort", "continue"))}
        found["approvals"] = [approval]
    if random.random() < 0.15:
        times = random.choice(((("13:40", "13:48"), ("13:52", "13:20")), (("13:48", "13:20"),)))
        found["windows"] = {"zone": "UTC", "open": [{"opens": a, "closes": b} for a, b in times]}
    return found


def furnish(cloud: Cloud, fleet: Fleet) -> None:
    """The servers as they are before: running, and serving in their pools."""
    for pool in fleet.traffic.pools:
        cloud.pools[pool] = {}
    for spec in fleet.servers:
        server = cloud.server(spec.name)
        for pool in spec.pools:
            port = fleet.traffic.pools[pool].port
            member = MemberView(name=spec.name, address=server.address, port=port, state="serving")
            cloud.pools[pool][spec.name] = member


def draw_fates(random: Random, fleet: Fleet, rate: float) -> dict[str, str]:
    """Which servers get a bad B, whatever is tried."""
    return {spec.name: random.choice(FATES) for spec in fleet.servers if random.random() < rate}


def start(world: World, store: Store, fleet: Fleet, rollout: str = ROLLOUT) -> Rollout:
    """Plan and apply. Raises `Locked`."""
    plan = make_plan(fleet, look(world, fleet))
    operations.refuse_blockers(plan)
    return operations.create(store, fleet, plan, actor="simulation", id=rollout)
