"""Route 53 as moto answers it, put right: batches are made whole or not at all, compared with what is there now, and
take their time until every authoritative server answers with them.

AWS' own behaviour is that of its API reference (ChangeResourceRecordSets, GetChange, ListResourceRecordSets) and of the
quotas in the developer guide; what its errors say is as users have reported it.
"""

from __future__ import annotations

import ipaddress
import random
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from moto.core.exceptions import ServiceException
from moto.core.responses import ActionResult
from moto.core.utils import utcnow
from moto.route53.exceptions import InvalidInput, NoSuchHostedZone
from moto.route53.models import RecordSet
from moto.route53.responses import Route53

from simcloud.nameservers import Answer, NameServer

if TYPE_CHECKING:
    from simcloud.cloud import SimCloud

PAGE = 300  # record sets
ZONES_PAGE = 100
RECORDS, CHARACTERS = 1000, 32_000  # of one batch; those of an UPSERT count twice
SERVERS = 4  # of a delegation set
Key = tuple[str, str, str]  # name, type, set identifier
MotoSet: Any = RecordSet  # abstract to the type checker alone
Sets = Mapping[Key, Mapping[str, Any]]


class InvalidChangeBatch(ServiceException):
    def __init__(self, *messages: str) -> None:
        super().__init__("InvalidChangeBatch", f"[{', '.join(messages)}]")


class PriorRequestNotComplete(ServiceException):
    code = "PriorRequestNotComplete"
    message = "The request was rejected because Route 53 was still processing a prior request."


class NoSuchChange(ServiceException):
    def __init__(self, id: str) -> None:
        super().__init__("NoSuchChange", f"Could not find resource with ID: {id}")


@dataclass
class Past:
    """What a zone was from then on; its last server knows `spread` seconds later."""

    at: float
    spread: float
    sets: Sets


@dataclass
class Zone:
    name: str
    private: bool = False
    past: list[Past] = field(default_factory=list)
    busy_until: float = 0.0

    @property
    def sets(self) -> Sets:
        return self.past[-1].sets

    def at_server(self, number: int, now: float) -> Sets:
        """As one of the servers has it: the first learns of a change early, the last when it is in sync."""
        share = (number + 1) / SERVERS
        known = [one for one in self.past if one.at + one.spread * share <= now]
        return known[-1].sets if known else {}


class Zones:
    """All zones of the cloud, its changes under way, and the servers that answer for them."""

    def __init__(self, cloud: SimCloud) -> None:
        self._cloud = cloud
        self._zones: dict[str, Zone] = {}
        self._changes: dict[str, float] = {}
        self._random = random.Random(53)  # noqa: S311 - ids are no secrets
        self._servers = [NameServer(partial(self._answer, n)) for n in range(SERVERS)]
        self._resolver = NameServer(self._resolved)
        # What the parent of a zone says of it, where that is not what Route 53 has given it.
        self.delegated: dict[str, Sequence[str]] = {}
        self._given: dict[str, Sequence[str]] = {}

    @property
    def servers(self) -> str:
        """Where they are asked: address:port each, blank-separated."""
        return " ".join(server.where for server in self._servers)

    @property
    def resolver(self) -> str:
        return self._resolver.where

    def close(self) -> None:
        for server in (*self._servers, self._resolver):
            server.close()

    def made(self, id: str, zone: Any) -> str:
        """Of moto's new zone: with servers of its own, and all that AWS puts into it. The id of that change."""
        number = len(self._zones)
        hosts = [
            f"ns-{number * SERVERS + n + 1}.awsdns-{n:02d}.{end}"
            for n, end in enumerate(("com", "net", "org", "co.uk"))
        ]
        if zone.delegation_set is not None:
            zone.delegation_set.name_servers = hosts
        name = zone.name.lower()
        soa = f"{hosts[0]}. awsdns-hostmaster.amazon.com. 1 7200 900 1209600 86400"
        first = {
            (name, "NS", ""): {"Name": name, "Type": "NS", "TTL": 172800, "ResourceRecords": [f"{h}." for h in hosts]},
            (name, "SOA", ""): {"Name": name, "Type": "SOA", "TTL": 900, "ResourceRecords": [soa]},
        }
        self._zones[id] = Zone(name, private=zone.private_zone)
        if not zone.private_zone:
            self._given[name] = [f"{host}." for host in hosts]
        return self._become(id, zone, first)

    def zone(self, id: str) -> Zone:
        return self._zones[id]

    def change(self, id: str, zone: Any, changes: Sequence[Mapping[str, Any]]) -> str:
        """All of them or none. The id of the change."""
        mine = self._zones[id]
        if self._cloud.now() < mine.busy_until:
            raise PriorRequestNotComplete
        sets = {key: dict(one) for key, one in mine.sets.items()}
        wrong = [said for one in changes if (said := _apply(sets, mine.name, one))]
        if too_large := _too_large(changes):
            wrong = [too_large]
        if wrong:
            raise InvalidChangeBatch(*wrong)
        mine.busy_until = self._cloud.now() + self._cloud.timings.change
        return self._become(id, zone, sets)

    def in_sync(self, change: str) -> bool:
        if change not in self._changes:
            raise NoSuchChange(change)
        return self._cloud.now() >= self._changes[change]

    def _become(self, id: str, zone: Any, sets: Sets) -> str:
        spread = self._cloud.timings.spread
        mine = self._zones[id]
        mine.past.append(Past(self._cloud.now(), spread, sets))
        del mine.past[:-200]
        zone.rrsets = [MotoSet(dict(one)) for _, one in sorted(sets.items(), key=lambda item: order(item[0]))]
        change = "C" + "".join(self._random.choices(string.ascii_uppercase + string.digits, k=20))
        self._changes[change] = self._cloud.now() + spread
        return change

    # -- DNS ----------------------------------------------------------------------------------------------------------

    def _answer(self, server: int, name: str, type: str, *, private: bool = False) -> Answer | None:
        with self._cloud.lock:
            zones = [one for one in self._zones.values() if one.private == private]
            zones = [one for one in zones if name == one.name or name.endswith(f".{one.name}")]
            if not zones:
                return None
            zone = max(zones, key=lambda one: len(one.name))
            there = zone.at_server(server, self._cloud.now())
        found = [one for (at, kind, _), one in sorted(there.items()) if at == name and kind in (type, "CNAME")]
        found = [one for one in found if one.get("ResourceRecords")]
        if not found:
            return Answer(records=() if any(at == name for at, _, _ in there) else None)
        weights = [int(one.get("Weight") or 0) for one in found]
        if len(found) > 1 and any(weights):
            found = self._random.choices(found, weights)
        return Answer(records=[(one["Type"], int(one["TTL"]), one["ResourceRecords"]) for one in found])

    def _resolved(self, name: str, type: str) -> Answer | None:
        """As a resolver of a VPC says it: of private zones what is in them, and of others who serves them, which it has
        from the zone above."""
        if (own := self._answer(SERVERS - 1, name, type, private=True)) is not None:
            return replace(own, authority=False)
        hosts = {**self._given, **self.delegated}.get(name)
        if type != "NS" or hosts is None:
            return Answer(records=None, authority=False)
        return Answer(records=[("NS", 172800, list(hosts))] if hosts else (), authority=False)


def order(key: Key) -> tuple[str, str, str]:
    """Names with their labels reversed, as com.example.www. : then types, then identifiers."""
    name, type, identifier = key
    return ".".join(reversed(name.rstrip(".").split("."))) + ".", type, identifier


def stored(name: str) -> str:
    """A name as Route 53 keeps it: lower case, a dot at the end, and what is no letter, digit, hyphen or underscore as
    its code in octal."""
    return "".join(
        one if one in ".-_\\" or (one.isascii() and one.isalnum()) else f"\\{ord(one):03o}"
        for one in name.lower().rstrip(".") + "."
    )


def _apply(sets: dict[Key, dict[str, Any]], zone: str, change: Mapping[str, Any]) -> str:
    """Makes it in `sets`; what is wrong with it, in AWS' words, if it cannot be made."""
    action, asked = change["Action"], change["ResourceRecordSet"]
    name, type, identifier = stored(asked["Name"]), asked["Type"], asked.get("SetIdentifier") or ""
    made = _set(asked, name)
    key = (name, type, identifier)
    which = f"[name='{name}', type='{type}'" + (f", set-identifier='{identifier}']" if identifier else "]")
    if name != zone and not name.endswith(f".{zone}"):
        return f"RRSet with DNS name {name} is not permitted in zone {zone}"
    there = sets.get(key)
    if action == "DELETE":
        if there is None:
            return f"Tried to delete resource record set {which} but it was not found"
        if _values(there) != _values(made):
            return (
                f"Tried to delete resource record set {which} but the values provided do not match the current values"
            )
        if name == zone and type in ("NS", "SOA"):
            return f"A HostedZone must contain exactly one {type} record and no other with that name"
        del sets[key]
        return ""
    if action == "CREATE" and there is not None:
        return f"Tried to create resource record set {which} but it already exists"
    if wrong := _unfit(sets, zone, key, made):
        return wrong
    sets[key] = made
    return ""


def _set(asked: Mapping[str, Any], name: str) -> dict[str, Any]:
    values = [one["Value"] for one in asked.get("ResourceRecords") or ()]
    made = {**asked, "Name": name, **({"ResourceRecords": values} if values else {})}
    if values and made.get("TTL") is not None:
        made["TTL"] = int(made["TTL"])
    return made


def _values(one: Mapping[str, Any]) -> dict[str, Any]:
    """What DELETE compares: everything, the values in any order. Weights and the like are text on the wire."""
    told = {name: value for name, value in one.items() if value is not None}
    return {
        **{name: str(value) for name, value in told.items()},
        "ResourceRecords": sorted(told.get("ResourceRecords", [])),
    }


def _unfit(sets: Sets, zone: str, key: Key, made: Mapping[str, Any]) -> str:
    name, type, identifier = key
    if type == "CNAME" and name == zone:
        return f"RRSet of type CNAME with DNS name {name} is not permitted at apex in zone {zone}"
    for other, kind, its in sets:
        if other != name or (kind, its) == (type, identifier):
            continue
        if (kind == "CNAME") != (type == "CNAME"):
            return (
                f"RRSet of type {type} with DNS name {name} is not permitted because a conflicting RRSet of type "
                f"{kind} with the same DNS name already exists in zone {zone}"
            )
        if kind == type and bool(its) != bool(identifier):
            others = "other RRSets exist with the same name and type"
            return f"RRSet with DNS name {name}, type {type} cannot be created as {others}."
    values: Sequence[str] = made.get("ResourceRecords", ())
    for value in values:
        if wrong := _no_record(type, value):
            return f"Invalid Resource Record: 'FATAL problem: {wrong} encountered with '{value}''"
    if len(set(values)) != len(values):
        return f"Duplicate Resource Record: '{next(one for one in values if list(values).count(one) > 1)}'"
    return ""


def _no_record(type: str, value: str) -> str:
    try:
        if type == "A":
            ipaddress.IPv4Address(value)
        elif type == "AAAA":
            ipaddress.IPv6Address(value)
        elif type == "TXT":
            if len(value) < 2 or value[0] != '"' or value[-1] != '"':
                return "InvalidCharacterString (Value should be enclosed in quotation marks)"
            if any(len(part) > 255 for part in value[1:-1].split('" "')):
                return "CharacterStringTooLong (Value is too long)"
    except ValueError:
        kind = {"A": "ARRDATAIllegalIPv4Address (Value is not a valid IPv4 address)"}
        return kind.get(type, "AAAARRDATAIllegalIPv6Address (Value is not a valid IPv6 address)")
    return ""


def _too_large(changes: Sequence[Mapping[str, Any]]) -> str:
    weighed = [
        (
            2 if change["Action"] == "UPSERT" else 1,
            [one["Value"] for one in change["ResourceRecordSet"].get("ResourceRecords") or ()],
        )
        for change in changes
    ]
    if sum(times * len(values) for times, values in weighed) > RECORDS:
        return f"Number of records limit of {RECORDS} exceeded."
    if sum(times * sum(map(len, values)) for times, values in weighed) > CHARACTERS:
        return f"Number of characters limit of {CHARACTERS} exceeded."
    return ""


class CorrectedRoute53(Route53):
    cloud: SimCloud

    def create_hosted_zone(self) -> ActionResult:
        made: Any = super().create_hosted_zone().result
        zone = made["HostedZone"]
        return ActionResult({**made, "ChangeInfo": self._info(self.cloud.zones.made(zone.resource_id, zone))})

    def list_hosted_zones_by_name(self) -> ActionResult:
        """All from a name on, in their order: the one that was asked for need not be the first, nor be there."""
        start = stored(self._get_param("DNSName") or "") if self._get_param("DNSName") else ""
        from_id = (self._get_param("HostedZoneId") or "").rpartition("/")[2]
        zones = sorted(self.backend.zones.values(), key=lambda zone: (order((zone.name, "", "")), zone.resource_id))
        first = (order((start, "", "")), from_id)
        rest = [zone for zone in zones if not start or (order((zone.name, "", "")), zone.resource_id) >= first]
        size = min(self._get_int_param("MaxItems", ZONES_PAGE), ZONES_PAGE, self.cloud.page)
        more = rest[size : size + 1]
        result = {
            "HostedZones": rest[:size],
            "DNSName": self._get_param("DNSName"),
            "IsTruncated": bool(more),
            "NextDNSName": more[0].name if more else None,
            "NextHostedZoneId": more[0].resource_id if more else None,
            "MaxItems": size,
        }
        return ActionResult(result)

    def change_resource_record_sets(self) -> ActionResult:
        zone = self._zone()
        changes = self._get_param("ChangeBatch.Changes")
        for change in changes:
            asked = change["ResourceRecordSet"]
            whole = asked.get("AliasTarget") or asked.get("TrafficPolicyInstanceId")
            whole = whole or (asked.get("ResourceRecords") and asked.get("TTL") is not None)
            if change["Action"] not in ("CREATE", "DELETE", "UPSERT") or not whole:
                said = f"Action={change['Action']}, Name={asked['Name']}, Type={asked['Type']}"
                raise InvalidInput(
                    "Invalid request: Expected exactly one of [AliasTarget, all of [TTL, and ResourceRecords], or "
                    f"TrafficPolicyInstanceId], but found none in Change with [{said}, "
                    f"SetIdentifier={asked.get('SetIdentifier', 'null')}]"
                )
        return ActionResult({"ChangeInfo": self._info(self.cloud.zones.change(zone.resource_id, zone, changes))})

    def get_change(self) -> ActionResult:
        return ActionResult({"ChangeInfo": self._info(self._get_param("Id").rpartition("/")[2])})

    def list_resource_record_sets(self) -> ActionResult:
        """In order, from a name (and type, and identifier) on. What is still on its way to the servers is in it."""
        zone = self._zone()
        name, type = self._get_param("StartRecordName"), self._get_param("StartRecordType")
        if type and not name:
            raise InvalidInput("The input is not valid")
        first = (
            order((stored(name), type or "", self._get_param("StartRecordIdentifier") or "")) if name else ("", "", "")
        )
        sets = self.cloud.zones.zone(zone.resource_id).sets
        rest = [key for key in sorted(sets, key=order) if order(key) >= first]
        size = min(self._get_int_param("MaxItems", PAGE), PAGE, self.cloud.page)
        more = rest[size : size + 1]
        result = {
            "ResourceRecordSets": [MotoSet(dict(sets[key])) for key in rest[:size]],
            "IsTruncated": bool(more),
            "NextRecordName": more[0][0] if more else None,
            "NextRecordType": more[0][1] if more else None,
            "NextRecordIdentifier": (more[0][2] or None) if more else None,
            "MaxItems": size,
        }
        return ActionResult(result)

    def _zone(self) -> Any:
        id = (self._get_param("HostedZoneId") or self._get_param("Id")).rpartition("/")[2]
        if id not in self.backend.zones:
            raise NoSuchHostedZone(id)
        return self.backend.zones[id]

    def _info(self, change: str) -> dict[str, Any]:
        status = "INSYNC" if self.cloud.zones.in_sync(change) else "PENDING"
        return {"Id": f"/change/{change}", "Status": status, "SubmittedAt": utcnow()}
