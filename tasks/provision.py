"""B, bigger, made of A's image and configured like A."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.domain.upgrade import Intent, Upgrade
from orchestrator.store import LedgerItem
from providers.compute import Size, Subnet
from providers.errors import NoCapacity, NotFound, ProviderError, Refused
from tasks import cleaning, keys, membership, poll_readiness, swap
from tasks.step import Done, NeedsPerson, ResultGone, StepFailed, Wait
from tasks.world import Turn

SURE = 3  # tries in a row that do not find its image before it is made anew


def params(turn: Turn) -> Mapping[str, Any]:
    image = turn.upgrade.results["create_image"]
    sizes, zones = turn.fleet.target.sizes, _zones(turn)
    refused = len(turn.upgrade.intents("provision"))  # in this life: one further with each
    zone, rung = divmod(min(refused, len(sizes) * len(zones) - 1), len(sizes))
    size = sizes[rung]
    if size.disk < image["disk"]:
        raise StepFailed(
            f"the image of {turn.upgrade.server} needs {image['disk']} bytes of disk, the size has {size.disk}"
        )
    return {
        "image": image["image"],
        "like": turn.server.id,
        "memory": size.memory,
        "disk": size.disk,
        "type": size.type or "",
        "rung": rung,
        "subnet": zones[zone],
    }


def _zones(turn: Turn) -> list[str]:
    """For each zone that B may be in, A's own first, the subnet to make it in: the first with an address left. Empty
    for A's own subnet. All sizes are tried in one zone before another: what a zone lacks is room for a type, and what a
    subnet lacks is addresses, whatever the type."""
    target = turn.fleet.target
    if not target.subnets:
        return [""]
    pools = [seat.pool for seat in turn.server.seats]
    try:
        own, *others = turn.compute.subnets(turn.server.id, among=target.subnets)
        there: dict[str, list[Subnet]] = {own.zone: [own]}
        for subnet in others:
            there.setdefault(subnet.zone, []).append(subnet)
        allowed = [
            subnets
            for zone, subnets in there.items()
            if zone == own.zone
            or (target.zones == "any" and not any(turn.traffic.reaches(pool, zone) for pool in pools))
        ]
    except ProviderError:  # who cannot look makes it where A is, as without other subnets
        return [""]
    chosen = [next((each for each in subnets if each.free > 0), subnets[0]) for subnets in allowed]
    return ["" if each.id == own.id else each.id for each in chosen]


def do(turn: Turn, intent: Intent) -> Done | Wait:
    wanted = intent.params
    if (planned := turn.server.recipe) and (now := turn.compute.recipe()) != planned:
        raise NeedsPerson(
            f"{turn.upgrade.server}'s new server would be made of {now or 'nothing'}, and the plan was made with "
            f"{planned}: put that back, or abort and plan anew"
        )
    try:
        server = turn.compute.ensure_server(
            keys.key(turn.upgrade, intent, role="target", more=membership.known_as(turn)),
            image=wanted["image"],
            like=wanted["like"],
            size=Size(
                memory=wanted["memory"], disk=wanted["disk"], type=wanted["type"], subnet=wanted.get("subnet", "")
            ),
        )
    except NotFound as error:
        old = turn.compute.servers([wanted["like"]]).get(wanted["like"])
        if old is None or old.state == "terminated":  # and not ours to turn back from: that would say that it serves
            raise NeedsPerson(f"{turn.upgrade.server} is gone: {error}") from error
        if turn.upgrade.tries + 1 >= min(SURE, turn.fleet.rollout.attempts) and _is_gone(turn, wanted["image"]):
            cleaning.end_servers(turn)  # what an unheard call has made of it: another one is made of the next image
            raise ResultGone(
                f"image {wanted['image']} of {turn.upgrade.server} is gone: somebody has deleted it",
                step="create_image",
            ) from error
        raise
    except NoCapacity as error:
        raise NoCapacity(f"no room for {turn.upgrade.server}'s new server: {error}") from error
    if server.state in ("failed", "terminated"):
        raise Refused(f"server {server.id} is {server.state}: {server.reason or 'no reason given'}")
    item = LedgerItem(
        key=f"server:{intent.token}", kind="server", server=turn.upgrade.server, state="live", id=server.id
    )
    return Done(
        result={"server": server.id, "address": server.address, "state": server.state},
        ledger=(item,),
        locks=(keys.lock(turn.fleet, server.id),),
        wait=poll_readiness.starting(turn.fleet, server.id) if server.state == "pending" else None,
    )


def _is_gone(turn: Turn, image: str) -> bool:
    found = turn.compute.images([image]).get(image)
    return found is None or found.state == "failed"


def check(u: Upgrade) -> bool:
    return u.seen is not None


def undo(turn: Turn) -> Done | Wait:
    # Nobody is sent to what is about to end, though Redis may have forgotten that users ever were.
    if membership.is_member(turn) and isinstance(out := swap.undo(turn), Wait):
        return out
    gone = cleaning.end_servers(turn)
    if (wait := cleaning.still_to_come(turn, "provision", gone)) is not None:
        return wait
    return Done(
        result={"terminated": list(gone)}, ledger=cleaning.ended(turn, "server", turn.upgrade.intents("provision"))
    )
