"""Reads and writes messages, events and results as the plain JSON that they are.

kombu makes a new decoder and a new encoder for each text, and asks a function of its own about every object in it, in
case that stands for a date or a number that JSON does not have. Nothing of ours holds such a thing: here one encoder
and one decoder serve all, and kombu's are for a text that does.
"""

from __future__ import annotations

import json
from typing import Any

from kombu import serialization
from kombu.transport import redis as transport
from kombu.utils import json as kombu

_MARK = "__type__"  # what kombu puts where JSON has no word
_decode = json.JSONDecoder().decode
_encode = json.JSONEncoder(default=kombu.JSONEncoder().default).encode


def dumps(value: Any, **_: Any) -> str:
    """As kombu writes it."""
    return _encode(value)


def loads(text: Any, **_: Any) -> Any:
    """As kombu reads it. Raises `ValueError`."""
    if isinstance(text, (bytes, bytearray, memoryview)):
        text = bytes(text).decode()
    try:
        return kombu.loads(text) if _MARK in text else _decode(text)
    except RecursionError:  # who reads a queue is ready for what is no JSON, and for nothing else
        raise ValueError("it is nested too deep") from None


def apply() -> None:
    """From now on this process reads and writes them like this. It replaces what kombu's transport for Redis, of the
    version that `workers.guard` insists on, has by these names."""
    names: Any = transport  # whose types say that these are kombu's own
    names.loads, names.dumps = loads, dumps
    serialization.register("json", dumps, loads, content_type="application/json", content_encoding="utf-8")
