"""A zone at Route 53 of the simulated cloud, with its name servers, for tests of what changes it."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from providers.clients import route53
from providers.errors import Throttled
from providers.traffic import route53 as provider
from simcloud.cloud import SimCloud, Timings
from tests.support.aws import REGION, credentials, wire
from tests.support.haproxy import until

ZONE = "shop.test."


class Zone:
    """The hosted zone `shop.test`. `put` and `get` go to Route 53 as its owner's own calls do, beside the product."""

    def __init__(self, cloud: SimCloud, *, private: bool = False) -> None:
        self.cloud, self.private = cloud, private
        self._wire = wire(cloud)
        vpc = {"VPCRegion": REGION, "VPCId": "vpc-0123456789abcdef0"}
        more = {"HostedZoneConfig": {"PrivateZone": True}, "VPC": vpc} if private else {}
        made = self._wire.write("route53", "create_hosted_zone", Name=ZONE, CallerReference=uuid.uuid4().hex, **more)
        self.id = str(made["HostedZone"]["Id"])

    def put(self, name: str, type: str, ttl: int, *values: str, **more: Any) -> None:
        """As its owner would, by hand; without values it is deleted, as it stands."""
        whole = ZONE if name == "@" else f"{name}.{ZONE}"
        records = [{"Value": value} for value in values]
        made = {"Name": whole, "Type": type, "TTL": ttl, "ResourceRecords": records, **more}
        if not values and "AliasTarget" not in more:
            ttl, there = self.get(name, type)
            made = {**made, "TTL": ttl, "ResourceRecords": [{"Value": value} for value in there]}
        elif "AliasTarget" in more:
            made = {"Name": whole, "Type": type, **more}
        action = "UPSERT" if values or more else "DELETE"
        batch = {"Changes": [{"Action": action, "ResourceRecordSet": made}]}
        until(lambda: self._put(batch), what=f"Route 53 is free for a change of {name}")

    def _put(self, batch: dict[str, Any]) -> bool:
        try:
            self._wire.write("route53", "change_resource_record_sets", HostedZoneId=self.id, ChangeBatch=batch)
        except Throttled:  # PriorRequestNotComplete: another change of the zone is being made
            return False
        return True

    def get(self, name: str, type: str = "A") -> tuple[int, set[str]]:
        """As the cloud's own tables have it."""
        with self.cloud.lock:
            sets = self.cloud.zones.zone(self.id.rpartition("/")[2]).sets
            found = sets.get((f"{name}.{ZONE}", type, ""))
        return (int(found["TTL"]), set(found["ResourceRecords"])) if found else (0, set())

    def weights(self, name: str) -> dict[str, tuple[int, int, str]]:
        """Of its weighted record sets, by their identifiers: weight, TTL, address."""
        with self.cloud.lock:
            sets = self.cloud.zones.zone(self.id.rpartition("/")[2]).sets
            found = {id: one for (at, _, id), one in sets.items() if at == f"{name}.{ZONE}" and id}
        return {id: (int(one["Weight"]), int(one["TTL"]), *one["ResourceRecords"]) for id, one in found.items()}

    def settings(self, pools: dict[str, int], **changes: Any) -> dict[str, Any]:
        """What the provider is given; `pools` with their ports."""
        return {
            "zone": ZONE,
            "endpoint": self.cloud.url,
            "servers": self.cloud.zones.resolver if self.private else self.cloud.zones.servers,
            "resolver": self.cloud.zones.resolver,
            "ttl": 1,
            "margin": 0,
            "pools": {pool: {"backend": pool, "port": port} for pool, port in pools.items()},
            **changes,
        }


@contextlib.contextmanager
def hosted_zone(*, spread: float = 0.05, throttled: bool = False, private: bool = False) -> Iterator[Zone]:
    """`spread`: seconds until all its servers have a change. Without `throttled` nobody counts the requests."""
    quick = pytest.MonkeyPatch()
    # What is known of an address: a cloud that is gone may have had the port of this one.
    for module, known in ((route53, "_zones"), (route53, "_paces"), (provider, "_batches"), (provider, "_zones")):
        quick.setattr(module, known, {})
    with credentials(), SimCloud(machines=False, timings=Timings(spread=spread, change=0.002)) as cloud:
        if not throttled:
            cloud.troubles.clear()
            quick.setattr(route53, "REQUESTS", 1000.0)
        try:
            yield Zone(cloud, private=private)
        finally:
            quick.undo()
