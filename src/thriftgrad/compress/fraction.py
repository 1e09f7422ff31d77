"""How many coordinates a sparsifier keeps: a fraction of the tensor, or a number."""

from __future__ import annotations

from fractions import Fraction
from math import ceil


def check(name: str, fraction: float | None, k: int | None) -> None:
    """``ValueError`` unless exactly one is given and it makes sense."""
    if (fraction is None) == (k is None):
        raise ValueError(f"{name}: give either fraction or k, got fraction={fraction} and k={k}.")
    if fraction is not None and not 0 < fraction <= 1:
        raise ValueError(f"{name}: fraction must lie in (0, 1], got {fraction}.")
    if k is not None and k < 1:
        raise ValueError(f"{name}: k must be at least 1, got {k}.")


def kept(n: int, fraction: float | None, k: int | None) -> int:
    """ceil(fraction n), or min(k, n).

    >>> kept(1000, 0.001, None), kept(5, None, 10), kept(0, 0.5, None)
    (1, 5, 0)
    """
    if k is not None:
        return min(k, n)
    # The fraction as it is written: 0.07 * 100 in binary is a little above 7.
    return ceil(Fraction(str(float(fraction or 0.0))) * n)
