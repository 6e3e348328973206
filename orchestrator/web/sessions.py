"""How a browser comes in: a token is shown once, and a cookie stands for it from then on, as long as the token holds,
and for `LASTS` at most.

The cookie is 256 random bits; what is stored is known by their SHA-256. It goes with no request that another site
begins. What changes something must also come from a page of ours, and bring the word that only our page knows.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from orchestrator import tokens
from orchestrator.api.callers import Caller
from orchestrator.domain.token import Session, Token
from orchestrator.store import Store

COOKIE = "changeover"
SECURE_COOKIE = "__Host-changeover"  # where there is TLS: no other host of the domain can set one of that name
LASTS = 8 * 3600.0  # seconds
LINK_LASTS = 3600.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Visitor:
    """`word` is in each form that we show, and nobody else can know it. `key`: how the session is known."""

    caller: Caller
    key: str
    word: str


def begin(store: Store, token: Token) -> str:
    """The cookie's value."""
    return _put(store, token, LASTS, link=False)


def link(store: Store, token: Token) -> str:
    """The end of an address by which somebody may come in as that token, once, within `LINK_LASTS`."""
    return _put(store, token, LINK_LASTS, link=True)


def _put(store: Store, token: Token, seconds: float, *, link: bool) -> str:
    shown = secrets.token_urlsafe(32)
    until = store.now() + seconds
    if token.expires_at is not None:
        until = min(until, token.expires_at)
    store.put_session(_key(shown), Session(token=token.id, until=until, link=link))
    return shown


def invite(store: Store, name: str, scopes: Collection[str], *, actor: str) -> tuple[Token, str]:
    """A token that nobody is shown, and the path of an address by which one browser may come in with it."""
    fit = re.sub(r"[^A-Za-z0-9._@-]+|^[._@-]+", "", name)[:60] or "somebody"
    token, _ = tokens.create(store, fit, scopes, actor=actor, seconds=LINK_LASTS + LASTS)
    return token, f"/login?link={link(store, token)}"


def by_link(store: Store, shown: str) -> Token | None:
    """Whose link it is, if it holds and this is its first use."""
    found = store.session(_key(shown))
    if found is None or not found.link or not store.end_session(_key(shown)):
        return None
    return _holding(store, found.token)


def visitor(store: Store, request: Request) -> Visitor | None:
    """Who looks, if somebody was let in and still is."""
    shown = _cookie(request)
    found = store.session(_key(shown)) if shown else None
    token, now = store.token_now(found.token) if found is not None and not found.link else (None, 0.0)
    if token is None or not tokens.in_use(store, token, now):
        return None
    word = hmac.new(shown.encode(), b"form", hashlib.sha256).hexdigest()
    return Visitor(caller=Caller(token=token), key=_key(shown), word=word)


def still(store: Store, key: str) -> bool:
    """Whether whoever was let in by that session still is."""
    found = store.session(key)
    return found is not None and _holding(store, found.token) is not None


def end(store: Store, key: str) -> None:
    store.end_session(key)


def keep(response: Response, shown: str, request: Request) -> None:
    """The browser has it from now on, and no script of any page does."""
    secure = (request.headers.get("origin") or "").startswith("https://")
    name = SECURE_COOKIE if secure else COOKIE
    response.set_cookie(name, shown, httponly=True, samesite="strict", secure=secure, path="/")


def forget(response: Response) -> None:
    for name in (SECURE_COOKIE, COOKIE):
        response.delete_cookie(name, path="/", httponly=True, samesite="strict", secure=name == SECURE_COOKIE)


def from_our_page(request: Request) -> bool:
    """Whether a browser says that a page of this very site sends it. One that says nothing is not believed."""
    said = request.headers.getlist("sec-fetch-site")
    if said:
        return said == ["same-origin"]
    origin, host = request.headers.getlist("origin"), request.headers.getlist("host")
    return len(origin) == len(host) == 1 and urlsplit(origin[0]).netloc == host[0] != ""


def knows(who: Visitor, word: str) -> bool:
    return hmac.compare_digest(who.word.encode(), word.encode(errors="surrogatepass"))


def _holding(store: Store, id: str) -> Token | None:
    token, now = store.token_now(id)
    return token if token is not None and token.holds(now) else None


def _cookie(request: Request) -> str:
    try:
        cookies = SimpleCookie(request.headers.get("cookie", ""))
    except CookieError:
        return ""
    found = cookies.get(SECURE_COOKIE) or cookies.get(COOKIE)
    return found.value if found is not None and len(found.value) < 100 else ""


def _key(shown: str) -> str:
    return hashlib.sha256(shown.encode(errors="surrogatepass")).hexdigest()
