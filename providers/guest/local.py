"""A look inside servers of the small local cloud, made by their host from the real process and folder."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from providers import Caps, Finding
from providers.clients.local_host import BATCH, batches, from_settings
from providers.guest import Facts, PathFacts
from providers.guest.quiesce import Hook, quiesce_script, release_script, word_of
from providers.rights import Rights


class LocalGuest:
    """`settings['host']` is the host's state folder or socket. Paths are relative to the server's own folder.

    `memory_total` is the limit of one process, read back from the kernel; `memory_used` is that of its largest process.
    `disk_total` is the budget of its size. `failed_units` stays empty: there is no init system in such a server.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._client = from_settings(settings)

    @property
    def caps(self) -> Caps:
        return Caps(batch=BATCH, size_enforced=False)

    def facts(self, ids: Sequence[str], *, paths: Sequence[str]) -> Mapping[str, Facts]:
        found: dict[str, Facts] = {}
        for some in batches(ids):
            asked = time.time()
            answer = self._client.call("POST", "/facts", {"ids": list(some), "paths": list(paths)}, reads=True)
            heard = time.time()
            found |= {one["server"]: _facts(one, asked, heard) for one in answer}
        return found

    def quiesce(self, id: str, key: str, /, *, hook: Hook, by: float) -> None:
        self._order(id, quiesce_script(key, hook, by=by))

    def release(self, id: str, key: str, /, *, hook: Hook) -> bool:
        return self._order(id, release_script(key, hook)) == "held"

    def _order(self, id: str, script: str) -> str:
        said = self._client.call("POST", f"/servers/{quote(id, safe='')}/run", {"script": script})
        return word_of(id, str(said["output"]))

    def examine(self, ids: Sequence[str]) -> Sequence[Finding]:  # noqa: ARG002
        return ()  # whoever runs can be looked into

    def rights(self, *, fleet: str) -> Sequence[Rights]:  # noqa: ARG002
        return ()


def _facts(one: Mapping[str, Any], asked: float, heard: float) -> Facts:
    """The server's clock was read at some time between the two: an offset is only what lies outside."""
    clock = float(one["clock"])
    return Facts(
        server=one["server"],
        boot=one["boot"],
        disk_total=one["disk_total"],
        disk_used=one["disk_used"],
        memory_total=one["memory_total"],
        memory_used=one["memory_used"],
        paths=tuple(PathFacts(**path) for path in one["paths"]),
        listening=tuple(one["listening"]),
        connections=one.get("connections"),
        clock_offset=min(0.0, clock - asked) + max(0.0, clock - heard),
        extra=one["extra"],
    )
