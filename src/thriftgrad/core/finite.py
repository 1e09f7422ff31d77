"""Whether numbers are finite, in as few readings of them as can be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether no tensor holds a NaN or an infinity.

    A sum that is finite says so in one reading; one that is not may have left the type's range on the way.
    """
    if not tensors or torch.stack([x.sum().to(torch.float32) for x in tensors]).isfinite().all():
        return True
    return bool(torch.stack([x.isfinite().all() for x in tensors]).all())
