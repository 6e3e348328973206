"""What a cloud does to a rollout, over the simulated AWS and with its own providers: throttling, lost answers, late
truth, credentials that expire, hosts that are retired, and people who change what the rollout is at work on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from orchestrator import operations
from orchestrator.domain.upgrade import Upgrade
from providers import budget
from simcloud.cloud import Network, SimCloud
from simcloud.faults import Fault, changes
from tasks.world import SharedBudget
from tests.support.aws import PORT, REGION, credentials, wire
from tests.support.aws_runner import Site, aws_running
from tests.support.runner import Runner


@pytest.fixture(scope="module")
def place() -> Iterator[tuple[SimCloud, Network]]:
    with credentials(), SimCloud() as cloud:
        yield cloud, cloud.network(region=REGION)


def u(r: Runner) -> Upgrade:
    (server,) = r.fleet.servers
    return r.upgrade(server.name)


def new(r: Runner) -> str:
    return str(u(r).results["provision"]["server"])


def well(r: Runner, site: Site) -> None:
    """B serves beside the other one, A is kept stopped, and of all that was made there is one of each."""
    r.finish()
    assert (r.record().state, u(r).state) == ("succeeded", "upgraded"), u(r)
    assert site.healthy() == {new(r), site.beside}
    assert site.state(site.old) in ("stopping", "stopped")
    alone(r, site, servers=1)


def back(r: Runner, site: Site, state: str) -> None:
    """A serves as it did, and nothing is left."""
    r.until(lambda: u(r).terminal)
    assert u(r).state == state, u(r)
    assert site.healthy() == {site.old, site.beside}
    alone(r, site, servers=0)


def alone(r: Runner, site: Site, *, servers: int) -> None:
    left = site.made(r.rollout)
    assert {kind: len(left[kind]) for kind in ("instance", "image", "snapshot", "volume")} == {
        "instance": servers,
        "image": servers,
        "snapshot": servers,
        "volume": servers,
    }, left


def test_a_storm_of_throttling_fails_no_server_and_is_not_answered_with_one(place: tuple[SimCloud, Network]) -> None:
    """Everything is refused for a while, then nothing is (C1)."""
    cloud, network = place
    with aws_running(cloud, network) as (r, site), paced(r):
        r.until(lambda: u(r).step == "provision")
        cloud.troubles.add(Fault(service="ec2", code="RequestLimitExceeded", http=503, count=-1))
        before, end = Counter(cloud.calls), r.clock() + 4.0
        r.until(lambda: r.clock() >= end)
        stormed = sum((Counter(cloud.calls) - before).values())
        assert not u(r).terminal and u(r).state != "held" and u(r).direction == "forward"
        assert 0 < stormed < 60, "at a pace that falls, whoever asks"
        cloud.troubles.clear()
        well(r, site)


@contextmanager
def paced(r: Runner) -> Iterator[None]:
    """As in a worker, whose calls all take from one budget."""
    budget.use(SharedBudget(r.store))
    try:
        yield
    finally:
        budget.use(None)


def test_answers_that_are_lost_after_the_effect_and_a_truth_that_shows_late_make_nothing_twice(
    place: tuple[SimCloud, Network],
) -> None:
    """Each changing call loses its first answer (C2), and what was made is not found for a second (C3)."""
    cloud, network = place
    with aws_running(cloud, network) as (r, site):
        actions = {name.partition(":")[2] for name in cloud.calls if changes(name.partition(":")[2])}
        for action in actions:
            cloud.troubles.add(Fault(action=action, after=True, drop=True))
        cloud.timings.lag = 1.0
        try:
            well(r, site)
        finally:
            cloud.timings.lag = 0.0
        assert {"CreateImage", "RunInstances", "StopInstances", "DeregisterTargets"} <= actions | {
            name.partition(":")[2] for name in cloud.calls
        }


def test_expired_credentials_hold_the_server_while_the_old_one_serves_and_it_goes_on_once_they_are_mended(
    place: tuple[SimCloud, Network],
) -> None:
    """C4: expired, wrong, without a right, and of an account that has not that region."""
    cloud, network = place
    with aws_running(cloud, network) as (r, site):
        r.until(lambda: u(r).step == "provision")
        for code in ("AuthFailure", "RequestExpired", "UnauthorizedOperation", "OptInRequired"):
            cloud.troubles.add(Fault(service="*", code=code, http=403, count=-1))
            operations.retry(r.store, r.rollout, None, actor="test")
            r.until(lambda code=code: u(r).state == "held" and code in u(r).why)
            cloud.troubles.clear()
        assert site.healthy() == {site.old, site.beside}
        operations.retry(r.store, r.rollout, None, actor="test")
        well(r, site)


@pytest.mark.parametrize("moment", ["before its image", "when the new one is tested"])
def test_an_old_server_whose_host_is_retired(place: tuple[SimCloud, Network], moment: str) -> None:
    """C5: a B that has passed its smoke test is promoted; without one a person is asked, and nobody else is touched."""
    cloud, network = place
    with aws_running(cloud, network) as (r, site):
        tested = moment != "before its image"
        if tested:
            r.until(lambda: u(r).step == "smoke_test" and u(r).wait is not None)
        wire(cloud).write("ec2", "terminate_instances", InstanceIds=[site.old])
        if tested:
            r.finish()
            assert (u(r).state, site.healthy()) == ("upgraded", {new(r), site.beside})
            alone(r, site, servers=1)
        else:
            r.until(lambda: u(r).state == "held")
            assert "is gone" in u(r).why and site.healthy() == {site.beside}
            alone(r, site, servers=0)


@pytest.mark.parametrize("moment", ["before users", "in its soak"])
def test_a_new_server_whose_host_is_retired_goes_and_the_old_one_serves(
    place: tuple[SimCloud, Network], moment: str
) -> None:
    """C5, O4: before it serves, and while both serve."""
    cloud, network = place
    soaks = moment == "in its soak"
    with aws_running(cloud, network, soak="30s") as (r, site):
        r.until(lambda: "until" in u(r).notes if soaks else u(r).step == "smoke_test" and u(r).wait is not None)
        wire(cloud).write("ec2", "terminate_instances", InstanceIds=[new(r)])
        back(r, site, "rolled_back" if soaks else "failed")


def test_an_image_that_somebody_deletes_before_it_is_cloned_is_made_anew(place: tuple[SimCloud, Network]) -> None:
    """O4: by a new attempt, and nothing is left over."""
    cloud, network = place
    with aws_running(cloud, network) as (r, site):
        r.until(lambda: "create_image" in u(r).results)
        image = u(r).results["create_image"]["image"]
        wire(cloud).write("ec2", "deregister_image", ImageId=image, DeleteAssociatedSnapshots=True)
        r.until(lambda: u(r).step == "create_image")
        assert image in u(r).why and site.healthy() == {site.old, site.beside}
        well(r, site)
        assert u(r).attempts == {"create_image": 1, "provision": 1}


def test_what_people_change_in_a_target_group_stays_and_no_user_is_left_alone(
    place: tuple[SimCloud, Network],
) -> None:
    """O4: the new server is deregistered by hand in its soak, all tags are taken off the old one, and a server of
    somebody else's comes in."""
    cloud, network = place
    with aws_running(cloud, network, soak="4s") as (r, site):
        r.until(lambda: "until" in u(r).notes)
        elb, targets = wire(cloud), [{"Id": new(r), "Port": PORT}]
        elb.write("elbv2", "deregister_targets", TargetGroupArn=site.group, Targets=targets)
        elb.write("ec2", "delete_tags", Resources=[site.old])
        theirs = site.server("theirs")
        r.until(lambda: u(r).terminal or u(r).state == "upgraded")
        site.until_healthy(new(r) if u(r).state == "upgraded" else site.old, site.beside, theirs)
        alone(r, site, servers=int(u(r).state == "upgraded"))
