"""What nobody accounts for at a real cloud: found by a worker, stopped, and ended; and what serves is left alone."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from orchestrator import operations
from orchestrator.domain.plan import token
from orchestrator.fleet_file import load
from orchestrator.messaging import make_app
from providers import Key
from providers.compute import Size
from providers.compute.local import LocalCompute
from tests.support.local_host import until
from tests.support.shop import shop

MiB = 1024**2


@pytest.mark.timeout(300)
def test_what_was_made_too_late_is_stopped_and_ended_beside_users(tmp_path: Path) -> None:
    with shop(tmp_path, servers=2, orphan_seen=1.0, orphan_kept=1.0) as whole:
        whole.apply()
        whole.until_ended()
        fleet = load(whole.scene.fleet_file())
        compute = LocalCompute(fleet.provider.settings)
        name, serving = whole.scene.names[0], whole.ours()
        tags = {"changeover:managed": "1", "changeover:rollout": whole.id, "changeover:server": name}
        where = fleet.provider

        def key(step: str) -> Key:
            made = token(whole.id, where.name, where.account, where.region, name, step, 1, 0)
            return Key(token=made, name=f"co-{made[:40]}", tags=tags)

        like = whole.store.rows(whole.id)[0].upgrade.results["provision"]["server"]
        image = compute.ensure_image(key("create_image"), source=like)
        until(lambda: compute.images([image.id])[image.id].state == "available", "the image is made")
        size = Size(memory=256 * MiB, disk=512 * MiB)
        late = compute.ensure_server(key("provision"), image=image.id, like=like, size=size)
        app = make_app(whole.supervisor.settings)
        app.send_task("tasks.scan", kwargs={"lane": fleet.lane}, ignore_result=True)

        def seen() -> set[str]:
            whole.supervisor.step(0.02)
            return {sighting.id for sighting in whole.store.sightings()}

        until(lambda: seen() == {late.id, image.id}, "a worker has found both")

        def gc() -> operations.Inventory:
            time.sleep(1.1)
            found = operations.gc(
                whole.store, whole.ask, lambda: lambda _: None, collect=True, grace=5.0, waiter=whole.waiter
            )
            assert not found.unread and not found.not_done
            return found

        assert len(gc().done) == 2
        assert compute.servers([late.id])[late.id].state in ("stopping", "stopped")
        assert len(gc().done) == 2
        until(lambda: whole.ours() == serving and not compute.images([image.id]), "only what serves is left")
        assert gc().orphans == ()
        seen_by_users, _ = whole.scene.dismiss_users()
        assert seen_by_users["failed"] == 0, seen_by_users["failures"]
