"""The buckets of times."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.serving.observe.buckets import GROWTH, LAST, bucket_of, lower_us, upper_us


@given(st.one_of(st.integers(0, 10**12), st.floats(0, 1e12)))
def test_a_time_lies_in_its_bucket(time_us: float) -> None:
    bucket = bucket_of(time_us)
    assert 0 <= bucket <= LAST
    assert lower_us(bucket) <= time_us < upper_us(bucket)


@given(st.integers(1, 10**10))
def test_a_bucket_is_the_logarithm(time_us: int) -> None:
    wanted = math.log(time_us) / math.log(GROWTH)
    assert abs(bucket_of(time_us) - math.floor(wanted)) <= (abs(wanted - round(wanted)) < 1e-6)


@given(st.integers(0, LAST - 1))
def test_buckets_leave_no_gap(bucket: int) -> None:
    assert upper_us(bucket) == lower_us(bucket + 1)
    assert bucket_of(lower_us(bucket + 1)) == bucket + 1
    assert bucket_of(math.nextafter(upper_us(bucket), 0)) == bucket


def test_the_ends_are_open() -> None:
    assert (bucket_of(-1), bucket_of(0), bucket_of(0.99)) == (0, 0, 0)
    assert bucket_of(1e300) == LAST
    assert upper_us(LAST) == math.inf
