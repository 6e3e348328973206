"""What goes wrong in the simulated cloud when it is asked to, and its machines, which are real."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from typing import Any

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError

from simcloud.cloud import Timings
from simcloud.faults import Fault
from tests.simcloud.conftest import Sim, sim


def ask(sim: Sim, what: str, **told: Any) -> Any:
    request = urllib.request.Request(f"{sim.cloud.url}/sim/{what}", data=json.dumps(told).encode())
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def error_of(call: Any) -> tuple[str, int]:
    with pytest.raises(ClientError) as refused:
        call()
    told = refused.value.response
    assert told["ResponseMetadata"]["RequestId"]
    return told["Error"]["Code"], told["ResponseMetadata"]["HTTPStatusCode"]


def test_a_reply_that_is_lost_had_its_effect(simulated: Sim) -> None:
    ask(simulated, "faults", service="ec2", action="RunInstances", after=True, drop=True)
    with pytest.raises(ConnectionClosedError):
        simulated.launch(ClientToken="t-1")
    found = simulated.client("ec2").describe_instances(Filters=[{"Name": "client-token", "Values": ["t-1"]}])
    assert len(found["Reservations"]) == 1
    assert simulated.launch(ClientToken="t-1") == found["Reservations"][0]["Instances"][0]["InstanceId"]


def test_a_call_that_is_dropped_before_it_arrived_had_none(simulated: Sim) -> None:
    ask(simulated, "faults", service="ec2", action="RunInstances", drop=True)
    with pytest.raises(ConnectionClosedError):
        simulated.launch()
    assert simulated.client("ec2").describe_instances()["Reservations"] == []


def test_faults_choose_among_calls_and_come_to_an_end(simulated: Sim) -> None:
    simulated.cloud.troubles.add(Fault(service="ec2", code="InternalError", http=500, count=2, writes=True))
    simulated.client("ec2").describe_instances()
    for _ in range(2):
        assert error_of(simulated.launch) == ("InternalError", 500)
    simulated.launch()


@pytest.mark.parametrize(
    ("service", "call", "code", "status"),
    [
        ("ec2", "describe_instances", "RequestLimitExceeded", 503),
        ("elbv2", "describe_load_balancers", "Throttling", 400),
        ("route53", "list_hosted_zones", "Throttling", 400),
        ("ssm", "describe_parameters", "ThrottlingException", 400),
    ],
)
def test_each_service_throttles_in_its_own_words(
    simulated: Sim, service: str, call: str, code: str, status: int
) -> None:
    ask(simulated, "limits", pattern=f"{service}:*", size=2, refill=0.001)
    client = simulated.client(service)
    for _ in range(2):
        getattr(client, call)()
    assert error_of(getattr(client, call)) == (code, status)
    ask(simulated, "calm")
    getattr(client, call)()
    assert simulated.cloud.troubles.throttled == 1


def test_a_bucket_refills(simulated: Sim) -> None:
    ask(simulated, "limits", pattern="ec2:Describe*", size=1, refill=20)
    client = simulated.client("ec2")
    client.describe_instances()

    def again() -> bool:
        try:
            client.describe_instances()
        except ClientError:
            return False
        return True

    simulated.until(again)


def test_an_answer_may_take_its_time(simulated: Sim) -> None:
    ask(simulated, "faults", service="ec2", action="DescribeInstances", delay=0.3)
    began = time.monotonic()
    simulated.client("ec2").describe_instances()
    assert time.monotonic() - began >= 0.3


def test_roles_lead_to_other_accounts_and_their_credentials_expire(simulated: Sim) -> None:
    def assumed() -> Any:
        role = "arn:aws:iam::222222222222:role/changeover-target"
        made = simulated.client("sts").assume_role(RoleArn=role, RoleSessionName="test")["Credentials"]
        return simulated.client("ec2", key=made["AccessKeyId"], token=made["SessionToken"])

    there = assumed()
    simulated.launch()
    assert there.describe_instances()["Reservations"] == []
    ask(simulated, "revoke")
    assert error_of(there.describe_instances) == ("RequestExpired", 400)
    assert assumed().describe_instances()["Reservations"] == []


def test_every_call_is_counted(simulated: Sim) -> None:
    for _ in range(3):
        simulated.client("ec2").describe_volumes()
    assert ask(simulated, "calls")["ec2:DescribeVolumes"] == 3


def test_a_knob_that_is_none_is_refused(simulated: Sim) -> None:
    for what, told in (("faults", {"colour": "red"}), ("timings", {"colour": 1}), ("limits", {})):
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(simulated, what, **told)
        refused.value.close()
        assert refused.value.code == 400


def test_what_costs_money_is_told_from_the_tables(simulated: Sim) -> None:
    id = simulated.running()
    image = simulated.image(id, "billed")
    told = ask(simulated, "billable")
    assert (set(told["instance"]), image in told["image"], len(told["volume"])) == ({id}, True, 1)
    simulated.client("ec2").terminate_instances(InstanceIds=[id])
    simulated.until(lambda: not ask(simulated, "billable")["instance"])
    assert ask(simulated, "billable")["volume"] == {}


class Visitor:
    def __init__(self, sim: Sim, id: str) -> None:
        self.sim, self.address = sim, sim.instance(id)["PrivateIpAddress"]

    def get(self, path: str) -> tuple[int, str]:
        assert self.sim.cloud.machines is not None
        try:
            with urllib.request.urlopen(f"http://{self.address}:{self.sim.cloud.port}{path}", timeout=3) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, ""
        except OSError:
            return 0, ""


def test_an_instance_is_a_process_on_its_own_address(real: Sim) -> None:
    a, b = real.running(), real.running()
    here, there = Visitor(real, a), Visitor(real, b)
    assert here.address.startswith("127.66.") and here.address != there.address
    for id, visitor in ((a, here), (b, there)):
        real.until(lambda visitor=visitor: visitor.get("/health")[0] == 200)
        assert json.loads(visitor.get("/health")[1])["server"] == id
    real.client("ec2").stop_instances(InstanceIds=[a])
    assert here.get("/health")[0] == 0
    real.until(lambda: real.instance(a)["State"]["Name"] == "stopped")
    real.client("ec2").start_instances(InstanceIds=[a])
    real.until(lambda: here.get("/health")[0] == 200)
    real.client("ec2").terminate_instances(InstanceIds=[a])
    assert here.get("/health")[0] == 0


def test_a_clone_has_the_disk_that_its_image_saw(real: Sim) -> None:
    id = real.running()
    assert real.cloud.machines is not None
    folder = real.cloud.machines.folder(id)
    (folder / "note.txt").write_text("before")
    image = real.image(id, "the-disk")
    (folder / "note.txt").write_text("after")
    clone = Visitor(real, real.running(ImageId=image))
    real.until(lambda: clone.get("/note.txt") == (200, "before"))
    assert Visitor(real, id).get("/note.txt") == (200, "after")


def test_an_image_with_a_reboot_restarts_its_instance(real: Sim) -> None:
    id = real.running()
    assert real.cloud.machines is not None
    before = real.cloud.machines.running()[id]
    real.image(id, "without-reboot")
    assert real.cloud.machines.running()[id] == before
    real.client("ec2").create_image(InstanceId=id, Name="with-reboot")
    assert real.cloud.machines.running()[id] != before


@pytest.mark.parametrize(("mode", "status"), [("sick", 503), ("dead", 0)])
def test_a_clone_may_come_up_ill(real: Sim, mode: str, status: int) -> None:
    id = real.running()
    real.cloud.ledgers.clones[id] = mode
    clone = Visitor(real, real.running(ImageId=real.image(id, "ill")))
    if status:
        real.until(lambda: clone.get("/health")[0] == status)
    else:
        assert clone.get("/health")[0] == 0


def test_no_process_and_no_folder_outlives_its_cloud() -> None:
    made = sim(corrected=True, machines=True, timings=Timings())
    there = next(made)
    there.running()
    assert there.cloud.machines is not None
    (process,) = there.cloud.machines.running().values()
    folder = there.cloud.folder
    next(made, None)
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
