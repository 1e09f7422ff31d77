"""Quantisation: which kernels, and over which tiles."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from thriftgrad.kernels import quantised
from thriftgrad.kernels.gpu.launch import launch
from thriftgrad.kernels.gpu.norms import BLOCK, MAGNITUDES, PEAK, SQUARES, scales
from thriftgrad.kernels.gpu.rounding import LEVELS, SIGN, UNIFORM
from thriftgrad.kernels.gpu.tiles import pack_dense, quantise, tail
from thriftgrad.kernels.quantised import Norm, Quantised

GROUPS = 32
"""Groups of a tile, if it need not be larger to hold a bucket: with a warp to eight, four lanes of 16 a thread."""

DENSE_BLOCK = 1024


class _Rule(NamedTuple):
    kind: int
    size: int  # s of uniform levels, or how many levels there are
    steps: int  # of the search among them
    alphabet: int
    scale: int  # what of a bucket is its scale


def quantise_uniform(
    x: Tensor, s: int, bucket: int, norm: Norm, seed: int, memory: Tensor | None = None, decay: float = 1.0
) -> Quantised:
    """``quantised.quantise_uniform``."""
    if not x.numel():
        return quantised.quantise_uniform(x, s, bucket, norm, seed, memory, decay)
    return _quantised(x, _Rule(UNIFORM.value, s, 0, 2 * s + 1, _scale(norm)), x, bucket, seed, memory, decay)


def quantise_levels(
    x: Tensor, levels: Tensor, bucket: int, norm: Norm, seed: int, memory: Tensor | None = None, decay: float = 1.0
) -> Quantised:
    """``quantised.quantise_levels``."""
    if not x.numel():
        return quantised.quantise_levels(x, levels, bucket, norm, seed, memory, decay)
    levels = levels.to(x.device, torch.float32, non_blocking=True)
    size = levels.numel()
    rule = _Rule(LEVELS.value, size, (size - 2).bit_length(), size, _scale(norm))
    return _quantised(x, rule, levels, bucket, seed, memory, decay)


def quantise_sign(x: Tensor, bucket: int, memory: Tensor | None = None, decay: float = 1.0) -> Quantised:
    """``quantised.quantise_sign``."""
    if not x.numel():
        return quantised.quantise_sign(x, bucket, memory, decay)
    return _quantised(x, _Rule(SIGN.value, 0, 0, 2, MAGNITUDES.value), x, bucket, 0, memory, decay)


def _scale(norm: Norm) -> int:
    return int((PEAK if norm == "linf" else SQUARES).value)


def _quantised(
    x: Tensor, rule: _Rule, levels: Tensor, bucket: int, seed: int, memory: Tensor | None, decay: float
) -> Quantised:
    n, device = x.numel(), x.device
    bucket = min(bucket, n)
    bits = 0 if rule.alphabet == 3 else (rule.alphabet - 1).bit_length()  # 0: five symbols in a byte
    width = bits if bits in (1, 2, 4) else 0
    group = 512 // width if width else 128
    own = _own_bucket(n, bucket, group)
    if own:
        scale = torch.empty(triton.cdiv(n, bucket), device=device)
    else:
        scale = scales(x, bucket, rule.scale, memory, decay)
    rest = None if memory is None else torch.empty_like(x)
    stream = torch.empty(triton.cdiv(n * bits, 8) if bits else triton.cdiv(n, 5), dtype=torch.uint8, device=device)
    dense = not width and bits != 8
    kind = torch.uint8 if rule.alphabet <= 256 else torch.int16
    symbols = torch.empty(n, dtype=kind, device=device) if dense else stream

    groups = max(GROUPS, own // group)
    gather = not own and bucket < n and bucket % group != 0
    how = (rule.kind, rule.size, rule.steps, width, memory is not None)
    tensors = (x, x if memory is None else memory, x if rest is None else rest, levels, scale, symbols)
    settings: dict[str, Any] = {"HOW": (*how, gather), "GROUPS": groups, "BUCKET": own, "WHAT": rule.scale}
    settings["warps"] = groups // 8
    tiles, over = divmod(n, groups * group)
    launch(quantise, tiles, x, *tensors, n, bucket, 0, decay, seed, **settings, MASKED=False)
    launch(quantise, min(1, over), x, *tensors, n, bucket, tiles, decay, seed, **settings, MASKED=True)
    if width and n % group:
        launch(tail, 1, x, *tensors, n, bucket, decay, seed, HOW=(*how, True))
    if dense:
        programs = triton.cdiv(len(stream), DENSE_BLOCK)
        launch(pack_dense, programs, x, symbols, stream, n, len(stream), WIDTH=bits, BLOCK=DENSE_BLOCK)
    return Quantised(stream, scale, rest)


def _own_bucket(n: int, bucket: int, group: int) -> int:
    """The power of two that a program takes whole buckets of, and finds their scales itself; 0 if it cannot."""
    if bucket == n <= BLOCK.value:
        return max(group, 1 << (n - 1).bit_length())
    return bucket if group <= bucket <= BLOCK.value and bucket & (bucket - 1) == 0 else 0
