"""What every compute provider promises. Nothing here knows which one it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import pytest

from providers.compute import Image, Server
from providers.errors import Conflict, GuardRefused, NotFound, Refused, Transient
from tests.contract.worlds import ComputeWorld, new_key

Made = TypeVar("Made")
ABSENT = "srv-000000000000"


@dataclass(frozen=True, kw_only=True)
class Pair:
    old: str
    image: str


@pytest.fixture(scope="module")
def pair(compute_world: ComputeWorld) -> Pair:
    """A server and an available image of it."""
    old = compute_world.server({"team": "blue", "changeover:role": "old"})
    image = compute_world.compute.ensure_image(new_key(), source=old)
    compute_world.settle(image.id, "available")
    return Pair(old=old, image=image.id)


def provisioned(world: ComputeWorld, pair: Pair) -> str:
    made = world.compute.ensure_server(new_key(), image=pair.image, like=pair.old, size=world.size)
    world.settle(made.id, "running")
    return made.id


def at_once(call: Callable[[], Made], times: int = 20) -> list[Made]:
    with ThreadPoolExecutor(times) as pool:
        return [future.result() for future in [pool.submit(call) for _ in range(times)]]


def test_an_image_becomes_available_and_says_how_much_disk_it_needs(compute_world: ComputeWorld, pair: Pair) -> None:
    image = compute_world.compute.images([pair.image])[pair.image]
    assert image.state == "available"
    assert 0 <= image.disk <= compute_world.size.disk
    assert compute_world.compute.servers([pair.old])[pair.old].state == "running"


def test_a_server_of_an_image_has_the_key_s_name_its_tags_and_the_size_asked_for(
    compute_world: ComputeWorld, pair: Pair
) -> None:
    key = new_key(**{"changeover:role": "new"})
    made = compute_world.compute.ensure_server(key, image=pair.image, like=pair.old, size=compute_world.bigger)
    compute_world.settle(made.id, "running")
    new = compute_world.compute.servers([made.id])[made.id]
    old = compute_world.compute.servers([pair.old])[pair.old]
    assert (new.name, new.size) == (key.name, compute_world.bigger)
    assert new.tags["changeover:managed"] == "1"
    assert new.tags["changeover:role"] == "new"
    assert new.address not in ("", old.address)
    assert new.boot not in ("", old.boot)
    assert new.launched > 0


def test_twenty_asks_at_once_for_one_image_make_one(compute_world: ComputeWorld, pair: Pair) -> None:
    key = new_key(mark="twenty-images")
    made = at_once(lambda: compute_world.compute.ensure_image(key, source=pair.old))
    assert len({image.id for image in made}) == 1
    compute_world.settle(made[0].id, "available")
    found = compute_world.compute.inventory({"mark": "twenty-images"})
    assert [(type(thing), thing.id) for thing in found] == [(Image, made[0].id)]


def test_twenty_asks_at_once_for_one_server_make_one(compute_world: ComputeWorld, pair: Pair) -> None:
    key, size = new_key(mark="twenty-servers"), compute_world.size
    made = at_once(lambda: compute_world.compute.ensure_server(key, image=pair.image, like=pair.old, size=size))
    assert len({server.id for server in made}) == 1
    compute_world.settle(made[0].id, "running")
    found = compute_world.compute.inventory({"mark": "twenty-servers"})
    assert [(type(thing), thing.id) for thing in found] == [(Server, made[0].id)]


def test_an_image_whose_answer_was_lost_is_adopted(compute_world: ComputeWorld, pair: Pair) -> None:
    key = new_key(mark="lost-image")
    compute_world.lose_next_answer()
    with pytest.raises(Transient) as lost:
        compute_world.compute.ensure_image(key, source=pair.old)
    assert lost.value.ambiguous
    made = compute_world.compute.ensure_image(key, source=pair.old)
    assert [thing.id for thing in compute_world.compute.inventory({"mark": "lost-image"})] == [made.id]


def test_a_server_whose_answer_was_lost_is_adopted(compute_world: ComputeWorld, pair: Pair) -> None:
    key, compute = new_key(mark="lost-server"), compute_world.compute
    compute_world.lose_next_answer()
    with pytest.raises(Transient) as lost:
        compute.ensure_server(key, image=pair.image, like=pair.old, size=compute_world.size)
    assert lost.value.ambiguous
    made = compute.ensure_server(key, image=pair.image, like=pair.old, size=compute_world.size)
    assert [thing.id for thing in compute.inventory({"mark": "lost-server"})] == [made.id]


def test_a_key_never_adopts_an_image_of_another_server(compute_world: ComputeWorld, pair: Pair) -> None:
    key, other = new_key(), compute_world.server()
    compute_world.compute.ensure_image(key, source=pair.old)
    with pytest.raises(Conflict):
        compute_world.compute.ensure_image(key, source=other)


def test_a_key_never_adopts_a_server_of_another_size(compute_world: ComputeWorld, pair: Pair) -> None:
    key, compute = new_key(), compute_world.compute
    compute.ensure_server(key, image=pair.image, like=pair.old, size=compute_world.size)
    with pytest.raises(Conflict):
        compute.ensure_server(key, image=pair.image, like=pair.old, size=compute_world.bigger)


def test_a_missing_id_harms_no_other(compute_world: ComputeWorld, pair: Pair) -> None:
    compute = compute_world.compute
    assert set(compute.servers([ABSENT, pair.old, "img-none", "../etc", ""])) == {pair.old}
    assert set(compute.images(["img-000000000000", pair.image, pair.old])) == {pair.image}
    assert compute.servers([]) == {}
    assert compute.images([]) == {}


def test_more_ids_than_one_call_takes_are_all_found(compute_world: ComputeWorld, pair: Pair) -> None:
    many = [f"srv-{number:012x}" for number in range(compute_world.compute.caps.batch + 20)]
    assert set(compute_world.compute.servers([*many, pair.old, pair.old])) == {pair.old}


def test_nothing_stands_in_the_way_of_a_server_that_can_be_made_anew(compute_world: ComputeWorld, pair: Pair) -> None:
    sizes = [compute_world.size, compute_world.bigger]
    assert compute_world.compute.obstacles([ABSENT, pair.old], sizes=sizes) == {}
    assert compute_world.compute.obstacles([], sizes=sizes) == {}


def test_a_server_can_be_made_in_each_subnet_that_is_told(compute_world: ComputeWorld, pair: Pair) -> None:
    compute = compute_world.compute
    own = compute.subnets(pair.old, among=())
    assert [each.free > 0 for each in own] in ([], [True])
    for subnet in own:
        size = replace(compute_world.size, subnet=subnet.id)
        made = compute.ensure_server(new_key(), image=pair.image, like=pair.old, size=size)
        compute_world.settle(made.id, "running")
        assert compute.subnets(made.id, among=[subnet.id])[0].id == subnet.id
        compute.terminate(made.id)


def test_what_a_doctor_looks_at_changes_nothing_and_is_well(compute_world: ComputeWorld, pair: Pair) -> None:
    compute, sizes = compute_world.compute, [compute_world.size]
    before = compute.servers([pair.old])
    found = compute.examine([pair.old, ABSENT], sizes=sizes, at_once=1)
    assert [each for each in found if not each.ok] == []
    assert all(each.name and each.detail for each in found)
    assert compute.servers([pair.old]) == before


def test_an_image_of_a_server_that_is_not_there_is_not_found(compute_world: ComputeWorld) -> None:
    with pytest.raises(NotFound):
        compute_world.compute.ensure_image(new_key(), source=ABSENT)


def test_a_stopped_server_starts_again_as_another_boot(compute_world: ComputeWorld, pair: Pair) -> None:
    compute, server = compute_world.compute, provisioned(compute_world, pair)
    before = compute.servers([server])[server]
    compute.stop(server)
    compute_world.settle(server, "stopped")
    compute.stop(server)
    compute.start(server)
    compute_world.settle(server, "running")
    compute.start(server)
    after = compute.servers([server])[server]
    assert after.boot != before.boot
    assert after.state == "running"


def test_stop_and_start_of_a_server_that_is_not_there_are_not_found(compute_world: ComputeWorld) -> None:
    for call in (compute_world.compute.stop, compute_world.compute.start):
        with pytest.raises(NotFound):
            call(ABSENT)


def test_terminating_twice_or_what_is_not_there_is_success(compute_world: ComputeWorld, pair: Pair) -> None:
    compute, server = compute_world.compute, provisioned(compute_world, pair)
    compute.terminate(server)
    compute.terminate(server)
    compute_world.settle(server, "terminated")
    compute.terminate(server)
    compute.terminate(ABSENT)


def test_a_terminated_server_is_in_no_inventory_and_cannot_be_stopped(compute_world: ComputeWorld, pair: Pair) -> None:
    compute, key = compute_world.compute, new_key(mark="gone")
    server = compute.ensure_server(key, image=pair.image, like=pair.old, size=compute_world.size).id
    compute_world.settle(server, "running")
    compute.terminate(server)
    compute_world.settle(server, "terminated")
    assert compute.inventory({"mark": "gone"}) == []
    with pytest.raises(NotFound):
        compute.stop(server)


def test_a_key_whose_server_was_terminated_is_used_up(compute_world: ComputeWorld, pair: Pair) -> None:
    compute, key = compute_world.compute, new_key()
    server = compute.ensure_server(key, image=pair.image, like=pair.old, size=compute_world.size).id
    compute_world.settle(server, "running")
    compute.terminate(server)
    compute_world.settle(server, "terminated")
    with pytest.raises(Refused):
        compute.ensure_server(key, image=pair.image, like=pair.old, size=compute_world.size)


def test_a_protected_server_is_neither_stopped_nor_terminated(compute_world: ComputeWorld, pair: Pair) -> None:
    compute, server = compute_world.compute, provisioned(compute_world, pair)
    compute.protect(server, True)
    for call in (compute.stop, compute.terminate):
        with pytest.raises(GuardRefused):
            call(server)
    assert compute.servers([server])[server].state == "running"
    compute.protect(server, False)
    compute.terminate(server)
    compute_world.settle(server, "terminated")


@pytest.mark.parametrize("given", [{"phase": "now"}, {"phase": None}, {"phase": "before", "other": "x"}])
def test_a_call_that_was_decided_before_the_tags_changed_is_refused(
    compute_world: ComputeWorld, pair: Pair, given: Mapping[str, str | None]
) -> None:
    compute, server = compute_world.compute, provisioned(compute_world, pair)
    compute.tag(server, {"phase": "before"})
    for call in (
        lambda: compute.stop(server, given=given),
        lambda: compute.protect(server, True, given=given),
        lambda: compute.tag(server, {"phase": "after"}, given=given),
        lambda: compute.terminate(server, given=given),
    ):
        with pytest.raises(GuardRefused):
            call()
    found = compute.servers([server], protection=True)[server]
    assert (found.state, found.protected, found.tags["phase"]) == ("running", False, "before")
    compute.stop(server, given={"phase": "before", "other": None})
    compute_world.settle(server, "stopped")
    compute.stop(server, given=given)  # what is stopped already is not taken away by it
    with pytest.raises(GuardRefused):
        compute.start(server, given=given)
    compute.tag(server, {"phase": None}, given={"phase": "before"})
    compute.protect(server, True, given={"phase": None})
    assert compute.servers([server], protection=True)[server].protected
    compute.start(server, given={"phase": None})
    compute_world.settle(server, "running")
    compute.protect(server, False)
    compute.terminate(server, given={"phase": None})
    compute_world.settle(server, "terminated")


def test_a_server_of_somebody_else_is_terminated_only_once_it_is_disposable(compute_world: ComputeWorld) -> None:
    compute, server = compute_world.compute, compute_world.server()
    with pytest.raises(GuardRefused):
        compute.terminate(server)
    assert compute.servers([server])[server].state == "running"
    compute.tag(server, {"changeover:disposable": "1"})
    compute.terminate(server)
    compute_world.settle(server, "terminated")


def test_taking_the_disposable_tag_away_refuses_a_late_terminate(compute_world: ComputeWorld) -> None:
    compute, server = compute_world.compute, compute_world.server({"changeover:disposable": "1", "keep": "me"})
    compute.tag(server, {"changeover:disposable": None})
    with pytest.raises(GuardRefused):
        compute.terminate(server)
    assert compute.servers([server])[server].tags == {"keep": "me"}


def test_deleting_an_image_twice_is_success(compute_world: ComputeWorld, pair: Pair) -> None:
    compute = compute_world.compute
    image = compute.ensure_image(new_key(mark="deleted"), source=pair.old)
    compute_world.settle(image.id, "available")
    compute.delete_image(image.id)
    compute.delete_image(image.id)
    compute.delete_image("img-000000000000")
    assert compute.inventory({"mark": "deleted"}) == []
    assert compute.images([image.id]) == {}


def test_the_inventory_has_what_carries_all_the_tags(compute_world: ComputeWorld, pair: Pair) -> None:
    compute = compute_world.compute
    image = compute.ensure_image(new_key(mark="listed", part="a"), source=pair.old)
    server = compute.ensure_server(
        new_key(mark="listed", part="b"), image=pair.image, like=pair.old, size=compute_world.size
    )
    assert {thing.id for thing in compute.inventory({"mark": "listed"})} == {image.id, server.id}
    assert [thing.id for thing in compute.inventory({"mark": "listed", "part": "b"})] == [server.id]
    assert compute.inventory({"mark": "listed", "part": "c"}) == []
