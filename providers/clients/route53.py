"""One hosted zone of Route 53: its record sets, read and changed in batches, and who serves it.

Route 53 takes five requests a second from a whole account, so a look asks for many names at once, several looks of one
process share an answer, and each process keeps to a pace that it learns from being refused.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar

from providers.clients.aws import Aws, Place
from providers.clients.rounds import Rounds
from providers.errors import NotFound, Refused, Throttled

# Of the developer guide's quotas: a batch holds 1,000 records and 32,000 characters, those of older pages 100 changes.
CHANGES, RECORDS, CHARACTERS = 96, 900, 30_000
PAGE = 300  # record sets in one answer, at most
REQUESTS = 5.0  # a second, of the whole account
SLOWEST = 0.25
PATIENCE = 6.0  # seconds for which a request waits for its turn, and is asked again when refused
# For so long the answer "not yet" is believed, and for so much longer with each other change that is waited for.
PENDING_SECONDS, PENDING_SECONDS_EACH = 0.05, 0.4
GIVEN_UP_SECONDS = 300.0  # nobody waits any more for what was not asked about for so long
REMEMBERED = 2000
Action = Literal["DELETE", "CREATE"]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RecordSet:
    """Values as Route 53 writes them: text in quotation marks. `ttl` in seconds. `special`: what makes it more than a
    name with values, in Route 53's words; such a one is never changed here, unless it is weighted and nothing else:
    then it is called `id` among those of its name, and has that `share`."""

    name: str
    type: str
    ttl: int = 0
    values: frozenset[str] = frozenset()
    special: str = ""
    id: str = ""
    share: int | None = None

    @property
    def weight(self) -> tuple[int, int]:
        """Records and characters, as the quotas of a batch count them."""
        return len(self.values), sum(map(len, self.values))


class Pace:
    """So many requests a second, fewer for a while after one was refused as too many. Threads share it."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()
        self._most = self._rate = rate
        self._clock = clock
        self._left, self._at = rate, clock()

    def turn(self) -> float:
        """Takes a request; the seconds to wait before it is made."""
        with self._lock:
            self._go_on()
            self._left -= 1
            return max(0.0, -self._left / self._rate)

    def left(self) -> None:
        """Whoever had a turn has not taken it."""
        with self._lock:
            self._left += 1

    def refused(self) -> float:
        """A request was one too many: half as fast. The seconds after which to ask again."""
        with self._lock:
            self._go_on()
            self._rate = max(SLOWEST, self._rate / 2)
            self._left = min(self._left, 0.0)
            return 1 / self._rate

    def _go_on(self) -> None:
        """To now: requests have come back, and the pace recovers within 20 s."""
        now = self._clock()
        past = now - self._at
        self._rate = min(self._most, self._rate + past * self._most / 20)
        self._left, self._at = min(self._most, self._left + past * self._rate), now


_paces: dict[Place, Pace] = {}
_zones: dict[tuple[Place, str, str], HostedZone] = {}
_lock = threading.Lock()


def hosted_zone(aws: Aws, name: str, id: str = "") -> HostedZone:
    """One of each in a process, shared by its threads; all of an account keep to one pace."""
    with _lock:
        pace = _paces.setdefault(aws.place, Pace(REQUESTS))
        return _zones.setdefault((aws.place, name, id), HostedZone(aws, name=name, id=id, pace=pace))


class HostedZone:
    """`name` with its dot. `id`: of several zones of that name, this one. Thread-safe."""

    def __init__(self, aws: Aws, *, name: str, id: str, pace: Pace) -> None:
        self.aws, self.name, self.id = aws, name, id
        self._found, self._private = "", False
        self._hosts: tuple[str, ...] = ()
        self._pace = pace
        self._asking = threading.Lock()
        self._synced: dict[str, None] = {}  # in their order
        self._pending: dict[str, float] = {}  # when they were last asked about

    # -- which zone ---------------------------------------------------------------------------------------------------

    def find(self) -> str:
        """Its id. `NotFound` without one of that name, `Refused` if there are several."""
        if not self._found:
            if self.id:
                zones = [self._paced(lambda: self.aws.read("route53", "get_hosted_zone", Id=self.id))["HostedZone"]]
            else:
                told = self._paced(lambda: self.aws.read("route53", "list_hosted_zones_by_name", DNSName=self.name))
                zones = [one for one in told["HostedZones"] if one["Name"] == self.name]
            if not zones:
                raise NotFound(f"{self.aws.lane} has no hosted zone {self.name}")
            if zones[0]["Name"] != self.name:
                raise Refused(f"the hosted zone {self.id} is {zones[0]['Name']}, not {self.name}")
            if len(zones) > 1:
                ids = ", ".join(f"{_id(one)}{' (private)' if _private(one) else ''}" for one in zones)
                raise Refused(f"{self.aws.lane} has several hosted zones {self.name}: say which, as `zone_id`: {ids}")
            self._private, self._found = _private(zones[0]), _id(zones[0])
        return self._found

    @property
    def private(self) -> bool:
        """Whether only its VPCs can ask for what is in it, by their resolver."""
        self.find()
        return self._private

    def hosts(self) -> tuple[str, ...]:
        """The names of the servers that Route 53 has given it."""
        if not self._hosts:
            told = self._paced(lambda: self.aws.read("route53", "get_hosted_zone", Id=self.find()))
            self._hosts = tuple(sorted(host.rstrip(".").lower() for host in told["DelegationSet"]["NameServers"]))
        return self._hosts

    # -- reading ------------------------------------------------------------------------------------------------------

    @cached_property
    def sets(self) -> Rounds[str, Sequence[RecordSet]]:
        """All record sets of the names that it is called with, those included that have not reached every server yet.
        Asked for together with whatever other threads want to know by then."""
        return Rounds(self._list)

    def _list(self, names: Collection[str]) -> dict[str, list[RecordSet]]:
        """In Route 53's own order, so that one answer serves for all names that lie close together."""
        found: dict[str, list[RecordSet]] = {name: [] for name in names}
        wanted = sorted(found, key=_order)
        start: dict[str, str] = {}
        while wanted:
            asked = {"StartRecordName": wanted[0], **start, "MaxItems": str(min(PAGE, 10 * len(wanted)))}
            told = self._paced(
                lambda asked=asked: self.aws.read(  # type: ignore[misc] # mypy does not see the default of a lambda
                    "route53", "list_resource_record_sets", HostedZoneId=self.find(), **asked
                )
            )
            for one in told["ResourceRecordSets"]:
                if one["Name"] in found:
                    found[one["Name"]].append(_read(one))
            if not told.get("IsTruncated"):
                break
            following = str(told["NextRecordName"])
            wanted = [name for name in wanted if _order(name) >= _order(following)]
            start = {}
            if wanted and wanted[0] == following:
                start = {"StartRecordType": told["NextRecordType"]}
                if told.get("NextRecordIdentifier"):
                    start["StartRecordIdentifier"] = told["NextRecordIdentifier"]
        return found

    def in_sync(self, change: str) -> bool:
        """Whether every server has it. Of one that Route 53 does not know any more, it was so long ago. "Not yet" is
        believed for a moment; where many are waited for, for as long as it takes to ask about all of them slowly."""
        with self._asking:
            if change in self._synced:
                return True
            now = time.monotonic()
            self._pending = {id: at for id, at in self._pending.items() if now - at < GIVEN_UP_SECONDS}
            others = len(self._pending.keys() - {change})
            if now - self._pending.get(change, -math.inf) < max(PENDING_SECONDS, others * PENDING_SECONDS_EACH):
                return False
            try:
                told = self._paced(lambda: self.aws.read("route53", "get_change", Id=change))
                synced = told["ChangeInfo"]["Status"] == "INSYNC"
            except NotFound:
                synced = True
            if not synced:
                self._pending[change] = time.monotonic()
                return False
            self._pending.pop(change, None)
            self._synced[change] = None
            if len(self._synced) > REMEMBERED:
                del self._synced[next(iter(self._synced))]
            return True

    # -- changing -----------------------------------------------------------------------------------------------------

    def submit(self, changes: Sequence[tuple[Action, RecordSet]]) -> str:
        """All of it or nothing; the id of the change. `Conflict` (InvalidChangeBatch) if a record set is not as it was
        said to be, or Route 53 does not want it; `Transient`, ambiguous, if the answer was lost."""
        batch = {"Changes": [{"Action": action, "ResourceRecordSet": _written(one)} for action, one in changes]}
        told = self._paced(
            lambda: self.aws.write(
                "route53", "change_resource_record_sets", HostedZoneId=self.find(), ChangeBatch=batch
            )
        )
        return str(told["ChangeInfo"]["Id"]).rpartition("/")[2]

    def _paced(self, ask: Callable[[], T]) -> T:
        """`Throttled` once the request has waited, or was refused as one too many, for too long: nothing happened."""
        end = time.monotonic() + PATIENCE
        wait = self._pace.turn()
        if wait > PATIENCE:
            self._pace.left()
            raise Throttled(f"Route 53 is asked too often in {self.aws.lane}", retry_after=wait)
        while True:
            time.sleep(wait)
            try:
                return ask()
            except Throttled as error:
                wait = self._pace.refused() * random.uniform(1, 2)  # noqa: S311 - it spreads, and hides nothing
                if time.monotonic() + wait > end:
                    raise error from None


def _id(zone: Mapping[str, Any]) -> str:
    return str(zone["Id"]).rpartition("/")[2]


def _private(zone: Mapping[str, Any]) -> bool:
    return bool(zone.get("Config", {}).get("PrivateZone"))


# Whatever makes a record set more than a name with values.
_SPECIAL: Mapping[str, str] = {
    "AliasTarget": "an alias",
    "Weight": "weighted",
    "Region": "of a latency policy",
    "Failover": "of a failover policy",
    "GeoLocation": "of a geolocation policy",
    "GeoProximityLocation": "of a geoproximity policy",
    "CidrRoutingConfig": "of an IP-based policy",
    "MultiValueAnswer": "of a multivalue answer policy",
    "TrafficPolicyInstanceId": "of a traffic policy",
    "HealthCheckId": "tied to a health check",
    "SetIdentifier": "one of several",
}


def _read(told: Mapping[str, Any]) -> RecordSet:
    target = told.get("AliasTarget")
    special = [said for key, said in _SPECIAL.items() if told.get(key) not in (None, "") and told[key] is not False]
    weighted = "Weight" in told and special == [_SPECIAL["Weight"], _SPECIAL["SetIdentifier"]]
    if target:
        special[0] = f"an alias of {target['DNSName']}"
    return RecordSet(
        name=told["Name"],
        type=told["Type"],
        ttl=int(told.get("TTL") or 0),
        values=frozenset(one["Value"] for one in told.get("ResourceRecords") or ()),
        special=special[0] if special else "",
        id=str(told.get("SetIdentifier") or "") if weighted else "",
        share=int(told["Weight"]) if weighted else None,
    )


def _written(one: RecordSet) -> dict[str, Any]:
    values = [{"Value": value} for value in sorted(one.values)]
    more = {} if one.share is None else {"SetIdentifier": one.id, "Weight": one.share}
    return {"Name": one.name, "Type": one.type, "TTL": one.ttl, "ResourceRecords": values, **more}


def _order(name: str) -> str:
    """As Route 53 sorts: com.example.www."""
    return ".".join(reversed(name.rstrip(".").split("."))) + "."
