"""Compiled streams of symbols of 9 to 32 bits against the reference, bit for bit."""

from __future__ import annotations

import pytest
import torch

from thriftgrad import kernels
from thriftgrad.kernels import reference
from thriftgrad.kernels.cpu import threads
from thriftgrad.kernels.cpu.wide_packing import pack_wide, unpack_wide

WIDTHS = range(9, 33)


def symbols_of(n: int, width: int) -> torch.Tensor:
    symbols = torch.randint(0, 1 << width, (n,), generator=torch.Generator().manual_seed(n + width))
    symbols[:2] = torch.tensor([(1 << width) - 1, 0])[:n]
    return symbols


@pytest.mark.parametrize("width", WIDTHS)
def test_streams_are_those_of_the_reference(width: int) -> None:
    for n in (0, 1, 2, 7, 31, 32, 33, 63, 64, 65, 1000):
        symbols = symbols_of(n, width)
        stream = pack_wide(symbols, width)
        assert torch.equal(stream, reference.pack(symbols, 1 << width))
        assert torch.equal(unpack_wide(stream, n, width), symbols)


@pytest.mark.parametrize("width", [9, 25, 32])
def test_a_stream_may_lie_anywhere_and_be_followed_by_more(width: int) -> None:
    symbols = symbols_of(100, width)
    stream = pack_wide(symbols, width)
    for before in range(1, 8):
        longer = torch.cat((torch.full((before,), 255).byte(), stream, torch.full((9,), 255).byte()))
        assert torch.equal(unpack_wide(longer[before:], 100, width), symbols)
    assert torch.equal(pack_wide(symbols.view(10, 10).t()[0], width), reference.pack(symbols[::10], 1 << width))


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32])
def test_symbols_of_other_types(dtype: torch.dtype) -> None:
    symbols = symbols_of(77, 12)
    assert torch.equal(pack_wide(symbols.to(dtype), 12), reference.pack(symbols, 1 << 12))


def test_slices_are_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "SMALLEST_SLICE", 100)
    threads.set_threads(3)
    try:
        for width in (9, 19, 31):
            symbols = symbols_of(1001, width)
            stream = pack_wide(symbols, width)
            assert torch.equal(stream, reference.pack(symbols, 1 << width))
            assert torch.equal(unpack_wide(stream, 1001, width), symbols)
    finally:
        threads.set_threads(None)


def test_a_stream_that_is_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="kernels: 3 symbols of 9 bits take 4 bytes, and there are 3"):
        unpack_wide(torch.zeros(3, dtype=torch.uint8), 3, 9)


@pytest.mark.parametrize("alphabet", [257, 511, 1000, 1 << 20, (1 << 32) - 5, 1 << 32, (1 << 32) + 1, 1 << 40])
def test_packing_takes_the_fast_way_and_gives_the_same(alphabet: int) -> None:
    symbols = torch.randint(0, alphabet, (99,), generator=torch.Generator().manual_seed(alphabet % 1000))
    stream = kernels.pack(symbols, alphabet)
    assert torch.equal(stream, reference.pack(symbols, alphabet))
    assert torch.equal(kernels.unpack(stream, 99, alphabet), symbols)
