"""Packing of symbols into bytes and back."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from thriftgrad.kernels.cpu.settings import COMPILED, U

B = np.uint8
W = np.uint32


@njit(**COMPILED)
def width_bits(alphabet: Any) -> Any:
    """Bits of a symbol; 0 for the alphabet of three, whose symbols go five to a byte."""
    width = U(0)
    while alphabet != U(3) and (U(1) << width) < U(alphabet):
        width += U(1)
    return width


@njit(**COMPILED)
def nbytes(n: Any, width: Any) -> Any:
    """Bytes that n symbols take, all but the last few of them in whole chunks."""
    return (n * width + U(7)) // U(8) if width > U(0) else (n + U(4)) // U(5)


@njit(**COMPILED)
def pack_symbols(symbols: Any, at: Any, n: Any, width: Any, stream: Any, to: Any) -> None:
    """symbols[at:at + n], uint8, to the bytes from ``to`` on; n is a multiple of a chunk but at the end of a stream.

    Symbols behind the n-th, up to the next multiple of 8, must exist and be zero.
    """
    if width == U(8):
        for p in range(n):
            stream[to + p] = symbols[at + p]
    elif width == U(4):
        whole = n // U(128)
        for chunk in range(whole):
            for p in range(U(64)):
                s = at + chunk * U(128) + p
                stream[to + chunk * U(64) + p] = symbols[s] | B(symbols[s + U(64)] << B(4))
        _pack_planes(symbols, at + whole * U(128), n - whole * U(128), width, stream, to + whole * U(64))
    elif width == U(2):
        whole = n // U(256)
        for chunk in range(whole):
            for p in range(U(64)):
                s = at + chunk * U(256) + p
                low = symbols[s] | B(symbols[s + U(64)] << B(2))
                high = B(symbols[s + U(128)] << B(4)) | B(symbols[s + U(192)] << B(6))
                stream[to + chunk * U(64) + p] = low | high
        _pack_planes(symbols, at + whole * U(256), n - whole * U(256), width, stream, to + whole * U(64))
    elif width == U(1):
        whole = n // U(512)
        for chunk in range(whole):
            for p in range(U(64)):
                s = at + chunk * U(512) + p
                byte = symbols[s] | B(symbols[s + U(64)] << B(1))
                byte |= B(symbols[s + U(128)] << B(2)) | B(symbols[s + U(192)] << B(3))
                byte |= B(symbols[s + U(256)] << B(4)) | B(symbols[s + U(320)] << B(5))
                byte |= B(symbols[s + U(384)] << B(6)) | B(symbols[s + U(448)] << B(7))
                stream[to + chunk * U(64) + p] = byte
        _pack_planes(symbols, at + whole * U(512), n - whole * U(512), width, stream, to + whole * U(64))
    elif width == U(0):
        for i in range(n // U(5)):
            s = at + U(5) * i
            low = symbols[s] + B(3) * symbols[s + U(1)] + B(9) * symbols[s + U(2)]
            stream[to + i] = B(low + B(27) * symbols[s + U(3)] + B(81) * symbols[s + U(4)])
        power, byte = U(1), U(0)
        for i in range(n // U(5) * U(5), n):
            byte += U(symbols[at + i]) * power
            power *= U(3)
        if power > U(1):
            stream[to + n // U(5)] = B(byte)
    else:
        _pack_bits(symbols, at, n, width, stream, to)


@njit(**COMPILED)
def _pack_planes(symbols: Any, at: Any, n: Any, width: Any, stream: Any, to: Any) -> None:
    """A chunk of less than 64 bytes: its symbols, filled up with zeros, in as many planes as a byte has room for."""
    planes = U(8) // width
    size = (n + planes - U(1)) // planes
    for p in range(size):
        byte = U(0)
        for plane in range(planes):
            i = plane * size + p
            if i < n:
                byte |= U(symbols[at + i]) << (plane * width)
        stream[to + p] = B(byte)


@njit(**COMPILED)
def _pack_bits(symbols: Any, at: Any, n: Any, width: Any, stream: Any, to: Any) -> None:
    """Eight symbols in ``width`` bytes: of 3 bits, half of them at once in a word of 32."""
    whole = n // U(8)
    if width == U(3):
        for i in range(whole):
            s = at + U(8) * i
            low = W(symbols[s]) | W(W(symbols[s + U(1)]) << W(3)) | W(W(symbols[s + U(2)]) << W(6))
            middle = (
                W(W(symbols[s + U(3)]) << W(9)) | W(W(symbols[s + U(4)]) << W(12)) | W(W(symbols[s + U(5)]) << W(15))
            )
            word = low | middle | W(W(symbols[s + U(6)]) << W(18)) | W(W(symbols[s + U(7)]) << W(21))
            stream[to + U(3) * i] = B(word)
            stream[to + U(3) * i + U(1)] = B(word >> W(8))
            stream[to + U(3) * i + U(2)] = B(word >> W(16))
    else:
        for i in range(whole):
            word = U(0)
            for k in range(U(8)):
                word |= U(symbols[at + U(8) * i + k]) << (k * width)
            for k in range(width):
                stream[to + width * i + k] = B(word >> (U(8) * k))
    word = U(0)
    for k in range(n - U(8) * whole):
        word |= U(symbols[at + U(8) * whole + k]) << (k * width)
    for k in range(((n - U(8) * whole) * width + U(7)) // U(8)):
        stream[to + width * whole + k] = B(word >> (U(8) * k))


@njit(**COMPILED)
def unpack_symbols(stream: Any, at: Any, n: Any, width: Any, symbols: Any, to: Any) -> None:
    """The inverse of ``pack_symbols``."""
    if width == U(8):
        for p in range(n):
            symbols[to + p] = stream[at + p]
    elif width == U(4):
        whole = n // U(128)
        for chunk in range(whole):
            for p in range(U(64)):
                byte = stream[at + chunk * U(64) + p]
                symbols[to + chunk * U(128) + p] = byte & B(15)
                symbols[to + chunk * U(128) + p + U(64)] = byte >> B(4)
        _unpack_planes(stream, at + whole * U(64), n - whole * U(128), width, symbols, to + whole * U(128))
    elif width == U(2):
        whole = n // U(256)
        for chunk in range(whole):
            for p in range(U(64)):
                byte = stream[at + chunk * U(64) + p]
                s = to + chunk * U(256) + p
                symbols[s] = byte & B(3)
                symbols[s + U(64)] = (byte >> B(2)) & B(3)
                symbols[s + U(128)] = (byte >> B(4)) & B(3)
                symbols[s + U(192)] = byte >> B(6)
        _unpack_planes(stream, at + whole * U(64), n - whole * U(256), width, symbols, to + whole * U(256))
    elif width == U(1):
        whole = n // U(512)
        for chunk in range(whole):
            for plane in range(U(8)):
                for p in range(U(64)):
                    byte = stream[at + chunk * U(64) + p]
                    symbols[to + chunk * U(512) + plane * U(64) + p] = (byte >> B(plane)) & B(1)
        _unpack_planes(stream, at + whole * U(64), n - whole * U(512), width, symbols, to + whole * U(512))
    elif width == U(0):
        for i in range((n + U(4)) // U(5)):
            byte = stream[at + i]
            for k in range(min(U(5), n - U(5) * i)):
                symbols[to + U(5) * i + k] = byte % B(3)
                byte //= B(3)
    else:
        for i in range((n + U(7)) // U(8)):
            word = U(0)
            for k in range(min(width, nbytes(n, width) - width * i)):
                word |= U(stream[at + width * i + k]) << (U(8) * k)
            for k in range(min(U(8), n - U(8) * i)):
                symbols[to + U(8) * i + k] = B(word >> (k * width)) & B((U(1) << width) - U(1))


@njit(**COMPILED)
def _unpack_planes(stream: Any, at: Any, n: Any, width: Any, symbols: Any, to: Any) -> None:
    planes = U(8) // width
    size = (n + planes - U(1)) // planes
    for i in range(n):
        symbols[to + i] = B(stream[at + i % size] >> B(i // size * width)) & B((U(1) << width) - U(1))
