"""What the authors' published code computes in place of the optimum, so that its numbers can be reproduced.

Described from that code's behaviour, not taken from it. Neither solver converges, and the second chooses among its
answers by a cost without the interval around zero, in which nine of ten coordinates lie.
"""

from __future__ import annotations

import numpy as np

from thriftgrad.theory.distributions import Array, Distribution
from thriftgrad.theory.geometric import multiplier_slope
from thriftgrad.theory.grid import bin_variances

SWEEPS, STEPS = 30, 10
STARTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 0.9)
EPOCHS, RATE = 40, 0.7


def asked(reference_mode: str | None, include_zero: bool, name: str) -> bool:
    """Whether the published numbers are asked for; ``ValueError`` for a mode or a zero level that there is not."""
    if reference_mode is None:
        return False
    if reference_mode != "ltq":
        raise ValueError(f'{name}: reference_mode must be None or "ltq", got {reference_mode!r}.')
    if include_zero:
        raise ValueError(
            f'{name}: the published code has no zero level, got reference_mode="ltq" with include_zero=True; '
            "set include_zero=False."
        )
    return True


def alq_levels(distribution: Distribution, interior: int) -> Array:
    """The grid after 30 sweeps of 10 gradient steps of rate 1 on each level in turn, by central differences.

    From the quantiles, with differences over a thousandth of the distance between the two neighbours. Symmetric only
    as far as the arithmetic is. A step cannot leave the interval: the derivative is at most the distance to the
    neighbour times the mass up to it, which is at most 1.
    """
    grid = np.concatenate([[-1.0], distribution.quantile(np.arange(1, 2 * interior + 1) / (2 * interior + 1)), [1.0]])
    for _ in range(SWEEPS):
        for j in range(1, grid.size - 1):
            low, high = grid[j - 1], grid[j + 1]
            half = (high - low) / 1000
            level = grid[j]
            for _ in range(STEPS):
                triples = np.array([[low, level + half, high], [low, level - half, high]])
                above, below = bin_variances(triples, distribution).sum(1)
                level = level - (above - below) / (2 * half)
            grid[j] = level
    return grid


def amq_multiplier(distribution: Distribution, largest: int) -> float:
    """One of eight ends of 40 gradient steps of rate 0.7, the one of least variance outside (-p^s, p^s); s = largest.

    The integrals run over the positive half of the distribution, which halves the derivative; p may leave (0, 1) on
    the way, and an end outside it is no candidate.
    """
    ends = np.array(STARTS)
    with np.errstate(all="ignore"):
        for _ in range(EPOCHS):
            ends = ends - RATE * multiplier_slope(ends, distribution, largest, include_zero=False)
    ends = ends[(ends > 0) & (ends < 1)]  # drops NaN too
    if not ends.size:
        raise ValueError(
            "amq_multiplier: the published solver diverges on this distribution from each of its starts; "
            "set reference_mode=None."
        )
    outer = bin_variances(ends[:, None] ** np.arange(largest, -1.0, -1.0), distribution).sum(1)
    return float(ends[int(np.argmin(outer))])
