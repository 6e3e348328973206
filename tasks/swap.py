"""B in, B proven in the balancer's own view; A and B both serve for the soak. A is not touched here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.domain.upgrade import Intent, Upgrade
from providers.traffic import Member
from tasks import drain_old, membership, smoke_test
from tasks.step import Done, StepFailed, Wait
from tasks.world import Turn

SURE = 3  # looks in a row that find B sick before it is believed: it stops the whole rollout
DOUBT = 10.0  # seconds in which B joins as a rule; from then on it is asked as often whether it is still there
FLAP = 30.0  # seconds for which the balancer may find a B down that runs, before it serves for the first time
FRESH = 600.0  # seconds for which a smoke test counts; older, and it is made again before users are sent


def params(turn: Turn) -> Mapping[str, Any]:
    lead = membership.prepare(turn)
    return {"address": turn.upgrade.results["smoke_test"]["address"], **({"lead": lead} if lead else {})}


def do(turn: Turn, intent: Intent) -> Done | Wait:
    members = membership.new_members(turn, intent.params["address"])
    notes = dict(turn.upgrade.notes)
    if "since" not in notes:
        if (left := intent.at + intent.params.get("lead", 0.0) - turn.now) > 0:
            reason = f"{members[0][0]} is not ready for {members[0][1].name}: an answer with the former TTL may be kept"
            return Wait(reason=reason, every=left, notes=notes)
        if "wanted" not in notes:
            said = _still_tested(turn, intent.params["address"], notes)
            if isinstance(said, Wait):
                return said
            notes = dict(said)
        notes.setdefault("doubt", turn.now + DOUBT)
        if (wait := membership.bring_in(turn, members, notes=notes, back=False)) is not None:
            return _joining(turn, members, wait)
        if turn.fleet.rollout.soak > 0:
            until = turn.now + turn.fleet.rollout.soak
            return _soak(turn, members, {**_proof(notes), "since": turn.now, "until": until})
        return Done(result={**_proof(notes), "since": turn.now})
    views = turn.traffic.proven(membership.names(members))
    sick = [(pool, name, view) for (pool, name), view in sorted(views.items()) if view.state != "serving"]
    if sick:
        pool, name, view = sick[0]
        why = f"{name} is {view.state} in {pool} after it had served ({view.detail})"
        looks = int(notes.get("sick", 0)) + 1
        if looks < SURE:
            return Wait(reason=f"{why}; making sure", every=1.0, notes={**notes, "sick": looks})
        raise StepFailed(why, {"balancer": membership.evidence(views)})
    if turn.now < notes["until"]:
        return _soak(turn, members, {**_proof(notes), "since": notes["since"], "until": notes["until"]})
    return Done(result={**_proof(notes), "since": notes["since"], "balancer": membership.evidence(views)})


def _still_tested(turn: Turn, address: str, notes: Mapping[str, Any]) -> Wait | Mapping[str, Any]:
    """Before users are sent: B runs, and this very boot of it has passed its smoke test not long ago. Otherwise it is
    tested again, by the same rules. What is noted when so; raises `StepFailed` when B is gone or does not pass."""
    id = turn.upgrade.results["provision"]["server"]
    server = turn.looks.servers([id]).get(id)
    if server is None or server.state != "running":
        gone = int(notes.get("gone", 0)) + 1
        why = f"its server {id} is {server.state if server else 'gone'}"
        if gone >= SURE:
            raise StepFailed(f"{turn.upgrade.server}'s new server never served: {why}")
        return Wait(reason=f"{why}; making sure", every=1.0, notes={**notes, "gone": gone})
    boot, at = membership.tested(turn.upgrade)
    if server.boot == boot and turn.now - at <= FRESH:
        return _proof(notes)
    begun = notes if notes.get("testing") == server.boot else {**_proof(notes), "testing": server.boot}
    made = smoke_test.rounds(turn, address, begun, again=", made again")
    return made if isinstance(made, Wait) else {"boot": server.boot, "tested": turn.now}


def _proof(notes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Which boot of B was tested again, and when; nothing where the first test still counts."""
    return {name: notes[name] for name in ("boot", "tested") if name in notes}


def _joining(turn: Turn, members: Sequence[tuple[str, Member]], wait: Wait) -> Wait:
    """B is not in yet, and one that died on the threshold never will be: it is asked after when the balancer finds it
    down, or when it takes longer than usual. Raises `StepFailed` when sure; A serves all the while."""
    notes = dict(wait.notes)
    if not _any_down(turn.upgrade) and not {"gone", "down"} & notes.keys() and turn.now < notes["doubt"]:
        return wait
    notes["doubt"] = turn.now + DOUBT
    gone = int(notes.pop("gone", 0)) + 1
    if lost := membership.lost(turn):
        if gone >= SURE:
            raise StepFailed(f"{turn.upgrade.server}'s new server never served: {lost}")
        return Wait(reason=f"{lost}; making sure", every=1.0, notes={**notes, "gone": gone})
    views = turn.traffic.proven(membership.names(members))
    down = [(pool, name, view) for (pool, name), view in sorted(views.items()) if view.state == "down"]
    since = float(notes.pop("down", turn.now))
    if not down:
        return replace(wait, notes=notes)
    pool, name, view = down[0]
    why = f"{name} is down in {pool} before it has served ({view.detail})"
    if turn.now - since >= FLAP:
        raise StepFailed(why, {"balancer": membership.evidence(views)})
    return Wait(reason=f"{why}; making sure", every=1.0, notes={**notes, "down": since})


def _soak(turn: Turn, members: Sequence[tuple[str, Member]], notes: Mapping[str, Any]) -> Wait:
    """Both serve, and B is looked at all the while."""
    every = max(0.05, min(turn.fleet.rollout.poll, notes["until"] - turn.now))
    reason = f"soaking: {turn.upgrade.server} and its new server both serve"
    return Wait(reason=reason, every=every, observe=membership.observe_proven(turn, members), notes=notes)


def check(u: Upgrade) -> bool:
    assert u.seen is not None
    if "until" not in u.notes:
        return membership.worth_waking(u) or _any_down(u) or u.seen.at >= u.notes.get("doubt", 0.0)
    return u.seen.at >= u.notes["until"] or any(a["state"] != "serving" for a in u.seen.answers.values())


def _any_down(u: Upgrade) -> bool:
    """Whether the last look at the balancer has found B's check to fail somewhere."""
    return u.seen is not None and any(answer.get("state") == "down" for answer in u.seen.answers.values())


def undo(turn: Turn) -> Done | Wait:
    smoke = turn.upgrade.results.get("smoke_test", {})
    new = membership.names(membership.new_members(turn, smoke.get("address", "")))
    old = membership.old_members(turn.server.seats)
    # Users go back first. A is out where its place is B's now, or where Redis has forgotten that it was drained.
    if membership.not_serving(turn, old) and (wait := drain_old.put_back(turn)) is not None:
        return wait
    server = turn.upgrade.results.get("provision", {}).get("server", "")
    wait = membership.take_out(turn, new, server=server, serving=membership.names(old))
    return wait if wait is not None else Done(result={"out": [name for _, name in new]})
