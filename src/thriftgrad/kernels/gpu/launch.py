"""How every kernel here is started."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def launch(kernel: Any, programs: int, like: Tensor, *arguments: Any, warps: int = 4, **constants: Any) -> None:
    """Start so many programs on the current stream of the device of ``like``, without waiting for anything.

    Products and sums are not contracted to FMA, so that the bits are the reference's.
    """
    if programs:
        with torch.cuda.device_of(like):
            kernel[(programs,)](*arguments, **constants, num_warps=warps, enable_fp_fusion=False)
