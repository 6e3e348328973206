"""Signatures of webhooks: Standard Webhooks (standardwebhooks.com) and GitHub's. Pure; bytes in, a verdict out.

The library of that name is not used: it knows one secret at a time, and it is no more than an HMAC of Python's own. The
tests hold this against openssl instead.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Scheme = Literal["standard", "github"]
WINDOW = 300.0  # seconds by which a timestamp may differ from the clock
SHORTEST_KEY = 16  # bytes
PREFIX = "whsec_"
_ID = re.compile(r"[\x21-\x7e]{1,255}")
_TIME = re.compile(r"[0-9]{1,12}")
_EVENT = re.compile(r"[a-z_]{1,64}")
_V1 = re.compile(r"v1,[A-Za-z0-9+/]{43}=")
_SHA256 = re.compile(r"sha256=[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Signed:
    """What a valid signature says. `once` stands for this delivery and no other: of GitHub the body's digest, since its
    signature covers neither id nor time."""

    key: str
    event: str
    once: str


def standard_key(secret: str) -> bytes:
    """The key that a secret such as `whsec_MfKQ9r8G…` stands for. Raises ValueError."""
    try:
        found = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except ValueError:
        raise ValueError(f"is no secret such as {PREFIX}… with base64 behind it") from None
    if not secret.startswith(PREFIX) or not 24 <= len(found) <= 64:
        raise ValueError(f"is no secret such as {PREFIX}…: behind that there must be 24 to 64 bytes as base64")
    return found


def github_key(secret: str) -> bytes:
    """Raises ValueError."""
    if len(secret.encode()) < SHORTEST_KEY:
        raise ValueError(f"is too short: {SHORTEST_KEY} characters are the least")
    return secret.encode()


def standard(id: str, timestamp: str, body: bytes, key: bytes) -> str:
    """One `v1` signature of `id.timestamp.body`."""
    mac = hmac.digest(key, f"{id}.{timestamp}.".encode() + body, "sha256")
    return "v1," + base64.b64encode(mac).decode()


def formed(headers: Mapping[str, str]) -> tuple[Scheme, ...]:
    """The schemes by which a request with these headers may be signed; it takes no body and no key to say so."""

    def fits(*wanted: tuple[str, re.Pattern[str]]) -> bool:
        return all(pattern.fullmatch(headers.get(name, "")) for name, pattern in wanted)

    signatures = headers.get("webhook-signature", "").split(" ")
    standard = fits(("webhook-id", _ID), ("webhook-timestamp", _TIME)) and any(map(_V1.fullmatch, signatures))
    github = fits(("x-github-delivery", _ID), ("x-github-event", _EVENT), ("x-hub-signature-256", _SHA256))
    return (*(("standard",) if standard else ()), *(("github",) if github else ()))


def verified(
    scheme: Scheme, headers: Mapping[str, str], body: bytes, keys: Sequence[bytes], *, now: float
) -> Signed | None:
    """None for every reason alike. `headers`, in lower case: those that came once. Any of the keys will do, so that one
    can be replaced by another. The headers come first; then every key is tried, whichever fits."""
    if scheme not in formed(headers):
        return None
    if scheme == "github":
        return _github(headers, body, keys)
    id, timestamp = headers["webhook-id"], headers["webhook-timestamp"]
    given = [each.encode(errors="replace") for each in headers["webhook-signature"].split(" ")]
    if abs(now - int(timestamp)) > WINDOW:
        return None
    wanted = [standard(id, timestamp, body, key).encode() for key in keys]
    fitting = sum(hmac.compare_digest(one, other) for one in wanted for other in given)
    return Signed(key=id, event="", once=id) if fitting else None


def _github(headers: Mapping[str, str], body: bytes, keys: Sequence[bytes]) -> Signed | None:
    given = headers["x-hub-signature-256"].encode()
    wanted = [b"sha256=" + hmac.digest(key, body, "sha256").hex().encode() for key in keys]
    fitting = sum(hmac.compare_digest(one, given) for one in wanted)
    if not fitting:
        return None
    key, event = headers["x-github-delivery"], headers["x-github-event"]
    return Signed(key=key, event=event, once=hashlib.sha256(body).hexdigest())
