"""Records that are read again and again."""

from __future__ import annotations

import pytest

from orchestrator.domain.upgrade import Upgrade
from orchestrator.errors import UnsafeStore
from orchestrator.store import codec


def stored(server: str, *, why: str = "") -> bytes:
    return codec.UPGRADE.dump(Upgrade(rollout="r1", server=server, wave=0, why=why))


def test_what_is_stored_as_it_was_is_not_decoded_again_and_anything_else_is() -> None:
    reader = codec.Reader(codec.UPGRADE, room=9)
    first = reader.load(stored("web-1"), key="k1")
    assert reader.load(stored("web-1"), key="k1") is first
    changed = reader.load(stored("web-1", why="by hand"), key="k1")
    assert (first.why, changed.why) == ("", "by hand")
    assert reader.load(stored("web-1"), key="k1") == first


def test_what_cannot_be_read_is_said_with_its_key_each_time_and_the_last_good_one_never_stands_in() -> None:
    reader = codec.Reader(codec.UPGRADE, room=9)
    reader.load(stored("web-1"), key="k1")
    for text in (None, b"", b"{}", stored("web-1")[:-1]):
        with pytest.raises(UnsafeStore, match="stored at k1 cannot be read"):
            reader.load(text, key="k1")


def test_no_more_are_kept_than_there_is_room_for() -> None:
    reader = codec.Reader(codec.UPGRADE, room=2)
    first = [reader.load(stored(name), key=name) for name in ("web-1", "web-2", "web-3")]
    again = [reader.load(stored(name), key=name) for name in ("web-3", "web-2", "web-1")]
    assert [one is other for one, other in zip(first, reversed(again), strict=True)] == [False, True, True]
