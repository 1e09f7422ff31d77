"""The empirical distribution: counts over bins, and prefix sums."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from thriftgrad.theory.checks import row
from thriftgrad.theory.distributions import Array, Distribution


@dataclass(frozen=True, eq=False)
class Histogram(Distribution):
    r"""A histogram, uniform within each bin; its moments are differences of prefix sums, exact and O(log bins).

    ``edges`` are sorted, one more than ``counts``; counts are weights at least 0 (numbers of coordinates, or squared
    norms), of any total. Integer counts can be summed over workers in any order, and are the same to the bit.
    [low, high] is the range of the bins that are not empty.

    Raises ``ValueError`` for edges that are not sorted and finite, counts that are negative or not finite, too many or
    too few of them, or no mass at all, which is what an all-zero gradient leaves, ``TypeError`` for what is no number.
    No paper's model: Faghri et al., 2020, arXiv:2010.12460, fit truncated normals, which miss the gradients' tails.

    >>> from thriftgrad import theory
    >>> histogram = theory.Histogram.symmetric([0, 0.01, 0.1, 1], [900, 90, 10])
    >>> float(histogram.m0(-0.1, 0.1).round(4)), float(histogram.quantile(0.95).round(4))
    (0.99, 0.01)
    """

    edges: ArrayLike
    counts: ArrayLike
    low: float = field(init=False, repr=False)
    high: float = field(init=False, repr=False)
    _edges: Array = field(init=False, repr=False)
    _density: Array = field(init=False, repr=False)
    _sums: Array = field(init=False, repr=False)  # float64[3, bins + 1]: m0, m1, m2 from the first edge to each edge

    def __post_init__(self) -> None:
        edges = row(self.edges, "edges", "Histogram")
        counts = row(self.counts, "counts", "Histogram")
        if counts.size != edges.size - 1 or not counts.size:
            raise ValueError(
                "Histogram: there must be one more edge than counts and at least one count, "
                f"got {edges.size} edges and {counts.size} counts."
            )
        if not (np.isfinite(edges).all() and (np.diff(edges) > 0).all()):
            raise ValueError(f"Histogram: edges must be finite and increase strictly, got {_culprit(edges)}.")
        wrong = ~((counts >= 0) & (counts < np.inf))
        if wrong.any():
            raise ValueError(f"Histogram: a count must be finite and at least 0, got {counts[wrong][0]}.")
        if not counts.any():
            raise ValueError(
                f"Histogram: there is no mass, all {counts.size} counts are zero (an all-zero gradient leaves none); "
                "keep the previous levels."
            )
        counts = counts / counts.max()  # the sum of large counts may overflow
        mass = counts / counts.sum()
        left, right = edges[:-1], edges[1:]
        bins = np.stack([mass, mass * (left + right) / 2, mass * (left * left + left * right + right * right) / 3])
        sums = np.concatenate([np.zeros((3, 1)), np.cumsum(bins, axis=1)], axis=1)
        occupied = np.flatnonzero(mass)
        sums[0] = np.minimum(sums[0], 1.0)
        sums[0, occupied[-1] + 1 :] = 1.0
        values = {"edges": edges, "counts": np.array(self.counts)}
        for name, array in {**values, "_edges": edges, "_density": mass / (right - left), "_sums": sums}.items():
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        object.__setattr__(self, "low", float(left[occupied[0]]))
        object.__setattr__(self, "high", float(right[occupied[-1]]))

    @classmethod
    def symmetric(cls, edges: ArrayLike, counts: ArrayLike) -> Histogram:
        """The symmetric distribution of x whose magnitudes |x| fall into these bins; ``edges`` start at 0 or above.

        >>> from thriftgrad import theory
        >>> theory.Histogram.symmetric([0, 0.5, 1], [3, 1]).counts.tolist()
        [1.0, 3.0, 3.0, 1.0]
        """
        magnitudes = row(edges, "edges", "Histogram.symmetric")
        each = row(counts, "counts", "Histogram.symmetric")
        if magnitudes.size and magnitudes[0] < 0:
            raise ValueError(f"Histogram.symmetric: edges of magnitudes must be at least 0, got {magnitudes[0]}.")
        gap = [] if magnitudes.size and magnitudes[0] == 0 else [0]  # between the two smallest magnitudes
        positive = magnitudes if gap else magnitudes[1:]
        middle = [] if gap else [0.0]
        return cls(np.concatenate([-positive[::-1], middle, positive]), np.concatenate([each[::-1], gap, each]))

    def _below(self, x: Array) -> Array:
        """m0, m1 and m2 from the first edge to x, on a new first axis."""
        x = np.clip(x, self._edges[0], self._edges[-1])
        i = np.clip(np.searchsorted(self._edges, x, side="right") - 1, 0, self._density.size - 1)
        left = self._edges[i]
        inside = self._density[i] * (x - left)
        return self._sums[:, i] + np.stack(
            [inside, inside * (x + left) / 2, inside * (x * x + x * left + left * left) / 3]
        )

    def moments(self, a: ArrayLike, b: ArrayLike) -> Array:
        ends = np.stack(np.broadcast_arrays(np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)))
        below = self._below(ends)
        return np.asarray(below[:, 1] - below[:, 0])

    def density(self, x: ArrayLike) -> Array:
        x = np.asarray(x, dtype=np.float64)
        i = np.clip(np.searchsorted(self._edges, x, side="right") - 1, 0, self._density.size - 1)
        return np.where((x >= self._edges[0]) & (x <= self._edges[-1]), self._density[i], 0.0)

    def quantile(self, p: ArrayLike) -> Array:
        p = np.clip(np.asarray(p, dtype=np.float64), 0.0, 1.0)
        i = np.maximum(np.searchsorted(self._sums[0], p, side="left") - 1, 0)
        with np.errstate(all="ignore"):
            x = self._edges[i] + (p - self._sums[0, i]) / self._density[i]
        return np.clip(np.where(p > 0, np.minimum(x, self._edges[i + 1]), self.low), self.low, self.high)

    def nodes(self) -> Array:
        return self._edges

    def folded(self) -> Distribution:
        if self._edges[0] >= 0:
            return self
        edges = np.unique(np.abs(self._edges))
        if self._edges[0] < 0 < self._edges[-1]:
            edges = np.unique(np.append(edges, 0.0))
        middle = (edges[:-1] + edges[1:]) / 2
        return Histogram(edges, (self.density(middle) + self.density(-middle)) * np.diff(edges))


def _culprit(edges: Array) -> str:
    """The first edge that is out of order, in words."""
    if not np.isfinite(edges).all():
        return f"{edges[~np.isfinite(edges)][0]}"
    i = int(np.argmax(np.diff(edges) <= 0))
    return f"{edges[i]} before {edges[i + 1]}"
