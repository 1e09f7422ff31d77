"""Measured <= exact worst case <= bound, an envelope by sampling, and vectors that reach the worst case."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thriftgrad import theory

SIZES = [1, 2, 3, 10, 64, 512, 16384]


def uniform(s: int) -> np.ndarray:
    return np.arange(s + 1) / s


def halving(s: int) -> np.ndarray:
    return np.append(0, 2.0 ** np.arange(-s, 1))


def random_grid(rng: np.random.Generator, kind: str) -> np.ndarray:
    inner = np.unique(rng.uniform(1e-3, 0.999, rng.integers(1, 8)) ** rng.choice([1, 3]))
    if kind == "zero":
        return np.concatenate([[0], inner, [1]])
    if kind == "no zero":
        return np.concatenate([[-1], -inner[::-1], inner, [1]])
    return np.concatenate([[-1], np.unique(rng.uniform(-0.99, 0.99, 5)), [1]])


def envelope(levels: np.ndarray, n: int) -> float:
    """n conc(h)(1/n) by sampling h and building the upper hull; from below."""
    grid = theory.signed(levels)
    r = np.unique(np.concatenate([np.linspace(0, 1, 4001), np.abs(grid), [n**-0.5]]))
    h = np.zeros_like(r)
    for sign in (r, -r):
        i = np.clip(np.searchsorted(grid, sign, side="right") - 1, 0, grid.size - 2)
        h = np.maximum(h, (grid[i + 1] - sign) * (sign - grid[i]))
    hull: list[tuple[float, float]] = []
    for t, value in zip(r**2, h, strict=True):
        while len(hull) > 1:
            (t0, v0), (t1, v1) = hull[-2:]
            if (t1 - t0) * (value - v0) < (v1 - v0) * (t - t0):
                break
            hull.pop()
        hull.append((t, value))
    t, value = np.array(hull).T
    return float(n * np.interp(1 / n, t, value))


@pytest.mark.parametrize(
    ("levels", "n", "worst", "bound"),
    [
        (halving(2), 16384, 31.00, 31.125),
        (halving(3), 64, 0.341, 0.375),
        (uniform(3), 16384, 41.67, 42.67),
    ],
)
def test_known_values(levels: np.ndarray, n: int, worst: float, bound: float) -> None:
    assert theory.worst_case_variance(levels, n) == pytest.approx(worst, abs=5e-3)
    claimed = theory.qsgd_variance_bound(n, 3) if bound == 42.67 else theory.nuqsgd_variance_bound(n, levels.size - 2)
    assert claimed == pytest.approx(bound, abs=5e-3)
    x = theory.worst_case_vector(levels, n)
    assert theory.exact_variance(x, levels, 1.0) >= 0.95 * theory.worst_case_variance(levels, n)


@pytest.mark.parametrize("kind", ["zero", "no zero", "askew"])
@pytest.mark.parametrize("n", SIZES)
def test_the_envelope(kind: str, n: int) -> None:
    """Above every sampled hull, by no more than the samples' spacing explains."""
    rng = np.random.default_rng(n)
    for _ in range(5):
        levels = random_grid(rng, kind)
        worst, sampled = theory.worst_case_variance(levels, n), envelope(levels, n)
        assert sampled * (1 - 1e-12) - 1e-12 <= worst <= sampled * (1 + 1e-3) + n * 1e-7


@pytest.mark.parametrize("n", SIZES[1:])
@pytest.mark.parametrize("kind", ["zero", "no zero", "askew"])
def test_a_vector_reaches_it(kind: str, n: int) -> None:
    rng = np.random.default_rng(n + 1)
    grids = [random_grid(rng, kind) for _ in range(5)]
    if kind == "zero":
        grids += [uniform(1), uniform(3), uniform(7), halving(0), halving(2), halving(6)]
    for levels in grids:
        x = theory.worst_case_vector(levels, n)
        assert x.shape == (n,)
        assert np.linalg.norm(x) == pytest.approx(1, abs=1e-12)
        reached = theory.exact_variance(x, levels, 1.0)
        assert reached <= theory.worst_case_variance(levels, n) * (1 + 1e-9)
        # With few coordinates whole numbers of them cannot take the two best squares.
        assert reached >= (0.95 if n >= 10 else 0.6) * theory.worst_case_variance(levels, n)


def test_one_coordinate_is_exact() -> None:
    assert theory.worst_case_variance(halving(3), 1) == 0
    assert theory.worst_case_vector(halving(3), 1).tolist() == [1]


VECTORS: list[Callable[[np.random.Generator, int], np.ndarray]] = [
    lambda rng, n: rng.standard_normal(n),
    lambda rng, n: rng.standard_t(1.5, n),
    lambda rng, n: np.ones(n),
    lambda rng, n: np.where(np.arange(n) == 0, 1.0, 1e-3),
    lambda rng, n: rng.standard_normal(n) * (rng.random(n) < 0.1) + 1e-9,
    lambda rng, n: 10.0 ** rng.uniform(-6, 0, n),
]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3000), st.sampled_from(VECTORS), st.integers(1, 7))
def test_measured_below_worst_case_below_bound(seed: int, n: int, draw: Callable[..., np.ndarray], s: int) -> None:
    rng = np.random.default_rng(seed)
    x = draw(rng, n)
    norm = float(np.linalg.norm(x))
    grids = [
        (uniform(s), theory.qsgd_variance_bound(n, s)),
        (halving(s - 1), theory.nuqsgd_variance_bound(n, s - 1)),
        *((grid, theory.variance_bound(grid, n)) for grid in (random_grid(rng, "zero"), random_grid(rng, "no zero"))),
        (random_grid(rng, "askew"), np.inf),
    ]
    for levels, bound in grids:
        measured = theory.exact_variance(x, levels, norm) / norm**2
        worst = theory.worst_case_variance(levels, n)
        assert measured <= worst * (1 + 1e-9) + 1e-12
        assert worst <= bound * (1 + 1e-9)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 500), st.sampled_from([1.0, 1.5, 2.0, 3.0, np.inf]), st.booleans())
def test_the_general_bound_holds_for_every_norm(seed: int, n: int, q: float, zero: bool) -> None:
    rng = np.random.default_rng(seed)
    levels = random_grid(rng, "zero" if zero else "no zero")
    for draw in VECTORS:
        x = draw(rng, n)
        measured = theory.exact_variance(x, levels, float(np.linalg.norm(x, q)) * (1 + 1e-12))
        assert measured <= theory.variance_bound(levels, n, q) * float(np.linalg.norm(x)) ** 2 * (1 + 1e-9)


@pytest.mark.parametrize("s", [0, 1, 2, 5])
@pytest.mark.parametrize("n", SIZES)
def test_nuqsgd_is_a_case_of_the_general_bound(n: int, s: int) -> None:
    general = theory.variance_bound(halving(s), n)
    if s:
        assert theory.nuqsgd_variance_bound(n, s) == pytest.approx(general, rel=1e-12)
    else:  # no two levels above zero, and nothing for their ratio
        assert theory.nuqsgd_variance_bound(n, 0) == pytest.approx(general + 1 / 8, rel=1e-12)


def test_both_regimes_meet() -> None:
    assert theory.nuqsgd_variance_bound(2**8, 3) == pytest.approx(9 / 8)
    assert theory.nuqsgd_variance_bound(2**8 - 1, 3) == pytest.approx(9 / 8, abs=0.01)
    assert theory.qsgd_variance_bound(100, 10) == pytest.approx(1)
    assert theory.qsgd_variance_bound(25, 10) == pytest.approx(0.25)
    assert theory.qsgd_variance_bound(400, 10) == pytest.approx(2)


def test_without_a_zero_level_the_papers_bounds_do_not_hold() -> None:
    """Gaussian data on the published grid of 3 bits: ten times NUQSGD's bound, and within ours."""
    x = np.random.default_rng(0).standard_normal(16384)
    norm = float(np.linalg.norm(x))
    levels = theory.amq_levels(0.5, 3, include_zero=False)
    measured = theory.exact_variance(x, levels, norm) / norm**2
    assert measured == pytest.approx(255, rel=0.01)
    assert measured > 8 * theory.nuqsgd_variance_bound(16384, 2)
    assert measured <= theory.worst_case_variance(levels, 16384) <= theory.variance_bound(levels, 16384)


def test_two_stages() -> None:
    """Against a two-stage rounding of small vectors, enumerated in expectation by its definition."""
    rng = np.random.default_rng(0)
    gradients = rng.standard_normal((4, 32))
    grid = uniform(3)
    omega = theory.worst_case_variance(grid, 32)
    bound = theory.two_stage_variance(
        omega, omega, (gradients**2).sum(1).tolist(), float((gradients.mean(0) ** 2).sum())
    )

    def quantise(x: np.ndarray) -> np.ndarray:
        norm = np.linalg.norm(x)
        scaled = np.abs(x) / norm * 3
        return norm * np.sign(x) * np.floor(scaled + rng.random(x.size)) / 3

    errors = []
    for _ in range(400):
        mean = quantise(np.mean([quantise(gradient) for gradient in gradients], axis=0))
        errors.append(((mean - gradients.mean(0)) ** 2).sum())
    assert np.mean(errors) <= bound
    assert theory.two_stage_variance(0.5, 0, [2, 4], 9) == pytest.approx(0.5 * 6 / 4)
    assert theory.two_stage_variance(0, 0.5, [2, 4], 9) == pytest.approx(4.5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: theory.qsgd_variance_bound(0, 1),
            "qsgd_variance_bound: n must be at least 1 and s at least 1, got n=0",
        ),
        (lambda: theory.qsgd_variance_bound(8, 0), "n must be at least 1 and s at least 1, got n=8 and s=0."),
        (
            lambda: theory.nuqsgd_variance_bound(8, -1),
            "nuqsgd_variance_bound: n must be at least 1 and s at least 0, got",
        ),
        (lambda: theory.variance_bound([0, 1], 0), "variance_bound: n and q must be at least 1, got n=0 and q=2.0."),
        (
            lambda: theory.variance_bound([0, 1], 1, 0.5),
            "variance_bound: n and q must be at least 1, got n=1 and q=0.5.",
        ),
        (lambda: theory.variance_bound([-1, 0.5, 1], 1), "variance_bound: a signed grid must be symmetric here, got"),
        (lambda: theory.variance_bound([0.1, 1], 1), "variance_bound: levels must start at 0 (magnitudes) or -1"),
        (lambda: theory.worst_case_variance([0, 1], 0), "worst_case_variance: n must be at least 1, got 0."),
        (lambda: theory.worst_case_variance([0, 2], 1), "worst_case_variance: levels must end at 1, got 2.0."),
        (lambda: theory.worst_case_vector([0, 1], 0), "worst_case_vector: n must be at least 1, got 0."),
        (lambda: theory.worst_case_vector([0, 2], 1), "worst_case_vector: levels must end at 1, got 2.0."),
        (
            lambda: theory.two_stage_variance(1, 1, [], 1),
            "two_stage_variance: there must be a worker and nothing may be negative or NaN, got",
        ),
        (lambda: theory.two_stage_variance(-1, 1, [1], 1), "got epsilons -1 and 1, squared norms [1] and 1."),
        (lambda: theory.two_stage_variance(1, 1, [1, float("nan")], 1), "squared norms [1, nan] and 1."),
        (lambda: theory.two_stage_variance(1, 1, [1], float("nan")), "squared norms [1] and nan."),
    ],
)
def test_refusals(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        make()
    assert str(caught.value).endswith(".")
