"""B answers like A, asked by address, before any user is sent there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from orchestrator.domain.fleet import SmokeRequest, SyncHook
from orchestrator.domain.plan import Seat
from orchestrator.domain.upgrade import Intent, Upgrade
from providers.probe import Expect, Request
from tasks.step import Done, StepFailed, Wait
from tasks.world import Turn, resolve, run_hook


def params(turn: Turn) -> Mapping[str, Any]:
    ready = turn.upgrade.results["poll_readiness"]
    return {"address": ready["address"], "boot": ready["boot"]}


def do(turn: Turn, intent: Intent) -> Done | Wait:
    notes = dict(turn.upgrade.notes)
    if isinstance(turn.fleet.state, SyncHook) and not notes.get("synced"):
        _sync(turn, turn.fleet.state, intent.params["address"])
        notes["synced"] = True
    tested = rounds(turn, intent.params["address"], notes)
    if isinstance(tested, Wait):
        return tested
    return Done(result={**tested, "at": turn.now, **intent.params})


def rounds(turn: Turn, address: str, notes: Mapping[str, Any], *, again: str = "") -> Wait | Mapping[str, Any]:
    """Advance the test: a wait with what is to be noted, or how often it was asked and the evidence when it has passed
    often enough in a row. `again`: why it is made anew. Raises `StepFailed` when it cannot pass any more."""
    smoke = turn.fleet.checks.smoke
    passes, made = int(notes.get("passes", 0)), int(notes.get("rounds", 0))
    evidence: Mapping[str, Any] = {}
    while passes < smoke.passes:
        why, evidence = one_round(turn, address)
        made += 1
        passes = 0 if why else passes + 1
        if why and smoke.tries - made < smoke.passes:
            raise StepFailed(f"smoke test of {turn.upgrade.server}'s new server{again}: {why}", evidence)
        if passes < smoke.passes and smoke.every > 0:
            reason = f"smoke test{again}: {passes} of {smoke.passes} passes in a row"
            kept = {**notes, "passes": passes, "rounds": made, "last": why}
            return Wait(reason=reason + (f"; last: {why}" if why else ""), every=smoke.every, notes=kept)
    return {"passes": passes, "rounds": made, **evidence}


def one_round(turn: Turn, address: str, *, old_runs: bool = True) -> tuple[str, Mapping[str, Any]]:
    """Every request once, at every pool's port that it is for; why it failed (empty if it passed) and the evidence.
    Where A does not run nobody is compared with it: we have stopped it ourselves, and B is no worse for that."""
    answers = []
    for request in turn.fleet.checks.smoke.requests:
        for seat in turn.server.seats:
            if request.pool not in (None, seat.pool):
                continue
            why, evidence = _ask(turn, request, seat, address, old_runs=old_runs)
            answers.append({"request": f"{request.method} {request.url}", "pool": seat.pool, **evidence})
            if why:
                return why, {"answers": answers}
    return "", {"answers": answers}


def _ask(turn: Turn, spec: SmokeRequest, seat: Seat, address: str, *, old_runs: bool) -> tuple[str, Mapping[str, Any]]:
    headers = {name: resolve(value) for name, value in spec.headers.items()}
    request = Request(
        url=spec.url,
        method=spec.method,
        headers=headers,
        body=spec.body,
        timeout=spec.timeout,
        ca=spec.ca or "",
        secrets=tuple(value for name, value in headers.items() if value != spec.headers[name]),
    )
    expect = Expect(
        status=spec.status,
        headers=spec.header_matches,
        body_contains=spec.contains,
        body_matches=spec.matches or "",
        latency=spec.latency,
    )
    outcome = turn.probe.check(address, seat.port, request, expect)
    evidence: dict[str, Any] = asdict(outcome)
    if not outcome.passed or not spec.same_as_old:
        return outcome.why, evidence
    if not old_runs:
        return "", {**evidence, "same_as_old": "not compared: the old server does not run"}
    compared = turn.probe.compare((seat.address, seat.port), (address, seat.port), request, masks=spec.masks)
    evidence["same_as_old"] = compared.same
    if compared.same:
        return "", evidence
    evidence["differences"] = list(compared.differences)
    first = next((line for line in compared.differences if line[:1] in "+-" and line[:3] not in ("+++", "---")), "")
    return f"{spec.method} {spec.url}: B answers differently from A: {first}", evidence


def _sync(turn: Turn, hook: SyncHook, address: str) -> None:
    words = [word.replace("{old}", turn.server.address).replace("{new}", address) for word in hook.sync]
    turn.before_call("sync hook")
    if problem := run_hook(words, timeout=hook.timeout, env=hook.env):
        raise StepFailed(f"the sync hook failed: {problem}")


def check(u: Upgrade) -> bool:
    return u.seen is not None


def undo(_turn: Turn) -> Done | Wait:
    return Done()
