from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from orchestrator.rollout.evidence.sequential import (
    THETAS,
    RoutedEvents,
    chernoff,
    log_excess,
    lower_rate,
    upper_rate,
)


@pytest.mark.parametrize(("n1", "n0", "events"), [(5, 45, 3), (5, 45, 50), (25, 25, 20), (1, 60, 1), (3, 4, 7)])
def test_the_factor_of_a_window_has_mean_one_at_most_given_its_numbers(n1: int, n0: int, events: int) -> None:
    law = stats.hypergeom(n1 + n0, n1, events)
    mean = 0.0
    for x1 in range(events + 1):
        if law.pmf(x1) > 0:
            process = RoutedEvents()
            process.add(n1, x1, n0, events - x1)
            mean += law.pmf(x1) * math.exp(process.log_e)
    assert mean <= 1 + 1e-9


def test_the_known_rate_has_mean_one() -> None:
    mean = 0.0
    for x in range(31):
        process = RoutedEvents()
        process.add_known(0.1, 30, x)
        mean += stats.binom(30, 0.1).pmf(x) * math.exp(process.log_e)
    assert mean == pytest.approx(1)


def test_a_higher_rate_is_found_and_a_lower_one_is_not() -> None:
    worse, better = RoutedEvents(), RoutedEvents()
    for _ in range(20):
        worse.add(5, 1, 45, 1)
        better.add(25, 0, 25, 1)
    assert worse.log_e > math.log(100)
    assert better.log_e < 0


@pytest.mark.parametrize("rate", [0.002, 0.05, 0.5])
def test_bounds_of_a_rate_hold_at_every_look(rate: float) -> None:
    dice = random.Random(7)
    wrong_above = wrong_below = 0
    looks = [round(10 * 1.3**k) for k in range(19)]
    for _ in range(150):
        n = x = 0
        above = below = False
        for look in looks:
            while n < look:
                n, x = n + 1, x + (dice.random() < rate)
            above = above or upper_rate(x, n, math.log(10)) < rate
            below = below or lower_rate(x, n, math.log(10)) > rate
        wrong_above, wrong_below = wrong_above + above, wrong_below + below
    most = stats.binom.ppf(0.999, 150, 0.1)
    assert wrong_above <= most
    assert wrong_below <= most


def test_the_average_of_a_rate_that_changes_is_bounded() -> None:
    dice = random.Random(3)
    wrong = 0
    for _ in range(150):
        x, total, missed = 0, 0.0, False
        for n in range(1, 1001):
            rate = 0.02 + 0.3 * (n % 100 < 10)
            x, total = x + (dice.random() < rate), total + rate
            if n % 50 == 0:
                missed = (
                    missed or upper_rate(x, n, math.log(10)) < total / n or lower_rate(x, n, math.log(10)) > total / n
                )
        wrong += missed
    assert wrong <= stats.binom.ppf(0.999, 150, 0.2)


@given(st.integers(0, 10**12), st.integers(0, 10**12), st.floats(0.5, 20))
@settings(max_examples=60, deadline=None)
def test_bounds_enclose_what_was_seen_whatever_the_size(x: int, n: int, level: float) -> None:
    x = min(x, n)
    high, low = upper_rate(x, n, level), lower_rate(x, n, level)
    assert 0 <= low <= high <= 1
    if n:
        assert low <= x / n <= high
        assert chernoff(x, n, level)[0] <= x / n <= chernoff(x, n, level)[1]


def test_more_data_at_the_same_rate_means_tighter_bounds() -> None:
    widths = [upper_rate(0.03 * n, n, 3) - lower_rate(0.03 * n, n, 3) for n in (100, 1000, 10_000, 100_000)]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.004


def test_without_events_the_bound_is_near_the_rule_of_three() -> None:
    assert upper_rate(0, 1000, math.log(20)) == pytest.approx(0.003, abs=0.0014)


def test_a_large_stable_side_of_light_requests_bounds_as_well_as_its_own_number() -> None:
    plain, matched = lower_rate(200, 2000, 3), lower_rate(20, 200, 3, scale=0.1)
    assert matched == pytest.approx(plain, abs=0.01)
    assert lower_rate(20, 200, 3) < plain


def test_excess_is_found_beyond_the_rate_only() -> None:
    assert log_excess(30, 1000, 0.005) > math.log(100)
    assert log_excess(5, 1000, 0.005) < math.log(2)
    assert len(set(THETAS)) == len(THETAS)
