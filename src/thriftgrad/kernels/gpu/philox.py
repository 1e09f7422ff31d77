"""Philox4x32-10 in the layout of ``uniform16``: one counter serves eight elements."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from thriftgrad.kernels.gpu.launch import launch

COUNTERS = 1024
"""Counters of one program."""


@triton.jit
def threshold(word, HIGH: tl.constexpr):
    """(r + 1/2) / 2**16 of the low or high 16 bits r, at most 1 - 2**-16: a fraction above it is rounded up.

    Under the exponent of 2**7 the last bit of a float32 is 2**-16: no conversion, which would be slow.
    """
    if HIGH:
        bits = word >> 16
    else:
        bits = word & 0xFFFF
    return tl.minimum((bits | 0x43000000).to(tl.float32, bitcast=True) - (128 - 2.0**-17), 1 - 2.0**-16)


@triton.jit
def words(seed, first, GROUPS: tl.constexpr):
    """The four words of 16 counters from each ``first`` on, uint32[GROUPS, 16] each; first: [GROUPS, 1].

    Woven from quarters, so that each thread computes four neighbours, as it loads: triton would else deal them out one
    by one, and pass every word through shared memory.
    """
    at = (first + 4 * tl.arange(0, 4)[None, :]).to(tl.uint32)
    a, b = tl.randint4x(seed, at), tl.randint4x(seed, at + 1)
    c, d = tl.randint4x(seed, at + 2), tl.randint4x(seed, at + 3)
    return (
        _woven(a[0], b[0], c[0], d[0], GROUPS),
        _woven(a[1], b[1], c[1], d[1], GROUPS),
        _woven(a[2], b[2], c[2], d[2], GROUPS),
        _woven(a[3], b[3], c[3], d[3], GROUPS),
    )


@triton.jit
def _woven(a, b, c, d, GROUPS: tl.constexpr):
    """a0 b0 c0 d0 a1 ...: [GROUPS, 4] each -> uint32[GROUPS, 16]."""
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (GROUPS, 16)).to(tl.uint32)


@triton.jit
def threshold_at(seed, element):
    """``threshold`` of single elements, int64: eight times the work."""
    a, b, c, d = tl.randint4x(seed, (element // 128 * 16 + element % 16).to(tl.uint32))
    quarter = element % 64 // 16
    word = tl.where(quarter < 2, tl.where(quarter == 0, a, b), tl.where(quarter == 2, c, d)).to(tl.uint32)
    return tl.where(element % 128 < 64, threshold(word, False), threshold(word, True))


@triton.jit(do_not_specialize=["n", "seed"])
def _philox(out, n: tl.int64, seed: tl.uint64, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    a, b, c, d = tl.randint4x(seed, i)
    tl.store(out + i, a.to(tl.uint32).to(tl.int64), mask=i < n)
    tl.store(out + n + i, b.to(tl.uint32).to(tl.int64), mask=i < n)
    tl.store(out + 2 * n + i, c.to(tl.uint32).to(tl.int64), mask=i < n)
    tl.store(out + 3 * n + i, d.to(tl.uint32).to(tl.int64), mask=i < n)


@triton.jit
def _store_halves(out, n, at, word):
    word = word.to(tl.uint32)
    tl.store(out + at, (word & 0xFFFF).to(tl.int64), mask=at < n)
    tl.store(out + at + 64, (word >> 16).to(tl.int64), mask=at + 64 < n)


@triton.jit(do_not_specialize=["n", "seed"])
def _uniform16(out, n: tl.int64, seed: tl.uint64, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at = i.to(tl.int64) // 16 * 128 + i % 16
    a, b, c, d = tl.randint4x(seed, i)
    _store_halves(out, n, at, a)
    _store_halves(out, n, at + 16, b)
    _store_halves(out, n, at + 32, c)
    _store_halves(out, n, at + 48, d)


def philox(n: int, seed: int, device: torch.device) -> Tensor:
    """``reference.philox``."""
    out = torch.empty(4, n, dtype=torch.int64, device=device)
    launch(_philox, triton.cdiv(n, COUNTERS), out, out, n, seed, BLOCK=COUNTERS)
    return out


def uniform16(n: int, seed: int, device: torch.device) -> Tensor:
    """``reference.uniform16``."""
    out = torch.empty(n, dtype=torch.int64, device=device)
    launch(_uniform16, triton.cdiv(n, 8 * COUNTERS), out, out, n, seed, BLOCK=COUNTERS)
    return out
