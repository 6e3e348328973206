"""What the page says of a rollout, as values: templates only print them, and nothing here reads or changes anything."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from sse_starlette import ServerSentEvent

from orchestrator import words
from orchestrator.domain.forecast import time_left
from orchestrator.domain.rollout import Rollout
from orchestrator.domain.steps import STEPS
from orchestrator.domain.token import Token
from orchestrator.domain.upgrade import Upgrade
from orchestrator.errors import UnsafeStore
from orchestrator.operations import View
from orchestrator.store import AuditEntry, Tally, Users, codec
from orchestrator.web import actions
from orchestrator.web.actions import Verb

MOST = 25  # things that need a person, before "and N more"
# Each server is one cell. Steps have the colours of the report, c0 and on; what a person must see is first.
KINDS: Mapping[str, str] = {
    "held": "held: needs you",
    "alarm": "new server ails",
    "lost": "cannot be read",
    **{f"c{n}": step.replace("_", " ") for n, step in enumerate(STEPS)},
    "undo": "on its way back",
    "ok": "upgraded",
    "aside": "set aside",
    "back": "rolled back",
    "w": "not begun",
}
_BAR = ("ok", "c5", "c4", "c3", "c2", "c1", "c0", "undo", "held", "alarm", "lost", "aside", "back", "w")
_OF_STATE: Mapping[str, str] = {
    "upgraded": "ok",
    "running": "c0",
    "waiting": "c0",
    "held": "held",
    "failed": "aside",
    "rolled_back": "back",
    "pending": "w",
}


def kind(u: Upgrade) -> str:
    """One of `KINDS`."""
    if u.alarming:
        return "alarm"
    if u.state in ("running", "waiting"):
        return "undo" if u.direction == "undo" else f"c{STEPS.index(u.step)}"
    return _OF_STATE[u.state]


def told(entry: AuditEntry) -> bytes:
    """A live event as the page's script reads it: which cell becomes what, and one line to say."""
    body = {"at": entry.at, "says": words.happened(entry)}
    if entry.server:
        body["server"] = entry.server
        try:
            if entry.after:
                body["kind"] = kind(codec.UPGRADE.of(entry.after))
        except UnsafeStore:  # of another version: its line is told all the same
            pass
    return ServerSentEvent(json.dumps(body), id=entry.id).encode()


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a bar of progress. `x` and `width` in hundredths."""

    kind: str
    x: float
    width: float


def bar(counts: Mapping[str, int]) -> tuple[Piece, ...]:
    total = sum(counts.values()) or 1
    pieces: list[Piece] = []
    x = 0.0
    for each in _BAR:
        if number := counts.get(each, 0):
            width = 100 * number / total
            pieces.append(Piece(kind=each, x=round(x, 3), width=round(width, 3)))
            x += width
    return tuple(pieces)


@dataclass(frozen=True, kw_only=True)
class Need:
    """Something that waits for a person. `server` is empty for the rollout itself. `also`: another command."""

    title: str
    why: str
    traffic: str
    next: str
    also: str = ""
    server: str = ""
    verbs: tuple[Verb, ...] = ()


def needs(view: View, token: Token) -> list[Need]:
    """Whoever hurts users first."""
    r = view.rollout
    found = [_alarm(r, u, token) for u in view.alarms]
    found += [_held(r, u, token) for u in view.held]
    if r.state == "paused":
        told = Need(
            title="The rollout has stopped itself" if r.stop else "The rollout is paused",
            why=r.why,
            traffic="every server goes on serving as it is; nothing new begins",
            next=f"changeover resume {r.id}",
            also=f"changeover rollback {r.id}",
            verbs=tuple(v for v in actions.of_rollout(r, view.upgrades, token) if v.name in ("resume", "rollback")),
        )
        found.insert(len(view.alarms), told)
    if r.state == "awaiting_approval":
        said = f"; {', '.join(r.approved_by)} approved it" if r.approved_by else ""
        asks = Need(
            title=f"Wave {r.wave + 1} waits for your approval",
            why=f"{r.why}{said}{words.unanswered(r)}",
            traffic="every server goes on serving as it is",
            next=words.next_of(r, ()),
            verbs=tuple(v for v in actions.of_rollout(r, view.upgrades, token) if v is actions.APPROVE),
        )
        found.insert(len(view.alarms), asks)
    if view.alone:
        goes_on = "every server goes on serving as it is"
        found.append(Need(title="It stands still", why=words.ALONE, traffic=goes_on, next="changeover doctor FILE"))
    if view.frozen is not None:
        found.append(
            Need(
                title="Everything is frozen",
                why=f"no step begins anywhere: {view.frozen}",
                traffic="every server goes on serving as it is",
                next="changeover unfreeze",
                verbs=(actions.UNFREEZE,) if token.may("admin") and not token.fleets else (),
            )
        )
    found += [
        Need(
            title=f"{server} cannot be read",
            why=why,
            traffic=words.UNTOUCHED,
            next=words.next_for_unread(r, server),
            server=server,
        )
        for server, why in view.unread.items()
    ]
    if view.orphans and not token.fleets:
        many = words.many(len(view.orphans), "thing")
        found.append(
            Need(
                title=f"{many} of it that nobody accounts for",
                why="they carry its mark and cost money",
                traffic="none of them serves",
                next="changeover gc",
            )
        )
    return found


def _held(r: Rollout, u: Upgrade, token: Token) -> Need:
    return Need(
        title=f"{u.server} is held at {words.where(u)}",
        why=u.why,
        traffic=u.traffic,
        next=words.next_for(r, u),
        also=words.otherwise(r, u),
        server=u.server,
        verbs=tuple(actions.of_server(r, u, token)),
    )


def _alarm(r: Rollout, u: Upgrade, token: Token) -> Need:
    why = u.ailing.why if u.ailing is not None else ""
    kept = "; its old server is kept on until the new one serves again or you have decided" if u.keeps_old else ""
    return replace(_held(r, u, token), title=f"The new server of {u.server} ails", why=why + kept)


@dataclass(frozen=True, kw_only=True)
class Hero:
    """The sentence on top. `mood`: bad when users were hurt, warn when a person is needed, else good or plain."""

    says: str
    mood: str
    small: str


def hero(r: Rollout, needing: Sequence[Need], users: Users | None) -> Hero:
    failed = users.failed if users is not None else 0
    waits = f"{len(needing)} {'thing needs' if len(needing) == 1 else 'things need'} you"
    if failed:
        small = waits if needing else "Nothing needs you now"
        return Hero(says=f"{words.many(failed, 'user request')} failed", mood="bad", small=small)
    if needing:
        told = needing[0].title if len(needing) == 1 else waits
        return Hero(says=told, mood="warn", small="No user request failed" if users is not None else "")
    match r.state:
        case "succeeded":
            small = "No user request failed" if users is not None else ""
            return Hero(says="Every server is upgraded", mood="good", small=small)
        case "failed":
            return Hero(says="Ended, with servers set aside", mood="warn", small=r.why)
        case "rolled_back":
            return Hero(says="Rolled back: every old server serves", mood="plain", small=r.why)
        case "aborted":
            return Hero(says="Aborted", mood="plain", small=r.why)
        case "rolling_back" | "aborting":
            says = "Rolling back" if r.state == "rolling_back" else "Aborting"
            return Hero(says=f"{says}: nothing needs you", mood="plain", small=r.why)
        case "awaiting_window":
            return Hero(says="Waits for its window", mood="plain", small=r.why)
        case _:
            return Hero(
                says="Nothing needs you", mood="good", small="No user request failed" if users is not None else ""
            )


@dataclass(frozen=True, kw_only=True)
class Top:
    """All of a rollout's page above its servers."""

    rollout: Rollout
    hero: Hero
    needs: tuple[Need, ...]
    more_needs: int
    users: Users | None
    counts: Mapping[str, int]
    bar: tuple[Piece, ...]
    done: int
    total: int
    left: str
    took: str
    verbs: tuple[Verb, ...]
    next: str


def kinds(view: View) -> dict[str, str]:
    """Of each server, in the order of the waves."""
    known = {u.server: kind(u) for u in view.upgrades}
    return {name: known.get(name, "lost") for wave in view.rollout.waves for name in wave}


def count(found: Iterable[str]) -> dict[str, int]:
    counts = dict.fromkeys(KINDS, 0)
    for each in found:
        counts[each] += 1
    return counts


def top(view: View, users: Users | None, token: Token, *, now: float) -> Top:
    r = view.rollout
    counts = count(kinds(view).values())
    needing = needs(view, token)
    left = time_left(r, view.upgrades, now=now)
    if r.state == "baking" and r.wave + 1 == len(r.waves) and r.bake_until is not None:
        left = max(0.0, r.bake_until - now)
    return Top(
        rollout=r,
        hero=hero(r, needing, users),
        needs=tuple(needing[:MOST]),
        more_needs=max(0, len(needing) - MOST),
        users=users,
        counts=counts,
        bar=bar(counts),
        done=counts["ok"] + counts["alarm"],
        total=sum(counts.values()),
        left="–" if left is None or r.ended else f"~{words.span(left)}",
        took=words.span((r.ended_at or now) - r.created_at),
        verbs=tuple(actions.of_rollout(r, view.upgrades, token)),
        next=words.next_of(r, view.upgrades),
    )


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A rollout among others."""

    rollout: Rollout
    bar: tuple[Piece, ...]
    done: int
    total: int
    users: Users | None
    needs: str
    age: str


def listed(r: Rollout, tally: Tally, users: Users | None, unread: int, *, now: float) -> Listed:
    counts: dict[str, int] = {}
    for state, number in tally.by_state.items():
        name = _OF_STATE.get(state, "lost")
        counts[name] = counts.get(name, 0) + number
    needing = []
    if r.state == "paused":
        needing.append(f"{'stopped' if r.stop else 'paused'}: {r.why}")
    if r.state == "awaiting_approval":
        needing.append(r.why)
    if r.alarm:
        needing.append(r.alarm)
    if held := counts.get("held", 0):
        needing.append(f"{words.many(held, 'server')} held")
    if unread:
        needing.append(f"{words.many(unread, 'server')} cannot be read")
    return Listed(
        rollout=r,
        bar=bar(counts),
        done=counts.get("ok", 0),
        total=sum(counts.values()),
        users=users,
        needs="; ".join(needing),
        age=words.span(now - r.created_at),
    )
