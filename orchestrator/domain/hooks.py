"""The hook file as a model: who may knock, by what signature, and which event does what to which fleet.

Conditions are values at fixed places of the payload, and so are the values taken from it. Nothing of a payload is ever
run, formatted or looked up: it is compared, or put in a place that the file names, and judged there like a fleet file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from orchestrator.domain.fleet import Line, Model, Name
from orchestrator.domain.signatures import Scheme

Verb = Literal["start", "approve", "pause", "abort"]
Event = Literal["deployment", "workflow_run", "release"]
Plain = str | int | float | bool | None
# Where GitHub says in the payload, which is signed, when it happened: its signature has no time of its own.
WHEN: Mapping[str, str] = {
    "deployment": "/deployment/updated_at",
    "workflow_run": "/workflow_run/updated_at",
    "release": "/release/published_at",
}
NEW = 3 * 86400.0  # seconds: for so long GitHub itself delivers again
AHEAD = 300.0  # seconds that a clock may be ahead
_POINTER = re.compile(r"(/([^/~\x00-\x1f\x7f]|~[01])*)+")
_PLACE = re.compile(r"[a-z_]{1,64}(\.[A-Za-z0-9_-]{1,64}){0,10}")


def _pointer(value: str) -> str:
    if not _POINTER.fullmatch(value) or len(value) > 300:
        raise ValueError("write a place in the payload as a JSON pointer, such as /deployment/environment")
    return value


def _place(value: str) -> str:
    if not _PLACE.fullmatch(value):
        raise ValueError("write a place in the fleet file with dots, such as target.size.disk")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, (str, int, bool)) or value is None:
        return value
    raise ValueError("wants one text, whole number, true, false or null to compare with")


Pointer = Annotated[str, AfterValidator(_pointer)]
Place = Annotated[str, AfterValidator(_place)]
Compared = Annotated[Any, AfterValidator(_plain)]


class Start(Model):
    """A rollout of a fleet file, with values of the payload put into it (`set`: place in the file -> place in the
    payload); or of a plan of that fleet that was made before, whose id the payload says."""

    fleet_file: Line | None = None
    set: Annotated[Mapping[Place, Pointer], Field(max_length=50)] = {}
    plan: Pointer | None = None
    fleet: Name | None = None

    @model_validator(mode="after")
    def _one(self) -> Start:
        if (self.fleet_file is None) == (self.plan is None):
            raise ValueError("give one of fleet_file and plan")
        if (self.plan is None) != (self.fleet is None):
            raise ValueError("with plan, and only with it, say the fleet that it must be for")
        if self.set and self.plan is not None:
            raise ValueError("a plan is carried out as it was agreed: leave set out")
        return self


class Stop(Model):
    """Every open rollout of that fleet, or the one that the payload says, if it is of that fleet. `why`: where the
    payload says a reason for the audit log."""

    fleet: Name
    rollout: Pointer | None = None
    why: Pointer | None = None


class Approve(Model):
    """The wave that waits for it, of every rollout of that fleet or of the one that the payload says. `who`: where the
    payload says whose yes it is; else it is the hook's, by its name."""

    fleet: Name
    rollout: Pointer | None = None
    who: Pointer | None = None


class Rule(Model):
    """If everything of `when` is so, that is done. `event`: of GitHub's."""

    event: Event | None = None
    when: Annotated[Mapping[Pointer, Compared], Field(max_length=20)] = {}
    start: Start | None = None
    approve: Approve | None = None
    pause: Stop | None = None
    abort: Stop | None = None

    @model_validator(mode="after")
    def _one(self) -> Rule:
        if sum(asked is not None for asked in (self.start, self.approve, self.pause, self.abort)) != 1:
            raise ValueError("say one of start, approve, pause and abort")
        return self

    @property
    def verb(self) -> Verb:
        verbs: tuple[Verb, ...] = ("start", "approve", "pause", "abort")
        return next(verb for verb in verbs if getattr(self, verb) is not None)

    @property
    def decides(self) -> Approve | Stop | None:
        """What is decided about rollouts that are there."""
        return self.approve or self.pause or self.abort


class Hook(Model):
    """`secrets` are files, each with one: several while one is being replaced by another. The first rule that fits is
    followed."""

    scheme: Scheme
    secrets: Annotated[tuple[Line, ...], Field(min_length=1, max_length=4)]
    rules: Annotated[tuple[Rule, ...], Field(min_length=1, max_length=100)]

    @model_validator(mode="after")
    def _events(self) -> Hook:
        for n, rule in enumerate(self.rules):
            if rule.event is None and self.scheme == "github":
                raise ValueError(f"rules[{n}]: event is wanted: deployment, workflow_run or release")
            if rule.event is not None and self.scheme == "standard":
                raise ValueError(f"rules[{n}]: event is GitHub's alone: compare what the payload says, by when")
            if self.scheme == "standard" and not rule.when:
                raise ValueError(f"rules[{n}]: when is wanted, such as {{/type: release.ready}}")
        return self


class HookFile(Model):
    version: Literal[1]
    hooks: Annotated[Mapping[Name, Hook], Field(min_length=1, max_length=100)]


class Missing(Exception):  # no error of anybody's yet: whoever asks knows what it means
    """The payload has no plain value there."""


def at(payload: Any, pointer: str) -> Plain:
    """The plain value at that place (RFC 6901). Raises `Missing`."""
    found = payload
    for part in (each.replace("~1", "/").replace("~0", "~") for each in pointer.split("/")[1:]):
        if isinstance(found, Mapping) and part in found:
            found = found[part]
        elif isinstance(found, list) and re.fullmatch(r"0|[1-9][0-9]{0,5}", part) and int(part) < len(found):
            found = found[int(part)]
        else:
            raise Missing(pointer)
    if isinstance(found, (str, int, float, bool)) or found is None:
        return found
    raise Missing(pointer)


def fitting(hook: Hook, event: str, payload: Any) -> Rule | None:
    """The rule to follow."""
    return next((rule for rule in hook.rules if (rule.event or "") == event and _fits(rule, payload)), None)


def _fits(rule: Rule, payload: Any) -> bool:
    try:
        return all(_same(at(payload, pointer), wanted) for pointer, wanted in rule.when.items())
    except Missing:
        return False


def _same(one: Plain, other: Plain) -> bool:
    """`true` is not 1, as it is in Python."""
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def too_old(event: str, payload: Any, *, now: float) -> str:
    """Why an event of GitHub's is not followed however well it is signed; empty if it is. Until it is too old it is
    remembered, and cannot be played once more."""
    try:
        said = at(payload, WHEN[event])
        moment = datetime.fromisoformat(str(said))
    except (Missing, ValueError):
        return f"it does not say at {WHEN[event]} when it happened"
    if moment.tzinfo is None:
        return f"it says no time zone at {WHEN[event]}"
    age = now - moment.timestamp()
    return "" if -AHEAD <= age <= NEW else f"it is of {said}, and not of the last {NEW / 86400:.0f} days"
