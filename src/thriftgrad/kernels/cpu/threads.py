"""One small pool of threads that drives kernels over slices of a vector.

Numba's own layers are not used: its workqueue aborts when two threads call it, its OpenMP one dies after a fork.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import torch

SMALLEST_SLICE = 1 << 16
"""Elements below which another thread costs more than it saves."""

MOST = 64

_chosen: int | None = None
_pool: ThreadPoolExecutor | None = None


def threads() -> int:
    """How many threads a kernel may use: what ``set_threads`` said, else what torch uses, ``torch.get_num_threads``."""
    return _chosen or torch.get_num_threads()


def threads_set() -> int | None:
    """What ``set_threads`` was told last, to be put back; None if it is as many as torch."""
    return _chosen


def set_threads(count: int | None) -> None:
    """Let kernels use so many threads; None: as many as torch. ``ValueError`` for less than one."""
    global _chosen  # noqa: PLW0603  # the one setting there is
    if count is not None and count < 1:
        raise ValueError(f"kernels: threads must be at least 1, got {count}.")
    _chosen = count


def over_slices(function: Callable[[int, int], object], n: int, unit: int = 1) -> None:
    """Call ``function(low, high)`` on slices that cover range(n) and begin at multiples of ``unit``, all at once.

    The function must let go of the interpreter's lock, as a numba function with ``nogil`` does.
    """
    global _pool  # noqa: PLW0603
    units = -(-n // unit)
    count = max(1, min(threads(), units, n // SMALLEST_SLICE))
    cuts = [min(n, units * i // count * unit) for i in range(count + 1)]
    if count == 1:
        function(0, n)
        return
    if _pool is None:
        _pool = ThreadPoolExecutor(MOST, "thriftgrad-kernel")  # which starts them as they are needed
    others = [_pool.submit(function, *cut) for cut in pairwise(cuts[1:])]
    function(cuts[0], cuts[1])
    for other in others:
        other.result()


def _forget() -> None:
    global _pool  # noqa: PLW0603
    _pool = None


os.register_at_fork(after_in_child=_forget)  # a child has none of its parent's threads
