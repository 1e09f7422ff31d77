"""Closed-form variance bounds of the papers, for the L2 scale unless they say otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from numpy.typing import ArrayLike

from thriftgrad.theory.checks import integer, number, row, shown
from thriftgrad.theory.grid import magnitudes


def qsgd_variance_bound(n: int, s: int) -> float:
    """QSGD's omega = min(n / s^2, sqrt(n) / s), for n coordinates and s uniform levels above the zero level.

    Assumes the levels 0, 1/s ... 1 and the L2 norm. A grid without the zero level exceeds it; for such a grid use
    :func:`variance_bound` or :func:`worst_case_variance`.

    Raises ``ValueError`` for n or s below 1, ``TypeError`` for what is no integer.
    Alistarh et al., QSGD, 2017, arXiv:1610.02132, Lemma 3.1.

    >>> from thriftgrad import theory
    >>> theory.qsgd_variance_bound(n=16384, s=3).__round__(2)
    42.67
    """
    n, s = check_sizes(n, s, 1, "qsgd_variance_bound")
    return min(n / s**2, math.sqrt(n) / s)


def nuqsgd_variance_bound(n: int, s: int) -> float:
    """NUQSGD's omega, for n coordinates and the levels 0, 2^-s, 2^-(s-1) ... 1/2, 1.

    1/8 + 2^(-2s-2) n where n < 2^(2s+2), and 2^-s sqrt(n) - 7/8 from there on. Assumes the zero level and the L2 norm:
    a grid of +-2^-j alone has no such bound; for it use :func:`variance_bound`.

    Raises ``ValueError`` for n below 1 or s below 0, ``TypeError`` for what is no integer.
    Ramezani-Kebrya et al., NUQSGD, 2021, arXiv:1908.06077; derived here from first principles.

    >>> from thriftgrad import theory
    >>> theory.nuqsgd_variance_bound(n=16384, s=2)
    31.125
    """
    n, s = check_sizes(n, s, 0, "nuqsgd_variance_bound")
    edge = 4.0 ** (s + 1)
    return 1 / 8 + n / edge if n < edge else math.sqrt(n) / 2.0**s - 7 / 8


def variance_bound(levels: ArrayLike, n: int, q: float = 2) -> float:
    """The general omega of a symmetric grid, for n coordinates divided by their L^q norm.

    (m - 1)^2 / (4 m), with m the largest ratio of neighbouring levels above zero, and for what lies below the least
    positive level l_1, with x = l_1 n^(1 / min(q, 2)): x^2 / 4 where x <= 2 and x - 1 beyond. That second term needs a
    zero level; a grid without one, which rounds between -l_1 and l_1, gets x^2 in its place, one with a zero level
    never does. ``levels`` are magnitudes from 0, or signed and symmetric.

    Raises ``ValueError`` for levels that are no grid or not symmetric, n below 1, or q below 1, ``TypeError`` for an n
    that is no integer or a q that is no number.
    Faghri et al., 2020, arXiv:2010.12460; derived here from first principles, the term without zero level is ours.

    >>> from thriftgrad import theory
    >>> theory.variance_bound([0, 0.25, 0.5, 1], n=16384)
    31.125
    """
    positive = magnitudes(levels, "variance_bound")
    n, q = check_norm(n, q, "variance_bound")
    zero = positive[0] == 0
    positive = positive[positive > 0]
    ratio = max((float(up / down) for down, up in pairwise(positive)), default=1.0)
    x = float(positive[0]) * math.pow(n, 1 / min(q, 2))
    inner = (x * x / 4 if x <= 2 else x - 1) if zero else x * x
    return (ratio - 1) ** 2 / (4 * ratio) + inner


def two_stage_variance(
    epsilon_up: float, epsilon_down: float, worker_norms_squared: Sequence[float], mean_norm_squared: float
) -> float:
    """A bound on E|error|^2 of a mean that is quantised on the way up and once more on the way down, both unbiased.

    (1 + epsilon_down) epsilon_up / M^2 sum_m |g_m|^2 + epsilon_down |mean g|^2, for M workers with gradients g_m.
    The second term does not shrink with M. epsilon_down = 0 is an all-gather, whose workers decode for themselves.

    Raises ``ValueError`` for no workers, or anything negative or NaN, ``TypeError`` for what is no number.
    Derived here; scatter-reduce and parameter servers are the algorithms that it describes.

    >>> from thriftgrad import theory
    >>> theory.two_stage_variance(1.0, 0.5, [4.0, 4.0], 4.0)
    5.0
    """
    name = "two_stage_variance"
    norms = row(worker_norms_squared, "the workers' squared norms", name).tolist()
    up, down = number(epsilon_up, "epsilon_up", name), number(epsilon_down, "epsilon_down", name)
    mean = number(mean_norm_squared, "the mean's squared norm", name)
    if not norms or not all(each >= 0 for each in (up, down, mean, *norms)):
        raise ValueError(
            f"{name}: there must be a worker and nothing may be negative or NaN, got epsilons {epsilon_up} and "
            f"{epsilon_down}, squared norms {shown(worker_norms_squared)} and {mean_norm_squared}."
        )
    first = up / len(norms) ** 2 * math.fsum(norms)
    return (1 + down) * first + down * mean


def check_norm(n: int, q: float, name: str) -> tuple[int, float]:
    """n and q of n coordinates and their L^q norm; ``ValueError`` for either below 1."""
    n, q = integer(n, "n", name), number(q, "q", name)
    if n < 1 or not q >= 1:
        raise ValueError(f"{name}: n and q must be at least 1, got n={n} and q={q}.")
    return n, q


def check_sizes(n: int, s: int, least: int, name: str) -> tuple[int, int]:
    """n and s as integers; ``ValueError`` for n below 1, or s below the least that a theorem speaks of."""
    n, s = integer(n, "n", name), integer(s, "s", name)
    if n < 1 or s < least:
        raise ValueError(f"{name}: n must be at least 1 and s at least {least}, got n={n} and s={s}.")
    return n, s
