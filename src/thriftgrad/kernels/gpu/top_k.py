"""Exact top-k that never waits for the device: whatever depends on the data stays in a tensor there, the ``state``.

A magnitude is ranked by its bits without the sign, as an integer; NaN and infinity share the highest rank. A sample
says where the largest are likely to begin. What lies above is counted, and collected if it is enough and not too much;
in it, or else in everything, histograms of one byte after the other find the rank of the k-th.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from thriftgrad.kernels import sparse
from thriftgrad.kernels.gpu.launch import launch
from thriftgrad.kernels.gpu.norms import INFINITY
from thriftgrad.kernels.gpu.norms import owed as owed_at
from thriftgrad.kernels.sparse import Chosen

SAMPLE = 1 << 14
SPARSEST = 16
"""Elements to one of the sample at least; where there are few, all are candidates."""

BLOCK = 4096
COUNTERS = 512
"""Programs that count, each in a histogram of its own."""

COUNTED = 2048
"""What they count at a time."""

DIGITS = ((23, 8), (15, 8), (7, 8), (0, 7))
"""Shift and width of the parts of a rank, 31 bits. Triton's histogram costs by the number of its bins."""

COLLECTED = tl.constexpr(0)
LENGTH = tl.constexpr(1)
RANK = tl.constexpr(2)
MISSING = tl.constexpr(3)
"""Places in the state: whether there is a collection, how long it, or else everything, is, the bits of the k-th rank
that are known, and how many of the k are still to be found among those that begin with them."""


@triton.jit
def _rank(x, at, inside):
    bits = tl.load(x + at, mask=inside, other=0.0).to(tl.float32).to(tl.int32, bitcast=True)
    return tl.minimum(bits & 0x7FFFFFFF, INFINITY)


@triton.jit
def _searched(x, ranks, state, at, inside):
    """The ranks of those among which is searched."""
    if tl.load(state + COLLECTED) > 0:
        rank = tl.load(ranks + at, mask=inside, other=0)
    else:
        rank = _rank(x, at, inside)
    return rank


@triton.jit
def _floor(floor):
    return _rank(floor, tl.zeros((1,), tl.int32), tl.full((1,), True, tl.int1))


@triton.jit(do_not_specialize=["n"])
def _count(x, floor, counts, n: tl.int64, BLOCK: tl.constexpr):
    """How many of a block reach the floor."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = (at < n) & (_rank(x, at, at < n) >= _floor(floor))
    tl.store(counts + tl.program_id(0), tl.sum(there.to(tl.int32), axis=0))


@triton.jit(do_not_specialize=["n", "most", "k"])
def _begin(ends, state, n: tl.int64, most: tl.int64, k: tl.int64):
    """ends: where the collections of the blocks end, the last of which is their number."""
    found = tl.load(ends)
    collected = (found >= k) & (found <= most)
    tl.store(state + COLLECTED, collected.to(tl.int64))
    tl.store(state + LENGTH, tl.where(collected, found, n))
    tl.store(state + RANK, 0)
    tl.store(state + MISSING, k)


@triton.jit(do_not_specialize=["n"])
def _collect(x, floor, counts, ends, state, ranks, places, n: tl.int64, BLOCK: tl.constexpr):
    """The ranks and places of those that reach the floor."""
    block = tl.program_id(0)
    count = tl.load(counts + block)
    if (count > 0) & (tl.load(state + COLLECTED) > 0):
        at = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        rank = _rank(x, at, at < n)
        there = (at < n) & (rank >= _floor(floor))
        number = there.to(tl.int32)
        place = tl.load(ends + block) - count + tl.cumsum(number, axis=0) - number
        tl.store(ranks + place, rank, mask=there)
        tl.store(places + place, at, mask=there)


@triton.jit
def _histogram(x, ranks, state, bins, SHIFT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """How many of those whose rank begins as the k-th's does have which digits next."""
    BINS: tl.constexpr = 1 << WIDTH
    length, known = tl.load(state + LENGTH), tl.load(state + RANK).to(tl.int32)
    total = tl.zeros((BINS,), tl.int32)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    while first < length:
        at = first + tl.arange(0, BLOCK)
        rank = _searched(x, ranks, state, at, at < length)
        there = (at < length) & ((rank >> (SHIFT + WIDTH)) == (known >> (SHIFT + WIDTH)))
        total += tl.histogram((rank >> SHIFT) & (BINS - 1), BINS, mask=there)
        first += tl.num_programs(0).to(tl.int64) * BLOCK
    tl.atomic_add(bins + tl.arange(0, BINS), total, mask=total > 0)


@triton.jit
def _next_digits(bins, state, SHIFT: tl.constexpr, WIDTH: tl.constexpr):
    """The k-th rank's next digits: the greatest that as many reach as are missing."""
    digit = tl.arange(0, 1 << WIDTH)
    count = tl.load(bins + digit).to(tl.int64)
    missing = tl.load(state + MISSING)
    reach = tl.sum(count, axis=0) - tl.cumsum(count, axis=0) + count
    found = tl.sum((reach >= missing).to(tl.int32), axis=0) - 1
    tl.store(state + RANK, tl.load(state + RANK) + (found << SHIFT))
    tl.store(state + MISSING, missing - tl.sum(tl.where(digit > found, count, 0), axis=0))


@triton.jit
def _count_chosen(x, ranks, state, above, equal, BLOCK: tl.constexpr):
    """How many of a block rank above the k-th, and how many beside it."""
    block, length = tl.program_id(0), tl.load(state + LENGTH)
    at = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    higher = tl.zeros((BLOCK,), tl.int32)
    beside = tl.zeros((BLOCK,), tl.int32)
    if block.to(tl.int64) * BLOCK < length:
        rank, last = _searched(x, ranks, state, at, at < length), tl.load(state + RANK).to(tl.int32)
        higher = ((at < length) & (rank > last)).to(tl.int32)
        beside = ((at < length) & (rank == last)).to(tl.int32)
    tl.store(above + block, tl.sum(higher, axis=0))
    tl.store(equal + block, tl.sum(beside, axis=0))


@triton.jit
def _choose(x, ranks, places, state, above, equal, out, BLOCK: tl.constexpr):
    """The chosen in order: all above the k-th rank, and of those beside it the first that are missing.

    above, equal: how many there are to the end of each block.
    """
    block, length = tl.program_id(0), tl.load(state + LENGTH)
    at = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    if block.to(tl.int64) * BLOCK < length:
        rank, last = _searched(x, ranks, state, at, at < length), tl.load(state + RANK).to(tl.int32)
        higher = ((at < length) & (rank > last)).to(tl.int32)
        beside = ((at < length) & (rank == last)).to(tl.int32)
        missing = tl.load(state + MISSING)
        before = tl.load(above + block) - tl.sum(higher, axis=0) + tl.cumsum(higher, axis=0) - higher
        ties = tl.load(equal + block) - tl.sum(beside, axis=0) + tl.cumsum(beside, axis=0) - beside
        chosen = (higher > 0) | ((beside > 0) & (ties < missing))
        index = at
        if tl.load(state + COLLECTED) > 0:
            index = tl.load(places + at, mask=chosen, other=0)
        tl.store(out + before + tl.minimum(ties, missing), index, mask=chosen)


@triton.jit(do_not_specialize=["n"])
def _owe(x, memory, out, n: tl.int64, decay: tl.float32, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, owed_at(x, memory, decay, at, at < n, True), mask=at < n)


def largest(flat: Tensor, k: int) -> Tensor:
    """``sparse.largest``; float64 is left to it."""
    if flat.dtype == torch.float64 or not k:
        return sparse.largest(flat, k)
    n, device, flat = flat.numel(), flat.device, flat.contiguous()
    blocks = triton.cdiv(n, BLOCK)
    state = torch.empty(4, dtype=torch.int64, device=device)
    sample = min(SAMPLE, n // SPARSEST)
    if k <= n // 4 and sample:
        seen = flat[:: n // sample]
        expected = k * seen.numel() / n
        likely = min(seen.numel(), int(expected + 4 * expected**0.5) + 8)
        most = min(n, 2 * (likely * n // seen.numel()))
        floor = sparse.magnitudes(seen).topk(likely).values[-1:]
        counts = torch.empty(blocks, dtype=torch.int32, device=device)
        launch(_count, blocks, flat, flat, floor, counts, n, BLOCK=BLOCK)
        ends = counts.cumsum(0)
        ranks, places = (torch.empty(most, dtype=kind, device=device) for kind in (torch.int32, torch.int64))
        launch(_begin, 1, flat, ends[-1:], state, n, most, k)
        launch(_collect, blocks, flat, flat, floor, counts, ends, state, ranks, places, n, BLOCK=BLOCK)
    else:
        ranks = places = state
        nothing = torch.full((1,), -1, dtype=torch.int64, device=device)
        launch(_begin, 1, flat, nothing, state, n, n, k)
    for shift, width in DIGITS:
        bins = torch.zeros(1 << width, dtype=torch.int32, device=device)
        part = {"SHIFT": shift, "WIDTH": width}
        launch(_histogram, min(COUNTERS, blocks), flat, flat, ranks, state, bins, **part, BLOCK=COUNTED)
        launch(_next_digits, 1, flat, bins, state, **part)
    above, equal = (torch.empty(blocks, dtype=torch.int32, device=device) for _ in range(2))
    launch(_count_chosen, blocks, flat, flat, ranks, state, above, equal, BLOCK=BLOCK)
    out = torch.empty(k, dtype=torch.int64, device=device)
    launch(_choose, blocks, flat, flat, ranks, places, state, above.cumsum(0), equal.cumsum(0), out, BLOCK=BLOCK)
    return out


def choose_largest(x: Tensor, k: int, memory: Tensor | None = None, decay: float = 1.0) -> Chosen:
    """``sparse.choose_largest``."""
    whole = x if memory is None else owed(x, memory, decay)
    indices = largest(whole, k)
    values = whole[indices]
    rest = None if memory is None else whole.index_copy_(0, indices, values - values)
    return Chosen(indices, values, rest)


def owed(x: Tensor, memory: Tensor, decay: float) -> Tensor:
    """``sparse.owed``."""
    if x.dtype != torch.float32 or memory.dtype != torch.float32:
        return sparse.owed(x, memory, decay)
    out = torch.empty_like(memory)
    n = out.numel()
    launch(_owe, triton.cdiv(n, BLOCK), x, x.contiguous(), memory.contiguous(), out, n, decay, BLOCK=BLOCK)
    return out
