"""``kernels.quantised`` on the CPU: what Python does around the compiled loops."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thriftgrad.kernels import quantised, recycled
from thriftgrad.kernels.cpu.arrays import array, fit, in_place, past_cache
from thriftgrad.kernels.cpu.quantise import dequantise, quantise, scratch
from thriftgrad.kernels.cpu.rounding import COUNTING, POWERS, SEARCHING, SIGNS, UNIFORM
from thriftgrad.kernels.cpu.scales import BLOCKS, L2, LINF, MEAN, block_parts, bucket_scales, scale_of_parts
from thriftgrad.kernels.cpu.settings import SLICE, F, U
from thriftgrad.kernels.cpu.threads import over_slices
from thriftgrad.kernels.quantised import BLOCK, Norm, Quantised

NORMS = {"l2": L2, "linf": LINF}
NARROWEST = 2.0**-100
"""Of the gaps between levels, for whose products with a threshold no bit may be lost to underflow."""

SIGN_LEVELS = np.array([-1.0, 1.0], np.float32)


def quantise_uniform(
    x: Tensor, s: int, bucket: int, norm: Norm, seed: int, memory: Tensor | None = None, decay: float = 1.0
) -> Quantised:
    """``quantised.quantise_uniform``."""
    if s > 127 or not fit(x, memory):  # symbols of more than a byte
        return quantised.quantise_uniform(x, s, bucket, norm, seed, memory, decay)
    levels = np.empty(2 * s + 1, np.float32)  # of which the number is looked at
    return _quantised(UNIFORM, x, levels, bucket, NORMS[norm], seed, memory, decay)


def quantise_levels(
    x: Tensor, levels: Tensor, bucket: int, norm: Norm, seed: int, memory: Tensor | None = None, decay: float = 1.0
) -> Quantised:
    """``quantised.quantise_levels``."""
    if not fit(x, levels, memory):
        return quantised.quantise_levels(x, levels, bucket, norm, seed, memory, decay)
    table = array(levels)
    kind, _ = _kinds(table.tobytes())
    return _quantised(kind, x, table, bucket, NORMS[norm], seed, memory, decay)


def quantise_sign(x: Tensor, bucket: int, memory: Tensor | None = None, decay: float = 1.0) -> Quantised:
    """``quantised.quantise_sign``."""
    if not fit(x, memory):
        return quantised.quantise_sign(x, bucket, memory, decay)
    return _quantised(SIGNS, x, SIGN_LEVELS, bucket, MEAN, 0, memory, decay)


def dequantise_add(stream: Tensor, scale: Tensor, levels: Tensor, bucket: int, total: Tensor) -> None:
    """``quantised.dequantise_add``; ``ValueError`` for a stream or scales that are too short."""
    n, alphabet = total.numel(), levels.numel()
    readable = stream.dtype == torch.uint8 and fit(scale, levels)
    if alphabet > 256 or not readable or not in_place(total) or total.dtype not in (torch.float32, torch.float64):
        quantised.dequantise_add(stream, scale, levels, bucket, total)
        return
    check_length(stream, n, alphabet)
    bucket = max(1, min(bucket, n))
    if scale.numel() < -(-n // bucket):
        raise ValueError(f"kernels: {n} elements in buckets of {bucket} need more than {scale.numel()} scales.")
    table = array(levels)
    _, kind = _kinds(table.tobytes())
    arrays = kind, array(stream), array(scale), table, U(bucket), total.numpy()
    over_slices(lambda low, high: dequantise(*arrays, scratch(), U(low), U(high)), n, SLICE)


def bucket_norms(rows: Tensor, norm: Norm) -> Tensor:
    """``quantised.bucket_norms``."""
    if not fit(rows):
        return quantised.bucket_norms(rows, norm)
    scale = torch.empty(len(rows), dtype=torch.float32)
    flat = array(rows).reshape(-1)
    if flat.size:
        _fill_scales(scale.numpy(), flat, None, 1.0, rows.shape[1], NORMS[norm])
    else:
        scale.zero_()
    return scale


def check_length(stream: Tensor, n: int, alphabet: int) -> None:
    """``ValueError`` for a stream that ends before the n-th symbol."""
    nbytes = stream_nbytes(n, alphabet)
    if stream.numel() < nbytes:
        raise ValueError(f"kernels: {n} of {alphabet} symbols take {nbytes} bytes, and there are {stream.numel()}.")


def stream_nbytes(n: int, alphabet: int) -> int:
    """Bytes that n packed symbols take."""
    return -(-n // 5) if alphabet == 3 else -(-n * (alphabet - 1).bit_length() // 8)


def _quantised(
    kind: int, x: Tensor, levels: Any, bucket: int, norm: int, seed: int, memory: Tensor | None, decay: float
) -> Quantised:
    n = x.numel()
    bucket = max(1, min(bucket, n))
    stream = recycled.empty(stream_nbytes(n, len(levels)), torch.uint8)
    scale = torch.empty(-(-n // bucket), dtype=torch.float32)
    rest = None if memory is None else recycled.empty(n)
    given, kept, left = array(x), _array(memory), _array(rest)
    known = bucket > BLOCKS * BLOCK
    if known:
        _fill_scales(scale.numpy(), given, kept, decay, bucket, norm)
    settings = F(decay), levels, U(bucket), norm, U(seed), known
    arrays = kind, given, kept, *settings, stream.numpy(), scale.numpy(), left, left is not None and past_cache(left)
    over_slices(lambda low, high: quantise(*arrays, scratch(), U(low), U(high)), n, SLICE)
    return Quantised(stream, scale, rest)


def _array(x: Tensor | None) -> Any:
    return None if x is None else array(x)


def _fill_scales(scale: Any, x: Any, memory: Any, decay: float, bucket: int, norm: int) -> None:
    """All norms; those of buckets of very many elements by all threads together."""
    n = len(x)
    if bucket <= BLOCKS * BLOCK:
        over_slices(
            lambda low, high: bucket_scales(x, memory, F(decay), U(bucket), norm, scale, U(low), U(high)), n, bucket
        )
        return
    parts = np.empty(1 << (-(-bucket // BLOCK) - 1).bit_length())
    for b, start in enumerate(range(0, n, bucket)):
        size = min(bucket, n - start)
        over_slices(
            lambda low, high, start=start, size=size: block_parts(  # type: ignore[misc]
                x, memory, F(decay), U(start), U(size), norm, parts, U(low), U(high)
            ),
            size,
            BLOCK,
        )
        scale[b] = scale_of_parts(parts, U(-(-size // BLOCK)), U(size), norm)


@lru_cache(maxsize=1024)
def _kinds(table: bytes) -> tuple[int, int]:
    """How to round to a table of levels, and how to get back: what is made for it, or what does for any."""
    levels = np.frombuffer(table, np.float32)
    base = (len(levels) - 1) // 2
    above = levels[base + 1 :]
    symmetric = bool((levels == -levels[::-1]).all()) and levels[-1] == 1
    wide = symmetric and np.diff(levels).min() >= NARROWEST
    if wide and (np.frexp(above)[0] == 0.5).all() and (np.diff(above) == above[:-1]).all():
        return POWERS, POWERS
    counted = COUNTING if wide else SEARCHING
    evenly = 3 <= len(levels) <= 255 and np.array_equal(levels, quantised.uniform_levels(base).numpy())
    return counted, UNIFORM if evenly else counted
