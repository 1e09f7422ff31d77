"""The clock that everything here is measured with, but for the link."""

from __future__ import annotations

from time import perf_counter, thread_time

import torch


def now() -> float:
    """Seconds: of this thread's processor where torch computes on one thread, so that other work does not count, else
    of the wall.
    """
    return thread_time() if torch.get_num_threads() == 1 else perf_counter()
