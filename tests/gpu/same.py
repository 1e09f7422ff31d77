"""What the tests of this folder share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

SEED = 0x9E37_79B9_7F4A_7C15


def same(ours: Any, defined: Any) -> bool:
    """Whether two results are equal bit for bit, but for what a NaN holds; tuples, tensors or None."""
    if isinstance(defined, tuple):
        return all(same(*pair) for pair in zip(ours, defined, strict=True))
    if not isinstance(defined, Tensor):
        return bool(ours == defined)
    nan = torch.isnan(defined)
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64, 1: torch.uint8}[defined.dtype.itemsize]
    return (
        ours.dtype == defined.dtype
        and ours.shape == defined.shape
        and torch.equal(torch.isnan(ours), nan)
        and torch.equal(ours.view(integers)[~nan], defined.view(integers)[~nan])
    )


def exact_fma(x: Any, y: Any, z: Any) -> Any:
    """x * y + z of float32, rounded once: the sum rounded to odd in float64, which then rounds to what it should."""
    x, y, z = (each.astype(np.float64) for each in (x, y, z))
    product = x * y
    total = product + z
    back = total - product
    error = (product - (total - back)) + (z - back)
    bits = total.view(np.int64)
    inexact = (error != 0) & (bits & 1 == 0)
    away = (error > 0) == (total > 0)
    return np.where(inexact, np.where(away, bits + 1, bits - 1), bits).view(np.float64).astype(np.float32)
