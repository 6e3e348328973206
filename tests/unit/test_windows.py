"""Maintenance windows: open when the clock on their wall says so, in every night of a year."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.windows import DAY, Weekday, Window, Windows, clock, minutes, weekdays

BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str, zone: ZoneInfo = BERLIN) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()


def nightly(*days: Weekday, begins: str = "22:00", ends: str = "04:00", zone: str = "Europe/Berlin") -> Windows:
    window = Window(days=weekdays(days or ("tue", "thu")), begins=minutes(begins), ends=minutes(ends))
    return Windows(zone=zone, windows=(window,))


@pytest.mark.parametrize(
    ("when", "closes"),
    [
        ("2026-11-24T21:59:59", None),  # a Tuesday
        ("2026-11-24T22:00", "2026-11-25T04:00"),
        ("2026-11-25T03:59:59", "2026-11-25T04:00"),
        ("2026-11-25T04:00", None),
        ("2026-11-25T22:30", None),  # a Wednesday
        ("2026-11-27T01:00", "2026-11-27T04:00"),  # a Friday: Thursday's
    ],
)
def test_a_window_is_open_from_its_day_s_evening_to_the_next_morning(when: str, closes: str | None) -> None:
    assert nightly().closes_at(at(when)) == (at(closes) if closes else None)


def test_the_next_opening_is_told_on_the_wall_clock_of_its_zone() -> None:
    windows = nightly()
    opens = windows.opens_at(at("2026-11-25T12:00"))
    assert opens == at("2026-11-26T22:00")
    assert clock(windows, opens) == "Thu 22:00 CET"
    assert windows.opens_at(at("2026-11-24T23:00")) == at("2026-11-24T23:00"), "it is open"


def test_the_night_in_which_the_clock_is_turned_is_as_long_as_it_is() -> None:
    sundays = nightly("sat", begins="23:00", ends="05:00")
    spring, autumn = at("2026-03-28T23:00"), at("2026-10-24T23:00")
    assert (sundays.closes_at(spring), sundays.closes_at(autumn)) == (spring + 5 * 3600, autumn + 7 * 3600)


def test_an_hour_that_is_there_twice_opens_late_and_closes_early() -> None:
    """02:00 to 03:00 is there twice in the night of 25 October: what is in doubt is closed."""
    opens = nightly("sun", begins="02:30", ends="06:00").opens_at(at("2026-10-25T00:00"))
    assert opens == datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=1).timestamp()
    closes = nightly("sun", begins="00:00", ends="02:30").closes_at(at("2026-10-25T00:00"))
    assert closes == datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=0).timestamp()


def test_windows_that_touch_are_one() -> None:
    whole = Window(days=tuple(range(7)), begins=0, ends=DAY)
    late = Window(days=(0,), begins=22 * 60, ends=2 * 60)
    assert Windows(zone="UTC", windows=(whole, late)).closes_at(1e9) is not None
    two = (Window(days=(0,), begins=60, ends=120), Window(days=(0,), begins=120, ends=180))
    monday = datetime(2026, 11, 23, 1, 30, tzinfo=UTC).timestamp()
    assert Windows(zone="UTC", windows=two).closes_at(monday) == monday + 1.5 * 3600


@settings(max_examples=200, deadline=None)
@given(
    moment=st.integers(int(at("2026-01-01T00:00")), int(at("2028-01-01T00:00"))),
    day=st.sampled_from(range(7)),
    begins=st.integers(0, DAY - 1),
    ends=st.integers(0, DAY),
    zone=st.sampled_from(["Europe/Berlin", "America/New_York", "Asia/Kolkata", "Pacific/Auckland", "UTC"]),
)
def test_whatever_the_moment_there_is_a_next_opening_and_it_is_open(
    moment: int, day: int, begins: int, ends: int, zone: str
) -> None:
    windows = Windows(zone=zone, windows=(Window(days=(day,), begins=begins, ends=ends),))
    opens = windows.opens_at(moment)
    closes = windows.closes_at(opens)
    assert opens >= moment and closes is not None and closes > opens
    assert closes - opens <= timedelta(days=1, hours=1).total_seconds() and opens - moment <= 15 * 86400
    assert windows.closes_at(closes) is None or (ends - begins) % DAY == 0


@pytest.mark.parametrize("text", ["22", "22:60", "24:01", "2:30", "22:3", "ab:cd", "22:00:00", "-1:00", "٢٢:٠٠"])
def test_what_is_no_time_of_day_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="time of day"):
        minutes(text)
