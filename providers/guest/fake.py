"""Looks inside the servers of a `FakeCloud`: those that run answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from providers import Caps, Finding
from providers.clients.fake_cloud import Remote
from providers.compute import Server
from providers.compute.fake import FakeCloud, Fault, Freeze
from providers.errors import Refused, Transient
from providers.guest import Facts, PathFacts
from providers.guest.quiesce import Hook
from providers.rights import Rights


class FakeGuest:
    def __new__(cls, settings: Mapping[str, Any]) -> Any:
        return Remote("guest", settings) if "socket" in settings else super().__new__(cls)

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.cloud = FakeCloud.of(settings)

    @property
    def caps(self) -> Caps:
        return Caps()

    def facts(self, ids: Sequence[str], *, paths: Sequence[str]) -> Mapping[str, Facts]:
        with self.cloud.lock:
            self.cloud.call("facts")
            views = {id: self.cloud.now(self.cloud.things[id]) for id in ids if id in self.cloud.things}
            return {
                id: Facts(
                    server=id,
                    boot=view.boot,
                    disk_total=view.size.disk,
                    disk_used=1024,
                    memory_total=view.size.memory,
                    memory_used=1024,
                    connections=self._connections(view.address),
                    paths=tuple(PathFacts(path=p, kind="file", mode="0644", owner="root", group="root") for p in paths),
                )
                for id, view in views.items()
                if isinstance(view, Server) and view.state == "running"
            }

    def quiesce(self, id: str, key: str, /, *, hook: Hook, by: float) -> None:
        with self.cloud.lock:
            fault = self._inside(id, "quiesce")
            now = self.cloud.clock()
            if now > by:
                raise Refused("it came too late")
            if (on := self.cloud.frozen(id)) is not None:
                on.until = now
            self.cloud.freezes.append(Freeze(server=id, key=key, since=now, until=now + hook.seconds))
            self.cloud.answer(fault, "quiesce")

    def release(self, id: str, key: str, /, *, hook: Hook) -> bool:  # noqa: ARG002
        with self.cloud.lock:
            fault = self._inside(id, "release")
            if (on := self.cloud.frozen(id)) is not None:
                on.until, on.ordered = self.cloud.clock(), on.key == key
            last = next((each for each in reversed(self.cloud.freezes) if each.server == id), None)
            self.cloud.answer(fault, "release")
            return last is not None and last.key == key and last.ordered

    def _inside(self, id: str, name: str) -> Fault:
        """Into a server that runs."""
        fault = self.cloud.call(name)
        thing = self.cloud.get(id)
        if thing is None or thing.view.state != "running":
            raise Transient(f"{id} does not answer", ambiguous=False)
        return fault

    def examine(self, ids: Sequence[str]) -> Sequence[Finding]:  # noqa: ARG002
        return ()  # whoever runs can be looked into

    def rights(self, *, fleet: str) -> Sequence[Rights]:  # noqa: ARG002
        return ()

    def _connections(self, address: str) -> Mapping[str, int]:
        """The requests in flight, as the server itself would count them."""
        members = [view for pool in self.cloud.pools.values() for view in pool.values() if view.address == address]
        return {str(view.port): view.sessions for view in members}
