"""What carries our mark at a provider and nobody accounts for: when it is believed, and what becomes of it.

A look may be wrong (a provider shows late what it made, and what it deleted), and so may a ledger for a moment. So
nothing is done about what one look has found: seen again after a while, in no pool, and with nobody at work on its
server, it is put into quarantine, which can be undone; only a day later, still unexplained, it is deleted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from orchestrator.domain.fleet import Fleet
from orchestrator.domain.plan import token
from orchestrator.domain.steps import RETIRE
from orchestrator.domain.upgrade import Upgrade

Deed = Literal["", "quarantine", "delete"]
Made = Literal["image", "server"]
LATER = 10  # attempts beyond those on record: a Redis that lost its last seconds knows of fewer than there were


@dataclass(frozen=True, kw_only=True)
class Thing:
    """A server or an image with our mark, as a provider shows it now. `address` is a server's; `doubt` says why it
    may be a stranger's, `unsure` why nothing may be done about it."""

    kind: Made
    id: str
    name: str
    state: str
    rollout: str
    server: str
    address: str = ""
    doubt: str = ""
    unsure: str = ""


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """A thing that nobody accounts for, and since when. `foreign`: it may be somebody else's: its rollout is not known
    here, or did not make it, as `doubt` says. `pools`: where it is a member. `unsure`: why nobody may act on it now.
    Epoch seconds."""

    lane: str
    kind: Made
    id: str
    name: str
    state: str
    rollout: str
    server: str
    first: float
    last: float
    scans: int = 1
    foreign: bool = False
    doubt: str = ""
    pools: tuple[str, ...] = ()
    unsure: str = ""
    quarantined_at: float | None = None

    @property
    def may_serve(self) -> bool:
        """Whether it may have users without our seeing it: of somebody else's server no pool is known here."""
        return self.foreign and self.kind == "server"

    @property
    def key(self) -> str:
        return f"{self.lane} {self.kind} {self.id}"


@dataclass(frozen=True, kw_only=True)
class Patience:
    """`seen`: seconds between the first and the last of at least two looks before a thing is believed to be an orphan.
    `kept`: seconds that it then stays in quarantine. `at_once`: how many of a lane one run acts on."""

    seen: float = 900.0
    kept: float = 86400.0
    at_once: int = 10


def explained(thing: Thing, *, kept: bool, upgrade: Upgrade | None, leased: bool) -> str:
    """Who accounts for it; empty if nobody does. `kept`: a ledger holds it, or somebody replaces it; `upgrade` is the
    one that it was made for, and `leased` that a worker has it in hand."""
    if kept:
        return "in a ledger"
    if upgrade is None:
        return ""
    if leased or upgrade.state in ("running", "waiting", "held"):
        return "its server is under way"
    if upgrade.state == "upgraded" and (upgrade.has_begun(RETIRE) or upgrade.by_hand) and not upgrade.old_gone:
        return "its old server is being ended"
    return "its record remembers it" if thing.id in remembered(upgrade) else ""


def doubt(thing: Thing, fleet: Fleet, upgrade: Upgrade | None) -> str:
    """Why this rollout did not make it, whatever its tags say; empty if it did. Many may write a tag. A name is given
    when a thing is made, so it has to be one that an attempt for this server gives. `upgrade` is its record, if any."""
    if thing.server not in {server.name for server in fleet.servers}:
        return f"its tags name rollout {thing.rollout}, which has no server {thing.server or 'without a name'}"
    if gives(thing.name, kind=thing.kind, rollout=thing.rollout, server=thing.server, fleet=fleet, upgrade=upgrade):
        return ""
    return f"its tags name rollout {thing.rollout}, which would not have called it so"


def gives(name: str, *, kind: Made, rollout: str, server: str, fleet: Fleet, upgrade: Upgrade | None) -> bool:
    """Whether an attempt of this rollout for this server gives that name to what it makes."""
    step, rungs = ("create_image", 1) if kind == "image" else ("provision", 1 + len(fleet.target.fallback))
    last = max((upgrade.attempt(step), *(i.attempt for i in upgrade.intents(step)))) if upgrade is not None else 0
    where = fleet.provider
    return any(
        name == f"co-{token(rollout, where.name, where.account, where.region, server, step, attempt, rung)[:40]}"
        for attempt in range(last + LATER + 1)
        for rung in range(rungs)
    )


def remembered(upgrade: Upgrade) -> Mapping[str, str]:
    """Id and kind of what an upgraded server's record says is in use, or kept for a way back."""
    if upgrade.state != "upgraded":
        return {}
    found = {str(upgrade.results.get("provision", {}).get("server", "")): "server"}
    if not upgrade.old_gone:
        found[str(upgrade.results.get("create_image", {}).get("image", ""))] = "image"
    return {id: kind for id, kind in found.items() if id}


def sighted(
    before: Iterable[Sighting],
    found: Sequence[Thing],
    *,
    lane: str,
    foreign: Collection[str],
    pools: Mapping[str, Sequence[str]],
    now: float,
) -> list[Sighting]:
    """What is known of the lane's orphans after a look that has found these. `foreign` are rollouts that nobody here
    knows, `pools` the memberships by address. What was not found again is forgotten."""
    known = {(s.kind, s.id): s for s in before}
    fresh = []
    for thing in found:
        was = known.get((thing.kind, thing.id))
        seen = Sighting(
            lane=lane,
            kind=thing.kind,
            id=thing.id,
            name=thing.name,
            state=thing.state,
            rollout=thing.rollout,
            server=thing.server,
            first=now if was is None else was.first,
            last=now,
            scans=1 if was is None else was.scans + 1,
            foreign=bool(thing.doubt) or thing.rollout in foreign,
            doubt=thing.doubt,
            pools=tuple(pools.get(thing.address, ())) if thing.address else (),
            unsure=thing.unsure,
            quarantined_at=None if was is None else was.quarantined_at,
        )
        # Who was seen in a pool may have users: it is looked at anew from when it has left.
        fresh.append(replace(seen, first=now, scans=1, quarantined_at=None) if seen.pools else seen)
    return fresh


def deed(s: Sighting, patience: Patience, *, now: float, foreign: bool, only: Collection[str] | None = None) -> Deed:
    """What is due for it. `foreign`: a person has said that what is not known here is ours all the same. `only`: the
    ids that they have named: nothing is due for others then, nor ever for what `may_serve` unless it is named."""
    if s.pools or s.unsure or (s.foreign and not foreign):
        return ""
    if s.id not in only if only is not None else s.may_serve:
        return ""
    if s.quarantined_at is not None:
        return "delete" if now - s.quarantined_at >= patience.kept else ""
    return "quarantine" if s.scans >= 2 and s.last - s.first >= patience.seen else ""


def forgotten(upgrade: Upgrade, intended_at: float, *, now: float) -> bool:
    """Whether what was only ever intended, and is not to be found, is given up: its server is at rest, and has been for
    an hour, in which anything would have shown."""
    at_rest = upgrade.state in ("upgraded", "rolled_back", "failed")
    return at_rest and now - max(intended_at, upgrade.ended_at or 0.0) > 3600.0
