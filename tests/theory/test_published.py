"""The numbers that the authors' published code computes, and how far they are from the optimum."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from thriftgrad import theory

LAW = theory.TruncatedNormal(0, 1 / 128)  # a bucket of 16384


def test_alq_levels() -> None:
    levels = theory.alq_levels(LAW, 3, include_zero=False, reference_mode="ltq")
    np.testing.assert_allclose(levels, [-1, -0.1306, -0.0182, -0.0049, 0.0048, 0.0180, 0.1252, 1], rtol=0.01)
    # The figure of the paper, from a network's statistics.
    np.testing.assert_allclose(levels, [-1, -0.1304, -0.0185, -0.0051, 0.0046, 0.0178, 0.1257, 1], rtol=0.06)
    psi = theory.expected_variance(levels, LAW)
    assert psi == pytest.approx(2.77e-5, rel=2e-3)
    assert psi > 1.9 * theory.expected_variance(theory.alq_levels(LAW, 3, False), LAW)


def test_amq_multiplier() -> None:
    p = theory.amq_multiplier(LAW, 3, include_zero=False, reference_mode="ltq")
    assert p == pytest.approx(0.2317, abs=1e-4)
    psi = theory.expected_variance(theory.amq_levels(p, 3, False), LAW)
    assert psi == pytest.approx(1.18e-4, rel=5e-3)
    best = theory.amq_levels(theory.amq_multiplier(LAW, 3, False), 3, False)
    assert psi > 3.2 * theory.expected_variance(best, LAW)


@pytest.mark.parametrize("std", [1e-3, 1 / 128, 0.1, 1])
@pytest.mark.parametrize("bits", [2, 3])
def test_no_level_leaves_its_interval(std: float, bits: int) -> None:
    """Even where the steps oscillate and the end is far from the optimum and from symmetry."""
    theory.check_levels(theory.alq_levels(theory.TruncatedNormal(0, std), bits, False, "ltq"), "levels")


def test_the_smallest_grid_has_nothing_to_solve() -> None:
    assert theory.alq_levels(LAW, 1, False, "ltq").tolist() == [-1, 1]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: theory.alq_levels(LAW, 3, False, "nuq"),
            "alq_levels: reference_mode must be None or \"ltq\", got 'nuq'.",
        ),
        (
            lambda: theory.amq_multiplier(LAW, 3, False, ""),
            "amq_multiplier: reference_mode must be None or \"ltq\", got ''.",
        ),
        (lambda: theory.alq_levels(LAW, 3, True, "ltq"), "alq_levels: the published code has no zero level, got"),
        (
            lambda: theory.amq_multiplier(LAW, 3, True, "ltq"),
            "amq_multiplier: the published code has no zero level, got",
        ),
        (
            lambda: theory.amq_multiplier(theory.Histogram([0.5, 0.51], [1]), 4, False, "ltq"),
            "amq_multiplier: the published solver diverges on this distribution from each of its starts",
        ),
    ],
)
def test_refusals(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        make()
    assert str(caught.value).endswith(".")
