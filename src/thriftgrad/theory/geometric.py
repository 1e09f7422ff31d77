"""Psi and its derivative for levels in geometric progression."""

from __future__ import annotations

import numpy as np

from thriftgrad.theory.distributions import Array, Distribution
from thriftgrad.theory.grid import bin_variances


def multiplier_cost(p: Array, folded: Distribution, largest: int, include_zero: bool) -> Array:
    """Psi of each p for the distribution of a magnitude."""
    powers = p[:, None] ** np.arange(largest, -1.0, -1.0)
    low = np.zeros_like(powers[:, :1]) if include_zero else -powers[:, :1]
    return np.asarray(bin_variances(np.concatenate([low, powers], axis=1), folded).sum(1))


def multiplier_slope(p: Array, folded: Distribution, largest: int, include_zero: bool) -> Array:
    """dPsi/dp of each p, for the distribution of a magnitude.

    sum over j < s of K_j M1(p^{j+1}, p^j) - (2 j + 1) p^{2j} M0(p^{j+1}, p^j), K_j = j p^{j-1} + (j + 1) p^j, and for
    the interval around zero 2 s p^{2s-1} M0(0, p^s), or s p^{s-1} M1(0, p^s) with a zero level.
    """
    p = p[:, None]
    j = np.arange(float(largest))
    m0, m1, _ = folded.moments(p ** (j + 1), p**j)
    outer = (j * p ** (j - 1) + (j + 1) * p**j) * m1 - (2 * j + 1) * p ** (2 * j) * m0
    inner = folded.moments(np.zeros_like(p[:, 0]), p[:, 0] ** largest)
    if include_zero:
        return np.asarray(outer.sum(1) + largest * p[:, 0] ** (largest - 1) * inner[1])
    return np.asarray(outer.sum(1) + 2 * largest * p[:, 0] ** (2 * largest - 1) * inner[0])
