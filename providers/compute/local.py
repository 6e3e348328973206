"""Servers and images of the small local cloud."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from providers import Caps, Finding, Key
from providers.clients.local_host import BATCH, from_settings, size_body
from providers.compute import Given, Image, Server, Size, Subnet
from providers.errors import NotFound
from providers.rights import Rights


class LocalCompute:
    """`settings['host']` is the host's state folder or socket. See `providers.compute.Compute` for the contract."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._client = from_settings(settings)

    @property
    def caps(self) -> Caps:
        return Caps(
            batch=BATCH,
            size_enforced=False,
            notes=(
                "memory is limited for each process of a server, not for their sum",
                "disk is a budget: checked at image, provisioning and readiness; only one file's size is limited",
                "an image lets its server stand still for a moment, and is crash-consistent",
            ),
        )

    def servers(self, ids: Sequence[str], *, protection: bool = False) -> Mapping[str, Server]:  # noqa: ARG002
        return {found["id"]: _server(found) for found in self._client.servers(ids)}

    def images(self, ids: Sequence[str]) -> Mapping[str, Image]:
        return {found["id"]: _image(found) for found in self._client.images(ids)}

    def inventory(self, tags: Mapping[str, str]) -> Sequence[Server | Image]:
        servers, images = self._client.servers(tags=tags), self._client.images(tags=tags)
        return [*map(_server, servers), *map(_image, images)]

    def obstacles(self, ids: Sequence[str], *, sizes: Sequence[Size]) -> Mapping[str, Sequence[str]]:  # noqa: ARG002
        return {}  # any server fits into any size that has its disk, which the plan compares

    def subnets(self, like: str, /, *, among: Sequence[str]) -> Sequence[Subnet]:  # noqa: ARG002
        return ()

    def examine(
        self,
        ids: Sequence[str],  # noqa: ARG002
        *,
        sizes: Sequence[Size],  # noqa: ARG002
        at_once: int,  # noqa: ARG002
        among: Sequence[str] = (),  # noqa: ARG002
    ) -> Sequence[Finding]:
        return ()  # no account, and no quota: disk and memory are the machine's own

    def rights(self, ids: Sequence[str], *, fleet: str) -> Sequence[Rights]:  # noqa: ARG002
        return ()

    def recipe(self) -> str:
        return ""

    def ensure_image(self, key: Key, *, source: str) -> Image:
        body = {"name": key.name, "tags": _tags(key), "source": source}
        found = self._client.call("PUT", f"/images/by-token/{quote(key.token, safe='')}", body)
        return replace(_image(found), adopted=bool(found.get("adopted")))

    def taken(self, image: str, /) -> bool:
        found = self._client.images([image])
        if not found:
            raise NotFound(f"there is no image {image}")
        return bool(found[0]["taken"])

    def ensure_server(self, key: Key, *, image: str, like: str, size: Size) -> Server:
        body = {"name": key.name, "tags": _tags(key), "image": image, "like": like, "size": size_body(size)}
        return _server(self._client.call("PUT", f"/servers/by-token/{quote(key.token, safe='')}", body))

    def stop(self, id: str, *, given: Given | None = None) -> None:
        self._client.call("POST", f"{_path(id)}/stop", {"given": dict(given or {})})

    def start(self, id: str, *, given: Given | None = None) -> None:
        self._client.call("POST", f"{_path(id)}/start", {"given": dict(given or {})})

    def terminate(self, id: str, *, given: Given | None = None) -> None:
        try:
            self._client.call("DELETE", _path(id), {"given": dict(given or {})})
        except NotFound:
            return

    def delete_image(self, id: str) -> None:
        try:
            self._client.call("DELETE", f"/images/{quote(id, safe='')}")
        except NotFound:
            return

    def protect(self, id: str, on: bool, *, given: Given | None = None) -> None:
        self._client.call("PUT", f"{_path(id)}/protection", {"on": on, "given": dict(given or {})})

    def tag(self, id: str, tags: Mapping[str, str | None], *, given: Given | None = None) -> None:
        self._client.call("PATCH", f"{_path(id)}/tags", {"tags": dict(tags), "given": dict(given or {})})


def _path(id: str) -> str:
    return f"/servers/{quote(id, safe='')}"


def _tags(key: Key) -> dict[str, str]:
    return {**key.tags, "changeover:managed": "1"}


def _server(found: Mapping[str, Any]) -> Server:
    return Server(
        id=found["id"],
        name=found["name"],
        state=found["state"],
        address=found["address"],
        size=Size(**found["size"]),
        tags=found["tags"],
        boot=found["boot"],
        launched=found["launched"],
        reason=found["reason"],
        protected=found["protected"],
    )


def _image(found: Mapping[str, Any]) -> Image:
    return Image(
        id=found["id"],
        name=found["name"],
        state=found["state"],
        disk=found["disk"],
        tags=found["tags"],
        reason=found["reason"],
    )
