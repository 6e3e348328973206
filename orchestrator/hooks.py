"""Webhooks that come in: proven, kept and answered at once, and carried out behind that by whoever is alive.

What is kept in Redis before the answer survives every crash. Whoever takes it has it for a while and no longer, and a
start makes its rollout under the id that it got when it came: carried out twice, it is done once.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from orchestrator import operations
from orchestrator.domain.delivery import Delivery
from orchestrator.domain.fleet import Fleet
from orchestrator.domain.hooks import Approve, Missing, Plain, Pointer, Rule, Start, Stop, Verb, at, fitting, too_old
from orchestrator.domain.rollout import Rollout
from orchestrator.domain.signatures import Signed, formed, verified
from orchestrator.errors import (
    BadInput,
    ChangeoverError,
    Conflict,
    IllegalTransition,
    NotFound,
    Unreachable,
    UnsafeStore,
    WaitTimeout,
)
from orchestrator.hook_file import Hooks, Known
from orchestrator.ids import new_id
from orchestrator.operations import Asker, Waiter
from orchestrator.store import Store
from orchestrator.store.shapes import no_delivery

KEPT = 4 * 86400.0  # seconds for which a delivery is known again: longer than anybody sends one again
EVERY = 1.0  # seconds between two looks for what somebody else has kept, or that is due again
HANDS = 8  # deliveries that one process carries out at once
LAST_WORDS = 5.0  # seconds that they are given when it ends
_NOBODY = (b"\x00" * 32,)  # a key that counts for nothing, and takes as long as one that does
log = structlog.get_logger(__name__)


def verify(store: Store, hooks: Hooks, name: str, headers: Mapping[str, str], body: bytes) -> Signed | None:
    """Who signed it, or None for whatever reason. `headers` in lower case, of those that came once. As many keys are
    tried for every name, whether there is such a hook or not, and whatever its scheme is."""
    known, now, found = hooks.known.get(name), store.now(), None
    most = max((len(each.keys) for each in hooks.known.values()), default=0)
    for scheme in formed(headers):
        mine = known.keys if known is not None and known.hook.scheme == scheme else ()
        found = verified(scheme, headers, body, mine, now=now) or found
        verified(scheme, headers, body, _NOBODY * (most - len(mine)), now=now)
    return found


@dataclass(frozen=True, kw_only=True)
class Received:
    """`delivery` as it is now, if the log still has it; `again`: it had come before, and nothing follows of this."""

    id: str
    delivery: Delivery | None
    again: bool


def receive(store: Store, hooks: Hooks, name: str, signed: Signed, payload: Any) -> Received | None:
    """It is kept; None, and it is not, when too many wait already."""
    hook, now = hooks.known[name].hook, store.now()
    rule = fitting(hook, signed.event, payload)
    old = too_old(signed.event, payload, now=now) if rule is not None and signed.event else ""
    fresh = Delivery(
        id=new_id("d", now),
        hook=name,
        key=signed.key,
        event=signed.event or _type(payload),
        received_at=now,
        asked_at=now,
        rollout=new_id("r", now) if rule is not None and rule.start is not None else "",
    )
    if rule is not None:
        fresh = replace(fresh, verb=rule.verb, fleet=hooks.about(rule), due=now)
        if rule.approve is not None:
            fresh = replace(fresh, waited=_waiting(store, fresh.fleet))
    if rule is None or old:
        fresh = fresh.ended("ignored", old or "no rule of this hook fits it")
    once = hashlib.sha256(f"{name}:{signed.once}".encode()).hexdigest()
    id = store.put_delivery(fresh, payload, once=once, keep=KEPT)
    if id is None:
        return None
    again = id != fresh.id
    if not again:
        log.info("hook", delivery=id, hook=name, key=fresh.key, tells=fresh.event, state=fresh.state, verb=fresh.verb)
    return Received(id=id, delivery=store.delivery(id), again=again)


def _waiting(store: Store, fleet: str) -> dict[str, int]:
    """The rollouts of that fleet that wait for an approval, and for which wave."""
    asking = (each for each in store.open_rollouts() if each.fleet == fleet and each.state == "awaiting_approval")
    return {each.id: each.wave for each in asking}


def _type(payload: Any) -> str:
    """What a Standard Webhook tells of, by its convention."""
    said = payload.get("type") if isinstance(payload, dict) else None
    return _one_line(said) if isinstance(said, str) else ""


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:300]


# -- carried out -------------------------------------------------------------------------------------------------------


def take(store: Store, hooks: Hooks, *, most: int) -> list[Delivery]:
    """Those that are due, of hooks that this process knows: they are its own for a while."""
    now = store.now()
    mine: list[Delivery] = []
    for each in store.due_deliveries():
        if each.due is None or each.due > now or len(mine) >= most:
            break
        if each.hook in hooks.known and (taken := store.change_delivery(each, each.taken(now))) is not None:
            mine.append(taken)
    return mine


def carry_out(store: Store, ask: Asker, hooks: Hooks, taken: Delivery, waiter: Waiter | None = None) -> Delivery | None:
    """What came of it, kept; None if somebody else has decided about it meanwhile."""
    try:
        after = _carried_out(store, ask, hooks, taken, waiter)
    except (BadInput, Conflict, NotFound) as error:  # it would be the same another time
        after = taken.ended("failed", error.message)
    except ChangeoverError as error:
        after = taken.put_off(error.message, store.now())
    except Exception as error:  # whatever it is, the others go on
        log.error("hook failed", delivery=taken.id, hook=taken.hook, exc_info=error)
        after = taken.put_off(f"something unexpected happened: {type(error).__name__}", store.now())
    log.info("hook", delivery=taken.id, hook=taken.hook, was=taken.state, state=after.state, why=after.why)
    return store.change_delivery(taken, after)


def _carried_out(store: Store, ask: Asker, hooks: Hooks, d: Delivery, waiter: Waiter | None) -> Delivery:
    known, payload = hooks.known[d.hook], store.payload(d.id)
    rule = _rule(known, d, payload)
    if rule is None:
        return replace(d, verb="", fleet="").ended("ignored", "no rule of this hook fits it any more")
    d = replace(d, verb=rule.verb, fleet=hooks.about(rule))
    if rule.start is None:
        return _decide(store, d, rule, payload)
    d = replace(d, rollout=d.rollout or new_id("r", d.asked_at))
    agreed, fleet = None, None
    if rule.start.plan is not None:
        agreed = _plan(store, rule.start, payload)
        fleet = Fleet.model_validate_json(json.dumps(agreed.fleet))
    else:
        fleet = hooks.fleet_of(rule.start, {place: _value(payload, where) for place, where in rule.start.set.items()})
    made = operations.apply(store, ask, fleet, agreed=agreed, actor=_actor(d), id=d.rollout, waiter=waiter)
    return d.ended("done", f"rollout {made.id} of {made.fleet} was started")


def _rule(known: Known, d: Delivery, payload: Any) -> Rule | None:
    """The rule to follow as the hook is now."""
    return fitting(known.hook, d.event if known.hook.scheme == "github" else "", payload)


def _plan(store: Store, start: Start, payload: Any) -> Any:
    id = str(_value(payload, start.plan or ""))
    found = operations.saved_plan(store, id)
    if found.fleet["fleet"] != start.fleet:
        raise BadInput(f"plan {id[:100]} is not of the fleet {start.fleet}, for which this hook starts rollouts")
    return found


def _value(payload: Any, where: Pointer) -> Plain:
    try:
        found = at(payload, where)
    except Missing:
        found = None
    if found is None:
        raise BadInput(f"the payload has no plain value at {where}")
    return found


def _actor(d: Delivery) -> str:
    return f"webhook {d.hook} ({d.id})"


def _decide(store: Store, d: Delivery, rule: Rule, payload: Any) -> Delivery:
    """Approves, pauses or aborts; and what was to be started before a pause or an abort, and has not been, is not."""
    asked = rule.decides
    assert asked is not None, "a rule starts something or decides about it"
    if rule.approve is not None and d.asked_at > d.received_at:  # rules that were mended have made it an approval
        raise d.no_second_yes()
    only = None if asked.rollout is None else str(_value(payload, asked.rollout))
    told: list[str] = []
    for other in store.due_deliveries() if only is None and rule.approve is None else ():
        if other.verb != "start" or other.fleet != d.fleet or (other.asked_at, other.id) >= (d.asked_at, d.id):
            continue
        ended = other.ended("ignored", f"called off: {rule.verb} was asked for after it, by {d.id}")
        if other.in_hand > store.now() or store.change_delivery(other, ended) is None:
            return d.behind(f"waits for the start of {other.id}", store.now())
        told.append(f"{other.id} was called off")
    done = 0
    for one in _under_way(store, d, only):
        try:
            told.append(_decided(store, d, asked, rule.verb, one.id, payload))
            done += 1
        except IllegalTransition as error:
            told.append(error.message)
    if not told:
        told.append(f"no rollout of {d.fleet} is under way")
    return d.ended("done" if done or rule.approve is None else "failed", "; ".join(told))


def _under_way(store: Store, d: Delivery, only: str | None) -> list[Rollout]:
    if only is None:
        return [each for each in store.open_rollouts() if each.fleet == d.fleet and not each.ended]
    found = store.rollout(only)
    if found is None or found.fleet != d.fleet:
        raise NotFound(f"there is no rollout {_one_line(only)} of {d.fleet}")
    return [found]


def _decided(store: Store, d: Delivery, asked: Approve | Stop, verb: Verb, id: str, payload: Any) -> str:
    """Raises `IllegalTransition`."""
    if isinstance(asked, Approve):
        who = d.hook if asked.who is None else str(_value(payload, asked.who))
        if id not in d.waited:
            raise IllegalTransition(f"rollout {id} did not wait for an approval when this came")
        found = operations.approve(store, id, who=_one_line(who), actor=_actor(d), wave=d.waited[id])
    else:
        act = operations.pause if verb == "pause" else operations.abort
        found = act(store, id, actor=_actor(d), why=_why(payload, asked, d))
    return f"rollout {id} is {found.rollout.state.replace('_', ' ')}"


def _why(payload: Any, stop: Stop, d: Delivery) -> str:
    said: Plain = None
    if stop.why is not None:
        try:
            said = at(payload, stop.why)
        except Missing:
            said = None
    return _one_line(str(said)) if said not in (None, "") else f"{d.event or 'a delivery'} at webhook {d.hook}"


# -- by a person -------------------------------------------------------------------------------------------------------


def redeliver(store: Store, id: str, hooks: Hooks | None = None) -> tuple[Delivery, bool]:
    """It is carried out once more, by the rules as they are now, and whether that was not so already. A rollout that it
    has started it does not start again. Raises `NotFound`, and `Conflict` while somebody has it in hand, or where it
    is an approval or, by the rules of `hooks`, would be one."""
    for _ in range(operations.TRIES):
        was = store.delivery(id)
        if was is None:
            raise no_delivery(id)
        now = was.again(store.now())
        known = hooks.known.get(was.hook) if hooks is not None else None
        if known is not None and (rule := _rule(known, was, store.payload(id))) is not None and rule.verb == "approve":
            raise was.no_second_yes()
        if was.state == "waiting" and was.due is not None and was.due <= store.now():
            return was, False
        if (stored := store.change_delivery(was, now)) is not None:
            return stored, True
    raise Conflict(f"{id} was changed by others again and again; nothing was done", next="changeover hooks list")


# -- a process that carries out ----------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Carrier:
    """Carries out what is due until `stop`; `news` is set by whoever has kept something. `fresh` says what the file of
    the hooks says by now."""

    store: Store
    ask: Asker
    hooks: Hooks
    fresh: Callable[[], Hooks] | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    news: threading.Event = field(default_factory=threading.Event)
    _busy: set[threading.Thread] = field(default_factory=set)

    def run(self) -> None:
        away = ""
        while not self.stop.is_set():
            self.news.clear()
            if self.fresh is not None:
                self.hooks = self.fresh()
            try:
                self._busy = {each for each in self._busy if each.is_alive()}
                for taken in take(self.store, self.hooks, most=HANDS - len(self._busy)):
                    thread = threading.Thread(
                        target=self._carry_out, args=(taken, self.hooks), name=taken.id, daemon=True
                    )
                    self._busy.add(thread)
                    thread.start()
                away = ""
            except (Unreachable, UnsafeStore) as error:
                if away != error.message:
                    log.warning("store", was="answering", now="away", error=str(error))
                away = error.message
            self.news.wait(EVERY)
        end = time.monotonic() + LAST_WORDS
        for thread in self._busy:
            thread.join(max(0.0, end - time.monotonic()))

    def end(self) -> None:
        self.stop.set()
        self.news.set()

    def _carry_out(self, taken: Delivery, hooks: Hooks) -> None:
        try:
            carry_out(self.store, self.ask, hooks, taken, Waiter(sleep=self._sleep))
        except (Unreachable, UnsafeStore) as error:  # it is due again when nobody has it in hand any more
            log.warning("hook", delivery=taken.id, why=error.message)
        self.news.set()

    def _sleep(self, seconds: float) -> None:
        if self.stop.wait(seconds):
            raise WaitTimeout("the process that carried it out has ended")
