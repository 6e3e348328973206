"""Looks inside the servers of a `FakeCloud`: those that run answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from providers import Caps, Finding
from providers.clients.fake_cloud import PAUSE, Remote
from providers.clients.rounds import Rounds
from providers.compute import Server
from providers.compute.fake import FakeCloud, Fault, Freeze
from providers.errors import Refused, Transient
from providers.guest import Facts, PathFacts
from providers.guest.quiesce import Hook
from providers.rights import Rights


class _Joint:
    """What threads ask of one server each at the same moment is one call."""

    def __init__(self, look: Callable[..., Mapping[str, Facts]]) -> None:
        self._look = look
        self._lock = threading.Lock()
        self._rounds: dict[tuple[str, ...], Rounds[str, Facts | None]] = {}  # by the paths that are looked at

    def facts(self, ids: Sequence[str], *, paths: Sequence[str]) -> Mapping[str, Facts]:
        if len(ids) != 1:
            return self._look(ids, paths=paths)
        with self._lock:
            together = self._rounds.setdefault(
                tuple(paths), Rounds(lambda some: self._of_each(some, paths), pause=PAUSE)
            )
        return {id: facts for id, facts in together(ids).items() if facts is not None}

    def _of_each(self, ids: Collection[str], paths: Sequence[str]) -> Mapping[str, Facts | None]:
        found = self._look(sorted(ids), paths=paths)
        return {id: found.get(id) for id in ids}


class _Remote(_Joint, Remote):
    def __init__(self, settings: Mapping[str, Any]) -> None:
        Remote.__init__(self, "guest", settings)
        _Joint.__init__(self, self.look)


class FakeGuest(_Joint):
    def __new__(cls, settings: Mapping[str, Any]) -> Any:
        return _Remote(settings) if "socket" in settings else super().__new__(cls)

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(self.look)
        self.cloud = FakeCloud.of(settings)

    @property
    def caps(self) -> Caps:
        return Caps()

    def look(self, ids: Sequence[str], *, paths: Sequence[str]) -> Mapping[str, Facts]:
        """One call."""
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
