"""Quantisation as one function (memory, norm, rounding, packing, what is left over): its definition in plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from thriftgrad.kernels.reference import pack, round_stochastic, round_to_levels, unpack

Norm = Literal["l2", "linf"]

LANES = 64
BLOCK = 8192
"""Sums add up in a fixed order, so that all backends agree: element i of a block goes to lane i % 64."""


class Quantised(NamedTuple):
    """What is sent of a vector, and what is left over."""

    stream: Tensor  # uint8: the symbols, packed
    scale: Tensor  # float32[ceil(n / bucket)]; NaN where the bucket holds a NaN or an infinity
    rest: Tensor | None  # float32[n]: owed - dequantised, where owed = x + decay * memory; None without a memory

    def finite_rest(self, shape: Sequence[int]) -> Tensor | None:
        """The rest in this shape; None if something in it is not finite, which its scale tells without a reading."""
        assert self.rest is not None
        return self.rest.view(shape) if self.scale.isfinite().all() else None


def lane_sums(rows: Tensor, squared: bool = False) -> Tensor:
    """The sum of each row, or of its squares, in float64: float32[m, d] -> float64[m].

    Rows are cut into blocks of 8192 (the last shorter, as if filled with zeros). In a block, each of 64 lanes adds up
    its elements i, i + 64, ... one after the other, and the lanes fold by halves; so do then the blocks, as if there
    were a power of two of them.
    """
    m, d = rows.shape
    blocks = -(-d // BLOCK)
    height = -(-min(d, BLOCK) // LANES)
    cells = torch.nn.functional.pad(rows, (0, blocks * height * LANES - d)).view(m, blocks, height, LANES)
    lanes = torch.zeros(m, blocks, LANES, dtype=torch.float64, device=rows.device)
    for line in cells.unbind(2):
        wide = line.to(torch.float64)
        lanes += wide.square() if squared else wide
    return _folded(torch.nn.functional.pad(_folded(lanes), (0, (1 << max(blocks - 1, 0).bit_length()) - blocks)))


def _folded(x: Tensor) -> Tensor:
    """The sum over the last dimension, whose size is a power of two: first half plus second half, until one is left."""
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        x = x[..., :half] + x[..., half:]
    return x[..., 0]


def bucket_norms(rows: Tensor, norm: Norm) -> Tensor:
    """The norm of each row, float32[m, d] -> float32[m]; NaN where the row holds a NaN or an infinity."""
    if norm == "linf":
        lengths = rows.abs().amax(1) if rows.numel() else rows.new_zeros(len(rows))
        return torch.where(lengths.isfinite(), lengths, torch.nan)
    # float64, because the square of 1e30 is no float32, and that of 1e-30 is zero; it is finite where the row is.
    sums = lane_sums(rows, squared=True)
    lengths = sums.sqrt().clamp_max(torch.finfo(torch.float32).max).to(torch.float32)
    return torch.where(sums.isfinite(), lengths, torch.nan)


def quantise_uniform(
    x: Tensor, s: int, bucket: int, norm: Norm, seed: int, memory: Tensor | None = None, decay: float = 1.0
) -> Quantised:
    """Owed = x + decay * memory, rounded at random to c l / s, l = -s ... s, where c is the norm of its bucket.

    x, memory: float32[n], contiguous; 1 <= s <= 255. Symbols are l + s. What stands on a level stays there.
    """
    owed = _owed(x, memory, decay)
    rows = _rows(owed, bucket)
    scale = bucket_norms(rows, norm)
    u = _normalised(rows, scale)[: x.numel()]
    at = u.abs() * s
    if s > 127:  # here float32 has a last bit of 2**-16, so that what stands on a level may look as if it did not
        at = torch.where((at - at.round()).abs() <= 2.0**-16, at.round(), at)
    symbols = (round_stochastic(at, seed).copysign(u) + s).to(torch.uint8 if s <= 127 else torch.int16)
    return _quantised(symbols, scale, uniform_levels(s).to(x.device), bucket, owed if memory is not None else None)


def quantise_levels(
    x: Tensor, levels: Tensor, bucket: int, norm: Norm, seed: int, memory: Tensor | None = None, decay: float = 1.0
) -> Quantised:
    """Owed = x + decay * memory, rounded at random to c times a level, where c is the norm of its bucket.

    x, memory: float32[n], contiguous; levels: float32[L], ascending from -1 to 1, 2 <= L <= 256. Symbols number them.
    """
    owed = _owed(x, memory, decay)
    rows = _rows(owed, bucket)
    scale = bucket_norms(rows, norm)
    levels = levels.to(x.device)
    symbols = round_to_levels(_normalised(rows, scale)[: x.numel()], levels, seed)
    return _quantised(symbols, scale, levels, bucket, owed if memory is not None else None)


def quantise_sign(x: Tensor, bucket: int, memory: Tensor | None = None, decay: float = 1.0) -> Quantised:
    """The signs of owed = x + decay * memory (1: not below zero), and the mean magnitude of each bucket as its scale.

    x, memory: float32[n], contiguous.
    """
    owed = _owed(x, memory, decay)
    rows = _rows(owed, bucket)
    sizes = torch.full((len(rows),), rows.shape[1], dtype=torch.float64, device=x.device)
    sizes[-1:] -= rows.numel() - x.numel()
    sums = lane_sums(rows.abs())
    scale = torch.where(sums.isfinite(), (sums / sizes).to(torch.float32), torch.nan)
    levels = torch.tensor([-1.0, 1.0], device=x.device)
    return _quantised((owed >= 0).to(torch.uint8), scale, levels, bucket, owed if memory is not None else None)


def dequantise_add(stream: Tensor, scale: Tensor, levels: Tensor, bucket: int, total: Tensor) -> None:
    """Add to each element of ``total`` the level of its symbol times the scale of its bucket.

    stream: uint8, packed symbols of as many levels as there are; levels: float32[L], L <= 511; total: float32[n].
    """
    total += _dequantised(unpack(stream, total.numel(), levels.numel()), scale, levels, bucket)


def largest_symbol(stream: Tensor, numel: int, alphabet: int) -> int:
    """The largest of the first ``numel`` symbols, as ``unpack`` gives them; -1 if there is none."""
    return int(unpack(stream, numel, alphabet).max()) if numel else -1


def uniform_levels(s: int) -> Tensor:
    """-1, (1 - s) / s, ... 1: float32[2 s + 1]."""
    return torch.arange(-s, s + 1, dtype=torch.float32) / s


def _owed(x: Tensor, memory: Tensor | None, decay: float) -> Tensor:
    return x if memory is None else x + decay * memory


def _rows(flat: Tensor, bucket: int) -> Tensor:
    """Buckets as rows, the last one filled with zeros."""
    columns = max(1, min(bucket, flat.numel()))
    return torch.nn.functional.pad(flat, (0, -flat.numel() % columns)).view(-1, columns)


def _normalised(rows: Tensor, scale: Tensor) -> Tensor:
    """Elements over their scales, within [-1, 1]; zero where the scale is zero, anything where it is NaN."""
    divisor = torch.where(scale > 0, scale, 1.0)
    return (rows / divisor[:, None]).clamp_(-1.0, 1.0).nan_to_num_(0.0).view(-1)


def _dequantised(symbols: Tensor, scale: Tensor, levels: Tensor, bucket: int) -> Tensor:
    rows = _rows(levels.to(symbols.device)[symbols.to(torch.int64)], bucket)
    return (rows * scale[:, None]).view(-1)[: symbols.numel()]


def _quantised(symbols: Tensor, scale: Tensor, levels: Tensor, bucket: int, owed: Tensor | None) -> Quantised:
    rest = None if owed is None else owed - _dequantised(symbols, scale, levels, bucket)
    return Quantised(pack(symbols, levels.numel()), scale, rest)
