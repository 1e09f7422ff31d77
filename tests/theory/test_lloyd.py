"""Codebooks of least squared error: the known ones of the normal law, stationarity, empty cells."""

from __future__ import annotations

import re

import numpy as np
import pytest

from thriftgrad import theory
from thriftgrad.theory.lloyd import Codebook

NORMAL = theory.TruncatedNormal(0, 1, -12, 12)


def squared_error(levels: np.ndarray, law: theory.Distribution) -> float:
    edges = np.concatenate([[law.low], (levels[1:] + levels[:-1]) / 2, [law.high]])
    m0, m1, m2 = law.moments(edges[:-1], edges[1:])
    return float((m2 - 2 * levels * m1 + levels**2 * m0).sum())


@pytest.mark.parametrize(
    ("bits", "positive", "error"),
    [
        (1, [np.sqrt(2 / np.pi)], 1 - 2 / np.pi),
        (2, [0.4528, 1.5104], 0.11748),
        (3, [0.2451, 0.7560, 1.3439, 2.1520], 0.03454),
        (4, [0.1284, 0.3881, 0.6568, 0.9424, 1.2562, 1.6181, 2.0690, 2.7326], 0.009497),
    ],
)
def test_the_normal_law(bits: int, positive: list[float], error: float) -> None:
    levels = theory.lloyd_levels(NORMAL, bits)
    np.testing.assert_allclose(levels[levels > 0], positive, atol=6e-5)
    assert squared_error(levels, NORMAL) == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_level_is_the_mean_of_its_cell(bits: int) -> None:
    levels = theory.lloyd_levels(NORMAL, bits)
    assert levels.size == 2**bits
    assert (levels == -levels[::-1]).all()
    edges = np.concatenate([[-12], (levels[1:] + levels[:-1]) / 2, [12]])
    m0, m1, _ = NORMAL.moments(edges[:-1], edges[1:])
    np.testing.assert_allclose(levels, m1 / m0, rtol=1e-6)
    # Panter and Dite: sqrt(3) pi / 2 / 4^bits from below, the closer the finer.
    limit = np.sqrt(3) * np.pi / 2 / 4**bits
    assert 0.5 * limit < squared_error(levels, NORMAL) < limit


def test_the_scale_of_the_law() -> None:
    wide, narrow = theory.TruncatedNormal(0, 1, -12, 12), theory.TruncatedNormal(0, 1 / 128, -12 / 128, 12 / 128)
    np.testing.assert_allclose(theory.lloyd_levels(narrow, 3) * 128, theory.lloyd_levels(wide, 3), rtol=1e-7)


def test_better_than_unbiased_levels() -> None:
    """It may be biased, so it errs less than half as much as the best unbiased rounding onto as many levels."""
    law = theory.TruncatedNormal(0, 0.1)
    unbiased = theory.expected_variance(theory.alq_levels(law, 3, False), law)
    assert squared_error(theory.lloyd_levels(law, 3), law) < unbiased / 2


def test_sweeps_never_raise_the_error() -> None:
    problem = Codebook(NORMAL.folded())
    rows = np.array([[0.1, 0.2, 0.3, 0.4], [1.0, 3.0, 9.0, 11.0]])  # the last cells are all but empty
    cost = problem.cost(rows)
    for _ in range(30):
        rows = problem.sweep(rows)
        assert (problem.cost(rows) <= cost * (1 + 1e-12)).all()
        cost = problem.cost(rows)


def test_the_newton_step_solves_the_linearised_condition() -> None:
    problem = Codebook(theory.TruncatedNormal(0, 1, -12, 12).folded())
    levels = np.array([0.3, 0.8, 1.2, 2.0])

    def residual(levels: np.ndarray) -> np.ndarray:
        m0, m1, _ = problem.cells(levels[None])
        return (levels * m0 - m1)[0]

    step = 1e-6 * np.eye(4)
    jacobian = np.stack([(residual(levels + h) - residual(levels - h)) / 2e-6 for h in step], axis=1)
    truth = levels - np.linalg.solve(jacobian, residual(levels))
    np.testing.assert_allclose(problem.newton(levels[None])[0], truth, rtol=1e-6)


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_empty_cells(bits: int) -> None:
    law = theory.Histogram.symmetric([0, 1e-3, 0.9, 0.91, 1], [1, 0, 1, 0])
    levels = theory.lloyd_levels(law, bits)
    assert (np.diff(levels.astype(np.float32)) > 0).all()
    if bits == 2:
        np.testing.assert_allclose(levels, [-0.905, -0.0005, 0.0005, 0.905], rtol=1e-9)
    uniform = (np.arange(2**bits) + 0.5) / 2 ** (bits - 1) - 1
    assert squared_error(levels, law) <= squared_error(uniform, law)


def test_a_histogram_of_one_bin_is_cut_evenly() -> None:
    levels = theory.lloyd_levels(theory.Histogram([-1, 1], [1]), 3)
    np.testing.assert_allclose(levels, (np.arange(8) - 3.5) / 4, atol=1e-9)


@pytest.mark.parametrize("bits", [0, 9])
def test_refusals(bits: int) -> None:
    with pytest.raises(ValueError, match=re.escape(f"lloyd_levels: bits must lie in 1 ... 8, got {bits}.")):
        theory.lloyd_levels(NORMAL, bits)
