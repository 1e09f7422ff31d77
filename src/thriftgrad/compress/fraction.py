"""How many coordinates a sparsifier keeps: a fraction of the tensor, a number, or as many as low rank takes."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from math import ceil, sqrt

from thriftgrad.compress.buckets import check_integer
from thriftgrad.core import TensorSpec
from thriftgrad.core.matrices import matrix_shape


def check(name: str, fraction: float | None, k: int | None) -> None:
    """``ValueError`` unless exactly one is given and it makes sense, ``TypeError`` for a k that is no integer."""
    if (fraction is None) == (k is None):
        raise ValueError(f"{name}: give either fraction or k, got fraction={fraction} and k={k}.")
    if fraction is not None and not 0 < fraction <= 1:
        raise ValueError(f"{name}: fraction must lie in (0, 1], got {fraction}.")
    if k is not None:
        check_integer(name, "k", k)
        if k < 1:
            raise ValueError(f"{name}: k must be at least 1, got {k}.")


@lru_cache(maxsize=1 << 14)
def kept(n: int, fraction: float | None, k: int | None) -> int:
    """ceil(fraction n), or min(k, n).

    >>> kept(1000, 0.001, None), kept(5, None, 10), kept(0, 0.5, None)
    (1, 5, 0)
    """
    if k is not None:
        return min(k, n)
    # The fraction as it is written: 0.07 * 100 in binary is a little above 7.
    return ceil(Fraction(str(float(fraction or 0.0))) * n)


def check_with_rank(name: str, fraction: float | None, k: int | None, rank: int | None) -> None:
    """``check``, where a rank is a third way to say it."""
    if (fraction is not None) + (k is not None) + (rank is not None) != 1:
        raise ValueError(f"{name}: give one of fraction, k and rank, got fraction={fraction}, k={k} and rank={rank}.")
    if rank is None:
        check(name, fraction, k)
    else:
        check_rank(name, rank)


def check_rank(name: str, rank: int) -> None:
    """``TypeError`` unless it is an integer, ``ValueError`` unless it is at least 1."""
    check_integer(name, "rank", rank)
    if rank < 1:
        raise ValueError(f"{name}: rank must be at least 1, got {rank}.")


def kept_of(spec: TensorSpec, fraction: float | None, k: int | None, rank: int | None) -> int:
    """``kept``, or as many as the factors of rank r of a matrix [n, m] have numbers: min(r (n + m), n m).

    >>> kept_of(TensorSpec((64, 3, 3, 3)), None, None, 2), kept_of(TensorSpec((10,)), None, None, 2)
    (182, 10)
    """
    return kept(spec.numel, fraction, k) if rank is None else min(rank * sum(matrix_shape(spec)), spec.numel)


def least_kept(n: int, fraction: float | None, k: int | None, rank: int | None) -> float:
    """The least of ``kept_of`` for tensors of n elements: n1 + n2 >= 2 sqrt(n1 n2) for every matrix [n1, n2]."""
    return kept(n, fraction, k) if rank is None else min(2 * rank * sqrt(n), float(n))
