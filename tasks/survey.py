"""Reads the world for a plan, a doctor or a settlement, since only workers may talk to it. Changes nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, cast

from orchestrator.domain.fleet import Fleet, FleetServer
from orchestrator.domain.plan import FoundPool, FoundServer, Seat, Survey, generation, next_generation, seats_of
from orchestrator.domain.rebuild import Findings, Found, Place
from orchestrator.domain.settlement import SeenMember, SeenThing, Whereabouts
from orchestrator.domain.upgrade import Side
from orchestrator.errors import UnsafeStore
from providers import Finding
from providers.compute import Image, Server, Size
from providers.errors import ProviderError, Refused
from providers.guest import Facts
from providers.rights import Rights, policies
from providers.traffic import MemberView, PoolCounters, Traffic
from tasks import keys
from tasks.poll_readiness import BY_CHANCE, paths
from tasks.world import World, read_fleet

BATCH = 100
KEEP = 300.0  # seconds that an answer which nobody reads is kept: whoever has read it forgets it
_ATTEMPT = re.compile(r"[0-9]{1,9}\Z")
REMEMBERED = (("provision", "server"), ("create_image", "image"))  # where a record keeps what was made


def survey(world: World, *, request: str, fleet: Mapping[str, Any]) -> Mapping[str, Any]:
    """The answer is a document of kind `survey` under the request's id: ok with a survey, or not with an error."""
    return _answer(world, "survey", request, lambda: {"survey": asdict(look(world, read_fleet(fleet)))})


def doctor(world: World, *, request: str, fleet: Mapping[str, Any]) -> Mapping[str, Any]:
    """Checks, and what policies the credentials of the workers need."""
    whole = read_fleet(fleet)
    return _answer(
        world, "doctor", request, lambda: {"checks": examine(world, whole), "policies": needed(world, whole)}
    )


def findings(world: World, *, request: str, fleet: Mapping[str, Any]) -> Mapping[str, Any]:
    """All that the world says of a rollout of this fleet, for a Redis that knows nothing."""
    return _answer(world, "findings", request, lambda: {"findings": asdict(read(world, read_fleet(fleet)))})


def read(world: World, fleet: Fleet) -> Findings:
    traffic = world.traffic(fleet)
    old: dict[str, Server] = {}
    marked: list[Found] = []
    for at in fleet.places:
        compute = world.compute(at)
        for batch in _batched([at.id_of(server) for server in at.servers]):
            old |= compute.servers(batch)
        marked += [_found(thing) for thing in compute.inventory({keys.MANAGED: "1"})]
    places: list[Place] = []
    unread: list[str] = []
    for pool in sorted(fleet.traffic.pools):
        try:
            places += [
                Place(pool=pool, name=view.name, address=view.address, port=view.port, state=view.state)
                for view in traffic.members(pool)
            ]
        except ProviderError as error:
            unread.append(f"{pool}: {error}")
    return Findings(
        survey=look(world, fleet),
        marked=tuple(marked),
        old=tuple(_found(server) for server in old.values()),
        places=tuple(places),
        unread=tuple(unread),
    )


def _found(thing: Server | Image) -> Found:
    tags = thing.tags
    attempt = tags.get(keys.ATTEMPT, "0")
    found = Found(
        kind="server" if isinstance(thing, Server) else "image",
        id=thing.id,
        name=thing.name,
        state=thing.state,
        rollout=tags.get(keys.ROLLOUT, ""),
        server=tags.get(keys.SERVER, ""),
        attempt=int(attempt) if _ATTEMPT.match(attempt) else 0,  # anybody may have written a tag
        undoing=tags.get(keys.UNDOING, ""),
        disposable=tags.get(keys.DISPOSABLE) == "1",
        quarantined=tags.get(keys.PHASE) == keys.QUARANTINE,
    )
    if isinstance(thing, Image):
        return replace(found, disk=thing.disk)
    size = thing.size
    return replace(found, address=thing.address, boot=thing.boot, memory=size.memory, disk=size.disk)


def whereabouts(world: World, *, request: str, rollout: str, server: str) -> Mapping[str, Any]:
    """Where A and B of this upgrade are: in the balancers' own view, and at the provider."""
    return _answer(world, "whereabouts", request, lambda: {"seen": asdict(find(world, rollout, server))})


def find(world: World, rollout: str, server: str) -> Whereabouts:
    spec = world.spec(rollout)
    fleet, old = spec.at(server), spec.plan.server(server)
    compute, traffic = world.compute(fleet), world.traffic(fleet)
    row = world.store.row(rollout, server)
    lives = row.upgrade.life if row is not None else 1
    names = {(seat.pool, seat.name): "old" for seat in old.seats}
    # A B of every life: an earlier one may have been left in a pool.
    names |= {(seat.pool, generation(seat.new_name, life)): "new" for seat in old.seats for life in range(lives)}
    members = [
        SeenMember(side=cast(Side, names[key]), pool=key[0], name=key[1], state=view.state, detail=view.detail)
        for key, view in traffic.proven(list(names)).items()
    ]
    made = compute.inventory({keys.ROLLOUT: rollout, keys.SERVER: server})
    things = [
        SeenThing(side="new", kind="server" if isinstance(thing, Server) else "image", id=thing.id, state=thing.state)
        for thing in made
        if thing.id != old.id
    ]
    known = row.upgrade.results if row is not None else {}
    new, image = (str(known.get(step, {}).get(field, "")) for step, field in REMEMBERED)
    listed = {thing.id for thing in things}
    servers = compute.servers([id for id in (old.id, new) if id])
    things.append(SeenThing(side="old", kind="server", id=old.id, state=_state(servers.get(old.id))))
    if new and new not in listed:  # tags may show late, or have been taken off
        things.append(SeenThing(side="new", kind="server", id=new, state=_state(servers.get(new))))
    if image and image not in listed:
        found = compute.images([image]).get(image)
        things.append(SeenThing(side="new", kind="image", id=image, state=_state(found)))
    return Whereabouts(members=tuple(members), things=tuple(things))


def _state(found: Server | Image | None) -> str:
    return found.state if found is not None else "gone"


def _answer(world: World, kind: str, request: str, make: Any) -> Mapping[str, Any]:
    try:
        body = {"ok": True, **make()}
    except ProviderError as error:
        body = {"ok": False, "error": str(error), "refused": isinstance(error, Refused)}
    world.store.put_document(kind, request, body, ttl=KEEP)
    return {"ok": body["ok"]}


def look(world: World, fleet: Fleet) -> Survey:
    """How the world is now, for these servers and pools. Raises `ProviderError` when it cannot be read."""
    pools, members = _pools(world, fleet)
    found: dict[str, FoundServer] = {}
    notes: list[str] = list(world.traffic(fleet).caps.notes)
    strangers: list[str] = []
    if fleet.quiesce is not None:
        notes.append(
            f"quiesce: a server writes nothing while its image begins, for {fleet.quiesce.timeout:g} s at most"
        )
    for at in fleet.places:
        found |= _servers(world, at, members)
        compute = world.compute(at)
        notes += [note for note in compute.caps.notes if note not in notes]
        made = compute.inventory({keys.MANAGED: "1"})
        strangers += _strangers(world, at, made)
        stands = {server.name: found[server.name] for server in at.servers if found[server.name].state != "running"}
        found |= _replaced(world, stands, made)
    return Survey(
        at=world.store.now(),
        servers=tuple(found[server.name] for server in fleet.servers),
        pools=tuple(pools),
        caveats=tuple(notes),
        strangers=tuple(strangers),
    )


def _pools(world: World, fleet: Fleet) -> tuple[list[FoundPool], Mapping[str, Sequence[MemberView]]]:
    traffic = world.traffic(fleet)
    pools: list[FoundPool] = []
    members: dict[str, Sequence[MemberView]] = {}
    for pool in sorted(fleet.traffic.pools):
        try:
            members[pool] = traffic.members(pool)
            up = sum(view.state == "serving" for view in members[pool])
            counted = traffic.counters(pool) or PoolCounters(requests=0, failed=0, epoch="")
            pools.append(FoundPool(pool=pool, lane=traffic.lane(pool), serving=up, **asdict(counted)))
        except ProviderError as error:
            members[pool] = ()
            pools.append(FoundPool(pool=pool, lane="", serving=0, problem=str(error)))
    return pools, members


def _servers(world: World, fleet: Fleet, members: Mapping[str, Sequence[MemberView]]) -> dict[str, FoundServer]:
    """By name, of a fleet in one place."""
    compute, guest = world.compute(fleet), world.guest(fleet)
    recipe = compute.recipe()
    servers: dict[str, Server] = {}
    facts: dict[str, Facts] = {}
    obstacles: dict[str, Sequence[str]] = {}
    sizes = _sizes(fleet)
    for batch in _batched([fleet.id_of(server) for server in fleet.servers]):
        servers |= compute.servers(batch)
        obstacles |= compute.obstacles(batch, sizes=sizes)
        running = [id for id in batch if id in servers and servers[id].state == "running"]
        facts |= guest.facts(running, paths=paths(fleet))
    running = [id for id in servers if servers[id].state == "running"]
    if running and (wrong := _subnets(world, fleet, running[0])):  # the same for all: the first of them is told
        obstacles = {**obstacles, running[0]: [*obstacles.get(running[0], ()), *wrong]}
    addresses = sorted(server.address for server in servers.values() if server.address)
    elsewhere = _elsewhere(world.traffic(fleet), addresses)
    there = {pool: members[pool] for pool in fleet.traffic.pools}  # another place may use the same addresses
    return {
        spec.name: replace(
            _server(
                spec,
                fleet,
                servers.get(fleet.id_of(spec)),
                facts.get(fleet.id_of(spec)),
                there,
                obstacles.get(fleet.id_of(spec), ()),
                elsewhere,
            ),
            recipe=recipe,
        )
        for spec in fleet.servers
    }


def _subnets(world: World, fleet: Fleet, like: str) -> list[str]:
    """What is wrong with the subnets that the file names for servers like that one."""
    target = fleet.target
    if not target.subnets:
        return []
    try:
        found = world.compute(fleet).subnets(like, among=target.subnets)
    except Refused as error:
        return [str(error)]
    if not found:
        return [f"the provider {fleet.provider.name} knows no subnets: leave target.subnets out"]
    zones = {each.zone: each.id for each in found if each.zone != found[0].zone} if target.zones == "any" else {}
    return [
        f"the subnet {id}: {why}"
        for zone, id in zones.items()
        for pool in sorted(fleet.traffic.pools)
        if (why := world.traffic(fleet).reaches(pool, zone))
    ]


def _sizes(fleet: Fleet) -> list[Size]:
    return [Size(memory=each.memory, disk=each.disk, type=each.type or "") for each in fleet.target.sizes]


def _strangers(world: World, fleet: Fleet, made: Sequence[Server | Image]) -> list[str]:
    """Another control plane is at work on these servers, or this Redis has lost what it knew: whoever began anew would
    make a second B beside one that may have users."""
    names = {server.name for server in fleet.servers}
    ours = {fleet.id_of(server) for server in fleet.servers}
    known: dict[str, bool] = {}
    lines = []
    for thing in made:
        rollout, name = thing.tags.get(keys.ROLLOUT, ""), thing.tags.get(keys.SERVER, "")
        if not isinstance(thing, Server) or thing.id in ours or name not in names or thing.state == "terminated":
            continue
        if thing.tags.get(keys.PHASE) == keys.QUARANTINE:
            continue
        if rollout not in known:
            known[rollout] = _known(world, rollout)
        if not known[rollout]:
            lines.append(
                f"{name}: the server {thing.id} was made for it by the rollout {rollout}, of which this Redis knows "
                "nothing: it may be serving users. If it was lost: changeover rebuild FILE; if you have looked, and no "
                f"balancer sends users to it: changeover gc --foreign --yes --only {thing.id}"
            )
    return sorted(lines)


def _replaced(
    world: World, stands: Mapping[str, FoundServer], made: Sequence[Server | Image]
) -> dict[str, FoundServer]:
    """Those of them that a rollout has replaced, though the file still names the old one."""
    found: dict[str, FoundServer] = {}
    for thing in made:
        rollout, old = thing.tags.get(keys.ROLLOUT, ""), stands.get(thing.tags.get(keys.SERVER, ""))
        if not isinstance(thing, Server) or thing.state != "running" or old is None:
            continue
        try:
            row = world.store.row(rollout, old.name)
        except UnsafeStore:
            continue
        # Anybody may have written tags: the record knows whether it was that one.
        step, field = REMEMBERED[0]
        if row and row.upgrade.state == "upgraded" and row.upgrade.results.get(step, {}).get(field) == thing.id:
            why = f"{old.id} is its old server: the rollout {rollout} has put {thing.id} in its place"
            found[old.name] = replace(old, problem=f"{why}; name that in the fleet file")
    return found


def _known(world: World, rollout: str) -> bool:
    try:
        return world.store.rollout(rollout) is not None
    except UnsafeStore:
        return True  # it is there, and cannot be read


def _batched(ids: Sequence[str]) -> Sequence[Sequence[str]]:
    return [ids[start : start + BATCH] for start in range(0, len(ids), BATCH)]


def _server(
    spec: FleetServer,
    fleet: Fleet,
    server: Server | None,
    facts: Facts | None,
    members: Mapping[str, Sequence[MemberView]],
    obstacles: Sequence[str],
    elsewhere: Mapping[str, Sequence[str]],
) -> FoundServer:
    id = fleet.id_of(spec)
    if server is None:
        return FoundServer(name=spec.name, id=id, problem=f"there is no server {id} at {fleet.lane}")
    seats = []
    problem = "" if server.state == "running" else f"server {id} is {server.state}: it cannot be imaged while it serves"
    if not problem and obstacles:
        problem = "; ".join(obstacles)
    if not problem and facts is None:
        problem = f"server {id} does not answer from inside"
    if not problem and (more := _not_its_own(spec, server, members, elsewhere)):
        problem = (
            f"users are sent to it by {more} too, of which the fleet file says nothing: name it there, or end that"
        )
    taken = {view.name for pool in spec.pools for view in members[pool]}  # one name is to do for all its pools
    for pool, port in seats_of(spec, fleet):
        view = next((v for v in members[pool] if (v.address, v.port) == (server.address, port)), None)
        if view is None:
            problem = problem or f"{server.address}:{port} is not a member of pool {pool}"
            continue
        if view.state != "serving":
            problem = problem or f"it is {view.state} in pool {pool} ({view.detail}): only what serves can be replaced"
        seats.append(
            Seat(
                pool=pool,
                name=view.name,
                new_name=next_generation(view.name, spec.name, taken),
                address=server.address,
                port=port,
                state=view.state,
            )
        )
    if not problem and (more := _not_its_own(spec, server, members, elsewhere)):
        problem = (
            f"users are sent to it by {more} too, of which the fleet file says nothing: name it there, or end that"
        )
    return FoundServer(
        name=spec.name,
        id=id,
        address=server.address,
        state=server.state,
        memory=server.size.memory,
        disk=server.size.disk,
        memory_used=facts.memory_used if facts else 0,
        disk_used=facts.disk_used if facts else 0,
        paths=tuple({k: str(v) for k, v in asdict(path).items()} for path in facts.paths) if facts else (),
        listening=tuple(port for port in facts.listening if port < BY_CHANCE) if facts else (),
        seats=tuple(seats),
        problem=problem,
    )


def _elsewhere(traffic: Traffic, addresses: Sequence[str]) -> Mapping[str, Sequence[str]]:
    try:
        return traffic.elsewhere(addresses) if addresses else {}
    except ProviderError as error:  # then nobody knows, and no server may be stopped
        return dict.fromkeys(addresses, (f"what cannot be looked through ({error})",))


def _not_its_own(
    spec: FleetServer,
    server: Server,
    members: Mapping[str, Sequence[MemberView]],
    elsewhere: Mapping[str, Sequence[str]],
) -> str:
    """Where else users are sent to it, than the file says: they would lose it when it stops."""
    more = [
        f"pool {pool}"
        for pool, views in sorted(members.items())
        for view in views
        if pool not in spec.pools and view.address == server.address and view.state in ("serving", "down")
    ]
    return ", ".join([*more, *elsewhere.get(server.address, ())])


def needed(world: World, fleet: Fleet) -> list[Mapping[str, Any]]:
    """`who` and `policy` for each whose credentials the providers of this fleet use."""
    rights: list[Rights] = []
    for at in fleet.places:
        rights += world.compute(at).rights([at.id_of(server) for server in at.servers], fleet=fleet.fleet)
        rights += world.guest(at).rights(fleet=fleet.fleet)
    return policies([*rights, *world.traffic(fleet).rights(fleet=fleet.fleet)])


def examine(world: World, fleet: Fleet) -> list[Mapping[str, Any]]:
    """A doctor's checks: name, ok, detail, and how to mend it."""
    beyond: list[Finding] = []
    for at in fleet.places:
        ids = [at.id_of(server) for server in at.servers]
        beyond += world.compute(at).examine(
            ids, sizes=_sizes(at), at_once=at.rollout.max_in_flight, among=at.target.subnets
        )
        beyond += world.guest(at).examine(ids)
    beyond += world.traffic(fleet).examine()
    told = [asdict(finding) for finding in beyond]
    try:
        return [*_seen(fleet, look(world, fleet)), *told]
    except ProviderError as error:  # last: what was told before may be why
        unseen = {"name": f"{fleet.provider.name}: servers", "ok": False, "detail": str(error), "fix": ""}
        return [*told, unseen]


def _seen(fleet: Fleet, found: Survey) -> list[Mapping[str, Any]]:
    """What a plan's look says to a doctor."""
    ill = [server for server in found.servers if server.problem]
    checks: list[Mapping[str, Any]] = []
    if found.strangers:  # first: what they make of servers and pools is not to be mended, but to be known again
        lost = {"name": "rollouts", "ok": False, "detail": "; ".join(found.strangers[:5])}
        checks.append({**lost, "fix": "changeover rebuild FILE, which only looks unless --yes"})
    checks.append(
        {
            "name": f"{fleet.provider.name}: servers",
            "ok": not ill,
            "detail": "; ".join(f"{s.name}: {s.problem}" for s in ill[:5]) or f"{len(found.servers)} run and answer",
            "fix": "mend them, or leave them out of the fleet file" if ill else "",
        }
    )
    for pool in found.pools:
        least = fleet.traffic.pools[pool.pool].min_healthy
        ok = not pool.problem and pool.serving >= least
        checks.append(
            {
                "name": f"pool {pool.pool}",
                "ok": ok,
                "detail": pool.problem or f"{pool.serving} serve, min_healthy is {least}",
                "fix": "" if ok else "bring members up, or lower min_healthy",
            }
        )
    return checks
