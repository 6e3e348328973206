"""I3, I4 and I8: what is there at the end is what the records say, made once, and owned by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from tests.checker.evidence import SKEW, Evidence, Line, Violation, ours

TERMINAL = ("upgraded", "rolled_back", "failed")


def ends_and_the_world_agrees(e: Evidence) -> Iterator[Violation]:
    """I3."""
    rollout = next(
        (line["now"] for line in reversed(e.audit) if not line["server"] and line["rollout"] == e.rollout), ""
    )
    for name in e.servers:
        record = e.records.get(name, {})
        state = record.get("state", "pending")
        if not _at_an_end(e, record, rollout):
            yield Violation(id="I3", where="records.json", says=f"{name} is {state}: it has not ended")
        if state in (*TERMINAL, "pending"):
            for what in (*_places(e, name, state), *_things(e, name, state, record)):
                yield Violation(id="I3", where="records.json", says=f"{name} is {state}: {what}")


def _at_an_end(e: Evidence, record: Mapping[str, Any], rollout: str) -> bool:
    """One that never began may stay so, where its rollout ended before its turn."""
    match record.get("state", "pending"):
        case "pending":
            return e.given_up or rollout in ("aborted", "rolled_back", "failed")
        case "held":
            return e.given_up and bool(record.get("why"))
        case state:
            return state in TERMINAL


def _places(e: Evidence, server: str, state: str) -> Iterator[str]:
    """What is wrong with its places in the balancer at the end."""
    lost = _lost(e, "lost")
    unpooled = {(i["pool"], i["id"]) for i in e.incidents if i["kind"] == "member lost" and "until" not in i}
    last = {line["pool"]: line["members"] for line in e.balancer}
    mine = {address: id for address, id in e.new_addresses.items() if e.server_of(id) == server}
    for pool in e.servers[server]["pools"]:
        members = last.get(pool, {})
        new = {name: member for name, member in members.items() if member["address"] in mine}
        seat = next((name for (where, name), whose in e.seats.items() if (where, whose) == (pool, server)), "")
        old = members.get(seat, {}).get("state", "absent")
        if state == "upgraded":
            places = {
                name
                for line in e.balancer
                for name, member in line["members"].items()
                if line["pool"] == pool and member["address"] in mine
            }
            excused = any(id in lost for id in mine.values()) or any((pool, name) in unpooled for name in places)
            if not any(member["state"] == "serving" for member in new.values()) and not excused:
                yield f"its B does not serve in {pool}"
            if old == "serving":
                yield f"its A still serves in {pool}"
            continue
        if old != "serving" and e.servers[server]["id"] not in lost and (pool, seat) not in unpooled:
            yield f"its A does not serve in {pool}, it is {old}"
        for name, member in sorted(new.items()):
            yield f"its B is still {member['state']} in {pool}, as {name}"


def _things(e: Evidence, server: str, state: str, record: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with its A and its B themselves. What a person has settled is that person's to end."""
    states = {thing["id"]: thing["state"] for thing in e.inventory}
    lost, a = _lost(e, "lost"), e.servers[server]["id"]
    if a not in lost and not record.get("by_hand"):
        wanted = ("terminated" if record.get("old_gone") else "stopped") if state == "upgraded" else "running"
        found = states.get(a, "terminated")
        if found != wanted:
            yield f"its A is {found}, not {wanted}"
    quarantined = {item.get("id") for item in e.ledger if item["state"] == "quarantined"}
    mine = {id for id in e.new_addresses.values() if e.server_of(id) == server}
    alive = sorted(id for id in mine - quarantined if states.get(id, "terminated") != "terminated")
    if len(alive) != (state == "upgraded") and not lost & mine:
        yield f"of the servers made for it {', '.join(alive) or 'none'} live"


def _lost(e: Evidence, *kinds: str) -> set[str]:
    """What others have ended, or made unknowable."""
    return {i["id"] for i in e.incidents if i["kind"] in kinds and "until" not in i}


# -- made once ---------------------------------------------------------------------------------------------------------


def once_and_in_the_ledger(e: Evidence) -> Iterator[Violation]:
    """I4."""
    tokens: Counter[str] = Counter()
    places: Counter[tuple[str, ...]] = Counter()
    for line in e.effects("ensure_image", "ensure_server"):
        tags = line.get("tags", {})
        place = tuple(tags.get(f"changeover:{what}", "") for what in ("rollout", "server", "step", "attempt"))
        tokens[line["token"]] += 1
        places[place] += 1
        if tokens[line["token"]] > 1:
            yield Violation(id="I4", where=line.where, says=f"{line['call']} has made a second thing of one token")
        elif places[place] > 1 and tags.get("changeover:managed") == "1":
            says = f"attempt {place[3]} at {place[2]} of {place[1]} has made a second thing, {line['id']}"
            yield Violation(id="I4", where=line.where, says=says)
        if tags.get("changeover:managed") != "1":
            says = f"{line['id']} was made without the tag by which it could be found again"
            yield Violation(id="I4", where=line.where, says=says)
    yield from _under_the_hands(e)
    yield from _ledger(e)


def _under_the_hands(e: Evidence) -> Iterator[Violation]:
    """Nothing is ended while the step is under way that makes it: an undo, and whoever collects, come after that."""
    for line in e.effects("delete_image", "terminate"):
        made = e.made.get(line["id"])
        if made is None or e.lost(line.at):
            continue
        server = e.server_of(line["id"])
        told = [entry["after"] for entry in e.entries(server) if entry["after"] and entry.at <= line.at + SKEW]
        intent = (told[-1].get("intent") or {}) if told else {}
        if intent.get("token") == made["token"]:
            says = f"{line['id']} of {server} was ended while {intent['step']} was under way, which made it"
            yield Violation(id="I4", where=line.where, says=says)


def _ledger(e: Evidence) -> Iterator[Violation]:
    """Settled: the ledger and the inventory tell the same story."""
    lost = _lost(e, "lost", "untagged")
    held = {name for name, record in e.records.items() if record.get("state") == "held" and e.given_up}
    alive = {thing["id"]: thing for thing in e.inventory if thing["state"] != "terminated"}
    items = {item["id"]: item for item in e.ledger if item.get("id")}
    by_key = {item["key"]: item for item in e.ledger}
    for id, thing in alive.items():
        if not ours(thing) or id in e.old or id in lost or e.server_of(id) in held:
            continue
        token = e.made[id]["token"] if id in e.made else ""
        item = by_key.get(f"{thing['kind']}:{token}") or items.get(id)
        if item is None or item["state"] in ("intended", "deleted"):
            state = "does not know it" if item is None else f"has it as {item['state']}"
            says = f"the {thing['kind']} {id} of {e.server_of(id)} is there and the ledger {state}: an orphan"
            yield Violation(id="I4", where=thing.where, says=says)
    for item in (item for item in e.ledger if item["server"] not in held):
        if item["state"] in ("live", "retained", "quarantined") and item.get("id") not in (*alive, *lost):
            says = f"the ledger has {item['key']} ({item.get('id', '')}) as {item['state']}, and it is not there"
            yield Violation(id="I4", where=item.where, says=says)
        if item["state"] == "intended":
            says = f"the ledger has {item['key']} as intended still: nobody has settled what became of it"
            yield Violation(id="I4", where=item.where, says=says)


# -- one owner ---------------------------------------------------------------------------------------------------------


def fences_rise(e: Evidence) -> Iterator[Violation]:
    """I8: no fence is given twice: whoever held it first may still live, and act."""
    last: dict[tuple[str, str], Line] = {}
    for line in e.claims:
        who = (line["rollout"], line["server"])
        before = last.get(who)
        if before is not None and line["fence"] <= before["fence"] and line["owner"] != before["owner"]:
            had = f"{before['owner']} had {before['fence']}"
            says = f"{line['owner']} got fence {line['fence']} of {line['server']}, {had}"
            yield Violation(id="I8", where=line.where, says=says)
        last[who] = line


def one_owner(e: Evidence) -> Iterator[Violation]:
    """I8: no two rollouts were open over one server at once, and no B belongs to two servers."""
    spans: dict[str, tuple[float, float, Line]] = {}
    servers: dict[str, set[str]] = {}
    for line in e.audit:
        if line["server"]:
            continue
        rollout, waves = line["rollout"], line["after"].get("waves", ())
        if rollout not in spans:
            spans[rollout] = (line.at, float("inf"), line)
            servers[rollout] = {name for wave in waves for name in wave}
        if line["after"].get("closed"):
            spans[rollout] = (spans[rollout][0], line.at, spans[rollout][2])
    known = sorted(spans, key=lambda rollout: spans[rollout][0])
    for place, first in enumerate(known):
        for second in known[place + 1 :]:
            both = servers[first] & servers[second]
            if both and spans[second][0] < spans[first][1] - SKEW:
                says = f"{second} took {', '.join(sorted(both))} while {first} was open over it"
                yield Violation(id="I8", where=spans[second][2].where, says=says)
    owners: dict[str, set[str]] = {}
    for name, record in e.records.items():
        made = record.get("results", {}).get("provision", {}).get("server")
        if made:
            owners.setdefault(made, set()).add(name)
    for id, names in sorted(owners.items()):
        if len(names) > 1:
            yield Violation(id="I8", where="records.json", says=f"{id} is B of {' and of '.join(sorted(names))}")
