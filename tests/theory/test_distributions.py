"""Moments, quantiles and folding against scipy, quadrature and each other; refusals."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from thriftgrad import theory

HISTOGRAM = theory.Histogram([-1, -0.4, -0.1, 0, 0.05, 0.3, 1], [1, 0, 7, 30, 12, 2])
DISTRIBUTIONS = {
    "narrow": theory.TruncatedNormal(0, 1 / 128),
    "wide": theory.TruncatedNormal(0, 3),
    "shifted": theory.TruncatedNormal(0.3, 0.4, -0.5, 1),
    "beyond": theory.TruncatedNormal(1.5, 0.1),
    "one-sided": theory.TruncatedNormal(-0.2, 0.3, -0.9, 0),
    "mixture": theory.Mixture(
        [theory.TruncatedNormal(0.01, 0.02), theory.TruncatedNormal(0, 0.3), HISTOGRAM], [3, 1, 2]
    ),
    "histogram": HISTOGRAM,
    "magnitudes": theory.Histogram.symmetric([0.01, 0.1, 0.5, 1], [5, 3, 1]),
}
EACH = pytest.mark.parametrize("law", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)


@pytest.mark.parametrize(("mean", "std", "low", "high"), [(0, 1 / 128, -1, 1), (0.3, 0.4, -0.5, 1), (1.5, 0.1, -1, 1)])
def test_truncated_normal_is_scipys(mean: float, std: float, low: float, high: float) -> None:
    law = theory.TruncatedNormal(mean, std, low, high)
    truth = stats.truncnorm((low - mean) / std, (high - mean) / std, mean, std)
    x = np.linspace(low, high, 41)
    np.testing.assert_allclose(law.m0(low, x), truth.cdf(x), rtol=1e-10, atol=1e-300)
    np.testing.assert_allclose(law.density(x), truth.pdf(x), rtol=1e-10, atol=1e-300)
    np.testing.assert_allclose(law.m1(low, high), truth.mean(), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(law.m2(low, high), truth.moment(2), rtol=1e-10)
    p = np.linspace(0.001, 0.999, 37)
    np.testing.assert_allclose(law.quantile(p), truth.ppf(p), rtol=1e-9, atol=1e-12)


def test_the_tail_keeps_its_digits() -> None:
    """Between 8 and 9 sigma the cdf is 1 to all digits; the mass there is not zero."""
    std = 1 / 128
    mass = theory.TruncatedNormal(0, std).m0(8 * std, 9 * std)
    assert mass == pytest.approx(stats.norm.sf(8) - stats.norm.sf(9), rel=1e-12, abs=0)
    assert theory.TruncatedNormal(0, std).m0(-9 * std, -8 * std) == mass


@EACH
def test_moments_are_integrals_of_the_density(law: theory.Distribution) -> None:
    kinks = sorted({-1.0, -0.5, -0.4, -0.1, 0.0, 0.01, 0.05, 0.1, 0.3, 0.5, 1.0, -0.01, 0.03, -0.03})
    for a, b in [(-0.02, 0.01), (-0.3, 0.6), (0.0, 0.2), (-1.0, 1.0)]:
        inside = [kink for kink in kinks if a < kink < b]
        for power, moment in enumerate((law.m0, law.m1, law.m2)):
            ends = [a, *inside, b]
            truth = sum(
                integrate.quad(lambda r, k=power: r**k * float(law.density(r)), left, right, epsabs=1e-13, limit=200)[0]
                for left, right in pairwise(ends)
            )
            assert float(moment(a, b)) == pytest.approx(truth, rel=1e-8, abs=1e-12)


@EACH
def test_arrays_are_taken_elementwise(law: theory.Distribution) -> None:
    a, b = np.array([[-0.7], [0.0]]), np.array([0.1, 0.2, 0.9])
    each = [[[float(m(x, y)) for y in b] for x in a[:, 0]] for m in (law.m0, law.m1, law.m2)]
    np.testing.assert_allclose(law.moments(a, b), each, rtol=1e-14, atol=1e-16)
    assert law.quantile(np.full((2, 3), 0.5)).shape == (2, 3)


@EACH
def test_a_quantile_has_its_mass_below(law: theory.Distribution) -> None:
    p = np.array([1e-6, 0.01, 0.25, 0.5, 0.77, 0.99, 1 - 1e-6])
    np.testing.assert_allclose(law.m0(-1, law.quantile(p)), p, rtol=1e-9, atol=1e-13)
    assert law.quantile(0) == law.low
    assert float(law.quantile(1)) == pytest.approx(law.high)


@EACH
def test_folding_is_the_law_of_the_magnitude(law: theory.Distribution) -> None:
    folded = law.folded()
    a, b = np.array([0.0, 0.004, 0.1, 0.3, 0.0]), np.array([0.005, 0.01, 0.35, 1.0, 1.0])
    np.testing.assert_allclose(folded.m0(a, b), law.m0(a, b) + law.m0(-b, -a), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(folded.m1(a, b), law.m1(a, b) - law.m1(-b, -a), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(folded.m2(a, b), law.m2(a, b) + law.m2(-b, -a), rtol=1e-10, atol=1e-14)
    assert folded.m0(0, 1) == pytest.approx(1)
    assert folded.low >= 0
    assert folded.folded().m0(0, 0.1) == pytest.approx(float(folded.m0(0, 0.1)))


def test_a_histogram_is_uniform_within_its_bins() -> None:
    law = theory.Histogram([-1, 0, 0.5, 1], [1, 0, 3])
    assert law.m0(-0.5, 0.75) == pytest.approx(0.125 + 0.375)
    assert law.m1(0.5, 1) == pytest.approx(0.75 * 0.75)
    assert law.m2(-1, 0) == pytest.approx(0.25 / 3)
    assert float(law.quantile(0.25)) == 0  # the smallest x with F(x) >= p, at the foot of an empty bin
    assert float(law.quantile(0.625)) == pytest.approx(0.75)
    assert float(law.density(0.2)) == 0
    assert float(law.density(2)) == 0
    empty_ends = theory.Histogram([-1, -0.5, 0.5, 1], [0, 1, 0])
    assert (empty_ends.low, empty_ends.high) == (-0.5, 0.5)


def test_the_order_of_summing_integer_counts_is_nothing() -> None:
    rng = np.random.default_rng(0)
    edges = np.append(0, np.geomspace(1e-6, 1, 200))
    counts = rng.integers(0, 2**40, size=(5, 200))
    forward, backward = sum(counts), sum(counts[::-1])
    one = theory.alq_levels(theory.Histogram.symmetric(edges, forward), 3, include_zero=False)
    two = theory.alq_levels(theory.Histogram.symmetric(edges, backward), 3, include_zero=False)
    assert one.tobytes() == two.tobytes()


def test_counts_of_magnitudes_are_mirrored() -> None:
    law = theory.Histogram.symmetric([0.1, 0.2, 1], [3, 1])
    assert law.m0(-0.1, 0.1) == 0
    assert law.m0(0.1, 0.2) == pytest.approx(3 / 8)
    assert law.m0(-0.2, -0.1) == pytest.approx(3 / 8)
    assert law.m1(-1, 1) == pytest.approx(0, abs=1e-16)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=30).filter(any),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1e-12, 1, 1e12]),
)
def test_histograms_do_not_depend_on_their_total(counts: list[int], seed: int, factor: float) -> None:
    rng = np.random.default_rng(seed)
    edges = np.sort(rng.uniform(-1, 1, 8 * len(counts)))[: len(counts) + 1]
    if (np.diff(edges) <= 0).any():
        return
    law = theory.Histogram(edges, counts)
    scaled = theory.Histogram(edges, np.array(counts) * factor)
    x = rng.uniform(-1, 1, 10)
    np.testing.assert_allclose(scaled.m0(-1, x), law.m0(-1, x), rtol=1e-12, atol=1e-15)
    assert law.m0(-1, 1) == pytest.approx(1)


def test_a_mixture_of_one_is_its_part() -> None:
    part = theory.TruncatedNormal(0.1, 0.2)
    mixture = theory.Mixture([part, theory.TruncatedNormal(0, 1e-3)], [2.5, 0])
    assert mixture.m2(-0.3, 0.4) == pytest.approx(float(part.m2(-0.3, 0.4)), rel=1e-15)
    assert mixture.parts == (part,)
    assert mixture == theory.Mixture((part,), (1.0,))


def test_weights_of_any_size() -> None:
    parts = [theory.TruncatedNormal(0, 0.1), theory.TruncatedNormal(0, 0.2)]
    assert theory.Mixture(parts, [1e308, 1e308]).weights == (0.5, 0.5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: theory.TruncatedNormal(0, 0), "the std positive and finite, got mean=0.0 and std=0.0."),
        (lambda: theory.TruncatedNormal(0, float("nan")), "got mean=0.0 and std=nan."),
        (lambda: theory.TruncatedNormal(float("inf"), 1), "got mean=inf and std=1.0."),
        (lambda: theory.TruncatedNormal(0, 1, 1, -1), "low must be below high, both finite, got [1.0, -1.0]."),
        (lambda: theory.TruncatedNormal(0, 1, 0, float("inf")), "low must be below high, both finite, got [0.0, inf]."),
        (lambda: theory.TruncatedNormal(9, 0.01), "a normal with mean=9.0 and std=0.01 has no mass in [-1.0, 1.0]"),
        (lambda: theory.Mixture([HISTOGRAM], [1, 2]), "every part needs one weight, got 1 parts and 2 weights."),
        (lambda: theory.Mixture([HISTOGRAM], [0]), "Mixture: there is no mass, all 1 weights are zero"),
        (lambda: theory.Mixture([HISTOGRAM], [-1]), "a weight must be finite and at least 0, got -1.0."),
        (lambda: theory.Mixture([HISTOGRAM], [float("nan")]), "a weight must be finite and at least 0, got nan."),
        (lambda: theory.Histogram([0, 1], [0]), "no mass, all 1 counts are zero (an all-zero gradient leaves none)"),
        (lambda: theory.Histogram.symmetric([0, 1], [0]), "Histogram: there is no mass, all 2 counts are zero"),
        (
            lambda: theory.Histogram([0, 1, 2], [1]),
            "one more edge than counts and at least one count, got 3 edges and 1",
        ),
        (lambda: theory.Histogram([0], []), "got 1 edges and 0 counts."),
        (
            lambda: theory.Histogram([0, 1, 1], [1, 2]),
            "edges must be finite and increase strictly, got 1.0 before 1.0.",
        ),
        (lambda: theory.Histogram([0, float("nan"), 1], [1, 2]), "increase strictly, got nan."),
        (lambda: theory.Histogram([0, 1, 2], [1, -2]), "a count must be finite and at least 0, got -2.0."),
        (lambda: theory.Histogram([0, 1, 2], [1, float("inf")]), "a count must be finite and at least 0, got inf."),
        (lambda: theory.Histogram.symmetric([-1, 1], [1]), "edges of magnitudes must be at least 0, got -1.0."),
    ],
)
def test_refusals(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        make()
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)
