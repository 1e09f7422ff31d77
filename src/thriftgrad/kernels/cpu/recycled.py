"""Large buffers that are used again: to a kernel, a page fault costs more than its arithmetic."""

from __future__ import annotations

import threading
import weakref
from collections import defaultdict

import numpy as np
import torch
from torch import Tensor

SMALLEST_NBYTES = 1 << 16
"""Below this the allocator keeps its pages anyway."""

MOST_NBYTES = 1 << 31
"""Of free buffers that are kept."""

ALIGNMENT = 64

_free: defaultdict[int, list[np.ndarray]] = defaultdict(list)
_lock = threading.RLock()  # collecting garbage within ``empty`` may end a view


def empty(n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """An uninitialised vector of n elements on the CPU; its memory comes back here when nobody holds it any more."""
    nbytes = n * dtype.itemsize
    if nbytes < SMALLEST_NBYTES:
        return torch.empty(n, dtype=dtype)
    with _lock:
        buffer = _free[nbytes].pop() if _free[nbytes] else np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    view = buffer[start : start + nbytes]  # the tensor holds the view, and the view's end is the buffer's return
    weakref.finalize(view, _put_back, buffer).atexit = False
    return torch.from_numpy(view).view(dtype)


def _put_back(buffer: np.ndarray) -> None:
    with _lock:
        if sum(size * len(same) for size, same in _free.items()) + buffer.nbytes <= MOST_NBYTES:
            _free[buffer.nbytes - ALIGNMENT].append(buffer)
