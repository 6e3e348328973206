"""The one document that a report is made of: what `report.json` holds and the page shows.

Times are seconds of the epoch, unless a name says otherwise. Unknown keys are refused, so that a misspelt one is seen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Time = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Step(Part):
    """One stretch of one server's journey. `outcome`: `waiting` and `running` are not over; `undo` went backwards."""

    step: str
    start: Time
    end: Time
    outcome: Literal["done", "failed", "waiting", "running", "undo"] = "done"
    note: str = ""

    @model_validator(mode="after")
    def _ends_after_it_began(self) -> Step:
        if self.end < self.start:
            raise ValueError(f"{self.step} ends before it begins")
        return self


class Server(Part):
    """One server. `before` and `after` say what it was and became, in a word or two, such as a size or an address."""

    name: str
    outcome: Literal["upgraded", "rolled_back", "failed", "held", "pending", "running", "waiting"]
    wave: Count | None = None
    pool: str = ""
    reason: str = ""
    before: str = ""
    after: str = ""
    steps: tuple[Step, ...] = ()


class Mark(Part):
    """A moment that a reader should see. `fault`: something was broken on purpose, or broke."""

    t: Time
    label: str
    kind: Literal["note", "fault"] = "note"


class Second(Part):
    """What users saw in one second."""

    t: Time
    count: Count
    failed: Count
    p50_ms: Milliseconds | None = None
    p99_ms: Milliseconds | None = None
    max_ms: Milliseconds | None = None


class Latency(Part):
    """What users waited for in one phase."""

    count: Count
    p50_ms: Milliseconds | None = None
    p99_ms: Milliseconds | None = None
    max_ms: Milliseconds | None = None


class Proof(Part):
    """What `Certificate.as_dict()` says."""

    verdict: Literal["held", "broken", "unproven"]
    bound: Annotated[float, Field(ge=0, le=1)]
    confidence: float
    faults: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    observed: dict[str, Any]


class Fact(Part):
    label: str
    value: str


class Link(Part):
    label: str
    href: str


class Report(Part):
    """A rollout, told. `steps` names the steps in their order."""

    schema_: Literal[1] = Field(1, alias="schema")
    rollout: str
    fleet: str
    state: str
    started: Time
    ended: Time
    summary: str = ""
    steps: tuple[str, ...]
    servers: tuple[Server, ...]
    marks: tuple[Mark, ...] = ()
    traffic: tuple[Second, ...] = ()
    certificate: Proof | None = None
    latency: dict[str, Latency] = Field(default_factory=dict)
    facts: tuple[Fact, ...] = ()
    links: tuple[Link, ...] = ()

    @model_validator(mode="after")
    def _makes_sense(self) -> Report:
        if self.ended < self.started:
            raise ValueError("the rollout ends before it begins")
        strange = {step.step for server in self.servers for step in server.steps} - set(self.steps)
        if strange:
            raise ValueError(f"steps that are not in the list of steps: {', '.join(sorted(strange))}")
        return self


def read(document: Mapping[str, Any]) -> Report:
    """The report in a document. Raises ValueError, one line with every place that is wrong."""
    try:
        return Report.model_validate(document)
    except ValidationError as problem:
        places = (f"{'.'.join(map(str, error['loc'])) or 'report'}: {error['msg']}" for error in problem.errors())
        raise ValueError("the report's document is not right: " + "; ".join(places)) from problem


def dump(report: Report) -> str:
    """The document as JSON, such that `read` gives the same report."""
    return json.dumps(report.model_dump(mode="json", by_alias=True), indent=1, ensure_ascii=False) + "\n"
