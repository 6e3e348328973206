"""The fake cloud in a process of its own: many processes share it, it fails as it is told, and writes what happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from providers.compute import Size
from providers.compute.fake import FakeCompute
from providers.errors import GuardRefused, Refused, Throttled, Transient
from providers.probe import Expect, Request
from providers.probe.fake import FakeProbe
from providers.traffic import Guard
from providers.traffic.fake import FakeTraffic
from tests.contract.worlds import new_key
from tests.support.fake_cloud import RunningCloud, running_cloud

SITE = Request(url="http://shop.test/health")


@pytest.fixture(scope="module")
def cloud() -> Iterator[RunningCloud]:
    with running_cloud() as running:
        yield running


def told(cloud: RunningCloud, world: str, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (cloud.evidence / world / f"{name}.jsonl").read_text().splitlines()]


def test_what_a_process_made_is_there_after_its_sigkill(cloud: RunningCloud) -> None:
    cloud.operator("shared").server("web-1")
    maker = (
        "import sys, time; from providers.compute.fake import FakeCompute; from providers import Key;"
        "c = FakeCompute({'socket': sys.argv[1], 'world': 'shared'});"
        "k = Key(token='a' * 64, name='co-a', tags={'changeover:managed': '1'});"
        "print(c.ensure_image(k, source='web-1').id, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", maker, str(cloud.socket)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        made = process.stdout.readline().decode().strip()
        os.kill(process.pid, signal.SIGKILL)
    found = FakeCompute(cloud.settings("shared")).inventory({"changeover:managed": "1"})
    assert [thing.id for thing in found] == [made]


def test_a_world_cannot_write_its_evidence_elsewhere(cloud: RunningCloud) -> None:
    for name in ("../elsewhere", "..", "/tmp/x"):
        with pytest.raises(Refused, match="no world is called"):
            FakeCompute(cloud.settings(name))


def test_a_file_that_is_no_socket_is_not_replaced_by_one(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("x")
    argv = [sys.executable, "-m", "providers.fake_host", str(kept)]
    ended = subprocess.run(argv, check=False, capture_output=True, timeout=60)
    assert ended.returncode != 0
    assert kept.read_text() == "x"


def test_calls_meet_the_faults_that_were_told_and_then_none(cloud: RunningCloud) -> None:
    operator, compute = cloud.operator("faults"), FakeCompute(cloud.settings("faults"))
    operator.server("web-1")
    operator.fault("ensure_image", "before")
    operator.fault("ensure_image", "throttle")
    operator.fault("ensure_image", "after")
    operator.fault("ensure_image", "silent", skip=1)
    key, other = new_key(), new_key()
    with pytest.raises(Transient) as before:
        compute.ensure_image(key, source="web-1")
    assert not before.value.ambiguous
    with pytest.raises(Throttled):
        compute.ensure_image(key, source="web-1")
    assert operator.made() == {}
    with pytest.raises(Transient) as after:
        compute.ensure_image(key, source="web-1")
    assert after.value.ambiguous
    compute.ensure_image(key, source="web-1")
    with pytest.raises(Transient) as silent:
        compute.ensure_image(other, source="web-1")
    assert silent.value.ambiguous
    compute.ensure_image(other, source="web-1")
    assert operator.made() == {key.token: 1, other.token: 1}
    assert operator.left() == []


def test_a_slow_call_happens_late(cloud: RunningCloud) -> None:
    operator, compute = cloud.operator("slow"), FakeCompute(cloud.settings("slow"))
    operator.server("web-1")
    operator.fault("s*s", "slow", seconds=0.3)
    began = time.monotonic()
    assert set(compute.servers(["web-1"])) == {"web-1"}
    assert time.monotonic() - began >= 0.3


def test_each_effect_change_of_a_pool_and_smoke_test_is_written_down(cloud: RunningCloud) -> None:
    operator, settings = cloud.operator("evidence"), cloud.settings("evidence")
    compute, traffic, probe = FakeCompute(settings), FakeTraffic(settings), FakeProbe(settings)
    for name in ("web-1", "web-2"):
        operator.server(name, pools={"web": 8080})
    key, size = new_key(), Size(memory=1 << 30, disk=1 << 30)
    operator.fault("ensure_image", "after")
    with pytest.raises(Transient):
        compute.ensure_image(key, source="web-1")
    image = compute.ensure_image(key, source="web-1")
    compute.images([image.id])
    new = compute.ensure_server(new_key(), image=image.id, like="web-1", size=size)
    compute.servers([new.id])
    assert probe.check(new.address, 8080, SITE, Expect()).passed
    compute.protect("web-1", True)
    compute.protect("web-1", True)
    with pytest.raises(GuardRefused):
        compute.stop("web-1")
    while traffic.remove("web", "web-2", guard=Guard(min_healthy=1), cut=False).state != "absent":
        pass
    compute.stop("web-2")

    cells = [(row["call"], row["outcome"], row["effect"]) for row in told(cloud, "evidence", "cloud")]
    assert cells == [
        ("ensure_image", "made", True),
        ("ensure_image", "adopted", False),
        ("ensure_server", "made", True),
        ("protect", "done", True),
        ("protect", "done", False),
        ("stop", "refused", False),
        ("remove", "done", True),
        ("remove", "done", True),
        ("stop", "done", True),
    ]
    first = told(cloud, "evidence", "cloud")[0]
    assert (first["id"], first["token"], first["source"]) == (image.id, key.token, "web-1")
    pools = [{n: m["state"] for n, m in row["members"].items()} for row in told(cloud, "evidence", "balancer")]
    assert pools == [
        {"web-1": "serving", "web-2": "serving"},
        {"web-1": "serving", "web-2": "draining"},
        {"web-1": "serving"},
    ]
    boots = [(row["address"], row["boot"], row["passed"]) for row in told(cloud, "evidence", "probes")]
    assert boots == [(new.address, new.boot, True)]
