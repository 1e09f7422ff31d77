"""Chunk by chunk the largest magnitudes: the same as top-k of each chunk alone, packed as tightly as chunks allow."""

from __future__ import annotations

import re
from math import ceil
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from samples import KINDS, compressed, same_bits, vector
from thriftgrad import ChunkedTopK, Key, PayloadError, Sign, TensorSpec, TopK, parse, wire
from thriftgrad.compress import QSGD
from thriftgrad.core import Shrink


def chunk_by_chunk(x: Tensor, chunk: int, **kept: Any) -> Tensor:
    """The oracle: plain top-k of each chunk by itself."""
    flat = x.reshape(-1)
    return torch.cat([compressed(TopK(**kept), part) for part in flat.split(chunk)] or [flat]).view(x.shape)


values = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, 2.0]), st.floats(width=32), st.sampled_from([torch.inf, -torch.inf, torch.nan])
)


@given(st.lists(values, max_size=60), st.integers(1, 20), st.integers(1, 25))
def test_top_k_of_each_chunk(numbers: list[float], chunk: int, k: int) -> None:
    """With ties, zeros of both signs and what is not finite; the last chunk is often shorter."""
    x = torch.tensor(numbers, dtype=torch.float32)
    assert same_bits(compressed(ChunkedTopK(k=k, chunk=chunk), x), chunk_by_chunk(x, chunk, k=k))
    assert same_bits(compressed(ChunkedTopK(fraction=0.3, chunk=chunk), x), chunk_by_chunk(x, chunk, fraction=0.3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_many_chunks(kind: str, dtype: torch.dtype) -> None:
    x = vector(kind, 20_001).to(dtype)
    for chunk in (64, 1000, 4096, 20_001, 50_000):
        assert same_bits(compressed(ChunkedTopK(k=9, chunk=chunk), x), chunk_by_chunk(x, chunk, k=9))


@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, 3, 4), (4, 1), (0, 3), (3, 0)])
def test_rows(shape: tuple[int, ...]) -> None:
    """``chunk=None``: along the last dimension; a vector is one row."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    row = shape[-1] if shape else 1
    assert same_bits(compressed(ChunkedTopK(k=2, chunk=None), x), chunk_by_chunk(x, max(row, 1), k=2))


def test_ties_go_to_the_lowest_index_of_their_chunk() -> None:
    x = torch.tensor([1.0, 2, -2, 2, 1, 1, 1, 1, 0, 0])
    payload, _ = ChunkedTopK(k=2, chunk=4).compress(x, None, Key(0))
    assert payload.side.indices.tolist() == [1, 2, 0, 1, 0, 1]
    assert payload.carrier.tolist() == [2, -2, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("compressor", "shape", "kept", "index_bits"),
    [
        (ChunkedTopK(k=64), (4096,), 64, 12),
        (ChunkedTopK(k=64), (1 << 20,), 64 << 8, 12),  # 12 bits however long the tensor is
        (ChunkedTopK(k=64), (4097,), 65, 12),  # one coordinate in the last chunk
        (ChunkedTopK(k=64), (5000,), 128, 12),
        (ChunkedTopK(k=64), (4096 + 3,), 67, 12),
        (ChunkedTopK(fraction=0.01), (5000,), 41 + 10, 12),
        (ChunkedTopK(k=3), (100,), 3, 7),  # shorter than a chunk
        (ChunkedTopK(k=3, chunk=100), (1000,), 30, 7),
        (ChunkedTopK(k=3, chunk=1), (9,), 9, 0),
        (ChunkedTopK(k=3, chunk=None), (8, 16), 24, 4),
        (ChunkedTopK(fraction=0.5, chunk=None), (8, 17), 72, 5),
    ],
    ids=repr,
)
def test_bytes(compressor: ChunkedTopK, shape: tuple[int, ...], kept: int, index_bits: int) -> None:
    spec = TensorSpec(shape)
    assert compressor.layout(spec).nbytes == 4 * kept + ceil(kept * index_bits / 8)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    message = wire.pack(compressor.compress(x, None, Key(0))[0])
    assert len(message) == wire.HEADER_BYTES + compressor.layout(spec).nbytes
    again = compressor.decompress(wire.unpack(message, compressor, spec))
    assert same_bits(again, compressed(compressor, x))


def test_two_bits_a_value_make_sparse_locos_146_fold() -> None:
    """A chunk of 4096, 64 kept: 12 + 2 bits each are 146.3 times less than float32, and 293 times with 32 kept."""
    spec = TensorSpec((1 << 22,))
    for k, times in ((64, 146.3), (32, 292.6)):
        chain = ChunkedTopK(k=k) >> QSGD(bits=2, include_zero=False, bucket=None)
        assert 4 * spec.numel / (chain.layout(spec).nbytes - 4) == pytest.approx(times, abs=0.05)


@pytest.mark.parametrize(
    ("compressor", "n", "delta"),
    [
        (ChunkedTopK(k=64), 4096, 64 / 4096),
        (ChunkedTopK(k=64), 10**9, 64 / 4096),
        (ChunkedTopK(k=64), 100, 0.64),
        (ChunkedTopK(k=64), 0, 1.0),
        (ChunkedTopK(k=3, chunk=10), 13, 0.3),  # the last chunk keeps all it has
        (ChunkedTopK(fraction=0.21, chunk=10), 19, 2 / 9),  # 3 of 10, but 2 of 9
        (ChunkedTopK(fraction=0.25, chunk=10), 12, 0.3),  # 3 of 10, and 1 of 2
        (ChunkedTopK(k=3, chunk=None), 100, 0.03),  # one row at worst
        (ChunkedTopK(fraction=0.25, chunk=None), 90, 0.25),
        (ChunkedTopK(k=2, chunk=8) >> Sign(), 32, 0.25 / 8),
        (ChunkedTopK(k=4, chunk=64) >> Shrink(QSGD(levels=4, bucket=None)), 1024, 1 / 16 / (1 + 2)),
    ],
    ids=repr,
)
def test_contraction_by_its_closed_form(compressor: Any, n: int, delta: float) -> None:
    assert compressor.contraction(n) == pytest.approx(delta)


@pytest.mark.parametrize("kept", [{"k": 3}, {"fraction": 0.21}], ids=str)
@pytest.mark.parametrize(("n", "chunk"), [(19, 10), (12, 10), (64, 16)])
def test_the_worst_input_attains_the_claim(kept: Any, n: int, chunk: int) -> None:
    """All mass on the chunk of least delta, and there all coordinates alike."""
    compressor, deltas = ChunkedTopK(chunk=chunk, **kept), []
    for part in torch.arange(n).split(chunk):
        x = torch.zeros(n).index_fill(0, part, 2.0)
        deltas.append(int((compressed(compressor, x) != 0).sum()) / len(part))
    assert compressor.contraction(n) == pytest.approx(min(deltas))


def test_an_index_beyond_the_last_chunk_is_refused() -> None:
    """Three coordinates in the last chunk, whose indices have room for eight."""
    compressor, x = ChunkedTopK(k=2, chunk=8), vector("gaussian", 11)
    payload, _ = compressor.compress(x, None, Key(0))
    payload.side.indices[-1] = 3
    received = wire.unpack(wire.pack(payload), compressor, TensorSpec.of(x))
    with pytest.raises(PayloadError, match=r"^payload: index 3 of a last chunk of 3 elements[.]$"):
        compressor.decompress(received)


def test_an_index_beyond_a_chunk_is_refused() -> None:
    compressor, x = ChunkedTopK(k=2, chunk=9), vector("gaussian", 27)
    payload, _ = compressor.compress(x, None, Key(0))
    payload.side.indices[0] = 9
    message = wire.pack(payload)
    with pytest.raises(PayloadError, match="symbol 9 outside the alphabet of 9"):
        wire.unpack(message, compressor, TensorSpec.of(x))


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({}, ValueError, "ChunkedTopK: give either fraction or k, got fraction=None and k=None."),
        ({"k": 0}, ValueError, "ChunkedTopK: k must be at least 1, got 0."),
        ({"fraction": 1.5}, ValueError, "ChunkedTopK: fraction must lie in (0, 1], got 1.5."),
        ({"k": 3, "chunk": 0}, ValueError, "ChunkedTopK: chunk must be at least 1, or None for rows, got 0."),
        ({"k": 3, "chunk": 64.0}, TypeError, "ChunkedTopK: chunk must be an integer, got 64.0."),
        ({"k": 3, "chunk": True}, TypeError, "ChunkedTopK: chunk must be an integer, got True."),
    ],
)
def test_refused(options: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=f"^{re.escape(words)}$"):
        ChunkedTopK(**options)


def test_the_text_is_the_value() -> None:
    for compressor in (ChunkedTopK(k=32), ChunkedTopK(fraction=0.01, chunk=None), ChunkedTopK(k=1, chunk=100)):
        assert parse(repr(compressor)) == compressor
