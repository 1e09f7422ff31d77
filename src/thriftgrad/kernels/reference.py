"""Plain torch: the definition that every other backend must equal bit for bit."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from thriftgrad.kernels.philox import MASK, MULTIPLIERS, ROUNDS, WEYL

CHUNK = 64
"""Bytes of a packed chunk: within one, symbol i of byte b is element i * 64 + b, so no shuffle is needed to unpack."""

CPU = torch.device("cpu")


def philox(n: int, seed: int, device: torch.device = CPU) -> Tensor:
    """Philox4x32-10 of the counters (0, 0, 0, 0) ... (n - 1, 0, 0, 0): int64[4, n] holding 32-bit words.

    The 64-bit products wrap around in int64, which keeps exactly the bits that are used.
    """
    even = torch.stack((torch.arange(n, device=device), torch.zeros(n, dtype=torch.int64, device=device)))
    odd = torch.zeros_like(even)
    # Row order (2, 0): one product serves both words of the next round.
    multipliers = torch.tensor(MULTIPLIERS, device=device)[:, None]
    start, weyl = torch.tensor([seed & MASK, seed >> 32], device=device), torch.tensor(WEYL, device=device)
    keys = ((start + torch.arange(ROUNDS, device=device)[:, None] * weyl) & MASK)[:, :, None]
    for key in keys.unbind(0):
        product = (even * multipliers).flip(0)
        even = ((product >> 32) & MASK) ^ odd ^ key
        odd = product & MASK
    return torch.stack((even[0], odd[0], even[1], odd[1]))


def uniform16(n: int, seed: int, device: torch.device = CPU) -> Tensor:
    """n random 16-bit integers, int64[n]; one Philox counter serves eight elements.

    A chunk of 128 elements uses 16 counters: element e, at position p = e % 64 of its half h = e % 128 // 64, takes
    half-word h (low, high) of word p // 16 of counter p % 16. That is the order in which packed nibbles lie, so that
    a vectorised kernel needs no shuffle.
    """
    chunks = -(-n // (2 * CHUNK))
    words = philox(16 * chunks, seed, device).view(4, chunks, 16).transpose(0, 1)
    return torch.stack((words & 0xFFFF, words >> 16), 1).reshape(-1)[:n]


def round_stochastic(x: Tensor, seed: int) -> Tensor:
    """Round each element down, or up with probability equal to its fraction: E = x to within 2**-16.

    x: float32[n] -> float32[n] of integers. An element no further than 2**-17 from an integer is always rounded to it,
    so that values that already stand on a level stay there whatever the last bit of their division was.
    """
    low = x.floor()
    threshold = (uniform16(x.numel(), seed, x.device).to(torch.float32) + 0.5) * 2.0**-16
    return low + (x - low > threshold.clamp_max(1 - 2.0**-16)).to(x.dtype)


def round_to_levels(x: Tensor, levels: Tensor, seed: int) -> Tensor:
    """The number of the level below each element, or above it with probability equal to the fraction of the way.

    x: float32[n] within the levels, levels: float32[L] ascending -> uint8[n]. Like ``round_stochastic``: E = x to
    within 2**-16 of the gap, and what stands on a level stays there. Negative elements are rounded like their mirror
    images, so that on symmetric levels -x becomes the mirror image of what x does.
    """
    below = torch.bucketize(x.contiguous(), levels[1:-1].contiguous(), right=True)
    low, high = levels[below], levels[below + 1]
    threshold = (uniform16(x.numel(), seed, x.device).to(torch.float32) + 0.5) * 2.0**-16
    way = torch.where(x < 0, high - x, x - low)
    outward = way > threshold.clamp_max(1 - 2.0**-16) * (high - low)
    return (below + (outward ^ (x < 0))).to(torch.uint8)


def nearest_level(x: Tensor, levels: Tensor) -> Tensor:
    """The number of the level nearest to each element, the lower one in the middle: float32[n] -> uint8[n]."""
    return torch.bucketize(x.contiguous(), (levels[1:] + levels[:-1]).contiguous() / 2).to(torch.uint8)


def round_to_powers(x: Tensor, seed: int, largest: int = 254) -> Tensor:
    """The biased exponent (0 ... 254, of float32) of the power of two below each magnitude, or above it at random.

    x: finite float32[n] -> int64[n]; E 2**(exponent - 127) = |x| to within 2**-17 |x|. Exponent 0 stands for zero; what
    is above the ``largest`` power goes down to it (254: 2**127, since the next one is no float32).
    """
    bits = x.abs().to(torch.float32).contiguous().view(torch.int32).to(torch.int64)
    exponent, mantissa = bits >> 23, bits & 0x7FFFFF
    above = mantissa > (uniform16(x.numel(), seed, x.device) << 7) + 64
    return (exponent + above).clamp_max(largest)


def hadamard(rows: Tensor) -> Tensor:
    """Each row times the Walsh-Hadamard matrix of its length d, over sqrt(d): its own inverse.

    rows: float32[m, d], d a power of two.
    """
    m, d = rows.shape
    half = 1
    while half < d:
        pairs = rows.view(m, d // (2 * half), 2, half)
        rows = torch.stack((pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]), 2).view(m, d)
        half *= 2
    return rows / math.sqrt(d)


def random_signs(n: int, seed: int, device: torch.device = CPU) -> Tensor:
    """n random signs, float32[n]: +1 or -1."""
    return (uniform16(n, seed, device) & 1).to(torch.float32) * 2 - 1


def normal(n: int, seed: int, device: torch.device = CPU) -> Tensor:
    """n standard normal float32 numbers by the Box-Muller transform; computed on the CPU, so equal on all devices."""
    words = philox(-(-n // 2), seed).to(torch.float64)
    radius = (-2 * ((words[0] + 1) * 2.0**-32).log()).sqrt()
    angle = 2 * math.pi * words[1] * 2.0**-32
    return torch.cat((radius * angle.cos(), radius * angle.sin()))[:n].to(torch.float32).to(device)


def permutation(k: int, n: int, seed: int, device: torch.device = CPU) -> Tensor:
    """The first k values of a pseudo-random permutation of range(n), int64[k]: k draws without replacement.

    A Feistel network on pairs (i, j) with i < a, j < b and a b barely above n (Black and Rogaway, Ciphers
    with Arbitrary Finite Domains, 2002), walked along its cycle until it falls below n: the cost grows with k, not n.
    """
    a = max(math.isqrt(max(n - 1, 0)) + 1, 1)
    b = max(-(-n // a), 1)
    keys = philox(2, seed).reshape(-1).tolist()
    values = torch.arange(k, device=device)
    outside = torch.ones(k, dtype=torch.bool, device=device)
    while outside.any():
        i, j = values[outside] % a, values[outside] // a
        for even, odd in zip(keys[::2], keys[1::2], strict=True):
            i = (i + _scramble(j, even)) % a
            j = (j + _scramble(i, odd)) % b
        values[outside] = i + a * j
        outside = values >= n
    return values


def _scramble(x: Tensor, key: int) -> Tensor:
    """A 32-bit integer hash of x and the key (the mixer of Wellons' hash prospector, lowbias32)."""
    x = (x ^ key) & MASK
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & MASK
    x = ((x ^ (x >> 15)) * 0x735A2D97) & MASK
    return x ^ (x >> 15)


def pack(symbols: Tensor, alphabet: int) -> Tensor:
    """Integer symbols 0 ... alphabet - 1 as a stream of bytes, uint8.

    alphabet 3: five symbols in a byte, base 3. Otherwise ceil(log2 alphabet) bits each: widths 1, 2 and 4 lie in
    chunks of 64 bytes (symbol i of byte b of a chunk is its element 64 i + b), other widths follow each
    other bit by bit, lowest bit first. The last byte is filled with zeros.
    """
    if alphabet == 3:
        powers = torch.tensor([1, 3, 9, 27, 81], dtype=torch.uint8, device=symbols.device)
        return (_grid(symbols.to(torch.uint8), 5) * powers).sum(1, dtype=torch.uint8)
    width = (alphabet - 1).bit_length()
    if width == 0:
        return symbols.new_empty(0, dtype=torch.uint8)
    if width == 8:
        return symbols.to(torch.uint8)
    if 8 % width == 0:
        return torch.cat([_pack_planes(part, width) for part in _whole_and_rest(symbols, CHUNK * 8 // width)])
    if width < 8:
        # Eight symbols fill ``width`` bytes and fit an int64.
        words = (_grid(symbols.to(torch.int64), 8) << _shifts(8, width, symbols)).sum(1)
        return words.view(torch.uint8).view(-1, 8)[:, :width].reshape(-1)[: -(-symbols.numel() * width // 8)]
    bits = (symbols.to(torch.int64)[:, None] >> _shifts(width, 1, symbols)) & 1
    return (_grid(bits.reshape(-1), 8) << _shifts(8, 1, symbols)).sum(1).to(torch.uint8)


def unpack(stream: Tensor, numel: int, alphabet: int) -> Tensor:
    """The inverse of ``pack``: the first ``numel`` symbols, uint8 or, for alphabets above 256, int64."""
    kind = torch.uint8 if alphabet <= 256 else torch.int64
    if alphabet == 3:
        powers = torch.tensor([1, 3, 9, 27, 81], dtype=torch.uint8, device=stream.device)
        return (stream[:, None] // powers % 3).reshape(-1)[:numel]
    width = (alphabet - 1).bit_length()
    if width == 0:
        return torch.zeros(numel, dtype=kind, device=stream.device)
    if width == 8:
        return stream.clone()
    if 8 % width == 0:
        per_byte = 8 // width
        parts = [_unpack_planes(part, width) for part in _whole_and_rest(stream, CHUNK, numel // (CHUNK * per_byte))]
        return torch.cat(parts)[:numel]
    if width < 8:
        words = torch.nn.functional.pad(_grid(stream, width), (0, 8 - width)).reshape(-1).view(torch.int64)
        symbols = (words[:, None] >> _shifts(8, width, stream)) & ((1 << width) - 1)
        return symbols.reshape(-1)[:numel].to(kind)
    bits = (stream.to(torch.int64)[:, None] >> _shifts(8, 1, stream)) & 1
    return (bits.reshape(-1)[: numel * width].view(numel, width) << _shifts(width, 1, stream)).sum(1).to(kind)


def _shifts(count: int, step: int, like: Tensor) -> Tensor:
    """0, step, 2 step, ..."""
    return torch.arange(0, count * step, step, device=like.device)


def _grid(x: Tensor, columns: int) -> Tensor:
    """x in rows of ``columns``, the last row filled with zeros."""
    return torch.nn.functional.pad(x, (0, -x.numel() % columns)).view(-1, columns)


def _whole_and_rest(x: Tensor, size: int, rows: int | None = None) -> list[Tensor]:
    """``rows`` rows of ``size`` elements (as many as there are), and a shorter row of what is left, if anything is."""
    whole = (x.numel() // size if rows is None else rows) * size
    return [part for part in (x[:whole].view(-1, size), x[whole:].view(1, -1)) if part.numel()] or [x.view(1, -1)]


def _pack_planes(rows: Tensor, width: int) -> Tensor:
    """Bytes of chunks: plane i of a row, a ``per_byte``-th of it, gives bits i * width on."""
    per_byte = 8 // width
    rows = torch.nn.functional.pad(rows, (0, -rows.shape[1] % per_byte)).to(torch.uint8)
    first, *others = rows.view(len(rows), per_byte, rows.shape[1] // per_byte).unbind(1)
    packed = first.clone()
    for i, plane in enumerate(others, 1):
        packed |= plane << (i * width)
    return packed.reshape(-1)


def _unpack_planes(rows: Tensor, width: int) -> Tensor:
    shifts = _shifts(8 // width, width, rows).to(torch.uint8)[:, None]
    return ((rows[:, None, :] >> shifts) & ((1 << width) - 1)).reshape(-1)
