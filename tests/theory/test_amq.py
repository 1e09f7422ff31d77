"""AMQ's multiplier: test vectors, its derivative, a fine grid as the oracle."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from thriftgrad import theory
from thriftgrad.theory.geometric import multiplier_cost, multiplier_slope

LAWS = {
    "narrow": theory.TruncatedNormal(0, 1 / 128),
    "wide": theory.TruncatedNormal(0, 0.5),
    "shifted": theory.TruncatedNormal(0.1, 0.05),
    "histogram": theory.Histogram.symmetric(
        np.append(0, np.geomspace(1e-6, 1, 60)), np.exp(-((np.arange(60.0) - 40) ** 2) / 50)
    ),
}
EACH = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)


@pytest.mark.parametrize(("std", "p", "psi"), [(1 / 128, 0.132840, 3.61962e-5), (0.1, 0.360294, 2.40435818e-3)])
def test_known_optima(std: float, p: float, psi: float) -> None:
    law = theory.TruncatedNormal(0, std)
    found = theory.amq_multiplier(law, 3, include_zero=False)
    assert found == pytest.approx(p, abs=1e-6)
    assert theory.expected_variance(theory.amq_levels(found, 3, False), law) == pytest.approx(psi, rel=2e-6)


@EACH
@pytest.mark.parametrize("include_zero", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_no_multiplier_on_a_fine_grid_is_better(law: theory.Distribution, bits: int, include_zero: bool) -> None:
    found = theory.amq_multiplier(law, bits, include_zero)
    psi = theory.expected_variance(theory.amq_levels(found, bits, include_zero), law)
    for p in np.linspace(0.01, 0.99, 501):
        assert psi <= theory.expected_variance(theory.amq_levels(float(p), bits, include_zero), law) * (1 + 1e-9)


@EACH
@pytest.mark.parametrize("include_zero", [False, True])
@pytest.mark.parametrize("largest", [1, 2, 3, 7])
def test_the_slope_is_that_of_the_cost(law: theory.Distribution, largest: int, include_zero: bool) -> None:
    folded = law.folded()
    p, step = np.array([0.05, 0.13, 0.4, 0.77]), 1e-5
    ahead, behind = (multiplier_cost(p + move, folded, largest, include_zero) for move in (step, -step))
    slope = multiplier_slope(p, folded, largest, include_zero)
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-8)


@EACH
@pytest.mark.parametrize("include_zero", [False, True])
def test_the_cost_is_the_expected_variance(law: theory.Distribution, include_zero: bool) -> None:
    cost = multiplier_cost(np.array([0.3]), law.folded(), 2 if include_zero else 3, include_zero)[0]
    assert cost == pytest.approx(theory.expected_variance(theory.amq_levels(0.3, 3, include_zero), law), rel=1e-10)


def test_grids() -> None:
    assert theory.amq_levels(0.5, 1, False).tolist() == [-1, 1]
    assert theory.amq_levels(0.25, 2, False).tolist() == [-1, -0.25, 0.25, 1]
    assert theory.amq_levels(0.25, 2, True).tolist() == [-1, 0, 1]
    assert theory.amq_levels(0.5, 4, True)[8:].tolist() == [2.0**-j for j in range(6, -1, -1)]
    for bits in range(2, 9):
        assert theory.amq_levels(0.2, bits, False).size == 2**bits
        assert theory.amq_levels(0.2, bits, True).size == 2**bits - 1
        theory.check_levels(theory.amq_levels(0.01, bits, True), "levels")


def test_where_p_plays_no_part_it_is_one_half() -> None:
    assert theory.amq_multiplier(LAWS["wide"], 1, False) == 0.5
    assert theory.amq_multiplier(LAWS["wide"], 2, True) == 0.5
    assert theory.amq_multiplier(LAWS["wide"], 1, False, "ltq") == 0.5


def test_the_ends_of_the_range_are_reached() -> None:
    """All mass in a far smaller, or a far larger, place than p^s can reach."""
    assert theory.amq_multiplier(theory.TruncatedNormal(0, 1e-6), 2, False) == pytest.approx(0.01)
    assert theory.amq_multiplier(theory.Histogram([0.995, 1], [1]), 2, False) == pytest.approx(0.99)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: theory.amq_levels(0, 3, False),
            "amq_levels: the multiplier must lie strictly between 0 and 1, got 0.0.",
        ),
        (lambda: theory.amq_levels(1, 3, False), "must lie strictly between 0 and 1, got 1.0."),
        (lambda: theory.amq_levels(float("nan"), 3, False), "must lie strictly between 0 and 1, got nan."),
        (
            lambda: theory.amq_levels(0.5, 9, False),
            "amq_levels: bits must lie in 1 ... 8 with include_zero=False, got 9.",
        ),
        (lambda: theory.amq_multiplier(LAWS["wide"], 1, True), "amq_multiplier: bits must lie in 2 ... 8 with include"),
        (lambda: theory.amq_multiplier(theory.TruncatedNormal(0, 1, -2, 2), 3, True), "reaches from -2.0 to 2.0"),
    ],
)
def test_refusals(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        make()
    assert str(caught.value).endswith(".")
