"""What a worker hands to a provider: the settings of the fleet file, with references read at that moment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from orchestrator import secrets
from orchestrator.store.memory import MemoryStore
from providers.errors import Refused
from tasks.world import World
from tests.support.runner import fleet_file


def test_a_provider_gets_the_secret_and_the_fleet_only_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Mapping[str, Any]] = []
    world = World(
        store=MemoryStore(),
        publish=lambda _messages: None,
        worker="w",
        find=lambda _role, _name, settings: given.append(settings),
    )
    pools = {"web": {"port": 80, "backend": "www.shop.test."}, "api": {"port": 81}}
    traffic = {"provider": "rfc2136", "settings": {"key_secret": "env:DNS_SECRET", "ttl": 30}, "pools": pools}
    fleet = fleet_file(["web-1"], "w", traffic=traffic)
    with pytest.raises(Refused, match="env:DNS_SECRET is not set"):
        world.traffic(fleet)
    monkeypatch.setenv("DNS_SECRET", "only between worker and name server")
    world.traffic(fleet)
    (settings,) = given
    assert settings["key_secret"] == "only between worker and name server"
    assert settings["pools"] == {
        "web": {"port": 80, "backend": "www.shop.test."},
        "api": {"port": 81, "backend": "api"},
    }
    assert "only between" not in str(fleet.canonical())
    assert "only between" not in secrets.redact("the key only between worker and name server is wrong")
