"""Two answers of the old server and one of the new: is the new one the same, apart from what is volatile anyway?

Volatile is what differs between the old server's own two answers. In JSON that is a path: its value may differ, while
its kind (a number, a text) and its presence may not. In other text it is a token of a line, or, where whole lines
come and go, the lines at that place. Both are compared as lines, for JSON written `$.path[0].name = value`, and the
masks are applied to each of these lines.

Python's `re` has no time limit, so a mask sees pieces of at most 1024 characters of a line, and none is begun when all
masks took 5 s on one answer: then they are `Refused`. That bounds a mask of quadratic or cubic time. One of exponential
time, as `(a+)+$`, it does not bound: masks are to be trusted as the rest of the fleet file is.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from providers.errors import Refused
from providers.probe import Comparison
from providers.probe.answer import LIMIT, Answer, plain

MOST_LINES = 50
LONGEST = 300
MASKED = "<masked>"
VOLATILE = "<volatile>"
PIECE = 1024
MASKING = 5.0  # seconds for all masks on one answer
ALIGNED = 2000  # lines: aligning takes quadratic time at worst, so larger changes are taken as one
LARGEST_JSON = 8 << 20  # characters of all paths together, which can be far more than the body has

_TOKENS = re.compile(r"[^\s\"'<>(){}\[\],;&?]+|.", re.DOTALL)
_INDEX = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


def compare(
    first: Answer, second: Answer, new: Answer, masks: Sequence[re.Pattern[str]], *, names: tuple[str, str]
) -> Comparison:
    """`first` and `second` are the old server's, `names` the addresses of the old and the new one."""
    for name, answer in ((names[0], first), (names[0], second), (names[1], new)):
        if answer.fault:
            return Comparison(same=False, differences=(plain(f"{name}: {answer.fault}", LONGEST),))
    if first.status != second.status:
        found = f"{names[0]} answered {first.status}, then {second.status}: there is nothing steady to compare with"
        return Comparison(same=False, differences=(found,))
    (one, two, other), volatile = _bodies(first, second, new)
    heads = [_head(answer) for answer in (first, second, new)]
    mask = _Mask(masks)
    template = _template(mask(heads[0] + one), mask(heads[1] + two))
    lines = mask(heads[2] + other)
    notes = volatile + _volatile_lines(template, len(heads[0])) + mask.used()
    if first.cut or second.cut or new.cut:
        notes.append(f"the body after {LIMIT} bytes")
    same = _fits(template, lines)
    return Comparison(
        same=same,
        differences=() if same else _differences(template, lines, names),
        masked=tuple(plain(note, LONGEST) for note in notes[:MOST_LINES]),
    )


def _head(answer: Answer) -> list[str]:
    lines = [f"status: {answer.status}"]
    lines += [f"{name}: {answer.header(name)}" for name in ("content-type", "location", "cache-control")]
    return [*lines, f"cookies: {', '.join(answer.cookies)}", ""]


def _bodies(first: Answer, second: Answer, new: Answer) -> tuple[list[list[str]], list[str]]:
    """The three bodies as lines that can be compared, and what is volatile in them by structure."""
    answers = (first, second, new)
    try:
        one, two, other = (json.loads(answer.body) for answer in answers)
        if any(isinstance(body, dict | list) for body in (one, two, other)):
            volatile = dict(_volatile_paths(one, two, "$"))
            lines = [list(_json_lines(body, volatile)) for body in (one, one, other)]
            return lines, [f"{path} ({'value' if kept else 'all of it'})" for path, kept in volatile.items()]
    except (ValueError, RecursionError):
        pass  # not JSON, cut off, or nested too deeply: text like any other
    if any(b"\0" in answer.body[:8192] for answer in answers) and "utf-16" not in first.header("content-type").lower():
        return [[f"{len(a.body)} bytes, sha256 {hashlib.sha256(a.body).hexdigest()}"] for a in answers], []
    return [answer.text().split("\n") for answer in answers], []


# JSON: by path.


def _volatile_paths(one: Any, two: Any, path: str) -> Iterator[tuple[str, bool]]:
    """Paths that differ, and whether both had a value of the same kind there, so that the new one must have it too."""
    match one, two:
        case dict(), dict():
            if one.keys() - two.keys() and two.keys() - one.keys():
                yield path, True  # the keys themselves are volatile, as ids are
                return
            for key in sorted(one.keys() | two.keys()):
                if key in one and key in two:
                    yield from _volatile_paths(one[key], two[key], _under(path, key))
                else:
                    yield _under(path, key), False
        case list(), list():
            if len(one) != len(two):
                yield path, True
                return
            for index, (left, right) in enumerate(zip(one, two, strict=True)):
                yield from _volatile_paths(left, right, f"{path}[{index}]")
        case _ if json.dumps(one) != json.dumps(two):
            yield path, _kind(one) == _kind(two)


def _json_lines(body: Any, volatile: dict[str, bool]) -> Iterator[str]:
    todo, written = [("$", body)], 0
    while todo:
        path, value = todo.pop()
        written += len(path)
        if written > LARGEST_JSON:
            raise ValueError("too large to be written by path")
        if path in volatile:
            if volatile[path]:
                yield f"{path} = <volatile {_kind(value)}>"
        elif isinstance(value, dict):
            yield f"{path} is an object"  # said of an empty one too, since all of its keys may be volatile
            todo += [(_under(path, key), value[key]) for key in sorted(value, reverse=True)]
        elif isinstance(value, list) and value:
            todo += [(f"{path}[{index}]", value[index]) for index in reversed(range(len(value)))]
        else:
            yield f"{path} = {json.dumps(value, ensure_ascii=False)}"


def _under(path: str, key: str) -> str:
    return f"{path}.{key}" if _INDEX.fullmatch(key) else f"{path}[{json.dumps(key, ensure_ascii=False)}]"


def _kind(value: Any) -> str:
    match value:
        case bool():
            return "truth"
        case int() | float():
            return "number"
        case str():
            return "text"
        case None:
            return "null"
        case _:
            return "list" if isinstance(value, list) else "object"


# Text: by line and token.


class _Mask:
    """Applies the masks to lines, and remembers which of them found something."""

    def __init__(self, patterns: Sequence[re.Pattern[str]]) -> None:
        self._patterns = patterns
        self._found: set[str] = set()
        self._until = 0.0

    def __call__(self, lines: Sequence[str]) -> list[str]:
        self._until = time.monotonic() + MASKING
        return [lines[0], *(self._line(line) for line in lines[1:])]  # a status is never masked

    def _line(self, line: str) -> str:
        for index, pattern in enumerate(self._patterns):
            pieces = []
            for at in range(0, len(line), PIECE):
                if time.monotonic() > self._until:
                    raise Refused(f"masks[{index}]: the masks took more than {MASKING:g} s; one backtracks too much")
                pieces.append(pattern.sub(self._hide, line[at : at + PIECE]))
            line = "".join(pieces)
        return line

    def _hide(self, match: re.Match[str]) -> str:
        if not match[0]:
            return ""
        self._found.add(match.re.pattern)
        return MASKED

    def used(self) -> list[str]:
        return [f"mask {pattern.pattern!r}" for pattern in self._patterns if pattern.pattern in self._found]


@dataclass(frozen=True, kw_only=True)
class _Line:
    """One line of the old answer. `tokens` is None for a steady line. In a volatile one a None is a token that may be
    anything; `open` is where any number of tokens may be, -1 for nowhere."""

    text: str
    tokens: tuple[str | None, ...] | None = None
    open: int = -1

    def fits(self, line: str) -> bool:
        if self.tokens is None:
            return line == self.text
        found = _TOKENS.findall(line)
        if self.open < 0:
            return len(found) == len(self.tokens) and _agree(self.tokens, found)
        tail = len(self.tokens) - self.open
        return (
            len(found) >= len(self.tokens)
            and _agree(self.tokens[: self.open], found)
            and _agree(self.tokens[self.open :], found[len(found) - tail :])
        )


@dataclass(frozen=True)
class _Anything:
    """Any number of lines, whatever they say, where the old one's first answer had `count`."""

    count: int
    text: str = "<volatile lines>"


_Template = list[_Line | _Anything]


def _agree(wanted: Sequence[str | None], found: Sequence[str]) -> bool:
    return all(want is None or want == have for want, have in zip(wanted, found, strict=False))


def _template(one: Sequence[str], two: Sequence[str]) -> _Template:
    template: _Template = []
    for tag, i1, i2, j1, j2 in _changes(one, two):
        if tag == "equal":
            template += [_Line(text=line) for line in one[i1:i2]]
        elif i2 - i1 == j2 - j1:
            template += [_volatile_line(*pair) for pair in zip(one[i1:i2], two[j1:j2], strict=True)]
        else:
            template.append(_Anything(i2 - i1))
    return template


def _volatile_line(one: str, two: str) -> _Line:
    if one == two:
        return _Line(text=one)
    left, right = _TOKENS.findall(one), _TOKENS.findall(two)
    if len(left) == len(right):
        tokens = tuple(a if a == b else None for a, b in zip(left, right, strict=True))
        return _Line(text="".join(VOLATILE if token is None else token for token in tokens), tokens=tokens)
    head = _alike(left, right)
    tail = _alike(left[head:][::-1], right[head:][::-1])
    end = left[len(left) - tail :]
    return _Line(text="".join((*left[:head], VOLATILE, *end)), tokens=(*left[:head], *end), open=head)


def _alike(one: Sequence[str], two: Sequence[str]) -> int:
    """How many lines or tokens the two begin with in common."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, two, strict=False)))


def _changes(one: Sequence[str], two: Sequence[str]) -> Iterator[tuple[str, int, int, int, int]]:
    """Opcodes as difflib has them, in bounded time: what is alike at both ends is cut off first."""
    head = _alike(one, two)
    tail = _alike(one[head:][::-1], two[head:][::-1])
    i, j = len(one) - tail, len(two) - tail
    yield "equal", 0, head, 0, head
    if max(i, j) - head > ALIGNED:
        yield "replace", head, i, head, j
    else:
        matcher = difflib.SequenceMatcher(None, one[head:i], two[head:j])
        for tag, i1, i2, j1, j2 in matcher.get_opcodes():
            yield tag, i1 + head, i2 + head, j1 + head, j2 + head
    yield "equal", i, len(one), j, len(two)


def _volatile_lines(template: _Template, head: int) -> list[str]:
    """What is volatile, for people; the body's lines count from 1, after `head` lines of status and headers."""
    notes, number = [], 1 - head
    for line in template:
        if isinstance(line, _Anything):
            notes.append(f"{line.count} lines from line {number} on")
            number += line.count
            continue
        if line.tokens is not None:
            notes.append(line.text if number < 1 else f"line {number}: {line.text}")
        number += 1
    return notes


def _fits(template: _Template, lines: Sequence[str]) -> bool:
    """As a glob: the lines between two places of anything must come in order; the leftmost match is as good as any."""
    parts: list[list[_Line]] = [[]]
    for line in template:
        if isinstance(line, _Anything):
            parts.append([])
        else:
            parts[-1].append(line)
    if len(parts) == 1:
        return len(parts[0]) == len(lines) and _fits_at(parts[0], lines, 0)
    head, *middle, tail = parts
    end = len(lines) - len(tail)
    if end < len(head) or not _fits_at(head, lines, 0) or not _fits_at(tail, lines, end):
        return False
    at = len(head)
    for part in middle:
        while at + len(part) <= end and not _fits_at(part, lines, at):
            at += 1
        at += len(part)
    return at <= end


def _fits_at(part: Sequence[_Line], lines: Sequence[str], at: int) -> bool:
    return all(line.fits(lines[at + index]) for index, line in enumerate(part))


# What is shown to people.


def _differences(template: _Template, lines: Sequence[str], names: tuple[str, str]) -> tuple[str, ...]:
    old, new = [line.text for line in template], _rendered(template, lines)
    shown = [f"--- {names[0]}", f"+++ {names[1]}"]
    for tag, i1, i2, j1, j2 in _changes(old, new):
        if tag == "equal" or (i1 < i2 and all(isinstance(line, _Anything) for line in template[i1:i2])):
            continue
        shown.append(f"@@ -{i1 + 1},{i2 - i1} +{j1 + 1},{j2 - j1} @@")
        shown += _hunk(old[i1:i2], new[j1:j2])
    return tuple(shown if len(shown) <= MOST_LINES else [*shown[: MOST_LINES - 1], "… and more"])


def _rendered(template: _Template, lines: Sequence[str]) -> list[str]:
    """The new lines, written like the old one's where they fit a volatile line, so that they show no difference."""
    volatile = [line for line in template if isinstance(line, _Line) and line.tokens is not None]
    if len(volatile) * len(lines) > 1_000_000:
        volatile = []
    steady = {line.text for line in template}
    return [
        line if line in steady else next((want.text for want in volatile if want.fits(line)), line) for line in lines
    ]


def _hunk(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """The removed and the added lines, the first 20 of each; long ones from shortly before where they differ."""
    pairs = list(itertools.zip_longest(old[:20], new[:20]))
    starts = [_start(left, right) for left, right in pairs]
    removed = ["-" + _from(left, start) for (left, _), start in zip(pairs, starts, strict=True) if left is not None]
    added = ["+" + _from(right, start) for (_, right), start in zip(pairs, starts, strict=True) if right is not None]
    return removed + added


def _start(left: str | None, right: str | None) -> int:
    if left is None or right is None or max(len(left), len(right)) < LONGEST:
        return 0
    return max(0, _alike(left, right) - 60)


def _from(text: str, start: int) -> str:
    return plain(("…" if start else "") + text[start : start + LONGEST], LONGEST - 1)
