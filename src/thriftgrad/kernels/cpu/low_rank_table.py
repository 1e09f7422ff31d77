"""What the loops of low-rank products have in common: the table, shares and blocks, factors, and the ends of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from thriftgrad.kernels.cpu.lanes import LANES, NBYTES, ROWS, number, put
from thriftgrad.kernels.cpu.settings import COMPILED, INLINED, F, U

N, M, R, START, LEFT, RIGHT, BLOCK, X, MEMORY, TO, FACTOR = range(11)
"""Columns of the table: sizes n, m, r; where the matrix begins among all elements, and its factors in theirs; columns
in a block of ``from_left``; addresses of the matrix or gradient, of the memory, of what is stored, and of the factor
that it is multiplied by."""

COLUMNS = 11


# The last elements of rows, which do not fill a vector, one by one.


@njit(**COMPILED)
def add_tail(x: Any, e: Any, to: Any, rows: Any, m: Any, start: Any, end: Any) -> Any:
    """to = x + e, from one byte of each row to another."""
    for k in range(rows):
        for at in range(4 * m * k + start, 4 * m * k + end, 4):
            put(to + at, number(x + at) + number(e + at))


@njit(**COMPILED)
def dots_of_tail(x: Any, rows: Any, m: Any, q: Any, width: Any, p: Any, columns: Any) -> Any:
    """p[k, c] += x[k] q[c]."""
    for k in range(rows):
        for c in range(columns):
            for at in range(filled(m), 4 * m, 4):
                p[k * columns + c] += number(x + 4 * m * k + at) * number(q + width * c + at)


@njit(**COMPILED)
def accumulate_tail(x: Any, rows: Any, m: Any, length: Any, p: Any, columns: Any, q: Any, width: Any) -> Any:
    """q[c] += sum over k of p[k, c] x[k]."""
    for k in range(rows):
        for j in range(filled(length) // 4, length):
            for c in range(columns):
                q[width * c + j] += p[columns * k + c] * number(x + 4 * (m * k + j))


@njit(**COMPILED)
def less_of_tail(x: Any, rows: Any, m: Any, length: Any, p: Any, columns: Any, q: Any, width: Any) -> Any:
    """x[k] -= sum over c of p[k, c] q[c]."""
    for k in range(rows):
        for at in range(filled(length), 4 * length, 4):
            rest = number(x + 4 * m * k + at)
            for c in range(columns):
                rest -= number(p + 4 * (columns * k + c)) * number(q + width * c + at)
            put(x + 4 * m * k + at, rest)


@njit(**COMPILED)
def product_tail(p: Any, columns: Any, together: Any, q: Any, width: Any, out: Any, rows: Any, m: Any) -> Any:
    """out[k] = sum over c of p[k, c] q[c], as many columns at a time as the vectors take."""
    for k in range(rows):
        for at in range(filled(m), 4 * m, 4):
            total = F(0)
            for first in range(0, columns, together):
                part = F(0)
                for c in range(first, first + together):
                    part += number(p + 4 * (columns * k + c)) * number(q + width * c + at)
                total += part
            put(out + 4 * m * k + at, total)


@njit(**INLINED)
def aligned(row: Any) -> Any:
    """Whether every row of what is stored begins with a cache line."""
    return row[M] % LANES == 0 and row[TO] % NBYTES == 0


@njit(**INLINED)
def filled(length: Any) -> Any:
    """Bytes of so many elements that fill vectors."""
    return 4 * (length // LANES * LANES)


@njit(**INLINED)
def place(row: Any, i: Any, count: Any) -> Any:
    """Where rows from the i-th on begin, in gradient, memory and sum; bytes from one to the next, 0 for one."""
    begin = 4 * row[M] * i
    return row[X] + begin, row[MEMORY] + begin, row[TO] + begin, 4 * row[M] * (count // ROWS)


@njit(**INLINED)
def address(array: Any) -> Any:
    """The address of an array, signed, as sums with a signed and an unsigned term would be floating-point."""
    return np.int64(array.ctypes.data)


@njit(**COMPILED)
def divide(array: Any, count: Any, by: Any) -> Any:
    """The first elements of an array, in place."""
    for j in range(U(count)):
        array[j] = array[j] / by


@njit(**COMPILED)
def multiply(array: Any, count: Any, by: Any) -> Any:
    """Undoes ``divide`` but for its rounding, which a memory makes up for."""
    for j in range(U(count)):
        array[j] = array[j] * by


@njit(**INLINED)
def row_count(n: Any) -> Any:
    """How many blocks the rows are done in: of four, and what is left over one by one."""
    return n // ROWS + n % ROWS


@njit(**INLINED)
def rows_of(n: Any, b: Any) -> Any:
    """The first row of such a block, and how many there are; one row stands for all four."""
    fours = n // ROWS
    return (ROWS * b, ROWS) if b < fours else (ROWS * fours + b - fours, 1)


@njit(**INLINED)
def share(row: Any, unit: Any, low: Any, high: Any) -> Any:
    """Which blocks of so many elements begin within the share."""
    start, count = row[START], -(-row[N] * row[M] // unit)
    return min(max(0, -((start - low) // unit)), count), min(max(0, -((start - high) // unit)), count)


@njit(**INLINED)
def shared_rows(row: Any, low: Any, high: Any) -> Any:
    """Which blocks of rows begin within the share; those of one row go with the first of them."""
    fours = row[N] // ROWS
    first, last = share(row, ROWS * row[M], low, high)
    return first, last if last <= fours else row_count(row[N])


@njit(**INLINED)
def padded(r: Any, together: Any) -> Any:
    """Columns that are computed for r: a multiple of those that are taken at a time."""
    return -(-r // together) * together


@njit(**COMPILED)
def longest(table: Any, side: Any, together: Any) -> Any:
    """Room for the factor of any matrix on one side, N or M, with what ``transposed`` and ``copied`` add to it."""
    most = 0
    for k in range(table.shape[0]):
        most = max(most, (table[k, side] + LANES) * padded(table[k, R], together))
    return most


@njit(**COMPILED)
def transposed(row: Any, side: Any, unit: Any, out: Any, together: Any) -> Any:
    """The factor [length, r] as rows, with zeros at their ends and in rows beyond r; returns the bytes of a row."""
    length, r, factor = row[side], row[R], row[FACTOR]
    width = -(-length // LANES) * LANES
    for i in range(U(padded(r, together) * width)):
        out[i] = F(0)
    if unit:
        scales = np.zeros(r)
        for i in range(length):
            for c in range(r):
                scales[c] += np.float64(number(factor + 4 * (i * r + c))) ** 2
        for c in range(r):
            scales[c] = 1.0 if scales[c] == 0 else 1.0 / np.sqrt(scales[c])
        for i in range(length):
            for c in range(r):
                out[c * width + i] = F(np.float64(number(factor + 4 * (i * r + c))) * scales[c])
    else:
        for i in range(length):
            for c in range(r):
                out[c * width + i] = number(factor + 4 * (i * r + c))
    return 4 * width


@njit(**COMPILED)
def copied(factor: Any, length: Any, r: Any, out: Any, together: Any) -> Any:
    """A factor [length, r], with zeros in columns beyond r."""
    columns = padded(r, together)
    for i in range(length):
        for c in range(columns):
            out[i * columns + c] = number(factor + 4 * (i * r + c)) if c < r else F(0)
