"""The journal round every step: claim, intent, effect, commit.

A message says only whom it means. What is done follows from the record, is announced in it before it happens, and is
committed once: a message that comes twice, late or out of order finds its step taken and changes nothing.
"""

from __future__ import annotations

import os
import traceback
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol
from zlib import crc32

import structlog

from orchestrator import dispatch
from orchestrator.domain.fleet import Fleet
from orchestrator.domain.retry import Limits, Trouble, answer_to, poison
from orchestrator.domain.steps import RETIRE, STEPS, following
from orchestrator.domain.upgrade import (
    CLOSE,
    Ailed,
    AttemptEnded,
    Began,
    Doubted,
    Event,
    Finished,
    Held,
    Intent,
    Observe,
    Stumbled,
    TurnedBack,
    UndoBegan,
    Undone,
    Upgrade,
    Waiting,
    Waits,
)
from orchestrator.errors import ChangeoverError, Fenced, Locked, NotFound, Unreachable, UnsafeStore
from orchestrator.secrets import shortened
from orchestrator.store import Entry, Failure, Ignored, Kind, LedgerItem, RefusedIntent, Row
from providers import errors as provider
from tasks import keys
from tasks.world import OutOfTime, Turn, World

log = structlog.get_logger()

# Seconds a step may take when the fleet file does not say.
DEADLINES: Mapping[str, float] = {
    "create_image": 3600.0,
    "provision": 1800.0,
    "poll_readiness": 900.0,
    "smoke_test": 300.0,
    "swap": 1800.0,
    "drain_old": 3600.0,
    RETIRE: 7 * 86400.0,
}
SOON = 0.15  # seconds
UNDO_DEADLINE = 3600.0
MAKES: Mapping[str, Kind] = {"create_image": "image", "provision": "server"}  # the steps that make something billable
# Seconds after which one that was refused asks again: a backstop, since coordinators wake it when it may begin. Each
# asking is an entry of the audit log, and a night's freeze must not fill the store.
PARKED_WHILE_REFUSED: Mapping[str, float] = {"frozen": 600.0, "aborting": 1.0, "paused": 600.0, "stopped": 600.0}
KEPT_ON = 300.0  # seconds after which the retirement of an A that is kept on, since its B ails, asks again


@dataclass(frozen=True, kw_only=True)
class Done:
    """The step is done. `result` is small, JSON-able and without secrets; `locks` are taken with the commit. `wait`:
    what the next step would wait for first; it gets no message before that was seen."""

    result: Mapping[str, Any] = field(default_factory=dict)
    ledger: tuple[LedgerItem, ...] = ()
    locks: tuple[str, ...] = ()
    retain_until: float | None = None
    wait: Wait | None = None


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Not yet. What to ask, and in how many seconds to look (again)."""

    reason: str
    every: float
    observe: Observe | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


class StepFailed(Exception):
    """A check said no. `evidence` goes to the audit log."""

    def __init__(self, why: str, evidence: Mapping[str, Any] | None = None) -> None:
        super().__init__(why)
        self.evidence = evidence or {}


class ResultGone(Exception):
    """What an earlier step has made is there no more: it is made anew, by a new attempt of that `step`."""

    def __init__(self, why: str, *, step: Literal["create_image"]) -> None:
        super().__init__(why)
        self.step = step


class NeedsPerson(Exception):
    """It cannot go on before a person decided something."""


class Step(Protocol):
    """A pair, do and undo, and how to tell that looking was enough. Each is repeated at will: everything is made by key
    and found by key; `undo` covers every attempt that was begun, and undoing nothing is success."""

    def params(self, turn: Turn) -> Mapping[str, Any]:
        """What is frozen with the intent: whoever takes over acts with these."""
        ...

    def do(self, turn: Turn, intent: Intent) -> Done | Wait: ...

    def undo(self, turn: Turn) -> Done | Wait: ...

    def check(self, u: Upgrade) -> bool:
        """Pure: whether what was seen is worth waking the step for."""
        ...


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What became of one message. `goes_on`: the next message of its chain applies. `parked`: why it waits; `failed`:
    why the upgrade goes back."""

    result: Mapping[str, Any]
    goes_on: bool
    parked: str = ""
    failed: str = ""


def run(world: World, step: Step, name: str, *, undo: bool, rollout: str, server: str, epoch: int) -> Ran:
    """One message's work: at most one turn at one upgrade, bounded in time."""
    owner = f"{world.worker}/{os.getpid()}:{uuid.uuid4().hex[:12]}"
    world.owed.settle()
    asked = world.monotonic()
    try:
        claim = world.store.claim(
            rollout,
            server,
            epoch=epoch,
            step=name,
            direction="undo" if undo else "forward",
            owner=owner,
            lease=world.lease,
        )
    except (Unreachable, UnsafeStore) as error:  # the second also for a record that cannot be read: it is left alone
        if isinstance(error, Unreachable):  # it may be ours all the same
            world.owed.later(partial(world.store.release_owner, owner))
        log.warning("not claimed", server=server, step=name, error=str(error))
        return Ran(result={"ignored": f"not claimed: {error.message}"}, goes_on=False)
    if isinstance(claim, Ignored):
        return Ran(result={"ignored": claim.reason}, goes_on=False)
    with world.crowd.working():
        return _take(world, step, Turn(world, claim, asked=asked))


def _take(world: World, step: Step, turn: Turn) -> Ran:
    point = turn.point
    world.crash(f"{point}.claimed")
    try:
        reckon_with_lost(world, turn)
        event, extras = kept_short(*(_poisoned(turn) or _unread(turn) or _act(world, step, turn)))
        try:
            row = commit(world, turn, event, extras)
        except Locked as error:
            event = Held(why=str(error))
            row = commit(world, turn, event, Extras())
    except Fenced:
        _give_back(world, turn)  # if still ours: whoever changed the record need not wait for our lease to end
        return Ran(result={"ignored": "fenced"}, goes_on=False)
    except (Unreachable, UnsafeStore) as error:
        return _without_store(world, turn, error)
    world.crash(f"{point}.committed")
    return _answer(world, row, event)


def _without_store(world: World, turn: Turn, error: ChangeoverError) -> Ran:
    """Nothing can be announced or kept now, so nothing is done: the record says how far it came, and whoever takes it
    up finds the rest by its token. It was not the upgrade's fault and does not count as one of its tries."""
    log.warning("store away", server=turn.upgrade.server, step=turn.upgrade.step, error=str(error))
    _give_back(world, turn)
    return Ran(result={"ignored": "store away"}, goes_on=False)


def _give_back(world: World, turn: Turn) -> None:
    """Nothing was committed, and nobody is to wait for this lease to end. If a call of this turn was not answered,
    nothing but this process knows so: then its lease counts as lost, so that whoever takes over reckons with that."""
    unkept = turn.upgrade.doubted != turn.claim.row.upgrade.doubted and not turn.claim.lost
    world.owed.give_back(partial(world.store.release, turn.claim, died=unkept))


@dataclass(frozen=True, kw_only=True)
class Extras:
    ledger: tuple[LedgerItem, ...] = ()
    locks: tuple[str, ...] = ()
    detail: Mapping[str, Any] = field(default_factory=dict)


def _poisoned(turn: Turn) -> tuple[Event, Extras] | None:
    """Several workers in a row were lost at this very step: nothing of it is touched once more."""
    event = poison(turn.upgrade, turn.claim.lost, now=turn.now)
    if event is None:
        return None
    return event, Extras(detail={"step": turn.upgrade.step, "lost": list(turn.claim.lost)})


def _unread(turn: Turn) -> tuple[Event, Extras] | None:
    """What it is about is gone from Redis, or was edited: no try of its own makes that whole."""
    try:
        assert turn.server
    except (NotFound, UnsafeStore) as error:
        if turn.upgrade.state == "upgraded":  # its retirement: users are served by B
            return Stumbled(why=error.message, at=turn.now + KEPT_ON), Extras()
        return Held(why=error.message), Extras()
    return None


def _act(world: World, step: Step, turn: Turn) -> tuple[Event, Extras]:
    """Announce what is about to be done, do it, and say what happened."""
    try:
        if (early := _too_early(turn) or _kept_on(turn)) is not None:
            return early, Extras()
        refused = _announce(world, step, turn)
        if refused is not None:
            why = f"not begun: {_said(refused)}"
            return Stumbled(why=why, at=turn.now + PARKED_WHILE_REFUSED[refused], counts=False, refused=True), Extras()
        reckon_with_lost(world, turn)  # once more: Redis may have forgotten that they had announced it
        u = turn.upgrade
        if u.direction == "undo":
            _mark(turn)
            answer = step.undo(turn)
        else:
            assert u.intent is not None
            answer = step.do(turn, u.intent)
    except (Fenced, Unreachable, UnsafeStore):
        raise
    except Exception as error:
        return _trouble(world, turn, error)
    return _outcome(turn, answer)


def reckon_with_lost(world: World, turn: Turn) -> None:
    """Whoever had this upgrade and lost it may have been cut off in a call: what is committed now says so, since the
    store forgets them with it."""
    if turn.claim.lost:
        _doubt(world, turn)


def _doubt(world: World, turn: Turn) -> None:
    """Somebody's call for what this step makes has not been answered, and may still be under way: an undo looks again
    when it cannot be any more, even if another call has been answered meanwhile."""
    u = turn.upgrade
    if u.step in MAKES and u.state in ("running", "waiting") and u.direction == "forward" and u.intent is not None:
        turn.upgrade = u.after(Doubted(until=turn.now + world.settled_after))


def _mark(turn: Turn) -> None:
    """A says that it is being gone back to, before anything is undone: if Redis forgets everything, a rebuild is not to
    begin anew what is on its way back. Where A is gone or may not be tagged it goes back all the same."""
    u = turn.upgrade
    if u.notes or u.step != [step for step in STEPS if u.has_begun(step)][-1]:
        return
    with suppress(provider.NotFound, provider.Refused, provider.Unauthorized, provider.GuardRefused):
        turn.compute.tag(turn.server.id, keys.undoing(u))


def _too_early(turn: Turn) -> Event | None:
    """It waits for a time that has not come: this message is one of the former chain, delivered twice or late. Acting
    on it would cut short a soak, a quiet time, or the time for which A is kept."""
    u = turn.upgrade
    if u.state == "upgraded" and u.intent is None and turn.now < (u.retain_until or 0.0) - CLOSE:
        return Stumbled(why="its old server is kept", at=u.retain_until or 0.0, counts=False)
    if u.wait is None or u.wait.observe is not None or u.wait.refused or turn.now >= u.wait.at - CLOSE:
        return None
    return Stumbled(why=u.wait.reason, at=u.wait.at, counts=False)


def _kept_on(turn: Turn) -> Event | None:
    """A is all that users have left while B ails: no retirement begins then, however long ago its time was up."""
    u = turn.upgrade
    return Stumbled(why=u.keeps_old, at=turn.now + KEPT_ON, counts=False) if u.keeps_old else None


def _announce(world: World, step: Step, turn: Turn) -> str | None:
    """Write the intent unless it is written; the reason if nothing may begin now."""
    u = turn.upgrade
    ledger: tuple[LedgerItem, ...] = ()
    event: Event
    if u.direction == "undo" and u.state != "upgraded":
        if u.undoing == u.step:
            return None
        event = UndoBegan(deadline=turn.now + UNDO_DEADLINE + (world.settled_after if u.step in MAKES else 0.0))
        entry = Entry(event="UndoBegan", actor=world.worker, detail={"step": u.step})
    else:
        if u.intent is not None:
            return None
        params = step.params(turn)
        rung = int(params.get("rung", 0))
        made, name = keys.effect(turn.fleet, u, rung=rung)
        attempt = u.attempt(u.step)
        intent = Intent(
            step=u.step, attempt=attempt, rung=rung, token=made, name=name, at=turn.now, params=dict(params)
        )
        limit = _limit(turn.fleet, u.step)
        limit += float(params.get("lead", 0.0))  # what has to pass before it can begin is not its own time
        event = Began(intent=intent, deadline=u.deadline or turn.now + limit)
        entry = Entry(
            event="Began", actor=world.worker, detail={"step": u.step, "attempt": attempt, "name": name, **params}
        )
        kind = MAKES.get(u.step)
        if kind is not None:
            ledger = (LedgerItem(key=f"{kind}:{made}", kind=kind, server=u.server, state="intended"),)
    asked = world.monotonic()
    answer = world.store.intent(
        turn.claim,
        u.after(event),
        entry=entry,
        ledger=ledger,
        undo=u.direction == "undo",
        finishing=u.past_swap and turn.fleet.rollout.on_abort == "finish",
    )
    if isinstance(answer, RefusedIntent):
        return answer.reason
    turn.confirm(answer, asked=asked)
    turn.upgrade = answer.row.upgrade
    world.crash(f"{turn.point}.announced")
    return None


def _limit(fleet: Fleet, step: str) -> float:
    """Seconds that the step may take. What the fleet file tells a step to spend is not what it may be late by."""
    told = {"swap": fleet.rollout.soak, "drain_old": fleet.rollout.drain.deadline}
    return fleet.rollout.deadlines.get(step) or DEADLINES[step] + told.get(step, 0.0)


def _said(reason: str) -> str:
    return {
        "frozen": "everything is frozen (changeover unfreeze)",
        "paused": "the rollout is paused",
        "stopped": "the rollout has stopped after a failure behind a swap",
        "aborting": "the rollout is being aborted",
    }[reason]


def _outcome(turn: Turn, answer: Done | Wait) -> tuple[Event, Extras]:
    u = turn.upgrade
    if isinstance(answer, Wait):
        if u.deadline is not None and turn.now > u.deadline:
            return _overdue(turn, answer)
        return Waits(wait=_waiting(answer, turn.now), notes=answer.notes), Extras()
    extras = Extras(ledger=answer.ledger, locks=answer.locks, detail={"step": u.step, "result": answer.result})
    if u.direction == "undo" and u.state != "upgraded":
        return Undone(at=turn.now, result=answer.result), extras
    event = Finished(result=answer.result, at=turn.now, retain_until=answer.retain_until)
    if answer.wait is not None and (follower := following(u.step)) is not None:
        deadline = turn.now + _limit(turn.fleet, follower)
        event = replace(event, wait=_waiting(answer.wait, turn.now), deadline=deadline)
    return event, extras


def _waiting(answer: Wait, now: float) -> Waiting:
    if answer.observe is None:
        return Waiting(reason=answer.reason, at=now + answer.every)
    every = max(0.05, answer.every)
    at = next_look(answer.observe.lane, every, now)
    return Waiting(reason=answer.reason, at=at, observe=answer.observe, every=every)


def next_look(lane: str, every: float, now: float) -> float:
    """When the lane is looked at next, within `every` seconds: the same moment for all that wait there with the same
    period, so that one call answers for all of them, and another one in another lane."""
    phase = crc32(lane.encode()) % 1000 / 1000 * every
    return ((now - phase) // every + 1) * every + phase


def _overdue(turn: Turn, answer: Wait) -> tuple[Event, Extras]:
    """The deadline has passed, and a look made after it still says not yet."""
    u = turn.upgrade
    if u.seen is not None and u.deadline is not None and u.seen.at <= u.deadline:
        # What it decided from was seen before the deadline: look once more.
        wait = Waiting(reason=answer.reason, at=turn.now, observe=answer.observe, every=max(0.05, answer.every))
        return Waits(wait=wait, notes=answer.notes), Extras()
    why = f"{u.step} did not finish in time: {answer.reason}"
    if u.direction == "undo":
        return Held(why=why), Extras()
    if u.state == "upgraded":
        return Stumbled(why=why, at=turn.now + 60), Extras()
    return TurnedBack(why=why, at=turn.now, asked=False), Extras()


def _trouble(world: World, turn: Turn, error: Exception) -> tuple[Event, Extras]:
    policy = turn.fleet.rollout
    kind, why = classify(error)
    if kind == "unsure" or (isinstance(error, provider.Transient) and error.ambiguous):
        _doubt(world, turn)
    if kind is None and (turn.upgrade.deadline is None or turn.now <= turn.upgrade.deadline):
        return Stumbled(why=why, at=turn.now, counts=False), Extras()
    event = answer_to(
        turn.upgrade,
        kind or "unsure",  # out of time again and again: it would go on for ever
        why,
        limits=Limits(attempts=policy.attempts, base=policy.back_off),
        now=turn.now,
        spread=world.spread(),
    )
    if isinstance(error, ResultGone) and isinstance(event, AttemptEnded):
        event = replace(event, back_to=error.step)
    if isinstance(error, provider.Throttled) and isinstance(event, Stumbled):
        asked, last = turn.now + error.retry_after, turn.upgrade.deadline
        # What the provider asks for, and yet no later than one back-off behind the deadline: from then on tries count.
        event = replace(event, at=max(event.at, asked if last is None else min(asked, last + event.at - turn.now)))
    if isinstance(error, provider.Busy) and isinstance(event, Stumbled):
        event = replace(event, at=turn.now + SOON * (1 + world.spread()))  # whoever has it has it for moments
    evidence = error.evidence if isinstance(error, StepFailed) else {}
    request = getattr(error, "request_id", None)
    detail = {"step": turn.upgrade.step, "error": type(error).__name__, "why": why, **evidence}
    return event, Extras(detail=detail if request is None else {**detail, "request_id": request})


def classify(error: Exception) -> tuple[Trouble | None, str]:
    """What kind of trouble an error is, and how it reads. None: no trouble, the time of this message is up."""
    why = str(error)
    match error:
        case OutOfTime():
            return None, why
        case StepFailed():
            return "failed", why
        case NeedsPerson() | provider.QuotaExceeded() | provider.Unauthorized() | provider.Conflict():
            return "blocked", why
        case provider.Throttled() | provider.Busy():
            return "busy", why
        case provider.GuardRefused():
            return "guard", why
        case provider.Transient() | provider.NotYetVisible():
            return "away", why
        case provider.NoCapacity() | provider.Refused() | ResultGone():
            return "refused", why
        case provider.NotFound():
            return "unsure", why
        case _:
            where = traceback.extract_tb(error.__traceback__)[-1]
            log.error("unexpected", error=repr(error), exc_info=error)
            return "unsure", f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"


def kept_short(event: Event, extras: Extras) -> tuple[Event, Extras]:
    """The same, with texts of others as long as records have room for."""
    match event:
        case Waits(wait=wait, notes=notes):
            event = replace(event, wait=replace(wait, reason=shortened(wait.reason)), notes=shortened(notes))
        case Finished(result=result, wait=wait):
            wait = wait and replace(wait, reason=shortened(wait.reason))
            event = replace(event, result=shortened(result), wait=wait)
        case Undone(result=result):
            event = replace(event, result=shortened(result))
        case Stumbled(why=why) | AttemptEnded(why=why) | TurnedBack(why=why) | Held(why=why) | Ailed(why=why):
            event = replace(event, why=shortened(why))
    return event, replace(extras, detail=shortened(extras.detail))


def commit(world: World, turn: Turn, event: Event, extras: Extras) -> Row:
    """The record after the event, stored, and the claim given back."""
    was = turn.upgrade
    to = was.after(event)
    failure, stop = _counts(was, to, event)
    return world.store.commit(
        turn.claim,
        to,
        entry=Entry(event=type(event).__name__, actor=world.worker, detail={**extras.detail, **_detail(event)}),
        due=due_of(to, now=turn.now, grace=world.grace),
        look=lane_of(to),
        ledger=extras.ledger,
        locks=extras.locks,
        failure=failure,
        stop=stop,
    )


def lane_of(to: Upgrade) -> str | None:
    """Where it is looked at; None when it waits for no look."""
    return to.wait.observe.lane if to.wait is not None and to.wait.observe is not None else None


def due_of(to: Upgrade, *, now: float, grace: float) -> float | None:
    """When the upgrade needs somebody again at the latest; None when nobody."""
    if to.state in ("pending", "held") or to.settled:
        return None
    if to.wait is not None:
        return to.wait.at
    if to.state == "upgraded":
        return to.retain_until
    return now + grace  # its chain goes on by itself; if it does not, it is sent again


def _counts(was: Upgrade, to: Upgrade, event: Event) -> tuple[Failure, str]:
    """How a turn back counts. The first failure behind a swap stops the rollout in the same commit."""
    if not isinstance(event, TurnedBack) or event.asked or was.direction == "undo":
        return "", ""
    if not was.past_swap:
        return "before", ""
    return "after", f"{to.server} failed behind its swap and goes back to its old server: {event.why}"


def _detail(event: Event) -> dict[str, Any]:
    match event:
        case Waits(wait=wait, notes=notes):
            return {"reason": wait.reason, "notes": dict(notes)}
        case Stumbled(why=why) | AttemptEnded(why=why) | TurnedBack(why=why) | Held(why=why):
            return {"why": why}
        case _:
            return {}


def _answer(world: World, row: Row, event: Event) -> Ran:
    u = row.upgrade
    match event:
        case Finished(result=result) | Undone(result=result):
            goes_on = bool(u.remaining) and not u.terminal and u.wait is None
            waits = {"waits": u.why} if u.wait is not None else {}
            return Ran(result={"step": "done", **waits, **result}, goes_on=goes_on)
        case TurnedBack(why=why):
            if not u.terminal:
                dispatch.send(world.store, world.publish, row, grace=world.grace)
            return Ran(result={}, goes_on=False, failed=why)
        case Waits() | Stumbled() | AttemptEnded() | Held():
            return Ran(result={}, goes_on=False, parked=u.why)
        case _:
            return Ran(result=asdict(event), goes_on=False)
