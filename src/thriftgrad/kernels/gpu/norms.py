"""Norms and sums of buckets, in the order that ``quantised.lane_sums`` defines."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from thriftgrad.kernels import quantised
from thriftgrad.kernels.gpu.launch import launch

PEAK = tl.constexpr(0)
SQUARES = tl.constexpr(1)
MAGNITUDES = tl.constexpr(2)
SUM = tl.constexpr(3)
"""What is added up in a bucket; of the peak, the greatest magnitude."""

LANES = tl.constexpr(quantised.LANES)
BLOCK = tl.constexpr(quantised.BLOCK)
INFINITY = tl.constexpr(0x7F800000)
"""Its bits. To the greatest of integers, not of floats, a NaN is greater still."""

LARGEST = tl.constexpr(torch.finfo(torch.float32).max)
CELLS = 8
"""Blocks of buckets in one program."""


@triton.jit
def owed(x, memory, decay, at, inside, HAS_MEMORY: tl.constexpr):
    """X + decay * memory, zero outside."""
    value = tl.load(x + at, mask=inside, other=0.0)
    if HAS_MEMORY:
        value = value + decay * tl.load(memory + at, mask=inside, other=0.0)
    return value


@triton.jit
def _added(lanes, value, WHAT: tl.constexpr):
    if WHAT == PEAK:
        lanes = tl.maximum(lanes, value.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
    elif WHAT == SQUARES:
        wide = value.to(tl.float64)
        lanes = tl.fma(wide, wide, lanes)  # which changes nothing: the product is exact
    elif WHAT == MAGNITUDES:
        lanes += tl.abs(value).to(tl.float64)
    else:
        lanes += value.to(tl.float64)
    return lanes


@triton.jit
def sums(
    x,
    memory,
    decay,
    start,
    length,
    HEIGHT: tl.constexpr,
    WHAT: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_MEMORY: tl.constexpr,
):
    """Of ``length`` elements from ``start`` on, at most 8192, in lines of 64: float64[ROWS], or the peak's bits, int32.

    start, length: [ROWS, 1]; HEIGHT: as many lines as the longest has, or more.
    """
    lane = tl.arange(0, LANES)[None, :]
    whole = length // LANES
    lanes = tl.zeros((ROWS, LANES), tl.int32 if WHAT == PEAK else tl.float64)
    for i in tl.range(0, HEIGHT, loop_unroll_factor=8):
        value = owed(x, memory, decay, start + i * LANES + lane, tl.broadcast_to(i < whole, (ROWS, LANES)), HAS_MEMORY)
        lanes = _added(lanes, value, WHAT)
    left = whole * LANES + lane  # a line that is not full is the last one
    lanes = _added(lanes, owed(x, memory, decay, start + left, left < length, HAS_MEMORY), WHAT)
    if WHAT == PEAK:
        total = tl.max(lanes, axis=1)
    else:
        total = _folded(lanes, ROWS)
    return total


@triton.jit
def _folded(lanes, ROWS: tl.constexpr):
    """First half plus second half of 64, until one is left."""
    lanes = tl.sum(tl.reshape(lanes, (ROWS, 2, 32)), axis=1)
    lanes = tl.sum(tl.reshape(lanes, (ROWS, 2, 16)), axis=1)
    lanes = tl.sum(tl.reshape(lanes, (ROWS, 2, 8)), axis=1)
    lanes = tl.sum(tl.reshape(lanes, (ROWS, 2, 4)), axis=1)
    lanes = tl.sum(tl.reshape(lanes, (ROWS, 2, 2)), axis=1)
    return tl.sum(lanes, axis=1)


@triton.jit
def scale_of(total, count, WHAT: tl.constexpr):
    """The scale of a bucket, float32, from what was added up in its ``count`` elements; NaN if that is not finite."""
    if WHAT == PEAK:
        scale = tl.where(total < INFINITY, total, 0x7FC00000).to(tl.float32, bitcast=True)
    else:
        if WHAT == SQUARES:
            length = tl.minimum(tl.sqrt(total), LARGEST)
        else:
            length = total / count.to(tl.float64)
        scale = tl.where(total < float("inf"), length, float("nan")).to(tl.float32)
    return scale


@triton.jit(do_not_specialize=["n", "bucket", "blocks", "cells"])
def _norms(
    x,
    memory,
    out,
    n: tl.int64,
    bucket: tl.int64,
    blocks: tl.int64,
    cells: tl.int64,
    decay: tl.float32,
    HEIGHT: tl.constexpr,
    WHAT: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_MEMORY: tl.constexpr,
    FINISH: tl.constexpr,
):
    """Of block c % blocks of bucket c // blocks, for each cell c: its scale if that is all of it, else its sum."""
    cell = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    start = cell // blocks * bucket + cell % blocks * BLOCK
    stop = tl.minimum(tl.minimum(cell // blocks * bucket + bucket, n), start + BLOCK)
    length = tl.where(cell < cells, tl.maximum(stop - start, 0), 0)
    total = sums(x, memory, decay, start[:, None], length[:, None], HEIGHT, WHAT, ROWS, HAS_MEMORY)
    if FINISH:
        total = scale_of(total, length, WHAT)
    tl.store(out + cell, total, mask=cell < cells)


def scales(x: Tensor, bucket: int, what: int, memory: Tensor | None = None, decay: float = 1.0) -> Tensor:
    """The scale of each bucket of x + decay * memory, float32[ceil(n / bucket)]."""
    n = x.numel()
    if bucket <= BLOCK.value:
        return _cells(x, bucket, what, True, memory, decay)
    totals = _cells(x, bucket, what, False, memory, decay)
    if what == PEAK.value:
        peaks = totals.amax(1).view(torch.float32)
        return torch.where(peaks.isfinite(), peaks, torch.nan)
    total = _fold_blocks(totals)
    if what == SQUARES.value:
        lengths = total.sqrt().clamp_max(LARGEST.value)
    else:
        sizes = torch.full_like(total, bucket)
        sizes[-1:] -= len(total) * bucket - n
        lengths = total / sizes
    return torch.where(total.isfinite(), lengths, torch.nan).to(torch.float32)


def lane_sums(rows: Tensor, squared: bool = False) -> Tensor:
    """``quantised.lane_sums``."""
    if not rows.numel():
        return torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    return _fold_blocks(_cells(rows.contiguous().view(-1), rows.shape[1], (SQUARES if squared else SUM).value, False))


def bucket_norms(rows: Tensor, norm: quantised.Norm) -> Tensor:
    """``quantised.bucket_norms``."""
    if not rows.numel():
        return torch.zeros(len(rows), device=rows.device)
    return scales(rows.contiguous().view(-1), rows.shape[1], (PEAK if norm == "linf" else SQUARES).value)


def _cells(x: Tensor, bucket: int, what: int, finish: bool, memory: Tensor | None = None, decay: float = 1.0) -> Tensor:
    """The scales of buckets of one block, or what was added up in each block, [buckets, blocks]."""
    n = x.numel()
    buckets, blocks = triton.cdiv(n, bucket), triton.cdiv(bucket, BLOCK.value)
    kind = torch.float32 if finish else torch.int32 if what == PEAK.value else torch.float64
    out = torch.empty(buckets if finish else (buckets, blocks), dtype=kind, device=x.device)
    launch(
        _norms,
        triton.cdiv(buckets * blocks, CELLS),
        x,
        *(x, x if memory is None else memory, out),
        *(n, bucket, blocks, buckets * blocks, decay),
        HEIGHT=triton.next_power_of_2(triton.cdiv(min(bucket, BLOCK.value), LANES.value)),
        WHAT=what,
        ROWS=CELLS,
        HAS_MEMORY=memory is not None,
        FINISH=finish,
    )
    return out


def _fold_blocks(totals: Tensor) -> Tensor:
    """The sum over blocks, as if there were a power of two of them."""
    blocks = totals.shape[1]
    totals = torch.nn.functional.pad(totals, (0, triton.next_power_of_2(blocks) - blocks))
    while totals.shape[1] > 1:
        half = totals.shape[1] // 2
        totals = totals[:, :half] + totals[:, half:]
    return totals[:, 0]
