"""Huffman codes of groups of symbols."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thriftgrad import kernels
from thriftgrad.core import PayloadError, TensorSpec
from thriftgrad.kernels import Grouping
from thriftgrad.kernels.prefix_codes import LONGEST_BITS, MOST_GROUPS, MOST_SYMBOLS, is_alone
from thriftgrad.wire.coders.bits import Bytes
from thriftgrad.wire.coders.coder import Coder
from thriftgrad.wire.coders.symbols import (
    alphabet_of,
    flat_symbols,
    model_of,
    packed_bytes,
    prefix_bytes,
    prefix_of,
    shaped,
    split,
    unpacked,
)

COUNTED, KNOWN = 0x10, 0x20
"""The first byte is one of these and the size of a group; or 0, before symbols packed to a fixed width."""
LARGEST_SYMBOL = (1 << 15) - 1
"""Larger ones are packed; so are ranges of more symbols than there may be groups."""
NEAR = 1.01
"""Times the entropy: nothing longer is worth a search for something shorter."""
SAMPLE, RUNS = 1 << 16, 64
"""Symbols that say how large a group should be, and in how many places they lie."""

Floats = NDArray[np.float64]


class _Code(NamedTuple):
    """One way to write a tensor's symbols."""

    front: Tensor  # uint8: the first byte, and range and table if they travel
    grouping: Grouping
    lengths: Tensor
    bits: int  # of all codes

    @property
    def nbytes(self) -> float:
        return len(self.front) + self.bits / 8


@dataclass(frozen=True, repr=False)
class Huffman(Coder):
    """The shortest prefix code of groups of symbols, canonical, no code longer than 14 bits.

    A group is one to eight symbols, as many as pay while there are at most 2**12 different ones: so a symbol may take
    less than a bit. A group takes H <= bits < H + 1 on average, H its entropy, apart from that limit and the table.
    Where the carrier's probabilities are known (``TensorSpec.probabilities``) every symbol has a code, whatever they
    say, and no table travels. Otherwise, or if that is shorter, codes come from the counts in this tensor, and in front
    travel the lowest symbol and the range of them, a byte each (two for alphabets above 256), and the lengths of codes:
    4 bits for a group that occurs, 4 bits and a gamma code for a run of those that do not.

    The first byte is 16 and the size of a group with counts, 32 and the size with probabilities, or 0 where packing to
    a fixed width is shorter: so a stream is at most one byte longer than packed symbols. Long streams are cut into
    quarters of 2**15 groups, which costs less than a thousandth and makes decoding fast.

    Huffman, A Method for the Construction of Minimum-Redundancy Codes, 1952; the limit by package-merge, Larmore and
    Hirschberg, 1990. Faghri et al. (2020, arXiv:2010.12460) code single symbols.

    >>> import torch; from thriftgrad import TensorSpec
    >>> rare = torch.ones(1000, dtype=torch.uint8); rare[::50] = 2
    >>> len(Huffman().encode(rare, TensorSpec((1000,), torch.uint8, alphabet=3, zero=1)))  # 200 bytes packed
    35
    """

    def encode(self, symbols: Tensor, spec: TensorSpec) -> Tensor:
        values, low, high = flat_symbols(symbols, spec, self)
        alphabet, model = alphabet_of(spec, self), model_of(spec, self)
        prefix, nbytes = prefix_of(len(values), spec), packed_bytes(len(values), alphabet)
        if len(values) and high <= LARGEST_SYMBOL and high - low < MOST_GROUPS:
            values = values.to(torch.uint8 if high <= 255 else torch.int16)
            code = _shortest(values, low, high, spec.zero or 0, alphabet, model, nbytes)
            if code is not None:
                head = torch.cat((prefix, code.front))
                stream = kernels.write_groups(head, values, code.grouping, code.lengths, code.bits)
                if len(stream) <= len(prefix) + nbytes:
                    return stream.to(symbols.device)
        packed = kernels.pack(values, alphabet)
        return torch.cat((prefix, torch.zeros(1, dtype=torch.uint8), packed)).to(symbols.device)

    def decode(self, stream: Tensor, spec: TensorSpec) -> Tensor:
        alphabet, model = alphabet_of(spec, self), model_of(spec, self)
        count, coded = split(stream, spec)
        if not len(coded):
            raise PayloadError("payload: the stream has no first byte, the size of a group; it was truncated.")
        if not coded[0]:
            return shaped(torch.from_numpy(unpacked(coded[1:], count, alphabet)), spec)
        body = torch.from_numpy(coded)
        grouping = _announced(coded, spec.zero or 0, alphabet, model is not None) if count else None
        if grouping is None:
            raise PayloadError(
                f"payload: the first bytes {coded[:5].tolist()} announce no groups of {count} symbols of {alphabet} "
                "kinds; they were altered on the way, or written by an earlier version."
            )
        if coded[0] & KNOWN and model is not None:
            lengths, body = model_lengths(model, grouping.size), body[1:]
        else:
            body = body[1 + 2 * _bytes_of(alphabet) :]
            table = kernels.read_lengths(body, grouping.groups)
            if table is None:
                raise PayloadError(
                    "payload: the table of code lengths is that of no complete code; it was truncated or altered."
                )
            lengths, body = table[0], body[table[1] :]
        symbols = kernels.read_groups(body, count, grouping, lengths)
        if symbols is None:
            raise PayloadError(
                f"payload: {len(body)} bytes of codes are not those of {count} symbols; they were truncated, extended "
                "or altered on the way."
            )
        return shaped(symbols, spec)

    def limit_bytes(self, spec: TensorSpec) -> int:
        return prefix_bytes(spec) + 1 + packed_bytes(spec.numel, alphabet_of(spec, self))


def group_sizes(base: int, highest: int = 0) -> range:
    """How many symbols a group may have where there are so many different ones; of those above 255, one."""
    most = 1 if base <= MOST_GROUPS else 0
    while most and highest <= 255 and most < MOST_SYMBOLS and base ** (most + 1) <= MOST_GROUPS:
        most += 1
    return range(1, most + 1)


def expected_bits(probabilities: Sequence[float], group: int = 1) -> float:
    """Bits a symbol takes on average if symbols are independent, coded in groups with a model.

    >>> expected_bits([0.05, 0.9, 0.05]), round(expected_bits([0.05, 0.9, 0.05], group=4), 3)
    (1.1, 0.592)
    """
    joint = _joint(np.asarray(probabilities) / math.fsum(probabilities), group)
    return float(joint @ model_lengths(tuple(probabilities), group).numpy()) / group


@lru_cache(maxsize=64)
def model_lengths(probabilities: tuple[float, ...], group: int) -> Tensor:
    """Code lengths of groups of independent symbols, int64. Every group gets a code, however improbable."""
    joint = _joint(np.asarray(probabilities) / math.fsum(probabilities), group)
    return kernels.code_lengths(torch.from_numpy(np.maximum(np.rint(joint * (1 << 28)), 1).astype(np.int64)))


@lru_cache(maxsize=64)
def _model_group(probabilities: tuple[float, ...]) -> int:
    """The size of a group that takes the fewest bits on average; 0 for more symbols than there may be groups."""
    sizes = group_sizes(len(probabilities), len(probabilities) - 1)
    return min(sizes, key=lambda group: expected_bits(probabilities, group), default=0)


def _shortest(
    values: Tensor, low: int, high: int, zero: int, alphabet: int, model: tuple[float, ...] | None, packed_nbytes: int
) -> _Code | None:
    """The shortest code, as far as it is worth looking for; None if packing seems to be shorter."""
    base, count = high - low + 1, len(values)
    sample = values if count < 2 * SAMPLE else values[: count // RUNS * RUNS].view(RUNS, -1)[:, : SAMPLE // RUNS]
    shares = np.bincount(sample.reshape(-1).numpy(), minlength=high + 1)[low:] / sample.numel()
    entropy_bits = -count * float(shares[shares > 0] @ np.log2(shares[shares > 0]))
    if entropy_bits >= 8 * packed_nbytes:
        return None
    best = None
    if model is not None and (size := _model_group(model)):
        grouping = Grouping(size, 0, alphabet, zero)
        front = torch.tensor([KNOWN | size], dtype=torch.uint8)
        best = _code(front, grouping, model_lengths(model, size), kernels.count_groups(values, grouping))
        if best.bits <= NEAR * entropy_bits:
            return best
    grouping = Grouping(_likely_size(shares, high, count, entropy_bits), low, base, min(max(zero, low), high))
    counts = kernels.count_groups(values, grouping)
    lengths = kernels.code_lengths(counts)
    numbers = (number.to_bytes(_bytes_of(alphabet), "little") for number in (low, base - 1))
    front = torch.tensor([COUNTED | grouping.size, *b"".join(numbers)], dtype=torch.uint8)
    counted = _code(torch.cat((front, kernels.write_lengths(lengths))), grouping, lengths, counts)
    return counted if best is None or counted.nbytes < best.nbytes else best


def _code(front: Tensor, grouping: Grouping, lengths: Tensor, counts: Tensor) -> _Code:
    return _Code(front, grouping, lengths, 0 if is_alone(lengths.numpy()) else int(counts @ lengths))


def _likely_size(shares: Floats, highest: int, count: int, entropy_bits: float) -> int:
    """The size of a group that needs the fewest bits, table included, if symbols are independent."""
    best, least = 1, math.inf
    for size in group_sizes(len(shares), highest):
        if count / size >= least:  # a bit a group, at least
            continue
        expected = _joint(shares, size) * (count / size)
        lengths = kernels.code_lengths(torch.from_numpy(np.rint(expected).astype(np.int64))).numpy()
        coded = float(expected @ np.where(lengths, lengths, LONGEST_BITS))
        table = 5.0 * np.count_nonzero(lengths)
        if coded + table < least:
            best, least = size, coded + table
        if coded - entropy_bits <= max(table, (NEAR - 1) * entropy_bits):
            break  # the table of larger groups is at least twice as long
    return best


def _announced(coded: Bytes, zero: int, alphabet: int, known: bool) -> Grouping | None:
    """The grouping that the first bytes of a stream speak of; None if there is none such."""
    kind, size, width = int(coded[0]) & 0xF0, int(coded[0]) & 0x0F, _bytes_of(alphabet)
    if kind == KNOWN and known:
        return Grouping(size, 0, alphabet, zero) if size in group_sizes(alphabet, alphabet - 1) else None
    if kind != COUNTED or len(coded) < 1 + 2 * width:
        return None
    low, range_ = (int.from_bytes(coded[at : at + width].tobytes(), "little") for at in (1, 1 + width))
    high = low + range_
    if high > min(alphabet - 1, LARGEST_SYMBOL) or size not in group_sizes(range_ + 1, high):
        return None
    return Grouping(size, low, range_ + 1, min(max(zero, low), high))


def _bytes_of(alphabet: int) -> int:
    """Of a symbol in front of the table."""
    return 1 if alphabet <= 256 else 2


def _joint(probabilities: Floats, group: int) -> Floats:
    """Of all groups of independent symbols, the first symbol changing slowest."""
    joint = np.ones(1)
    for _ in range(group):
        joint = np.multiply.outer(joint, probabilities).reshape(-1)
    return joint
