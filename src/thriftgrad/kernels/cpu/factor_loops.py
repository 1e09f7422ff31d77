"""Factors as columns: orthonormalised in float64, with the same bits on all processors; and how large they are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from thriftgrad.kernels.cpu.low_rank_table import LEFT, RIGHT, M, N, R
from thriftgrad.kernels.cpu.settings import CACHED, COMPILED, U
from thriftgrad.kernels.orthonormal import LOST

MAGNITUDE = 0x7FFFFFFF
"""The bits of a float32 but for its sign."""


@njit(**CACHED)
def extremes(bits: Any) -> Any:
    """The least and the greatest magnitude, as bits, whose order is that of the numbers; NaN is above infinity."""
    least, greatest = np.int32(MAGNITUDE), np.int32(0)
    for i in range(U(bits.shape[0])):
        size = np.int32(bits[i] & np.int32(MAGNITUDE))
        least, greatest = min(least, size), max(greatest, size)
    return least, greatest


@njit(**CACHED)
def gram_schmidt(table: Any, left: Any, factor: Any, out: Any) -> Any:
    """Modified Gram-Schmidt; a column that keeps next to nothing of its length becomes zero."""
    for k in range(table.shape[0]):
        columns = _columns(table[k], left, factor)
        for c in range(columns.shape[0]):
            length = np.sqrt(_dot(columns, c, c))
            for other in range(c):
                _subtract(columns, c, other, _dot(columns, other, c))
            rest = np.sqrt(_dot(columns, c, c))
            if rest <= LOST * length and np.isfinite(rest):  # NaN and infinities come through
                _divide(columns, c, np.inf)
            else:
                _divide(columns, c, rest)
        _put(table[k], left, columns, out)


@njit(**COMPILED)
def _columns(row: Any, left: Any, factor: Any) -> Any:
    """A factor's columns as rows, float64[r, length]."""
    length, start = (row[N], row[LEFT]) if left else (row[M], row[RIGHT])
    columns = np.empty((row[R], length))
    for c in range(row[R]):
        for i in range(length):
            columns[c, i] = factor[start + i * row[R] + c]
    return columns


@njit(**COMPILED)
def _put(row: Any, left: Any, columns: Any, out: Any) -> Any:
    start = row[LEFT] if left else row[RIGHT]
    for c in range(row[R]):
        for i in range(columns.shape[1]):
            out[start + i * row[R] + c] = columns[c, i]


@njit(**COMPILED)
def _dot(columns: Any, a: Any, b: Any) -> Any:
    """In four sums, for the processor's sake."""
    s0 = s1 = s2 = s3 = 0.0
    n = columns.shape[1]
    fours = n // 4 * 4
    for i in range(0, fours, 4):
        s0 += columns[a, i] * columns[b, i]
        s1 += columns[a, i + 1] * columns[b, i + 1]
        s2 += columns[a, i + 2] * columns[b, i + 2]
        s3 += columns[a, i + 3] * columns[b, i + 3]
    for i in range(fours, n):
        s0 += columns[a, i] * columns[b, i]
    return (s0 + s1) + (s2 + s3)


@njit(**COMPILED)
def _subtract(columns: Any, c: Any, other: Any, weight: Any) -> Any:
    for i in range(columns.shape[1]):
        columns[c, i] -= weight * columns[other, i]


@njit(**COMPILED)
def _divide(columns: Any, c: Any, length: Any) -> Any:
    for i in range(columns.shape[1]):
        columns[c, i] /= length
