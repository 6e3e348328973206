"""I3, I4 and I8: what is there at the end is what the records say, made once, and owned by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tests.checker.evidence import SKEW, Evidence, Line, Violation, ours

TERMINAL = ("upgraded", "rolled_back", "failed")


def ends_and_the_world_agrees(e: Evidence) -> Iterator[Violation]:
    """I3."""
    last = {line["pool"]: line for line in e.balancer}
    things = {thing["id"]: thing for thing in e.inventory}
    lost = {i["id"] for i in e.incidents if i["kind"] == "server lost" and "until" not in i}
    unpooled = {(i["pool"], i["id"]) for i in e.incidents if i["kind"] == "member lost" and "until" not in i}
    ended = [line["now"] for line in e.audit if not line["server"] and line["rollout"] == e.rollout][-1:]
    for name, server in e.servers.items():
        record = e.records.get(name, {})
        state = record.get("state", "pending")
        says: list[str] = []
        if state not in TERMINAL and not (state == "pending" and ended in (["aborted"], ["rolled_back"], ["failed"])):
            says.append(f"it has not ended: it is {state}")
        bs = {address: id for address, id in e.new_addresses.items() if e.server_of(id) == name}
        for pool in server["pools"]:
            line = last.get(pool, Line(members={}, at=0.0))
            there = {m["address"]: m["state"] for m in line["members"].values()}
            new = {bs[address]: view for address, view in there.items() if address in bs}
            a_view = next((v for m, v in _old_views(e, pool, name, line) if (pool, m) not in unpooled), "")
            if state == "upgraded":
                if "serving" not in new.values() and not lost & set(new):
                    says.append(f"its B does not serve in {pool}")
                if a_view == "serving":
                    says.append(f"its A still serves in {pool}")
            elif state in TERMINAL or state == "pending":
                if a_view != "serving" and server["id"] not in lost:
                    says.append(f"its A does not serve in {pool} ({a_view or 'absent'})")
                if new:
                    says.append(f"its B is still {', '.join(new.values())} in {pool}")
        old = things.get(server["id"], Line(state="terminated"))["state"]
        if server["id"] not in lost:
            says += _of_old(state, old, gone=record.get("old_gone", False))
        alive = sorted(id for id in bs.values() if id in things and things[id]["state"] != "terminated")
        if state == "upgraded" and len(alive) != 1 and not lost & set(bs.values()):
            says.append(f"{len(alive)} servers made for it are left: {', '.join(alive) or 'none'}")
        if state != "upgraded" and state in TERMINAL and alive:
            says.append(f"servers made for it are left: {', '.join(alive)}")
        for what in says:
            yield Violation(id="I3", where="records.json", says=f"{name} is {state}: {what}")


def _old_views(e: Evidence, pool: str, server: str, line: Line) -> Iterator[tuple[str, str]]:
    """The seat that A had in the pool before, and its state now."""
    for member, seat in e.plan["pools"][pool]["members"].items():
        if e.seats[pool, member] == server:
            now = line["members"].get(member)
            yield member, now["state"] if now and now["address"] == seat["address"] else ""


def _of_old(state: str, old: str, *, gone: bool) -> list[str]:
    match state:
        case "upgraded" if gone and old != "terminated":
            return [f"its A was to be terminated, and is {old}"]
        case "upgraded" if not gone and old != "stopped":
            return [f"its A was to be kept stopped, and is {old}"]
        case "rolled_back" | "failed" | "pending" if old != "running":
            return [f"its A is {old}"]
    return []


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
    yield from _ledger(e)


def _ledger(e: Evidence) -> Iterator[Violation]:
    """Settled: the ledger and the inventory tell the same story."""
    lost = {i["id"] for i in e.incidents if i["kind"] == "server lost"}
    alive = {thing["id"]: thing for thing in e.inventory if thing["state"] != "terminated"}
    items = {item["id"]: item for item in e.ledger if item.get("id")}
    by_key = {item["key"]: item for item in e.ledger}
    for id, thing in alive.items():
        if not ours(thing) or id in e.old:
            continue
        token = e.made[id]["token"] if id in e.made else ""
        item = by_key.get(f"{thing['kind']}:{token}") or items.get(id)
        if item is None or item["state"] in ("intended", "deleted"):
            state = "does not know it" if item is None else f"has it as {item['state']}"
            says = f"the {thing['kind']} {id} of {e.server_of(id)} is there and the ledger {state}: an orphan"
            yield Violation(id="I4", where=thing.where, says=says)
    for item in e.ledger:
        if item["state"] in ("live", "retained", "quarantined") and item.get("id") not in (*alive, *lost):
            says = f"the ledger has {item['key']} ({item.get('id', '')}) as {item['state']}, and it is not there"
            yield Violation(id="I4", where=item.where, says=says)
        if item["state"] == "intended":
            says = f"the ledger has {item['key']} as intended still: nobody has settled what became of it"
            yield Violation(id="I4", where=item.where, says=says)


# -- one owner ---------------------------------------------------------------------------------------------------------


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
