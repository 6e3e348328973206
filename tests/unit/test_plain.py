"""Plain JSON for kombu's messages: nobody can tell from a text, or from what is read of it, who did it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu import serialization
from kombu.transport import redis as transport
from kombu.utils import json as kombu

from workers import plain

TYPED: dict[str, Any] = {
    "a moment": datetime(2026, 11, 23, 22, 51, 17, 250, tzinfo=UTC),
    "a moment of no zone": datetime(2026, 11, 23),  # noqa: DTZ001 # kombu writes this one otherwise
    "a day": date(2026, 11, 23),
    "a time": time(22, 51, 17),
    "a decimal": Decimal("1.10"),
    "an id": uuid.UUID(int=7),
    "bytes that are text": "grün".encode(),
    "bytes that are none": b"\xff\xfe\x00",
    "some of them, deep inside": [{"of": {"the": [Decimal(1), b"a", {"last": date(2026, 1, 1)}]}}],
}
FORMS: dict[str, Callable[[str], Any]] = {
    "text": str,
    "bytes": str.encode,
    "bytearray": lambda text: bytearray(text.encode()),
    "memoryview": lambda text: memoryview(text.encode()),
}
GARBAGE: dict[str, Any] = {
    "nothing": "",
    "no JSON": "garbage",
    "no UTF-8": b"\xff\xfe\x00",
    "no UTF-8 in a memoryview": memoryview(b'"\xff"'),
    "no end": '{"a": [1, 2',
    "more than one": "{} {}",
    "a type that nobody knows": '{"__type__": "os.system", "__value__": "true"}',
    "a moment that is none": '{"__type__": "datetime", "__value__": "soon"}',
    "an end within what stands for a moment": '{"__type__": "datetime"',
    "a list in a list, and so on": "[" * 100_000,
    "the same round what stands for a moment": "[" * 100_000 + '"__type__"',
}
ORDINARY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("__type__"), inner),
)


@given(ORDINARY)
def test_an_ordinary_message_is_written_as_kombu_writes_it_and_read_again(message: Any) -> None:
    text = plain.dumps(message)
    assert text == kombu.dumps(message)
    assert plain.loads(text) == kombu.loads(text) == message


@pytest.mark.parametrize("kind", TYPED)
@pytest.mark.parametrize("form", FORMS)
def test_what_json_has_no_word_for_is_written_and_read_as_kombu_does(kind: str, form: str) -> None:
    message = {"args": [TYPED[kind]]}
    text = plain.dumps(message)
    assert text == kombu.dumps(message)
    assert plain.loads(FORMS[form](text)) == message


def test_what_can_say_itself_how_it_is_written_is_asked() -> None:
    class Server:
        def __json__(self) -> dict[str, int]:
            return {"number": 1}

    assert plain.dumps([Server()]) == kombu.dumps([Server()]) == '[{"number": 1}]'


def test_what_nobody_can_write_is_refused_as_kombu_refuses_it() -> None:
    for dumps in (plain.dumps, kombu.dumps):
        with pytest.raises(TypeError, match="not JSON serializable"):
            dumps({"lock": object()})


@pytest.mark.parametrize("form", FORMS)
def test_a_text_is_read_in_whatever_form_it_comes(form: str) -> None:
    assert plain.loads(FORMS[form]('{"server": "gr\u00fcn"}')) == {"server": "grün"}


@pytest.mark.parametrize("what", GARBAGE)
def test_what_is_no_message_is_a_value_error_whatever_it_is(what: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 # there is no more to say of it
        plain.loads(GARBAGE[what])


def test_from_then_on_all_of_kombu_reads_and_writes_like_this(monkeypatch: pytest.MonkeyPatch) -> None:
    registry: Any = serialization.registry
    for place, name in ((registry._encoders, "json"), (registry._decoders, "application/json")):
        monkeypatch.setitem(place, name, place[name])  # put back what is replaced
    for name in ("loads", "dumps"):
        monkeypatch.setattr(transport, name, getattr(transport, name))
    before = serialization.dumps(TYPED, serializer="json")
    plain.apply()
    names: Any = transport
    assert (names.loads, names.dumps) == (plain.loads, plain.dumps)
    assert registry._decoders["application/json"] is plain.loads
    assert registry._encoders["json"].encoder is plain.dumps
    assert serialization.dumps(TYPED, serializer="json") == before
    kind, encoding, text = before
    assert serialization.loads(text.encode(), kind, encoding, accept={"application/json"}) == TYPED
