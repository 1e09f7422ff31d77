"""ALQ's levels: test vectors, an exact oracle, monotone descent, degenerate histograms, the gradient variant."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from thriftgrad import theory
from thriftgrad.theory.alq import Levels
from thriftgrad.theory.solve import sketch, spread, starts

EDGES = np.append(0, np.geomspace(2.0**-30, 1, 1000))


@cache
def heavy_tailed(buckets: int = 12, size: int = 8192, seed: int = 0) -> theory.Histogram:
    x = np.abs(np.random.default_rng(seed).standard_t(3, size=(buckets, size)))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return theory.Histogram.symmetric(EDGES, np.histogram(x, EDGES)[0])


@pytest.mark.parametrize(
    ("std", "include_zero", "positive", "psi"),
    [
        (1 / 128, False, [0.003471, 0.011476, 0.027206, 1], 1.39815722e-5),
        (1 / 128, True, [0, 0.009159, 0.025852, 1], 2.19381991e-5),
        (0.1, False, [0.038033, 0.122291, 0.250646, 1], 1.67560635e-3),
        (0.1, True, [0, 0.095348, 0.232429, 1], 2.45295673e-3),
    ],
)
def test_known_optima(std: float, include_zero: bool, positive: list[float], psi: float) -> None:
    law = theory.TruncatedNormal(0, std)
    levels = theory.alq_levels(law, 3, include_zero)
    np.testing.assert_allclose(levels[levels >= 0], positive, atol=6e-7)
    assert theory.expected_variance(levels, law) == pytest.approx(psi, rel=1e-8)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("include_zero", [False, True])
def test_the_grid_is_symmetric_and_of_its_size(bits: int, include_zero: bool) -> None:
    if bits == 1 and include_zero:
        return  # refused, below
    levels = theory.alq_levels(heavy_tailed(), bits, include_zero)
    assert levels.dtype == np.float64
    assert levels.size == 2**bits - include_zero
    assert levels[0] == -1
    assert levels[-1] == 1
    assert (levels == -levels[::-1]).all()
    assert (0 in levels) == include_zero
    assert (np.diff(levels.astype(np.float32)) > 0).all()
    theory.check_levels(levels, "levels")


@pytest.mark.parametrize("include_zero", [False, True])
def test_no_optimiser_finds_less(include_zero: bool) -> None:
    """Nelder-Mead from the levels found and from elsewhere, on a law whose two sides differ."""
    law = theory.Mixture([theory.TruncatedNormal(0.02, 0.05), theory.TruncatedNormal(-0.1, 0.2)], [2, 1])

    def cost(logs: np.ndarray) -> float:
        positive = np.append(1 / (1 + np.cumsum(np.exp(logs))[::-1]), 1)
        return theory.expected_variance(np.concatenate([-positive[::-1], [0] if include_zero else [], positive]), law)

    found = theory.expected_variance(theory.alq_levels(law, 3, include_zero), law)
    count = 2 if include_zero else 3
    options = {"xatol": 1e-9, "fatol": 1e-14, "maxiter": 800}
    least = min(
        optimize.minimize(cost, np.full(count, x), method="Nelder-Mead", options=options).fun for x in (0.0, 2.0)
    )
    assert found == pytest.approx(least, rel=1e-7)


@pytest.mark.parametrize("include_zero", [False, True])
def test_close_to_the_optimum_over_all_bin_edges(include_zero: bool) -> None:
    """Dynamic programming over levels that are edges of the bins: no better by more than 0.2 % at 2 to 5 bits."""
    law = heavy_tailed()
    folded = law.folded()
    nodes = np.append(0, EDGES[EDGES > 1e-4])[::2]
    nodes[-1] = 1
    a, b = np.meshgrid(nodes, nodes, indexing="ij")
    m0, m1, m2 = folded.moments(a, b)
    between = np.where(b > a, (a + b) * m1 - a * b * m0 - m2, np.inf)
    first = nodes**2 * folded.m0(0, nodes) - folded.m2(0, nodes)  # the interval around zero
    cost = np.where(nodes == 0, 0, np.inf) if include_zero else first
    done = 0
    for bits in (2, 3, 4, 5):
        intervals = 2 ** (bits - 1) - 1  # from the first level of the half to 1
        for _ in range(intervals - done):
            cost = (cost[:, None] + between).min(0)
        done = intervals
        psi = theory.expected_variance(theory.alq_levels(law, bits, include_zero), law)
        assert psi <= 1.002 * cost[-1]


@pytest.mark.parametrize("include_zero", [False, True])
@pytest.mark.parametrize("law", [theory.TruncatedNormal(0, 1 / 128), heavy_tailed()], ids=["normal", "heavy"])
def test_sweeps_never_raise_the_variance(law: theory.Distribution, include_zero: bool) -> None:
    problem = Levels(law.folded(), include_zero)
    rows = np.concatenate([starts(sketch(law.folded()), 7), np.linspace(0.1, 0.9, 7)[None]])
    cost = problem.cost(rows)
    for _ in range(40):
        rows = problem.sweep(rows)
        after = problem.cost(rows)
        assert (after <= cost * (1 + 1e-11)).all()
        assert (np.diff(rows, axis=1) > 0).all()
        cost = after
    assert (cost < problem.cost(np.linspace(0.1, 0.9, 7)[None])).all()


@pytest.mark.parametrize("include_zero", [False, True])
def test_the_gradient_is_that_of_the_variance_and_vanishes_at_the_end(include_zero: bool) -> None:
    law = theory.TruncatedNormal(0, 0.1)
    problem = Levels(law.folded(), include_zero)
    levels = np.array([[0.05, 0.1, 0.3]])
    step = 1e-5 * np.eye(3)
    truth = (problem.cost(levels + step) - problem.cost(levels - step)) / 2e-5
    np.testing.assert_allclose(problem.gradient(levels)[0], truth, rtol=1e-6, atol=1e-9)
    best = theory.alq_levels(law, 4, include_zero)
    assert np.abs(problem.gradient(best[best > 0][None, :-1])).max() < 1e-9


def test_the_newton_step_solves_the_linearised_condition() -> None:
    for include_zero in (False, True):
        problem = Levels(theory.TruncatedNormal(0, 0.3).folded(), include_zero)
        levels = np.array([[0.1, 0.2, 0.45, 0.7]])
        step = 1e-6 * np.eye(4)
        hessian = (problem.gradient(levels + step) - problem.gradient(levels - step)) / 2e-6
        truth = levels[0] - np.linalg.solve(hessian, problem.gradient(levels)[0])
        np.testing.assert_allclose(problem.newton(levels)[0], truth, rtol=1e-6)


DEGENERATE = {
    "one bin far out": theory.Histogram([-1, -0.5, -0.4999, 1], [0, 1, 0]),
    "one tiny bin": theory.Histogram([0, 1e-12, 1], [1, 0]),
    "at the end": theory.Histogram([0.9999999, 1], [1]),
    "two islands": theory.Histogram.symmetric([0, 1e-3, 0.9, 0.91, 1], [1, 0, 1, 0]),
    "below float32": theory.Histogram([0, 1e-300], [1]),
    "everything": theory.Histogram([-1, 1], [1]),
}


@pytest.mark.parametrize("law", DEGENERATE.values(), ids=DEGENERATE)
@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("include_zero", [False, True])
def test_intervals_without_mass(law: theory.Histogram, bits: int, include_zero: bool) -> None:
    levels = theory.alq_levels(law, bits, include_zero)
    assert (np.diff(levels.astype(np.float32)) > 0).all()
    assert (levels == -levels[::-1]).all()
    uniform = np.linspace(-1, 1, levels.size)
    assert theory.expected_variance(levels, law) <= theory.expected_variance(uniform, law) * (1 + 1e-9)


def test_the_uniform_law_gets_uniform_levels() -> None:
    np.testing.assert_allclose(theory.alq_levels(DEGENERATE["everything"], 4, False), np.linspace(-1, 1, 16), atol=1e-9)
    levels = theory.alq_levels(DEGENERATE["one bin far out"], 3, False)
    np.testing.assert_allclose(levels[4:], [0.4999, 0.49995, 0.5, 1], atol=1e-8)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 50), min_size=2, max_size=20).filter(any), st.integers(2, 5), st.booleans())
def test_any_histogram_gets_a_grid(counts: list[int], bits: int, include_zero: bool) -> None:
    law = theory.Histogram.symmetric(np.linspace(0, 1, len(counts) + 1), counts)
    levels = theory.check_levels(theory.alq_levels(law, bits, include_zero), "levels")
    quantiles = theory.alq_levels_by_gradient(law, bits, include_zero, steps=0)
    assert theory.expected_variance(levels, law) <= theory.expected_variance(quantiles, law) * (1 + 1e-9)


def test_more_bits_less_variance() -> None:
    law = heavy_tailed()
    psi = [theory.expected_variance(theory.alq_levels(law, bits, False), law) for bits in range(1, 7)]
    assert (np.diff(psi) < 0).all()
    with_zero = [theory.expected_variance(theory.alq_levels(law, bits, True), law) for bits in range(2, 7)]
    assert (np.array(with_zero) > psi[1:]).all()  # one level fewer


def test_scale_of_the_law() -> None:
    """Far below 1, the levels depend on the scale by the lone interval up to 1 alone, and stay in order."""
    for std in (1e-2, 1e-4, 1e-6):
        law = theory.TruncatedNormal(0, std)
        levels = theory.alq_levels(law, 3, False)
        assert 0.4 < levels[4] / std < 0.6
        assert theory.expected_variance(levels, law) < 0.4 * std**2


def test_a_mixture_weighs_its_parts() -> None:
    narrow, wide = theory.TruncatedNormal(0, 0.01), theory.TruncatedNormal(0, 0.1)
    levels = [theory.alq_levels(theory.Mixture([narrow, wide], [1 - w, w]), 3, True) for w in (0, 0.3, 1)]
    np.testing.assert_allclose(levels[0], theory.alq_levels(narrow, 3, True), atol=1e-8)
    np.testing.assert_allclose(levels[2], theory.alq_levels(wide, 3, True), atol=1e-8)
    assert levels[0][4] < levels[1][4] < levels[2][4]


def test_fast_enough_to_run_while_training() -> None:
    """Far above what it takes, about 7 and 200 ms, and far below a slow solver."""
    law = heavy_tailed()
    for bits, seconds in ((3, 0.1), (8, 2.0)):
        taken = []
        for _ in range(2):
            start = time.perf_counter()
            theory.alq_levels(law, bits, include_zero=False)
            taken.append(time.perf_counter() - start)
        assert min(taken) < seconds


@pytest.mark.parametrize("include_zero", [False, True])
def test_the_gradient_variant_comes_to_the_same_levels(include_zero: bool) -> None:
    law = theory.TruncatedNormal(0, 0.1)
    best = theory.alq_levels(law, 3, include_zero)
    psi = [
        theory.expected_variance(theory.alq_levels_by_gradient(law, 3, include_zero, steps, 0.9), law)
        for steps in (0, 10, 100, 1000)
    ]
    assert (np.diff(psi) < 0).all()
    np.testing.assert_allclose(theory.alq_levels_by_gradient(law, 3, include_zero, 1000, 0.9), best, rtol=1e-4)
    wild = theory.alq_levels_by_gradient(law, 3, include_zero, steps=50, learning_rate=1e9)
    theory.check_levels(wild, "levels")  # no rate crosses levels
    assert theory.alq_levels_by_gradient(law, 1, False).tolist() == [-1, 1]


def test_spread_moves_only_what_it_must() -> None:
    levels = np.array([[0.1, 0.2, 0.9], [0.5, 0.5, 0.5], [0.0, 1.0, 1.0]])
    apart = spread(levels)
    assert apart[0].tolist() == levels[0].tolist()
    assert (np.diff(apart.astype(np.float32)) > 0).all()
    assert (apart.astype(np.float32) > 0).all()
    assert (apart.astype(np.float32) < 1).all()
    np.testing.assert_allclose(apart, levels, atol=2e-6)


LAW = theory.TruncatedNormal(0, 0.1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: theory.alq_levels(LAW, 0, False),
            "alq_levels: bits must lie in 1 ... 8 with include_zero=False, got 0.",
        ),
        (
            lambda: theory.alq_levels(LAW, 9, False),
            "alq_levels: bits must lie in 1 ... 8 with include_zero=False, got 9.",
        ),
        (
            lambda: theory.alq_levels(LAW, 1, True),
            "alq_levels: bits must lie in 2 ... 8 with include_zero=True, got 1.",
        ),
        (
            lambda: theory.alq_levels(theory.TruncatedNormal(0, 1, -12, 12), 3, True),
            "alq_levels: normalised coordinates lie in [-1, 1], and this distribution reaches from -12.0 to 12.0;",
        ),
        (lambda: theory.alq_levels_by_gradient(LAW, 9, True), "alq_levels_by_gradient: bits must lie in 2 ... 8"),
        (lambda: theory.alq_levels_by_gradient(LAW, 3, True, -1), "got steps=-1 and learning_rate=0.1."),
        (lambda: theory.alq_levels_by_gradient(LAW, 3, True, 1, 0), "got steps=1 and learning_rate=0.0."),
        (
            lambda: theory.alq_levels_by_gradient(LAW, 3, True, 1, float("inf")),
            "steps must be at least 0 and the learning rate positive and finite, got steps=1 and learning_rate=inf.",
        ),
    ],
)
def test_refusals(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        make()
    assert str(caught.value).endswith(".")
