"""An answer, and the judgement of it: no network here."""

from __future__ import annotations

import codecs
import hashlib
import html
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from urllib.parse import quote

from providers.probe import Expect, Outcome, Request
from providers.probe.rules import Wanted

LIMIT = 1 << 20  # bytes of a body that are read, and as many after decompression
SEARCHED = 1 << 16  # characters that an expression sees: it bounds one that backtracks, since `re` has no time limit
SHOWN = 200
HIDDEN = "[REDACTED]"
SHORTEST_SECRET = 4  # characters: hiding shorter ones would hide half of every page, and tell them by that
_SHOWN_HEADERS = ("content-type", "content-length", "content-encoding", "location", "cache-control", "etag", "server")
_CHARSET = re.compile(
    r"us-ascii|iso-8859-\d+|windows-125\d|utf-16(le|be)?|shift_jis|euc-(jp|kr)|gbk?|gb18030|big5|koi8-[ru]"
)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came. `fault` is empty for a whole answer; else what went wrong, beside the head if that came.
    `cut` says that the body goes on after the limit. `latency` in seconds, until the body was read."""

    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    cut: bool = False
    latency: float = 0.0
    fault: str = ""

    def header(self, name: str) -> str:
        """All values of that header, joined as RFC 9110 does."""
        return ", ".join(value for key, value in self.headers if key.lower() == name.lower())

    @property
    def cookies(self) -> tuple[str, ...]:
        """The names of the cookies that it sets, sorted, without their values."""
        values = (value for key, value in self.headers if key.lower() == "set-cookie")
        return tuple(sorted({value.split(";")[0].split("=")[0].strip() for value in values}))

    def without(self, secrets: Collection[str]) -> Answer:
        """The same where these are hidden, also as JSON, HTML and URLs write them: a page may show what it was sent."""
        found = _hiding(secrets)
        if found is None:
            return self

        def hide(text: str) -> str:
            return found.sub(HIDDEN, text)

        return replace(
            self,
            headers=tuple((hide(name), hide(value)) for name, value in self.headers),
            body=hide(self.body.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape"),
            fault=hide(self.fault),
        )

    def text(self) -> str:
        """The body as text. Only well-known charsets: some of Python's codecs take quadratic time."""
        _, _, named = self.header("content-type").lower().partition("charset=")
        charset = named.split(";")[0].strip(" \"'")
        return self.body.decode(charset if _known(charset) else "utf-8", errors="replace")


def _hiding(secrets: Collection[str]) -> re.Pattern[str] | None:
    words = sorted({word for secret in secrets for word in _written(secret)}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, words))) if words else None


def _written(secret: str) -> Iterator[str]:
    """A secret as pages write it; of `Bearer abc`, also the part behind the blank."""
    for word in (secret, secret.partition(" ")[2]):
        if len(word) >= SHORTEST_SECRET:
            yield from (word, json.dumps(word)[1:-1], html.escape(word), quote(word), quote(word, safe=""))


def _known(charset: str) -> bool:
    if not _CHARSET.fullmatch(charset):
        return False
    try:
        return bool(codecs.lookup(charset))
    except LookupError:  # ISO 8859 has gaps
        return False


def plain(text: str, limit: int) -> str:
    """On one line, for people: control characters escaped, cut to the limit."""
    head = text[: limit + 1]
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in head)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def where(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def judge(answer: Answer, request: Request, wanted: Wanted, *, at: str) -> Outcome:
    """The answer against what a good one is. `at` is the address that was asked."""
    wrong = [answer.fault] if answer.fault else _wrong(answer, wanted)
    asked = f"{request.method} {plain(request.url, 200)} at {at}"
    return Outcome(
        passed=not wrong,
        why=f"{asked}: {plain('; '.join(wrong), 600)}" if wrong else "",
        status=answer.status,
        latency=answer.latency,
        evidence=_evidence(answer, wanted.expect, at),
    )


def _wrong(answer: Answer, wanted: Wanted) -> list[str]:
    expect, wrong = wanted.expect, []
    if answer.status not in expect.status:
        moved = f" to {answer.header('location')[:100]!r}" if 300 <= answer.status < 400 else ""
        wrong.append(f"status {answer.status}{moved}, wanted {' or '.join(map(str, expect.status))}")
    for name, wants in wanted.headers:
        value = answer.header(name)
        if not any(key.lower() == name.lower() for key, _ in answer.headers):
            wrong.append(f"no header {name}, wanted one with {wants.pattern!r}")
        elif not wants.search(value[:SEARCHED]):
            wrong.append(f"header {name} is {value[:100]!r}, wanted {wants.pattern!r}")
    text = answer.text() if expect.body_contains or wanted.body else ""
    read = f" in the first {LIMIT} bytes" if answer.cut else ""
    for part in expect.body_contains:
        if part not in text:
            wrong.append(f"the body does not contain {part[:100]!r}{read}; it begins {text[:60]!r}")
    if wanted.body and not wanted.body.search(text[:SEARCHED]):
        read = f" in its first {SEARCHED} characters" if len(text) > SEARCHED else ""
        wrong.append(f"the body does not match {wanted.body.pattern!r}{read}; it begins {text[:60]!r}")
    if expect.latency is not None and answer.latency > expect.latency:
        wrong.append(f"took {answer.latency:.3f} s, wanted at most {expect.latency:g} s")
    return wrong


def _evidence(answer: Answer, expect: Expect, at: str) -> dict[str, str]:
    found = {"address": at, "latency": f"{answer.latency:.3f}"}
    if not answer.status:
        return found
    found["status"] = str(answer.status)
    for name in dict.fromkeys((*_SHOWN_HEADERS, *(name.lower() for name in expect.headers))):
        if value := answer.header(name):
            found[f"header.{name}"] = plain(value, SHOWN)
    if answer.cookies:
        found["cookies"] = plain(" ".join(answer.cookies), SHOWN)
    found["body.bytes"] = f"more than {len(answer.body)}" if answer.cut else str(len(answer.body))
    found["body.sha256"] = hashlib.sha256(answer.body).hexdigest()
    if answer.body:
        found["body.start"] = plain(answer.text()[: SHOWN + 1], SHOWN)
    return found
