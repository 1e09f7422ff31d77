"""Huffman codes of groups of symbols."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from thriftgrad.core import PayloadError, TensorSpec
from thriftgrad.wire.coders.bits import BitReader, BitWriter, Bytes, Ints, Words, floor_log2
from thriftgrad.wire.coders.coder import Coder
from thriftgrad.wire.coders.symbols import (
    alphabet_of,
    model_of,
    packed,
    packed_bytes,
    prefix_bytes,
    split,
    stream_of,
    tensor_of,
    unpacked,
    values_of,
)

LONGEST_BITS = 15
"""Of a code from counts: its length fits four bits."""
LONGEST_MODEL_BITS = 28
"""Of a code from a model, where every group gets one, however improbable; and of probabilities as integers."""
QUICK_BITS = 15
"""Of the codes that a table decodes; longer ones, which are rare, are searched for."""
MOST_GROUPS = 1 << LONGEST_BITS
"""Different groups of symbols, each of which may get a code."""


@dataclass(frozen=True, repr=False)
class Huffman(Coder):
    """The shortest prefix code of groups of symbols, canonical, no code longer than 15 bits (28 from a model).

    A group is as many symbols as pay, while alphabet**group <= 2**15: so a symbol may take less than a bit. A group
    takes H <= bits < H + 1 on average, H its entropy, apart from that limit and the table. The probabilities are the
    carrier's own (``TensorSpec.probabilities``) if it has some, and no table travels; every symbol gets a code,
    whatever they say. Otherwise they are the counts in this tensor, and the code lengths travel in front: 4 bits for a
    group that occurs, 4 bits and a gamma code for a run of those that do not.

    The first byte is the size of a group. It is 0 where packing to a fixed width is shorter (always for alphabets above
    2**15), so a stream is at most one byte longer than packed symbols.

    Huffman, A Method for the Construction of Minimum-Redundancy Codes, 1952; the limit by package-merge, Larmore and
    Hirschberg, 1990. Faghri et al. (2020, arXiv:2010.12460) code single symbols.

    >>> import torch; from thriftgrad import TensorSpec
    >>> rare = torch.ones(1000, dtype=torch.uint8); rare[::50] = 2
    >>> len(Huffman().encode(rare, TensorSpec((1000,), torch.uint8, alphabet=3, zero=1)))  # 200 bytes packed
    34
    """

    def encode(self, symbols: Tensor, spec: TensorSpec) -> Tensor:
        values, alphabet, model = values_of(symbols, spec, self), alphabet_of(spec, self), model_of(spec, self)
        least, body, head = 8 * packed_bytes(len(values), alphabet), None, 0
        for group in group_sizes(alphabet):
            groups = _grouped(values, group, alphabet, spec.zero or 0)
            counts = np.bincount(groups, minlength=alphabet**group)
            lengths = code_lengths(counts) if model is None else model_lengths(model, group)
            table_bits = _table_bits(lengths) if model is None else 0
            bits = table_bits + (0 if _alone(lengths) else int(counts @ lengths))
            if bits < least:
                least, head, body = bits, group, (groups, lengths)
        coded = packed(values, alphabet) if body is None else _write_codes(*body, table=model is None)
        return stream_of(np.concatenate((np.array([head], np.uint8), coded)), len(values), spec, symbols)

    def decode(self, stream: Tensor, spec: TensorSpec) -> Tensor:
        alphabet, model = alphabet_of(spec, self), model_of(spec, self)
        count, coded = split(stream, spec)
        if not len(coded):
            raise PayloadError("payload: the stream has no first byte, the size of a group; it was truncated.")
        group, body = int(coded[0]), coded[1:]
        if not group:
            return tensor_of(unpacked(body, count, alphabet), spec)
        if group not in group_sizes(alphabet) or not count:
            raise PayloadError(f"payload: groups of {group} symbols cannot be, with {count} of {alphabet} kinds.")
        reader = BitReader(body)
        lengths = _read_table(reader, alphabet**group) if model is None else model_lengths(model, group)
        groups = _read_codes(reader, -(-count // group), lengths)
        reader.finish()
        values = _ungrouped(groups, group, alphabet)
        if (values[count:] != (spec.zero or 0)).any():
            raise PayloadError("payload: the last group is not filled as it should be; it was altered on the way.")
        return tensor_of(values[:count], spec)

    def limit_bytes(self, spec: TensorSpec) -> int:
        return prefix_bytes(spec) + 1 + packed_bytes(spec.numel, alphabet_of(spec, self))


def code_lengths(weights: Sequence[float] | NDArray[Any], longest: int = LONGEST_BITS) -> Ints:
    """Lengths of the codes that make sum(weights * lengths) least while none exceeds ``longest`` bits.

    weights: probabilities or counts, at most 2**longest of them above 0; the length is 0 where the weight is. A single
    symbol gets one bit.

    >>> code_lengths([8, 1, 0, 4, 3]).tolist()
    [1, 3, 0, 2, 3]
    """
    weights = np.asarray(weights)
    used = np.flatnonzero(weights)
    order = used[np.argsort(weights[used], kind="stable")]
    leaves, lengths = weights[order], np.zeros(len(weights), np.int64)
    if len(leaves) < 2:
        lengths[order] = 1
        return lengths
    levels, packages = [], leaves[:0]
    for _ in range(longest):
        merged = np.concatenate((leaves, packages))
        rank = np.argsort(merged, kind="stable")
        levels.append(rank < len(leaves))
        packages = merged[rank][: len(merged) // 2 * 2].reshape(-1, 2).sum(1)
    take = 2 * len(leaves) - 2
    for is_leaf in reversed(levels):
        leaf_count = int(np.count_nonzero(is_leaf[:take]))  # the lightest ones, so the first of the order
        lengths[order[:leaf_count]] += 1
        take = 2 * (take - leaf_count)
    return lengths


def expected_bits(probabilities: Sequence[float], group: int = 1) -> float:
    """Bits a symbol takes on average if symbols are independent, coded in groups with a model.

    >>> expected_bits([0.05, 0.9, 0.05]), round(expected_bits([0.05, 0.9, 0.05], group=4), 3)
    (1.1, 0.592)
    """
    joint = _joint(np.asarray(probabilities) / math.fsum(probabilities), group)
    return float(joint @ model_lengths(tuple(probabilities), group)) / group


@lru_cache(maxsize=64)
def model_lengths(probabilities: tuple[float, ...], group: int) -> Ints:
    """Code lengths of groups of independent symbols. Every group gets a code, however improbable."""
    joint = _joint(np.asarray(probabilities) / math.fsum(probabilities), group)
    weights = np.maximum(np.rint(joint * (1 << LONGEST_MODEL_BITS)), 1).astype(np.int64)
    lengths = code_lengths(weights, LONGEST_MODEL_BITS)
    lengths.flags.writeable = False  # it is shared
    return lengths


def group_sizes(alphabet: int) -> range:
    """How many symbols a group may have; empty for large alphabets."""
    most = 0
    while alphabet ** (most + 1) <= MOST_GROUPS and most < LONGEST_BITS:
        most += 1
    return range(1, most + 1)


def canonical(lengths: Ints) -> NDArray[np.uint64]:
    """The codes: shorter ones first, equal ones in the order of their symbols, each one higher than the one before."""
    order, ends = _in_order(lengths)
    codes = np.zeros(len(lengths), np.uint64)
    free = LONGEST_MODEL_BITS - lengths[order]
    codes[order] = (ends - (1 << free)) >> free
    return codes


def _in_order(lengths: Ints) -> tuple[Ints, Ints]:
    """Symbols in the order of their codes, and where among 2**28 windows those that begin with each one's code end."""
    order = np.flatnonzero(lengths)
    order = order[np.argsort(lengths[order], kind="stable")]
    return order, np.cumsum(1 << (LONGEST_MODEL_BITS - lengths[order]))


def _joint(probabilities: NDArray[np.float64], group: int) -> NDArray[np.float64]:
    """Of all groups of independent symbols, the first symbol changing slowest."""
    joint = np.ones(1)
    for _ in range(group):
        joint = np.multiply.outer(joint, probabilities).reshape(-1)
    return joint


def _grouped(values: Ints, group: int, alphabet: int, filler: int) -> Ints:
    """Each group of symbols as one number, its digits in base ``alphabet``."""
    digits = np.concatenate((values, np.full(-len(values) % group, filler, np.int64))).reshape(-1, group)
    groups = digits[:, 0].copy()
    for i in range(1, group):
        groups *= alphabet
        groups += digits[:, i]
    return groups


def _ungrouped(groups: NDArray[Any], group: int, alphabet: int) -> Ints:
    powers = alphabet ** np.arange(group - 1, -1, -1)
    digits = np.arange(alphabet**group)[:, None] // powers % alphabet
    values: Ints = digits[groups].reshape(-1)
    return values


def _alone(lengths: Ints) -> bool:
    """Whether there is one symbol alone, which needs no bits."""
    return int(np.count_nonzero(lengths)) == 1


def _runs(lengths: Ints) -> tuple[Ints, Ints, Ints]:
    """The table as its codes: values, widths and leading zeros. A run of n absent groups is 0000 and gamma(n)."""
    used = np.flatnonzero(lengths)
    absent = np.diff(np.concatenate(([-1], used, [len(lengths)]))) - 1  # before each used one, and at the end
    m = floor_log2(absent)
    values = np.stack((absent, np.append(lengths[used], 0)), 1).reshape(-1)
    widths = np.stack((m + 1, np.append(np.full(len(used), 4), 0)), 1).reshape(-1)
    zeros = np.stack((4 + m, np.zeros_like(m)), 1).reshape(-1)
    return values[values > 0], widths[values > 0], zeros[values > 0]


def _table_bits(lengths: Ints) -> int:
    _, widths, zeros = _runs(lengths)
    return int(widths.sum() + zeros.sum())


def _write_codes(groups: Ints, lengths: Ints, table: bool) -> Bytes:
    writer = BitWriter()
    if table:
        writer.write(*_runs(lengths))
    if not _alone(lengths):
        writer.write(canonical(lengths)[groups], lengths[groups])
    return writer.finish()


def _read_table(reader: BitReader, size: int) -> Ints:
    lengths, filled, run = np.zeros(size, np.int64), 0, 0
    while filled < size:
        length = reader.number(4)
        if length:
            lengths[filled] = length
            filled, run = filled + 1, 0
            continue
        if run:
            raise PayloadError("payload: the table of code lengths has two runs where one would do; it was altered.")
        bits = 1
        while not reader.number(1):
            bits += 1
            if bits > size.bit_length():
                raise PayloadError("payload: the table of code lengths has a run without end; it was altered.")
        run = 1 << (bits - 1) | reader.number(bits - 1)
        filled += run
    space = int((1 << (LONGEST_BITS - lengths[lengths > 0])).sum())
    complete = space == 1 << LONGEST_BITS or (_alone(lengths) and lengths.max() == 1)
    if filled > size or not complete:
        raise PayloadError("payload: the table of code lengths is that of no complete code; it was altered on the way.")
    return lengths


def _read_codes(reader: BitReader, count: int, lengths: Ints) -> Ints:
    order, ends = _in_order(lengths)
    if len(order) == 1:
        return np.full(count, order[0])
    short = order[lengths[order] <= QUICK_BITS]  # the first ones of the order
    quick = np.repeat(short, 1 << (QUICK_BITS - lengths[short]))
    quick = np.concatenate((quick, np.full((1 << QUICK_BITS) - len(quick), -1)))
    quick_steps = np.where(quick < 0, 0, lengths[quick]).astype(np.uint8)

    def searched(windows: Words) -> Ints:
        return order[np.searchsorted(ends, (windows >> np.uint64(64 - LONGEST_MODEL_BITS)).astype(np.int64), "right")]

    def steps(windows: Words) -> Bytes:
        found: Bytes = quick_steps[windows >> np.uint64(64 - QUICK_BITS)]
        long = np.flatnonzero(found == 0)
        found[long] = lengths[searched(windows[long])]
        return found

    groups, filled = np.empty(min(count, reader.left), np.int64), 0
    for starts in reader.starts(count, steps):
        windows = reader.windows(starts)
        part = quick[windows >> np.uint64(64 - QUICK_BITS)]
        long = np.flatnonzero(part < 0)
        part[long] = searched(windows[long])
        groups[filled : filled + len(starts)] = part
        filled += len(starts)
    return groups
