"""The largest variance that any vector can meet on a grid, and a vector that meets it."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from thriftgrad.theory.checks import integer
from thriftgrad.theory.distributions import Array
from thriftgrad.theory.grid import check_levels, signed


def worst_case_variance(levels: ArrayLike, n: int) -> float:
    r"""The largest E|Q(x) - x|^2 / |x|^2 of unbiased rounding onto a grid, over all x of n coordinates, with L2 scale.

    n conc(h)(1/n), with h(t) the variance of a coordinate whose square is t and conc(h) its least concave majorant on
    [0, 1]. Found from the dual, min over u of u / n + max over t of h(t) - u t, whose inner maximum has a closed form
    on each interval of the grid. Holds for every grid: magnitudes from 0 to 1, or signed levels from -1 to 1, with or
    without a zero level. It is attained where whole numbers of coordinates can take the two squares at which the
    majorant touches h; otherwise it is above the maximum, never below it.

    Raises ``ValueError`` for levels that are no grid, or n below 1, ``TypeError`` for an n that is no integer.
    Ramezani-Kebrya et al., NUQSGD, 2021, arXiv:1908.06077, state it as a quadratic program and relax it.

    >>> from thriftgrad import theory
    >>> theory.worst_case_variance([0, 0.25, 0.5, 1], n=16384).__round__(3)  # NUQSGD's bound is 31.125
    31.0
    """
    grid = signed(check_levels(levels, "worst_case_variance"))
    return _majorant(tuple(grid.tolist()), _size(n, "worst_case_variance"))[0]


def worst_case_vector(levels: ArrayLike, n: int) -> Array:
    """A vector of n coordinates and norm 1 that comes close to :func:`worst_case_variance`; float64[n].

    Some coordinates have one square, all others a second one; how many, and which squares, is searched around the two
    at which the concave majorant touches the variance.

    Raises ``ValueError`` for levels that are no grid, or n below 1, ``TypeError`` for an n that is no integer.

    >>> from thriftgrad import theory
    >>> grid = [0, 0.5, 1]
    >>> x = theory.worst_case_vector(grid, n=100)
    >>> bool(theory.exact_variance(x, grid, scale=1) > 0.99 * theory.worst_case_variance(grid, n=100))
    True
    """
    grid = signed(check_levels(levels, "worst_case_vector"))
    n = _size(n, "worst_case_vector")
    if n == 1:
        return np.ones(1)
    _, few, many = _majorant(tuple(grid.tolist()), n)
    share = (1 / n - few) / (many - few) if many > few else 0.0
    best, value = np.full(n, 1 / n), n * float(_coordinate(grid, np.array([1 / n]))[0])
    counts = {max(1, min(n - 1, count)) for count in (math.floor(n * share), math.ceil(n * share), 1)}
    for count in sorted(counts):
        squares = np.linspace(0, min(1.0, 1 / count), 4097)[1:]
        squares = np.append(squares, np.clip(many, 0, 1 / count))
        rest = np.maximum(1 - count * squares, 0.0) / (n - count)
        total = count * _coordinate(grid, squares) + (n - count) * _coordinate(grid, rest)
        i = int(np.argmax(total))
        if total[i] > value:
            value = float(total[i])
            best = np.concatenate([np.full(count, squares[i]), np.full(n - count, rest[i])])
    r = np.sqrt(best)
    return np.asarray(np.where(_rounding(grid, r) >= _rounding(grid, -r), r, -r))


def _size(n: int, name: str) -> int:
    n = integer(n, "n", name)
    if n < 1:
        raise ValueError(f"{name}: n must be at least 1, got {n}.")
    return n


def _rounding(grid: Array, r: Array) -> Array:
    i = np.clip(np.searchsorted(grid, r, side="right") - 1, 0, grid.size - 2)
    return np.asarray((grid[i + 1] - r) * (r - grid[i]))


def _coordinate(grid: Array, t: Array) -> Array:
    """h(t): the larger variance of the two coordinates whose square is t."""
    r = np.sqrt(t)
    h: Array = np.maximum(_rounding(grid, r), _rounding(grid, -r))
    return h


@lru_cache(maxsize=256)
def _majorant(levels: tuple[float, ...], n: int) -> tuple[float, float, float]:
    """n conc(h)(1/n), and the two squares around 1/n at which conc(h) and h are equal."""
    grid = np.array(levels)
    if n == 1:
        return 0.0, 1.0, 1.0  # the coordinate is its own norm, and 1 is a level
    a, b = grid[:-1], grid[1:]
    # A piece is (b - r)(r - a) for r in [low, high] >= 0; an interval below zero is mirrored, one around it both.
    right, left = b > 0, a < 0
    a, b = np.concatenate([a[right], -b[left]]), np.concatenate([b[right], -a[left]])
    low, high = np.maximum(a, 0.0), b

    def dual(u: float) -> tuple[float, float]:
        """max over t of h(t) - (u - 1) t, and where it is."""
        r = np.clip((a + b) / (2 * u), low, high)
        value = (a + b) * r - a * b - u * r * r
        i = int(np.argmax(value))
        return float(value[i]), float(r[i] ** 2)

    # The maximum moves from 1 to 0 as u grows from 0; the dual is least where it passes 1/n.
    below, above = 0.0, 1.0
    many = 1.0
    few = dual(above)[1]
    while few > 1 / n:
        below, many, above = above, few, 2 * above
        few = dual(above)[1]
    for _ in range(200):
        middle = (below + above) / 2
        if middle in (below, above):
            break
        square = dual(middle)[1]
        if square > 1 / n:
            below, many = middle, square
        else:
            above, few = middle, square
    value = min(dual(u)[0] + (u - 1) / n for u in (below, above) if u > 0)
    return n * max(value, 0.0), few, many
