"""The certificate's numbers are exact, and it never says "held" over a complaint."""

from __future__ import annotations

import json
from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.report.certificate import Observed, Orders, Sessions, certify, share, upper_bound

GOOD_ORDERS = Orders(sent=10, acknowledged=10, stored=10, repeated=0, lost=0)
GOOD = Observed(
    requests=30_000,
    failed=0,
    orders=GOOD_ORDERS,
    downloads=Sessions(whole=4, cut=0, refused=0),
    websockets=Sessions(whole=5, cut=0, refused=0),
)


def counts() -> st.SearchStrategy[tuple[int, int]]:
    return st.integers(1, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))


@pytest.mark.parametrize(
    ("requests", "failed", "bound"),
    [
        (1, 0, 0.95),
        (10, 0, 0.258866),
        (100, 0, 0.029513),
        (30_000, 0, 9.98527e-05),
        (10, 1, 0.394163),
        (20, 2, 0.282619),
        (100, 5, 0.102253),
        (10, 10, 1.0),
        (0, 0, 1.0),
    ],
)
def test_the_bound_has_the_values_of_the_tables(requests: int, failed: int, bound: float) -> None:
    assert upper_bound(requests=requests, failed=failed) == pytest.approx(bound, rel=2e-5)


@settings(deadline=None)  # integers of thousands of digits
@given(counts())
def test_at_the_bound_so_few_failures_happen_in_five_per_cent_of_cases(pair: tuple[int, int]) -> None:
    requests, failed = pair
    if failed == requests:
        return
    hit, of = upper_bound(requests=requests, failed=failed).as_integer_ratio()
    ways = sum(comb(requests, k) * hit**k * (of - hit) ** (requests - k) for k in range(failed + 1))
    assert ways / of**requests == pytest.approx(0.05, rel=1e-6)


@given(counts())
def test_the_bound_lies_above_what_was_seen_and_grows_with_each_failure(pair: tuple[int, int]) -> None:
    requests, failed = pair
    bound = upper_bound(requests=requests, failed=failed)
    assert failed / requests < bound or bound == 1.0
    if failed < requests:
        assert bound < upper_bound(requests=requests, failed=failed + 1)
    assert upper_bound(requests=requests + 1, failed=failed) < bound or failed == requests


def test_a_billion_requests_and_many_failures_are_counted_in_a_moment() -> None:
    assert upper_bound(requests=10**9, failed=10**5) == pytest.approx(1.0052e-4, rel=1e-4)


@pytest.mark.parametrize(("requests", "failed"), [(1, 2), (-1, 0), (5, -1)])
def test_counts_that_cannot_be_are_refused(requests: int, failed: int) -> None:
    with pytest.raises(ValueError, match="cannot be"):
        upper_bound(requests=requests, failed=failed)


def test_a_clean_rollout_holds_and_says_so_plainly() -> None:
    certificate = certify(GOOD)
    assert certificate.verdict == "held"
    assert certificate.lines() == (
        "30,000 requests observed, none failed.",
        "With 95 % confidence at most 0.00999 % of all requests fail.",
        "10 orders sent, 10 stored, each once.",
        "4 downloads, none cut.",
        "5 WebSockets, none cut.",
    )
    assert json.loads(json.dumps(certificate.as_dict()))["observed"]["orders"]["stored"] == 10


@pytest.mark.parametrize(
    ("observed", "fault"),
    [
        (Observed(requests=10, failed=1), "1 request failed"),
        (
            Observed(requests=9, failed=0, orders=Orders(sent=9, acknowledged=9, stored=8, repeated=0, lost=1)),
            "1 order acknowledged and not stored",
        ),
        (
            Observed(requests=9, failed=0, orders=Orders(sent=9, acknowledged=9, stored=9, repeated=2, lost=0)),
            "2 orders stored more than once",
        ),
        (
            Observed(requests=9, failed=0, orders=Orders(sent=9, acknowledged=9, stored=10, repeated=0, lost=0)),
            "1 order stored that nobody sent",
        ),
        (Observed(requests=9, failed=0, downloads=Sessions(whole=8, cut=1, refused=0)), "1 download cut"),
        (Observed(requests=9, failed=0, websockets=Sessions(whole=8, cut=0, refused=1)), "1 WebSocket refused"),
    ],
)
def test_each_single_complaint_breaks_it_and_is_named(observed: Observed, fault: str) -> None:
    certificate = certify(observed)
    assert certificate.verdict == "broken"
    assert fault in certificate.faults


def test_without_requests_nothing_is_proven() -> None:
    certificate = certify(Observed(requests=0, failed=0))
    assert (certificate.verdict, certificate.bound) == ("unproven", 1.0)


@given(st.floats(1e-12, 0.999))
def test_a_printed_bound_is_never_smaller_than_the_bound(value: float) -> None:
    printed = float(share(value).removesuffix(" %")) / 100
    assert value * (1 - 1e-9) <= printed <= value * 1.011
