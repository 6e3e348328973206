"""What every guest provider promises. Nothing here knows which one it is. A provider joins by one entry in WORLDS."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import pytest

from providers.clients import local_host as local_client
from providers.compute.fake import FakeCloud, FakeCompute
from providers.errors import ProviderError, Refused, Transient
from providers.guest import Guest
from providers.guest import aws as aws_guest
from providers.guest.aws import AwsGuest
from providers.guest.fake import FakeGuest
from providers.guest.local import LocalGuest
from providers.guest.quiesce import Hook
from simcloud.cloud import SimCloud
from tests.support.aws import REGION, credentials, launch
from tests.support.local_host import LocalHost, until

LONG = 60.0  # seconds: nothing is released by itself while a test runs
ABSENT = "srv-000000000000"


class GuestWorld(Protocol):
    guest: Guest
    runs_programs: bool  # rather than pretending to

    def server(self) -> str:
        """The id of a new server that answers."""
        ...

    def stop(self, id: str) -> None:
        """Returns once it does not run."""
        ...

    def hook(self, id: str, seconds: float) -> Hook:
        """Its `before` makes that server stand still, and its `after` lets it run on."""
        ...

    def still(self, id: str) -> bool:
        """Whether that server stands still."""
        ...


class _Files:
    """A server stands still while a file of it is there."""

    runs_programs = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def mark(self, id: str) -> Path:
        return self._folder / f"{id}.still"

    def hook(self, id: str, seconds: float) -> Hook:
        mark = str(self.mark(id))
        return Hook(before=("touch", mark), after=("rm", mark), seconds=seconds)

    def still(self, id: str) -> bool:
        return self.mark(id).exists()


class LocalWorld(_Files):
    def __init__(self, host: LocalHost, folder: Path) -> None:
        super().__init__(folder)
        self._host = host
        self.guest: Guest = LocalGuest(host.settings)

    def server(self) -> str:
        return str(self._host.server(f"web-{uuid.uuid4().hex[:8]}")["id"])

    def stop(self, id: str) -> None:
        self._host.client.call("POST", f"/servers/{id}/stop", {})
        self._host.becomes(id, "stopped")


class AwsWorld(_Files):
    def __init__(self, cloud: SimCloud, folder: Path) -> None:
        super().__init__(folder)
        self._cloud, self._network = cloud, cloud.network(region=REGION)
        self.guest: Guest = AwsGuest({"region": REGION, "endpoint": cloud.url})

    def server(self) -> str:
        id = launch(self._cloud, self._network)
        until(lambda: self.guest.facts([id], paths=()), f"{id} answers")
        return id

    def stop(self, id: str) -> None:
        assert self._cloud.machines is not None
        self._cloud.machines.stop(id)


class FakeWorld:
    runs_programs = False

    def __init__(self, world: str) -> None:
        self._compute = FakeCompute({"world": world})
        self.guest: Guest = FakeGuest({"world": world})

    def server(self) -> str:
        return self._compute.cloud.server(f"web-{uuid.uuid4().hex[:8]}").id

    def stop(self, id: str) -> None:
        self._compute.stop(id)

    def hook(self, _id: str, seconds: float) -> Hook:
        return Hook(before=("freeze",), after=("thaw",), seconds=seconds)

    def still(self, id: str) -> bool:
        return self._compute.cloud.frozen(id) is not None


@contextmanager
def _local(folder: Path) -> Iterator[GuestWorld]:
    with LocalHost() as host, pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_client, "READ_SECONDS", 60.0)
        yield LocalWorld(host, folder)


@contextmanager
def _aws(folder: Path) -> Iterator[GuestWorld]:
    with credentials(), SimCloud() as cloud, pytest.MonkeyPatch.context() as patch:
        patch.setattr(aws_guest, "PAUSE", 0.02)
        patch.setattr(aws_guest, "PATIENCE", 60.0)  # for a machine that has more to do
        yield AwsWorld(cloud, folder)


@contextmanager
def _fake(_folder: Path) -> Iterator[GuestWorld]:
    name = uuid.uuid4().hex
    yield FakeWorld(name)
    del FakeCloud.named[name]


WORLDS: dict[str, Callable[[Path], AbstractContextManager[GuestWorld]]] = {"aws": _aws, "fake": _fake, "local": _local}


@pytest.fixture(scope="module", params=sorted(WORLDS))
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuestWorld]:
    with WORLDS[request.param](tmp_path_factory.mktemp("still")) as made:
        yield made


@pytest.fixture(scope="module")
def server(world: GuestWorld) -> str:
    """One that each test leaves released."""
    return world.server()


def key() -> str:
    return uuid.uuid4().hex * 2


def soon() -> float:
    return time.time() + 60


def test_who_runs_tells_facts_and_who_does_not_is_left_out(world: GuestWorld, server: str) -> None:
    found = world.guest.facts([server, ABSENT], paths=())
    assert set(found) == {server}
    assert found[server].boot and found[server].memory_total > 0


def test_a_server_stands_still_until_it_is_released(world: GuestWorld, server: str) -> None:
    mine, hook = key(), world.hook(server, LONG)
    world.guest.quiesce(server, mine, hook=hook, by=soon())
    assert world.still(server)
    assert world.guest.release(server, mine, hook=hook)
    assert not world.still(server)


def test_nobody_is_needed_for_its_release(world: GuestWorld, server: str) -> None:
    mine, hook = key(), world.hook(server, 1.0)
    world.guest.quiesce(server, mine, hook=hook, by=soon())
    until(lambda: not world.still(server), "its own watchdog releases it")
    assert not world.guest.release(server, mine, hook=hook), "it was over before"


def test_a_release_may_be_repeated_and_says_the_same(world: GuestWorld, server: str) -> None:
    mine, hook = key(), world.hook(server, LONG)
    assert not world.guest.release(server, mine, hook=hook), "it never began"
    world.guest.quiesce(server, mine, hook=hook, by=soon())
    assert [world.guest.release(server, mine, hook=hook) for _ in range(3)] == [True] * 3


def test_whoever_says_no_key_releases_what_is_on_and_vouches_for_nothing(world: GuestWorld, server: str) -> None:
    mine, hook = key(), world.hook(server, LONG)
    world.guest.quiesce(server, mine, hook=hook, by=soon())
    assert not world.guest.release(server, "", hook=hook)
    assert not world.still(server)
    assert not world.guest.release(server, mine, hook=hook)


def test_who_comes_too_late_is_refused_and_changes_nothing(world: GuestWorld, server: str) -> None:
    mine, hook = key(), world.hook(server, LONG)
    with pytest.raises(Refused, match="too late"):
        world.guest.quiesce(server, mine, hook=hook, by=time.time() - 2)
    assert not world.still(server)
    world.guest.quiesce(server, mine, hook=hook, by=soon())
    with pytest.raises(Refused, match="too late"):
        world.guest.quiesce(server, key(), hook=hook, by=time.time() - 2)
    assert world.guest.release(server, mine, hook=hook), "nobody has ended it"


def test_a_repeated_quiesce_begins_anew_whoever_was_there_before(world: GuestWorld, server: str) -> None:
    mine, hook = key(), world.hook(server, LONG)
    world.guest.quiesce(server, key(), hook=hook, by=soon())
    world.guest.quiesce(server, mine, hook=replace(hook, seconds=2.0), by=soon())
    world.guest.quiesce(server, mine, hook=hook, by=soon())
    assert world.still(server)
    assert world.guest.release(server, mine, hook=hook)
    assert not world.still(server)


def test_who_does_not_run_is_transient(world: GuestWorld) -> None:
    gone = world.server()
    world.stop(gone)
    with pytest.raises(Transient):
        world.guest.quiesce(gone, key(), hook=world.hook(gone, LONG), by=soon())
    with pytest.raises(Transient):
        world.guest.release(gone, key(), hook=world.hook(gone, LONG))
    with pytest.raises(ProviderError):
        world.guest.release(ABSENT, "", hook=world.hook(ABSENT, LONG))


def test_a_before_that_fails_is_refused_with_its_last_word_and_nothing_is_on(world: GuestWorld, server: str) -> None:
    if not world.runs_programs:
        pytest.skip("it runs no programs")
    hook = world.hook(server, LONG)
    half = " ".join(hook.before)
    failing = replace(hook, before=("sh", "-c", f"{half}; echo the table is locked >&2; exit 3"))
    with pytest.raises(Refused, match="the table is locked"):
        world.guest.quiesce(server, key(), hook=failing, by=soon())
    assert not world.still(server)


def test_an_after_that_fails_is_told_and_tried_again(world: GuestWorld, server: str, tmp_path: Path) -> None:
    if not world.runs_programs:
        pytest.skip("it runs no programs")
    mine, hook, mended = key(), world.hook(server, 1.0), tmp_path / "mended"
    undo = " ".join(hook.after)
    stubborn = replace(hook, after=("sh", "-c", f"test -e {mended} || {{ echo still busy; exit 1; }}; {undo}"))
    world.guest.quiesce(server, mine, hook=stubborn, by=soon())
    with pytest.raises(Refused, match="still busy"):
        world.guest.release(server, mine, hook=stubborn)
    assert world.still(server)
    mended.touch()
    until(lambda: not world.still(server), "its watchdog goes on trying")


def test_words_are_words_and_never_part_of_a_program(world: GuestWorld, server: str, tmp_path: Path) -> None:
    if not world.runs_programs:
        pytest.skip("it runs no programs")
    strange, hook = tmp_path / 'it\'s $(id) "KEY" AFTER; BEFORE', world.hook(server, LONG)
    odd = replace(hook, before=("touch", str(strange)), after=("rm", str(strange)))
    world.guest.quiesce(server, key(), hook=odd, by=soon())
    assert strange.exists()
    world.guest.release(server, "", hook=odd)
    assert not strange.exists()
