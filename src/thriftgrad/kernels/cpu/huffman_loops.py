"""Symbols to groups, groups to codes, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from thriftgrad.kernels.cpu.memory import set_word_at, word_at
from thriftgrad.kernels.cpu.settings import CACHED, U
from thriftgrad.kernels.prefix_codes import BLOCK, SMALLEST_QUARTERED

EVERY_OTHER = U(0x00FF00FF00FF00FF)
LENGTH_BITS, LENGTH = U(4), U(15)
"""In the tables a code or a group stands above its length."""


@njit(**CACHED)
def group(values: Any, grouping: Any, low: Any, high: Any, groups: Any) -> None:
    """The groups from ``low`` to ``high`` as numbers, uint16."""
    g, n, base, lowest, first = U(grouping.size), U(values.size), U(grouping.base), U(grouping.lowest), U(low)
    count = U(high) - first
    quick = U(0)  # of these there is a word in ``values``
    if g == U(1):
        quick = count
        for i in range(count):
            groups[i] = np.uint16(values[first + i]) - np.uint16(lowest)
    elif g == U(2):
        quick = min(count, n // g - first)
        both = np.uint16(lowest * base + lowest)
        for i in range(quick):
            at = (first + i) * U(2)
            groups[i] = np.uint16(values[at]) * np.uint16(base) + np.uint16(values[at + U(1)]) - both
    elif n >= U(8) and (n - U(8)) // g >= first:
        quick = min(count, (n - U(8)) // g - first + U(1))
        spare = U(64) - U(8) * g
        least, to_pairs, to_one = (lowest * U(0x0101010101010101)) >> spare, base + U(256), U(1) << U(48)
        for j in range(U(1), (g + U(1)) // U(2)):
            to_one |= base ** (U(2) * j) << (U(48) - U(16) * j)
        for i in range(quick):
            # Eight digits, the first ones zero: neighbours add up in every other byte, then pairs in the highest 16
            # bits; on the way no sum leaves its bits, since base**size <= 2**12.
            eight = (word_at(values, (first + i) * g) >> spare) - least
            groups[i] = ((((eight * to_pairs) >> U(8)) & EVERY_OTHER) * to_one) >> U(48)
    for i in range(quick, count):
        number = U(0)
        for j in range(g):
            at = (first + i) * g + j
            number = number * base + U(values[at] if at < n else grouping.filler) - lowest
        groups[i] = number


@njit(**CACHED)
def count(values: Any, grouping: Any, low: Any, high: Any, counts: Any) -> None:
    """Four rows of counts, which equal neighbours do not wait for each other to write."""
    groups = np.empty(BLOCK, np.uint16)
    for start in range(low, high, BLOCK):
        size = U(min(BLOCK, high - start))
        group(values, grouping, start, start + size, groups)
        for i in range(size // U(4)):
            for j in range(U(4)):
                counts[j, groups[i * U(4) + j]] += 1
        for i in range(size // U(4) * U(4), size):
            counts[0, groups[i]] += 1


@njit(**CACHED)
def write(values: Any, grouping: Any, low: Any, high: Any, table: Any, out: Any, sizes: Any) -> Any:
    """The streams of these blocks, and how long each one is; the bytes that were written."""
    groups = np.empty(BLOCK, np.uint16)
    number, o = first_stream(low), U(0)
    for start in range(low, high, BLOCK):
        size = min(BLOCK, high - start)
        group(values, grouping, start, start + size, groups)
        quarters = 4 if size >= SMALLEST_QUARTERED else 1
        for q in range(quarters):
            end = write_stream(groups, size * q // quarters, size * (q + 1) // quarters, table, out, o)
            sizes[number] = np.int64(end - o)
            number, o = number + 1, end
    return np.int64(o)


@njit(**CACHED)
def write_stream(groups: Any, low: Any, high: Any, table: Any, out: Any, start: Any) -> Any:
    """Codes gather at the top of a word, four at a time; its whole bytes leave it. The place behind the last byte."""
    word, filled, o, i, end = U(0), U(0), U(start), U(low), U(high)
    while i + U(4) <= end:
        a, b = U(table[groups[i]]), U(table[groups[i + U(1)]])
        c, d = U(table[groups[i + U(2)]]), U(table[groups[i + U(3)]])
        left = ((a >> LENGTH_BITS) << (b & LENGTH)) | (b >> LENGTH_BITS)
        right = ((c >> LENGTH_BITS) << (d & LENGTH)) | (d >> LENGTH_BITS)
        of_right = (c & LENGTH) + (d & LENGTH)
        filled += (a & LENGTH) + (b & LENGTH) + of_right
        word |= ((left << of_right) | right) << (U(64) - filled)
        set_word_at(out, o, word)
        o += filled >> U(3)
        word <<= filled & U(56)
        filled &= U(7)
        i += U(4)
    while i < end:
        a = U(table[groups[i]])
        filled += a & LENGTH
        word |= (a >> LENGTH_BITS) << (U(64) - filled)
        set_word_at(out, o, word)
        o += filled >> U(3)
        word <<= filled & U(56)
        filled &= U(7)
        i += U(1)
    return o + U(filled > U(0))


@njit(**CACHED)
def first_stream(group: Any) -> Any:
    """The number of the stream that begins with a block."""
    return group // BLOCK * 4


@njit(**CACHED)
def read(
    stream: Any, edges: Any, table: Any, longest: Any, low: Any, high: Any, grouping: Any, words: Any, out: Any
) -> Any:
    """The symbols of these blocks; False if their streams do not hold just so many groups."""
    groups = np.empty(BLOCK, np.uint16)
    places, ends = np.empty(4, np.int64), np.empty(4, np.int64)
    at, limits = np.empty(4, np.int64), np.empty(4, np.int64)
    number = first_stream(low)
    for start in range(low, high, BLOCK):
        size = min(BLOCK, high - start)
        quarters = 4 if size >= SMALLEST_QUARTERED else 1
        for q in range(quarters):
            places[q], ends[q] = 8 * edges[number], 8 * edges[number + 1]
            at[q], limits[q] = size * q // quarters, size * (q + 1) // quarters
            number += 1
        if quarters == 4:
            read_four(stream, places, ends, table, longest, at, limits, groups)
        for q in range(quarters):
            if not read_rest(stream, places[q], ends[q], table, longest, at[q], limits[q], groups):
                return False
        ungroup(groups, size, grouping, words, out, start)
    return True


@njit(**CACHED)
def read_four(stream: Any, places: Any, ends: Any, table: Any, longest: Any, at: Any, limits: Any, groups: Any) -> None:
    """From four streams, four codes each at a time, until one of them is nearly at its end.

    Bounds are checked once for as many rounds as can be read whatever the codes are, and then again.
    """
    shift = U(64 - longest)
    while True:
        rounds = np.int64(1 << 40)
        for q in range(4):
            left = (ends[q] - places[q]) // 8 - 8  # a word is read from any of its bytes on
            rounds = min(rounds, (left * 8) // (4 * longest), (limits[q] - at[q]) // 4)
        if rounds < 1:
            return
        p0, p1, p2, p3 = U(places[0]), U(places[1]), U(places[2]), U(places[3])
        i0, i1, i2, i3 = U(at[0]), U(at[1]), U(at[2]), U(at[3])
        for _ in range(U(rounds)):
            w0, w1 = word_at(stream, p0 >> U(3)) << (p0 & U(7)), word_at(stream, p1 >> U(3)) << (p1 & U(7))
            w2, w3 = word_at(stream, p2 >> U(3)) << (p2 & U(7)), word_at(stream, p3 >> U(3)) << (p3 & U(7))
            for j in range(4):
                e0, e1 = U(table[w0 >> shift]), U(table[w1 >> shift])
                e2, e3 = U(table[w2 >> shift]), U(table[w3 >> shift])
                groups[i0 + U(j)], groups[i1 + U(j)] = e0 >> LENGTH_BITS, e1 >> LENGTH_BITS
                groups[i2 + U(j)], groups[i3 + U(j)] = e2 >> LENGTH_BITS, e3 >> LENGTH_BITS
                l0, l1, l2, l3 = e0 & LENGTH, e1 & LENGTH, e2 & LENGTH, e3 & LENGTH
                w0, w1, w2, w3 = w0 << l0, w1 << l1, w2 << l2, w3 << l3
                p0, p1, p2, p3 = p0 + l0, p1 + l1, p2 + l2, p3 + l3
            i0, i1, i2, i3 = i0 + U(4), i1 + U(4), i2 + U(4), i3 + U(4)
        places[0], places[1], places[2], places[3] = p0, p1, p2, p3
        at[0], at[1], at[2], at[3] = i0, i1, i2, i3


@njit(**CACHED)
def read_rest(stream: Any, place: Any, end: Any, table: Any, longest: Any, at: Any, limit: Any, groups: Any) -> Any:
    """One stream, code by code, zeros behind its end; False if the last code is not followed by less than 8 zeros."""
    for i in range(U(at), U(limit)):
        if place > end:
            return False
        entry = U(table[window(stream, place, end) >> U(64 - longest)])
        groups[i] = entry >> LENGTH_BITS
        place += np.int64(entry & LENGTH)
    return 0 <= end - place < 8 and (end == place or window(stream, place, end) == U(0))


@njit(**CACHED)
def window(stream: Any, place: Any, end: Any) -> Any:
    """At least 57 bits from a place in a stream on, at the top of a word; zeros behind its end."""
    byte = place >> 3
    if byte + 8 <= end >> 3:
        return word_at(stream, U(byte)) << U(place & 7)
    word = U(0)
    for j in range(8):
        word = word << U(8) | (U(stream[byte + j]) if byte + j < end >> 3 else U(0))
    return word << U(place & 7)


@njit(**CACHED)
def ungroup(groups: Any, size: Any, grouping: Any, words: Any, out: Any, to: Any) -> None:
    """The symbols of groups, from the ``to``-th group on; of pairs both as one uint16."""
    g, lowest = U(grouping.size), np.uint32(grouping.lowest)
    if g == U(1):
        for i in range(U(size)):
            out[U(to) + i] = np.uint32(groups[i]) + lowest
    elif g == U(2):
        # A division by multiplication, which is exact: the rounding up adds less than 4096 * 64 / 2**20 to a quotient.
        base, over = np.uint32(grouping.base), np.uint32(((1 << 20) + grouping.base - 1) // grouping.base)
        least = np.uint32(lowest * np.uint32(257))
        for i in range(U(size)):
            pair = np.uint32(groups[i])
            first = np.uint32(np.uint32(pair * over) >> np.uint32(20))
            second = np.uint32(pair - np.uint32(first * base))
            out[U(to) + i] = np.uint32(np.uint32(first | np.uint32(second << np.uint32(8))) + least)
    else:
        # A word's end is overwritten by the next one; the last ones must not reach into another thread's symbols.
        last = U(max(0, size - 8))
        for i in range(last):
            set_word_at(out, (U(to) + i) * g, words[groups[i]])
        for i in range(last, U(size)):
            for j in range(g):
                out[(U(to) + i) * g + j] = words[groups[i]] >> (U(56) - U(8) * j)
