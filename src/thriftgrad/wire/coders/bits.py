"""Streams of codes of unequal length: written and read many at a time.

The first bit of a code is the highest of its value, and the first bit of a byte its highest (network order): so a
window of the stream, read as one integer, begins with the code, and one shift gives its value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thriftgrad.core import PayloadError

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]
Bytes = NDArray[np.uint8]

WINDOW = 57
"""Bits of a window that are certainly filled: eight bytes, from any bit of the first."""
BAD = 255
"""A code length that says: no code begins like this."""
BLOCK = 1 << 16
"""Elements, or bits, that are worked on at a time; what they need fits in a cache."""


def floor_log2(x: NDArray[Any]) -> Ints:
    """floor(log2 x), elementwise, exact for 0 < x < 2**64; below -1000 for x = 0."""
    x = x.astype(np.uint64, copy=False)
    # Without the bit after the leading one, rounding to a float cannot reach the next power of two.
    floats: Ints = (x & ~(x >> np.uint64(1))).astype(np.float64).view(np.int64)
    return (floats >> 52) - 1023


def blocks(x: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """x in runs of at most ``BLOCK`` elements."""
    return (x[i : i + BLOCK] for i in range(0, len(x), BLOCK))


class BitWriter:
    """Collects codes; ``finish`` gives their bytes, the last one filled with zeros."""

    def __init__(self) -> None:
        self._words: list[Words] = []
        self._last = np.uint64(0)  # a word that is not full yet
        self._used = 0  # its bits

    def write(self, values: NDArray[Any], widths: NDArray[Any], zeros: NDArray[Any] | None = None) -> None:
        """Append codes: for each one ``zeros`` zero bits, then the ``widths`` (1 ... 64) low bits of ``values``."""
        for i in range(0, len(values), BLOCK):
            part = slice(i, i + BLOCK)
            self._write(values[part], widths[part], None if zeros is None else zeros[part])

    def finish(self) -> Bytes:
        """All bytes written."""
        words = np.concatenate((*self._words, [self._last])).astype(">u8")
        return words.view(np.uint8)[: 8 * (len(words) - 1) + -(-self._used // 8)]

    def _write(self, values: NDArray[Any], widths: NDArray[Any], zeros: NDArray[Any] | None) -> None:
        values, widths = values.astype(np.uint64, copy=False), widths.astype(np.int64, copy=False)
        ends = self._used + np.cumsum(widths if zeros is None else widths + zeros)
        starts = ends - widths
        word, offset = starts >> 6, (starts & 63).astype(np.uint64)
        left = values << (64 - widths).astype(np.uint64)  # a shift by 64 gives 0
        here, beyond = left >> offset, left << (np.uint64(64) - offset)
        first = np.flatnonzero(np.diff(word, prepend=-1))  # of the codes that begin in the same word
        last = np.append(first[1:], len(word)) - 1
        out = np.zeros((int(ends[-1]) >> 6) + 2, np.uint64)
        out[word[first]] = np.bitwise_or.reduceat(here, first)
        out[word[last] + 1] |= beyond[last]
        out[0] |= self._last
        full, self._used = divmod(int(ends[-1]), 64)
        self._words.append(out[:full])
        self._last = out[full]


class BitReader:
    """Takes codes from the bytes of a stranger; anything that is no code raises ``PayloadError``."""

    def __init__(self, stream: Bytes) -> None:
        self.position = 0
        self.bits = 8 * len(stream)
        self._stream = stream
        padded = np.concatenate((stream, np.zeros(16, np.uint8)))
        # The eight bytes from each byte on, as integers: a view, byte by byte.
        self._eights = np.ndarray((len(padded) - 7,), ">u8", padded, strides=(1,))

    @property
    def left(self) -> int:
        """Bits not taken yet."""
        return self.bits - self.position

    def windows(self, positions: Ints) -> Words:
        """The bits from each position on, highest first: ``WINDOW`` of them, then zeros; zeros past the end."""
        eights: Words = self._eights[np.minimum(positions, self.bits) >> 3].astype(np.uint64)
        return eights << (positions & 7).astype(np.uint64)

    def starts(self, count: int, lengths: Callable[[Words], Bytes]) -> Iterator[Ints]:
        """Bit positions at which the next ``count`` codes begin, block by block.

        ``lengths``: of the code at the front of a window, 1 ... 254, or ``BAD``. It is asked about every bit of a
        block, so that walking from code to code takes a table look-up a step.
        """
        if count > self.left:
            raise PayloadError(f"payload: {count} codes cannot lie in the {self.left} bits that are left.")
        while count:
            if self.left <= 0:
                raise PayloadError(f"payload: the stream ends {count} codes too early; it was truncated.")
            base = self.position & ~7
            size = min(BLOCK, self.bits - base)
            eights = self._eights[base >> 3 : (base + size) >> 3].astype(np.uint64)
            steps = lengths((eights[:, None] << np.arange(8, dtype=np.uint64)).reshape(-1))
            walked, i = _walk(steps.tobytes(), self.position - base, size)
            if len(walked) > count:
                i = walked[count]
                del walked[count:]
            found = np.array(walked, np.int64)
            if (steps[found] == BAD).any():
                raise PayloadError("payload: a code has no end or names no symbol; it was altered on the way.")
            if i > self.bits - base:
                raise PayloadError("payload: the stream ends inside a code; it was truncated.")
            count -= len(walked)
            self.position = base + i
            yield base + found

    def flags(self, count: int) -> NDArray[np.bool_]:
        """The next ``count`` single bits."""
        if count > self.left:
            raise PayloadError(f"payload: {count} bits are needed where {self.left} are left; it was truncated.")
        first, skip = divmod(self.position, 8)
        self.position += count
        return np.unpackbits(self._stream[first : -(-self.position // 8)])[skip : skip + count].astype(np.bool_)

    def number(self, width: int) -> int:
        """The next ``width`` bits as an integer."""
        bits = self.flags(width)
        return int("".join("1" if bit else "0" for bit in bits) or "0", 2)

    def finish(self) -> None:
        """Refuse anything but the zero bits that fill the last byte."""
        if self.left >= 8:
            raise PayloadError(f"payload: {self.left // 8} bytes follow the last code; it was extended.")
        if self.flags(self.left).any():
            raise PayloadError("payload: the bits that fill the last byte are not zero; it was altered on the way.")


def _walk(steps: bytes, i: int, size: int) -> tuple[list[int], int]:
    walked: list[int] = []
    append = walked.append
    while i < size:
        append(i)
        i += steps[i]
    return walked, i
