"""Norms of buckets: sums in the order that ``lane_sums`` defines."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from thriftgrad.kernels.cpu.instructions import folded_lanes
from thriftgrad.kernels.cpu.memory import keep, pointer
from thriftgrad.kernels.cpu.settings import CACHED, COMPILED, INLINED, F, I, U
from thriftgrad.kernels.quantised import BLOCK as _BLOCK
from thriftgrad.kernels.quantised import LANES as _LANES

L2, LINF, MEAN = 0, 1, 2

BLOCK = U(_BLOCK)
LANES = _LANES
BLOCKS = 16
"""The most blocks of a bucket whose norm is taken on the way to its rounding: the bucket fits a second-level cache."""

LARGEST = np.float64(np.finfo(np.float32).max)
INFINITY_BITS = I(0x7F800000)
UNSIGNED = I(0x7FFFFFFF)


@njit(**INLINED)
def owed_at(x: Any, memory: Any, decay: Any, i: Any) -> Any:
    """``memory`` is None at compile time where there is none."""
    if memory is None:
        return x[i]
    return x[i] + F(decay * memory[i])


@njit(**INLINED)
def magnitude(v: Any) -> Any:
    """A term of a mean magnitude."""
    return abs(v)


@njit(**INLINED)
def square(v: Any) -> Any:
    """A term of a squared L2 norm."""
    return v * v


@njit(**COMPILED)
def folded(sums: Any, at: Any, count: Any) -> Any:
    """The sum of ``count`` elements from ``at`` on, by halves, as if zeros made them a power of two; overwritten."""
    half = U(1)
    while half < count:
        half *= U(2)
    for i in range(count, half):
        sums[at + i] = 0.0
    while half > U(1):
        half //= U(2)
        for i in range(half):
            sums[at + i] += sums[at + i + half]
    return sums[at]


def _sums(term: Any) -> Any:
    """The sum of a block and of a row, compiled for a term."""

    @njit(**COMPILED)
    def block_sum(x: Any, memory: Any, decay: Any, low: Any, high: Any, lanes: Any) -> Any:
        """One block: 64 lanes, each in order, then folded by halves. ``lanes``: float64[64], to work in.

        Eight lines of lanes at a time, so that a lane is loaded and stored once for them.
        """
        lines = (high - low) // U(64)
        for j in range(U(64)):
            lanes[j] = 0.0
        for group in range(lines // U(8)):
            at = low + group * U(512)
            for j in range(U(64)):
                lane = lanes[j]
                for line in range(U(8)):
                    lane += term(np.float64(owed_at(x, memory, decay, at + line * U(64) + j)))
                lanes[j] = lane
        for line in range(lines // U(8) * U(8), lines):
            for j in range(U(64)):
                lanes[j] += term(np.float64(owed_at(x, memory, decay, low + line * U(64) + j)))
        at = low + lines * U(64)
        for j in range(high - at):
            lanes[j] += term(np.float64(owed_at(x, memory, decay, at + j)))
        return folded_lanes(lanes)

    @njit(**COMPILED)
    def row_sum(x: Any, memory: Any, decay: Any, low: Any, high: Any, work: Any) -> Any:
        """Up to ``BLOCKS`` blocks. ``work``: float64[LANES + BLOCKS]."""
        count = (high - low + BLOCK - U(1)) // BLOCK
        for i in range(count):
            at = low + i * BLOCK
            work[U(LANES) + i] = block_sum(x, memory, decay, at, min(at + BLOCK, high), work)
        return folded(work, U(LANES), count)

    return block_sum, row_sum


block_magnitude, row_magnitude = _sums(magnitude)
block_square, row_square = _sums(square)


@njit(**COMPILED)
def largest_bits(x: Any, memory: Any, decay: Any, low: Any, high: Any) -> Any:
    """The bits of the largest magnitude; integers, since the maximum of floats does not vectorise."""
    largest = I(0)
    for i in range(low, high):
        largest = max(largest, I(F(owed_at(x, memory, decay, i)).view(np.int32) & UNSIGNED))
    return largest


@njit(**INLINED)
def scale_of_peak(bits: Any) -> Any:
    """The largest magnitude by its bits; NaN if that is not finite."""
    return F(np.nan) if bits >= INFINITY_BITS else I(bits).view(np.float32)


@njit(**INLINED)
def scale_of_sum(total: Any, size: Any, norm: Any) -> Any:
    """The root, or the mean; NaN if the sum is not finite, which in float64 it is if all terms are."""
    if not np.isfinite(total):
        return F(np.nan)
    return F(total / np.float64(size)) if norm == MEAN else F(min(np.sqrt(total), LARGEST))


@njit(**COMPILED)
def bucket_scale(x: Any, memory: Any, decay: Any, low: Any, high: Any, norm: Any, work: Any) -> Any:
    """The norm, or the mean magnitude, of owed[low:high]; NaN where it is not finite."""
    if norm == LINF:
        return scale_of_peak(largest_bits(x, memory, decay, low, high))
    if norm == MEAN:
        return scale_of_sum(row_magnitude(x, memory, decay, low, high, work), high - low, norm)
    return scale_of_sum(row_square(x, memory, decay, low, high, work), high - low, norm)


@njit(**CACHED)
def bucket_scales(
    x_array: Any, memory_array: Any, decay: Any, bucket: Any, norm: Any, scale: Any, low: Any, high: Any
) -> None:
    """Of the buckets that make up elements low ... high, none of more than ``BLOCKS`` blocks."""
    x, memory = pointer(x_array), pointer(memory_array)
    work = np.empty(LANES + BLOCKS, np.float64)
    for b in range(low // bucket, (high + bucket - U(1)) // bucket):
        end = min((b + U(1)) * bucket, high)
        scale[b] = bucket_scale(x, memory, decay, b * bucket, end, norm, pointer(work))
    keep(work)


@njit(**CACHED)
def block_parts(
    x_array: Any, memory_array: Any, decay: Any, start: Any, size: Any, norm: Any, parts: Any, low: Any, high: Any
) -> None:
    """Of the bucket at ``start``: what each block in low ... high adds to its norm, or the bits of its peak."""
    x, memory = pointer(x_array), pointer(memory_array)
    lanes = np.empty(LANES, np.float64)
    for block in range(low // BLOCK, (high + BLOCK - U(1)) // BLOCK):
        at = start + block * BLOCK
        end = start + min((block + U(1)) * BLOCK, size)
        if norm == LINF:
            parts[block] = np.float64(largest_bits(x, memory, decay, at, end))
        elif norm == MEAN:
            parts[block] = block_magnitude(x, memory, decay, at, end, pointer(lanes))
        else:
            parts[block] = block_square(x, memory, decay, at, end, pointer(lanes))
    keep(lanes)


@njit(**CACHED)
def scale_of_parts(parts: Any, count: Any, size: Any, norm: Any) -> Any:
    """The scale of a bucket of so many blocks; the parts are used up."""
    if norm == LINF:
        return scale_of_peak(I(parts[:count].max()))
    return scale_of_sum(folded(pointer(parts), U(0), count), size, norm)
