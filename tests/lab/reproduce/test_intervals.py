"""Intervals against scipy."""

import numpy as np
import pytest
from scipy import stats

from thriftgrad.lab.reproduce.intervals import Interval, interval, ratio


@pytest.mark.parametrize("count", [2, 3, 5, 10, 31, 60])
def test_an_interval_is_students(count):
    values = np.random.default_rng(count).normal(3, 2, count)
    low, high = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
    found = interval(values.tolist())
    assert (found.mean, found.count) == (pytest.approx(values.mean()), count)
    assert (found.low, found.high) == (pytest.approx(low, rel=1e-3), pytest.approx(high, rel=1e-3))


def test_one_value_alone_settles_nothing():
    assert interval([2.0]) == Interval(2.0, -np.inf, np.inf, 1)
    assert ratio([2.0], [1.0]).low == 0.0


def test_no_value_is_refused():
    with pytest.raises(ValueError, match=r"^interval: there is no value to take the mean of; give at least one\.$"):
        interval([])


def test_ratios_are_paired_and_geometric():
    scale = np.array([1.0, 10.0, 100.0])  # what differs between seeds, and not between methods
    found = ratio((scale * [2.0, 2.2, 1.8]).tolist(), scale.tolist())
    assert found.mean == pytest.approx((2.0 * 2.2 * 1.8) ** (1 / 3))
    assert 1.5 < found.low < found.high < 2.7
