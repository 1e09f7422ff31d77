"""Exact top-k in one reading: a sample says where the largest are likely to begin, and a count proves it.

A magnitude is ranked by its bits without the sign, as an integer; NaN and infinity share the highest rank.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thriftgrad.kernels import recycled, sparse
from thriftgrad.kernels.cpu import top_k_loops as loops
from thriftgrad.kernels.cpu.arrays import array, fit, in_place, past_cache
from thriftgrad.kernels.cpu.threads import over_slices
from thriftgrad.kernels.cpu.top_k_loops import BLOCK
from thriftgrad.kernels.sparse import Chosen

SAMPLE = 1 << 15
"""Elements that are looked at; of k = n / 100 they give a floor that 1.2 k reach."""
SPARSEST = 16
"""Elements to one of the sample at least; where there are few, all are counted."""
FEW = 1 << 13
MOST = 1 << 32
"""Elements that 32-bit places reach."""

Bits = NDArray[np.int32]
Floats = NDArray[np.float32]
Places = NDArray[np.uint32]
Terms = tuple[Floats, np.float32, Floats]
"""The memory, its decay, and where to write what is owed."""


def largest(flat: Tensor, k: int) -> Tensor:
    """``sparse.largest``."""
    if not _fits(flat):
        return sparse.largest(flat, k)
    return _chosen(array(flat), k, None)[0]


def choose_largest(x: Tensor, k: int, memory: Tensor | None = None, decay: float = 1.0) -> Chosen:
    """``sparse.choose_largest``."""
    if not _fits(x) or not fit(memory):
        return sparse.choose_largest(x, k, memory, decay)
    if memory is None:
        return Chosen(*_chosen(array(x), k, None), None)
    rest = recycled.empty(x.numel())
    indices, values = _chosen(array(x), k, (array(memory), np.float32(decay), rest.numpy()))
    arrays = rest.numpy(), indices.numpy(), values.numpy()
    over_slices(lambda low, high: loops.take_out(*arrays, low, high), k)
    return Chosen(indices, values, rest)


def largest_of_rows(rows: Tensor, k: int) -> Tensor:
    """``sparse.largest_of_rows``."""
    if not _fits(rows) or not len(rows) * k:
        return sparse.largest_of_rows(rows, k)
    width, columns = rows.shape[1], recycled.empty(len(rows) * k, torch.int64)
    arrays = array(rows).reshape(-1).view(np.int32), width, k, columns.numpy()
    over_slices(lambda low, high: loops.choose_of_rows(*arrays, low // width, high // width), rows.numel(), width)
    return columns


def owed(x: Tensor, memory: Tensor, decay: float) -> Tensor:
    """``sparse.owed``, in a buffer that is used again."""
    if not _fits(x) or not fit(memory):
        return sparse.owed(x, memory, decay)
    out = recycled.empty(x.numel())
    arrays = array(x), array(memory), np.float32(decay), out.numpy()
    over_slices(lambda low, high: loops.owe(*arrays, low, high), x.numel())
    return out


def add_at(total: Tensor, indices: Tensor, values: Tensor) -> None:
    """``sparse.add_at``."""
    if not _fits(total) or not in_place(total) or indices.dtype not in (torch.int32, torch.int64):
        sparse.add_at(total, indices, values)
    elif not loops.add_each(total.numpy(), array(indices), array(values.to(torch.float32))):
        raise IndexError(f"kernels: an index lies outside a total of {total.numel()} elements.")


def _fits(x: Tensor) -> bool:
    return fit(x) and x.numel() < MOST


def _chosen(x: Floats, k: int, terms: Terms | None) -> tuple[Tensor, Tensor]:
    """Indices and values of the k largest of x, or of what is owed, which is then written."""
    indices, values = recycled.empty(k, torch.int64), recycled.empty(k)
    out = indices.numpy(), values.numpy().view(np.int32)
    found = _candidates(x, k, terms)
    if found is None:
        bits = (x if terms is None else terms[2]).view(np.int32)
        loops.take(bits, *loops.rank(bits, k), *out)
    else:
        places, bits = found
        loops.take_at(places, bits, *loops.rank(bits, k), *out)
    return indices, values


def _candidates(x: Floats, k: int, terms: Terms | None) -> tuple[Places, Bits] | None:
    """Where at least k elements lie, the k largest among them, and their bits; None where all must be counted."""
    n = len(x)
    guess = 0 < k <= n // 4 and n >= FEW
    if not guess:
        if terms is not None:
            over_slices(lambda low, high: loops.owe(x, *terms, low, high), n)
        return None
    sample = np.empty(min(SAMPLE, n // SPARSEST), np.int32)
    memory, decay = terms[:2] if terms is not None else (x, np.float32(0))
    loops.sample(x, memory, decay, terms is not None, sample)
    expected = k * len(sample) / n
    likely = int(expected + 4 * expected**0.5) + 8
    floor, _ = loops.rank(sample, min(likely, len(sample)))
    most = int(1.5 * likely / len(sample) * n)  # twice as many deviations
    parts: dict[int, tuple[Places, Bits]] = {}

    def search(low: int, high: int) -> None:
        size = min(most, high - low)
        places, bits = (recycled.empty(size + 2 * BLOCK, torch.int32).numpy() for _ in range(2))
        place = places.view(np.uint32)
        if terms is None:
            count = loops.search(x.view(np.int32), low, high, floor, 0, place, bits, 0, size)
        else:
            count = loops.owe_and_search(x, *terms, past_cache(terms[2]), low, high, floor, place, bits, size)
        parts[low] = (place[:count], bits[:count]) if count <= size else (place[:0], bits[:0])

    over_slices(search, n, BLOCK)
    found = [parts[low] for low in sorted(parts)]
    if not all(len(places) for places, _ in found):
        return None
    places, bits = (each[0] if len(each) == 1 else np.concatenate(each) for each in zip(*found, strict=True))
    return (places, bits) if len(places) >= k else None
