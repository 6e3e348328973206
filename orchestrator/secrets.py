"""What this process knows to be secret, and that is written nowhere: not in Redis, not in a message, not in a log.

Secrets are references (`env:`, `file:`) until the moment of use. Whoever resolves one remembers its value here, and at
each boundary where text leaves the process (`store/codec.py`, `logs.py`, `tasks/__init__.py`) it is taken out again:
an error of a provider may echo a request, and a hook may print what it was given. What is shorter than eight characters
is not looked for: it would be found in innocent words.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any
from urllib.parse import unquote

REDACTED = "[REDACTED]"
SHORTEST = 8  # characters
LONGEST_TEXT = 1000  # characters that are kept of what somebody else says
NAMES = re.compile(r"authorization|cookie|token|secret|passw|credential|private|api-?_?key|access_?key", re.IGNORECASE)
_PASSWORD = re.compile(r"://[^/?#@\s]*:([^/?#@\s]+)@")

_known: tuple[str, ...] = ()  # longest first: one may hold another
_forms: tuple[bytes, ...] = ()  # as JSON writes them


def remember(value: str) -> None:
    """From now on the value, and each long word of it (`Bearer ...`), is taken out of whatever is written."""
    global _known, _forms  # noqa: PLW0603 - what a process knows, it knows everywhere in it
    parts = {part for part in (value, *value.split()) if len(part) >= SHORTEST}
    if parts <= set(_known):
        return
    _known = tuple(sorted({*_known, *parts}, key=len, reverse=True))
    _forms = tuple(_escaped(each).encode() for each in _known)


def remember_environment() -> None:
    """What the environment names as a secret, and the passwords in its addresses."""
    for name, value in os.environ.items():
        if NAMES.search(name):
            remember(value)
        for password in _PASSWORD.findall(value):
            remember(password)
            remember(unquote(password))


def redact(text: str) -> str:
    """The text without any secret that is known here."""
    for each in _known:
        if each in text:
            text = text.replace(each, REDACTED)
    return text


def shortened(value: Any) -> Any:
    """What JSON can say, of dataclasses their fields, with no text longer than a record has room for: a provider may
    answer with megabytes. What is cut is redacted before, since half a secret would not be known for one."""
    match value:
        case str() if len(value) > LONGEST_TEXT:
            return redact(value)[: LONGEST_TEXT - 1] + "…"
        case str() | int() | float() | None:  # most of all: to ask whether it is a mapping takes longer
            return value
        case Mapping():
            return {key: shortened(each) for key, each in value.items()}
        case list() | tuple():
            return [shortened(each) for each in value]
        case _ if is_dataclass(value) and not isinstance(value, type):
            return shortened(field_values(value))
    return value


def field_values(of: Any) -> dict[str, Any]:
    """Of a dataclass, by their names: `asdict`, without a copy of what is in them. Raises `TypeError` for others."""
    return {each.name: getattr(of, each.name) for each in fields(of)}


def redact_json(document: bytes) -> bytes:
    """The same of a JSON document, which stays one: numbers and the names of fields are left alone."""
    if not any(form in document for form in _forms):
        return document
    return json.dumps(redacted(json.loads(document)), ensure_ascii=False, separators=(",", ":")).encode()


def redacted(value: Any) -> Any:
    """The same of what JSON can say."""
    match value:
        case str():
            return redact(value)
        case dict():
            return {key: redacted(each) for key, each in value.items()}
        case list() | tuple():
            return [redacted(each) for each in value]
    return value


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
