"""One server's journey from A to B: a frozen record, the events that can happen to it, and `after`.

    pending ──Admitted──▶ running ⇄ waiting ──last Finished──▶ upgraded ──Finished(retire)──▶ upgraded, A gone
                            │          │                         │
                            └──TurnedBack (direction: undo)──────┘  until retire has begun
                                       │
                              last Undone ──▶ rolled_back (B had been given users, or a person asked)
                                          └─▶ failed      (it had not: A has served all the time)
    held: a person is asked, with the reason; Released goes on where it was, Settled ends it as a person found it

The record says everything that decides what happens next. Messages carry only who is meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from orchestrator.domain.steps import RETIRE, STEPS, following
from orchestrator.errors import IllegalTransition, PointOfNoReturn

State = Literal["pending", "running", "waiting", "held", "upgraded", "rolled_back", "failed"]
Direction = Literal["forward", "undo"]
Side = Literal["old", "new"]
FIRST, SCHEMA = 1, 1  # of what is stored and sent: the oldest that ever was, and ours
SURE = 3  # looks in a row that find B ill before it is believed
APART = 1.0  # seconds that these lie apart at least: a backlog of looks, made at once, is one
PATIENCE = 60.0  # seconds that a B may take to serve again after it was put back
OPEN: frozenset[State] = frozenset({"running", "waiting", "held"})
TERMINAL: frozenset[State] = frozenset({"upgraded", "rolled_back", "failed"})
MOST_LIVES = 10_000  # each of them was asked for by a person
CLOSE = 0.01  # seconds by which something may come before its time: clocks are read one after the other


@dataclass(frozen=True, kw_only=True)
class Intent:
    """What is about to be done, written before it is done. `token` and `name` find what it made.

    `attempt` counts definite refusals of this step; `rung` the fallback in use. `params` are frozen: whoever takes
    over acts with these and not with what it would choose now. `at` is epoch seconds.
    """

    step: str
    attempt: int
    rung: int
    token: str
    name: str
    at: float
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Observe:
    """What to ask a provider, in one call with all others of the lane. `kind` is image, server, guest, proven or idle.
    `ids` are provider ids; for traffic they are pool and member name in turn."""

    kind: str
    lane: str
    ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """Why nothing happens now. `observe` None is a wait for time alone. `at`: when to look next, epoch seconds;
    `every`: seconds between looks. `refused`: it waits for leave to begin its step, and may be woken before `at`."""

    reason: str
    at: float
    observe: Observe | None = None
    every: float = 1.0
    refused: bool = False


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the last look answered, per asked id, and when it was made."""

    kind: str
    at: float
    answers: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Ailing:
    """B does not serve as it must. `looks`: how many in a row found it ill, rather than on its way back."""

    why: str
    since: float
    at: float
    looks: int

    @property
    def sure(self) -> bool:
        """It was seen often enough, or for long enough, to be believed."""
        return self.looks >= SURE or self.at - self.since > PATIENCE


@dataclass(frozen=True, kw_only=True)
class Upgrade:
    """The record of one server in one rollout. `server` is its name in the fleet file.

    `why` is the reason of the present state, `cause` that of the turn back. `undoing` is the step whose undo has
    been announced in the audit log. `asked`: a person or a policy turned it back, not its own failure. `life` counts
    the times that it began anew. `by_hand`: why a person settled it as it stood; nothing is undone or retired then.
    `limit`: seconds that the step which has begun may take. `doubted`: tokens of which an unanswered call may still
    take effect, and until when."""

    rollout: str
    server: str
    wave: int
    domain: str = ""
    schema: int = SCHEMA
    state: State = "pending"
    direction: Direction = "forward"
    step: str = STEPS[0]
    intent: Intent | None = None
    begun: tuple[Intent, ...] = ()
    attempts: Mapping[str, int] = field(default_factory=dict)
    tries: int = 0
    deadline: float | None = None
    limit: float | None = None
    wait: Waiting | None = None
    seen: Seen | None = None
    results: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""
    cause: str = ""
    undoing: str = ""
    asked: bool = False
    life: int = 1
    admitted_at: float | None = None
    ended_at: float | None = None
    retain_until: float | None = None
    old_gone: bool = False
    by_hand: str = ""
    ailing: Ailing | None = None
    doubted: Mapping[str, float] = field(default_factory=dict)

    # -- what the record says -------------------------------------------------------------------------------------

    @property
    def past_swap(self) -> bool:
        """Users may have been sent to B: it begins at swap's first intent."""
        return any(intent.step == "swap" for intent in self.begun)

    @property
    def terminal(self) -> bool:
        return self.state in TERMINAL

    @property
    def settled(self) -> bool:
        """Nothing will happen to it any more, unless a person asks."""
        if self.state == "upgraded":
            return self.old_gone or bool(self.by_hand)
        return self.state in ("rolled_back", "failed")

    @property
    def old_lost(self) -> bool:
        """Somebody else has ended A while we were at it: it was found gone when it was to be stopped."""
        return self.state == "upgraded" and bool(self.results.get("drain_old", {}).get("gone"))

    @property
    def beyond_return(self) -> bool:
        """A's terminate has been decided: committed before the call is made. Or A is gone all the same, or a person has
        said that B is to stay."""
        return self.has_begun(RETIRE) or self.old_lost or (self.state == "upgraded" and bool(self.by_hand))

    @property
    def keeps_old(self) -> str:
        """Why A, or the image that is left of it, is not ended even when its time is up; empty where nothing but time
        keeps it. A person decides, or B serves again."""
        if self.state != "upgraded" or self.has_begun(RETIRE) or self.by_hand or self.ailing is None:
            return ""
        what = "image of the old server" if self.old_lost else "old server"
        return (
            f"the {what} of {self.server} is kept on, whatever its time: "
            f"the new one does not serve as it must ({self.ailing.why})"
        )

    @property
    def in_doubt(self) -> bool:
        """B is what users rely on, and may not serve as it must: it is being made sure of."""
        return self.direction == "forward" and self.ailing is not None and not self.ailing.sure

    @property
    def alarming(self) -> bool:
        """B is what users rely on, and surely does not serve as it must."""
        return self.direction == "forward" and self.ailing is not None and self.ailing.sure

    @property
    def asks_person(self) -> bool:
        """It goes nowhere by itself before a person has decided, or B serves again: it may be settled as it stands."""
        return self.state == "held" or bool(self.keeps_old)

    @property
    def remaining(self) -> tuple[str, ...]:
        """The steps that are left in its present direction, the due one first."""
        if self.settled:
            return ()
        if self.state == "upgraded":
            return (RETIRE,)
        if self.direction == "forward":
            return STEPS[STEPS.index(self.step) :]
        return tuple(step for step in reversed(STEPS[: STEPS.index(self.step) + 1]) if self.has_begun(step))

    @property
    def flaw(self) -> str:
        """Why no history leads to such a record, as after an edit by hand; empty when one may."""
        steps = {"pending": STEPS[:1], "upgraded": (RETIRE,)}.get(self.state, STEPS)
        if not 1 <= self.life <= MOST_LIVES:  # its former names in the balancers are looked for one by one
            return f"in its life {self.life}"
        if self.step not in steps:
            return f"{self.state} at {self.step}"
        if self.direction != "undo" and self.state in ("failed", "rolled_back"):
            return f"{self.state} on its way {self.direction}"
        if self.direction == "undo" and self.state in ("pending", "upgraded"):
            return f"{self.state} on its way back"
        if self.direction == "undo" and not self.terminal and not self.has_begun(self.step):
            return f"undoing {self.step}, which it has not begun"
        if self.intent is not None and (self.direction == "undo" or self.intent.step != self.step):
            return f"an intent of {self.intent.step} while {self.state} at {self.step} ({self.direction})"
        return ""

    def has_begun(self, step: str) -> bool:
        return any(intent.step == step for intent in self.begun)

    def intents(self, step: str) -> tuple[Intent, ...]:
        """Every intent that this step ever wrote, oldest first: undo covers each attempt and rung."""
        return tuple(intent for intent in self.begun if intent.step == step)

    def attempt(self, step: str) -> int:
        return self.attempts.get(step, 0)

    def unanswered(self, step: str) -> tuple[Intent, ...]:
        """Those of its intents of which no definite answer is known: what was asked for may have been made, or may
        still be."""
        if step in self.results:
            return ()
        return tuple(intent for intent in self.intents(step) if intent.attempt >= self.attempt(step))

    @property
    def traffic(self) -> str:
        """Where this server's users are served, in words for a person."""
        if self.terminal and self.by_hand:
            side = f"the new server of {self.server}" if self.state == "upgraded" else self.server
            return f"{side} serves, as settled by a person"
        if self.terminal and self.life == 1 and not self.begun:
            return f"nothing was done to {self.server}"
        does = "serves" if self.ailing is None else f"does not serve as it must ({self.ailing.why})"
        if self.state == "upgraded":
            return f"the new server of {self.server} {does}" + (
                ", the old one is gone" if self.old_gone or self.old_lost else ", the old one is kept stopped"
            )
        if self.state in ("pending", "failed", "rolled_back") or not self.past_swap:
            return f"{self.server} serves"
        if self.direction == "undo":
            return self._traffic_of_an_undo
        if self.has_begun("drain_old"):
            return f"the new server of {self.server} {does}, the old one is leaving"
        return f"{self.server} serves, and its new server joins it"

    @property
    def _traffic_of_an_undo(self) -> str:
        """The old one comes back before the new one leaves, and what is held does neither."""
        ails = "" if self.ailing is None else f", and does not serve as it must ({self.ailing.why})"
        match self.step, self.state:
            case "drain_old", "held":
                return f"{self.server} is not back; its new server stays in its pools until it is{ails}"
            case "drain_old", _:
                return f"{self.server} is being put back, its new server leaves after that{ails}"
            case "swap", _ if not self.has_begun("drain_old"):
                return f"its new server is to leave its pools, and stays in them until {self.server} serves there{ails}"
            case "swap", "held":
                return f"{self.server} is in its pools again, and its new server has still to leave them"
            case "swap", _:
                return f"{self.server} is in its pools again, and its new server leaves them"
            case _:
                return f"{self.server} serves"

    # -- what can happen to it ------------------------------------------------------------------------------------

    def after(self, event: Event) -> Upgrade:
        """The record after the event. Raises `IllegalTransition`; `PointOfNoReturn` for a turn that comes too late."""
        return _after(self, event)


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """The rollout lets it start."""

    at: float


@dataclass(frozen=True, kw_only=True)
class Began:
    """The intent is written; the effect may follow. `deadline`: epoch seconds by which the step must have finished."""

    intent: Intent
    deadline: float | None


@dataclass(frozen=True, kw_only=True)
class UndoBegan:
    """The undo of the due step is announced; its effects may follow."""

    deadline: float | None


@dataclass(frozen=True, kw_only=True)
class Waits:
    """The step says "not yet". `notes` replaces the step's own scratch."""

    wait: Waiting
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Looked:
    """An observation arrived. `again` is when to look next if it was not enough."""

    seen: Seen
    again: float


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The due step is done. `retain_until`: with the last step, how long A is kept. `wait`: what the next step would
    wait for first, so that no message is needed to say so; it has until `deadline` (epoch seconds), this included."""

    result: Mapping[str, Any]
    at: float
    retain_until: float | None = None
    wait: Waiting | None = None
    deadline: float | None = None


@dataclass(frozen=True, kw_only=True)
class Stumbled:
    """A try ended in nothing definite; the same intent is tried again at `at`. One that was `refused` leave to begin
    does not count."""

    why: str
    at: float
    counts: bool = True
    refused: bool = False


@dataclass(frozen=True, kw_only=True)
class AttemptEnded:
    """The provider said a definite no: a new attempt, with a new token, at `at`. `back_to`: the earlier step whose
    result is gone, so that this one and all since are done anew; empty for the due step alone."""

    why: str
    at: float
    back_to: Literal["", "create_image"] = ""


@dataclass(frozen=True, kw_only=True)
class TurnedBack:
    """From now on it is undone. `asked`: a person or a policy of the rollout did, not this server's own failure.
    `refused`: the due attempt had a definite no, so that nothing of it can still come."""

    why: str
    at: float
    asked: bool
    refused: bool = False


@dataclass(frozen=True, kw_only=True)
class Undone:
    """The due step's undo is done."""

    at: float
    result: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Held:
    """A person is needed. `why` says what for."""

    why: str


@dataclass(frozen=True, kw_only=True)
class Released:
    """A person said: go on. A failed or rolled back one starts anew, with new attempts."""

    at: float


@dataclass(frozen=True, kw_only=True)
class Settled:
    """A person says that this one serves and that it is to stay so: what is left of the other is theirs to end.
    `old_gone`: A was seen to be gone."""

    serving: Side
    why: str
    at: float
    old_gone: bool = False


@dataclass(frozen=True, kw_only=True)
class Doubted:
    """A call under the present intent was not answered, and may take effect until then (epoch seconds), though a later
    one with the same token is answered."""

    until: float


@dataclass(frozen=True, kw_only=True)
class Ailed:
    """A look has found B not serving as it must. `ill`: it is sick or gone, and not just on its way back."""

    why: str
    at: float
    ill: bool


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """B serves again."""


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """Its places in the pools were put right: what must serve was put back, or what must not be there was taken out."""


@dataclass(frozen=True, kw_only=True)
class Shifted:
    """It was paused for so many seconds: its deadline moves by them."""

    seconds: float


Event = (
    Admitted
    | Began
    | UndoBegan
    | Waits
    | Looked
    | Finished
    | Stumbled
    | AttemptEnded
    | TurnedBack
    | Undone
    | Held
    | Released
    | Settled
    | Doubted
    | Ailed
    | Recovered
    | Repaired
    | Shifted
)


def _after(u: Upgrade, event: Event) -> Upgrade:
    active = u.state in ("running", "waiting")
    retiring = u.state == "upgraded" and not u.settled
    # An effect was announced: only then is there something that can wait, or be done.
    at_work = u.intent is not None if u.direction == "forward" else u.undoing == u.step
    if u.flaw:
        raise IllegalTransition(
            f"the record of {u.server} makes no sense ({u.flaw}): somebody has changed it by hand",
            next=f"changeover explain {u.server}",
        )
    match event:
        case Admitted(at=at) if u.state == "pending":
            return replace(u, state="running", admitted_at=at, why="")
        case Began(intent=intent, deadline=deadline) if (
            (active or (retiring and not u.keeps_old and intent.at >= (u.retain_until or 0.0) - CLOSE))
            and u.direction == "forward"
            and u.intent is None
            and (intent.step, intent.attempt) == (u.step, u.attempt(u.step))
        ):
            state: State = u.state if retiring else "running"
            return replace(
                u,
                state=state,
                intent=intent,
                begun=(*u.begun, intent),
                deadline=deadline,
                limit=u.limit or (None if deadline is None else deadline - intent.at),
                wait=None,
                seen=u.seen,  # by what it waited for before it began
                why="",
            )
        case UndoBegan(deadline=deadline) if active and u.direction == "undo" and u.undoing != u.step:
            return replace(u, state="running", undoing=u.step, deadline=deadline, wait=None, seen=None)
        case Waits(wait=wait, notes=notes) if (active or retiring) and at_work:
            state = u.state if retiring else "waiting"
            return replace(u, state=state, wait=wait, seen=None, notes=notes, tries=0, why=wait.reason)
        case Looked(seen=seen, again=again) if u.wait is not None and u.wait.observe is not None:
            return replace(u, seen=seen, wait=replace(u.wait, at=again))
        case Finished() if retiring and u.intent is not None and u.intent.step == RETIRE:
            return replace(u, **_fresh(), old_gone=True, results={**u.results, RETIRE: event.result}, why="")
        case Finished() if active and u.direction == "forward" and u.intent is not None:
            return _finished(u, event)
        case Stumbled(why=why, at=at, counts=counts) if active or retiring:
            state = u.state if retiring else "waiting"
            untimed = event.refused and u.intent is None  # it has all its time once it may begin
            return replace(
                u,
                state=state,
                wait=Waiting(reason=why, at=at, refused=event.refused),
                seen=None,
                deadline=None if untimed else u.deadline,
                limit=None if untimed else u.limit,
                tries=u.tries + counts,
                why=why,
            )
        case AttemptEnded(back_to=back) if active and u.direction == "forward" and u.intent is not None:
            if not back or (back in u.results and not u.past_swap):
                return _anew(u, event)
        case TurnedBack():
            return _turned_back(u, event)
        case Undone(at=at) if active and u.direction == "undo" and at_work:
            return _undone(u, at)
        case Held(why=why) if active:
            return replace(u, state="held", wait=None, seen=None, notes={}, why=why)
        case Released(at=at) if u.state == "held":
            return replace(_timed_anew(u, at), state="waiting", wait=Waiting(reason="released by a person", at=at))
        case Released() if u.state in ("failed", "rolled_back"):
            # Every step that had begun gets a new attempt: its old tokens stand for things that were destroyed, and for
            # a drain that A has come back from, though Redis may have forgotten that.
            begun = [step for step in STEPS if u.has_begun(step) or step == "drain_old"]
            attempts = {**u.attempts, **{step: u.attempt(step) + 1 for step in begun}}
            return Upgrade(
                rollout=u.rollout, server=u.server, wave=u.wave, domain=u.domain, attempts=attempts, life=u.life + 1
            )
        case Ailed(why=why, at=at, ill=ill) if u.past_swap and u.direction == "forward" and not u.by_hand:
            was = u.ailing or Ailing(why=why, since=at, at=at - APART, looks=0)
            if at - was.at < APART:
                return u
            return replace(u, ailing=replace(was, why=why, at=at, looks=was.looks + ill))
        case Doubted(until=until) if active and u.direction == "forward" and u.intent is not None:
            return replace(u, doubted={**u.doubted, u.intent.token: until})
        case Recovered() if u.ailing is not None:
            return replace(u, ailing=None)
        case Repaired() if u.past_swap or u.life > 1:
            return u
        case Settled(serving=serving) if u.asks_person and not (u.old_lost and serving == "old"):
            return _settled(u, event)
        case Shifted(seconds=seconds) if not u.terminal:
            if u.direction == "forward" and u.wait is not None and u.wait.refused:
                # What it waits for is to begin its step, which the pause has refused: it may now.
                return replace(u, state="running", wait=None, why="")
            return replace(u, deadline=None if u.deadline is None else u.deadline + seconds)
    raise IllegalTransition(
        f"{u.server} is {u.state} at {u.step} ({u.direction}): {type(event).__name__} does not apply",
        traffic=u.traffic,
        next=f"changeover explain {u.server}",
    )


def _fresh() -> dict[str, Any]:
    """What a new step, or a new attempt at one, begins with."""
    return {"intent": None, "wait": None, "seen": None, "tries": 0, "deadline": None, "limit": None, "notes": {}}


def _timed_anew(u: Upgrade, at: float) -> Upgrade:
    """Its step has all its time and tries once more: without a deadline nobody would ever be asked again. An undo is
    announced anew, and has its deadline from that."""
    if u.direction == "undo":
        return replace(u, tries=0, deadline=None, undoing="")
    return replace(u, tries=0, deadline=None if u.limit is None else at + u.limit)


def _finished(u: Upgrade, event: Finished) -> Upgrade:
    results = {**u.results, u.step: event.result}
    follower = following(u.step)
    if follower is None:
        ended = replace(u, **_fresh(), state="upgraded", step=RETIRE, results=results, ended_at=event.at)
        gone = "its old server was gone already, deleted by somebody else: nothing was stopped or can be put back"
        return replace(ended, why=gone if ended.old_lost else "", retain_until=event.retain_until)
    if event.wait is None:
        return replace(u, **_fresh(), state="running", step=follower, results=results, why="")
    limit = None if event.deadline is None else event.deadline - event.at
    first = {**_fresh(), "wait": event.wait, "deadline": event.deadline, "limit": limit}
    return replace(u, **first, state="waiting", step=follower, results=results, why=event.wait.reason)


def _settled(u: Upgrade, event: Settled) -> Upgrade:
    ended = replace(u, **_fresh(), ailing=None, why=event.why, by_hand=event.why, ended_at=event.at, retain_until=None)
    if event.serving == "new":
        return replace(ended, state="upgraded", direction="forward", step=RETIRE, old_gone=event.old_gone)
    step = u.step if u.step in STEPS else STEPS[-1]
    return replace(ended, state="rolled_back", direction="undo", step=step, cause=u.cause or event.why, asked=True)


def _anew(u: Upgrade, event: AttemptEnded) -> Upgrade:
    first = event.back_to or u.step
    again = STEPS[STEPS.index(first) : STEPS.index(u.step) + 1]
    return replace(
        u,
        **{**_fresh(), "wait": Waiting(reason=event.why, at=event.at)},
        state="waiting",
        step=first,
        attempts={**u.attempts, **{step: u.attempt(step) + 1 for step in again}},
        results={step: result for step, result in u.results.items() if step not in again},
        why=event.why,
    )


def _turned_back(u: Upgrade, event: TurnedBack) -> Upgrade:
    why, at, asked = event.why, event.at, event.asked
    if u.by_hand and u.state == "upgraded":
        raise PointOfNoReturn(
            f"{u.server} was settled by a person, served by its new server: {u.by_hand}",
            traffic=u.traffic,
            next=f"changeover explain {u.server}",
        )
    if u.beyond_return:
        gone = "is gone: somebody else has deleted it" if u.old_lost else "is terminated, or about to be"
        raise PointOfNoReturn(
            f"{u.server}: its old server {gone}",
            traffic=u.traffic,
            next=f"changeover show {u.rollout}",
        )
    if u.state in ("failed", "rolled_back") or (u.direction == "undo" and u.state != "held"):
        return u  # already there, or on its way: asking twice is the same as asking once
    if u.direction == "undo":
        return replace(_timed_anew(u, at), state="waiting", wait=Waiting(reason=why, at=at), why=why)
    if not u.begun:
        ended: State = "rolled_back" if asked else "failed"
        u = replace(u, **_fresh(), direction="undo", step=STEPS[0])
        return replace(u, state=ended, why=why, cause=why, asked=asked, ended_at=at)
    begun = [step for step in STEPS if u.has_begun(step)]
    used_up = {u.step: u.attempt(u.step) + 1} if event.refused and u.intent is not None else {}
    return replace(
        u,
        **_fresh(),
        attempts={**u.attempts, **used_up},
        state="running",
        direction="undo",
        step=begun[-1],
        why=why,
        cause=why,
        asked=asked,
        ended_at=None,
        retain_until=None,
    )


def _undone(u: Upgrade, at: float) -> Upgrade:
    left = u.remaining[1:]
    if left:
        return replace(u, **_fresh(), state="running", step=left[0])
    ended: State = "rolled_back" if u.asked or u.past_swap else "failed"
    return replace(u, **_fresh(), state=ended, why=u.cause, ailing=None, ended_at=at)
