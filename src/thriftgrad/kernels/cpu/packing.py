"""Packing of symbols into bytes and back, as ``reference.pack`` does it, for alphabets of 2 to 256."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from thriftgrad.kernels.cpu.memory import load_word, store_word
from thriftgrad.kernels.cpu.settings import COMPILED, U

B = np.uint8
POWERS = U(81 | 27 << 8 | 9 << 16 | 3 << 24 | 1 << 32)
"""Of five symbols in a word, times this word, the fifth byte is their number in base 3, and no byte below overflows."""

BATCH = 64
"""Words that are computed at once."""

FIVE = U((1 << 40) - 1)


@njit(**COMPILED)
def width_bits(alphabet: Any) -> Any:
    """Bits of a symbol; 0 for the alphabet of three, whose symbols go five to a byte."""
    width = U(0)
    while alphabet != U(3) and (U(1) << width) < U(alphabet):
        width += U(1)
    return width


@njit(**COMPILED)
def nbytes(n: Any, width: Any) -> Any:
    """Bytes that n symbols take."""
    return (n * width + U(7)) // U(8) if width > U(0) else (n + U(4)) // U(5)


@njit(**COMPILED)
def pack_symbols(symbols: Any, at: Any, n: Any, width: Any, stream: Any, to: Any) -> None:
    """symbols[at:at + n], uint8, to the bytes from ``to`` on; n is a multiple of a chunk but at the end of a stream."""
    if width == U(0):
        _pack_fives(symbols, at, n, stream, to)
    elif U(8) % width != U(0):
        _pack_eights(symbols, at, n, width, stream, to)
    else:
        _pack_planes(symbols, at, n, width, stream, to)


@njit(**COMPILED)
def unpack_symbols(stream: Any, at: Any, n: Any, width: Any, symbols: Any, to: Any) -> None:
    """The inverse of ``pack_symbols``."""
    if width == U(0):
        _unpack_fives(stream, at, n, symbols, to)
    elif U(8) % width != U(0):
        _unpack_eights(stream, at, n, width, symbols, to)
    else:
        _unpack_planes(stream, at, n, width, symbols, to)


@njit(**COMPILED)
def _pack_planes(symbols: Any, at: Any, n: Any, width: Any, stream: Any, to: Any) -> None:
    """Chunks of 64 bytes: symbol ``plane`` of byte p is the chunk's element 64 plane + p. In the last, of less."""
    planes = U(8) // width
    whole = n // (U(64) * planes)
    for chunk in range(whole):
        o, s = to + chunk * U(64), at + chunk * U(64) * planes
        for p in range(U(8)):
            store_word(stream, o + p * U(8), load_word(symbols, s + p * U(8)))
        for plane in range(U(1), planes):
            shift = plane * width  # which takes no symbol out of its byte
            s += U(64)
            for p in range(U(8)):
                word = load_word(stream, o + p * U(8)) | load_word(symbols, s + p * U(8)) << shift
                store_word(stream, o + p * U(8), word)
    o, s, left = to + whole * U(64), at + whole * U(64) * planes, n - whole * U(64) * planes
    size = (left + planes - U(1)) // planes
    for p in range(size):
        byte = U(0)
        for plane in range(planes):
            i = plane * size + p
            if i < left:
                byte |= U(symbols[s + i]) << (plane * width)
        stream[o + p] = B(byte)


@njit(**COMPILED)
def _unpack_planes(stream: Any, at: Any, n: Any, width: Any, symbols: Any, to: Any) -> None:
    planes, mask, masks = U(8) // width, B((U(1) << width) - U(1)), _lowest(width, U(8))
    whole = n // (U(64) * planes)
    for chunk in range(whole):
        o, s = at + chunk * U(64), to + chunk * U(64) * planes
        for plane in range(planes):
            shift = plane * width
            for p in range(U(8)):
                word = load_word(stream, o + p * U(8)) >> shift
                store_word(symbols, s + p * U(8), word & masks)
            s += U(64)
    o, s, left = at + whole * U(64), to + whole * U(64) * planes, n - whole * U(64) * planes
    size = (left + planes - U(1)) // planes
    for i in range(left):
        symbols[s + i] = B(stream[o + i % size] >> (i // size * width)) & mask


@njit(**COMPILED)
def _lowest(width: Any, k: Any) -> Any:
    """A word in which the lowest ``width`` of every ``k`` bits are 1."""
    mask, ones = U(0), (U(1) << width) - U(1)
    for place in range(U(0), U(64), k):
        mask |= ones << place
    return mask


@njit(**COMPILED)
def _pack_eights(symbols: Any, at: Any, n: Any, width: Any, stream: Any, to: Any) -> None:
    """Eight symbols in ``width`` bytes: neighbours move together, then pairs, then fours, in many words at once.

    A word is written whole; what of it is not meant is overwritten by the next. The last ones go byte by byte.
    """
    one, two, four = _lowest(width, U(16)), _lowest(width * U(2), U(32)), _lowest(width * U(4), U(64))
    gap = U(8) - width
    words = np.empty(BATCH, np.uint64)
    groups = n // U(8)
    whole = groups - min(groups, U(2))
    for first in range(U(0), whole, U(BATCH)):
        count = min(U(BATCH), whole - first)
        for i in range(count):
            word = load_word(symbols, at + U(8) * (first + i))
            word = word & one | word >> gap & one << width
            word = word & two | word >> U(2) * gap & two << U(2) * width
            words[i] = word & four | word >> U(4) * gap & four << U(4) * width
        for i in range(count):
            store_word(stream, to + width * (first + i), words[i])
    for i in range(whole, (n + U(7)) // U(8)):
        word = U(0)
        count = min(U(8), n - U(8) * i)
        for k in range(count):
            word |= U(symbols[at + U(8) * i + k]) << (k * width)
        for k in range((count * width + U(7)) // U(8)):
            stream[to + width * i + k] = B(word >> (U(8) * k))


@njit(**COMPILED)
def _unpack_eights(stream: Any, at: Any, n: Any, width: Any, symbols: Any, to: Any) -> None:
    one, two, four = _lowest(width, U(16)), _lowest(width * U(2), U(32)), _lowest(width * U(4), U(64))
    gap, mask = U(8) - width, B((U(1) << width) - U(1))
    words = np.empty(BATCH, np.uint64)
    groups = n // U(8)
    whole = groups - min(groups, U(2))
    for first in range(U(0), whole, U(BATCH)):
        count = min(U(BATCH), whole - first)
        for i in range(count):
            words[i] = load_word(stream, at + width * (first + i))
        for i in range(count):
            word = words[i]
            word = word & four | (word & four << U(4) * width) << U(4) * gap
            word = word & two | (word & two << U(2) * width) << U(2) * gap
            word = word & one | (word & one << width) << gap
            store_word(symbols, to + U(8) * (first + i), word)
    for i in range(whole, (n + U(7)) // U(8)):
        word = U(0)
        count = min(U(8), n - U(8) * i)
        for k in range((count * width + U(7)) // U(8)):
            word |= U(stream[at + width * i + k]) << (U(8) * k)
        for k in range(count):
            symbols[to + U(8) * i + k] = B(word >> (k * width)) & mask


@njit(**COMPILED)
def _pack_fives(symbols: Any, at: Any, n: Any, stream: Any, to: Any) -> None:
    groups = n // U(5)
    whole = groups - min(groups, U(1))
    for i in range(whole):
        stream[to + i] = B(((load_word(symbols, at + U(5) * i) & FIVE) * POWERS) >> U(32))
    for i in range(whole, (n + U(4)) // U(5)):
        byte, power = U(0), U(1)
        for k in range(min(U(5), n - U(5) * i)):
            byte += U(symbols[at + U(5) * i + k]) * power
            power *= U(3)
        stream[to + i] = B(byte)


@njit(**COMPILED)
def _unpack_fives(stream: Any, at: Any, n: Any, symbols: Any, to: Any) -> None:
    """Quotients by 3, 9, 27 and 81 in the bytes of a word; less three times those of the next, they are digits."""
    groups = n // U(5)
    whole = groups - min(groups, U(1))
    for i in range(whole):
        byte = U(stream[at + i])
        high = (
            ((byte * U(57)) >> U(9)) << U(16) | ((byte * U(19)) >> U(9)) << U(24) | ((byte * U(203)) >> U(14)) << U(32)
        )
        word = byte | ((byte * U(171)) >> U(9)) << U(8) | high
        store_word(symbols, to + U(5) * i, word - U(3) * (word >> U(8)))
    for i in range(whole, (n + U(4)) // U(5)):
        byte = U(stream[at + i])
        for k in range(min(U(5), n - U(5) * i)):
            symbols[to + U(5) * i + k] = B(byte % U(3))
            byte //= U(3)
