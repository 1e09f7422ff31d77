"""Expected lengths of the papers' codes, in bits."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from thriftgrad.theory.bounds import check_norm, check_sizes
from thriftgrad.theory.checks import numbers
from thriftgrad.theory.distributions import Distribution
from thriftgrad.theory.grid import check_support, level_probabilities, magnitudes

NORM_BITS = 32


def entropy_bits(probabilities: ArrayLike) -> float:
    """The entropy -sum p log2 p of one symbol, in bits; no code that maps symbols one by one needs less on average.

    Raises ``ValueError`` for probabilities that are negative or do not sum to 1 within 1e-6, ``TypeError`` for what are
    no numbers.

    >>> from thriftgrad import theory
    >>> theory.entropy_bits([0.5, 0.25, 0.25, 0])
    1.5
    """
    p = numbers(probabilities, "probabilities", "entropy_bits").reshape(-1)
    if not ((p >= 0).all() and abs(p.sum() - 1) <= 1e-6):
        raise ValueError(
            f"entropy_bits: probabilities must be at least 0 and sum to 1, got a least of {p.min(initial=1)} "
            f"and a sum of {p.sum()}."
        )
    p = p[p > 0]
    return max(float(-(p * np.log2(p)).sum()), 0.0)


def qsgd_nonzeros_bound(n: int, s: int) -> float:
    """At most s (s + sqrt(n)) of n coordinates are expected to be nonzero after QSGD; never more than n.

    Assumes the levels 0, 1/s ... 1 and the L2 norm; without a zero level every coordinate is nonzero.

    Raises ``ValueError`` for n or s below 1, ``TypeError`` for what is no integer.
    Alistarh et al., QSGD, 2017, arXiv:1610.02132, Lemma 3.1.

    >>> from thriftgrad import theory
    >>> theory.qsgd_nonzeros_bound(n=10_000, s=1)
    101.0
    """
    n, s = check_sizes(n, s, 1, "qsgd_nonzeros_bound")
    return min(s * (s + math.sqrt(n)), float(n))


def qsgd_code_length_bits(n: int, s: int) -> float:
    """QSGD's bound on the expected bits of its sparse Elias code, the term o(1) left out.

    (3 + 3/2 log2(2 (s^2 + n) / (s (s + sqrt(n))))) s (s + sqrt(n)) + 32, the last for the norm. The o(1) is dropped,
    so this is the leading behaviour and no strict bound at small n. Assumes the levels 0, 1/s ... 1 and the L2 norm.

    Raises ``ValueError`` for n below 1 or s below 2, where the theorem does not apply, ``TypeError`` for what is no
    integer.
    Alistarh et al., QSGD, 2017, arXiv:1610.02132, Theorem 3.2.

    >>> from thriftgrad import theory
    >>> theory.qsgd_code_length_bits(n=1_000_000, s=7).__round__()
    107336
    """
    n, s = check_sizes(n, s, 2, "qsgd_code_length_bits")
    nonzeros = s * (s + math.sqrt(n))
    return (3 + 1.5 * math.log2(2 * (s * s + n) / nonzeros)) * nonzeros + NORM_BITS


def nuqsgd_nonzeros_bound(n: int, s: int) -> float:
    """At most 2^(2s) + 2^s sqrt(n) of n coordinates are expected to be nonzero after NUQSGD; never more than n.

    Assumes the levels 0, 2^-s ... 1/2, 1 and the L2 norm; without a zero level every coordinate is nonzero.

    Raises ``ValueError`` for n below 1 or s below 0, ``TypeError`` for what is no integer.
    Ramezani-Kebrya et al., NUQSGD, 2021, arXiv:1908.06077.

    >>> from thriftgrad import theory
    >>> theory.nuqsgd_nonzeros_bound(n=1_000_000, s=3)
    8064.0
    """
    n, s = check_sizes(n, s, 0, "nuqsgd_nonzeros_bound")
    return min(4.0**s + 2.0**s * math.sqrt(n), float(n))


def nuqsgd_code_length_bits(n: int, s: int) -> float:
    """NUQSGD's bound on the expected bits of its sparse Elias code, the terms o(1) left out.

    32 + 3 k + k log2(n / k) + k log2 log2(8 (2^(2s) + n) / k), with k = 2^(2s) + 2^s sqrt(n) expected nonzeros.
    Holds for k <= n / e. The o(1) are dropped; measured encodings stay below it. Assumes the levels
    0, 2^-s ... 1/2, 1 and the L2 norm.

    Raises ``ValueError`` for n below 1, s below 0, or k > n / e, where the theorem says nothing, ``TypeError`` for what
    is no integer.
    Ramezani-Kebrya et al., NUQSGD, 2021, arXiv:1908.06077.

    >>> from thriftgrad import theory
    >>> theory.nuqsgd_code_length_bits(n=1_000_000, s=3).__round__()
    107038
    """
    n, s = check_sizes(n, s, 0, "nuqsgd_code_length_bits")
    nonzeros = 4.0**s + 2.0**s * math.sqrt(n)
    if nonzeros > n / math.e:
        raise ValueError(
            f"nuqsgd_code_length_bits: the bound needs 2^(2s) + 2^s sqrt(n) <= n / e, got {nonzeros:.0f} > "
            f"{n / math.e:.0f} for n={n} and s={s}; use a longer vector or fewer levels."
        )
    gaps = nonzeros * math.log2(n / nonzeros)
    indices = nonzeros * math.log2(math.log2(8 * (4.0**s + n) / nonzeros))
    return NORM_BITS + 3 * nonzeros + gaps + indices


def alq_code_length_bits(levels: ArrayLike, distribution: Distribution, n: int, q: float = 2) -> float:
    """A bound on the expected bits of Huffman's code on the magnitudes of a symmetric grid, and a bit for each sign.

    32 + k + n (H + 1), with H the entropy of a magnitude under the distribution and
    k = min(l_1^-q + n^(1 - 1/q) / l_1, n) expected nonzeros for n coordinates divided by their L^q norm, l_1 the least
    positive level. That k assumes a zero level; without one, every coordinate carries its sign and k = n.

    Raises ``ValueError`` for levels that are no grid or not symmetric, a distribution that reaches beyond [-1, 1],
    n below 1, or q below 1; ``TypeError`` for an n that is no integer, a q that is no number, or what is no
    distribution.
    Faghri et al., 2020, arXiv:2010.12460; derived here.

    >>> from thriftgrad import theory
    >>> theory.alq_code_length_bits([0, 0.5, 1], theory.Histogram([-1, 1], [1]), n=1000).__round__(2)
    2599.25
    """
    grid = magnitudes(levels, "alq_code_length_bits")
    check_support(distribution, "alq_code_length_bits")
    n, q = check_norm(n, q, "alq_code_length_bits")
    if grid[0] == 0:
        least = float(grid[1])
        probabilities = level_probabilities(grid, distribution)
        nonzeros = min(math.pow(least, -q) + math.pow(n, 1 - 1 / q) / least, float(n))
    else:
        each = level_probabilities(np.concatenate([-grid[::-1], grid]), distribution)
        probabilities = each[grid.size :] + each[: grid.size][::-1]
        nonzeros = float(n)
    return NORM_BITS + nonzeros + n * (entropy_bits(probabilities) + 1)
