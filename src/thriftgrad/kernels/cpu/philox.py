"""Philox4x32-10 in the layout of ``uniform16``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from thriftgrad.kernels.cpu.memory import prefetch
from thriftgrad.kernels.cpu.settings import CHUNK, COMPILED, LINE, U
from thriftgrad.kernels.philox import MASK as _MASK
from thriftgrad.kernels.philox import MULTIPLIERS, ROUNDS, WEYL

MASK, HALF = U(_MASK), U(32)
M0, M1 = U(MULTIPLIERS[0]), U(MULTIPLIERS[1])
W0, W1 = U(WEYL[0]), U(WEYL[1])


@njit(**COMPILED)
def fill_words(words: Any, first: Any, chunks: Any, seed: Any, x: Any, memory: Any, ahead: Any) -> None:
    """The 64 words of each chunk of 128 elements from the ``first`` on; asks for x and memory from ``ahead`` on.

    Word p of a chunk serves its elements p (low half) and 64 + p (high half). A 32-bit word lives in 64 bits whose
    upper half is anything: the multiplication reads the lower half alone (vpmuludq), so no lane is ever moved. The loop
    is bound by arithmetic, so this is the time in which memory can answer.
    """
    for chunk in range(chunks):
        for line in range(CHUNK // LINE):
            prefetch(x, ahead + chunk * U(CHUNK) + U(line * LINE))
            if memory is not None:
                prefetch(memory, ahead + chunk * U(CHUNK) + U(line * LINE))
        base = chunk * U(64)
        for i in range(U(16)):
            a, b, c, d = (first + chunk) * U(16) + i, U(0), U(0), U(0)
            low, high = seed & MASK, seed >> HALF
            for _ in range(ROUNDS):
                left, right = (a & MASK) * M0, (c & MASK) * M1
                a, b, c, d = (right >> HALF) ^ b ^ low, right, (left >> HALF) ^ d ^ high, left
                low, high = (low + W0) & MASK, (high + W1) & MASK
            words[base + i] = np.uint32(a)
            words[base + U(16) + i] = np.uint32(b)
            words[base + U(32) + i] = np.uint32(c)
            words[base + U(48) + i] = np.uint32(d)
