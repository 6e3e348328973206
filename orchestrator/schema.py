"""The JSON documents of `--output json` and of the API: what is promised to programs, apart from how it is stored.

Times are seconds of the epoch, or null. Schemas `changeover/v1/...`:

    plan        id, hash, fleet, created_at, waves [[server]], servers [{name, id, address, problem, ...}],
                target {memory, disk}, blockers [text], caveats [text], least_seconds, provider_calls, changes
    applied     rollout, confirmed, next
    rollouts    frozen (why, or null), rollouts [{...rollout, counts}], unread {rollout or rollout/server: why}
    rollout     rollout, counts {state: number}, frozen, servers [upgrade], unread {server: why}, orphans [id],
                exit_code, next
    story       rollout, server (upgrade; null if its record cannot be read), unread (why, or null), events [event],
                slowed {api: {rate, refused, refused_at}}, next
    event       id, at, server ("" for the rollout's own), n, event, actor, was, now, detail
    answer      verb, changed, confirmed, rollout, in_flight [upgrade], servers [upgrade], unread {server: why},
                next
    freeze      frozen, changed, confirmed, in_flight, next
    rebuilt     rollout (id), made (whether it is there now), servers [{name, found, resumes, state, step}], next
    doctor      ok, checks [{name, ok, detail, fix}]
    policies    policies [{who, policy}] (of `doctor --policy`)
    gc          kept [{rollout, key, kind, server, state, id, until}], due, sent, kept_on [{rollout, server, why}],
                done, not_done [text], unread {lane, rollout or rollout/server: why}, orphans [{lane, kind, id, name,
                state, rollout, server, first, last, scans, foreign, doubt, pools, unsure, quarantined_at}]
    token       (of `token create`) id, name, scopes, fleets, created_at, created_by, expires_at, revoked_at, used_at,
                holds, shown (the token itself: only here, only now)
    tokens      tokens [token, without shown]
    revoked     changed, token
    report      files [path] (of the command line), or report, uncertified (of the API)
    servers     servers [upgrade], unread {server: why} (of the API, like those that follow)
    events      events [event], next
    received    delivery (id), state, again, confirmed (of the API)
    deliveries  deliveries [{id, hook, key, event, verb, fleet, rollout, state, why, attempts, received_at, due}]
    delivery    delivery
    redelivered delivery, changed, confirmed, next
    hooks       (of `hooks check`) hooks [{name, scheme, secrets (how many), rules [{event, when, verb, fleet}]}]
    receivers   (of `hooks check --outgoing`) receivers [{name, url, secrets (how many), events, fleets}]
    outbox      feeds [{receiver, rollout, cursor, behind, told, left, attempts, failing, why, due}]
    health      ok
    readiness   ready, workers, why
    version     version
    error       (on stderr) error, message, traffic, next, exit_code

`confirmed`: whether a replica of Redis has it too; null where Redis has no replica. False is no failure.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from orchestrator import documents, words
from orchestrator.domain.budget import Bucket
from orchestrator.domain.delivery import Delivery
from orchestrator.domain.outbox import Feed
from orchestrator.domain.rollout import Rollout
from orchestrator.domain.token import Token
from orchestrator.domain.upgrade import Upgrade
from orchestrator.store import AuditEntry

if TYPE_CHECKING:
    from orchestrator.domain.plan import Plan
    from orchestrator.domain.rebuild import Rebuilt
    from orchestrator.operations import Answer, Frozen, Story, View


def rollout(r: Rollout) -> documents.Rollout:
    return {
        "id": r.id,
        "fleet": r.fleet,
        "plan": r.plan,
        "state": r.state,
        "why": r.why or r.stop,
        "alarm": r.alarm,
        "version": r.version,
        "wave": r.wave,
        "waves": [list(wave) for wave in r.waves],
        "max_in_flight": r.max_in_flight,
        "allowed_failures": r.allowed_failures,
        "created_at": r.created_at,
        "created_by": r.created_by,
        "paused_at": r.paused_at,
        "bake_until": r.bake_until,
        "approval": _approval(r),
        "opens_at": r.opens_at if r.state == "awaiting_window" else None,
        "ended_at": r.ended_at,
        "closed": r.closed,
    }


def _approval(r: Rollout) -> documents.Approval | None:
    asked = r.approval if r.state == "awaiting_approval" else None
    if asked is None:
        return None
    return {
        "wave": asked.wave,
        "count": asked.count,
        "by": list(asked.by),
        "approved_by": list(r.approved_by),
        "until": r.asked_at + asked.within if r.asked_at is not None and asked.within is not None else None,
        "otherwise": asked.otherwise if asked.within is not None else "",
    }


def upgrade(u: Upgrade) -> documents.Upgrade:
    return {
        "server": u.server,
        "wave": u.wave,
        "domain": u.domain,
        "state": u.state,
        "direction": u.direction,
        "step": u.step,
        "why": u.why,
        "cause": u.cause,
        "traffic": u.traffic,
        "attempts": dict(u.attempts),
        "tries": u.tries,
        "deadline": u.deadline,
        "waits_for": u.wait.reason if u.wait else None,
        "looks_at": u.wait.at if u.wait else None,
        "results": {step: dict(result) for step, result in u.results.items()},
        "admitted_at": u.admitted_at,
        "ended_at": u.ended_at,
        "retain_until": u.retain_until,
        "old_gone": u.old_gone or u.old_lost,
        "by_hand": u.by_hand,
        "ails": u.ailing.why if u.ailing else None,
        "keeps_old": u.keeps_old or None,
    }


def bucket(found: Bucket) -> documents.Bucket:
    return {"rate": found.rate, "refused": found.refused, "refused_at": found.refused_at}


def event(entry: AuditEntry) -> documents.Event:
    return {
        "id": entry.id,
        "at": entry.at,
        "server": entry.server,
        "n": entry.n,
        "event": entry.event,
        "actor": entry.actor,
        "was": entry.was,
        "now": entry.now,
        "detail": dict(entry.detail),
    }


def rebuilt(found: Rebuilt, *, made: bool, next: str) -> dict[str, Any]:
    servers = [
        {
            "name": p.upgrade.server,
            "found": p.found,
            "resumes": p.resumes,
            "state": p.upgrade.state,
            "step": p.upgrade.step,
        }
        for p in found.positions
    ]
    return {"rollout": found.rollout, "made": made, "servers": servers, "next": next}


def _bytes(written: object) -> object:
    """A size as a number; the canonical fleet writes it with its unit."""
    text = str(written)
    return int(text[:-1]) if text.endswith("B") and text[:-1].isdigit() else written


def plan(p: Plan) -> documents.Plan:
    size = p.fleet["target"]["size"]
    return {
        "id": p.id,
        "hash": p.hash,
        "fleet": p.fleet["fleet"],
        "created_at": p.created_at,
        "waves": [list(wave) for wave in p.waves],
        "target": {name: _bytes(value) for name, value in size.items()},
        "servers": [asdict(server) for server in p.survey.servers],
        "pools": [asdict(pool) for pool in p.survey.pools],
        "blockers": list(p.blockers),
        "caveats": list(p.caveats),
        "least_seconds": p.least_seconds,
        "provider_calls": p.provider_calls,
        "changes": p.changes,
    }


def shown(view: View) -> documents.Shown:
    return {
        "rollout": rollout(view.rollout),
        "counts": dict(view.tally.by_state),
        "frozen": view.frozen,
        "servers": [upgrade(u) for u in view.upgrades],
        "unread": dict(view.unread),
        "orphans": [s.id for s in view.orphans],
        "exit_code": view.exit_code,
        "next": words.next_of(view.rollout, view.upgrades),
    }


def story(told: Story) -> documents.Story:
    return {
        "rollout": rollout(told.rollout),
        "server": upgrade(told.upgrade) if told.upgrade is not None else None,
        "unread": told.unread or None,
        "events": [event(entry) for entry in told.entries],
        "slowed": {name: bucket(each) for name, each in told.slowed.items()},
        "next": words.next_for(told.rollout, told.upgrade)
        if told.upgrade is not None
        else f"changeover show {told.rollout.id}",
    }


def answer(given: Answer, *, verb: str, next: str) -> documents.Answer:
    return {
        "verb": verb,
        "changed": given.changed,
        "confirmed": given.confirmed,
        "rollout": rollout(given.rollout),
        "in_flight": [upgrade(u) for u in given.in_flight],
        "servers": [upgrade(u) for u in given.servers],
        "unread": dict(given.unread),
        "next": next,
    }


def freeze(frozen: Frozen, *, next: str) -> documents.Freeze:
    return {
        "frozen": frozen.why,
        "changed": frozen.changed,
        "confirmed": frozen.confirmed,
        "in_flight": frozen.in_flight,
        "next": next,
    }


def token(t: Token, *, now: float) -> dict[str, Any]:
    """Nothing by which anybody could be let in."""
    return {
        "id": t.id,
        "name": t.name,
        "scopes": list(t.scopes),
        "fleets": list(t.fleets),
        "created_at": t.created_at,
        "created_by": t.created_by,
        "expires_at": t.expires_at,
        "revoked_at": t.revoked_at,
        "used_at": t.used_at,
        "holds": t.holds(now),
    }


def delivery(d: Delivery) -> documents.Delivery:
    return {
        "id": d.id,
        "hook": d.hook,
        "key": d.key,
        "event": d.event,
        "verb": d.verb,
        "fleet": d.fleet,
        "rollout": d.rollout,
        "state": d.state,
        "why": d.why,
        "attempts": d.attempts,
        "received_at": d.received_at,
        "due": d.due,
    }


def redelivered(d: Delivery, *, changed: bool, confirmed: bool | None) -> documents.Redelivered:
    return {"delivery": delivery(d), "changed": changed, "confirmed": confirmed, "next": "changeover hooks list"}


def feed(f: Feed, *, behind: bool) -> dict[str, Any]:
    return {
        "receiver": f.receiver,
        "rollout": f.rollout,
        "cursor": f.cursor,
        "behind": behind,
        "told": f.told,
        "left": f.left,
        "attempts": f.attempts,
        "failing": f.failing,
        "why": f.why,
        "due": f.due,
    }
