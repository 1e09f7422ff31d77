"""The first values of a pseudo-random permutation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from thriftgrad.kernels import recycled, reference
from thriftgrad.kernels.cpu.settings import CACHED, U
from thriftgrad.kernels.cpu.threads import over_slices
from thriftgrad.kernels.philox import MASK as _MASK
from thriftgrad.kernels.philox import philox

MASK = np.int64(_MASK)
TILE = 1024
MOST = 1 << 52
"""Values whose places in the grid, and their quotients in float64, are exact."""


def permutation(k: int, n: int, seed: int, device: torch.device = reference.CPU) -> Tensor:
    """``reference.permutation``."""
    if n > MOST:
        return reference.permutation(k, n, seed, device)
    a = max(math.isqrt(max(n - 1, 0)) + 1, 1)
    b = max(-(-n // a), 1)
    keys = np.array(list(zip(philox((0, 0, 0, 0), seed), philox((1, 0, 0, 0), seed), strict=True))).reshape(-1)
    values = recycled.empty(k, torch.int64)
    out = values.numpy()
    over_slices(lambda low, high: _walk(n, a, b, keys, out, low, high), k)
    return values.to(device)


@njit(**CACHED)
def _walk(n: Any, a: Any, b: Any, keys: Any, values: Any, low: Any, high: Any) -> None:
    """Each place to its value; those outside, few, walk on along their cycles."""
    i, j = np.empty(TILE, np.int64), np.empty(TILE, np.int64)
    for start in range(low, high, TILE):
        size = min(TILE, high - start)
        for x in range(U(size)):
            j[x] = np.int64(U(start) + x)
        _shuffle(i, j, a, b, keys, size)
        walking = np.int64(0)
        for x in range(U(size)):
            values[U(start) + x] = i[x] + a * j[x]
            walking += np.int64(i[x] + a * j[x] >= n)
        for x in range(U(start), U(start + size)):
            if walking == 0:
                break
            walking -= np.int64(values[x] >= n)
            while values[x] >= n:
                j[0] = values[x]
                _shuffle(i, j, a, b, keys, 1)
                values[x] = i[0] + a * j[0]


@njit(**CACHED)
def _shuffle(i: Any, j: Any, a: Any, b: Any, keys: Any, size: Any) -> None:
    """From x in j: four rounds of a Feistel network on i = x % a, j = x // a."""
    over_a, over_b = 1.0 / np.float64(a), 1.0 / np.float64(b)
    for x in range(U(size)):
        i[x] = _remainder(j[x], a, over_a)
        j[x] = np.int64(np.float64(j[x] - i[x]) * over_a + 0.5)
    for pair in range(U(4)):
        even, odd = keys[U(2) * pair], keys[U(2) * pair + U(1)]
        for x in range(U(size)):
            i[x] = _remainder(i[x] + _scrambled(j[x], even), a, over_a)
        for x in range(U(size)):
            j[x] = _remainder(j[x] + _scrambled(i[x], odd), b, over_b)


@njit(**CACHED)
def _remainder(x: Any, by: Any, over: Any) -> Any:
    """x % by for 0 <= x < 2**52: floats multiply in vectors, integers are divided one by one."""
    rest = x - np.int64(np.float64(x) * over) * by
    rest += by * np.int64(rest < 0)
    return rest - by * np.int64(rest >= by)


@njit(**CACHED)
def _scrambled(x: Any, key: Any) -> Any:
    x = (x ^ key) & MASK
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & MASK
    x = ((x ^ (x >> 15)) * 0x735A2D97) & MASK
    return x ^ (x >> 15)
