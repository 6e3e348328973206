"""B runs, alone of all that was made for this upgrade, and its disk, memory and permissions are what A had or the fleet
file asks for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

from orchestrator.domain.fleet import Fleet, GuestChecks
from orchestrator.domain.plan import human
from orchestrator.domain.upgrade import Intent, Observe, Upgrade
from providers.guest import Facts, PathFacts
from tasks import cleaning
from tasks.step import Done, StepFailed, Wait
from tasks.world import Turn

# From here on ports are given by chance to who asks for any, and another server has others (Linux: documentation of
# ip_local_port_range).
BY_CHANCE = 32768
SLACK = 0.9  # of the asked memory: hypervisors and kernels keep some for themselves


def params(_turn: Turn) -> Mapping[str, Any]:
    return {}


def do(turn: Turn, _intent: Intent) -> Done | Wait:
    id = turn.upgrade.results["provision"]["server"]
    notes = dict(turn.upgrade.notes)
    if "address" not in notes:
        server = turn.look_at_server(id)
        if server is None or server.state == "pending":
            return starting(turn.fleet, id)
        if server.state != "running":
            raise StepFailed(f"server {id} is {server.state}: {server.reason or 'no reason given'}")
        # Not as soon as it is made: what a late call of an earlier attempt made shows by now, and those who wait
        # together look together.
        cleaning.end_others(turn, server=id, image=turn.upgrade.results["create_image"]["image"])
        notes |= {"address": server.address, "boot": server.boot}
    facts = _facts(turn, id)
    if facts is None:
        return _wait(turn.fleet, "guest", id, f"server {id} does not answer from inside yet", notes)
    if late := still_missing(facts, turn.fleet.checks.guest, old=turn.server.listening):
        return _wait(turn.fleet, "guest", id, f"server {id} is not ready inside: {'; '.join(late)}", notes)
    problems = compare(facts, turn.server.paths, turn.fleet)
    evidence = {"facts": asdict(facts)}
    if problems:
        raise StepFailed(f"server {id} is not fit: {'; '.join(problems)}", evidence)
    former = cleaning.ended(turn, "server", turn.upgrade.intents("provision")[:-1])
    return Done(result={"server": id, **notes, **evidence}, ledger=former)


def _facts(turn: Turn, id: str) -> Facts | None:
    """None where it does not answer, or is to be asked together with all others that wait for it."""
    seen = turn.upgrade.seen
    if seen is not None and seen.kind == "guest" and id in seen.answers:
        answer = seen.answers[id]
        return Facts(**{**answer, "paths": tuple(PathFacts(**path) for path in answer["paths"])})
    if turn.guest.caps.poll > 0 and "address" not in turn.upgrade.notes:
        return None
    return turn.guest.facts([id], paths=paths(turn.fleet)).get(id)


def starting(fleet: Fleet, id: str) -> Wait:
    """What a server that has just been made is looked at for, together with all others of its lane."""
    return _wait(fleet, "server", id, f"server {id} is starting", {})


def _wait(fleet: Fleet, kind: str, id: str, reason: str, notes: Mapping[str, Any]) -> Wait:
    observe = Observe(kind=kind, lane=fleet.lane, ids=(id,))
    return Wait(reason=reason, every=fleet.rollout.poll, observe=observe, notes=notes)


def paths(fleet: Fleet) -> list[str]:
    """Every path that the fleet file speaks of, to be looked at inside a server."""
    checks = fleet.checks.guest
    return sorted({rule.path for rule in checks.permissions} | set(checks.like_old))


def still_missing(facts: Facts, checks: GuestChecks, *, old: Collection[int]) -> list[str]:
    """What a server that has just booted may still come to, one line each; pure. `old`: where A has one listen."""
    missing = [f"nothing listens at port {port}" for port in checks.listening if port not in facts.listening]
    if checks.listening_like_old:
        asked = sorted(set(old) - set(checks.listening) - set(facts.listening))
        missing += [f"nothing listens at port {port}, and on A something did" for port in asked]
    if checks.clock is not None and abs(facts.clock_offset) > checks.clock:
        late = "behind" if facts.clock_offset < 0 else "ahead"
        missing.append(f"its clock is {abs(facts.clock_offset):.1f} s {late}")
    return missing


def compare(facts: Facts, old: tuple[Mapping[str, str], ...], fleet: Fleet) -> list[str]:
    """What is wrong with B, one line each; pure."""
    checks: GuestChecks = fleet.checks.guest
    size = fleet.target.size
    problems = []
    if facts.memory_total < size.memory * SLACK and not fleet.target.fallback:
        problems.append(f"memory is {human(facts.memory_total)}, asked for {human(size.memory)}")
    if facts.disk_total < size.disk * SLACK and not fleet.target.fallback:
        problems.append(f"disk is {human(facts.disk_total)}, asked for {human(size.disk)}")
    disk_free = facts.disk_total - facts.disk_used
    if disk_free < (checks.disk_free or 0):
        problems.append(f"{human(disk_free)} of disk are free, {human(checks.disk_free or 0)} wanted")
    memory_free = facts.memory_total - facts.memory_used
    if memory_free < (checks.memory_free or 0):
        problems.append(f"{human(memory_free)} of memory are free, {human(checks.memory_free or 0)} wanted")
    if facts.failed_units:
        problems.append(f"failed services: {', '.join(facts.failed_units[:5])}")
    found = {path.path: path for path in facts.paths}
    for rule in checks.permissions:
        wanted = {"mode": rule.mode, "owner": rule.owner, "group": rule.group}
        problems += _differs(found.get(rule.path), rule.path, wanted, "asked for")
    was = {path["path"]: path for path in old}
    for name in checks.like_old:
        if name in was:
            wanted = {what: was[name].get(what, "") for what in ("kind", "mode", "owner", "group")}
            problems += _differs(found.get(name), name, wanted, "A has")
    return problems


def _differs(found: PathFacts | None, path: str, wanted: Mapping[str, str | None], words: str) -> list[str]:
    if found is None or (found.kind == "missing" and wanted.get("kind") != "missing"):
        return [f"{path} is missing"]
    return [
        f"{path}: {what} is {getattr(found, what)}, {words} {value}"
        for what, value in wanted.items()
        if value and getattr(found, what) != value
    ]


def check(u: Upgrade) -> bool:
    assert u.seen is not None
    answers = u.seen.answers.values()
    if u.seen.kind == "guest":
        return bool(answers)
    return any(answer["state"] != "pending" for answer in answers)


def undo(_turn: Turn) -> Done | Wait:
    return Done()
