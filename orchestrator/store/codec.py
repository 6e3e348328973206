"""Records as JSON and back. Only what differs from a field's default is written; `schema` always, and first.

A change of a field or of its default needs a new `SCHEMA` in `orchestrator.domain.upgrade`, and for the kinds that it
touches an `older`: the way from a document of the version before. So a new version reads what the one before it wrote,
and writes its own; the one before leaves that alone (docs/decisions/0009-versions-of-what-is-stored.md).
"""

from __future__ import annotations

import json
import threading
import zlib
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json

from orchestrator import secrets
from orchestrator.domain.delivery import Delivery
from orchestrator.domain.orphans import Sighting
from orchestrator.domain.outbox import Feed
from orchestrator.domain.rollout import Rollout
from orchestrator.domain.token import Session, Token
from orchestrator.domain.upgrade import FIRST, SCHEMA, Upgrade
from orchestrator.errors import UnsafeStore
from orchestrator.store import LedgerItem

T = TypeVar("T")
Document = dict[str, Any]
UNPACKED = 64 * 1024 * 1024  # bytes that a record or a rollout may have in the audit log; of 10,000 servers it is 1


def _unchanged(document: Document) -> Document:
    return document


class Codec(Generic[T]):
    """One kind of record. `older` makes a document of this schema from one of the schema before."""

    def __init__(
        self, kind: type[T], *, schema: int = SCHEMA, older: Callable[[Document], Document] = _unchanged
    ) -> None:
        self._kind = kind.__name__
        self._type = kind
        self._schema = schema
        self._older = older
        self._head = b'{"schema":%d,' % schema

    @cached_property
    def _adapter(self) -> TypeAdapter[T]:
        """Made at its first use: a command that only lists rollouts reads no other record."""
        return TypeAdapter(self._type)

    def dump(self, value: T) -> bytes:
        """Raises ValueError for a record of another schema, or what JSON cannot say."""
        if getattr(value, "schema", self._schema) != self._schema:
            raise ValueError(f"this version writes {self._kind} records of schema {self._schema} only")
        try:
            return secrets.redact_json(self._head + self._adapter.dump_json(value, exclude_defaults=True)[1:])
        except PydanticSerializationError as error:
            raise ValueError(f"{self._kind}: {error}") from error

    def load(self, text: bytes | None, *, key: str) -> T:
        """Raises `UnsafeStore` naming `key` when what is stored there is no record of this schema or the one before."""
        if text is None or not text.startswith(self._head):
            text = self._from_older(text, key)
        try:
            found = self._adapter.validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise _unreadable(self._kind, key, f"{where}: {first['msg']}" if where else first["msg"]) from error
        if isinstance(found, Upgrade) and found.flaw:
            raise _unreadable(self._kind, key, f"it makes no sense ({found.flaw})")
        return found

    def _from_older(self, stored: bytes | None, key: str) -> bytes:
        before = self._schema - 1
        if stored is None or before < FIRST or not stored.startswith(b'{"schema":%d,' % before):
            raise _unreadable(self._kind, key, _why_not(stored, self._schema))
        try:
            return text({**self._older(json.loads(stored)), "schema": self._schema})
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise _unreadable(self._kind, key, f"it is no record of schema {before}: {error!r}") from error

    def of(self, document: Mapping[str, Any]) -> T:
        """The record that an audit entry's `after` stands for."""
        return self.load(text(document), key="audit entry")


class Reader(Generic[T]):
    """Reads the same keys again and again: what is stored there as it was the last time is the same record, and costs a
    comparison. It keeps as many as `room`. Any thread may use it."""

    def __init__(self, codec: Codec[T], *, room: int) -> None:
        self._codec = codec
        self._room = room
        self._last: dict[str, tuple[bytes | None, T]] = {}
        self._lock = threading.Lock()

    def load(self, text: bytes | None, *, key: str) -> T:
        """Raises `UnsafeStore`, as the codec does."""
        last = self._last.get(key)
        if last is not None and last[0] == text:
            return last[1]
        found = self._codec.load(text, key=key)
        with self._lock:
            if key not in self._last and len(self._last) >= self._room:
                del self._last[next(iter(self._last))]
            self._last[key] = text, found
        return found


def text(value: Any) -> bytes:
    """JSON without blanks. Raises ValueError for what JSON cannot say."""
    try:
        return secrets.redact_json(to_json(value))
    except PydanticSerializationError as error:
        raise ValueError(str(error)) from error


def pack(doc: bytes) -> bytes:
    """A third of the size: the audit log holds every version of every record."""
    # A window and memory of records' size: to set up zlib's usual 256 KiB takes five times as long as the packing.
    deflate = zlib.compressobj(6, zlib.DEFLATED, 12, 5)
    return deflate.compress(doc) + deflate.flush()


def unpack(packed: bytes, *, key: str) -> bytes:
    """Raises `UnsafeStore` naming `key`, also for what would fill the memory of whoever reads it."""
    inflate = zlib.decompressobj()
    try:
        doc = inflate.decompress(packed, UNPACKED + 1)
    except zlib.error as error:
        raise _unreadable("document", key, str(error)) from error
    if len(doc) > UNPACKED:
        raise _unreadable("document", key, f"it is longer than {UNPACKED} bytes")
    if not inflate.eof:
        raise _unreadable("document", key, "it is cut off")
    return doc


def mapping(stored: bytes, *, key: str) -> dict[str, Any]:
    """A stored JSON object. Raises `UnsafeStore` naming `key`."""
    try:
        found = from_json(stored)
    except ValueError as error:
        raise _unreadable("document", key, str(error)) from error
    if not isinstance(found, dict):
        raise _unreadable("document", key, "it is no JSON object")
    return found


def _why_not(stored: bytes | None, schema: int) -> str:
    if stored is None:
        return "it has no document"
    try:
        found = json.loads(stored)
    except (ValueError, RecursionError):
        return f"it is no JSON: {stored[:40]!r}"
    if not isinstance(found, dict) or "schema" not in found:
        return "it names no schema"
    reads = f"{schema - 1} and {schema}" if schema > FIRST else f"{schema}"
    return f"it is of schema {found['schema']}, this version reads {reads}: another version of Changeover wrote it"


def _unreadable(kind: str, key: str, why: str) -> UnsafeStore:
    return UnsafeStore(
        f"the {kind} stored at {key} cannot be read: {why}. It was left as it is",
        next="restore Redis from its append-only file or a backup",
    )


UPGRADE = Codec(Upgrade)
ROLLOUT = Codec(Rollout)
LEDGER = Codec(LedgerItem)
SIGHTING = Codec(Sighting)
TOKEN = Codec(Token)
DELIVERY = Codec(Delivery)
SESSION = Codec(Session)
FEED = Codec(Feed)
