"""Agendas, counters and locks, made to agree with the records they follow from.

The scripts keep them so. An edit by hand, a lost key or a fault of ours does not, and an upgrade in no agenda would be
found by nobody; so they are compared once in a while, and what is mended is told in the audit log.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from orchestrator.domain.rollout import Rollout
from orchestrator.reading import readable
from orchestrator.store import Entry, Row, Store
from orchestrator.store.shapes import RESEND

log = structlog.get_logger()

LATE = 2 * RESEND  # seconds; what is sent again is due again after that at the latest, or after the grace if longer
PAGE = 50  # records that one script compares
TOLD = 20  # lines of one audit entry


def mend(store: Store, rollout: Rollout, *, actor: str, grace: float) -> list[str]:
    """What was wrong in an open rollout, and is not any more; and who else holds what should be its own."""
    seen = store.last_event(rollout.id)
    names = [name for wave in rollout.waves for name in wave]
    rows: list[Row] = []
    told: list[str] = []
    for start in range(0, len(names), PAGE):
        page, _ = readable(store, rollout.id, names[start : start + PAGE])  # who works with the others tells so
        rows += page
        told += [f"{server}: {what}" for server, what in store.mend(rollout.id, page, late=LATE + 2 * grace)]
    if len(rows) == len(names):
        told += [f"counters: {line}" for line in store.recount(rollout.id, [row.upgrade for row in rows], seen=seen)]
    told += [
        f"lock {lock}: " + (f"rollout {owner} holds it" if owner else "nobody held it")
        for lock, owner in store.relock(rollout.id, _locks(store, rollout.id, rows))
    ]
    if told:
        log.warning("mended", rollout=rollout.id, what=told[:TOLD], lines=len(told))
        more = [f"and {len(told) - TOLD} more"] if len(told) > TOLD else []
        store.note(rollout.id, Entry(event="Mended", actor=actor, detail={"what": told[:TOLD] + more}))
    return told


def _locks(store: Store, rollout: str, rows: Sequence[Row]) -> list[str]:
    """Of every server, and of its new one while there is one."""
    spec = store.document("spec", rollout)
    if spec is None:
        return []
    fleet = spec["plan"]["fleet"]
    where = fleet["provider"]
    lanes = {
        server["name"]: f"{where['name']}/{server.get('account') or where['account']}"
        f"/{server.get('region') or where['region']}"
        for server in fleet["servers"]
    }
    ids = [(server["name"], server["id"]) for server in spec["plan"]["survey"]["servers"]]
    ids += [
        (row.upgrade.server, row.upgrade.results["provision"]["server"])
        for row in rows
        if row.upgrade.state not in ("failed", "rolled_back") and row.upgrade.results.get("provision", {}).get("server")
    ]
    return [f"{lanes[server]}/{id}" for server, id in dict.fromkeys(ids) if server in lanes]
