"""What ``top_k`` does to each element. Keys are magnitudes as integers: bits without the sign, at most infinity's."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from thriftgrad.kernels.cpu.instructions import ones, trailing_zeros
from thriftgrad.kernels.cpu.memory import copy_past_cache, pointer, settle
from thriftgrad.kernels.cpu.settings import CACHED, LINE, U

BLOCK = 64
"""Elements whose comparisons make one word, in which an instruction finds the next candidate."""
TILE = 2048
"""Elements that are added and searched while they are in the first-level cache."""
PARTS, FEW_PARTS, SHORT = 1 << 11, 1 << 7, 1 << 12
"""Of a range of keys that are counted at once; up to so many elements, fewer."""
BELOW = 1 << 21
"""Below the bits of a magnitude: those of one that is a fifth smaller."""
MAGNITUDE, INFINITY = np.int32(0x7FFFFFFF), np.int32(0x7F800000)


@njit(**CACHED)
def key_of(bits: Any) -> Any:
    """Of one element."""
    return min(bits & MAGNITUDE, INFINITY)


@njit(**CACHED)
def sample(x: Any, memory: Any, decay: Any, with_memory: Any, sample: Any) -> None:
    """One element of each run of n / len(sample), at a place that the run's number is hashed to."""
    step = U(x.size // sample.size)
    bits = np.empty(1, np.float32)
    for i in range(U(sample.size)):
        at = i * step + ((i * U(0x9E3779B97F4A7C15)) >> U(32)) % step
        bits[0] = x[at] + decay * memory[at] if with_memory else x[at]
        sample[i] = bits.view(np.int32)[0]


@njit(**CACHED)
def rank(bits: Any, k: Any) -> Any:
    """The key of the k-th largest magnitude, and how many of that key are among the k largest.

    Its range is cut into up to 2048 parts, of which the one that holds the k-th is cut again, down to one key.
    """
    low, high = INFINITY, np.int32(0)
    for i in range(U(bits.size)):
        key = key_of(bits[i])
        low, high = min(low, key), max(high, key)
    room, parts = np.int64(k), PARTS if bits.size > SHORT else FEW_PARTS
    counts = np.empty((4, parts), np.int64)
    while low < high and room > 0:
        shift = np.int32(0)
        while (high - low) >> shift >= parts:
            shift += np.int32(1)
        for i in range(parts):
            counts[0, i] = counts[1, i] = counts[2, i] = counts[3, i] = 0
        for i in range(U(bits.size)):
            key = key_of(bits[i])
            if low <= key <= high:
                counts[i & U(3), U(key - low) >> U(shift)] += 1
        part, here = ((high - low) >> shift) + 1, np.int64(0)
        while here < room:
            room -= here
            part -= 1
            here = counts[0, part] + counts[1, part] + counts[2, part] + counts[3, part]
        low, high = low + np.int32(part << shift), min(high, low + np.int32((part + 1 << shift) - 1))
        if here < bits.size // 8:
            bits = between(bits, low, high, here)
    return low, room


@njit(**CACHED)
def between(bits: Any, low: Any, high: Any, count: Any) -> Any:
    """Those whose keys lie there, of which there are ``count``."""
    found = np.empty(count + 1, np.int32)
    c = U(0)
    for i in range(U(bits.size)):
        key = key_of(bits[i])
        found[c] = key
        c += U(low <= key) & U(key <= high)
    return found[:count]


@njit(**CACHED)
def search(
    bits: Any, low: Any, high: Any, floor: Any, base: Any, places: Any, found: Any, count: Any, most: Any
) -> Any:
    """Append the places, counted from ``base``, and the bits of all elements whose magnitude reaches the floor.

    How many there are then; more than ``most``, where it stops, if they do not fit. Two blocks more may be written.
    """
    i, high, c = U(low), U(high), U(count)
    while i + U(BLOCK) <= high:
        word = U(0)
        for j in range(U(BLOCK)):
            word |= U((bits[i + j] & MAGNITUDE) >= floor) << j
        after = c + ones(word)
        # Hardly ever are there more than two, and to find two whether they are there or not needs no prediction;
        # where there is none, & 63 keeps its place in the block, and ``c = after`` or the next one takes its room.
        for _ in range(2):
            at = i + (trailing_zeros(word) & U(63))
            places[c], found[c] = np.uint32(at + U(base)), bits[at]
            word &= word - U(1)
            c += U(1)
        while c < after:
            at = i + trailing_zeros(word)
            places[c], found[c] = np.uint32(at + U(base)), bits[at]
            word &= word - U(1)
            c += U(1)
        c = after
        if c > U(most):
            return c
        i += U(BLOCK)
    while i < high:
        if (bits[i] & MAGNITUDE) >= floor:
            places[c], found[c] = np.uint32(i + U(base)), bits[i]
            c += U(1)
        i += U(1)
    return c


@njit(**CACHED)
def owe(x: Any, memory: Any, decay: Any, out: Any, low: Any, high: Any) -> None:
    """x + decay * memory."""
    for i in range(U(low), U(high)):
        out[i] = x[i] + decay * memory[i]


@njit(**CACHED)
def owe_and_search(
    x: Any, memory: Any, decay: Any, out: Any, past_cache: Any, low: Any, high: Any, floor: Any, places: Any,
    found: Any, most: Any,
) -> Any:  # fmt: skip
    """``owe`` and ``search``; if there are more than ``most`` the rest is only owed."""
    count, tile = U(0), np.empty(TILE, np.float32)
    bits, to, source = tile.view(np.int32), pointer(out), pointer(tile)
    for start in range(low, high, TILE):
        first, size = U(start), min(TILE, high - start)
        for i in range(U(size)):
            tile[i] = x[first + i] + decay * memory[first + i]
        if count <= U(most):
            count = search(bits, 0, size, floor, start, places, found, count, most)
        lines = U(size // LINE) if past_cache else U(0)
        for line in range(lines):
            copy_past_cache(to, first + line * U(LINE), source, line * U(LINE))
        for i in range(lines * U(LINE), U(size)):
            out[first + i] = tile[i]
    settle()
    return count


@njit(**CACHED)
def take(bits: Any, threshold: Any, room: Any, indices: Any, values: Any) -> None:
    """Write all beyond the threshold and the first ``room`` on it, in order."""
    o, left, n = U(0), U(room), U(bits.size)
    for start in range(U(0), n, U(BLOCK)):
        if o == U(indices.size):
            break
        word = U(0)
        if start + U(BLOCK) <= n:
            for j in range(U(BLOCK)):
                word |= U((bits[start + j] & MAGNITUDE) >= threshold) << j
        else:
            for j in range(n - start):
                word |= U((bits[start + j] & MAGNITUDE) >= threshold) << j
        while word and o < U(indices.size):
            at = start + trailing_zeros(word)
            word &= word - U(1)
            tied = key_of(bits[at]) == threshold
            if not tied or left > U(0):
                indices[o], values[o] = np.int64(at), bits[at]
                o += U(1)
                left -= U(tied)


@njit(**CACHED)
def take_at(places: Any, bits: Any, threshold: Any, room: Any, indices: Any, values: Any) -> None:
    """``take``, of elements at those places."""
    o, left = U(0), U(room)
    for i in range(U(bits.size)):
        if o == U(indices.size):
            break
        key = key_of(bits[i])
        tied = U(key == threshold) & U(left > U(0))
        indices[o], values[o] = np.int64(places[i]), bits[i]
        left -= tied
        o += U(key > threshold) | tied


@njit(**CACHED)
def choose_of_rows(bits: Any, width: Any, k: Any, columns: Any, low: Any, high: Any) -> None:
    """The columns of these rows. A little less than what one row's k-th has is likely to be a floor for the next."""
    places, found = np.empty(width + 2 * BLOCK, np.uint32), np.empty(width + 2 * BLOCK, np.int32)
    values, floor = np.empty(k, np.int32), np.int32(0)
    for row in range(low, high):
        start, end = row * width, (row + 1) * width
        count = search(bits, start, end, floor, 0, places, found, 0, width)
        if count < k:
            count = search(bits, start, end, np.int32(0), 0, places, found, 0, width)
        threshold, room = rank(found[:count], k)
        mine = columns[row * k : (row + 1) * k]
        take_at(places[:count], found[:count], threshold, room, mine, values)
        for i in range(U(k)):
            mine[i] -= start
        floor = max(np.int32(0), np.int32(threshold - BELOW))


@njit(**CACHED)
def take_out(rest: Any, indices: Any, values: Any, low: Any, high: Any) -> None:
    """Zero where a value was chosen, or NaN if it was not finite."""
    for i in range(U(low), U(high)):
        rest[U(indices[i])] = values[i] - values[i]


@njit(**CACHED)
def add_each(total: Any, indices: Any, values: Any) -> Any:
    """False, and nothing is added, if an index is none."""
    n = np.int64(total.size)
    outside = False
    for i in range(U(indices.size)):
        outside |= (indices[i] < 0) | (indices[i] >= n)
    if outside:
        return False
    for i in range(U(indices.size)):
        total[U(indices[i])] += values[i]
    return True
