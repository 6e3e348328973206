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

from orchestrator import schema, secrets
from orchestrator.domain.outbox import IN_HAND, message
from orchestrator.hook_file import KnownReceiver
from orchestrator.store import AuditEntry
from providers import webhook
from providers.errors import ProviderError
from tasks.world import World

log = structlog.get_logger()
TURN = 20.0  # seconds after which a message ends, and another goes on
BATCH = 100
UNKNOWN = 60.0  # seconds until another worker is asked, that may know the receiver


def run(world: World, *, receiver: str, rollout: str) -> Mapping[str, Any]:
    """How many entries were told. It ends where one was not heard, or somebody else has gone on meanwhile."""
    feed = next((each for each in world.store.feeds() if (each.receiver, each.rollout) == (receiver, rollout)), None)
    found = world.store.rollout(rollout)
    if feed is None or found is None:
        return {"ignored": "nobody is told of it"}
    known = world.receivers.get(receiver)
    if known is None:
        why = f"{world.worker} knows no receiver {receiver}: CHANGEOVER_NOTIFY is to be the same for all"
        world.store.change_feed(feed, replace(feed, why=why, due=world.store.now() + UNKNOWN))
        return {"ignored": why}
    told, end = 0, world.monotonic() + TURN
    while True:
        entries = world.store.events(rollout, after=feed.cursor, limit=BATCH)
        for entry in entries:
            wanted = known.receiver.wants(entry.event)
            why = _sent(world, known, entry, rollout, found.fleet) if wanted else ""
            if why:
                after = feed.failed(entry.id, why, world.store.now())
                log.warning(
                    "notify", receiver=receiver, rollout=rollout, entry=entry.id, tells=entry.event, why=after.why
                )
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


def _sent(world: World, known: KnownReceiver, entry: AuditEntry, rollout: str, fleet: str) -> str:
    """Why it was not heard; empty if it was."""
    stamp = datetime.fromtimestamp(entry.at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    event = {"schema": "changeover/v1/event", **schema.event(entry)}
    body = secrets.redact_json(json.dumps(message(rollout=rollout, fleet=fleet, event=event, stamp=stamp)).encode())
    try:
        answer = webhook.post(
            known.receiver.url,
            body,
            known.headers(f"{rollout}.{entry.id}", body, now=world.store.now()),
            networks=known.receiver.networks,
            ca=known.ca,
        )
    except ProviderError as error:
        return str(error)
    return "" if 200 <= answer.status < 300 else f"it answered {answer.status}"
