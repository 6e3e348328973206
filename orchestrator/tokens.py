"""Tokens for the API: 256 random bits that are shown once, and of which only the SHA-256 is kept.

co_<id>_<secret>     the id is no secret: it is listed, revoked by, and stands in the audit log
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Sequence
from typing import cast

from orchestrator.domain.token import SCOPES, Scope, Token
from orchestrator.errors import BadInput, NotFound
from orchestrator.ids import new_id
from orchestrator.store import Store

_FORM = re.compile(r"co_(t[0-9a-z]{11})_[A-Za-z0-9_-]{43}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}")
_FLEET = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
_NOBODY = hashlib.sha256(b"").hexdigest()
_COARSE = 60.0  # seconds within which a second use is not worth a write


def create(
    store: Store,
    name: str,
    scopes: Collection[str],
    *,
    actor: str,
    fleets: Collection[str] = (),
    seconds: float | None = None,
) -> tuple[Token, str]:
    """The token as kept, and what is shown of it once. `seconds`: how long it holds; None: until it is revoked."""
    unknown = [scope for scope in scopes if scope not in SCOPES]
    odd = [fleet for fleet in fleets if not _FLEET.fullmatch(fleet)]
    what, place = "", ""
    if not _NAME.fullmatch(name):
        what, place = "takes letters, digits and . _ @ - inside, at most 63", "name"
    elif not scopes or unknown:
        what = f"{unknown[0]!r} is none" if unknown else "without any it could do nothing"
        what, place = f"{what}; there are {', '.join(SCOPES)}", "--scope"
    elif odd:
        what, place = f"{odd[0]!r} is no name of a fleet", "--fleet"
    if what:
        raise BadInput(what, place=place, next="changeover token --help")
    now = store.now()
    while True:
        id = new_id("t", now)
        shown = f"co_{id}_{secrets.token_urlsafe(32)}"
        token = Token(
            id=id,
            name=name,
            digest=_digest(shown),
            scopes=cast("tuple[Scope, ...]", tuple(scope for scope in SCOPES if scope in scopes)),
            fleets=tuple(sorted(set(fleets))),
            created_at=now,
            created_by=actor,
            expires_at=None if seconds is None else now + seconds,
        )
        if store.put_token(token):
            return token, shown


def revoke(store: Store, id: str) -> tuple[Token, bool]:
    """Nobody is let in by it from now on; whether it was this call that did it."""
    token = store.token(id)
    if token is None:
        raise NotFound(f"there is no token {id}", next="changeover token list")
    done = store.revoke_token(id)
    return cast(Token, store.token(id)), done


def holding(store: Store) -> Sequence[Token]:
    """Those by which somebody could be let in now."""
    now = store.now()
    return [token for token in store.tokens() if token.holds(now)]


def whose(store: Store, shown: str) -> Token | None:
    """The token that was shown as this, if it holds; None for whatever other reason. What is compared is compared in
    the same time wherever it differs."""
    found = _FORM.fullmatch(shown)
    token, now = store.token_now(found[1]) if found else (None, 0.0)
    same = hmac.compare_digest(_digest(shown), token.digest if token is not None else _NOBODY)
    if token is None or not same:
        return None
    return token if in_use(store, token, now) else None


def in_use(store: Store, token: Token, now: float) -> bool:
    """Whether it holds; if so, it was used now."""
    if not token.holds(now):
        return False
    if token.used_at is None or now - token.used_at >= _COARSE:
        store.used_token(token.id)
    return True


def _digest(shown: str) -> str:
    return hashlib.sha256(shown.encode(errors="surrogatepass")).hexdigest()
