"""Statements of IAM policies for a place, as narrow as the calls allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from providers.clients.aws import Place
from providers.rights import Rights, Statement

FLEET_TAG = "changeover-fleet"  # servers that these credentials may change carry it; a copy of a server does so too


def allow(sid: str, actions: Sequence[str], resource: str | Sequence[str] = "*", **condition: Any) -> Statement:
    """`condition`: operator to keys and values, such as StringEquals={...}."""
    where = resource if isinstance(resource, str) else list(resource)
    told = {"Sid": sid, "Effect": "Allow", "Action": list(actions), "Resource": where}
    return {**told, "Condition": condition} if condition else told


def of_fleet(fleet: str) -> Mapping[str, str]:
    return {f"aws:ResourceTag/{FLEET_TAG}": fleet}


def arn(place: Place, service: str, rest: str) -> str:
    """Of this account and region; any account where the place names it by a word of its own."""
    account = place.account if place.account.isdigit() else "*"
    return f"arn:{partition(place)}:{service}:{place.region}:{account}:{rest}"


def public(place: Place, service: str, rest: str, *, region: bool = True) -> str:
    """Of no account: images, snapshots, documents of AWS."""
    return f"arn:{partition(place)}:{service}:{place.region if region else ''}::{rest}"


def role(place: Place, name: str) -> str:
    account = place.account if place.account.isdigit() else "*"
    return f"arn:{partition(place)}:iam::{account}:role/{name}"


def partition(place: Place) -> str:
    begins = {"cn-": "aws-cn", "us-gov-": "aws-us-gov"}
    return next((name for prefix, name in begins.items() if place.region.startswith(prefix)), "aws")


def rights(place: Place, statements: Sequence[Statement]) -> list[Rights]:
    """Of the role that is assumed there, and of whoever assumes it; else of whoever the workers are."""
    if not place.role:
        return [Rights(who=f"the workers, in {place.account}", statements=statements)]
    assume = allow("AssumeTheRole", ["sts:AssumeRole"], place.role)
    return [Rights(who=place.role, statements=statements), Rights(who="the workers", statements=[assume])]
