"""Tells a receiver what has happened in a rollout, entry by entry, in order, each until it is heard.

An entry has the same webhook-id however often it is sent: a worker that dies after the POST and before its commit sends
it once more, and whoever hears it twice can know that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import structlog

from orchestrator import operations, schema, secrets
from orchestrator.domain.outbox import GATES, IN_HAND, gate_answer, message
from orchestrator.domain.rollout import Rollout
from orchestrator.errors import Conflict
from orchestrator.hook_file import KnownReceiver
from orchestrator.store import AuditEntry
from providers import webhook
from providers.errors import ProviderError
from tasks.world import World

log = structlog.get_logger()
TURN = 20.0  # seconds after which a message ends, and another goes on
BATCH = 100
UNKNOWN = 60.0  # seconds until another worker is asked, that may know the receiver


class _Waits(str):
    """Why it was heard, and is to be asked again all the same."""


def run(world: World, *, receiver: str, rollout: str) -> Mapping[str, Any]:
    """How many entries were told. It ends where one was not heard, or somebody else has gone on meanwhile."""
    feed = next((each for each in world.store.feeds() if (each.receiver, each.rollout) == (receiver, rollout)), None)
    found = world.store.rollout(rollout)
    if feed is None or found is None:
        return {"ignored": "nobody is told of it"}
    known = world.receivers().get(receiver)
    if known is None:
        why = f"{world.worker} knows no receiver {receiver}: CHANGEOVER_NOTIFY is to be the same for all"
        world.store.change_feed(feed, replace(feed, why=why, due=world.store.now() + UNKNOWN))
        return {"ignored": why}
    told, end = 0, world.monotonic() + TURN
    while True:
        entries = world.store.events(rollout, after=feed.cursor, limit=BATCH)
        for entry in entries:
            wanted = known.receiver.wants(entry.event)
            unheard = _sent(world, known, receiver, entry, found) if wanted else ""
            if unheard:
                now = world.store.now()
                waits = isinstance(unheard, _Waits)
                after = feed.waiting(unheard, now) if waits else feed.failed(entry.id, unheard, now)
                if not waits:
                    log.warning("not told", receiver=receiver, rollout=rollout, tells=entry.event, why=after.why)
                world.store.change_feed(feed, after)
                return {"told": told, "why": after.why}
            told += wanted
            if wanted or entry is entries[-1]:
                now, over = world.store.now(), world.monotonic() >= end
                stored = world.store.change_feed(
                    feed, feed.past(entry.id, told=int(wanted), due=now if over else now + IN_HAND)
                )
                if stored is None or over:
                    return {"told": told}
                feed = stored
        if not entries:
            world.store.change_feed(feed, replace(feed, due=world.store.now()))
            return {"told": told}


def _sent(world: World, known: KnownReceiver, name: str, entry: AuditEntry, about: Rollout) -> str:
    """Why it was not heard, or is to be asked again; empty if it was heard."""
    stamp = datetime.fromtimestamp(entry.at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    event = {"schema": "changeover/v1/event", **schema.event(entry)}
    whole = message(rollout=about.id, fleet=about.fleet, event=event, stamp=stamp)
    body = secrets.redact_json(json.dumps(whole).encode())
    try:
        answer = webhook.post(
            known.receiver.url,
            body,
            known.headers(f"{about.id}.{entry.id}", body, now=world.store.now()),
            networks=known.receiver.networks,
            ca=known.ca,
        )
    except ProviderError as error:
        return str(error)
    if not 200 <= answer.status < 300:
        return f"it answered {answer.status}"
    return _gate(world, name, entry, about.id, answer.body) if known.receiver.gate and entry.event in GATES else ""


def _gate(world: World, name: str, entry: AuditEntry, rollout: str, body: bytes) -> str:
    """Its answer is followed, unless the rollout has gone on meanwhile."""
    now = world.store.rollout(rollout)
    if now is None or now.state != GATES[entry.event] or now.wave != entry.detail.get("wave"):
        return ""
    said = gate_answer(body)
    if said is None:
        return 'it is a gate, and its answer was none: {"answer": "continue"}, "wait", "pause" or "abort"'
    answer, why = said
    actor = f"webhook {name} ({entry.id})"
    log.info("gate", receiver=name, rollout=rollout, tells=entry.event, wave=now.wave, answer=answer, why=why)
    try:
        match answer:
            case "wait":
                return _Waits(f"it says wait{f': {why}' if why else ''}")
            case "continue" if entry.event == "approval asked":
                operations.approve(world.store, rollout, who=name, actor=actor, wave=now.wave)
            case "pause":
                operations.pause(world.store, rollout, actor=actor, why=why)
            case "abort":
                operations.abort(world.store, rollout, actor=actor, why=why)
    except Conflict as error:  # its yes does not count, or the rollout has gone on meanwhile
        log.warning("gate not followed", receiver=name, rollout=rollout, why=error.message)
    return ""
