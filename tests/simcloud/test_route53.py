"""Route 53 of the simulated cloud: each check holds there, and fails with plain moto.

The sources are AWS' API references (ChangeResourceRecordSets, GetChange, ListResourceRecordSets, ListHostedZonesByName)
and the quotas in its developer guide; the words of InvalidChangeBatch are as users of it have reported them.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dns.flags
import dns.message
import dns.query
import dns.rcode
import pytest
from botocore.exceptions import BotoCoreError, ClientError, ConnectionClosedError
from botocore.parsers import ResponseParserError

from simcloud.faults import Fault
from tests.simcloud.conftest import Sim

ZONE = "shop.test."
A, B, C = "192.0.2.1", "192.0.2.2", "192.0.2.3"
Check = Callable[[Sim], None]
CHECKS: list[Check] = []


def check(made: Check) -> Check:
    CHECKS.append(made)
    return made


def zone(sim: Sim, name: str = ZONE) -> str:
    """The id of a new zone. What is asked of it is not counted, but where a check is about that."""
    sim.cloud.troubles.clear()
    return str(
        sim.client("route53").create_hosted_zone(Name=name, CallerReference=uuid.uuid4().hex)["HostedZone"]["Id"]
    )


def change(sim: Sim, zone: str, *changes: tuple[str, Any]) -> Any:
    """The change, as answered: (action, record set) each."""
    batch = {"Changes": [{"Action": action, "ResourceRecordSet": one} for action, one in changes]}
    return sim.client("route53").change_resource_record_sets(HostedZoneId=zone, ChangeBatch=batch)["ChangeInfo"]


def web(*values: str, name: str = "web.shop.test", type: str = "A", ttl: int = 60, **more: Any) -> dict[str, Any]:
    return {"Name": name, "Type": type, "TTL": ttl, "ResourceRecords": [{"Value": one} for one in values], **more}


def there(sim: Sim, zone: str, name: str = "web.shop.test.") -> list[tuple[int, list[str]]]:
    pages = sim.client("route53").get_paginator("list_resource_record_sets").paginate(HostedZoneId=zone)
    sets = [one for page in pages for one in page["ResourceRecordSets"]]
    return [(one["TTL"], sorted(r["Value"] for r in one["ResourceRecords"])) for one in sets if one["Name"] == name]


def refused(call: Callable[[], Any], code: str, *words: str, status: int = 400) -> None:
    try:
        call()
    except ClientError as error:
        told = error.response
    else:
        raise AssertionError(f"{code} was expected")
    assert told["Error"]["Code"] == code
    assert told["ResponseMetadata"]["HTTPStatusCode"] == status
    assert told["ResponseMetadata"]["RequestId"]
    for each in words:
        assert each in told["Error"]["Message"]


@check
def a_value_that_was_there_once_deletes_nothing(sim: Sim) -> None:
    """Else a stale DELETE and CREATE would overwrite what others have made of it."""
    id = zone(sim)
    change(sim, id, ("CREATE", web(A)))
    change(sim, id, ("DELETE", web(A)), ("CREATE", web(B)))
    stale = "Tried to delete resource record set [name='web.shop.test.', type='A'] but the values provided do not match"
    refused(lambda: change(sim, id, ("DELETE", web(A)), ("CREATE", web(C))), "InvalidChangeBatch", f"[{stale}")
    assert there(sim, id) == [(60, [B])]


@check
def a_ttl_that_is_not_there_deletes_nothing(sim: Sim) -> None:
    id = zone(sim)
    change(sim, id, ("CREATE", web(A)))
    refused(
        lambda: change(sim, id, ("DELETE", web(A, ttl=61)), ("CREATE", web(B))), "InvalidChangeBatch", "do not match"
    )
    assert there(sim, id) == [(60, [A])]


@check
def what_is_not_there_cannot_be_deleted(sim: Sim) -> None:
    id = zone(sim)
    refused(lambda: change(sim, id, ("DELETE", web(A))), "InvalidChangeBatch", "but it was not found")


@check
def the_order_of_values_is_of_no_account(sim: Sim) -> None:
    id = zone(sim)
    change(sim, id, ("CREATE", web(A, B)))
    change(sim, id, ("DELETE", web(B, A)), ("CREATE", web(C)))
    assert there(sim, id) == [(60, [C])]


@check
def what_is_there_cannot_be_created(sim: Sim) -> None:
    id = zone(sim)
    change(sim, id, ("CREATE", web(A)))
    exists = "Tried to create resource record set [name='web.shop.test.', type='A'] but it already exists"
    refused(lambda: change(sim, id, ("CREATE", web(B))), "InvalidChangeBatch", exists)
    assert there(sim, id) == [(60, [A])]


@check
def a_batch_is_made_whole_or_not_at_all(sim: Sim) -> None:
    id = zone(sim)
    change(sim, id, ("CREATE", web(A, name="api.shop.test")))
    changes = ("CREATE", web(A)), ("CREATE", web(A, name="elsewhere.example")), ("CREATE", web(B, name="api.shop.test"))
    refused(lambda: change(sim, id, *changes), "InvalidChangeBatch", "is not permitted in zone", "already exists")
    assert there(sim, id) == []


@check
def the_same_is_deleted_once_in_a_batch(sim: Sim) -> None:
    id = zone(sim)
    change(sim, id, ("CREATE", web(A)))
    refused(lambda: change(sim, id, ("DELETE", web(A)), ("DELETE", web(A))), "InvalidChangeBatch")
    assert there(sim, id) == [(60, [A])]


@check
def what_is_deleted_may_come_back_as_it_was(sim: Sim) -> None:
    """So that a batch can insist on a record set that it leaves alone."""
    id = zone(sim)
    change(sim, id, ("CREATE", web(A)))
    change(sim, id, ("DELETE", web(A)), ("CREATE", web(A)), ("CREATE", web('"x"', type="TXT")))
    refused(lambda: change(sim, id, ("DELETE", web(B)), ("CREATE", web(B))), "InvalidChangeBatch")
    assert (60, [A]) in there(sim, id)


@check
def a_change_is_pending_before_all_servers_have_it(sim: Sim) -> None:
    id = zone(sim)
    sim.cloud.timings.spread = 30
    made = change(sim, id, ("CREATE", web(A)))
    assert made["Status"] == "PENDING"
    assert sim.client("route53").get_change(Id=made["Id"])["ChangeInfo"]["Status"] == "PENDING"


@check
def each_change_is_another_one(sim: Sim) -> None:
    id = zone(sim)
    assert change(sim, id, ("CREATE", web(A)))["Id"] != change(sim, id, ("UPSERT", web(B)))["Id"]


@check
def a_change_that_nobody_made_is_not_known(sim: Sim) -> None:
    refused(lambda: sim.client("route53").get_change(Id="C2682N5HXP0BZ4"), "NoSuchChange", status=404)


@check
def one_change_of_a_zone_at_a_time(sim: Sim) -> None:
    id = zone(sim)
    sim.cloud.timings.change = 0.5
    client = sim.client("route53")
    with ThreadPoolExecutor(4) as crowd:
        codes = [one.result() for one in [crowd.submit(code_of, sim, id, number) for number in range(4)]]
    assert sorted(codes) == ["", *["PriorRequestNotComplete 400"] * 3]
    assert client.get_hosted_zone(Id=id)


def code_of(sim: Sim, id: str, number: int) -> str:
    try:
        change(sim, id, ("CREATE", web(A, name=f"web-{number}.shop.test")))
    except ClientError as error:
        return f"{error.response['Error']['Code']} {error.response['ResponseMetadata']['HTTPStatusCode']}"
    return ""


@check
def five_requests_a_second_and_no_more(sim: Sim) -> None:
    client = sim.client("route53")
    for _ in range(5):
        client.list_hosted_zones()
    refused(lambda: [client.list_hosted_zones() for _ in range(5)], "Throttling", "Rate exceeded")


@check
def record_sets_come_in_pages(sim: Sim) -> None:
    id, client = zone(sim), sim.client("route53")
    change(sim, id, *[("CREATE", web(A, name=f"web-{number}.shop.test")) for number in range(4)])
    weighted = [("CREATE", web(A, name="w.shop.test", SetIdentifier=each, Weight=1)) for each in ("one", "two")]
    change(sim, id, *weighted)
    pages = list(
        client.get_paginator("list_resource_record_sets").paginate(HostedZoneId=id, PaginationConfig={"PageSize": 3})
    )
    assert [len(page["ResourceRecordSets"]) for page in pages] == [3, 3, 2]
    whole = [
        (one["Name"], one["Type"], one.get("SetIdentifier")) for page in pages for one in page["ResourceRecordSets"]
    ]
    assert len(set(whole)) == 8
    page = client.list_resource_record_sets(HostedZoneId=id, MaxItems="3")
    assert (page["NextRecordName"], page["NextRecordIdentifier"]) == ("w.shop.test.", "two")
    last = {"StartRecordName": "w.shop.test", "StartRecordType": "A", "StartRecordIdentifier": "two", "MaxItems": "1"}
    assert client.list_resource_record_sets(HostedZoneId=id, **last)["ResourceRecordSets"][0]["SetIdentifier"] == "two"


@check
def names_are_in_the_order_of_their_labels_from_the_right(sim: Sim) -> None:
    id = zone(sim)
    names = [
        "_x.web.shop.test.",
        "a.web.shop.test.",
        "*.web.shop.test.",
        "web.shop.test.",
        "Api.shop.test",
        "web-1.shop.test.",
    ]
    change(sim, id, *[("CREATE", web(A, name=name)) for name in names])
    told = sim.client("route53").list_resource_record_sets(HostedZoneId=id)["ResourceRecordSets"]
    names = [one["Name"] for one in told if one["Type"] == "A"]
    assert names == [
        *("api.shop.test.", "web-1.shop.test.", "web.shop.test.", "\\052.web.shop.test.", "_x.web.shop.test."),
        "a.web.shop.test.",
    ]


@check
def a_batch_has_a_thousand_records_at_most(sim: Sim) -> None:
    id = zone(sim)
    many = [f"10.0.{number // 250}.{number % 250}" for number in range(501)]
    refused(lambda: change(sim, id, ("UPSERT", web(*many))), "InvalidChangeBatch", "limit of 1000 exceeded")
    change(sim, id, ("CREATE", web(*many)))
    swap = ("DELETE", web(*many)), ("CREATE", web(*many[1:]))
    refused(lambda: change(sim, id, *swap), "InvalidChangeBatch", "[Number of records limit of 1000 exceeded.]")


@check
def and_thirty_two_thousand_characters(sim: Sim) -> None:
    id = zone(sim)
    lines = [f'"{number:03d} {"x" * 240}"' for number in range(140)]
    refused(lambda: change(sim, id, ("CREATE", web(*lines, type="TXT"))), "InvalidChangeBatch", "32000")


@check
def text_stands_in_quotation_marks(sim: Sim) -> None:
    id = zone(sim)
    refused(lambda: change(sim, id, ("CREATE", web("bare", type="TXT"))), "InvalidChangeBatch", "quotation marks")


@check
def an_address_is_an_address(sim: Sim) -> None:
    id = zone(sim)
    refused(lambda: change(sim, id, ("CREATE", web("192.0.2"))), "InvalidChangeBatch", "not a valid IPv4 address")


@check
def an_alias_stands_alone(sim: Sim) -> None:
    id = zone(sim)
    change(sim, id, ("CREATE", web(A)))
    alias = ("CREATE", web("elsewhere.test", type="CNAME"))
    refused(lambda: change(sim, id, alias), "InvalidChangeBatch", "conflicting RRSet of type A")
    change(sim, id, ("DELETE", web(A)), alias)


@check
def weighted_sets_and_plain_ones_do_not_mix(sim: Sim) -> None:
    id = zone(sim)
    change(sim, id, ("CREATE", web(A)))
    weighted = ("CREATE", web(B, SetIdentifier="two", Weight=10))
    refused(lambda: change(sim, id, weighted), "InvalidChangeBatch", "other RRSets exist with the same name and type")


@check
def a_weighted_set_is_deleted_with_its_own_weight(sim: Sim) -> None:
    id = zone(sim)
    change(sim, id, ("CREATE", web(A, SetIdentifier="one", Weight=10)))
    wrong = ("DELETE", web(A, SetIdentifier="one", Weight=20))
    refused(lambda: change(sim, id, wrong), "InvalidChangeBatch", "set-identifier='one'", "do not match")
    change(sim, id, ("DELETE", web(A, SetIdentifier="one", Weight=10)))


@check
def the_servers_of_a_zone_are_in_it(sim: Sim) -> None:
    id, client = zone(sim), sim.client("route53")
    given = client.get_hosted_zone(Id=id)["DelegationSet"]["NameServers"]
    assert len(given) == 4
    assert there(sim, id, ZONE)[0] == (172800, sorted(f"{host}." for host in given))


@check
def zones_are_told_from_a_name_on(sim: Sim) -> None:
    for name in ("shop.test", "a.shop.test", "b.test"):
        zone(sim, name)
    told = sim.client("route53").list_hosted_zones_by_name(DNSName="shop.test", MaxItems="2")
    assert [one["Name"] for one in told["HostedZones"]] == ["shop.test.", "a.shop.test."]


@check
def its_name_servers_answer(sim: Sim) -> None:
    id = zone(sim)
    change(sim, id, ("CREATE", web(A, B)))
    sim.until(lambda: {server: asked(server) for server in sim.cloud.zones.servers.split()})
    sim.until(lambda: all(asked(server) == (60, {A, B}) for server in sim.cloud.zones.servers.split()))


def asked(server: str, name: str = "web.shop.test.", type: str = "A") -> tuple[int, set[str]]:
    """By UDP, and by TCP where that was too long."""
    address, _, port = server.partition(":")
    query = dns.message.make_query(name, type)
    answer, _ = dns.query.udp_with_fallback(query, address, port=int(port), timeout=5)
    assert answer.flags & dns.flags.AA
    return next(((one.ttl, {record.to_text() for record in one}) for one in answer.answer), (0, set()))


@pytest.mark.parametrize("holds", CHECKS, ids=lambda each: each.__name__)
def test_the_simulated_cloud_does_as_aws(simulated: Sim, holds: Check) -> None:
    holds(simulated)


@pytest.mark.parametrize("holds", CHECKS, ids=lambda each: each.__name__)
def test_plain_moto_does_not(plain: Sim, holds: Check) -> None:
    with pytest.raises((AssertionError, ClientError, BotoCoreError, ResponseParserError, KeyError, ValueError)):
        holds(plain)


def test_the_last_server_has_a_change_when_it_is_in_sync(simulated: Sim) -> None:
    id = zone(simulated)
    client, servers = simulated.client("route53"), simulated.cloud.zones.servers.split()
    simulated.until(lambda: all(asked(server, ZONE, "NS")[1] for server in servers))
    simulated.cloud.timings.spread = 2.0
    began = time.monotonic()
    made = change(simulated, id, ("CREATE", web(A)))["Id"]
    simulated.until(lambda: asked(servers[0])[1])
    assert client.get_change(Id=made)["ChangeInfo"]["Status"] == "PENDING"
    assert there(simulated, id) == [(60, [A])], "it is listed at once"
    simulated.until(lambda: client.get_change(Id=made)["ChangeInfo"]["Status"] == "INSYNC")
    assert time.monotonic() - began >= 2.0
    assert all(asked(server)[1] == {A} for server in servers)


def test_many_records_are_asked_for_by_tcp_and_none_is_told(simulated: Sim) -> None:
    id = zone(simulated)
    many = {f"10.0.{number // 250}.{number % 250}" for number in range(300)}
    change(simulated, id, ("CREATE", web(*many)))
    server = simulated.cloud.zones.servers.split()[0]
    simulated.until(lambda: asked(server)[1])
    assert asked(server)[1] == many
    address, _, port = server.partition(":")
    for name, code in (("nobody.shop.test.", dns.rcode.NXDOMAIN), ("shop.example.", dns.rcode.REFUSED)):
        assert dns.query.udp(dns.message.make_query(name, "A"), address, port=int(port), timeout=5).rcode() == code


def test_a_reply_that_is_lost_had_its_effect(simulated: Sim) -> None:
    id = zone(simulated)
    simulated.cloud.troubles.add(Fault(service="route53", action="ChangeResourceRecordSets", after=True, drop=True))
    with pytest.raises(ConnectionClosedError):
        change(simulated, id, ("CREATE", web(A)))
    assert there(simulated, id) == [(60, [A])]
