"""Tokens of the API: shown once, kept as a digest, and refused for every reason alike."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from orchestrator import tokens
from orchestrator.errors import BadInput, NotFound
from orchestrator.store.memory import MemoryStore
from tests.unit.test_cli import Place, place
from tests.unit.test_operations import Clock

__all__ = ["place"]  # a fixture


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> MemoryStore:
    return MemoryStore(clock)


def test_a_token_lets_its_bearer_in_and_nothing_of_it_is_kept_but_its_digest(store: MemoryStore) -> None:
    made, shown = tokens.create(store, "ci", ["run", "read"], actor="anna")
    found = tokens.whose(store, shown)
    assert found is not None
    assert (found.id, found.name, found.scopes, found.created_by) == (made.id, "ci", ("read", "run"), "anna")
    assert made.digest == hashlib.sha256(shown.encode()).hexdigest()
    assert shown not in repr(store.tokens())
    assert shown.removeprefix(f"co_{made.id}_") not in repr(store.tokens())


def test_no_two_tokens_are_alike(store: MemoryStore) -> None:
    made = [tokens.create(store, "ci", ["read"], actor="anna") for _ in range(50)]
    assert len({shown for _, shown in made}) == len({token.id for token, _ in made}) == 50
    for token, shown in made:
        found = tokens.whose(store, shown)
        assert found is not None and found.id == token.id


def test_every_other_text_lets_nobody_in(store: MemoryStore) -> None:
    made, shown = tokens.create(store, "ci", ["read"], actor="anna")
    _, other = tokens.create(store, "other", ["read"], actor="anna")
    mixed = f"co_{made.id}_{other.split('_', 2)[2]}"
    for wrong in ("", shown + " ", " " + shown, shown[:-1], shown + "A", shown.upper(), mixed, made.id, made.digest):
        assert tokens.whose(store, wrong) is None, wrong
    for wrong in ("co_t00000000000_" + "A" * 43, "x" * 2**20, "\x00", "\udc80", shown.replace("co_", "co-"), "ü"):
        assert tokens.whose(store, wrong) is None, wrong[:40]


def test_a_token_ends_at_its_time_and_when_it_is_revoked(store: MemoryStore, clock: Clock) -> None:
    brief, shown_brief = tokens.create(store, "ci", ["read"], actor="anna", seconds=61)
    clock.now += 1
    lasting, shown = tokens.create(store, "ci", ["read"], actor="anna")
    assert [token.id for token in tokens.holding(store)] == [brief.id, lasting.id]
    clock.now += 60
    assert tokens.whose(store, shown_brief) is None
    assert tokens.whose(store, shown) is not None
    assert [token.id for token in tokens.holding(store)] == [lasting.id]
    revoked, changed = tokens.revoke(store, lasting.id)
    assert changed and revoked.revoked_at == clock.now
    clock.now += 1
    assert tokens.revoke(store, lasting.id) == (revoked, False)
    assert tokens.whose(store, shown) is None
    assert tokens.holding(store) == []


def test_its_last_use_is_known_to_the_minute(store: MemoryStore, clock: Clock) -> None:
    made, shown = tokens.create(store, "ci", ["read"], actor="anna")

    def used() -> float | None:
        token = store.token(made.id)
        assert token is not None
        return token.used_at

    assert used() is None
    tokens.whose(store, shown)
    first = used()
    assert first == clock.now
    clock.now += 30
    tokens.whose(store, shown)
    assert used() == first
    clock.now += 30
    tokens.whose(store, shown)
    assert used() == clock.now
    tokens.whose(store, shown[:-4] + "AAAA")
    assert used() == clock.now


def test_admin_may_everything_and_others_what_they_were_given(store: MemoryStore) -> None:
    admin, _ = tokens.create(store, "root", ["admin"], actor="anna")
    reader, _ = tokens.create(store, "ci", ["read"], actor="anna", fleets=["shop", "shop", "blog"])
    assert all(admin.may(scope) for scope in ("read", "plan", "run", "admin"))
    assert [scope for scope in ("read", "plan", "run", "admin") if reader.may(scope)] == ["read"]
    assert reader.fleets == ("blog", "shop")
    assert reader.sees("shop") and not reader.sees("other")
    assert admin.sees("other")


@pytest.mark.parametrize(
    ("name", "scopes", "fleets"),
    [
        ("", ["read"], []),
        ("a\nb", ["read"], []),
        ("x" * 64, ["read"], []),
        ("ci", [], []),
        ("ci", ["write"], []),
        ("ci", ["read"], ["Shop;rm"]),
    ],
)
def test_a_token_that_makes_no_sense_is_refused(
    store: MemoryStore, name: str, scopes: list[str], fleets: list[str]
) -> None:
    with pytest.raises(BadInput):
        tokens.create(store, name, scopes, actor="anna", fleets=fleets)
    assert store.tokens() == []


def test_an_unknown_token_cannot_be_revoked(store: MemoryStore) -> None:
    with pytest.raises(NotFound, match="there is no token"):
        tokens.revoke(store, "t00000000000")


# -- at the command line ---------------------------------------------------------------------------------------------


def test_a_token_is_printed_alone_listed_without_it_and_revoked(place: Place, tmp_path: Path) -> None:
    code, out, err = place.run("token", "create", "ci", "--scope", "read", "--scope", "run", "--fleet", "shop")
    assert code == 0
    shown = out.strip()
    found = tokens.whose(place.store, shown)
    assert found is not None and found.fleets == ("shop",) and found.expires_at == place.clock.now + 90 * 86400
    assert shown not in err and "It is not shown again" in err and found.id in err
    code, out, _ = place.run("token", "list")
    assert code == 0
    assert found.id in out and "read, run" in out and shown not in out
    code, body = place.json("token", "list")
    assert (body["schema"], body["tokens"][0]["holds"]) == ("changeover/v1/tokens", True)
    assert shown not in json.dumps(body) and found.digest not in json.dumps(body)
    code, out, _ = place.run("token", "revoke", found.id)
    assert (code, tokens.whose(place.store, shown)) == (0, None)
    assert "lets nobody in any more" in out
    code, body = place.json("token", "revoke", found.id)
    assert (code, body["changed"]) == (0, False)


def test_a_program_gets_the_token_as_json(place: Place) -> None:
    code, body = place.json("token", "create", "ci", "--scope", "admin", "--expires", "never")
    assert (code, body["expires_at"]) == (0, None)
    assert tokens.whose(place.store, body["shown"]) is not None


@pytest.mark.parametrize(
    "words",
    [
        ("create", "ci"),
        ("create", "ci", "--scope", "everything"),
        ("create", "ci", "--scope", "read", "--expires", "soon"),
        ("create", "ci", "--scope", "read", "--expires", "0s"),
        ("create", "c i", "--scope", "read"),
        ("revoke", "t00000000000"),
        ("destroy",),
    ],
)
def test_what_makes_no_token_says_why(place: Place, words: tuple[str, ...]) -> None:
    code, out, err = place.run("token", *words)
    assert (code, out) == (64, "")
    assert "Error:" in err and "Next:" in err
    assert place.store.tokens() == []
