"""What was asked and seen at a step, as a person reads it: probes, differences, the balancer's words, and whatever else
the audit log has. The same lines on a terminal and on a page; only their looks differ."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator import words
from orchestrator.store import AuditEntry

Mood = Literal["", "good", "bad", "warn", "soft"]
_SIZES = ("memory", "disk", "disk_total", "disk_used", "memory_total", "memory_used")
_TOLD = ("step", "why", "reason", "attempt", "notes")  # in the event's own line already, or a step's scratch


@dataclass(frozen=True, kw_only=True)
class Line:
    """Its parts, one after the other. `deep`: it belongs to the line before."""

    parts: tuple[tuple[str, Mood], ...]
    deep: bool = False


def _line(*parts: tuple[str, Mood], deep: bool = False) -> Line:
    return Line(parts=tuple(part for part in parts if part[0]), deep=deep)


def folded(entries: Sequence[AuditEntry]) -> Iterable[tuple[AuditEntry, int]]:
    """Waits that say the same one after the other are one, and how many they were."""
    last: AuditEntry | None = None
    times = 0
    for entry in entries:
        if last is not None and entry.event == last.event == "Waits" and words.happened(entry) == words.happened(last):
            times += 1
            last = entry
            continue
        if last is not None:
            yield last, times
        last, times = entry, 1
    if last is not None:
        yield last, times


def by_whom(entry: AuditEntry) -> str:
    """Who decided it, where a person may have and its line does not say so."""
    asked = entry.event in ("TurnedBack", "Released", "Shifted")
    return entry.actor if asked and entry.actor not in words.happened(entry) else ""


def lines(detail: Mapping[str, Any]) -> list[Line]:
    """The evidence of one audit entry."""
    found: list[Line] = []
    for key, value in detail.items():
        if key in _TOLD or value in (None, "", [], {}):
            continue
        if key == "result" and isinstance(value, Mapping):
            found += lines(value)
        elif key == "answers" and isinstance(value, Sequence):
            found += [line for answer in value for line in _probe(answer)]
        elif key == "balancer" and isinstance(value, Sequence):
            found += [_member(view) for view in value]
        elif key == "differences" and isinstance(value, Sequence):
            found += [_difference(str(line)) for line in value]
        elif isinstance(value, Mapping):
            found += [_line((f"{key}:", "soft")), *(line for pair in value.items() for line in _inside(*pair))]
        else:
            found.append(_line((f"{key}: ", "soft"), (_known(key, value), "")))
    return found


def _inside(key: str, value: Any) -> Iterator[Line]:
    """One fact of several; where it is a list of things, each of them."""
    if value in (None, "", [], {}):
        return
    if isinstance(value, list | tuple) and all(isinstance(each, Mapping) for each in value):
        for each in value:
            told = "  ".join(_known(name, part) for name, part in each.items() if part not in (None, ""))
            yield _line((f"{key}: ", "soft"), (told, ""), deep=True)
    else:
        yield _line((f"{key}: ", "soft"), (_known(key, value), ""), deep=True)


def _probe(answer: Mapping[str, Any]) -> list[Line]:
    passed = bool(answer.get("passed")) and answer.get("same_as_old", True)
    took = f" in {float(answer['latency']) * 1000:.0f} ms" if answer.get("latency") else ""
    said = f"{answer.get('status') or 'no answer'}{took}"
    found = [
        _line(
            ("✓ ", "good") if passed else ("✗ ", "bad"),
            (f"{answer.get('request', '')}  pool {answer.get('pool', '')} → {said}", ""),
            ("  same as the old server" if answer.get("same_as_old") else "", "good"),
        )
    ]
    if answer.get("why"):
        found.append(_line((str(answer["why"]), "bad"), deep=True))
    found += [
        _line((f"{name}: ", "soft"), (_flat(value), ""), deep=True)
        for name, value in dict(answer.get("evidence") or {}).items()
    ]
    return found + [_difference(str(each)) for each in answer.get("differences") or ()]


def _member(view: Mapping[str, Any]) -> Line:
    return _line(
        ("balancer: ", "soft"),
        (f"{view.get('name')} in {view.get('pool')} is ", ""),
        (str(view.get("state")), "good" if view.get("state") == "serving" else "warn"),
        (f" ({view['detail']})" if view.get("detail") else "", "soft"),
    )


def _difference(line: str) -> Line:
    moods: Mapping[str, Mood] = {"+": "good", "-": "bad", "@": "soft"}
    return _line((line, moods.get(line[:1], "")), deep=True)


def _known(key: str, value: Any) -> str:
    """Moments and sizes as a person reads them."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if key in ("at", "since", "retain_until"):
            return words.moment(value)
        if key in _SIZES:
            from orchestrator.domain.plan import human

            return human(int(value))
    return _flat(value)


def _flat(value: Any) -> str:
    if isinstance(value, str):
        return words.short(value, 300)
    if isinstance(value, float):
        return f"{value:.6g}"
    return words.short(json.dumps(value, ensure_ascii=False, default=str), 300)
