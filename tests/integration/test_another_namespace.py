"""What cannot be read and cannot be restored is left behind: the world is told anew, beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from orchestrator import operations
from orchestrator.fleet_file import load
from orchestrator.supervisor import start
from tests.support.local_host import until
from tests.support.shop import Whole, shop


@pytest.mark.timeout(300)
def test_what_cannot_be_read_and_has_no_backup_is_left_behind_in_another_namespace(tmp_path: Path) -> None:
    """As `docs/operating.md` tells it: everything ended but the host, another namespace and queue, and a rebuild."""
    with shop(tmp_path, servers=3) as whole:
        whole.apply()

        def under_way() -> bool:
            whole.supervisor.step(0.05)
            upgrades = operations.view(whole.store, whole.id).upgrades
            return any(u.state == "upgraded" for u in upgrades) and any(u.has_begun("provision") for u in upgrades)

        until(under_way, "one is upgraded", seconds=150)
        name = whole.scene.names[-1]
        settings = whole.supervisor.settings
        with redis.Redis.from_url(settings.store_url()) as raw:
            raw.hset(f"co:{{{settings.namespace}}}:sv:{whole.id}:{name}", "doc", "garbage")
        assert list(operations.view(whole.store, whole.id).unread) == [name]
        whole.supervisor.stop()

        ours = dict.fromkeys(("redis_url", "broker_url", "result_url"), "")  # where `up` had put them
        other_names = settings.model_copy(update={"namespace": "anew", "queue": "anew", **ours})
        anew = start(other_names, workers=2, with_flower=False)
        try:
            anew.wait_ready(90)
            other = Whole(whole.scene, anew)
            other.id = whole.id
            fleet = load(whole.scene.fleet_file())
            _, made = operations.rebuild(
                other.store, other.ask, fleet, rollout="", act=True, actor="test", waiter=other.waiter
            )
            assert made is not None and (made.id, made.state) == (whole.id, "paused")
            operations.resume(other.store, other.id, actor="test")
            view = other.until_ended()
            assert {u.server: u.state for u in view.upgrades} == dict.fromkeys(whole.scene.names, "upgraded")
            assert other.ours() == sorted(whole.scene.names)
            assert len(whole.scene.host.images()) == len(whole.scene.names)
            seen, held = whole.scene.dismiss_users()
            assert seen["failed"] == 0, seen["failures"]
            assert held.stored == seen["orders"]["sent"] and held.repeated == 0
        finally:
            anew.stop()
