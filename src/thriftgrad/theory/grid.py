"""Grids of levels, and what unbiased rounding onto them costs."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from thriftgrad.theory.checks import integer, number, numbers, shown
from thriftgrad.theory.distributions import Array, Distribution, check_distribution


def check_levels(levels: ArrayLike, name: str = "levels") -> Array:
    """The levels as float64, once they are known to be a grid: magnitudes from 0 to 1, or signed from -1 to 1.

    Raises, under the given name, ``TypeError`` for levels that are no numbers, ``ValueError`` for fewer than two,
    levels that are not finite, not strictly increasing, or do not run from 0 or -1 to 1.

    >>> from thriftgrad import theory
    >>> theory.check_levels([0, 0.5, 1], "my levels")
    array([0. , 0.5, 1. ])
    """
    grid = numbers(levels, "levels", name)
    if grid.ndim != 1 or grid.size < 2:
        raise ValueError(f"{name}: a grid is a sequence of at least 2 levels, got {shown(levels)}.")
    if not np.isfinite(grid).all():
        raise ValueError(f"{name}: levels must be finite, got {grid[~np.isfinite(grid)][0]}.")
    if (np.diff(grid) <= 0).any():
        i = int(np.argmax(np.diff(grid) <= 0))
        raise ValueError(f"{name}: levels must increase strictly, got {grid[i]} before {grid[i + 1]}.")
    if grid[0] not in (0.0, -1.0):
        raise ValueError(f"{name}: levels must start at 0 (magnitudes) or -1 (signed), got {grid[0]}.")
    if grid[-1] != 1.0:
        raise ValueError(f"{name}: levels must end at 1, got {grid[-1]}.")
    return grid


def signed(levels: ArrayLike) -> Array:
    """The signed grid on [-1, 1] of levels that are magnitudes from 0 to 1; a signed grid is returned as it is.

    Raises as :func:`check_levels` does.

    >>> from thriftgrad import theory
    >>> theory.signed([0, 0.25, 1]).tolist()
    [-1.0, -0.25, 0.0, 0.25, 1.0]
    """
    grid = check_levels(levels)
    return grid if grid[0] < 0 else np.concatenate([-grid[:0:-1], grid])


def magnitudes(levels: ArrayLike, name: str) -> Array:
    """The magnitudes of a symmetric grid, from 0 if it has a zero level and from its smallest level otherwise."""
    grid = check_levels(levels, name)
    if grid[0] < 0 and not np.array_equal(grid, -grid[::-1]):
        raise ValueError(f"{name}: a signed grid must be symmetric here, got {grid.tolist()}.")
    return grid[grid >= 0]


def check_support(distribution: Distribution, name: str) -> None:
    """``TypeError`` for what is no distribution, ``ValueError`` if it reaches beyond the outermost levels."""
    check_distribution(distribution, "the distribution", name)
    if distribution.low < -1 or distribution.high > 1:
        raise ValueError(
            f"{name}: normalised coordinates lie in [-1, 1], and this distribution reaches from {distribution.low} "
            f"to {distribution.high}; divide by the norm first."
        )


def interior_levels(bits: int, include_zero: bool, name: str) -> int:
    """How many magnitudes a grid has strictly between 0 and 1; ``TypeError`` or ``ValueError`` for bits of no grid."""
    bits = integer(bits, "bits", name)
    least = 2 if include_zero else 1
    if not least <= bits <= 8:
        raise ValueError(f"{name}: bits must lie in {least} ... 8 with include_zero={include_zero}, got {bits}.")
    return int(2 ** (bits - 1)) - least


def bin_variances(grid: Array, distribution: Distribution) -> Array:
    """The integral of (b - r)(r - a) over each interval (a, b) of a grid, along its last axis."""
    a, b = grid[..., :-1], grid[..., 1:]
    m0, m1, m2 = distribution.moments(a, b)
    return np.asarray(np.maximum((a + b) * m1 - a * b * m0 - m2, 0.0))


def expected_variance(levels: ArrayLike, distribution: Distribution) -> float:
    """The expected variance of one coordinate, rounded without bias to the nearest two levels.

    Psi(l) = sum_j of the integral over (l_j, l_{j+1}) of (l_{j+1} - r)(r - l_j) dF(r), exact up to rounding.
    Relative to |v|^2 a bucket of n coordinates costs n Psi. ``levels`` are signed, or magnitudes that start at 0.

    Raises ``ValueError`` for levels that are no grid, or a distribution that reaches beyond [-1, 1], ``TypeError`` for
    what is no distribution.
    Faghri et al., Adaptive Gradient Quantization for Data-Parallel SGD, 2020, arXiv:2010.12460.

    >>> from thriftgrad import theory
    >>> theory.expected_variance([-1, 0, 1], theory.TruncatedNormal(0, 0.1)).__round__(4)
    0.0698
    """
    check_support(distribution, "expected_variance")
    return float(bin_variances(signed(check_levels(levels, "expected_variance")), distribution).sum())


def exact_variance(x: ArrayLike, levels: ArrayLike, scale: float) -> float:
    """E|Q(x) - x|^2 of one vector: scale^2 sum_i (up_i - r_i)(r_i - down_i), r = x / scale between two levels.

    ``levels`` are signed, or magnitudes that start at 0. Coordinates beyond the scale are held to the end levels, and
    count nothing. A scale of 0 costs nothing, since zeros are sent as zeros.

    Raises ``ValueError`` for levels that are no grid, or a scale that is negative or not finite, ``TypeError`` for what
    are no numbers.

    >>> from thriftgrad import theory
    >>> theory.exact_variance([3, 4], [0, 1], scale=5)
    10.0
    """
    grid = signed(check_levels(levels, "exact_variance"))
    coordinates = numbers(x, "coordinates", "exact_variance").reshape(-1)
    scale = number(scale, "the scale", "exact_variance")
    if not 0 <= scale < math.inf:
        raise ValueError(f"exact_variance: the scale must be finite and at least 0, got {scale}.")
    if scale == 0:
        return 0.0
    r = np.clip(coordinates / scale, -1.0, 1.0)
    i = np.clip(np.searchsorted(grid, r, side="right") - 1, 0, grid.size - 2)
    return float(scale**2 * ((grid[i + 1] - r) * (r - grid[i])).sum())


def level_probabilities(levels: ArrayLike, distribution: Distribution) -> Array:
    """The probability of each level after unbiased rounding, float64[len(levels)], of sum 1.

    P(l_j) = int over (l_{j-1}, l_j) of (r - l_{j-1}) / (l_j - l_{j-1}) dF
    + int over (l_j, l_{j+1}) of (l_{j+1} - r) / (l_{j+1} - l_j) dF.
    Signed levels get the probabilities of x; magnitudes, which start at 0, those of |x|.

    Raises ``ValueError`` for levels that are no grid, or a distribution that reaches beyond [-1, 1], ``TypeError`` for
    what is no distribution.
    Faghri et al., 2020, arXiv:2010.12460, build Huffman's code on them.

    >>> from thriftgrad import theory
    >>> theory.level_probabilities([0, 0.5, 1], theory.Histogram([-1, 1], [1])).tolist()
    [0.25, 0.5, 0.25]
    """
    grid = check_levels(levels, "level_probabilities")
    check_support(distribution, "level_probabilities")
    m0, m1, _ = (distribution.folded() if grid[0] == 0 else distribution).moments(grid[:-1], grid[1:])
    up = np.clip((m1 - grid[:-1] * m0) / np.diff(grid), 0.0, m0)
    return np.asarray(np.append(m0 - up, 0.0) + np.append(0.0, up))
