"""The notify file as a model: who is told of what by webhooks that go out."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from orchestrator.domain.events import EVENTS, USUAL
from orchestrator.domain.fleet import Line, Model, Name
from orchestrator.domain.outbox import GATES


def _url(value: str) -> str:
    scheme, _, rest = value.partition("://")
    if scheme not in ("https", "http") or not rest or "@" in rest.partition("/")[0] or not value.isascii():
        raise ValueError("write a URL such as https://chat.example.com/changeover, without a name or password in it")
    return value


def _loopback(url: str) -> bool:
    """Whether its host is written as an address of this machine: a name could lead elsewhere."""
    try:
        return ipaddress.ip_address(urlsplit(url).hostname or "").is_loopback
    except ValueError:
        return False


def _event(value: str) -> str:
    if value not in EVENTS:
        raise ValueError(f"there is no event {value!r}; docs/webhooks.md lists them")
    return value


def _network(value: str) -> str:
    ipaddress.ip_network(value)
    return value


class Receiver(Model):
    """`secrets` are files, each with one; it is signed by all of them. `events`: which; without it those that a person
    wants to know. `fleets`: only of these. `networks`: private ones in which its address may be, by HTTP too. `ca`: a
    file of certificates to trust instead of the system's. `gate`: what it answers about a wave is followed."""

    url: Annotated[Line, AfterValidator(_url)]
    secrets: Annotated[tuple[Line, ...], Field(min_length=1, max_length=4)]
    events: tuple[Annotated[str, AfterValidator(_event)], ...] | Literal["every"] | None = None
    fleets: Annotated[tuple[Name, ...], Field(max_length=1000)] = ()
    networks: Annotated[tuple[Annotated[str, AfterValidator(_network)], ...], Field(max_length=20)] = ()
    ca: Line | None = None
    gate: bool = False

    @model_validator(mode="after")
    def _believable(self) -> Receiver:
        if self.gate and self.url.startswith("http://") and not _loopback(self.url):
            raise ValueError("gate: its answers are followed, so its url must be https, or http to a loopback address")
        return self

    def sees(self, fleet: str) -> bool:
        return not self.fleets or fleet in self.fleets

    def wants(self, event: str) -> bool:
        return (
            (self.gate and event in GATES)
            or self.events == "every"
            or event in (USUAL if self.events is None else self.events)
        )


class NotifyFile(Model):
    version: Literal[1]
    receivers: Annotated[Mapping[Name, Receiver], Field(min_length=1, max_length=100)]
