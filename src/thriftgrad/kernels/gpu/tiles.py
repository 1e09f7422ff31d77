"""The kernels of quantisation: memory, norm, rounding, packing and what is left over, at one go.

A program takes a tile of groups; a group makes 64 bytes, each of symbols that lie 64 elements apart. As each Philox
counter serves eight elements that lie 16 apart, a lane of 16 has all it needs, and nothing moves between threads.

Every kernel here knows HOW: (rule, size, steps of ``rounding``, bits of a packed symbol or 0, whether with a memory,
whether every element looks up its scale by itself).
"""

from __future__ import annotations

import triton
import triton.language as tl

from thriftgrad.kernels.gpu.buckets import bucket_of
from thriftgrad.kernels.gpu.norms import owed, scale_of, sums
from thriftgrad.kernels.gpu.philox import threshold, threshold_at, words
from thriftgrad.kernels.gpu.rounding import FMA_ROUNDS_ONCE, SIGN, UNIFORM, ordinary, symbol_of


@triton.jit(do_not_specialize=["n", "bucket", "first", "seed"])
def quantise(
    x,
    memory,
    rest,
    levels,
    scales,
    stream,
    n: tl.int64,
    bucket: tl.int64,
    first: tl.int64,
    decay: tl.float32,
    seed: tl.uint64,
    HOW: tl.constexpr,
    GROUPS: tl.constexpr,
    BUCKET: tl.constexpr,
    WHAT: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Tiles from ``first`` on, all of them full; MASKED: the last one, which is not, but for what ``tail`` does.

    Symbols of 1, 2 or 4 bits are packed, others stored one by one. BUCKET: a power of two of which a tile holds some,
    whose scales are found here (WHAT: from ``norms``); or 0, and groups, or elements, look them up.
    """
    WIDTH: tl.constexpr = HOW[3]
    GROUP: tl.constexpr = 512 // WIDTH if WIDTH else 128
    TILE: tl.constexpr = GROUPS * GROUP
    start = (first + tl.program_id(0)).to(tl.int64) * TILE
    left = tl.minimum(n - start, TILE).to(tl.int32)
    scale = 1.0
    if BUCKET:
        BUCKETS: tl.constexpr = TILE // BUCKET
        row = tl.arange(0, BUCKETS)
        length = tl.minimum(tl.maximum(left - row * BUCKET, 0), BUCKET)
        begin = (row * BUCKET)[:, None]
        total = sums(x + start, memory + start, decay, begin, length[:, None], BUCKET // 64, WHAT, BUCKETS, HOW[4])
        found = scale_of(total, length, WHAT)
        tl.store(scales + start // BUCKET + row, found, mask=length > 0)
        scale = tl.reshape(tl.broadcast_to(found[:, None], (BUCKETS, GROUPS // BUCKETS)), (GROUPS, 1))
    elif not HOW[5]:
        at = tl.arange(0, GROUPS)[:, None] * GROUP
        scale = tl.load(scales + bucket_of(start, at, bucket), mask=at < left, other=0.0)
    tensors = (x, memory, rest, levels, scales)
    short = False
    if HOW[0] == UNIFORM and not HOW[5] and FMA_ROUNDS_ONCE:
        short = ordinary(scale)
    if short:
        _tile(tensors, stream, scale, start, left, bucket, decay, seed, HOW, GROUPS, MASKED, True)
    else:
        _tile(tensors, stream, scale, start, left, bucket, decay, seed, HOW, GROUPS, MASKED, False)


@triton.jit
def _tile(
    tensors,
    stream,
    scale,
    start,
    left,
    bucket,
    decay,
    seed,
    HOW: tl.constexpr,
    GROUPS: tl.constexpr,
    MASKED: tl.constexpr,
    SHORT: tl.constexpr,
):
    WIDTH: tl.constexpr = HOW[3]
    CHUNKS: tl.constexpr = 4 // WIDTH if WIDTH else 1  # of 128 elements, the random bits of 16 counters
    GROUP: tl.constexpr = 128 * CHUNKS
    group, lane = tl.arange(0, GROUPS)[:, None], tl.arange(0, 16)[None, :]
    whole = tl.broadcast_to((group + 1) * GROUP <= left if MASKED else group >= 0, (GROUPS, 16))
    random = ()
    for chunk in tl.static_range(CHUNKS):
        random = random + words(seed, start // 8 + (group * CHUNKS + chunk) * 16, GROUPS)
    for quarter in tl.static_range(4):
        packed = tl.zeros((GROUPS, 16), tl.int32)
        for half in tl.static_range(2 * CHUNKS):
            at = group * GROUP + half * 64 + quarter * 16 + lane
            inside = at < left if MASKED else whole
            kept = whole if WIDTH else inside
            limit = threshold(random[half // 2 * 4 + quarter], half % 2)
            symbol = _symbol(tensors, scale, start, at, inside, kept, limit, bucket, decay, HOW, SHORT)
            if WIDTH:
                packed |= symbol << (half * WIDTH)
            else:
                tl.store(stream + start + at, symbol.to(stream.dtype.element_ty), mask=inside)
        if WIDTH:
            byte = start // (2 * CHUNKS) + group * 64 + quarter * 16 + lane
            tl.store(stream + byte, packed.to(tl.uint8), mask=whole)


@triton.jit(do_not_specialize=["n", "bucket", "seed"])
def tail(
    x,
    memory,
    rest,
    levels,
    scales,
    stream,
    n: tl.int64,
    bucket: tl.int64,
    decay: tl.float32,
    seed: tl.uint64,
    HOW: tl.constexpr,
):
    """The last group, if it is not whole: its symbols lie as far apart as makes as few bytes as they need."""
    WIDTH: tl.constexpr = HOW[3]
    PLANES: tl.constexpr = 8 // WIDTH
    whole = n // (64 * PLANES) * (64 * PLANES)
    left = (n - whole).to(tl.int32)
    length = (left + PLANES - 1) // PLANES
    byte = tl.arange(0, 64)
    packed = tl.zeros((64,), tl.int32)
    for plane in tl.static_range(PLANES):
        at = plane * length + byte
        inside = (byte < length) & (at < left)
        limit = threshold_at(seed, whole + at)
        tensors = (x, memory, rest, levels, scales)
        symbol = _symbol(tensors, 1.0, whole, at, inside, inside, limit, bucket, decay, HOW, False)
        packed |= tl.where(inside, symbol, 0) << (plane * WIDTH)
    tl.store(stream + whole // PLANES + byte, packed.to(tl.uint8), mask=byte < length)


@triton.jit
def _symbol(tensors, scale, start, at, inside, kept, limit, bucket, decay, HOW: tl.constexpr, SHORT: tl.constexpr):
    """The symbols of elements ``start + at``, in the low 16 bits; what is left over is stored where it is ``kept``."""
    x, memory, rest, levels, scales = tensors
    RULE: tl.constexpr = HOW[0]
    SIZE: tl.constexpr = HOW[1]
    if HOW[5]:
        scale = tl.load(scales + bucket_of(start, at, bucket), mask=inside, other=0.0)
    divisor = tl.where(scale > 0, scale, 1.0)  # NaN is not above 0
    reciprocal = tl.div_rn(tl.full(divisor.shape, 1.0, tl.float32), divisor)
    value = owed(x + start, memory + start, decay, at, inside, HOW[4])
    symbol = symbol_of(value, divisor, reciprocal, limit, levels, RULE, SIZE, HOW[2], SHORT)
    if HOW[4]:
        if RULE == SIGN:
            level = tl.where(symbol > 0, 1.0, -1.0)
        elif RULE == UNIFORM:
            level = tl.div_rn((symbol & 0xFFFF).to(tl.float32) - SIZE, tl.full(symbol.shape, SIZE, tl.float32))
        else:
            level = tl.load(levels + symbol)
        tl.store(rest + start + at, value - level * scale, mask=kept)
    return symbol


@triton.jit(do_not_specialize=["n", "nbytes"])
def pack_dense(symbols, stream, n: tl.int64, nbytes: tl.int64, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Symbols of 3, 5, 6, 7 or 9 bits one after the other, lowest bit first; WIDTH 0: five in a byte, base 3."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    byte = tl.arange(0, BLOCK)
    packed = tl.zeros((BLOCK,), tl.int32)
    if WIDTH:
        before = start * 8 // WIDTH  # symbols that end before, but for the bits of one
        bit = (start * 8 - before * WIDTH).to(tl.int32) + byte * 8
        first = bit // WIDTH
        for i in tl.static_range((6 + 2 * WIDTH) // WIDTH):  # as many symbols as may have bits in a byte
            inside = before + first + i < n
            packed |= tl.load(symbols + before + first + i, mask=inside, other=0).to(tl.int32) << (i * WIDTH)
        packed = packed >> (bit - first * WIDTH)
    else:
        for i in tl.static_range(5):
            inside = start * 5 + byte * 5 + i < n
            packed += tl.load(symbols + start * 5 + byte * 5 + i, mask=inside, other=0).to(tl.int32) * 3**i
    tl.store(stream + start + byte, packed.to(tl.uint8), mask=start + byte < nbytes)
