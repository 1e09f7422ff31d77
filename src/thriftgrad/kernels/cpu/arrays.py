"""What compiled code takes: vectors of float32 whose numbers stand in memory one after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LARGE = 1 << 18
"""Elements that a cache would not hold until the next step."""


def fit(*tensors: Tensor | None) -> bool:
    """Whether all are float32, or None; where they are not, the reference computes."""
    return all(x is None or x.dtype == torch.float32 for x in tensors)


def in_place(x: Tensor) -> bool:
    """Whether what is written to its memory is written to it, and autograd need not know."""
    return x.is_contiguous() and not x.requires_grad and not x.is_neg()


def past_cache(written: Any) -> bool:
    """Whether what is left over is written past the caches, for which it must begin with a line of them."""
    return bool(written.size >= LARGE and written.ctypes.data % 64 == 0)


def array(x: Tensor) -> Any:
    """Its numbers, for reading: a copy if they do not lie end to end, or if torch has yet to turn their signs."""
    return x.detach().resolve_neg().contiguous().numpy()
