"""Prefix codes of groups of symbols: their lengths, the table of these, and the streams; the definition, in NumPy.

A group of symbols is a number, the first symbol its highest digit. Codes are canonical: shorter ones first, equal ones
in the order of their groups, each one higher than the one before. The first bit of a code is its highest, and so is the
first one of a byte.

Groups go in blocks of 2**15. A block of at least 2**12 is cut into four streams of a quarter each, so that a decoder
has four things to do at a time; a shorter one is one stream. A stream begins on a whole byte, zeros fill the one
before. In front of all streams stand their lengths in bytes but for the last one's: 2 bytes each, little-endian. A
group that is alone needs no code, and there are no streams.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LONGEST_BITS = 14
"""Of a code: from any bit of a byte on, four of them fit a word of 64 bits; and a length fits four bits."""
MOST_GROUPS = 1 << 12
"""Different groups: with a length they fit 16 bits, so the table of all 2**14 beginnings of codes takes 32 KiB."""
MOST_SYMBOLS = 8
"""In a group: the bytes of a word of 64 bits."""
BLOCK = 1 << 15
SMALLEST_QUARTERED = 1 << 12
SIZE_BYTES = 2
"""Of the length of a stream: a quarter of a block takes at most 14336 bytes."""

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]


class Grouping(NamedTuple):
    """``size`` symbols make a group; they are ``lowest`` ... ``lowest + base - 1``, digits in that base.

    The last group is filled with the symbol ``filler``. base**size <= ``MOST_GROUPS``, size <= ``MOST_SYMBOLS``.
    """

    size: int
    lowest: int
    base: int
    filler: int

    @property
    def groups(self) -> int:
        """How many different ones there are."""
        return int(self.base**self.size)

    def number(self, symbols: int) -> int:
        """How many groups so many symbols make."""
        return -(-symbols // self.size)


def count_groups(symbols: Tensor, grouping: Grouping) -> Tensor:
    """How often each group occurs, int64[groups]; symbols: uint8[n] or int16[n], within the grouping."""
    return torch.from_numpy(np.bincount(_grouped(symbols, grouping), minlength=grouping.groups))


def code_lengths(weights: Tensor, longest: int = LONGEST_BITS) -> Tensor:
    """Lengths of the codes that make sum(weights * lengths) least while none exceeds ``longest`` bits, int64[m].

    weights: int64[m], >= 0, of which at most 2**longest are above 0, with a sum below 2**63 / m. Where the weight is 0
    the length is; a single code has one bit. By package-merge, Larmore and Hirschberg, 1990.

    >>> code_lengths(torch.tensor([8, 1, 0, 4, 3])).tolist()
    [1, 3, 0, 2, 3]
    """
    order, leaves = sorted_weights(weights)
    lengths = np.zeros(len(weights), np.int64)
    if len(leaves) < 2:
        lengths[order] = 1
        return torch.from_numpy(lengths)
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
    return torch.from_numpy(lengths)


def write_lengths(lengths: Tensor) -> Tensor:
    """The table, uint8: 4 bits for a group that occurs; 4 zeros and Elias's gamma code for a run of those that do not.

    A run is as long as it can be, and zeros fill the last byte.
    """
    entries, run = [], 0
    for length in [*lengths.tolist(), 1]:
        if length and run:
            entries.append((run, 4 + 2 * run.bit_length() - 1))
        if length:
            entries.append((length, 4))
        run = 0 if length else run + 1
    values, widths = np.array(entries[:-1], np.int64).reshape(-1, 2).T
    return torch.from_numpy(_joined(values, widths))


def read_lengths(stream: Tensor, size: int) -> tuple[Tensor, int] | None:
    """The table of ``size`` lengths at the front of a stream, and its bytes; None unless it is that of a whole code."""
    bits = iter(np.unpackbits(stream.numpy()[: 4 * size + 8]).tolist())

    def number(width: int) -> int:
        value = 0
        for _ in range(width):
            value = value << 1 | next(bits)
        return value

    lengths: list[int] = []
    used, run = 0, 0
    try:
        while len(lengths) < size:
            length = number(4)
            used += 4
            if length:
                lengths.append(length)
                run = 0
                continue
            more = 0
            while not number(1):
                more += 1
            if run or more > size.bit_length():
                return None
            run = 1 << more | number(more)
            used += 2 * more + 1
            lengths += [0] * run
        filler = number(-used % 8)
    except StopIteration:
        return None
    if len(lengths) > size or filler or not is_whole(np.array(lengths)):
        return None
    return torch.tensor(lengths), -(-used // 8)


def write_groups(head: Tensor, symbols: Tensor, grouping: Grouping, lengths: Tensor, bits: int) -> Tensor:
    """``head`` (uint8), and behind it the streams; bits: the sum of the lengths of all codes."""
    groups, widths = _grouped(symbols, grouping), lengths.numpy()
    if is_alone(widths):
        return head
    codes = canonical(widths)
    parts = [groups[low:high] for low, high in pairwise(cuts(len(groups)))]
    streams = [_joined(codes[part], widths[part]) for part in parts]
    sizes = np.array([len(stream) for stream in streams[:-1]], "<u2").view(np.uint8)
    return torch.cat((head, torch.from_numpy(np.concatenate((sizes, *streams)))))


def read_groups(stream: Tensor, count: int, grouping: Grouping, lengths: Tensor) -> Tensor | None:
    """``count`` symbols, uint8 (int16 if some exceed 255), from what ``write_groups`` put behind the head.

    None unless it is that of so many symbols, whole and with nothing behind it.
    """
    groups = _groups_of(stream.numpy(), grouping.number(count), lengths.numpy())
    if groups is None:
        return None
    values = members(grouping)[groups].reshape(-1)
    return torch.from_numpy(values[:count]) if (values[count:] == grouping.filler).all() else None


def cuts(total: int) -> Ints:
    """The first group of each stream, and the number of all groups behind them."""
    starts = np.arange(0, total, BLOCK)[:, None]
    sizes = np.minimum(total - starts, BLOCK)
    quarters = (starts + sizes * np.arange(4) // 4).reshape(-1)
    if len(starts) and sizes[-1, 0] < SMALLEST_QUARTERED:
        quarters = quarters[:-3]
    return np.append(quarters, total)


def byte_edges(stream: Bytes, total: int, lengths: Ints) -> Ints | None:
    """The first byte of each stream, and the number of all bytes; None if they cannot hold so many groups."""
    if is_alone(lengths):
        return np.zeros(1, np.int64) if not len(stream) else None
    sizes = np.diff(cuts(total))
    front = SIZE_BYTES * (len(sizes) - 1)
    if len(stream) < front:
        return None
    ends = front + np.cumsum(stream[:front].copy().view("<u2").astype(np.int64))
    edges = np.concatenate(([front], ends, [len(stream)]))
    return edges if (8 * np.diff(edges) >= sizes * lengths[lengths > 0].min()).all() else None


def members(grouping: Grouping) -> NDArray[np.uint8 | np.int16]:
    """The symbols of each group, uint8 or int16 [groups, size]."""
    powers = grouping.base ** np.arange(grouping.size - 1, -1, -1)
    digits = np.arange(grouping.groups)[:, None] // powers % grouping.base
    return (grouping.lowest + digits).astype(np.uint8 if grouping.lowest + grouping.base <= 256 else np.int16)


def sorted_weights(weights: Tensor) -> tuple[Ints, Ints]:
    """The groups of weights above 0 in the order of these, and the weights."""
    found = weights.numpy()
    used = np.flatnonzero(found)
    order = used[np.argsort(found[used], kind="stable")]
    return order, found[order]


def in_order(lengths: Ints) -> Ints:
    """Groups that have a code, in the order of their codes."""
    order = np.flatnonzero(lengths)
    return order[np.argsort(lengths[order], kind="stable")]


def canonical(lengths: Ints) -> Ints:
    """The code of each group as a number; 0 where there is none."""
    order = in_order(lengths)
    space = 1 << (LONGEST_BITS - lengths[order])
    codes = np.zeros(len(lengths), np.int64)
    codes[order] = (np.cumsum(space) - space) >> (LONGEST_BITS - lengths[order])
    return codes


def is_alone(lengths: Ints) -> bool:
    """Whether there is one group alone, which needs no bits."""
    return int(np.count_nonzero(lengths)) == 1


def is_whole(lengths: Ints) -> bool:
    """Whether every beginning of a stream is that of one code; or there is one alone, of one bit."""
    used = lengths[lengths > 0]
    if not len(used) or used.max() > LONGEST_BITS:
        return False
    return int((1 << (LONGEST_BITS - used)).sum()) == 1 << LONGEST_BITS or (len(used) == 1 and used[0] == 1)


def _grouped(symbols: Tensor, grouping: Grouping) -> Ints:
    filler = np.full(-len(symbols) % grouping.size, grouping.filler, np.int64)
    digits = np.concatenate((symbols.numpy().astype(np.int64), filler)).reshape(-1, grouping.size) - grouping.lowest
    return digits @ grouping.base ** np.arange(grouping.size - 1, -1, -1)


def _joined(values: Ints, widths: Ints) -> Bytes:
    """Numbers of so many bits each, highest bit first, one behind the other."""
    ends = np.repeat(np.cumsum(widths), widths)
    return np.packbits((np.repeat(values, widths) >> (ends - 1 - np.arange(len(ends)))).astype(np.uint8) & 1)


def _groups_of(stream: Bytes, total: int, widths: Ints) -> Ints | None:
    edges, order = byte_edges(stream, total, widths), in_order(widths)
    if edges is None or is_alone(widths):
        return None if edges is None else np.full(total, order[0])
    table = np.repeat(order, 1 << (LONGEST_BITS - widths[order]))
    groups = np.empty(total, np.int64)
    for (low, high), (start, end) in zip(pairwise(cuts(total)), pairwise(edges), strict=True):
        found = _walked(stream[start:end], high - low, table, widths)
        if found is None:
            return None
        groups[low:high] = found
    return groups


def _walked(stream: Bytes, count: int, table: Ints, widths: Ints) -> Ints | None:
    """So many groups from one stream, by a table of all beginnings of codes; None if it does not hold just them."""
    bits = np.concatenate((np.unpackbits(stream), np.zeros(LONGEST_BITS, np.uint8)))
    windows = np.zeros(8 * len(stream) + 1, np.int64)
    for i in range(LONGEST_BITS):
        windows = windows << 1 | bits[i : i + len(windows)]
    found = table[windows]
    steps, places, at = widths[found].tolist(), [], 0
    for _ in range(count):
        if at >= len(steps):
            return None
        places.append(at)
        at += steps[at]
    whole = 0 <= 8 * len(stream) - at < 8 and not bits[at:].any()
    return found[np.array(places, np.int64)] if whole else None
