"""One look for everybody: all due waits of a lane, asked in one call per hundred, answers kept on the records.

It wakes and never decides: where a step's `check` says that looking was enough, the chain is sent that begins with the
waiting step itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import structlog

from orchestrator import dispatch
from orchestrator.domain.fleet import Fleet
from orchestrator.domain.upgrade import Looked, Observe, Seen
from orchestrator.errors import NotFound, Unreachable, UnsafeStore
from orchestrator.secrets import field_values, shortened
from orchestrator.store import Row
from providers.errors import ProviderError, Throttled
from tasks.poll_readiness import paths
from tasks.step import Step, next_look
from tasks.world import World

log = structlog.get_logger()
AT_ONCE = 1000  # rows one message looks at
POSTPONE = 15.0  # seconds for which they are this observer's, should it die
KEPT = 5.0  # seconds for which a record may go on saying what it said of its wait, while the answer is "not yet"
PAIRED = ("proven", "idle")  # looks whose ids are pairs of a pool and a member's name
Answers = Mapping[str, Mapping[str, Any]]


def run(world: World, steps: Mapping[str, Step], *, lane: str, ticket: str) -> Mapping[str, Any]:
    """Look at everything that is due in this lane; how many were asked about and how many were woken."""
    rows = world.store.due_in_lane(lane, limit=AT_ONCE, postpone=POSTPONE)
    world.owed.give_back(partial(world.store.unlease, f"observe:{lane}", owner=ticket))
    looking = [row for row in rows if _looks(row)]
    woken = sum(_sent(world, row, "it waits for no look") for row in rows if not _looks(row))
    calls = 0
    again: dict[tuple[str, str], float] = {}
    for (rollout, kind), group in groupby(sorted(looking, key=_asked), key=_asked):
        try:
            spec = world.spec(rollout)
        except (NotFound, UnsafeStore) as error:  # Redis has lost it, or somebody has edited it
            log.warning("a look failed", rollout=rollout, error=str(error))
            continue
        asked = list(group)
        # Servers and images of one lane are in one place; pools of one balancer may have their servers in several.
        fleet = spec.fleet if kind in PAIRED else spec.at(asked[0].upgrade.server)
        for batch in _batches(asked, world.compute(fleet).caps.batch):
            calls += 1
            woken += _look(world, steps, fleet, kind, batch, again)
    world.store.look_again(lane, again)
    return {"asked": len(rows), "calls": calls, "woken": woken}


def _looks(row: Row) -> bool:
    """Whether it waits for a look that can be asked for."""
    observe = row.upgrade.wait.observe if row.upgrade.wait is not None else None
    return observe is not None and observe.kind in ASK and not (observe.kind in PAIRED and len(observe.ids) % 2)


def _sent(world: World, row: Row, why: str) -> bool:
    """What no look can answer leaves the lane by a message of its own: its turn says what is wrong with it, and what
    somebody has edited in one record holds up no other."""
    log.warning("a record does not go with its lane", rollout=row.upgrade.rollout, server=row.upgrade.server, why=why)
    return dispatch.send(world.store, world.publish, row, grace=world.grace) is not None


def _asked(row: Row) -> tuple[str, str]:
    return row.upgrade.rollout, _observe(row).kind


def _observe(row: Row) -> Observe:
    wait = row.upgrade.wait
    assert wait is not None and wait.observe is not None, "the agenda of a lane holds only waits that look"
    return wait.observe


def _batches(rows: list[Row], size: int) -> Iterator[list[Row]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _look(
    world: World,
    steps: Mapping[str, Step],
    fleet: Fleet,
    kind: str,
    batch: Sequence[Row],
    again: dict[tuple[str, str], float],
) -> int:
    """How many were woken. Those of which nothing new was seen are put into `again`, with their next look's time."""
    ids = [id for row in batch for id in _observe(row).ids]
    try:
        answers: Answers = ASK[kind](world, fleet, ids)
    except Exception as error:  # whatever it was: the other rollouts of this lane are to be looked at as well
        expected = isinstance(error, ProviderError)
        log.warning("a look failed", kind=kind, servers=len(batch), error=repr(error), exc_info=not expected)
        # Together as they were: one call for each of them would be a storm upon a provider in trouble.
        pause = (error.retry_after if isinstance(error, Throttled) else 1.0) * (1 + world.spread())
        now = world.store.now()
        return _each(world, batch, lambda row: _missed(world, row, pause, now))
    now = world.store.now()
    return _each(world, batch, lambda row: _keep(world, steps, row, kind, answers, now, again))


def _each(world: World, batch: Sequence[Row], tell: Callable[[Row], bool]) -> int:
    """How many were woken. What is wrong with one record is its own trouble."""
    woken = 0
    for row in batch:
        try:
            woken += tell(row)
        except (Unreachable, UnsafeStore):
            raise  # nothing can be kept of anybody now
        except Exception as error:
            woken += _sent(world, row, repr(error))
    return woken


def _missed(world: World, row: Row, pause: float, now: float) -> bool:
    """Look again after the pause. A step whose deadline has passed asks for itself, and answers for what it hears."""
    last = row.upgrade.deadline
    again = now + (pause if last is None else min(pause, max(0.0, last - now) + 1.0 + world.spread()))
    to = row.upgrade.after(Looked(seen=Seen(kind="none", at=now, answers={}), again=again))
    if to.deadline is not None and now > to.deadline:
        return dispatch.wake(world.store, world.publish, row, to, grace=world.grace)
    world.store.looked(row, to, due=again)
    return False


def _keep(
    world: World,
    steps: Mapping[str, Step],
    row: Row,
    kind: str,
    answers: Answers,
    now: float,
    again: dict[tuple[str, str], float],
) -> bool:
    """Store the answer on the record; wake the step if it is enough, or if its deadline has passed. A "not yet" soon
    after the last is not worth a write: a thousand servers are asked about twice a second."""
    wait = row.upgrade.wait
    assert wait is not None
    again_at = next_look(_observe(row).lane, wait.every, now)
    mine = {id: shortened(answers[id]) for id in _keys(_observe(row)) if id in answers}
    to = row.upgrade.after(Looked(seen=Seen(kind=kind, at=now, answers=mine), again=again_at))
    enough = (to.deadline is not None and now > to.deadline) or steps[to.step].check(to)
    if not enough and now - wait.at < KEPT:
        again[to.rollout, to.server] = again_at
        return False
    if enough:
        return dispatch.wake(world.store, world.publish, row, to, grace=world.grace)
    world.store.looked(row, to, due=again_at)
    return False


def _keys(observe: Observe) -> tuple[str, ...]:
    if observe.kind in PAIRED:
        return tuple(f"{pool}/{name}" for pool, name in zip(observe.ids[::2], observe.ids[1::2], strict=True))
    return observe.ids


def _servers(world: World, fleet: Fleet, ids: Sequence[str]) -> Answers:
    return {id: field_values(server) for id, server in world.compute(fleet).servers(ids).items()}


def _images(world: World, fleet: Fleet, ids: Sequence[str]) -> Answers:
    found = world.compute(fleet).images(ids)
    # Who makes an image is told whether it was there: a look knows nothing of that.
    return {
        id: {what: value for what, value in field_values(image).items() if what != "adopted"}
        for id, image in found.items()
    }


def _guests(world: World, fleet: Fleet, ids: Sequence[str]) -> Answers:
    return {id: field_values(facts) for id, facts in world.guest(fleet).facts(ids, paths=paths(fleet)).items()}


def _proven(world: World, fleet: Fleet, ids: Sequence[str]) -> Answers:
    views = world.traffic(fleet).proven(list(zip(ids[::2], ids[1::2], strict=True)))
    return {f"{pool}/{name}": field_values(view) for (pool, name), view in views.items()}


def _idle(world: World, fleet: Fleet, ids: Sequence[str]) -> Answers:
    views = world.traffic(fleet).idle(list(zip(ids[::2], ids[1::2], strict=True)))
    return {f"{pool}/{name}": field_values(view) for (pool, name), view in views.items()}


ASK: Mapping[str, Callable[[World, Fleet, Sequence[str]], Answers]] = {
    "server": _servers,
    "image": _images,
    "guest": _guests,
    "proven": _proven,
    "idle": _idle,
}
