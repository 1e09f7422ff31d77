"""AMQ: levels in geometric progression, and the best ratio."""

from __future__ import annotations

import numpy as np

from thriftgrad.theory import published
from thriftgrad.theory.checks import number
from thriftgrad.theory.distributions import Array, Distribution
from thriftgrad.theory.geometric import multiplier_cost, multiplier_slope
from thriftgrad.theory.grid import check_support, interior_levels
from thriftgrad.theory.roots import increasing_root
from thriftgrad.theory.solve import sketch

LEAST, MOST = 0.01, 0.99
CONVENTION = 0.5  # where no level depends on the multiplier


def amq_levels(p: float, bits: int, include_zero: bool) -> Array:
    """The signed grid of AMQ: +-p^j for j = 0 ... s, sorted, float64.

    s = 2**(bits - 1) - 1 without a zero level; with one, s = 2**(bits - 1) - 2 and 0. p = 1/2 with a zero level
    is NUQSGD's grid.

    Raises ``ValueError`` for p outside (0, 1), or bits outside 1 ... 8 (2 ... 8 with a zero level), ``TypeError`` for a
    p that is no number or bits that are no integer.
    Faghri et al., 2020, arXiv:2010.12460; Ramezani-Kebrya et al., NUQSGD, 2021, arXiv:1908.06077.

    >>> from thriftgrad import theory
    >>> theory.amq_levels(0.5, bits=3, include_zero=True).tolist()
    [-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0]
    """
    p = number(p, "the multiplier", "amq_levels")
    if not 0 < p < 1:
        raise ValueError(f"amq_levels: the multiplier must lie strictly between 0 and 1, got {p}.")
    positive = p ** np.arange(interior_levels(bits, include_zero, "amq_levels"), -1.0, -1.0)
    return np.concatenate([-positive[::-1], [0.0] if include_zero else [], positive])


def amq_multiplier(
    distribution: Distribution, bits: int, include_zero: bool, reference_mode: str | None = None
) -> float:
    r"""The ratio p in [0.01, 0.99] at which :func:`amq_levels` has the least expected variance.

    The lowest cell of a grid of 99 ratios, then the root of dPsi/dp in closed form, by Newton's steps in a bracket.
    An asymmetric distribution is folded, which changes nothing: the grid is symmetric. Where all levels are -1, 0
    and 1, p plays no part and is 0.5. ``reference_mode="ltq"`` gives what the authors' published code computes.

    Raises ``ValueError`` for bits outside 1 ... 8 (2 ... 8 with a zero level), a distribution that reaches beyond
    [-1, 1], another reference mode, or a zero level in reference mode; ``TypeError`` for bits that are no integer or
    what is no distribution.
    Faghri et al., 2020, arXiv:2010.12460. There p is found by gradient descent of a fixed rate, without a zero level.

    >>> from thriftgrad import theory
    >>> theory.amq_multiplier(theory.TruncatedNormal(0, 0.1), bits=3, include_zero=False).__round__(4)
    0.3603
    """
    largest = interior_levels(bits, include_zero, "amq_multiplier")
    check_support(distribution, "amq_multiplier")
    as_published = published.asked(reference_mode, include_zero, "amq_multiplier")
    if largest == 0:
        return CONVENTION
    if as_published:
        return published.amq_multiplier(distribution, largest)
    folded = distribution.folded()
    grid = np.linspace(LEAST, MOST, 99)
    best = int(np.argmin(multiplier_cost(grid, sketch(folded), largest, include_zero)))
    low, high = grid[[max(best - 1, 0)]], grid[[min(best + 1, grid.size - 1)]]

    def slope(p: Array) -> tuple[Array, Array]:
        """dPsi/dp, and its derivative by a central difference, which only has to be good enough for Newton."""
        near = np.concatenate([p, p - 1e-6, p + 1e-6])
        middle, below, above = multiplier_slope(near, folded, largest, include_zero)
        return np.array([middle]), np.array([(above - below) / 2e-6])

    return float(increasing_root(slope, low, high, grid[[best]])[0])
