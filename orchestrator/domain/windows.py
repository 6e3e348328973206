"""Maintenance windows: when new servers may be begun. A window that is given closes all other time.

Their times are the clock's on the wall in their zone: a window from 22:00 to 04:00 is an hour shorter or longer in the
nights in which that clock is turned. A time that such a night has twice is the later one where a window begins and the
earlier one where it ends; one that it skips is as long after midnight as it would have been.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, get_args
from zoneinfo import ZoneInfo

Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
WEEK: tuple[Weekday, ...] = get_args(Weekday)
DAY = 24 * 60  # minutes
_AHEAD = 9  # days in which a weekly window has been open again


@dataclass(frozen=True, kw_only=True)
class Window:
    """`days`: on which it begins, Monday is 0. `begins` and `ends` are minutes since that day's midnight; one that ends
    at or before its beginning ends on the day after."""

    days: tuple[int, ...]
    begins: int
    ends: int


@dataclass(frozen=True, kw_only=True)
class Windows:
    """`zone` as in the IANA's database, such as Europe/Berlin."""

    zone: str
    windows: tuple[Window, ...]

    def closes_at(self, at: float) -> float | None:
        """When the time ends that is open at that moment, in epoch seconds; None: nothing is open then."""
        end = None
        for opens, closes in sorted(self._around(at)):
            if opens <= (at if end is None else end) < closes:
                end = closes
        return end

    def opens_at(self, at: float) -> float:
        """The first moment from then on that is open, in epoch seconds."""
        if self.closes_at(at) is not None:
            return at
        return min(opens for opens, _ in self._around(at) if opens > at)

    def _around(self, at: float) -> Iterator[tuple[float, float]]:
        """Every opening that may touch that moment or be the next one."""
        zone = ZoneInfo(self.zone)
        today = datetime.fromtimestamp(at, UTC).astimezone(zone).replace(hour=0, minute=0, second=0, microsecond=0)
        for days in range(-2, _AHEAD):
            day = today + timedelta(days=days)
            for window in self.windows:
                if day.weekday() in window.days:
                    long = window.ends if window.ends > window.begins else window.ends + DAY
                    opens = (day + timedelta(minutes=window.begins)).replace(fold=1).timestamp()
                    closes = (day + timedelta(minutes=long)).replace(fold=0).timestamp()
                    if opens < closes:
                        yield opens, closes


def minutes(text: str) -> int:
    """Of a time of day such as 22:30; 24:00 is the end of it. Raises ValueError."""
    hour, colon, minute = text.partition(":")
    if not (colon and len(hour) == len(minute) == 2 and (hour + minute).isascii() and (hour + minute).isdecimal()):
        raise ValueError("write a time of day as HH:MM, in quotes")
    found = int(hour) * 60 + int(minute)
    if int(minute) > 59 or found > DAY:
        raise ValueError(f"there is no such time of day: {text}")
    return found


def clock(windows: Windows, at: float) -> str:
    """That moment on the wall clock of their zone: `Tue 22:00 CET`."""
    return f"{datetime.fromtimestamp(at, ZoneInfo(windows.zone)):%a %H:%M %Z}"


def weekdays(names: Sequence[Weekday]) -> tuple[int, ...]:
    """Their numbers, Monday is 0."""
    return tuple(sorted({WEEK.index(name) for name in names}))
