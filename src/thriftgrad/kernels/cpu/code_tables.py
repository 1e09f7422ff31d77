"""Lengths of codes: the best ones, and the table in which they travel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from thriftgrad.kernels.cpu.settings import CACHED


@njit(**CACHED)
def package_merge(leaves: Any, longest: Any) -> Any:
    """Package-merge: lists of leaves and of pairs from the list before, both in order, become one list each time."""
    m = leaves.size
    is_leaf = np.empty((longest, 2 * m), np.bool_)
    merged, packages, pairs = np.empty(2 * m, np.int64), np.empty(m, np.int64), 0
    for level in range(longest):
        leaf, pair = 0, 0
        for i in range(m + pairs):
            from_leaves = pair == pairs or (leaf < m and leaves[leaf] <= packages[pair])
            merged[i] = leaves[leaf] if from_leaves else packages[pair]
            is_leaf[level, i] = from_leaves
            leaf, pair = leaf + from_leaves, pair + (not from_leaves)
        pairs = (m + pairs) // 2
        for i in range(pairs):
            packages[i] = merged[2 * i] + merged[2 * i + 1]
    lengths, take = np.zeros(m, np.int64), 2 * m - 2
    for level in range(longest - 1, -1, -1):
        leaf = 0
        for i in range(take):
            leaf += is_leaf[level, i]
        for i in range(leaf):
            lengths[i] += 1
        take = 2 * (take - leaf)
    return lengths


@njit(**CACHED)
def write_table(lengths: Any, table: Any) -> Any:
    """The bytes that were written."""
    at, run = 0, 0
    for i in range(lengths.size + 1):
        if run and (i == lengths.size or lengths[i]):
            width = 0
            while run >> width:
                width += 1
            at = append(table, at + 3 + width, run, width)
            run = 0
        if i < lengths.size:
            if lengths[i]:
                at = append(table, at, lengths[i], 4)
            else:
                run += 1
    return (at + 7) // 8


@njit(**CACHED)
def append(table: Any, at: Any, value: Any, width: Any) -> Any:
    """Write the bits of a number from a place on, highest first; the place behind them."""
    for j in range(width):
        bit = (value >> (width - 1 - j)) & 1
        table[(at + j) // 8] |= np.uint8(bit << (7 - (at + j) % 8))
    return at + width


@njit(**CACHED)
def read_table(stream: Any, lengths: Any) -> Any:
    """The bytes that were read; -1 if they are no table of so many lengths."""
    end, at, filled, run, most = 8 * stream.size, 0, 0, 0, 0
    while lengths.size >> most:
        most += 1
    while filled < lengths.size:
        length, at = number_at(stream, at, 4)
        if at > end:
            return -1
        if length:
            lengths[filled] = length
            filled, run = filled + 1, 0
            continue
        more, one = 0, 0
        while True:
            one, at = number_at(stream, at, 1)
            if one or more > most:
                break
            more += 1
        if run or more > most:
            return -1
        run, at = number_at(stream, at, more)
        run |= 1 << more
        filled += run
    filler, at = number_at(stream, at, -at % 8)
    return at // 8 if at <= end and filled == lengths.size and filler == 0 else -1


@njit(**CACHED)
def number_at(stream: Any, at: Any, width: Any) -> Any:
    """The next bits as an integer, zeros behind the end; and the place behind them."""
    value = 0
    for j in range(at, at + width):
        bit = (stream[j // 8] >> (7 - j % 8)) & 1 if j < 8 * stream.size else 0
        value = value << 1 | bit
    return value, at + width
