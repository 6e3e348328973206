"""What a person can ask of a rollout, and of single servers of it: one table for the API and the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator import operations
from orchestrator.domain.token import Scope
from orchestrator.operations import Answer
from orchestrator.store import Store


@dataclass(frozen=True, kw_only=True)
class Said:
    """By whoever asks, of which each verb takes what concerns it. `who` stands for a person, `actor` is for the audit
    log. `seen`: the version that they have seen of the rollout, and `was` what of the one server, as
    `operations.seen_of` says it; None: they did not look. `dry`: what would be, and nothing is changed."""

    who: str
    actor: str
    why: str = ""
    wave: int | None = None
    servers: Sequence[str] | None = None
    seen: int | None = None
    was: str | None = None
    dry: bool = False


@dataclass(frozen=True, kw_only=True)
class Verb:
    """`act` raises what the operation of that name raises."""

    name: str
    scope: Scope
    does: str
    act: Callable[[Store, str, Said], Answer]


def _how(said: Said) -> dict[str, Any]:
    return {"actor": said.actor, "seen": said.seen, "dry": said.dry}


def _rollback(store: Store, id: str, said: Said) -> Answer:
    if said.servers is None:
        return operations.rollback(store, id, why=said.why, **_how(said))
    (server,) = said.servers
    return operations.rollback_server(store, id, server, why=said.why, was=said.was, **_how(said))


VERBS: Mapping[str, Verb] = {
    verb.name: verb
    for verb in (
        Verb(
            name="pause",
            scope="run",
            does="Begins nothing new; what is under way finishes its step and waits.",
            act=lambda store, which, said: operations.pause(store, which, why=said.why, **_how(said)),
        ),
        Verb(
            name="resume",
            scope="run",
            does="Goes on where it was paused. Failures so far are forgiven, and deadlines move by the pause.",
            act=lambda store, which, said: operations.resume(store, which, **_how(said)),
        ),
        Verb(
            name="approve",
            scope="approve",
            does="Says yes to the wave that waits for it. The token's name stands for who says it.",
            act=lambda store, which, said: operations.approve(store, which, who=said.who, wave=said.wave, **_how(said)),
        ),
        Verb(
            name="promote",
            scope="run",
            does="Ends the bake of the wave that is through.",
            act=lambda store, which, said: operations.promote(store, which, **_how(said)),
        ),
        Verb(
            name="abort",
            scope="run",
            does="Begins nothing new and undoes what has begun; upgraded servers stay upgraded.",
            act=lambda store, which, said: operations.abort(store, which, why=said.why, **_how(said)),
        ),
        Verb(
            name="rollback",
            scope="run",
            does="Puts every old server back that is still kept, newest first; or one.",
            act=_rollback,
        ),
        Verb(
            name="retry",
            scope="run",
            does="Lets held servers go on, and tries failed ones anew.",
            act=lambda store, which, said: operations.retry(store, which, said.servers, was=said.was, **_how(said)),
        ),
    )
}
