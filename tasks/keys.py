"""Who the things are that we make: their tokens, names and tags. Nowhere else are tags spelled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from orchestrator.domain.fleet import Fleet
from orchestrator.domain.plan import token
from orchestrator.domain.upgrade import Intent, Upgrade
from providers import Key

MANAGED = "changeover:managed"
ROLLOUT = "changeover:rollout"
SERVER = "changeover:server"
ROLE = "changeover:role"
STEP = "changeover:step"
ATTEMPT = "changeover:attempt"
PHASE = "changeover:phase"
QUARANTINE = "quarantine"  # the phase of a server that is stopped and waits for its end
DISPOSABLE = "changeover:disposable"
UNDOING = "changeover:undoing"  # on A
RETURNED = "changeover:returned"  # which drain A has come back from: what was decided in that drain is void
PROTECTED = "changeover:protected"  # the same, where A's protection is ours to take off


def effect(fleet: Fleet, u: Upgrade, *, rung: int) -> tuple[str, str]:
    """Token and name of the due step's effect."""
    where = fleet.provider
    made = token(u.rollout, where.name, where.account, where.region, u.server, u.step, u.attempt(u.step), rung)
    return made, f"co-{made[:40]}"


def key(u: Upgrade, intent: Intent, *, role: str, more: Mapping[str, str] | None = None) -> Key:
    """The key under which a provider makes, and finds again, what this intent is about. `more`: further tags, the same
    whenever it is asked for."""
    tags = {**(more or {}), **ours(u), MANAGED: "1", ROLE: role, STEP: intent.step, ATTEMPT: str(intent.attempt)}
    return Key(token=intent.token, name=intent.name, tags=tags)


def ours(u: Upgrade) -> dict[str, str]:
    """The tags that all things made for this upgrade share."""
    return {ROLLOUT: u.rollout, SERVER: u.server}


def undoing(u: Upgrade) -> dict[str, str]:
    """The mark on A that this life of its upgrade is being undone, for whoever has nothing but the world to go by. It
    names the life by its image; never by the tags of what we made, which are there to be ended."""
    images = u.intents("create_image")
    return {UNDOING: images[-1].name} if images else {}


def drained(fleet: Fleet, u: Upgrade) -> str:
    """Which drain of A this is, among all that there ever were: the one that was announced last, or the next one, which
    Redis may have forgotten."""
    known = [intent.token for intent in u.intents("drain_old")]
    return (known or [effect(fleet, replace(u, step="drain_old"), rung=0)[0]])[-1][:16]


def lock(fleet: Fleet, id: str) -> str:
    """The name of the lock on a server, across rollouts."""
    return f"{fleet.lane}/{id}"
