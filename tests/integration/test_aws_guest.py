"""A look inside EC2 instances: the real script, run by the agents of the simulated AWS on real processes."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from providers.errors import Transient, Unauthorized
from providers.guest.aws import END, AwsGuest, read, script
from providers.guest.quiesce import Hook
from providers.rights import policies
from simcloud.cloud import Network, SimCloud
from simcloud.faults import Fault
from tests.support.aws import REGION, ROLE, address_of, answers, credentials, launch

GIB = 1024**3


class Stage:
    def __init__(self, cloud: SimCloud) -> None:
        self.cloud, self.network = cloud, cloud.network(region=REGION)
        self.guest = AwsGuest({"region": REGION, "endpoint": cloud.url})

    def server(self, **more: Any) -> str:
        return launch(self.cloud, self.network, **more)

    def folder(self, id: str) -> Path:
        assert self.cloud.machines is not None
        return self.cloud.machines.folder(id)

    def until(self, true: Any) -> Any:
        end = time.monotonic() + 30
        while not (found := true()):
            assert time.monotonic() < end, "it never came"
            time.sleep(0.05)
        return found

    def facts(self, *ids: str, paths: tuple[str, ...] = ()) -> Any:
        return self.until(lambda: (found := self.guest.facts(ids, paths=paths)) and len(found) == len(ids) and found)


@pytest.fixture(scope="module")
def cloud() -> Iterator[SimCloud]:
    with credentials(), SimCloud() as made:
        yield made


@pytest.fixture(scope="module")
def network(cloud: SimCloud) -> Network:
    return cloud.network(region=REGION)


@pytest.fixture
def stage(cloud: SimCloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setattr("providers.guest.aws.PAUSE", 0.02)
    yield Stage(cloud)
    cloud.troubles.clear()


def test_one_script_tells_of_disk_memory_ports_services_and_paths(stage: Stage) -> None:
    id = stage.server(BlockDeviceMappings=[{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 20}}])
    stage.facts(id)
    stage.until(lambda: answers(address_of(stage.cloud, id), 8080))
    folder = stage.folder(id)
    (folder / 'it\'s $(id) "here"').write_text("secret")
    (folder / 'it\'s $(id) "here"').chmod(0o640)
    (folder / "links").symlink_to("index.html")
    (folder / "proc" / "failed").write_text("web.service loaded failed failed The site\n")
    found = stage.facts(id, paths=('/it\'s $(id) "here"', "links", "/proc", "/not/there"))[id]
    assert (found.disk_total, found.memory_total) == (20 * GIB, 2 * GIB)
    assert 0 < found.disk_used < GIB and 0 < found.memory_used < found.memory_total
    assert found.listening == (8080,)
    assert found.failed_units == ("web.service",)
    assert abs(found.clock_offset) < 5
    kinds = [(each.path, each.kind, each.mode) for each in found.paths]
    assert kinds[0] == ('/it\'s $(id) "here"', "file", "0640")
    assert [kind for _, kind, _ in kinds[1:]] == ["link", "directory", "missing"]
    assert found.paths[0].owner and found.paths[0].group


def test_connections_at_the_ports_where_it_listens_are_counted(stage: Stage) -> None:
    id = stage.server()
    stage.facts(id)
    address = address_of(stage.cloud, id)
    stage.until(lambda: answers(address, 8080))
    stage.until(lambda: stage.facts(id)[id].connections == {"8080": 0})
    users = [socket.create_connection((address, 8080), timeout=5) for _ in range(3)]
    stage.until(lambda: stage.facts(id)[id].connections == {"8080": 3})
    for user in users:
        user.close()
    stage.until(lambda: stage.facts(id)[id].connections == {"8080": 0})


def test_another_start_is_another_boot(stage: Stage) -> None:
    id = stage.server()
    before = stage.facts(id)[id].boot
    assert stage.cloud.machines is not None
    stage.cloud.machines.reboot(id)
    assert stage.facts(id)[id].boot not in ("", before)


def test_who_does_not_answer_is_left_out_and_harms_no_other(stage: Stage) -> None:
    well, off = stage.server(), stage.server()
    stage.facts(well, off)
    assert stage.cloud.machines is not None
    stage.cloud.machines.stop(off)
    found = stage.guest.facts([well, off, "i-00000000000000000", "srv-1", ""], paths=())
    assert set(found) == {well}
    assert stage.guest.facts([], paths=()) == {}


def test_an_agent_that_goes_away_under_the_question_spoils_nothing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Systems Manager refuses the whole command then."""
    well, off = stage.server(), stage.server()
    stage.facts(well, off)
    assert stage.cloud.machines is not None
    stage.cloud.machines.stop(off)
    monkeypatch.setattr(stage.guest, "_online", list)
    assert stage.guest.facts([well, off], paths=()) == {}
    assert set(stage.guest.facts([well], paths=())) == {well}


def test_many_are_asked_in_three_calls_a_batch_and_then_in_two(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [stage.server() for _ in range(7)]
    stage.facts(*ids)
    monkeypatch.setattr("providers.guest.aws.BATCH", 5)
    commands = stage.cloud.ledgers.commands

    def until_all_have_said(_pause: float) -> None:
        end = time.monotonic() + 60
        while any(set(command.ids) - set(command.said) for command in commands.values()):
            assert time.monotonic() < end
            time.sleep(0.05)

    stepped = SimpleNamespace(sleep=until_all_have_said, monotonic=time.monotonic, time=time.time)
    monkeypatch.setattr("providers.guest.aws.time", stepped)
    another = AwsGuest({"region": REGION, "endpoint": stage.cloud.url})
    for online in (2, 0):
        before = stage.cloud.calls.copy()
        assert set(another.facts(ids, paths=())) == set(ids)
        made = stage.cloud.calls - before
        assert (made["ssm:DescribeInstanceInformation"], made["ssm:SendCommand"]) == (online, 2)
        assert made["ssm:ListCommandInvocations"] <= 4


def test_an_agent_that_has_gone_away_is_noticed_and_the_others_are_asked_all_the_same(stage: Stage) -> None:
    well, off = stage.server(), stage.server()
    stage.facts(well, off)
    assert stage.cloud.machines is not None
    stage.cloud.machines.stop(off)
    assert set(stage.guest.facts([well, off], paths=())) == {well}


def test_a_long_answer_is_read_to_its_end(stage: Stage) -> None:
    id = stage.server()
    paths = (*(f"/some/rather/long/name/number-{number:03}" for number in range(150)), "index.html")
    before = stage.cloud.calls["ssm:GetCommandInvocation"]
    found = stage.facts(id, paths=paths)[id]
    assert len(found.paths) == 151 and found.paths[-1].kind == "file"
    assert stage.cloud.calls["ssm:GetCommandInvocation"] > before


def test_who_takes_too_long_is_asked_again_another_time(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    id = stage.server()
    stage.facts(id)
    monkeypatch.setattr("providers.guest.aws.PATIENCE", 0.0)
    (stage.folder(id) / "proc" / "disk").unlink()
    os.mkfifo(stage.folder(id) / "proc" / "disk")  # of which df waits for ever
    assert stage.guest.facts([id], paths=()) == {}
    (stage.folder(id) / "proc" / "disk").unlink()


def test_an_answer_that_is_lost_is_transient(stage: Stage) -> None:
    id = stage.server()
    stage.facts(id)
    stage.cloud.troubles.add(Fault(service="ssm", action="SendCommand", after=True, drop=True))
    with pytest.raises(Transient):
        stage.guest.facts([id], paths=())
    assert set(stage.guest.facts([id], paths=())) == {id}


def test_a_role_with_the_policy_that_is_printed_may_quiesce_servers_of_its_fleet_alone(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("providers.guest.aws.PATIENCE", 60.0)  # for a machine that has more to do
    mark = str(tmp_path / "still")
    hook = Hook(before=("touch", mark), after=("rm", mark), seconds=60.0)
    ours, other = (stage.server(tags={"changeover-fleet": fleet}) for fleet in ("shop", "blog"))
    stage.facts(ours, other)
    guest = AwsGuest({"region": REGION, "endpoint": stage.cloud.url, "role": ROLE})
    (mine, _) = policies(guest.rights(fleet="shop"))
    stage.cloud.policies[ROLE] = mine["policy"]
    guest.quiesce(ours, "k" * 64, hook=hook, by=time.time() + 60)
    assert Path(mark).exists()
    assert guest.release(ours, "k" * 64, hook=hook)
    assert not Path(mark).exists()
    with pytest.raises(Unauthorized):
        guest.quiesce(other, "k" * 64, hook=hook, by=time.time() + 60)


def test_the_script_runs_under_a_plain_shell_and_changes_nothing(tmp_path: Path) -> None:
    """On this very machine: what it tells can be read, whatever is missing here."""
    before = sorted(tmp_path.iterdir())
    ended = subprocess.run(
        ["/bin/sh", "-c", script(["/etc/passwd", "/nowhere"])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert ended.stdout.rstrip().endswith(END) and ended.stderr == ""
    found = read("i-1", ended.stdout, ["/etc/passwd", "/nowhere"], asked=0.0, heard=time.time() + 5)
    assert found.memory_total > found.memory_used > 0
    assert [each.kind for each in found.paths] == ["file", "missing"]
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("output", ["", "nonsense", "disk\t\t\npath\tx\tfile\nlisten\n", "memory\t1024"])
def test_what_the_script_does_not_tell_is_nothing(output: str) -> None:
    found = read("i-1", output, ["a"], asked=1.0, heard=2.0)
    assert (found.disk_total, found.paths[0].kind, found.listening) == (0, "missing", ())
