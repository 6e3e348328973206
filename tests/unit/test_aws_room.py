"""How many processors a rollout takes at its worst moment, and what they count for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from providers.compute.aws_room import STANDARD, peak, quota_of


def test_every_family_counts_for_its_quota() -> None:
    told = {
        "m7i.large": "L-1216C47A",
        "im4gn.large": "L-1216C47A",
        "hpc7g.16xlarge": "L-F7808C92",
        "h1.2xlarge": "L-1216C47A",
        "inf2.xlarge": "L-1945791B",
        "dl1.24xlarge": "L-6E869C2A",
        "d3.xlarge": "L-1216C47A",
        "trn1.2xlarge": "L-2C3B7624",
        "t4g.nano": "L-1216C47A",
        "u-6tb1.metal": "L-43DA4232",
        "u7i-12tb.224xlarge": "L-43DA4232",
        "g6.xlarge": "L-DB2E81BA",
        "vt1.3xlarge": "L-DB2E81BA",
        "p5.48xlarge": "L-417A185B",
        "x2idn.16xlarge": "L-7295265B",
        "f1.2xlarge": "L-74FC7D96",
    }
    assert {type: quota.code for type in told if (quota := quota_of(type))} == told
    assert quota_of("mac2.metal") is None and quota_of("z1d.large") == STANDARD


@given(old=st.lists(st.integers(0, 8), min_size=1, max_size=8), new=st.integers(1, 16), at_once=st.integers(1, 10))
def test_the_peak_is_never_exceeded_whatever_the_order(old: list[int], new: int, at_once: int) -> None:
    """Played through: so many new ones at once beside all that still run, smallest and largest old ones first."""
    most = 0
    for order in (sorted(old), sorted(old, reverse=True)):
        for done in range(len(order)):
            under_way = min(at_once, len(order) - done)
            most = max(most, (done + under_way) * new + sum(order[done:]) - sum(order))
    assert most <= peak(old, new, at_once)


def test_replacing_few_at_a_time_by_the_same_takes_only_those_few() -> None:
    assert peak([2] * 100, 2, 10) == 20
    assert peak([2] * 100, 4, 10) == 220, "all are twice as large at the end, and ten old ones still run"
    assert peak([0, 0], 4, 10) == 8, "the old ones count for another quota"
