"""What an outsider could have written down of a simulated rollout, for the checker of `tests/checker`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from orchestrator.domain.fleet import Fleet
from orchestrator.store import Claim
from providers.compute import Server
from tests.simulation.cloud import Cloud
from tests.support import evidence
from tests.support.evidence import Recorder

# What is done by other hands than ours -> the incident that it is.
REBOOTED = "away for a moment"
INCIDENTS = {
    REBOOTED: "rebooted",
    "ill": "lost",
    "dead": "lost",
    "delete_image": "lost",
    "stop": "lost",
    "untag": "untagged",
}


class Evidence:
    """Keeps nothing unless `wanted`: that takes time."""

    def __init__(self, fleet: Fleet, cloud: Cloud, *, wanted: bool) -> None:
        self._fleet = fleet
        self._cloud = cloud
        self._wanted = wanted
        self._recorder: Recorder | None = None

    def began(self) -> None:
        """The fleet is as it was before anything was done."""
        self._recorder = Recorder(self._cloud) if self._wanted else None

    def watched(self, role: str, provider: Any) -> Any:
        return provider if self._recorder is None else self._recorder.wrap(role, provider)

    def outside(self, what: str, id: str) -> None:
        """Something that nobody of us did."""
        if self._recorder is not None:
            boot = {"boot": self._boot(id)} if what == REBOOTED else {}
            self._recorder.incident(INCIDENTS[what], id=id, **boot)

    def _boot(self, id: str) -> str:
        view = self._cloud.things[id].view
        return view.boot if isinstance(view, Server) else ""

    def left_out(self, servers: Iterable[str]) -> None:
        """Nobody could say where these stand, and their operator goes on without them."""
        for server in sorted(servers):
            if self._recorder is not None:
                self._recorder.incident("left out", server=server)

    def member_lost(self, pool: str, member: str) -> None:
        if self._recorder is not None:
            self._recorder.incident("member lost", pool=pool, id=member)

    def forgot(self, since: float) -> None:
        if self._recorder is not None:
            self._recorder.incident("store lost", since=since)

    def claimed(self, claim: Claim) -> None:
        if self._recorder is not None:
            about = {"rollout": claim.rollout, "server": claim.server, "owner": claim.owner, "fence": claim.fence}
            self._recorder.claims.append({"at": self._cloud.clock(), **about})

    def given_up(self) -> None:
        if self._recorder is not None:
            self._recorder.incident("given up")

    def pools(self) -> None:
        """They may have changed, by other hands than ours."""
        if self._recorder is not None:
            self._recorder.sample()

    def write(self, folder: Path, store: Any, rollout: str) -> None:
        assert self._recorder is not None
        evidence.write(folder, self._recorder, store, rollout=rollout, fleet=self._fleet)
