"""Elias's universal codes: short for small numbers, whatever the largest one is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from thriftgrad.core import PayloadError, TensorSpec
from thriftgrad.wire.coders.bits import BAD, BitReader, BitWriter, Bytes, Ints, Words, blocks, floor_log2
from thriftgrad.wire.coders.coder import Coder
from thriftgrad.wire.coders.symbols import alphabet_of, prefix_bytes, split, stream_of, tensor_of, values_of

Name = Literal["gamma", "delta", "omega"]
MOST_BITS = 45
"""Bits of the largest number that is coded: alphabets end at 2**44, and their last symbol is coded as itself plus 1."""


@dataclass(frozen=True, repr=False)
class Elias(Coder):
    """Integer symbols in Elias's gamma, delta or omega (recursive) code.

    Dense: code(|s - z| + 1) for each symbol s, where z stands for zero, then a sign bit for each s != z; code(s + 1)
    where no symbol stands for zero. Sparse: code(k + 1) for the number k of nonzeros, then code(gap) for the distance
    of each from the one before, the first from position -1, then k sign bits, then code(|s - z|) for each. No signs
    where z = 0, since nothing lies below.

    Bits for N >= 1, with m = floor(log2 N): gamma 2 m + 1; delta m + gamma(m + 1); omega m + 1 + omega(m), 1 for N = 1.

    The sparse form in omega is that of QSGD and NUQSGD (Ramezani-Kebrya et al., 2021, arXiv:1908.06077; Alistarh et
    al., 2017, arXiv:1610.02132), except that the papers do not say how the decoder knows the number of nonzeros.

    Raises ``ValueError`` for an unknown code, or a sparse form of symbols of which none is the zero.

    >>> import torch; from thriftgrad import TensorSpec
    >>> spec = TensorSpec((6,), torch.uint8, alphabet=15, zero=7)
    >>> stream = Elias().encode(torch.tensor([7, 7, 8, 7, 5, 7], dtype=torch.uint8), spec)  # 1 1 3 1 3 1 bits, 2 signs
    >>> stream.tolist(), Elias().decode(stream, spec).tolist()
    ([35, 16], [7, 7, 8, 7, 5, 7])
    """

    code: Name = "omega"
    sparse: bool = False

    def __post_init__(self) -> None:
        if self.code not in get_args(Name):
            raise ValueError(f"Elias: code must be 'gamma', 'delta' or 'omega', got {self.code!r}.")

    def encode(self, symbols: Tensor, spec: TensorSpec) -> Tensor:
        values, zero = values_of(symbols, spec, self), self._zero(spec)
        writer = BitWriter()
        offsets = values - zero
        if self.sparse:
            where = np.flatnonzero(offsets)
            offsets = offsets[where]
            self._write(writer, np.array([len(where) + 1]))
            self._write(writer, np.diff(where, prepend=-1))
        else:
            self._write(writer, np.abs(offsets) + 1)
            offsets = offsets[offsets != 0] if zero else offsets
        if zero:
            for part in blocks(offsets):
                writer.write(part < 0, np.ones(len(part), np.int64))
        if self.sparse:
            self._write(writer, np.abs(offsets))
        return stream_of(writer.finish(), len(values), spec, symbols)

    def decode(self, stream: Tensor, spec: TensorSpec) -> Tensor:
        alphabet, zero = alphabet_of(spec, self), self._zero(spec)
        count, coded = split(stream, spec)
        reader, largest = BitReader(coded), max(zero, alphabet - 1 - zero)
        if self.sparse:
            number = int(self._read(reader, 1, count + 1)[0]) - 1
            where = np.cumsum(self._read(reader, number, count)) - 1
            if number and where[-1] >= count:
                raise PayloadError(f"payload: a nonzero at position {where[-1]} of {count}; it was altered on the way.")
        else:
            values = self._read(reader, count, largest + 1) - 1
            where = np.flatnonzero(values)
        negative = where[reader.flags(len(where))] if zero else where[:0]
        if self.sparse:
            values = np.zeros(count, np.int64)
            values[where] = self._read(reader, len(where), largest)
        reader.finish()
        values[negative] *= -1
        values += zero
        low, high = (int(values.min()), int(values.max())) if count else (0, 0)
        if low < 0 or high >= alphabet:
            raise PayloadError(f"payload: symbol {low if low < 0 else high} outside the alphabet of {alphabet}.")
        return tensor_of(values, spec)

    def limit_bytes(self, spec: TensorSpec) -> int:
        alphabet, zero = alphabet_of(spec, self), self._zero(spec)
        count, largest, sign = spec.numel, max(zero, alphabet - 1 - zero), int(zero > 0)
        if self.sparse:
            each = sign + self._bits(max(largest, 1))
            # Gaps sum to at most count; a gap of g costs the most per position where its code has just grown.
            gaps = (1 << j for j in range(max(count, 1).bit_length()))
            most = self._bits(count + 1) + max(count * (self._bits(gap) + each) // gap for gap in gaps)
        else:
            most = count * (self._bits(largest + 1) + sign)
        return prefix_bytes(spec) + -(-most // 8)

    def _zero(self, spec: TensorSpec) -> int:
        if self.sparse and spec.zero is None:
            raise ValueError(
                f"{self!r} counts the gaps between nonzeros, and no symbol of its carrier stands for zero; "
                "use sparse=False, or a quantiser with a zero level."
            )
        return spec.zero or 0

    def _bits(self, number: int) -> int:
        """Length of the code of a number."""
        _, widths, zeros = _CODES[self.code].write(np.array([number]))
        return int(widths[0] + (0 if zeros is None else zeros[0]))

    def _write(self, writer: BitWriter, numbers: Ints) -> None:
        for part in blocks(numbers):
            writer.write(*_CODES[self.code].write(part))

    def _read(self, reader: BitReader, count: int, largest: int) -> Ints:
        """The next ``count`` numbers, none above ``largest``."""
        numbers, filled = np.empty(min(count, reader.left), np.int64), 0
        for starts in reader.starts(count, lambda windows: _quick_lengths(self.code, windows)):
            numbers[filled : filled + len(starts)] = part = _CODES[self.code].read(reader, starts)
            filled += len(starts)
            if int(part.max()) > largest:
                raise PayloadError(f"payload: a code says {int(part.max())} where at most {largest} is possible.")
        return numbers


Fields = tuple[NDArray[Any], Ints, Ints | None]


class _Code(NamedTuple):
    write: Callable[[Ints], Fields]  # numbers to value, width and leading zeros of their codes
    lengths: Callable[[Words], Ints]  # windows to the lengths of the codes they begin with, BAD if they do not
    read: Callable[[BitReader, Ints], Ints]  # positions at which codes begin to numbers


def _top(windows: Words, bits: Ints) -> Ints:
    """The highest bits of windows as integers."""
    return (windows >> (64 - bits).astype(np.uint64)).astype(np.int64)


def _write_gamma(numbers: Ints) -> Fields:
    m = floor_log2(numbers)
    return numbers, m + 1, m


def _gamma_lengths(windows: Words) -> Ints:
    m = 63 - floor_log2(windows)
    return np.where(m < MOST_BITS, 2 * m + 1, BAD)


def _read_gamma(reader: BitReader, starts: Ints) -> Ints:
    m = 63 - floor_log2(reader.windows(starts))
    return _top(reader.windows(starts + m), m + 1)


def _write_delta(numbers: Ints) -> Fields:
    m = floor_log2(numbers)
    zeros = floor_log2(m + 1)
    return ((m + 1) << m) | (numbers - (np.int64(1) << m)), zeros + 1 + m, zeros


def _delta_lengths(windows: Words) -> Ints:
    zeros = 63 - floor_log2(windows)
    bits = np.where(zeros < 6, _top(windows, 2 * np.minimum(zeros, 5) + 1), BAD)
    return np.where(bits <= MOST_BITS, 2 * zeros + bits, BAD)


def _read_delta(reader: BitReader, starts: Ints) -> Ints:
    windows = reader.windows(starts)
    zeros = 63 - floor_log2(windows)
    m = _top(windows, 2 * zeros + 1) - 1
    one = np.int64(1) << m
    return one | (_top(windows, 2 * zeros + 1 + m) & (one - 1))


def _write_omega(numbers: Ints) -> Fields:
    values, widths = np.zeros(len(numbers), np.int64), np.ones(len(numbers), np.int64)
    while (numbers > 1).any():
        m = floor_log2(numbers)
        more = numbers > 1
        values |= np.where(more, numbers << widths, 0)
        widths += np.where(more, m + 1, 0)
        numbers = np.maximum(m, 1)
    return values, widths, None


def _scan_omega(windows: Words) -> tuple[Ints, Ints]:
    """Lengths and numbers of the codes at the front of windows; length ``BAD`` where there is none."""
    lengths, numbers = np.zeros(len(windows), np.int64), np.ones(len(windows), np.int64)
    going = np.arange(len(windows))
    while len(going):
        rest = windows[going] << lengths[going].astype(np.uint64)
        more = rest >> np.uint64(63) == 1
        lengths[going] += 1
        going, rest = going[more], rest[more]
        group = numbers[going] + 1
        lengths[going] += group - 1
        possible = group <= MOST_BITS
        lengths[going[~possible]] = BAD
        going, group = going[possible], group[possible]
        numbers[going] = _top(rest[possible], group)
    return lengths, numbers


_CODES = {
    "gamma": _Code(_write_gamma, _gamma_lengths, _read_gamma),
    "delta": _Code(_write_delta, _delta_lengths, _read_delta),
    "omega": _Code(
        _write_omega,
        lambda windows: _scan_omega(windows)[0],
        lambda reader, starts: _scan_omega(reader.windows(starts))[1],
    ),
}


@cache
def _short_lengths(code: Name) -> Bytes:
    """Lengths of the codes that end within 16 bits, by those bits; 0 for longer ones."""
    lengths = _CODES[code].lengths(np.arange(1 << 16, dtype=np.uint64) << np.uint64(48))
    return np.where(lengths <= 16, lengths, 0).astype(np.uint8)


def _quick_lengths(code: Name, windows: Words) -> Bytes:
    lengths: Bytes = _short_lengths(code)[windows >> np.uint64(48)]
    long = np.flatnonzero(lengths == 0)
    lengths[long] = _CODES[code].lengths(windows[long])
    return lengths
