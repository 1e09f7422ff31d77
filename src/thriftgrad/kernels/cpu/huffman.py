"""Prefix codes of groups of symbols, compiled: about two cycles a group to write it, three to read it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from thriftgrad.kernels import prefix_codes, recycled
from thriftgrad.kernels.cpu import code_tables
from thriftgrad.kernels.cpu import huffman_loops as loops
from thriftgrad.kernels.cpu.arrays import array
from thriftgrad.kernels.cpu.huffman_loops import LENGTH_BITS
from thriftgrad.kernels.cpu.threads import over_slices
from thriftgrad.kernels.prefix_codes import BLOCK, LONGEST_BITS, SIZE_BYTES, Grouping

SLACK = 8
"""Bytes behind the last one of a stream that a word may be written to."""


def count_groups(symbols: Tensor, grouping: Grouping) -> Tensor:
    """``prefix_codes.count_groups``."""
    values = array(symbols)
    parts: list[Any] = []

    def count(low: int, high: int) -> None:
        counts = np.zeros((4, grouping.groups), np.int64)
        loops.count(values, grouping, low, high, counts)
        parts.append(counts)

    over_slices(count, grouping.number(len(values)), BLOCK)
    return torch.from_numpy(np.sum(parts, (0, 1)))


def code_lengths(weights: Tensor, longest: int = LONGEST_BITS) -> Tensor:
    """``prefix_codes.code_lengths``."""
    order, leaves = prefix_codes.sorted_weights(weights)
    lengths = np.zeros(len(weights), np.int64)
    lengths[order] = code_tables.package_merge(leaves, longest) if len(leaves) > 1 else 1
    return torch.from_numpy(lengths)


def write_lengths(lengths: Tensor) -> Tensor:
    """``prefix_codes.write_lengths``."""
    if lengths.dtype != torch.int64:
        return prefix_codes.write_lengths(lengths)
    table = np.zeros(2 * len(lengths) + 8, np.uint8)  # a run takes at most 5 bits for an absent group, and 4 behind it
    return torch.from_numpy(table[: code_tables.write_table(array(lengths), table)])


def read_lengths(stream: Tensor, size: int) -> tuple[Tensor, int] | None:
    """``prefix_codes.read_lengths``."""
    if stream.dtype != torch.uint8:
        return prefix_codes.read_lengths(stream, size)
    lengths = np.zeros(size, np.int64)
    nbytes = code_tables.read_table(array(stream), lengths)
    return (torch.from_numpy(lengths), nbytes) if nbytes >= 0 and prefix_codes.is_whole(lengths) else None


def write_groups(head: Tensor, symbols: Tensor, grouping: Grouping, lengths: Tensor, bits: int) -> Tensor:
    """``prefix_codes.write_groups``."""
    if head.dtype != torch.uint8 or lengths.dtype != torch.int64:
        return prefix_codes.write_groups(head, symbols, grouping, lengths, bits)
    widths = lengths.numpy()
    if prefix_codes.is_alone(widths):
        return head
    values, total = array(symbols), grouping.number(len(symbols))
    table = (prefix_codes.canonical(widths) << int(LENGTH_BITS) | widths).astype(np.uint32)
    count = len(prefix_codes.cuts(total)) - 1
    front = len(head) + SIZE_BYTES * (count - 1)
    out = recycled.empty(front + bits // 8 + count + SLACK, torch.uint8)
    sizes = np.empty(count, np.int64)
    others: dict[int, tuple[Tensor, int]] = {}

    def write(low: int, high: int) -> None:
        # The first slice writes where its streams will stand; the others cannot know where that will be.
        most = (high - low) * int(widths.max()) // 8 + count + SLACK
        mine = out[front:] if low == 0 else recycled.empty(most, torch.uint8)
        others[low] = mine, loops.write(values, grouping, low, high, table, mine.numpy(), sizes)

    over_slices(write, total, BLOCK)
    end = front
    for low in sorted(others):
        mine, nbytes = others[low]
        if low:
            out[end : end + nbytes] = mine[:nbytes]
        end += nbytes
    out[: len(head)] = head
    out[len(head) : front] = torch.from_numpy(sizes[:-1].astype("<u2").view(np.uint8))
    return out[:end]


def read_groups(stream: Tensor, count: int, grouping: Grouping, lengths: Tensor) -> Tensor | None:
    """``prefix_codes.read_groups``."""
    if stream.dtype != torch.uint8 or lengths.dtype != torch.int64:
        return prefix_codes.read_groups(stream, count, grouping, lengths)
    widths, total, coded = lengths.numpy(), grouping.number(count), array(stream)
    edges = prefix_codes.byte_edges(coded, total, widths)
    if edges is None:
        return None
    order, symbols_of = prefix_codes.in_order(widths), torch.from_numpy(prefix_codes.members(grouping))
    symbols = recycled.empty(total * grouping.size, symbols_of.dtype)
    if prefix_codes.is_alone(widths):
        symbols.view(total, grouping.size).copy_(symbols_of[order[0]])
    else:
        longest = int(widths.max())
        table = np.repeat(order << int(LENGTH_BITS) | widths[order], 1 << (longest - widths[order])).astype(np.uint16)
        arrays = _words(symbols_of), symbols.numpy().view(np.uint16) if grouping.size == 2 else symbols.numpy()
        good: list[bool] = []

        def read(low: int, high: int) -> None:
            good.append(loops.read(coded, edges, table, longest, low, high, grouping, *arrays))

        over_slices(read, total, BLOCK)
        if not all(good):
            return None
    return symbols[:count] if (symbols[count:] == grouping.filler).all() else None


def _words(symbols_of: Tensor) -> Any:
    """The symbols of each group as one word, the first one highest; of use for those of 3 to 8 symbols."""
    groups, size = symbols_of.shape
    words = np.zeros((groups, 8), np.uint8)
    words[:, 8 - size :] = symbols_of.numpy()[:, ::-1] if size > 2 else 0
    return words.view(np.uint64)[:, 0]
