"""What a whole rollout does next. Every decision is a value; the coordinator carries it out.

    running ⇄ baking ──▶ succeeded | failed          paused: what runs finishes its step, nothing new begins
       │                                             aborting ──▶ aborted: nothing new, what was begun is undone
       └── paused, aborting, rolling_back            rolling_back ──▶ rolled_back: everything back to A

    running ⇄ awaiting_approval, awaiting_window     no other server is begun; what is under way finishes

Two budgets. A failure before the swap costs money: more than `budget.before_swap` of them pause the rollout. A failure
after the swap hurts users: the first one stops the rollout, in the same commit that counts it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from orchestrator.domain.upgrade import Upgrade
from orchestrator.domain.windows import Windows, clock
from orchestrator.errors import IllegalTransition

RolloutState = Literal[
    "awaiting_approval",
    "awaiting_window",
    "running",
    "baking",
    "paused",
    "aborting",
    "rolling_back",
    "succeeded",
    "failed",
    "aborted",
    "rolled_back",
]
GOING: frozenset[RolloutState] = frozenset({"awaiting_approval", "awaiting_window", "running", "baking"})
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
ENDED: frozenset[RolloutState] = frozenset({"succeeded", "failed", "aborted", "rolled_back"})


@dataclass(frozen=True, kw_only=True)
class Approval:
    """What is asked before wave number `wave` begins: that `count` people say yes, of those in `by` where it names any.
    Where too few have after `within` seconds, `otherwise` happens."""

    wave: int
    count: int = 1
    by: tuple[str, ...] = ()
    within: float | None = None
    otherwise: Literal["pause", "abort", "continue"] = "pause"


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One execution of a plan. `waves` are server names. `stop` is set by the commit that counted a failure after a
    swap. `forgiven`: failures before the swap that a person accepted by resuming. `alarm`: whose new server does not
    serve as it must. `approved` is the last wave that needs no yes any more, `approved_by` who has said it of the one
    that was asked about since `asked_at`. Times are epoch seconds."""

    id: str
    plan: str
    fleet: str
    created_at: float
    created_by: str
    waves: tuple[tuple[str, ...], ...]
    max_in_flight: int
    allowed_failures: int
    bake: float
    on_abort: Literal["finish", "roll_back"]
    state: RolloutState = "running"
    version: int = 0
    wave: int = 0
    why: str = ""
    stop: str = ""
    resume_to: RolloutState | None = None
    paused_at: float | None = None
    bake_until: float | None = None
    forgiven: int = 0
    ended_at: float | None = None
    closed: bool = False
    alarm: str = ""
    approvals: tuple[Approval, ...] = ()
    windows: Windows | None = None
    approved: int = -1
    approved_by: tuple[str, ...] = ()
    asked_at: float | None = None
    opens_at: float | None = None

    @property
    def wakes_at(self) -> float | None:
        """When time alone moves it on."""
        match self.state:
            case "baking":
                return self.bake_until
            case "awaiting_window":
                return self.opens_at
            case "awaiting_approval":
                asked = self.approval
                limit = asked.within if asked is not None else None
                return None if limit is None or self.asked_at is None else self.asked_at + limit
            case _:
                return None

    @property
    def approval(self) -> Approval | None:
        """What its wave has to be approved by before it begins."""
        if self.approved >= self.wave:
            return None
        return next((each for each in self.approvals if each.wave == self.wave), None)

    @property
    def ended(self) -> bool:
        return self.state in ENDED


@dataclass(frozen=True, kw_only=True)
class Admit:
    """Let this server start."""

    server: str


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Turn this server back."""

    server: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Become:
    """The rollout itself moves on; `event` names it in the audit log."""

    rollout: Rollout
    event: str


Decision = Admit | Turn | Become


def decide(rollout: Rollout, upgrades: Sequence[Upgrade], *, failed_before_swap: int, now: float) -> list[Decision]:
    """What follows from how things are. Deciding twice from the same is harmless: acts compare what they change."""
    if rollout.closed:
        return []
    match rollout.state:
        case "running" | "baking" | "awaiting_approval" | "awaiting_window" if rollout.stop:
            return [Become(rollout=paused(rollout, why=rollout.stop, now=now), event="stopped")]
        case "running" | "baking" | "awaiting_approval" | "awaiting_window" | "failed" if (
            overlooked := _overlooked(rollout, upgrades)
        ) is not None:
            return [Become(rollout=reopened(rollout, upgrades, overlooked), event="reopened")]
        case "awaiting_approval":
            return _unanswered(rollout, now)
        case "awaiting_window":
            return _window(rollout, upgrades, now)
        case "running":
            return _run(rollout, upgrades, failed_before_swap, now)
        case "baking":
            if rollout.bake_until is not None and now < rollout.bake_until:
                return []
            if any(u.in_doubt for u in upgrades if u.wave == rollout.wave):
                return []  # what the bake is for: it is being made sure of
            return _next_wave(rollout, upgrades, now)
        case "aborting":
            return _abort(rollout, upgrades, now)
        case "rolling_back":
            return _roll_back(rollout, upgrades, now)
        case "paused" if rollout.stop and rollout.stop != rollout.why:
            return [
                Become(rollout=replace(rollout, why=rollout.stop), event="stopped")
            ]  # which is news to whoever paused
        case "paused":
            return []
        case _:
            if all(u.settled or u.state == "pending" for u in upgrades):
                return [Become(rollout=replace(rollout, closed=True, alarm=""), event="closed")]
            return []


def _overlooked(rollout: Rollout, upgrades: Sequence[Upgrade]) -> str | None:
    """One that is pending in a wave that is through: whoever released it died before the wave was reopened."""
    through = rollout.wave - (rollout.state in ("running", "awaiting_approval", "awaiting_window"))
    return next((u.server for u in upgrades if u.state == "pending" and u.wave <= through), None)


def _run(rollout: Rollout, upgrades: Sequence[Upgrade], failed: int, now: float) -> list[Decision]:
    counted = failed - rollout.forgiven
    if counted > rollout.allowed_failures:
        told = "1 server failed before its swap" if counted == 1 else f"{counted} servers failed before their swap"
        allowed = "1 is" if rollout.allowed_failures == 1 else f"{rollout.allowed_failures} are"
        why = f"{told}, {allowed} allowed; {'its old server serves' if counted == 1 else 'their old servers serve'}"
        return [Become(rollout=paused(rollout, why=why, now=now), event="budget spent")]
    wave = [u for u in upgrades if u.wave == rollout.wave]
    flying = [u for u in upgrades if in_flight(u)]
    pending = [u for u in wave if u.state == "pending"]
    if pending and (approval := rollout.approval) is not None:
        asked = replace(rollout, state="awaiting_approval", asked_at=now, approved_by=(), why=_asks(approval))
        return [Become(rollout=asked, event="approval asked")]
    if pending and rollout.windows is not None and rollout.windows.closes_at(now) is None:
        opens = rollout.windows.opens_at(now)
        told = f"no maintenance window is open until {clock(rollout.windows, opens)}"
        shut = replace(rollout, state="awaiting_window", opens_at=opens, why=told)
        return [Become(rollout=shut, event="window closed")]
    if pending:
        return [Admit(server=u.server) for u in admissible(pending, flying, rollout.max_in_flight)]
    if any(in_flight(u) for u in wave):
        return []
    if rollout.bake > 0:
        return [Become(rollout=replace(rollout, state="baking", bake_until=now + rollout.bake), event="baking")]
    return _next_wave(rollout, upgrades, now)


def _asks(approval: Approval) -> str:
    names = ", ".join(approval.by)
    if not names:
        who = "1 person has" if approval.count == 1 else f"{approval.count} people have"
    elif len(approval.by) == 1:
        who = f"{names} has"
    else:
        who = f"one of {names} has" if approval.count == 1 else f"{approval.count} of {names} have"
    return f"wave {approval.wave + 1} begins when {who} approved it"


def _unanswered(rollout: Rollout, now: float) -> list[Decision]:
    approval = rollout.approval
    if approval is None:  # a server of an earlier wave was tried again meanwhile, or nothing is to be approved
        return [Become(rollout=_goes_on(rollout), event="approved")]
    if rollout.wakes_at is None or now < rollout.wakes_at:
        return []
    why = f"wave {approval.wave + 1} was not approved in time"
    match approval.otherwise:
        case "pause":
            return [Become(rollout=paused(rollout, why=why, now=now), event="not approved")]
        case "abort":
            return [Become(rollout=aborting(rollout, why=why), event="not approved")]
        case "continue":
            return [Become(rollout=_goes_on(rollout, approved=rollout.wave), event="not approved")]


def _window(rollout: Rollout, upgrades: Sequence[Upgrade], now: float) -> list[Decision]:
    waits = any(u.state == "pending" and u.wave == rollout.wave for u in upgrades)
    if waits and rollout.windows is not None and rollout.windows.closes_at(now) is None:
        return []
    return [Become(rollout=_goes_on(rollout), event="window opened")]


def _goes_on(rollout: Rollout, *, approved: int | None = None) -> Rollout:
    last = rollout.approved if approved is None else approved
    return replace(rollout, state="running", why="", asked_at=None, opens_at=None, approved=last)


def admissible(pending: Sequence[Upgrade], flying: Sequence[Upgrade], limit: int) -> list[Upgrade]:
    """Those that may start now: within the limit, and of one failure domain at a time."""
    room = max(0, limit - len(flying))
    domain = next((u.domain for u in (*flying, *pending) if u.domain), "")
    return [u for u in pending if u.domain in ("", domain)][:room]


def in_flight(u: Upgrade) -> bool:
    return u.state in ("running", "waiting", "held")


def may_begin(rollout: Rollout, u: Upgrade) -> bool:
    """Whether one that was refused leave to begin its step would have it now, unless everything is frozen. Nothing but
    a freeze keeps an undo from beginning."""
    if u.direction == "undo":
        return True
    if rollout.stop or rollout.state in ("paused", "rolling_back"):
        return False
    return rollout.state != "aborting" or (u.past_swap and u.state != "upgraded")


def _next_wave(rollout: Rollout, upgrades: Sequence[Upgrade], now: float) -> list[Decision]:
    moved = replace(rollout, state="running", bake_until=None)
    if rollout.wave + 1 < len(rollout.waves):
        return [Become(rollout=replace(moved, wave=rollout.wave + 1), event="next wave")]
    if any(in_flight(u) for u in upgrades):
        return []  # of an earlier wave, and on its way back
    aside = [u for u in upgrades if u.state != "upgraded"]
    if not aside:
        return [Become(rollout=replace(moved, state="succeeded", ended_at=now, why=""), event="succeeded")]
    done = len(upgrades) - len(aside)
    serve = "its old server serves" if len(aside) == 1 else "their old servers serve"
    why = f"{done} of {len(upgrades)} servers upgraded; {_names(aside)} set aside, {serve}"
    return [Become(rollout=replace(moved, state="failed", ended_at=now, why=why), event="failed")]


def _names(upgrades: Sequence[Upgrade]) -> str:
    names = [u.server for u in upgrades]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _abort(rollout: Rollout, upgrades: Sequence[Upgrade], now: float) -> list[Decision]:
    flying = [u for u in upgrades if in_flight(u)]
    if not flying:
        return [Become(rollout=replace(rollout, state="aborted", ended_at=now), event="aborted")]
    return [
        Turn(server=u.server, why=rollout.why)
        for u in flying
        if u.direction == "forward" and not (u.past_swap and rollout.on_abort == "finish")
    ]


def _roll_back(rollout: Rollout, upgrades: Sequence[Upgrade], now: float) -> list[Decision]:
    undoing = [u for u in upgrades if in_flight(u) and u.direction == "undo"]
    forward = [u for u in upgrades if u.direction == "forward" and u.state != "pending" and not u.beyond_return]
    if not undoing and not forward:
        return [Become(rollout=replace(rollout, state="rolled_back", ended_at=now), event="rolled back")]
    newest_first = sorted(forward, key=lambda u: u.admitted_at or 0.0, reverse=True)
    # One that is held waits for a person: the others need not wait with it.
    room = max(0, rollout.max_in_flight - sum(u.state != "held" for u in undoing))
    return [Turn(server=u.server, why=rollout.why) for u in newest_first[:room]]


# -- what a person asks of a rollout ---------------------------------------------------------------------------------


def paused(rollout: Rollout, *, why: str, now: float) -> Rollout:
    """Pausing what is paused changes nothing."""
    if rollout.state == "paused":
        return rollout
    if rollout.state not in GOING:
        raise _illegal(rollout, "pause")
    then: RolloutState = "running" if rollout.state == "awaiting_window" else rollout.state
    return replace(rollout, state="paused", resume_to=then, why=why, paused_at=now)


def resumed(rollout: Rollout, *, failed_before_swap: int, now: float) -> Rollout:
    """It goes on where it was, its bake prolonged by the pause; failures so far are forgiven. Where nobody approved its
    wave in time it is asked anew. Not one behind a swap that came during the pause and is not yet told as its reason:
    whoever resumes knows nothing of that one."""
    if rollout.state in GOING:
        return rollout
    if rollout.state != "paused":
        raise _illegal(rollout, "resume")
    if rollout.stop and rollout.stop != rollout.why:
        raise IllegalTransition(
            f"rollout {rollout.id} has stopped while it was paused: {rollout.stop}",
            next=f"changeover show {rollout.id}, and then resume it again",
        )
    pause = now - (rollout.paused_at or now)
    asks = rollout.approval if rollout.resume_to == "awaiting_approval" else None
    asked = None if rollout.asked_at is None else rollout.asked_at + pause
    if asks and asked is not None and asks.within is not None and asked + asks.within <= now:
        asked = now
    return replace(
        rollout,
        state=rollout.resume_to or "running",
        resume_to=None,
        paused_at=None,
        why=_asks(asks) if asks else "",
        stop="",
        forgiven=failed_before_swap,
        bake_until=None if rollout.bake_until is None else rollout.bake_until + pause,
        asked_at=asked,
    )


def approved(rollout: Rollout, *, who: str, wave: int | None = None) -> Rollout:
    """One more says yes to the wave that waits for it; with the last that is wanted it begins. The same again changes
    nothing. Raises `IllegalTransition` where nothing, or another `wave`, waits, or `who` is none of those to say it."""
    if rollout.state in GOING and who in rollout.approved_by and wave in (None, rollout.wave):
        return rollout
    if rollout.state != "awaiting_approval" or (approval := rollout.approval) is None:
        raise _illegal(rollout, "approve")
    if wave not in (None, rollout.wave):
        raise IllegalTransition(
            f"rollout {rollout.id} waits for wave {rollout.wave + 1} to be approved, not for wave {(wave or 0) + 1}",
            next=f"changeover show {rollout.id}",
        )
    if approval.by and who not in approval.by:
        raise IllegalTransition(
            f"{who} is none of those who approve wave {rollout.wave + 1} of rollout {rollout.id}: "
            f"{', '.join(approval.by)}",
            next=f"changeover show {rollout.id}",
        )
    known = replace(rollout, approved_by=(*rollout.approved_by, who))
    if len(known.approved_by) < approval.count:
        return known
    return _goes_on(known, approved=rollout.wave)


def promoted(rollout: Rollout, *, now: float) -> Rollout:
    """The bake of its wave ends now. A new server that is in doubt still keeps the next wave waiting."""
    if rollout.state == "running":
        return rollout
    if rollout.state != "baking":
        raise _illegal(rollout, "promote")
    return replace(rollout, bake_until=min(now, rollout.bake_until or now))


def aborting(rollout: Rollout, *, why: str) -> Rollout:
    if rollout.state in ("aborting", "aborted"):
        return rollout
    if rollout.state not in GOING | {"paused"}:
        raise _illegal(rollout, "abort")
    return replace(rollout, state="aborting", why=why, stop="", resume_to=None)


def rolling_back(rollout: Rollout, *, why: str) -> Rollout:
    """Possible from every state as long as the rollout is not closed: the old servers are still there."""
    if rollout.state in ("rolling_back", "rolled_back"):
        return rollout
    if rollout.closed:
        raise _illegal(rollout, "roll back")
    return replace(rollout, state="rolling_back", why=why, stop="", resume_to=None, ended_at=None)


def reopened(rollout: Rollout, upgrades: Sequence[Upgrade], retried: str) -> Rollout:
    """A server that had been set aside is tried again: the rollout runs on at that server's wave, which bakes anew."""
    if rollout.closed or rollout.state not in GOING | {"paused", "failed"}:
        raise _illegal(rollout, "retry")
    wave = min(rollout.wave, next(u.wave for u in upgrades if u.server == retried))
    moved = replace(rollout, wave=wave, bake_until=None, ended_at=None, asked_at=None)
    if rollout.state == "paused":
        return replace(moved, resume_to="running")
    return replace(moved, state="running", why="")


def _illegal(rollout: Rollout, verb: str) -> IllegalTransition:
    return IllegalTransition(
        f"rollout {rollout.id} is {rollout.state}{', closed' if rollout.closed else ''}: nothing to {verb}",
        next=f"changeover show {rollout.id}",
    )


def exit_code(rollout: Rollout, held: int) -> int:
    """What the command line ends with: 0 ok, 1 failed, 3 paused or waiting for a person, 4 rolled back or aborted.
    `held` counts the servers that wait for a person, also after the rollout has ended."""
    if held:
        return 3
    match rollout.state:
        case "succeeded":
            return 0
        case "failed":
            return 1
        case "aborted" | "rolled_back":
            return 4
        case "paused" | "awaiting_approval":
            return 3
        case _:
            return 0


def wave_sizes(waves: Sequence[int | str], total: int) -> list[int]:
    """How many servers each wave takes: numbers are counts, "25%" is of the whole fleet (rounded up), "rest" is what
    is left. Waves that find nothing left are dropped. Raises ValueError when servers would be left over."""
    sizes: list[int] = []
    left = total
    for wave in waves:
        if wave == "rest":
            size = left
        elif isinstance(wave, str):
            size = -(-total * int(wave.removesuffix("%")) // 100)
        else:
            size = wave
        size = min(size, left)
        left -= size
        if size:
            sizes.append(size)
    if left:
        raise ValueError(f"the waves take {total - left} of {total} servers: end them with rest")
    return sizes


def split(names: Sequence[str], waves: Sequence[int | str]) -> tuple[tuple[str, ...], ...]:
    """The servers of each wave, in the order of the fleet file."""
    out: list[tuple[str, ...]] = []
    start = 0
    for size in wave_sizes(waves, len(names)):
        out.append(tuple(names[start : start + size]))
        start += size
    return tuple(out)


def is_id(text: str) -> bool:
    """Whether a rollout may be called so. A tag at a provider may say anything."""
    return _ID.match(text) is not None


def counts(upgrades: Sequence[Upgrade]) -> Mapping[str, int]:
    """Upgrades by state."""
    found: dict[str, int] = {}
    for u in upgrades:
        found[u.state] = found.get(u.state, 0) + 1
    return found
