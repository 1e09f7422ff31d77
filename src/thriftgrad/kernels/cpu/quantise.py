"""Quantisation in one trip over memory: norm, rounding, packing and what is left over, a tile at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from thriftgrad.kernels.cpu.memory import copy_past_cache, pointer, prefetch, settle
from thriftgrad.kernels.cpu.packing import nbytes, pack_symbols, unpack_symbols, width_bits
from thriftgrad.kernels.cpu.philox import fill_words
from thriftgrad.kernels.cpu.rounding import (
    COUNTING,
    POWERS,
    SIGNS,
    UNIFORM,
    round_counting,
    round_powers,
    round_searching,
    round_signs,
    round_uniform,
)
from thriftgrad.kernels.cpu.scales import BLOCKS, LANES, bucket_scale, owed_at
from thriftgrad.kernels.cpu.settings import CACHED, CHUNK, COMPILED, LINE, TILE, F, U
from thriftgrad.kernels.cpu.values import levels_of

C, L = U(CHUNK), U(LINE)


@njit(**COMPILED)
def normalised(source: Any, at: Any, first: Any, last: Any, scale: Any, bucket: Any, u: Any) -> None:
    """Elements ``first`` to ``last`` of the vector, which begin at source[at], over the scales of their buckets."""
    i = first
    b = first // bucket
    while i < last:
        end = min((b + U(1)) * bucket, last)
        divisor = scale[b] if scale[b] > F(0) else F(1)  # NaN is not
        for k in range(i - first, end - first):
            v = F(max(min(source[at + k] / divisor, F(1)), F(-1)))
            u[k] = v if v == v else F(0)
        i = end
        b += U(1)


@njit(**COMPILED)
def plain(first: Any, last: Any, scale: Any, bucket: Any) -> Any:
    """Whether these are whole chunks, each within one bucket whose scale one can divide by."""
    if (last - first) % C != 0 or bucket % C != 0:
        return False
    divisible = True
    for b in range(first // bucket, (last - U(1)) // bucket + U(1)):
        divisible &= scale[b] > F(0)
    return divisible


@njit(**COMPILED)
def round_tile(
    kind: Any,
    x: Any,
    at: Any,
    low: Any,
    high: Any,
    scale: Any,
    bucket: Any,
    words: Any,
    levels: Any,
    alphabet: Any,
    u: Any,
    symbols: Any,
) -> None:
    """Symbols of elements low ... high, which begin at x[at]."""
    whole = plain(low, high, scale, bucket)
    if not whole:  # as one bucket of scale 1, filled up
        normalised(x, at, low, high, scale, bucket, u)
        x, at = u, U(0)
    first = low
    b = low // bucket
    while first < high:
        end, c = (min((b + U(1)) * bucket, high), scale[b]) if whole else (high, F(1))
        k = first - low
        chunks = (end - first + C - U(1)) // C
        if kind == UNIFORM:
            round_uniform(x, at + k, chunks, c, words, k // U(2), levels, alphabet, symbols, k)
        elif kind == POWERS:
            round_powers(x, at + k, chunks, c, words, k // U(2), levels, alphabet, symbols, k)
        elif kind == COUNTING:
            round_counting(x, at + k, chunks, c, words, k // U(2), levels, alphabet, symbols, k)
        else:
            round_searching(x, at + k, chunks, c, words, k // U(2), levels, alphabet, symbols, k)
        first = end
        b += U(1)


@njit(**COMPILED)
def leave(
    kind: Any, owed: Any, values: Any, low: Any, high: Any, scale: Any, bucket: Any, rest: Any, past_cache: Any
) -> None:
    """What is left over of elements low ... high. ``values``: their levels, but of signs; overwritten."""
    first = low
    b = low // bucket
    while first < high:
        end = min((b + U(1)) * bucket, high)
        c = scale[b]
        if kind == SIGNS:
            for k in range(first - low, end - low):
                values[k] = owed[k] - (c if owed[k] >= F(0) else -c)
        else:
            for k in range(first - low, end - low):
                values[k] = owed[k] - F(values[k] * c)
        first = end
        b += U(1)
    lines = (high - low) // L if past_cache else U(0)
    for line in range(lines):
        copy_past_cache(rest, low + line * L, values, line * L)
    for k in range(lines * L, high - low):
        rest[low + k] = values[k]


@njit(**COMPILED)
def tile_of(width: Any) -> Any:
    """Elements in a tile; half as many are best where two vectors are read: with 2560, they take 1.3 times as long."""
    return U(TILE) if width == U(0) else U(8 * CHUNK)


@njit(**COMPILED)
def ask(x: Any, memory: Any, low: Any, high: Any) -> None:
    """Asks for elements low ... high."""
    for line in range((high - low) // L):
        prefetch(x, low + line * L)
        if memory is not None:
            prefetch(memory, low + line * L)


def scratch() -> tuple[Any, ...]:
    """What a slice works in, so small that it stays in the first-level cache. It is kept by who calls the loop."""
    words, symbols = np.empty(TILE // 2, np.uint32), np.empty(TILE, np.uint8)
    return words, symbols, np.zeros(TILE, np.float32), np.empty(TILE, np.float32), np.empty(LANES + BLOCKS)


@njit(**CACHED)
def quantise(
    kind: Any,
    x_array: Any,
    memory_array: Any,
    decay: Any,
    level_array: Any,
    bucket: Any,
    norm: Any,
    seed: Any,
    known: Any,
    stream_array: Any,
    scale_array: Any,
    rest_array: Any,
    past_cache: Any,
    scratch: Any,
    low: Any,
    high: Any,
) -> None:
    """Elements low ... high (multiples of a tile, or the end). ``known``: the scales are there already.

    A bucket's norm is taken when the first tile comes that it has a part in; one that two slices share is computed
    by both. x is asked for a bucket and two tiles ahead. ``past_cache``: ``rest`` is aligned, and larger than a cache.
    """
    x, memory, rest = pointer(x_array), pointer(memory_array), pointer(rest_array)
    stream, scale, levels = pointer(stream_array), pointer(scale_array), pointer(level_array)
    words, symbols, u, owed = pointer(scratch[0]), pointer(scratch[1]), pointer(scratch[2]), pointer(scratch[3])
    n, alphabet, width = U(len(x_array)), U(len(level_array)), width_bits(len(level_array))
    ready = (high + bucket - U(1)) // bucket if known else low // bucket
    tile = tile_of(width) if memory_array is None else tile_of(width) // U(2)
    for first in range(low, high, tile):
        last = min(first + tile, high)
        while ready * bucket < last:
            end = min((ready + U(1)) * bucket, n)
            scale[ready] = bucket_scale(x, memory, decay, ready * bucket, end, norm, pointer(scratch[4]))
            ready += U(1)
        source = x
        at: Any = first
        ahead = last + tile if known else last + tile + bucket
        if kind == SIGNS:
            ask(x, memory, ahead, ahead + (last - first))
        else:
            fill_words(words, first // C, (last - first + C - U(1)) // C, seed, x, memory, ahead)
        if memory_array is not None:
            for k in range(last - first):
                owed[k] = owed_at(x, memory, decay, first + k)
            source, at = owed, U(0)
        if kind == SIGNS:
            round_signs(source, at, last - first, symbols)
        else:
            round_tile(kind, source, at, first, last, scale, bucket, words, levels, alphabet, u, symbols)
        if memory_array is not None:
            if kind != SIGNS:
                levels_of(kind, symbols, last - first, levels, alphabet, u)
            leave(kind, owed, u, first, last, scale, bucket, rest, past_cache)
        pack_symbols(symbols, U(0), last - first, width, stream, nbytes(first, width))
    if past_cache:
        settle()


@njit(**COMPILED)
def add(values: Any, low: Any, high: Any, scale: Any, bucket: Any, total: Any) -> None:
    """Values times scales to elements low ... high."""
    first = low
    b = low // bucket
    while first < high:
        end = min((b + U(1)) * bucket, high)
        c = scale[b]
        for k in range(first - low, end - low):
            total[low + k] += F(values[k] * c)
        first = end
        b += U(1)


@njit(**CACHED)
def dequantise(
    kind: Any,
    stream_array: Any,
    scale_array: Any,
    level_array: Any,
    bucket: Any,
    total_array: Any,
    scratch: Any,
    low: Any,
    high: Any,
) -> None:
    """Add levels times scales to elements low ... high (multiples of a tile, or the end)."""
    stream, scale, total = pointer(stream_array), pointer(scale_array), pointer(total_array)
    levels, alphabet, width = pointer(level_array), U(len(level_array)), width_bits(len(level_array))
    symbols, values = pointer(scratch[1]), pointer(scratch[2])
    tile = tile_of(width) // U(2)
    for first in range(low, high, tile):
        last = min(first + tile, high)
        unpack_symbols(stream, nbytes(first, width), last - first, width, symbols, U(0))
        levels_of(kind, symbols, last - first, levels, alphabet, values)
        add(values, first, last, scale, bucket, total)
