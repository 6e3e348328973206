"""What a provider says is believed within bounds: neither a number nor a text of its own stops or fills anything."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import pytest
import structlog

from orchestrator import secrets
from orchestrator.store import codec
from providers.compute.fake import FakeCompute
from providers.errors import Throttled
from tests.support.outcome import SERVER, journey

HUGE = 200_000  # times


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize(
    ("asked", "believed"), [(1e9, 300.0), (float("inf"), 60.0), (float("nan"), 60.0), (-5.0, 0.0), (30.0, 30.0)]
)
def test_a_pause_that_a_provider_asks_for_is_believed_within_bounds(asked: float, believed: float) -> None:
    assert Throttled("slow down", retry_after=asked).retry_after == believed


@pytest.mark.parametrize("call", ["ensure_image", "images"])
@pytest.mark.parametrize("asked", [1e9, float("inf"), float("nan")])
def test_who_is_throttled_without_end_goes_back_soon_after_its_deadline(
    call: str, asked: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    with journey("forward") as (r, _):

        def throttled(*_args: object, **_kwargs: object) -> object:
            raise Throttled("slow down", retry_after=asked)

        monkeypatch.setattr(FakeCompute, call, throttled)
        r.until(lambda: r.upgrade(SERVER).deadline is not None)
        end = (r.upgrade(SERVER).deadline or 0.0) + 60
        r.until(lambda: r.upgrade(SERVER).direction == "undo" or r.upgrade(SERVER).step != "create_image")
        assert r.upgrade(SERVER).direction == "undo"
        assert r.clock() <= end


def test_a_text_of_megabytes_leaves_records_small_and_no_half_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_known", ("s3cret-of-the-house",))
    reason = "x" * (secrets.LONGEST_TEXT - 60) + "s3cret-of-the-house" * HUGE
    with journey("forward") as (r, _):
        r.until(lambda: bool(r.upgrade(SERVER).notes.get("image")))
        thing = r.cloud.things[r.upgrade(SERVER).notes["image"]]
        thing.view = replace(thing.view, state="failed", reason=reason)
        longest = 0

        def refused() -> bool:
            nonlocal longest
            document = codec.UPGRADE.dump(r.upgrade(SERVER))
            assert b"s3cre" not in document
            longest = max(longest, len(document))
            return r.upgrade(SERVER).attempt("create_image") == 1

        r.until(refused)
        assert longest < 20_000
        for entry in r.store.events(r.rollout):
            assert len(codec.text(entry.detail)) < 20_000
