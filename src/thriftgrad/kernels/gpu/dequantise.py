"""Packed symbols back: added to a total as levels times scales, or the largest of them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from thriftgrad.kernels import quantised
from thriftgrad.kernels.gpu.buckets import bucket_of
from thriftgrad.kernels.gpu.launch import launch

GROUPS = 8
"""Groups of 64 bytes: four bytes a thread, for whose symbols 16 bytes are read and written at a time."""

PARTS = 4
"""As many groups one after the other in one program."""

BLOCK = 1024
"""Elements of one program where each looks for its own bits."""


@triton.jit(do_not_specialize=["bucket"])
def _add_groups(
    stream,
    scales,
    levels,
    total,
    bucket: tl.int64,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    PARTS: tl.constexpr,
    GATHER: tl.constexpr,
):
    """Whole tiles of symbols of 1, 2, 4 or 8 bits; GATHER: elements look up their scales, else 64 of them at once."""
    PLANES: tl.constexpr = 8 // WIDTH
    group, lane = tl.arange(0, GROUPS)[:, None], tl.arange(0, 64)[None, :]
    every = tl.broadcast_to(group >= 0, (GROUPS, 64))
    for part in tl.static_range(PARTS):
        start = (tl.program_id(0).to(tl.int64) * PARTS + part) * (GROUPS * 64 * PLANES)
        byte = _bytes(stream + start // PLANES, GROUPS)
        for plane in tl.static_range(PLANES):
            at = (group * PLANES + plane) * 64
            symbol = (byte >> (plane * WIDTH)) & ((1 << WIDTH) - 1)
            scale = tl.load(scales + bucket_of(start, at + lane if GATHER else at, bucket))
            _add(total + start + at + lane, symbol, scale, levels, every, SIZE)


@triton.jit(do_not_specialize=["n", "bucket", "start", "nbytes"])
def _add_elements(
    stream,
    scales,
    levels,
    total,
    n: tl.int64,
    nbytes: tl.int64,
    start: tl.int64,
    bucket: tl.int64,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Elements from ``start`` on, of any width."""
    first = start + tl.program_id(0).to(tl.int64) * BLOCK
    at = tl.arange(0, BLOCK)
    inside = first + at < n
    symbol = _symbol(stream, n, nbytes, start, first, at, inside, WIDTH)
    scale = tl.load(scales + bucket_of(first, at, bucket), mask=inside, other=0.0)
    _add(total + first + at, symbol, scale, levels, inside, SIZE)


@triton.jit
def _add(place, symbol, scale, levels, inside, SIZE: tl.constexpr):
    """A symbol that is none of the alphabet's, which the wire lets nobody send, becomes NaN."""
    level = tl.load(levels + symbol, mask=inside & (symbol < SIZE), other=float("nan"))
    tl.store(place, tl.load(place, mask=inside) + level * scale, mask=inside)


@triton.jit
def _largest_of_groups(stream, out, WIDTH: tl.constexpr, GROUPS: tl.constexpr):
    byte = _bytes(stream + tl.program_id(0).to(tl.int64) * (GROUPS * 64), GROUPS)
    largest = byte & ((1 << WIDTH) - 1)
    for plane in tl.static_range(1, 8 // WIDTH):
        largest = tl.maximum(largest, (byte >> (plane * WIDTH)) & ((1 << WIDTH) - 1))
    tl.atomic_max(out, tl.max(largest))


@triton.jit(do_not_specialize=["n", "start", "nbytes"])
def _largest_of_elements(
    stream, out, n: tl.int64, nbytes: tl.int64, start: tl.int64, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    first = start + tl.program_id(0).to(tl.int64) * BLOCK
    at = tl.arange(0, BLOCK)
    inside = first + at < n
    symbol = _symbol(stream, n, nbytes, start, first, at, inside, WIDTH)
    tl.atomic_max(out, tl.max(tl.where(inside, symbol, -1)))


@triton.jit
def _bytes(stream, GROUPS: tl.constexpr):
    """int32[GROUPS, 64]."""
    return tl.load(stream + tl.arange(0, GROUPS)[:, None] * 64 + tl.arange(0, 64)[None, :]).to(tl.int32)


@triton.jit
def _symbol(stream, n, nbytes, start, first, at, inside, WIDTH: tl.constexpr):
    """The symbols of elements ``first + at``, as ``reference.pack`` laid them; WIDTH 0: base 3.

    first - start: a multiple of 8; of 1, 2, 4 or 8 bits, less than 2**31 symbols from ``start``, where a group begins.
    """
    if WIDTH == 0:
        place = (first % 5).to(tl.int32) + at
        symbol = tl.load(stream + first // 5 + place // 5, mask=inside, other=0).to(tl.int32)
        place = place % 5
        for i in tl.static_range(4):
            symbol = tl.where(place > i, symbol // 3, symbol)
        symbol = symbol % 3
    elif 8 % WIDTH == 0:
        PLANES: tl.constexpr = 8 // WIDTH
        whole = (first - start).to(tl.int32) + at
        group, within = whole // (64 * PLANES), whole % (64 * PLANES)
        left = (n - start).to(tl.int32) - group * (64 * PLANES)
        length = tl.minimum((tl.maximum(left, 1) + PLANES - 1) // PLANES, 64)  # of a plane; the last may be short
        byte = tl.load(stream + start // PLANES + group * 64 + within % length, mask=inside, other=0).to(tl.int32)
        symbol = (byte >> (within // length * WIDTH)) & ((1 << WIDTH) - 1)
    else:
        stream += first // 8 * WIDTH
        byte = at * WIDTH // 8
        low = tl.load(stream + byte, mask=inside, other=0).to(tl.int32)
        there = inside & (first // 8 * WIDTH + byte + 1 < nbytes)
        high = tl.load(stream + byte + 1, mask=there, other=0).to(tl.int32)
        symbol = ((low | (high << 8)) >> (at * WIDTH % 8)) & ((1 << WIDTH) - 1)
    return symbol


def dequantise_add(stream: Tensor, scale: Tensor, levels: Tensor, bucket: int, total: Tensor) -> None:
    """``quantised.dequantise_add``."""
    n, size = total.numel(), levels.numel()
    if not n:
        return
    levels = levels.to(total.device, torch.float32, non_blocking=True)
    width, bucket = _width(size), min(bucket, n)
    tile = _tile(width)
    tiles = n // tile if tile else 0
    tensors = (stream, scale, levels, total)
    gather = bucket < n and bucket % 64 != 0
    layout = {"SIZE": size, "WIDTH": width}
    launch(_add_groups, tiles, total, *tensors, bucket, **layout, GROUPS=GROUPS, PARTS=PARTS, GATHER=gather)
    start = tiles * tile
    numbers = (n, stream.numel(), start, bucket)
    programs = triton.cdiv(n - start, BLOCK)
    launch(_add_elements, programs, total, *tensors, *numbers, **layout, BLOCK=BLOCK)


def largest_symbol(stream: Tensor, numel: int, alphabet: int) -> int:
    """``quantised.largest_symbol``; waits for the device, since its answer is a number."""
    if not 2 <= alphabet <= 512:
        return quantised.largest_symbol(stream, numel, alphabet)
    out = torch.full((1,), -1, dtype=torch.int32, device=stream.device)
    width = _width(alphabet)
    tile = _tile(width)
    tiles = numel // tile if tile else 0
    launch(_largest_of_groups, tiles, stream, stream, out, WIDTH=width, GROUPS=GROUPS * PARTS)
    start = tiles * tile
    numbers = (numel, stream.numel(), start)
    programs = triton.cdiv(numel - start, BLOCK)
    launch(_largest_of_elements, programs, stream, stream, out, *numbers, WIDTH=width, BLOCK=BLOCK)
    return int(out)


def _width(alphabet: int) -> int:
    """Bits of a packed symbol; 0: five in a byte."""
    return 0 if alphabet == 3 else (alphabet - 1).bit_length()


def _tile(width: int) -> int:
    """Elements that a program takes by whole bytes; 0 where symbols do not lie in planes."""
    return PARTS * GROUPS * 64 * (8 // width) if width and 8 % width == 0 else 0
