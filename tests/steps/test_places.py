"""One fleet in two accounts: each server is replaced where it is, whatever the other account calls its own."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from orchestrator import operations
from orchestrator.domain.fleet import Fleet
from orchestrator.lanes import lanes
from orchestrator.mending import mend
from orchestrator.store.memory import MemoryStore
from providers.compute.fake import FakeCloud
from providers.probe.fake import FakeProbe, FakeSites
from providers.traffic import MemberView
from tasks import orphans
from tasks.survey import look
from tests.support.runner import PORT, Clock, Runner, fleet_file

ACCOUNTS = {"111": ["web-1", "web-2", "web-3"], "222": ["web-4", "web-5", "web-6"]}
BACK = {"111": "blue", "222": "green"}  # the pool of each account


@dataclass
class Two:
    runner: Runner
    clouds: dict[str, FakeCloud]

    def made(self, account: str) -> list[str]:
        """Names of the servers that were made anew there."""
        return sorted(
            thing.view.tags["changeover:server"]
            for thing in self.clouds[account].things.values()
            if thing.view.tags.get("changeover:role") == "target" and thing.view.state != "terminated"
        )

    def serving(self, account: str) -> set[str]:
        views = self.clouds[account].pools[BACK[account]].values()
        return {view.name for view in views if view.state == "serving"}


@contextmanager
def two_accounts(**changes: Any) -> Iterator[Two]:
    """Both clouds give the same addresses."""
    clock, world = Clock(), uuid.uuid4().hex[:8]
    clouds = {}
    sites = FakeProbe.registry[world] = FakeSites()
    for account, names in ACCOUNTS.items():
        cloud = clouds[account] = FakeCloud(image_seconds=3.0, ready_seconds=5.0, clock=clock)
        FakeCloud.named[f"{world}-{account}"] = cloud
        cloud.pools[BACK[account]] = {}
        for name in names:
            server = cloud.server(name)
            cloud.pools[BACK[account]][name] = MemberView(name=name, address=server.address, port=PORT, state="serving")
    for number in range(200):
        sites.passes(f"127.80.0.{number + 1}", PORT)
    fleet = fleet_file(
        [],
        world,
        provider={"name": "fake", "account": "111", "settings": {"world": f"{world}-{{account}}", "sites": world}},
        servers=[
            {"name": name, "pools": [BACK[account]], **({} if account == "111" else {"account": account})}
            for account, names in ACCOUNTS.items()
            for name in names
        ],
        traffic={
            "provider": "fake",
            "settings": {"world": f"{world}-{{account}}"},
            "pools": {pool: {"port": PORT, "min_healthy": 1, "account": each} for each, pool in BACK.items()},
        },
        **changes,
    )
    try:
        runner = Runner(fleet=fleet, cloud=clouds["111"], sites=sites, clock=clock, store=MemoryStore(clock))
        yield Two(runner, clouds)
    finally:
        for account in ACCOUNTS:
            FakeCloud.named.pop(f"{world}-{account}", None)
        FakeProbe.registry.pop(world, None)


def test_each_server_is_replaced_in_its_own_account_and_put_back_there() -> None:
    with two_accounts() as two:
        r = two.runner
        assert {server.address for server in look(r.world, r.fleet).servers} == {f"127.80.0.{n}" for n in (2, 3, 4)}
        r.finish()
        assert r.record().state == "succeeded"
        for account, names in ACCOUNTS.items():
            assert two.made(account) == names
            assert two.serving(account) == {f"{name}.g2" for name in names}
            assert not [name for name, times in two.clouds[account].made.items() if times > 1]
        operations.rollback(r.store, r.rollout, actor="test")
        r.until(lambda: r.record().state == "rolled_back")
        for account, names in ACCOUNTS.items():
            assert two.made(account) == []
            assert two.serving(account) == set(names)


def test_looks_of_an_account_are_made_together_and_of_two_apart() -> None:
    with two_accounts() as two:
        r = two.runner
        seen: set[tuple[str, str]] = set()

        def over() -> bool:
            for row in r.store.rows(r.rollout):
                wait = row.upgrade.wait
                if wait is not None and wait.observe is not None and wait.observe.kind in ("server", "image"):
                    seen.add((wait.observe.lane, row.upgrade.server))
            return r.record().ended

        r.until(over)
        assert seen == {(f"fake/{account}/default", name) for account, names in ACCOUNTS.items() for name in names}


def test_nothing_of_one_account_is_an_orphan_given_up_or_free_for_the_other() -> None:
    with two_accounts() as two:
        r = two.runner
        operations_of = {f"fake/{account}/default/{name}" for account, names in ACCOUNTS.items() for name in names}
        assert {lock for lock in operations_of if r.store.owner_of(lock) == r.rollout} == operations_of
        r.until(lambda: all(r.upgrade(name).step == "swap" for name in ("web-1", "web-4")))
        held = {item.key: item.state for item in r.store.ledger(r.rollout)}
        r.clock.now += 4000  # whatever was only intended would be given up by now
        found = lanes(r.store, {})
        assert [(lane, [s.name for s in fleet.servers]) for lane, (fleet,) in sorted(found.items())] == [
            (f"fake/{account}/default", names) for account, names in ACCOUNTS.items()
        ]
        for lane in found:
            assert orphans.scan(r.world, lane=lane) == {"orphans": 0}
        assert {item.key: item.state for item in r.store.ledger(r.rollout)} == held
        assert mend(r.store, r.record(), actor="test", grace=5.0) == []
        r.finish()
        assert r.record().state == "succeeded"


def test_a_redis_that_lost_everything_is_told_by_both_accounts() -> None:
    with two_accounts(rollout={"waves": ["rest"], "bake": "0s", "soak": "500s", "max_in_flight": 6}) as two:
        r = two.runner
        r.until(lambda: all(r.upgrade(name).step == "swap" for names in ACCOUNTS.values() for name in names))
        r.until(lambda: all(len(two.serving(account)) == 6 for account in ACCOUNTS))
        r.store = r.world.store = MemoryStore(r.clock)
        found, made = operations.rebuild(r.store, r.ask, r.fleet, rollout="", act=True, actor="test")
        assert made is not None
        assert {position.upgrade.step for position in found.positions} == {"swap"}
        new = {position.upgrade.server: position.new for position in found.positions}
        for account, names in ACCOUNTS.items():
            assert {r.store.owner_of(f"fake/{account}/default/{new[name]}") for name in names} == {r.rollout}


def test_a_file_without_other_accounts_is_kept_in_the_words_it_had() -> None:
    fleet = fleet_file(["web-1"], "w")
    assert "account" not in fleet.canonical()["servers"][0]
    assert "region" not in fleet.canonical()["traffic"]["pools"]["web"]
    assert fleet.places == (fleet,)


@pytest.mark.parametrize("key", ["account", "region"])
def test_another_place_is_part_of_the_plan(key: str) -> None:
    servers = [{"name": "web-1", "pools": ["web"]}, {"name": "web-2", "pools": ["web"], key: "other"}]
    fleet = fleet_file([], "w", servers=servers)
    assert Fleet.model_validate(fleet.canonical(), strict=False) == fleet
    assert [[server.name for server in place.servers] for place in fleet.places] == [["web-1"], ["web-2"]]
    assert len({place.lane for place in fleet.places}) == 2
