"""I1, I2, I7 and I9: who is in rotation, since when, and with what right."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.checker.evidence import SKEW, Evidence, Line, Violation

SHOWN = 20  # failed requests that are told one by one


def enough_serve(e: Evidence) -> Iterator[Violation]:
    """I1, in the balancer's view and in that of clients."""
    seen: set[str] = set()
    few: set[str] = set()
    for line in e.balancer:
        pool = line["pool"]
        seen.add(pool)
        serving = [name for name, member in line["members"].items() if member["state"] == "serving"]
        least = int(e.plan["pools"][pool]["min_healthy"]) - _taken(e, line)
        if len(serving) < least and pool not in few:
            says = f"{len(serving)} of the {least} that are wanted serve in {pool}: {_views(line)}"
            yield Violation(id="I1", where=_moment(line), says=says)
        few = few | {pool} if len(serving) < least else few - {pool}
    for pool in sorted(set(e.plan["pools"]) - seen):
        yield Violation(id="I1", where="balancer.jsonl", says=f"nobody has looked at {pool}")
    yield from _ended_in_rotation(e)
    failed = [line for line in e.traffic if _failed(line) and not _down(e, line)]
    for line in failed[:SHOWN]:
        yield Violation(id="I1", where=_moment(line), says=_refusal(line))
    if len(failed) > SHOWN:
        yield Violation(id="I1", where="traffic.jsonl", says=f"and {len(failed) - SHOWN} more requests failed")


def _ended_in_rotation(e: Evidence) -> Iterator[Violation]:
    """Who is stopped or terminated while users are sent to it."""
    times = {pool: [line.at for line in e.balancer if line["pool"] == pool] for pool in e.plan["pools"]}
    views = {pool: [line for line in e.balancer if line["pool"] == pool] for pool in e.plan["pools"]}
    left = list(e.effects("remove"))
    addresses = {id: address for address, id in e.new_addresses.items()}
    addresses |= {id: address for address, server in e.old_addresses.items() for id, s in e.old.items() if s == server}
    for line in e.effects("stop", "terminate"):
        address = addresses.get(line["id"], "")
        for pool, lines in views.items():
            before = lines[: bisect_left(times[pool], line.at)][-1:]
            serving = [
                name
                for view in before
                for name, member in view["members"].items()
                if member["address"] == address and member["state"] == "serving"
                if not any(r["pool"] == pool and r["id"] == name and view.at <= r.at <= line.at for r in left)
            ]
            for name in serving:
                says = f"{line['call']} of {line['id']} while users are sent to it, as {name} in {pool}"
                yield Violation(id="I1", where=_moment(line), says=says)


def _taken(e: Evidence, line: Line) -> int:
    """How many that would be there others than the product have taken away: those who do not serve now."""
    members = line["members"]
    gone: set[str] = set()
    for incident in e.incidents:
        if incident["kind"] not in ("lost", "rebooted", "member lost") or incident.at > line.at + SKEW:
            continue
        if line.at > incident.get("until", float("inf")):
            continue
        if incident["kind"] == "member lost":
            gone |= {incident["id"]} if incident["pool"] == line["pool"] else set()
            continue
        address = _address(e, incident["id"])
        names = {name for name, member in members.items() if member["address"] == address}
        seat = e.plan["pools"][line["pool"]]["members"]
        gone |= names or {name for name, member in seat.items() if member["address"] == address}
    return sum(members.get(name, {}).get("state") != "serving" for name in gone)


def _address(e: Evidence, id: str) -> str:
    if id in e.made:
        return str(e.made[id].get("address", ""))
    server = e.old.get(id, id)
    return next((address for address, whose in e.old_addresses.items() if whose == server), "")


def _views(line: Line) -> str:
    return ", ".join(f"{name} {member['state']}" for name, member in sorted(line["members"].items())) or "nobody"


def _moment(line: Line) -> str:
    return f"{line.where} at {line.at:.3f}"


def _failed(line: Line) -> bool:
    return int(line["status"]) == 0 or int(line["status"]) >= 500


def _down(e: Evidence, line: Line) -> bool:
    return any(i.at <= line.at <= i["until"] for i in e.incidents if i["kind"] == "control plane down")


def _refusal(line: Line) -> str:
    by = f" by {line['served_by']}" if line.get("served_by") else ""
    answer = f"answered {line['status']}{by}" if line["status"] else "got no answer"
    return f"the user's request {line['id']} to {line['pool']} {answer}"


def goes_on_without_us(e: Evidence) -> Iterator[Violation]:
    """I9."""
    for incident in e.incidents:
        if incident["kind"] != "control plane down":
            continue
        during = [line for line in e.traffic if incident.at <= line.at <= incident["until"]]
        failed = [line for line in during if _failed(line)]
        for line in failed[:SHOWN]:
            yield Violation(id="I9", where=_moment(line), says=f"{_refusal(line)}, with the control plane down")
        if not during and e.traffic:
            says = "nobody asked for anything while the control plane was down: it proves nothing"
            yield Violation(id="I9", where=incident.where, says=says)


# -- B ----------------------------------------------------------------------------------------------------------------

IN = ("serving", "joining", "down")  # states of a member that gets users as soon as it answers its checks


@dataclass
class Stay:
    """One time of an address in a pool: since when it is there, and since when it serves."""

    pool: str
    member: str
    came: Line
    served: float | None = None
    left: float = float("inf")


@dataclass
class Stays:
    """All stays by address, in time's order."""

    by_address: dict[str, list[Stay]] = field(default_factory=dict)

    @classmethod
    def of(cls, e: Evidence) -> Stays:
        found = cls()
        open_now: dict[tuple[str, str], Stay] = {}
        for line in e.balancer:
            present: Mapping[str, Any] = line["members"]
            here = {(line["pool"], m["address"]): (name, m["state"]) for name, m in present.items()}
            for key in [key for key in open_now if key[0] == line["pool"] and key not in here]:
                open_now.pop(key).left = line.at
            for key, (name, state) in here.items():
                stay = open_now.get(key)
                if stay is None and state in IN:
                    stay = open_now[key] = Stay(pool=key[0], member=name, came=line)
                    found.by_address.setdefault(key[1], []).append(stay)
                if stay is not None and stay.served is None and state == "serving":
                    stay.served = line.at
        return found


def smoked_before_they_enter(e: Evidence) -> Iterator[Violation]:
    """I2."""
    probes: dict[tuple[str, str], list[Line]] = {}
    for line in e.probes:
        probes.setdefault((line["address"], str(line["boot"])), []).append(line)
    added = {(i["pool"], i["id"]) for i in e.incidents if i["kind"] == "member added"}
    for address, stays in Stays.of(e).by_address.items():
        if address in e.old_addresses:
            continue
        id = e.new_addresses.get(address)
        for stay in stays:
            if (stay.pool, stay.member) in added:
                continue
            if id is None:
                says = f"{stay.member} ({address}) in {stay.pool} is no server of the plan, nor made for one"
                yield Violation(id="I2", where=_moment(stay.came), says=says)
                continue
            boot = _boot(e, id, stay.came.at)
            if why := _unproven(e, id, probes.get((address, boot), []), stay.came.at):
                says = f"{id} (boot {boot}) came into {stay.pool} as {stay.member}: {why}"
                yield Violation(id="I2", where=_moment(stay.came), says=says)


def _boot(e: Evidence, id: str, at: float) -> str:
    """Its boot at that moment: a creation, each start, and whoever saw it start by itself, tell it."""
    boots = [
        line for line in (*e.cloud, *e.incidents) if line.get("id") == id and line.get("boot") and line.at <= at + SKEW
    ]
    return str(max(boots, key=lambda line: line.at)["boot"]) if boots else ""


def _unproven(e: Evidence, id: str, probes: list[Line], at: float) -> str:
    """What is missing of its smoke test at that moment; empty if nothing.

    A failed round counts only if the log tells of it: what a worker heard and died with cannot be held against the
    next one, which asks as often as it must by what it knows."""
    asked = probes[: bisect_right([line.at for line in probes], at + SKEW)]
    server = e.server_of(id)
    wanted = int(e.plan["smoke_passes"]) * int(e.servers.get(server, {}).get("smoke_requests", 1))
    run = 0
    for place, line in enumerate(asked):
        until = asked[place + 1].at if place + 1 < len(asked) else at
        if line["passed"]:
            run += 1
        elif _told(e, server, line.at, until):
            run = 0
    if not asked:
        return "no smoke test had been made of it"
    if run < wanted or not asked[-1]["passed"]:
        return f"of {len(asked)} requests the last {run} had passed, {wanted} in a row are wanted"
    if asked[-1].at < at - float(e.plan["smoke_fresh_seconds"]) - SKEW:
        return f"its smoke test was {at - asked[-1].at:.0f} s old"
    return ""


def _told(e: Evidence, server: str, since: float, until: float) -> bool:
    return any(
        since - SKEW <= line.at <= until + SKEW
        and line["event"] == "Waits"
        and line["detail"].get("notes", {}).get("last")
        for line in e.entries(server)
    )


# -- A ----------------------------------------------------------------------------------------------------------------


def old_ones_leave_late(e: Evidence) -> Iterator[Violation]:
    """I7."""
    stays = Stays.of(e)
    soak, retain = float(e.plan["soak_seconds"]), float(e.plan["retain_seconds"])
    stopped: dict[str, float] = {}
    lost = {i["id"] for i in e.incidents if i["kind"] == "lost"}
    for line in e.cloud:
        if not line["effect"]:
            if line["call"] == "stop" and line["outcome"] == "done":  # somebody else had been there before
                stopped.setdefault(e.old.get(line["id"], ""), line.at)
            continue
        server = _old_one(e, line)
        if server not in e.servers:
            continue
        if line["call"] in ("remove", "stop"):
            pools = [line["pool"]] if line.get("pool") else e.servers[server]["pools"]
            for pool in pools:
                since = _serves_since(e, stays, server, pool, line.at)
                if since is None:
                    says = f"{line['call']} of A of {server} while no B of it serves in {pool}"
                    yield Violation(id="I7", where=_moment(line), says=says)
                elif line.at - since < soak - SKEW and not _has_left(e, server, line.at):
                    says = f"{line['call']} of A of {server} after B had served {line.at - since:.3f} s of {soak:g}"
                    yield Violation(id="I7", where=_moment(line), says=says)
        match line["call"]:
            case "stop":
                stopped[server] = line.at
            case "start":
                stopped.pop(server, None)
            case "terminate" if server not in stopped and line["id"] not in lost:
                says = f"A of {server} is terminated without having been stopped and kept"
                yield Violation(id="I7", where=_moment(line), says=says)
            case "terminate" if line.at - stopped.get(server, 0.0) < retain - SKEW:
                says = f"A of {server} is terminated {line.at - stopped[server]:.3f} s after its stop, not {retain:g}"
                yield Violation(id="I7", where=_moment(line), says=says)


def _has_left(e: Evidence, server: str, at: float) -> bool:
    """Whether A had left as it must before, and was only put in once more by somebody."""
    before = [entry["now"] for entry in e.entries(server) if entry.at <= at]
    return before[-1:] == ["upgraded"]


def _old_one(e: Evidence, line: Line) -> str:
    """The server whose A it is about; empty if it is about something else."""
    if not line.get("pool"):
        return e.old.get(line["id"], "")
    return "" if line.get("address", "") in e.new_addresses else e.seats.get((line["pool"], line["id"]), "")


def _serves_since(e: Evidence, stays: Stays, server: str, pool: str, at: float) -> float | None:
    """Since when a B of that server serves in the pool; None if none does at that moment."""
    views = [line for line in e.balancer if line["pool"] == pool and line.at <= at]
    serving = {m["address"] for view in views[-1:] for m in view["members"].values() if m["state"] == "serving"}
    since = [
        stay.served
        for address, id in e.new_addresses.items()
        if e.server_of(id) == server and address in serving
        for stay in stays.by_address.get(address, [])
        if stay.pool == pool and stay.served is not None and stay.served <= at + SKEW and stay.left >= at
    ]
    return min(since, default=None)
