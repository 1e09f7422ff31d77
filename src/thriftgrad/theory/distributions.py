"""Distributions of normalised coordinates, known by their moments over intervals."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thriftgrad.theory.checks import number, row, shown
from thriftgrad.theory.roots import increasing_root

Array = NDArray[np.float64]

_erfc = np.frompyfunc(math.erfc, 1, 1)
_inverse_normal = np.frompyfunc(NormalDist().inv_cdf, 1, 1)
_TINY = 5e-324


class Distribution(ABC):
    """A distribution F with a density on [low, high], as the levels' solvers see it.

    m0, m1 and m2 are the integrals of 1, r and r^2 over (a, b) against F; a and b are numbers or arrays, a <= b, and
    what lies outside [low, high] has no mass. No moment is a quadrature: each distribution knows its closed form.
    """

    low: float
    high: float

    @abstractmethod
    def moments(self, a: ArrayLike, b: ArrayLike) -> Array:
        """m0, m1 and m2 over (a, b) in one pass, stacked along a new first axis."""

    @abstractmethod
    def density(self, x: ArrayLike) -> Array:
        """The density at x."""

    @abstractmethod
    def quantile(self, p: ArrayLike) -> Array:
        """The smallest x in [low, high] with F(x) >= p."""

    @abstractmethod
    def folded(self) -> Distribution:
        """The distribution of |x|."""

    def nodes(self) -> Array:
        """For the distribution of a magnitude: ends of bins that are fine where its mass is, from 0 to high."""
        rms = max(math.sqrt(float(self.m2(0.0, self.high))), 1e-30)
        near = np.linspace(0.0, min(8 * rms, self.high), 1025)
        return np.unique(np.concatenate([near, np.geomspace(min(near[1], self.high / 2), self.high, 257)]))

    def m0(self, a: ArrayLike, b: ArrayLike) -> Array:
        """The mass in (a, b)."""
        return np.asarray(self.moments(a, b)[0])

    def m1(self, a: ArrayLike, b: ArrayLike) -> Array:
        """The integral of r over (a, b)."""
        return np.asarray(self.moments(a, b)[1])

    def m2(self, a: ArrayLike, b: ArrayLike) -> Array:
        """The integral of r^2 over (a, b)."""
        return np.asarray(self.moments(a, b)[2])


def check_distribution(value: object, setting: str, name: str) -> None:
    """``TypeError`` for what is no distribution."""
    if not isinstance(value, Distribution):
        raise TypeError(
            f"{name}: {setting} must be a Distribution, such as theory.TruncatedNormal(0, 0.1), got {shown(value)}."
        )


def _normal_mass(a: Array, b: Array) -> Array:
    """P(a < z < b) for a standard normal z, with full relative precision in both tails."""
    flip = a + b > 0  # in the left tail the cdf itself is the small number
    a, b = np.where(flip, -b, a), np.where(flip, -a, b)
    cdf = np.asarray(_erfc(np.stack([a, b]) / -math.sqrt(2)), dtype=np.float64) / 2
    return np.asarray(cdf[1] - cdf[0])


@dataclass(frozen=True)
class TruncatedNormal(Distribution):
    r"""A normal distribution restricted to [low, high].

    With phi its density and Z the mass that the parent has in [low, high]:
    m0 = P(a, b) / Z, m1 = mean m0 - std^2 (phi(b) - phi(a)), m2 = mean m1 + std^2 (m0 - b phi(b) + a phi(a)).
    ``mean`` and ``std`` are the parent's, as in the papers; truncation changes the moments of what is left.

    Raises ``ValueError`` for a std or an interval that is not positive and finite, or an interval without mass,
    ``TypeError`` for what is no number.
    Faghri et al., Adaptive Gradient Quantization for Data-Parallel SGD, 2020, arXiv:2010.12460.

    >>> from thriftgrad import theory
    >>> float(theory.TruncatedNormal(0, 0.1).m0(-0.1, 0.1).round(4))
    0.6827
    """

    mean: float
    std: float
    low: float = -1.0
    high: float = 1.0
    _mass: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for setting in ("mean", "std", "low", "high"):
            object.__setattr__(self, setting, number(getattr(self, setting), setting, "TruncatedNormal"))
        if not (math.isfinite(self.mean) and 0 < self.std < math.inf):
            raise ValueError(
                "TruncatedNormal: the mean must be finite and the std positive and finite, "
                f"got mean={self.mean} and std={self.std}."
            )
        if not (-math.inf < self.low < self.high < math.inf):
            raise ValueError(f"TruncatedNormal: low must be below high, both finite, got [{self.low}, {self.high}].")
        mass = float(_normal_mass(*self._standard(self.low, self.high)))
        if not mass > 1e-290:
            raise ValueError(
                f"TruncatedNormal: a normal with mean={self.mean} and std={self.std} has no mass in "
                f"[{self.low}, {self.high}]; choose an interval that it reaches."
            )
        object.__setattr__(self, "_mass", mass)

    def _standard(self, a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
        ends = np.broadcast_arrays(np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64))
        x, y = (np.asarray((np.clip(end, self.low, self.high) - self.mean) / self.std) for end in ends)
        return x, y

    def m0(self, a: ArrayLike, b: ArrayLike) -> Array:
        return _normal_mass(*self._standard(a, b)) / self._mass

    def moments(self, a: ArrayLike, b: ArrayLike) -> Array:
        x, y = self._standard(a, b)
        mass = _normal_mass(x, y)
        left = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
        right = np.exp(-y * y / 2) / math.sqrt(2 * math.pi)
        # phi(x) - phi(y), without cancellation where the two are close.
        nearer = np.abs(x) < np.abs(y)
        gap = np.abs(x - y) * np.abs(x + y) / 2
        first = np.where(nearer, -left, right) * np.expm1(-gap)
        second = mass + x * left - y * right
        m1 = self.mean * mass + self.std * first
        m2 = self.mean**2 * mass + 2 * self.mean * self.std * first + self.std**2 * second
        return np.stack([mass, m1, m2]) / self._mass

    def density(self, x: ArrayLike) -> Array:
        x = np.asarray(x, dtype=np.float64)
        z = (x - self.mean) / self.std
        inside = (x >= self.low) & (x <= self.high)
        return np.where(inside, np.exp(-z * z / 2) / (self.std * math.sqrt(2 * math.pi) * self._mass), 0.0)

    def quantile(self, p: ArrayLike) -> Array:
        p = np.clip(np.asarray(p, dtype=np.float64), 0.0, 1.0)
        ends = self._standard(self.low, self.high)
        below = _normal_mass(np.asarray(-np.inf), ends[0]) + p * self._mass
        above = _normal_mass(ends[1], np.asarray(np.inf)) + (1 - p) * self._mass
        z = np.asarray(_inverse_normal(np.maximum(np.minimum(below, above), _TINY)), dtype=np.float64)
        inside = np.clip(self.mean + self.std * np.where(below <= above, z, -z), self.low, self.high)
        return np.where(p <= 0, self.low, np.where(p >= 1, self.high, inside))

    def folded(self) -> Distribution:
        low, high = self.low, self.high
        if low >= 0:
            return self
        if high <= 0:
            return TruncatedNormal(-self.mean, self.std, -high, -low)
        if self.mean == 0 and low == -high:
            return TruncatedNormal(0.0, self.std, 0.0, high)
        sides = [(self.mean, high, float(self.m0(0, high))), (-self.mean, -low, float(self.m0(low, 0)))]
        # A side whose mass is nothing cannot be normalised, and is not missed.
        kept = [
            (TruncatedNormal(mean, self.std, 0.0, end), mass)
            for mean, end, mass in sides
            if mass * self._mass > 1e-285 or mass > 0.5
        ]
        return Mixture([part for part, _ in kept], [mass for _, mass in kept])


@dataclass(frozen=True)
class Mixture(Distribution):
    """A weighted mixture of distributions: each moment is the weighted mean of the parts' moments.

    ALQ and AMQ weigh each bucket's distribution by its squared norm, because E|Q(v) - v|^2 is |v|^2 times the expected
    variance of the normalised coordinates; ALQ-N and AMQ-N by its number of coordinates. Weights need not sum to one.

    Raises ``ValueError`` for no parts, or weights that are negative, not finite, all zero or not as many as the parts,
    ``TypeError`` for parts that are no distributions, or weights that are no numbers.
    Faghri et al., Adaptive Gradient Quantization for Data-Parallel SGD, 2020, arXiv:2010.12460.

    >>> from thriftgrad import theory
    >>> narrow, wide = theory.TruncatedNormal(0, 0.01), theory.TruncatedNormal(0, 0.1)
    >>> float(theory.Mixture([narrow, wide], [3, 1]).m0(-0.1, 0.1).round(4))
    0.9207
    """

    parts: Sequence[Distribution]
    weights: Sequence[float]
    low: float = field(init=False, repr=False, compare=False)
    high: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.parts, Sequence):
            raise TypeError(f"Mixture: the parts must be a sequence, got {shown(self.parts)}; put one alone in a list.")
        if not self.parts:
            raise ValueError(f"Mixture: there must be at least one part, got {shown(self.parts)}.")
        for part in self.parts:
            check_distribution(part, "each part", "Mixture")
        weights = row(self.weights, "weights", "Mixture")
        if weights.size != len(self.parts):
            raise ValueError(
                f"Mixture: every part needs one weight, got {len(self.parts)} parts and {weights.size} weights."
            )
        for weight in weights:
            if not 0 <= weight < math.inf:
                raise ValueError(f"Mixture: a weight must be finite and at least 0, got {weight}.")
        if not weights.any():
            raise ValueError(f"Mixture: there is no mass, all {weights.size} weights are zero; leave empty parts out.")
        weights = weights / weights.max()  # the sum of large weights may overflow
        weights = weights / weights.sum()
        kept = [(part, float(weight)) for part, weight in zip(self.parts, weights, strict=True) if weight > 0]
        object.__setattr__(self, "parts", tuple(part for part, _ in kept))
        object.__setattr__(self, "weights", tuple(weight for _, weight in kept))
        object.__setattr__(self, "low", min(part.low for part in self.parts))
        object.__setattr__(self, "high", max(part.high for part in self.parts))

    def moments(self, a: ArrayLike, b: ArrayLike) -> Array:
        terms = [weight * part.moments(a, b) for part, weight in zip(self.parts, self.weights, strict=True)]
        return np.asarray(np.sum(terms, axis=0))

    def m0(self, a: ArrayLike, b: ArrayLike) -> Array:
        terms = [weight * part.m0(a, b) for part, weight in zip(self.parts, self.weights, strict=True)]
        return np.asarray(np.sum(terms, axis=0))

    def density(self, x: ArrayLike) -> Array:
        terms = [weight * part.density(x) for part, weight in zip(self.parts, self.weights, strict=True)]
        return np.asarray(np.sum(terms, axis=0))

    def quantile(self, p: ArrayLike) -> Array:
        p = np.clip(np.asarray(p, dtype=np.float64), 0.0, 1.0)
        each = np.stack([part.quantile(p) for part in self.parts])
        return increasing_root(lambda x: (self.m0(self.low, x) - p, self.density(x)), each.min(0), each.max(0))

    def folded(self) -> Distribution:
        return Mixture([part.folded() for part in self.parts], self.weights)
