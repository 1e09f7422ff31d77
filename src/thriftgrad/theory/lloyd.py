"""Lloyd's levels: the codebook of least squared error, without unbiasedness."""

from __future__ import annotations

import numpy as np

from thriftgrad.theory.checks import integer
from thriftgrad.theory.distributions import Array, Distribution, check_distribution
from thriftgrad.theory.solve import descend, sketch, spread, starts, tridiagonal

ROUNDS = 60
TOLERANCE = 1e-10


def lloyd_levels(distribution: Distribution, bits: int) -> Array:
    """The symmetric codebook of 2**bits levels of least E(x - nearest level)^2: float64, sorted, no zero level.

    Every level is the mean of what is nearest to it. Lloyd's sweeps, each followed by a Newton step where that lowers
    the error, from four starts; each ends in a local minimum, which for a log-concave density is the only one. A level
    to which nothing is nearest stays where it is. The levels lie within the distribution's range, so for a standard
    normal take one that is wide: ``TruncatedNormal(0, 1, -12, 12)``. An asymmetric distribution gets the best codebook
    among the symmetric ones.

    Raises ``ValueError`` for bits outside 1 ... 8, ``TypeError`` for bits that are no integer, or what is no
    distribution.
    Lloyd, Least Squares Quantization in PCM, 1982; the N(0, 1) codebooks serve EDEN, Vargaftik et al., 2022,
    arXiv:2108.08842.

    >>> from thriftgrad import theory
    >>> theory.lloyd_levels(theory.TruncatedNormal(0, 1, -12, 12), bits=2).round(4).tolist()
    [-1.5104, -0.4528, 0.4528, 1.5104]
    """
    bits = integer(bits, "bits", "lloyd_levels")
    if not 1 <= bits <= 8:
        raise ValueError(f"lloyd_levels: bits must lie in 1 ... 8, got {bits}.")
    check_distribution(distribution, "the distribution", "lloyd_levels")
    folded = distribution.folded()
    bins = sketch(folded)
    rows = starts(bins, int(2 ** (bits - 1)))
    for law in (bins, folded):  # the starts against each other in bins, and the best of them in closed form
        problem = Codebook(law)
        rows = descend(rows, problem.cost, problem.sweep, problem.newton, ROUNDS, TOLERANCE, law.high)[None]
    positive = spread(rows[0], folded.high)
    return np.concatenate([-positive[::-1], positive])


class Codebook:
    """The squared error of the positive levels, with Lloyd's sweep and a Newton step; each row is one codebook."""

    def __init__(self, folded: Distribution) -> None:
        self.folded = folded

    def edges(self, levels: Array) -> Array:
        """The ends of the cells: 0, what lies halfway between levels, and the end of the distribution."""
        ends = np.zeros((len(levels), 1)), np.full((len(levels), 1), self.folded.high)
        return np.concatenate([ends[0], (levels[:, 1:] + levels[:, :-1]) / 2, ends[1]], axis=1)

    def cells(self, levels: Array) -> Array:
        edges = self.edges(levels)
        return self.folded.moments(edges[:, :-1], edges[:, 1:])

    def cost(self, levels: Array) -> Array:
        m0, m1, m2 = self.cells(levels)
        return np.asarray(np.maximum(m2 - 2 * levels * m1 + levels * levels * m0, 0.0).sum(1))

    def sweep(self, levels: Array) -> Array:
        edges = self.edges(levels)
        m0, m1, _ = self.cells(levels)
        with np.errstate(all="ignore"):
            mean = np.clip(m1 / m0, edges[:, :-1], edges[:, 1:])
        return np.where(m0 > 0, mean, levels)

    def newton(self, levels: Array) -> Array:
        m0, m1, _ = self.cells(levels)
        # A level moves the boundary beside it by half, through d / 2 times the density, for each of its two levels.
        pull = np.diff(levels, axis=1) * self.folded.density(self.edges(levels)[:, 1:-1]) / 4
        diagonal = m0.copy()
        diagonal[:, :-1] -= pull
        diagonal[:, 1:] -= pull
        return levels - tridiagonal(-pull, diagonal, -pull, levels * m0 - m1)
