"""Unpacking, adding and the largest symbol against their definition."""

from __future__ import annotations

import pytest
import torch

from gpu.same import same
from thriftgrad.kernels import quantised, reference
from thriftgrad.kernels.gpu import compiled

ALPHABETS = [2, 3, 4, 5, 8, 15, 16, 31, 100, 200, 256, 257, 511]


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize("n", [0, 1, 63, 129, 511, 4500])
def test_adding_and_the_largest(n: int, alphabet: int) -> None:
    generator = torch.Generator().manual_seed(n + alphabet)
    kind = torch.uint8 if alphabet <= 256 else torch.int64
    symbols = torch.randint(alphabet, (n,), generator=generator).to(kind)
    stream = reference.pack(symbols, alphabet)
    levels = torch.randn(alphabet, generator=generator)
    for bucket in sorted({1, min(100, n), min(512, n), n} - {0}):
        scale = torch.randn(-(-n // bucket), generator=generator)
        ours = torch.randn(n, generator=generator)
        defined = ours.clone()
        compiled.dequantise_add(stream, scale, levels, bucket, ours)
        quantised.dequantise_add(stream, scale, levels, bucket, defined)
        assert same(ours, defined)
    for packed in (stream, reference.pack((symbols.long() // 2).to(kind), alphabet)):
        assert compiled.largest_symbol(packed, n, alphabet) == quantised.largest_symbol(packed, n, alphabet)


@pytest.mark.parametrize(("n", "alphabet"), [(20_000, 4), (20_000, 16), (20_000, 2), (6000, 256)])
def test_whole_tiles(n: int, alphabet: int) -> None:
    symbols = torch.randint(alphabet, (n,), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    stream, levels = reference.pack(symbols, alphabet), torch.linspace(-1, 1, alphabet)
    for bucket in (n, 512, 96):
        scale = torch.randn(-(-n // bucket), generator=torch.Generator().manual_seed(2))
        ours, defined = torch.zeros(n), torch.zeros(n)
        compiled.dequantise_add(stream, scale, levels, bucket, ours)
        quantised.dequantise_add(stream, scale, levels, bucket, defined)
        assert same(ours, defined)
    assert compiled.largest_symbol(stream, n, alphabet) == alphabet - 1


@pytest.mark.parametrize("alphabet", [5, 13, 200])
def test_hostile_bytes_have_a_largest_symbol_outside_and_become_nan(alphabet: int) -> None:
    stream = torch.full((400,), 255, dtype=torch.uint8)
    n = 400 * 8 // (alphabet - 1).bit_length()
    assert compiled.largest_symbol(stream, n, alphabet) == quantised.largest_symbol(stream, n, alphabet) >= alphabet
    total = torch.zeros(n)
    compiled.dequantise_add(stream, torch.ones(1), torch.zeros(alphabet), n, total)
    assert total.isnan().all()


def test_only_the_first_symbols_count() -> None:
    stream = torch.tensor([0x21, 0xF3], dtype=torch.uint8)
    assert compiled.largest_symbol(stream, 3, 16) == quantised.largest_symbol(stream, 3, 16)
    assert compiled.largest_symbol(stream, 0, 16) == -1
    wide = reference.pack(torch.tensor([5, 900, 3]), 1000)
    assert compiled.largest_symbol(wide, 3, 1000) == 900
    assert compiled.largest_symbol(wide, 3, 1) == quantised.largest_symbol(wide, 3, 1) == 0
