"""The coders that stand on other packages: near the entropy, bounded, and polite without them."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from coders.oracles import entropy_bits, spec_of
from thriftgrad import PayloadError, TensorSpec
from thriftgrad.wire.coders import ANS, Coder, Zstd
from thriftgrad.wire.coders.ans import _counts, _rounded
from thriftgrad.wire.coders.symbols import packed_bytes


def drawn(probabilities: list[float], count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).choice(len(probabilities), count, p=probabilities))


def bell(alphabet: int, width: float) -> list[float]:
    shares = stats.norm.pdf(np.arange(alphabet) - alphabet // 2, scale=width)
    return list(shares / shares.sum())


@pytest.mark.parametrize("probabilities", [[0.05, 0.9, 0.05], [0.01, 0.98, 0.01], bell(15, 2.0), bell(255, 20.0)])
@pytest.mark.parametrize("known", [False, True])
def test_ans_reaches_the_entropy(probabilities: list[float], known: bool) -> None:
    symbols, alphabet = drawn(probabilities, 100_000), len(probabilities)
    model = tuple(probabilities) if known else None
    spec = TensorSpec((100_000,), torch.int64, alphabet=alphabet, probabilities=model)
    stream = ANS().encode(symbols, spec)
    table_bits = 0 if known else 8 * alphabet
    assert entropy_bits(symbols) * 100_000 <= 8 * len(stream) + 64  # ANS keeps up to a word in its state
    assert 8 * len(stream) <= 1.002 * entropy_bits(symbols) * 100_000 + table_bits + 64
    assert torch.equal(ANS().decode(stream, spec), symbols)


@given(st.integers(0, 1 << 32))
def test_counts_are_rounded_to_a_sixteenth(count: int) -> None:
    (back,) = _counts(_rounded(np.array([count])))
    assert abs(back - count) <= count / 16
    assert back == count or count >= 16


def test_counts_in_a_byte_keep_their_order_and_code() -> None:
    table = _rounded(np.arange(5000))
    assert (np.diff(table.astype(int)) >= 0).all()
    assert np.array_equal(_rounded(_counts(table).astype(np.int64)), table)


@given(st.lists(st.integers(0, 4), max_size=40))
def test_ans_never_takes_more_than_a_byte_over_packing(values: list[int]) -> None:
    spec = spec_of(len(values), 5)
    stream = ANS().encode(torch.tensor(values, dtype=torch.uint8), spec)
    assert len(stream) <= 1 + packed_bytes(len(values), 5) == ANS().limit_bytes(spec)


def refused_ans(coded: list[int], message: str, count: int = 4, **more: object) -> None:
    with pytest.raises(PayloadError, match=message):
        ANS().decode(torch.tensor(coded, dtype=torch.uint8), spec_of(count, 5, **more))


def test_hostile_ans_streams() -> None:
    refused_ans([], "first byte is neither 0 .packed. nor 1")
    refused_ans([2], "first byte is neither 0 .packed. nor 1")
    refused_ans([1, 1, 1, 1], "no ANS stream")
    refused_ans([1, 0, 0, 0, 0, 0, 1, 2, 3, 4], "without counts")
    refused_ans([1, 1, 1, 1, 1, 1, 9, 9, 9], "3 bytes are no ANS stream")
    refused_ans([1, 1, 1, 1, 1, 1, 9, 9, 9, 9, 0, 0, 0, 0], "8 bytes are no ANS stream")
    refused_ans([1, 1, 1, 1, 1, 1, *[9] * 8], "says more than 4 symbols")
    refused_ans([1, 1, 1, 1, 1, 1], "0 symbols of 5 kinds without counts", count=0)
    refused_ans([1, *[9] * 8], "says more than 4 symbols", probabilities=(0.2,) * 5)
    refused_ans([0, 1], "4 symbols take 2 bytes, got 1")


def test_zstd_is_a_frame_of_packed_symbols() -> None:
    symbols = drawn(bell(15, 2.0), 100_000)
    spec = TensorSpec((100_000,), torch.int64, alphabet=15, zero=7)
    stream = Zstd().encode(symbols, spec)
    assert len(zstandard.ZstdDecompressor().decompress(bytes(stream.tolist()))) == 50_000
    assert entropy_bits(symbols) <= 8 * len(stream) / 100_000 <= 1.02 * entropy_bits(symbols)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.uint8])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7, 13), (3000,)])
def test_zstd_takes_the_bytes_of_any_tensor(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    spec = TensorSpec.of(x)
    stream = Zstd(level=3).encode(x, spec)
    assert len(stream) <= Zstd(level=3).limit_bytes(spec)
    back = Zstd().decode(stream, spec)
    assert back.dtype == dtype
    assert torch.equal(back, x)


@pytest.mark.parametrize("count", [0, 1, 100, 5000, (1 << 17) - 1, 1 << 17, 1 << 20])
def test_zstd_stays_below_its_limit_where_nothing_can_be_saved(count: int) -> None:
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, count, np.uint8))
    spec = TensorSpec((count,), torch.uint8)
    assert len(Zstd().encode(noise, spec)) <= Zstd().limit_bytes(spec)


def test_hostile_zstd_streams() -> None:
    spec = TensorSpec((1000,), torch.uint8)
    frame = zstandard.ZstdCompressor().compress(bytes(1000))
    bomb = zstandard.ZstdCompressor().compress(bytes(10_000_000))
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1000))
    empty = zstandard.ZstdCompressor().compress(b"")
    for stranger, message in (
        (b"", "announces 0 bytes where 1000 belong"),
        (bomb, "announces 10000000 bytes where 1000 belong"),
        (unsized, "announces 18446744073709551615 bytes where 1000 belong"),
        (frame[:-1], "no whole Zstandard frame"),
        (frame + b"x", "no whole Zstandard frame"),
        (frame + frame, "no whole Zstandard frame"),
        (b"no frame at all", "no whole Zstandard frame"),
        (empty, "announces 0 bytes where 1000 belong"),
    ):
        with pytest.raises(PayloadError, match=message):
            Zstd().decode(torch.tensor(list(stranger), dtype=torch.uint8), spec)
    with pytest.raises(PayloadError, match="announces 0 bytes where 0 belong"):
        Zstd().decode(torch.tensor(list(empty + b"xx"), dtype=torch.uint8), TensorSpec((0,), torch.uint8))


@pytest.mark.parametrize("level", [0, 23, -1, 1.5, True, "1"])
def test_levels_that_do_not_exist(level: object) -> None:
    with pytest.raises(ValueError, match="level must be a whole number from 1 to 22, got"):
        Zstd(level=level)  # type: ignore[arg-type]


@pytest.mark.parametrize(("coder", "package"), [(ANS(), "constriction"), (Zstd(), "zstandard")])
def test_a_missing_package_is_named(coder: Coder, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    spec = spec_of(1000, 5)
    symbols = torch.zeros(1000, dtype=torch.uint8)
    with pytest.raises(
        ImportError,
        match=rf"needs the package {package}; install it, for instance with the extra thriftgrad\[coders\]\.$",
    ):
        coder.encode(symbols, spec)
    monkeypatch.undo()
    stream = coder.encode(symbols, spec)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"needs the package {package}"):
        coder.decode(stream, spec)
