"""The fake cloud that every candidate works against, made in the process that works, and the fleet in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from orchestrator.domain.fleet import Fleet
from providers.clients.fake_cloud import Remote
from providers.compute.fake import FakeCloud
from providers.probe.answer import Answer
from providers.probe.fake import FakeProbe, FakeSites
from providers.traffic import MemberView

WORLD = "bench"
POOL = "web"
PORT = 8080
POLL = 0.5  # seconds between looks at images and servers
BALANCER_POLL = 0.2  # and at the balancer


class _AllPass(FakeSites):
    """Every address answers well."""

    def ask(self, target: tuple[str, int]) -> Answer:
        self.calls[target] += 1
        return Answer(status=200, headers=(("content-type", "text/plain"),), body=b"ok")


def names(count: int) -> list[str]:
    return [f"web-{number:04d}" for number in range(1, count + 1)]


def make(*, servers: int, image_seconds: float, ready_seconds: float) -> FakeCloud:
    """A cloud whose servers run, serve in one pool and answer everything well."""
    cloud = FakeCloud.named[WORLD] = FakeCloud(image_seconds=image_seconds, ready_seconds=ready_seconds)
    cloud.pools[POOL] = {}
    for name in names(servers):
        address = cloud.server(name).address
        cloud.pools[POOL][name] = MemberView(name=name, address=address, port=PORT, state="serving")
    FakeProbe.registry[WORLD] = _AllPass()
    return cloud


def calls() -> dict[str, int]:
    """How often each provider call was made. A look at many servers at once is one call."""
    cloud, sites = FakeCloud.named.get(WORLD), FakeProbe.registry.get(WORLD)
    found = dict(cloud.calls) if cloud is not None else {}
    return {**found, "probe": sites.calls.total()} if sites is not None else found


def operator(socket: str, *, image_seconds: float, ready_seconds: float) -> Any:
    """Those who run the fake cloud behind that socket, `providers.fake_host.Operator`; made at the first asking."""
    times = {"image_ms": round(image_seconds * 1000), "ready_ms": round(ready_seconds * 1000)}
    return Remote("operator", {"socket": socket, "world": WORLD, **times})


def fleet(count: int, *, max_in_flight: int, socket: str = "") -> Fleet:
    """One wave, no pauses: nothing but the provider's own times takes time. `socket`: where a shared cloud is."""
    world = {"world": WORLD, "socket": socket} if socket else {"world": WORLD}
    whole: Mapping[str, Any] = {
        "version": 1,
        "fleet": "bench",
        "provider": {"name": "fake", "settings": {**world, "sites": WORLD}},
        "target": {"size": {"memory": "2GiB", "disk": "20GiB"}},
        "servers": [{"name": name, "pools": [POOL]} for name in names(count)],
        "traffic": {
            "provider": "fake",
            "settings": world,
            "pools": {POOL: {"port": PORT, "min_healthy": 1}},
        },
        "checks": {
            "smoke": {"requests": [{"url": "http://shop.test/health"}], "passes": 1, "every": "0s", "probe": "fake"}
        },
        "state": "stateless",
        "rollout": {
            "waves": ["rest"],
            "bake": "0s",
            "soak": "0s",
            "max_in_flight": max_in_flight,
            "poll": f"{POLL * 1000:.0f}ms",
            "drain": {"deadline": "30s", "quiet": "0s"},
        },
    }
    return Fleet.model_validate_json(json.dumps(whole))
