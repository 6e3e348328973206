"""The wire to a fake cloud in a process of its own (`providers.fake_host`): JSON lines over its unix socket.

Values of the providers' protocols cross as they are: a dataclass as its module, name and fields, and what JSON would
lose (tuples, sets, bytes, keys that are no text) marked as what it was.
"""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields, is_dataclass
from functools import cached_property
from importlib import import_module
from typing import Any, cast

from providers import Caps, errors
from providers.clients.bounded import Bounded
from providers.errors import ProviderError, Transient

PAUSE = 0.05  # seconds: see `providers.clients.rounds.linger`; this cloud answers at once
CONNECT_SECONDS, READ_SECONDS = 3.0, 10.0
_KIND = "@"


class Remote:
    """One provider, or the `operator`, of the fake cloud behind `settings["socket"]`. Threads have a connection each.

    Raises what the provider there raised. Where nobody answers it is `Transient`, ambiguous once the call was sent."""

    def __init__(self, role: str, settings: Mapping[str, Any]) -> None:
        self._path = str(settings["socket"])
        self._hello = {"role": role, "settings": {k: v for k, v in settings.items() if k != "socket"}}
        self._mine = threading.local()
        self._mine.wire = self._connect()

    @cached_property
    def caps(self) -> Caps:
        return cast(Caps, self._call("caps", (), {}))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self._call(name, args, kwargs)

    def _call(self, name: str, args: Collection[Any], kwargs: Mapping[str, Any]) -> Any:
        line = json.dumps([name, [pack(each) for each in args], {k: pack(v) for k, v in kwargs.items()}])
        link, wire = getattr(self._mine, "wire", None) or self._connect()
        self._mine.wire = None
        try:
            link.within(READ_SECONDS)
            answer = _ask(wire, line)
        except OSError as error:
            raise Transient(f"no answer of the fake cloud to {name}: {error}", ambiguous=True) from None
        self._mine.wire = link, wire
        return _read(answer)

    def _connect(self) -> tuple[Bounded, Any]:
        with Bounded(socket.AF_UNIX, socket.SOCK_STREAM) as link:  # which the file keeps open
            try:
                link.within(CONNECT_SECONDS)
                link.connect(self._path)
                link.within(READ_SECONDS)
                wire = link.makefile("rwb")
                _read(_ask(wire, json.dumps(self._hello)))
            except OSError as error:
                raise Transient(f"no fake cloud at {self._path}: {error}", ambiguous=False) from None
        return link, wire


def _ask(wire: Any, line: str) -> bytes:
    wire.write(line.encode() + b"\n")
    wire.flush()
    answer: bytes = wire.readline()
    if not answer.endswith(b"\n"):
        raise ConnectionError("the connection was closed")
    return answer


def _read(answer: bytes) -> Any:
    ok, value = json.loads(answer)
    if not ok:
        raise _error(value)
    return unpack(value)


def pack(value: Any) -> Any:
    """The value as JSON can hold it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        return {
            _KIND: f"{kind.__module__}:{kind.__qualname__}",
            "of": {f.name: pack(getattr(value, f.name)) for f in fields(value)},
        }
    match value:
        case ProviderError():
            return {_KIND: "error", "of": told(value)}
        case list():
            return [pack(each) for each in value]
        case tuple() | set() | frozenset():
            return {_KIND: type(value).__name__, "of": [pack(each) for each in value]}
        case bytes():
            return {_KIND: "bytes", "of": base64.b64encode(value).decode()}
        case Mapping():
            if _KIND not in value and all(isinstance(key, str) for key in value):
                return {key: pack(each) for key, each in value.items()}
            return {_KIND: "dict", "of": [[pack(key), pack(each)] for key, each in value.items()]}
        case Collection():  # a view of a mapping, for one
            return [pack(each) for each in value]
    raise TypeError(f"{type(value).__name__} does not cross the wire to a fake cloud")


def unpack(value: Any) -> Any:
    """What `pack` was given. Knows no classes but the dataclasses of `providers`."""
    if isinstance(value, list):
        return [unpack(each) for each in value]
    if not isinstance(value, dict):
        return value
    if _KIND not in value:
        return {key: unpack(each) for key, each in value.items()}
    kind, of = value[_KIND], value["of"]
    match kind:
        case "error":
            return _error(of)
        case "tuple":
            return tuple(unpack(each) for each in of)
        case "set" | "frozenset":
            return frozenset(unpack(each) for each in of)
        case "bytes":
            return base64.b64decode(of)
        case "dict":
            return {unpack(key): unpack(each) for key, each in of}
    module, _, name = kind.partition(":")
    found = getattr(import_module(module), name) if module.split(".")[0] == "providers" else None
    if not is_dataclass(found) or not isinstance(found, type):
        raise TypeError(f"{kind} does not cross the wire to a fake cloud")
    return found(**{key: unpack(each) for key, each in of.items()})


def told(error: ProviderError) -> Mapping[str, Any]:
    """An error for the wire."""
    return {"kind": type(error).__name__, "message": str(error), "more": vars(error)}


def _error(value: Mapping[str, Any]) -> Exception:
    kind = getattr(errors, value["kind"], None)
    if isinstance(kind, type) and issubclass(kind, ProviderError):
        return kind(value["message"], **value["more"])
    return RuntimeError(f"the fake cloud is broken: {value['message']}")
