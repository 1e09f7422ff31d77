"""Exact top-k in one reading: a sample says where the largest are likely to begin, and a count proves it.

A magnitude is ranked by its bits without the sign, as an integer; NaN and infinity share the highest rank.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from thriftgrad.kernels import recycled, sparse
from thriftgrad.kernels.cpu.instructions import ones, trailing_zeros
from thriftgrad.kernels.cpu.memory import copy_past_cache, pointer, settle
from thriftgrad.kernels.cpu.settings import CACHED, U
from thriftgrad.kernels.cpu.threads import over_slices
from thriftgrad.kernels.sparse import Chosen

SAMPLE = 1 << 15
"""Elements that are looked at; of k = n / 100 they give a floor that 1.2 k reach."""
SPARSEST = 16
"""Elements to one of the sample at least; where there are few, all are counted."""
FEW = 1 << 13
BLOCK = 64
"""Elements whose comparisons make one word, in which an instruction finds the next candidate."""
TILE = 2048
"""Elements that are added and searched while they are in the first-level cache."""
LARGE, LINE = 1 << 18, 16
"""Elements from which on what is owed is written past the caches; elements of a line of them."""
PARTS = 1 << 11
"""Of a range of keys that are counted at once."""
SHORT, FEW_PARTS = 1 << 12, 1 << 7
"""Of fewer elements fewer parts are counted."""
BELOW = 1 << 21
"""Below the bits of a magnitude: those of one that is a fifth smaller."""
MOST = 1 << 32
"""Elements that 32-bit places reach."""

MAGNITUDE, INFINITY = np.int32(0x7FFFFFFF), np.int32(0x7F800000)

Bits = NDArray[np.int32]
Floats = NDArray[np.float32]
Places = NDArray[np.uint32]
Terms = tuple[Floats, np.float32, Floats]
"""The memory, its decay, and where to write what is owed."""


def largest(flat: Tensor, k: int) -> Tensor:
    """``sparse.largest``."""
    if not _fits(flat):
        return sparse.largest(flat, k)
    return _chosen(flat.contiguous().numpy(), k, None)[0]


def choose_largest(x: Tensor, k: int, memory: Tensor | None = None, decay: float = 1.0) -> Chosen:
    """``sparse.choose_largest``."""
    if not _fits(x) or (memory is not None and not _fits(memory)):
        return sparse.choose_largest(x, k, memory, decay)
    if memory is None:
        return Chosen(*_chosen(x.contiguous().numpy(), k, None), None)
    rest = recycled.empty(x.numel())
    indices, values = _chosen(x.contiguous().numpy(), k, (memory.numpy(), np.float32(decay), rest.numpy()))
    arrays = rest.numpy(), indices.numpy(), values.numpy()
    over_slices(lambda low, high: _take_out(*arrays, low, high), k)
    return Chosen(indices, values, rest)


def largest_of_rows(rows: Tensor, k: int) -> Tensor:
    """``sparse.largest_of_rows``."""
    if not _fits(rows) or not len(rows) * k:
        return sparse.largest_of_rows(rows, k)
    width, columns = rows.shape[1], recycled.empty(len(rows) * k, torch.int64)
    arrays = rows.contiguous().view(-1).numpy().view(np.int32), width, k, columns.numpy()
    over_slices(lambda low, high: _rows(*arrays, low // width, high // width), rows.numel(), width)
    return columns


def owed(x: Tensor, memory: Tensor, decay: float) -> Tensor:
    """``sparse.owed``, in a buffer that is used again."""
    if not _fits(x) or not _fits(memory):
        return sparse.owed(x, memory, decay)
    out = recycled.empty(x.numel())
    arrays = x.contiguous().numpy(), memory.contiguous().numpy(), np.float32(decay), out.numpy()
    over_slices(lambda low, high: _owe(*arrays, low, high), x.numel())
    return out


def add_at(total: Tensor, indices: Tensor, values: Tensor) -> None:
    """``sparse.add_at``."""
    if not _fits(total):
        sparse.add_at(total, indices, values)
    elif not _add_at(total.numpy(), indices.numpy(), values.to(torch.float32).numpy()):
        raise IndexError(f"kernels: an index lies outside a total of {total.numel()} elements.")


def _fits(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.numel() < MOST


def _chosen(x: Floats, k: int, terms: Terms | None) -> tuple[Tensor, Tensor]:
    """Indices and values of the k largest of x, or of what is owed, which is then written."""
    indices, values = recycled.empty(k, torch.int64), recycled.empty(k)
    out = indices.numpy(), values.numpy().view(np.int32)
    found = _candidates(x, k, terms)
    if found is None:
        bits = (x if terms is None else terms[2]).view(np.int32)
        _take(bits, *_rank(bits, k), *out)
    else:
        places, bits = found
        _take_at(places, bits, *_rank(bits, k), *out)
    return indices, values


def _candidates(x: Floats, k: int, terms: Terms | None) -> tuple[Places, Bits] | None:
    """Where at least k elements lie, the k largest among them, and their bits; None where all must be counted."""
    n = len(x)
    guess = 0 < k <= n // 4 and n >= FEW
    if not guess:
        if terms is not None:
            over_slices(lambda low, high: _owe(x, *terms, low, high), n)
        return None
    sample = np.empty(min(SAMPLE, n // SPARSEST), np.int32)
    memory, decay = terms[:2] if terms is not None else (x, np.float32(0))
    _sample(x, memory, decay, terms is not None, sample)
    expected = k * len(sample) / n
    likely = int(expected + 4 * expected**0.5) + 8
    floor, _ = _rank(sample, min(likely, len(sample)))
    most = int(1.5 * likely / len(sample) * n)  # twice as many deviations
    past_cache = terms is not None and n >= LARGE and terms[2].ctypes.data % 64 == 0
    parts: dict[int, tuple[Places, Bits]] = {}

    def search(low: int, high: int) -> None:
        size = min(most, high - low)
        places, bits = (recycled.empty(size + 2 * BLOCK, torch.int32).numpy() for _ in range(2))
        place = places.view(np.uint32)
        if terms is None:
            count = _search(x.view(np.int32), low, high, floor, 0, place, bits, 0, size)
        else:
            count = _owe_and_search(x, *terms, past_cache, low, high, floor, place, bits, size)
        parts[low] = (place[:count], bits[:count]) if count <= size else (place[:0], bits[:0])

    over_slices(search, n, BLOCK)
    found = [parts[low] for low in sorted(parts)]
    if not all(len(places) for places, _ in found):
        return None
    places, bits = (each[0] if len(each) == 1 else np.concatenate(each) for each in zip(*found, strict=True))
    return (places, bits) if len(places) >= k else None


@njit(**CACHED)
def _key(bits: Any) -> Any:
    return min(bits & MAGNITUDE, INFINITY)


@njit(**CACHED)
def _sample(x: Any, memory: Any, decay: Any, with_memory: Any, sample: Any) -> None:
    """One element of each run of n / len(sample), at a place that the run's number is hashed to."""
    step = U(x.size // sample.size)
    bits = np.empty(1, np.float32)
    for i in range(U(sample.size)):
        at = i * step + ((i * U(0x9E3779B97F4A7C15)) >> U(32)) % step
        bits[0] = x[at] + decay * memory[at] if with_memory else x[at]
        sample[i] = bits.view(np.int32)[0]


@njit(**CACHED)
def _rank(bits: Any, k: Any) -> Any:
    """The key of the k-th largest magnitude, and how many of that key are among the k largest.

    Its range is cut into up to 2048 parts, of which the one that holds the k-th is cut again, down to one key.
    """
    low, high = INFINITY, np.int32(0)
    for i in range(U(bits.size)):
        key = _key(bits[i])
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
            key = _key(bits[i])
            if low <= key <= high:
                counts[i & U(3), U(key - low) >> U(shift)] += 1
        part, here = ((high - low) >> shift) + 1, np.int64(0)
        while here < room:
            room -= here
            part -= 1
            here = counts[0, part] + counts[1, part] + counts[2, part] + counts[3, part]
        low, high = low + np.int32(part << shift), min(high, low + np.int32((part + 1 << shift) - 1))
        if here < bits.size // 8:
            bits = _between(bits, low, high, here)
    return low, room


@njit(**CACHED)
def _between(bits: Any, low: Any, high: Any, count: Any) -> Any:
    """Those whose keys lie there, of which there are ``count``."""
    found = np.empty(count + 1, np.int32)
    c = U(0)
    for i in range(U(bits.size)):
        key = _key(bits[i])
        found[c] = key
        c += U(low <= key) & U(key <= high)
    return found[:count]


@njit(**CACHED)
def _search(
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
        # Hardly ever are there more than two, and to find two whether they are there or not needs no prediction.
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
def _owe(x: Any, memory: Any, decay: Any, out: Any, low: Any, high: Any) -> None:
    for i in range(U(low), U(high)):
        out[i] = x[i] + decay * memory[i]


@njit(**CACHED)
def _owe_and_search(
    x: Any, memory: Any, decay: Any, out: Any, past_cache: Any, low: Any, high: Any, floor: Any, places: Any,
    found: Any, most: Any,
) -> Any:  # fmt: skip
    """``_owe`` and ``_search``; if there are more than ``most`` the rest is only owed."""
    count, tile = U(0), np.empty(TILE, np.float32)
    bits, to, source = tile.view(np.int32), pointer(out), pointer(tile)
    for start in range(low, high, TILE):
        first, size = U(start), min(TILE, high - start)
        for i in range(U(size)):
            tile[i] = x[first + i] + decay * memory[first + i]
        if count <= U(most):
            count = _search(bits, 0, size, floor, start, places, found, count, most)
        lines = U(size // LINE) if past_cache else U(0)
        for line in range(lines):
            copy_past_cache(to, first + line * U(LINE), source, line * U(LINE))
        for i in range(lines * U(LINE), U(size)):
            out[first + i] = tile[i]
    settle()
    return count


@njit(**CACHED)
def _take(bits: Any, threshold: Any, room: Any, indices: Any, values: Any) -> None:
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
            tied = _key(bits[at]) == threshold
            if not tied or left > U(0):
                indices[o], values[o] = np.int64(at), bits[at]
                o += U(1)
                left -= U(tied)


@njit(**CACHED)
def _take_at(places: Any, bits: Any, threshold: Any, room: Any, indices: Any, values: Any) -> None:
    """``_take``, of elements at those places."""
    o, left = U(0), U(room)
    for i in range(U(bits.size)):
        if o == U(indices.size):
            break
        key = _key(bits[i])
        tied = U(key == threshold) & U(left > U(0))
        indices[o], values[o] = np.int64(places[i]), bits[i]
        left -= tied
        o += U(key > threshold) | tied


@njit(**CACHED)
def _rows(bits: Any, width: Any, k: Any, columns: Any, low: Any, high: Any) -> None:
    """The columns of these rows. A little less than what one row's k-th has is likely to be a floor for the next."""
    places, found = np.empty(width + 2 * BLOCK, np.uint32), np.empty(width + 2 * BLOCK, np.int32)
    values, floor = np.empty(k, np.int32), np.int32(0)
    for row in range(low, high):
        start, end = row * width, (row + 1) * width
        count = _search(bits, start, end, floor, 0, places, found, 0, width)
        if count < k:
            count = _search(bits, start, end, np.int32(0), 0, places, found, 0, width)
        threshold, room = _rank(found[:count], k)
        mine = columns[row * k : (row + 1) * k]
        _take_at(places[:count], found[:count], threshold, room, mine, values)
        for i in range(U(k)):
            mine[i] -= start
        floor = max(np.int32(0), np.int32(threshold - BELOW))


@njit(**CACHED)
def _take_out(rest: Any, indices: Any, values: Any, low: Any, high: Any) -> None:
    for i in range(U(low), U(high)):
        rest[U(indices[i])] = values[i] - values[i]


@njit(**CACHED)
def _add_at(total: Any, indices: Any, values: Any) -> Any:
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
