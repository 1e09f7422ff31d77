"""Grids, the variance of rounding onto them, and the probabilities of their levels."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

from thriftgrad import theory
from thriftgrad.theory.grid import magnitudes

GRIDS = [[0, 1], [0, 0.1, 0.4, 1], [-1, 1], [-1, -0.2, 0.2, 1], [-1, -0.5, 0.01, 0.3, 1]]
LAWS = [
    theory.TruncatedNormal(0, 1 / 128),
    theory.TruncatedNormal(0.2, 0.5),
    theory.Histogram([-1, -0.3, 0.1, 0.2, 1], [1, 5, 4, 1]),
]


@pytest.mark.parametrize("levels", GRIDS, ids=str)
@pytest.mark.parametrize("law", LAWS, ids=["narrow", "wide", "histogram"])
def test_expected_variance_is_its_integral(levels: list[float], law: theory.Distribution) -> None:
    grid = theory.signed(levels)
    points = sorted({*grid.tolist(), -0.3, -0.03, 0.0, 0.03, 0.1, 0.2})
    truth = 0.0
    for a, b in pairwise(grid.tolist()):
        ends = [a, *(point for point in points if a < point < b), b]
        for left, right in pairwise(ends):
            truth += integrate.quad(lambda r, a=a, b=b: (b - r) * (r - a) * float(law.density(r)), left, right)[0]
    assert theory.expected_variance(levels, law) == pytest.approx(truth, rel=1e-7)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_exact_variance_is_that_of_two_point_rounding(seed: int, n: int) -> None:
    """Against the definition: E (up b + down (1 - b) - r)^2, with b of mean (r - down) / (up - down)."""
    rng = np.random.default_rng(seed)
    grid = np.array([-1, -0.5, -0.1, 0.05, 0.6, 1])
    x = rng.standard_normal(n)
    scale = float(np.linalg.norm(x))
    truth = 0.0
    for r in x / scale:
        up = min(level for level in grid if level >= min(r, 1))
        down = max(level for level in grid if level <= r)
        rho = (r - down) / (up - down) if up > down else 0.0
        truth += rho * (up - r) ** 2 + (1 - rho) * (down - r) ** 2
    assert theory.exact_variance(x, grid, scale) == pytest.approx(scale**2 * truth, rel=1e-9, abs=1e-12)


def test_a_law_of_samples_has_the_variance_of_the_samples() -> None:
    """Bins so narrow that they are samples: n Psi is the exact variance of the vector."""
    rng = np.random.default_rng(1)
    x = rng.standard_t(3, size=2000)
    scale = float(np.linalg.norm(x))
    centres = np.sort(x / scale)
    edges = np.sort(np.concatenate([centres - 1e-12, centres + 1e-12]))
    law = theory.Histogram(edges, np.arange(3999) % 2 == 0)
    grid = [-1, -0.2, -0.05, -0.01, 0.01, 0.05, 0.2, 1]
    measured = theory.exact_variance(x, grid, scale) / scale**2
    assert x.size * theory.expected_variance(grid, law) == pytest.approx(measured, rel=1e-8)


def test_order_and_scale_are_nothing_to_the_variance() -> None:
    x = np.random.default_rng(2).standard_normal(100)
    grid = [0, 0.01, 0.1, 1]
    base = theory.exact_variance(x, grid, float(np.linalg.norm(x)))
    assert theory.exact_variance(x[::-1], grid, float(np.linalg.norm(x))) == pytest.approx(base, rel=1e-13)
    assert theory.exact_variance(-8 * x, grid, float(np.linalg.norm(8 * x))) == pytest.approx(64 * base, rel=1e-12)


def test_what_is_exact_costs_nothing() -> None:
    assert theory.exact_variance([0.0, 0.0], [0, 1], scale=0) == 0
    assert theory.exact_variance([0.5, -0.5, 0, 1], [0, 0.5, 1], scale=1) == 0
    assert theory.exact_variance([3.0], [-1, -0.1, 0.1, 1], scale=3.0) == 0
    assert theory.exact_variance([1.0000001], [0, 1], scale=1) == 0  # beyond the scale: the end level


@pytest.mark.parametrize("levels", GRIDS, ids=str)
@pytest.mark.parametrize("law", LAWS, ids=["narrow", "wide", "histogram"])
def test_probabilities_keep_mass_and_mean(levels: list[float], law: theory.Distribution) -> None:
    """Unbiased rounding: they sum to one, and the mean level is the mean coordinate."""
    grid = theory.signed(levels)
    p = theory.level_probabilities(grid, law)
    assert p.sum() == pytest.approx(1, abs=1e-12)
    assert p @ grid == pytest.approx(float(law.m1(-1, 1)), abs=1e-12)
    second = float(law.m2(-1, 1)) + theory.expected_variance(grid, law)
    assert p @ grid**2 == pytest.approx(second, rel=1e-9)
    if levels[0] == 0:
        folded = theory.level_probabilities(levels, law)
        middle = p.size // 2
        np.testing.assert_allclose(folded[1:], p[middle + 1 :] + p[:middle][::-1], atol=1e-14)


def test_magnitudes_of_a_grid() -> None:
    assert magnitudes([-1, -0.5, 0.5, 1], "x").tolist() == [0.5, 1]
    assert magnitudes([-1, 0, 1], "x").tolist() == [0, 1]
    assert magnitudes([0, 0.25, 1], "x").tolist() == [0, 0.25, 1]
    assert theory.signed([-1, 0.3, 1]).tolist() == [-1, 0.3, 1]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: theory.check_levels([1], "ALQ"), "ALQ: a grid is a sequence of at least 2 levels, got [1]."),
        (lambda: theory.check_levels([[0, 1]], "ALQ"), "ALQ: a grid is a sequence of at least 2 levels, got [[0, 1]]."),
        (lambda: theory.check_levels([0, float("nan"), 1], "ALQ"), "ALQ: levels must be finite, got nan."),
        (lambda: theory.check_levels([0, 0.6, 0.5, 1], "ALQ"), "levels must increase strictly, got 0.6 before 0.5."),
        (lambda: theory.check_levels([0, 0.5, 0.5, 1], "ALQ"), "levels must increase strictly, got 0.5 before 0.5."),
        (lambda: theory.check_levels([0.1, 1], "ALQ"), "levels must start at 0 (magnitudes) or -1 (signed), got 0.1."),
        (lambda: theory.check_levels([0, 0.9], "ALQ"), "ALQ: levels must end at 1, got 0.9."),
        (lambda: theory.signed([0, 2]), "levels: levels must end at 1, got 2.0."),
        (lambda: magnitudes([-1, 0.5, 1], "ALQ"), "ALQ: a signed grid must be symmetric here, got [-1.0, 0.5, 1.0]."),
        (lambda: theory.expected_variance([0, 0.5], LAWS[0]), "expected_variance: levels must end at 1, got 0.5."),
        (
            lambda: theory.expected_variance([0, 1], theory.TruncatedNormal(0, 1, -12, 12)),
            "expected_variance: normalised coordinates lie in [-1, 1], and this distribution reaches from -12.0 to 12",
        ),
        (
            lambda: theory.level_probabilities([0, 1], theory.Histogram([0, 2], [1])),
            "level_probabilities: normalised coordinates lie in [-1, 1], and this distribution reaches from 0.0 to 2.0",
        ),
        (lambda: theory.level_probabilities([0, 0.5], LAWS[0]), "level_probabilities: levels must end at 1, got 0.5."),
        (
            lambda: theory.exact_variance([1], [0, 1], -1),
            "exact_variance: the scale must be finite and at least 0, got -1.",
        ),
        (lambda: theory.exact_variance([1], [0, 1], float("nan")), "must be finite and at least 0, got nan."),
        (lambda: theory.exact_variance([1], [0, 0], 1), "exact_variance: levels must increase strictly"),
    ],
)
def test_refusals(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        make()
    assert str(caught.value).endswith(".")
