"""What may be in a request's body: read strictly, within bounds of size, depth, length and time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.requests import ClientDisconnect, Request

from orchestrator import fleet_file
from orchestrator.api.problems import Problem
from orchestrator.domain.fleet import Fleet

MAX_BODY = 2 * fleet_file.MAX_BYTES  # a fleet file as a JSON text may be as much longer
MAX_DEPTH = 20
WITHIN = 20.0  # seconds
LOGGED = 200  # characters of a path: what is refused may have one of 32 KiB
JSON, YAML = "application/json", "application/yaml"
Text = Annotated[str, Field(min_length=1, max_length=fleet_file.MAX_BYTES)]
Why = Annotated[str, Field(max_length=1000, pattern=r"^[^\x00-\x1f\x7f]*$")]
Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$")]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class FleetFile(Body):
    """A fleet file, as text in YAML."""

    fleet_file: Text


class Start(Body):
    """A plan that was made before, which the world must still be as it saw; or a fleet file."""

    plan: Id | None = None
    fleet_file: Text | None = None

    @model_validator(mode="after")
    def _one(self) -> Start:
        if (self.plan is None) == (self.fleet_file is None):
            raise ValueError("give one of plan and fleet_file")
        return self


class Reason(Body):
    """`why` is kept in the audit log."""

    why: Why = ""


class Back(Reason):
    """`server`: only this one."""

    server: Name | None = None


class Yes(Body):
    """`wave`: only if it is this one that waits, numbered from 0 as in the rollout's document."""

    wave: Annotated[int, Field(ge=0, le=10_000)] | None = None


class Nothing(Body):
    """Nothing can be said."""


class Again(Body):
    """`servers`: only these; else every one that is held or failed."""

    servers: Annotated[list[Name], Field(min_length=1, max_length=1000)] | None = None


class Stop(Body):
    """`reason` is shown to everybody."""

    reason: Why = ""


B = TypeVar("B", bound=Body)


async def raw_of(request: Request, *, most: int = MAX_BODY) -> bytes:
    """The whole body, of `most` bytes. Raises `Problem` for one that is too large, too slow, or packed."""
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Problem("unsupported-media-type", "a packed body is not read: send it without Content-Encoding")
    said = request.headers.get("content-length", "0")
    if said.isdigit() and int(said[:20]) > most:
        raise _too_large(most)
    found = bytearray()
    try:
        async with asyncio.timeout(WITHIN):
            async for chunk in request.stream():
                found += chunk
                if len(found) > most:
                    raise _too_large(most)
    except TimeoutError:
        headers = {"Connection": "close"}
        raise Problem("too-slow", f"the body was not here within {WITHIN:g} s", headers=headers) from None
    except ClientDisconnect:
        raise Problem("malformed", "the body was cut off") from None
    return bytes(found)


def _too_large(most: int) -> Problem:
    told = f"the body is too large; {most >> 10} KiB are the most"
    return Problem("too-large", told, headers={"Connection": "close"})


def kind_of(request: Request, *allowed: str) -> str:
    """The body's media type. Raises `Problem` if it is none of these."""
    given = request.headers.getlist("content-type")
    kind, _, rest = given[0].partition(";") if len(given) == 1 else ("", "", "")
    charset = rest.partition("charset=")[2].strip().strip('"').lower() or "utf-8"
    if kind.strip().lower() not in allowed or charset not in ("utf-8", "utf8"):
        raise Problem("unsupported-media-type", f"Content-Type must be {' or '.join(allowed)}, in UTF-8")
    return kind.strip().lower()


def parsed(raw: bytes, model: type[B]) -> B:
    """Raises `Problem` for what is no JSON as it should be, or not what the model says."""
    data = strict_json(raw)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        faults = [(pointer(each["loc"]), _plainly(each["msg"])) for each in error.errors(include_url=False)[:20]]
        told = "; ".join(f"{where or 'the body'}: {what}" for where, what in faults)
        raise Problem("bad-input", told, traffic="unchanged; nothing was created", faults=faults) from None


def fleet_of(text: str) -> Fleet:
    """Raises `BadInput` with each fault's pointer into the fleet file."""
    return fleet_file.read(text, name="fleet file")


def _plainly(message: str) -> str:
    return message.removeprefix("Value error, ")


def pointer(path: Sequence[str | int]) -> str:
    """RFC 6901."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def strict_json(raw: bytes) -> Any:
    """One JSON value in UTF-8: no key twice, no number that JSON does not know, no half of a character. Raises
    `Problem`."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise _malformed("it is not UTF-8") from None
    if text.startswith("\ufeff"):
        raise _malformed("it begins with a byte order mark")
    try:
        found = json.loads(text, object_pairs_hook=_once_each, parse_constant=_no_number, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        deep = isinstance(error, RecursionError)
        raise _malformed(f"it is nested deeper than {MAX_DEPTH} levels" if deep else str(error)) from None
    _check(found, 0)
    return found


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    found = float(text)
    if found in (float("inf"), float("-inf")):
        raise ValueError("a number is too large")
    return found


def _check(value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise _malformed(f"it is nested deeper than {MAX_DEPTH} levels")
    match value:
        case str():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise _malformed("a text holds half of a character") from None
        case dict():
            for key, each in value.items():
                _check(key, depth + 1)
                _check(each, depth + 1)
        case list():
            for each in value:
                _check(each, depth + 1)


def _malformed(why: str) -> Problem:
    return Problem("malformed", f"the body is no JSON that can be used: {why}")
