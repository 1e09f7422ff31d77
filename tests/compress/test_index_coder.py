"""Top-k's indices as a stream of gaps: exact, shorter where coordinates are sparse, hostile streams refused."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samples import compressed, same_bits, vector
from thriftgrad import Key, PayloadError, TensorSpec, TopK, wire
from thriftgrad.compress import Identity
from thriftgrad.core import Payload
from thriftgrad.wire.coders import Elias, GolombRice, Zstd

CODERS = [GolombRice(), *(Elias(code=code) for code in ("gamma", "delta", "omega")), Elias() >> Zstd(), Identity()]


def payload_of(coder: Any, x: torch.Tensor, k: int) -> Payload[Any]:
    return TopK(k=k, index_coder=coder).compress(x, None, Key(0))[0]


@pytest.mark.parametrize("coder", CODERS, ids=repr)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=60), st.integers(1, 60))
def test_the_same_coordinates_as_without_a_coder(coder: Any, values: list[int], k: int) -> None:
    x = torch.tensor(values, dtype=torch.float32)
    plain, coded = TopK(k=k), TopK(k=k, index_coder=coder)
    assert same_bits(compressed(coded, x), compressed(plain, x))
    payload = payload_of(coder, x, k)
    again = wire.unpack(wire.pack(payload), coded, TensorSpec.of(x))
    assert same_bits(coded.decompress(again), compressed(plain, x))


@pytest.mark.parametrize("coder", CODERS[:4], ids=repr)
def test_the_stream_is_that_of_the_gaps(coder: Any) -> None:
    """The first gap is the first index, each other one the number of coordinates between two that are kept."""
    x = torch.zeros(1000)
    x[[4, 5, 17, 999]] = torch.tensor([1.0, -2.0, 3.0, -4.0])
    gaps = torch.tensor([4, 0, 11, 981])
    stream = payload_of(coder, x, 4).side.indices
    assert torch.equal(stream, coder.encode(gaps, TensorSpec((4,), torch.int64, alphabet=1000)))


def test_gaps_cost_less_than_indices() -> None:
    """A hundredth of 100,000: 17 bits an index; the entropy of whether one is kept, 0.0808 bits, is 8.08 bits each."""
    x = vector("gaussian", 100_000)
    plain, coded = TopK(fraction=0.01), TopK(fraction=0.01, index_coder=GolombRice())
    index_bits = {
        compressor: 8 * (compressor.compress(x, None, Key(0))[0].nbytes - 4 * 1000) / 1000
        for compressor in (plain, coded)
    }
    assert index_bits[plain] == 17
    assert 8.0 < index_bits[coded] < 8.4


def with_stream(coder: Any, n: int, k: int, stream: torch.Tensor) -> torch.Tensor:
    layout = TopK(k=k, index_coder=coder).layout(TensorSpec((n,)))
    return TopK(k=k, index_coder=coder).decompress(Payload(torch.ones(k), type(layout.side)(stream), layout))


@pytest.mark.parametrize("coder", CODERS[:4], ids=repr)
def test_gaps_that_leave_the_tensor(coder: Any) -> None:
    for gaps, index in (([5, 5], 11), ([9, 0], 10), ([9, 9], 19)):
        stream = coder.encode(torch.tensor(gaps), TensorSpec((2,), torch.int64, alphabet=10))
        with pytest.raises(PayloadError, match=rf"payload: index {index} of a tensor of 10 elements\."):
            with_stream(coder, 10, 2, stream)
    stream = coder.encode(torch.tensor([8, 0]), TensorSpec((2,), torch.int64, alphabet=10))
    assert with_stream(coder, 10, 2, stream).nonzero().view(-1).tolist() == [8, 9]


@pytest.mark.parametrize("coder", CODERS[:5], ids=repr)
@given(st.binary(max_size=60), st.integers(1, 40), st.integers(1, 20))
def test_any_bytes_are_coordinates_or_refused(coder: Any, stream: bytes, n: int, k: int) -> None:
    """Behind a header that fits them: what comes out has k ones at different places, or does not come out."""
    compressor, k = TopK(k=k, index_coder=coder), min(k, n)
    body = struct.pack(f"<{k}f", *[1.0] * k) + struct.pack("<I", len(stream)) + stream
    header = bytearray(wire.pack(compressor.compress(torch.ones(n), None, Key(0))[0])[: wire.HEADER_BYTES])
    header[8:] = struct.pack("<QI", len(body), zlib.crc32(body))
    try:
        received = wire.unpack(bytes(header) + body, compressor, TensorSpec((n,)))
        x = compressor.decompress(received)
    except PayloadError:
        return
    assert x.count_nonzero() == k
    assert set(x.tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("coder", CODERS[:5], ids=repr)
def test_a_stream_cut_short(coder: Any) -> None:
    x = vector("gaussian", 300)
    stream = payload_of(coder, x, 30).side.indices
    for length in range(len(stream)):
        with pytest.raises(PayloadError):
            with_stream(coder, 300, 30, stream[:length])
