"""What a person can decide on the page: which buttons there are, and what each would do. What they do is in
`orchestrator.verbs`; here is only what a page needs round them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from orchestrator import verbs
from orchestrator.domain import rollout as decisions
from orchestrator.domain.rollout import Rollout
from orchestrator.domain.token import Scope, Token
from orchestrator.domain.upgrade import TurnedBack, Upgrade
from orchestrator.errors import Conflict


@dataclass(frozen=True, kw_only=True)
class Verb:
    """`does` is the question's first sentence, `button` the word to agree with. `why`: a reason may be given. `grave`:
    users' servers are moved by it."""

    name: str
    scope: Scope
    button: str
    does: str
    why: bool
    grave: bool = False


PAUSE = Verb(
    name="pause",
    scope=verbs.VERBS["pause"].scope,
    button="Pause",
    does="Nothing new begins. What is under way finishes its step and waits; every user is served as now.",
    why=True,
)
RESUME = Verb(
    name="resume",
    scope=verbs.VERBS["resume"].scope,
    button="Resume",
    does="It goes on where it was paused. Failures so far are forgiven, and deadlines move by the pause.",
    why=False,
)
ABORT = Verb(
    name="abort",
    scope=verbs.VERBS["abort"].scope,
    button="Abort",
    does="Nothing new begins, and what has begun is undone, or finished behind its swap as the fleet file says. "
    "Servers that are upgraded stay upgraded.",
    why=True,
    grave=True,
)
ROLLBACK = Verb(
    name="rollback",
    scope=verbs.VERBS["rollback"].scope,
    button="Roll back",
    does="Every old server that is still kept comes back, newest first: it serves again before its new one leaves.",
    why=True,
    grave=True,
)
RETRY = Verb(
    name="retry",
    scope=verbs.VERBS["retry"].scope,
    button="Retry",
    does="Servers that are held go on where they were; those that were set aside begin anew.",
    why=False,
)
APPROVE = Verb(
    name="approve",
    scope=verbs.VERBS["approve"].scope,
    button="Approve",
    does="You say yes to the wave that waits for it. It begins once enough people have.",
    why=False,
)
PROMOTE = Verb(
    name="promote",
    scope=verbs.VERBS["promote"].scope,
    button="End the bake",
    does="The wave that is through bakes no longer, and the next one begins.",
    why=False,
)
VERBS: Mapping[str, Verb] = {verb.name: verb for verb in (APPROVE, PAUSE, RESUME, PROMOTE, ABORT, ROLLBACK, RETRY)}
ONE: Mapping[str, str] = {  # what it does to a single server
    "rollback": "Its old server comes back and serves, and then its new one leaves.",
    "retry": "It goes on where it was held; if it was set aside, it begins anew.",
}
FREEZE = Verb(
    name="freeze",
    scope="admin",
    button="Freeze",
    does="From now on no step of any rollout begins, forward or back. Calls that are on their way end as they end.",
    why=True,
    grave=True,
)
UNFREEZE = Verb(name="unfreeze", scope="admin", button="Unfreeze", does="Steps begin again.", why=False)
Freezing = Literal["freeze", "unfreeze"]


def of_rollout(r: Rollout, upgrades: tuple[Upgrade, ...], token: Token) -> list[Verb]:
    """What this caller can ask of it now."""
    changes: Mapping[str, Callable[[], object]] = {
        "approve": lambda: decisions.approved(r, who=token.name, wave=None),
        "promote": lambda: decisions.promoted(r, now=r.created_at),
        "pause": lambda: decisions.paused(r, why="", now=r.created_at),
        "resume": lambda: decisions.resumed(r, failed_before_swap=0, now=r.paused_at or r.created_at),
        "abort": lambda: decisions.aborting(r, why=""),
        "rollback": lambda: decisions.rolling_back(r, why=""),
    }
    found = [VERBS[name] for name, change in changes.items() if _would(change, r)]
    if any(can_retry(r, u) for u in upgrades if u.state in ("held", "failed")):
        found.append(RETRY)
    return [verb for verb in found if token.may(verb.scope)]


def of_server(r: Rollout, u: Upgrade, token: Token) -> list[Verb]:
    found = [RETRY] if can_retry(r, u) else []
    turn = TurnedBack(why="", at=u.ended_at or u.admitted_at or r.created_at, asked=True)
    if not r.closed and u.state != "pending" and _would(lambda: u.after(turn), u):
        found.append(ROLLBACK)
    return [verb for verb in found if token.may(verb.scope)]


def _would(change: Callable[[], object], was: object) -> bool:
    try:
        return change() != was
    except Conflict:
        return False


def can_retry(r: Rollout, u: Upgrade) -> bool:
    if u.state == "held":
        return not r.closed
    if u.state not in ("failed", "rolled_back"):
        return False
    return _would(lambda: decisions.reopened(r, [u], u.server), None)
