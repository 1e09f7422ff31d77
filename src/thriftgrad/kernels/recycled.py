"""Large buffers that are used again: to a kernel, a page fault costs more than its arithmetic."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor

SMALLEST_NBYTES = 1 << 16
"""Below this the allocator keeps its pages anyway."""

MOST_NBYTES = 1 << 31
"""Of free buffers that are kept; beyond it, those of the size that was asked for longest ago go first."""

ALIGNMENT = 64


class _Pool:
    """Free buffers by size, the size last asked for at the end."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # collecting garbage within ``take`` may end a tensor
        self.free: OrderedDict[int, list[np.ndarray]] = OrderedDict()
        self.nbytes = 0

    def take(self, nbytes: int) -> np.ndarray:
        """A buffer of at least so many bytes."""
        size = _rounded(nbytes)
        with self.lock:
            same = self.free.setdefault(size, [])
            self.free.move_to_end(size)
            if same:
                self.nbytes -= size
                return same.pop()
        return np.empty(size, np.uint8)

    def put_back(self, buffer: np.ndarray) -> None:
        """Keep it for the next one who asks for its size."""
        with self.lock:
            self.free.setdefault(buffer.nbytes, []).append(buffer)
            self.nbytes += buffer.nbytes
            while self.nbytes > MOST_NBYTES:
                size, oldest = next(iter(self.free.items()))
                if oldest:
                    oldest.pop()
                    self.nbytes -= size
                if not oldest:
                    del self.free[size]


_pool = _Pool()


def empty(n: int, dtype: torch.dtype = torch.float32, shift: int = 0) -> Tensor:
    """An uninitialised vector of n elements on the CPU; its memory comes back here when nobody holds it any more.

    A large one begins so many elements after a multiple of ALIGNMENT bytes, and always where its storage does.
    """
    nbytes = n * dtype.itemsize
    if nbytes < SMALLEST_NBYTES:
        return torch.empty(n, dtype=dtype)
    buffer = _pool.take(nbytes + 2 * ALIGNMENT)
    start = -buffer.ctypes.data % ALIGNMENT + shift * dtype.itemsize % ALIGNMENT
    view = buffer[start : start + nbytes]  # the tensor holds the view, and the view's end is the buffer's return
    weakref.finalize(view, _pool.put_back, buffer).atexit = False
    return torch.from_numpy(view).view(dtype)


def _rounded(nbytes: int) -> int:
    """Up to a multiple of an eighth of the power of two below: streams are of another length at each step."""
    step = 1 << max(0, nbytes.bit_length() - 4)
    return -(-nbytes // step) * step


def _begin_anew() -> None:
    global _pool  # noqa: PLW0603
    _pool = _Pool()


os.register_at_fork(after_in_child=_begin_anew)  # another thread may have held the lock
