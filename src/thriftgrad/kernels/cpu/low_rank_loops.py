"""Products of matrices n x m with factors of r columns: one call for all matrices of a pass, on a share of them.

A matrix is one row of a table of sizes and addresses, so that a call costs the same for one tensor as for a hundred. A
share is a range of elements, all matrices laid end to end; it is cut where a block begins, and no block's result
depends on the cut. The first pass over a gradient and its memory adds them up and stores the sum, which is M; what the
factors of a later pass account for is taken out of it while it is in a cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from thriftgrad.kernels.cpu.lanes import NBYTES, ROWS, accumulate, dots, less, product, splats, totals, zeros
from thriftgrad.kernels.cpu.low_rank_table import (
    BLOCK,
    FACTOR,
    LEFT,
    RIGHT,
    TO,
    M,
    N,
    R,
    accumulate_tail,
    add_tail,
    address,
    aligned,
    copied,
    divide,
    dots_of_tail,
    filled,
    less_of_tail,
    longest,
    multiply,
    padded,
    place,
    product_tail,
    row_count,
    rows_of,
    share,
    shared_rows,
    transposed,
)
from thriftgrad.kernels.cpu.memory import settle
from thriftgrad.kernels.cpu.settings import CACHED, INLINED, F, U


@njit(**CACHED)
def from_right(
    like: Any, fresh: Any, table: Any, unit: Any, left: Any, world: Any, subtract: Any, stream: Any, low: Any, high: Any
) -> Any:
    """P = M Q / world of each matrix, and M -= (world P) Q^T if so asked; ``unit``: Q with columns of length one.

    ``like``: a tuple of as many numbers as columns are taken at a time. ``fresh``: one of a number where the sum of
    gradient and memory is to be made and stored, past the cache with ``stream``; else an empty one.
    """
    q = np.empty(longest(table, M, len(like)), F)
    for k in range(table.shape[0]):
        row = table[k]
        first, last = shared_rows(row, low, high)
        if first < last:
            width = transposed(row, M, unit, q, len(like))
            past = stream and not subtract and aligned(row)
            _rows_from_right(zeros(like), fresh, row, first, last, address(q), width, left, world, subtract, past)
    settle()


@njit(**CACHED)
def from_left(like: Any, fresh: Any, table: Any, right: Any, world: Any, subtract: Any, low: Any, high: Any) -> Any:
    """Q = M^T P / world of each matrix, and M -= P (world Q)^T if so asked.

    By blocks of columns, few enough that the second reading of a block is from a cache.
    """
    p = np.empty(longest(table, N, len(like)), F)
    for k in range(table.shape[0]):
        row = table[k]
        first, last = share(row, row[N] * row[BLOCK], low, high)
        if first < last:
            copied(row[FACTOR], row[N], row[R], p, len(like))
            _columns_from_left(zeros(like), fresh, row, first, last, p, right, world, subtract)


@njit(**CACHED)
def outer(like: Any, table: Any, left: Any, stream: Any, low: Any, high: Any) -> Any:
    """P Q^T of each matrix, past the cache with ``stream``.

    Every operation is rounded, and products are added up as many columns at a time as ``like`` says, then the sums.
    """
    q, p = np.empty(longest(table, M, len(like)), F), np.empty(longest(table, N, len(like)), F)
    for k in range(table.shape[0]):
        row = table[k]
        first, last = shared_rows(row, low, high)
        if first < last:
            width = transposed(row, M, False, q, len(like))
            copied(address(left) + 4 * row[LEFT], row[N], row[R], p, len(like))
            past = stream and row[R] <= len(like) and aligned(row)
            _rows_of_product(zeros(like), row, first, last, address(p), address(q), width, past)
    settle()


@njit(**INLINED)
def _rows_from_right(
    none: Any,
    fresh: Any,
    row: Any,
    first: Any,
    last: Any,
    q: Any,
    width: Any,
    left: Any,
    world: Any,
    subtract: Any,
    stream: Any,
) -> Any:
    m, r, columns = row[M], row[R], padded(row[R], len(none) // ROWS)
    p = np.empty(ROWS * columns, F)
    for b in range(first, last):
        i, count = rows_of(row[N], b)
        x, e, to, stride = place(row, i, count)
        whole = to if len(fresh) > 0 else x
        for c in range(0, columns, len(none) // ROWS):
            sums = none
            if c > 0:
                for at in range(0, filled(m), NBYTES):
                    sums = dots(sums, (), whole, 0, 0, stride, q + c * width, width, at, False)
            elif stream:
                for at in range(0, filled(m), NBYTES):
                    sums = dots(sums, fresh, x, e, to, stride, q, width, at, True)
            else:
                for at in range(0, filled(m), NBYTES):
                    sums = dots(sums, fresh, x, e, to, stride, q, width, at, False)
            totals(sums, address(p) + 4 * c, 4 * columns)
        if filled(m) < 4 * m:
            if len(fresh) > 0:
                add_tail(x, e, to, count, m, filled(m), 4 * m)
            dots_of_tail(whole, count, m, q, width, p, columns)
        if world != F(1):
            divide(p, ROWS * columns, world)
        for k in range(count):
            for c in range(r):
                left[row[LEFT] + (i + k) * r + c] = p[k * columns + c]
        if subtract:
            if world != F(1):
                multiply(p, ROWS * columns, world)
            _less(none, whole, stride, count, m, m, address(p), columns, q, width)


@njit(**INLINED)
def _columns_from_left(
    none: Any, fresh: Any, row: Any, first: Any, last: Any, p: Any, right: Any, world: Any, subtract: Any
) -> Any:
    n, m, r, most, columns = row[N], row[M], row[R], row[BLOCK], padded(row[R], len(none) // ROWS)
    q, alone = np.empty(columns * most, F), np.zeros(ROWS * columns, F)
    width = 4 * most
    for block in range(first, last):
        low, length = block * most, min(most, m - block * most)
        for j in range(U(columns * most)):
            q[j] = F(0)
        for b in range(row_count(n)):
            i, count = rows_of(n, b)
            x, e, to, stride = place(row, i, count)
            x, e, to = x + 4 * low, e + 4 * low, to + 4 * low
            factor = address(p) + 4 * columns * i
            if count == 1:  # the other three rows of the block are the same one, and must not count
                for c in range(columns):
                    alone[c] = p[i * columns + c]
                factor = address(alone)
            for c in range(0, columns, len(none) // ROWS):
                vectors = splats(none, factor + 4 * c, 4 * columns)
                if c > 0:
                    for at in range(0, filled(length), NBYTES):
                        accumulate(
                            vectors, (), to if len(fresh) > 0 else x, 0, 0, stride, address(q) + c * width, width, at
                        )
                else:
                    for at in range(0, filled(length), NBYTES):
                        accumulate(vectors, fresh, x, e, to, stride, address(q), width, at)
        x, e, to, _ = place(row, 0, ROWS)
        whole = to if len(fresh) > 0 else x
        if filled(length) < 4 * length:
            if len(fresh) > 0:
                add_tail(x, e, to, n, m, 4 * low + filled(length), 4 * m)
            accumulate_tail(whole + 4 * low, n, m, length, p, columns, q, most)
        if world != F(1):
            divide(q, columns * most, world)
        for c in range(U(r)):
            for j in range(U(length)):
                right[U(row[RIGHT] + low * r) + j * U(r) + c] = q[c * U(most) + j]
        if subtract:
            if world != F(1):
                multiply(q, columns * most, world)
            for b in range(row_count(n)):
                i, count = rows_of(n, b)
                begin, stride = 4 * (m * i + low), 4 * m * (count // ROWS)
                factor = address(p) + 4 * columns * i
                _less(none, whole + begin, stride, count, m, length, factor, columns, address(q), width)


@njit(**INLINED)
def _rows_of_product(none: Any, row: Any, first: Any, last: Any, p: Any, q: Any, width: Any, stream: Any) -> Any:
    m, columns = row[M], padded(row[R], len(none) // ROWS)
    for b in range(first, last):
        i, count = rows_of(row[N], b)
        to, stride = row[TO] + 4 * m * i, 4 * m * (count // ROWS)
        for c in range(0, columns, len(none) // ROWS):
            vectors = splats(none, p + 4 * (columns * i + c), 4 * columns * (count // ROWS))
            if c > 0:
                for at in range(0, filled(m), NBYTES):
                    product(vectors, to, stride, q + c * width, width, at, True, False)
            elif stream:
                for at in range(0, filled(m), NBYTES):
                    product(vectors, to, stride, q, width, at, False, True)
            else:
                for at in range(0, filled(m), NBYTES):
                    product(vectors, to, stride, q, width, at, False, False)
        if filled(m) < 4 * m:
            product_tail(p + 4 * columns * i, columns, len(none) // ROWS, q, width, to, count, m)


@njit(**INLINED)
def _less(
    none: Any, x: Any, stride: Any, count: Any, m: Any, length: Any, p: Any, columns: Any, q: Any, width: Any
) -> Any:
    """M -= P Q^T for so many elements of four rows, or of one; x, p and q are where these begin."""
    for c in range(0, columns, len(none) // ROWS):
        vectors = splats(none, p + 4 * c, 4 * columns * (count // ROWS))
        for at in range(0, filled(length), NBYTES):
            less(vectors, x, stride, q + c * width, width, at)
    if filled(length) < 4 * length:
        less_of_tail(x, count, m, length, p, columns, q, width)
