"""What holds for every coder: decode undoes encode, streams stay below their limit, strangers are answered politely."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coders.oracles import decoded_or_refused, spec_of, symbols_of
from thriftgrad import QSGD, Key, PayloadError, TensorSpec, wire
from thriftgrad.wire.coders import ANS, Coder, Elias, GolombRice, Huffman, Zstd

CODERS: tuple[Coder, ...] = (
    *(Elias(code, sparse) for code in ("gamma", "delta", "omega") for sparse in (False, True)),
    Huffman(),
    GolombRice(),
    ANS(),
    Zstd(),
)
ALPHABETS = (1, 2, 3, 15, 16, 255, 256, 1000, 1 << 20, 1 << 40)
every_coder = pytest.mark.parametrize("coder", CODERS, ids=repr)
quick = settings(max_examples=20)
every_alphabet = pytest.mark.parametrize("alphabet", ALPHABETS)


def zeros_of(alphabet: int) -> tuple[int, ...]:
    """The first symbol, the middle one, the last one."""
    return tuple(sorted({0, (alphabet - 1) // 2, alphabet - 1}))


@st.composite
def carriers(draw: st.DrawFn, alphabet: int) -> tuple[list[int], TensorSpec]:
    """Symbols of every temper (scattered, mostly zero, constant, at the ends), and a spec that tells more or less."""
    zero = draw(st.sampled_from(zeros_of(alphabet)))
    kinds = st.sampled_from((zero, 0, alphabet - 1))
    symbol = draw(
        st.sampled_from((st.integers(0, alphabet - 1), st.one_of(st.just(zero), kinds), kinds, st.just(zero)))
    )
    values = draw(st.lists(symbol, max_size=draw(st.sampled_from((0, 1, 5, 200)))))
    known = 1 < alphabet <= 300 and draw(st.booleans())
    model = (
        tuple(float(1 + (i - zero) ** 2 % 97 if i % 3 else 0) for i in range(alphabet))
        if known and alphabet > 1
        else None
    )
    return values, spec_of(len(values), alphabet, zero=zero, probabilities=model)


@every_coder
@every_alphabet
@given(data=st.data())
@quick
def test_decode_undoes_encode(coder: Coder, alphabet: int, data: st.DataObject) -> None:
    values, spec = data.draw(carriers(alphabet))
    symbols = symbols_of(spec, values)
    before = symbols.clone()
    stream = coder.encode(symbols, spec)
    assert torch.equal(symbols, before)
    assert stream.dtype == torch.uint8
    assert stream.dim() == 1
    assert len(stream) <= coder.limit_bytes(spec)
    assert torch.equal(coder.encode(symbols, spec), stream)
    back = coder.decode(stream, spec)
    assert back.dtype == spec.dtype
    assert torch.equal(back, symbols)


@every_coder
@pytest.mark.parametrize("alphabet", [2, 3, 15, 256, 1000, 1 << 40])
def test_long_tensors(coder: Coder, alphabet: int) -> None:
    """Longer than the blocks that are worked on at a time, of more dimensions, not contiguous."""
    rng = np.random.default_rng(alphabet)
    zero = (alphabet - 1) // 2
    offsets = (rng.standard_normal((150, 1000)) * min(alphabet / 6, 1 << 30)).round().astype(np.int64)
    symbols = torch.from_numpy(np.clip(offsets + zero, 0, alphabet - 1)).t()
    assert not symbols.is_contiguous()
    spec = TensorSpec((1000, 150), torch.int64, alphabet=alphabet, zero=zero)
    stream = coder.encode(symbols, spec)
    assert len(stream) <= coder.limit_bytes(spec)
    assert torch.equal(coder.decode(stream, spec), symbols)


@pytest.mark.parametrize("coder", [coder for coder in CODERS if isinstance(coder, Elias) and coder.sparse], ids=repr)
@pytest.mark.parametrize("alphabet", [2, 3, 9, 300])
def test_the_sparse_limit_holds_at_every_spacing(coder: Elias, alphabet: int) -> None:
    for zero in zeros_of(alphabet):
        far = alphabet - 1 if zero < alphabet - 1 - zero else 0  # the symbol farthest from zero
        for count in (1, 2, 3, 17, 64, 65, 1000):
            spec = TensorSpec((count,), torch.int64, alphabet=alphabet, zero=zero)
            for gap in (1, 2, 3, 4, 8, 16):
                symbols = torch.full((count,), zero)
                symbols[gap - 1 :: gap] = far
                assert len(coder.encode(symbols, spec)) <= coder.limit_bytes(spec)


@pytest.mark.parametrize("coder", [coder for coder in CODERS if "sparse" not in repr(coder)], ids=repr)
@given(st.binary(max_size=300))
@example(b"")
@quick
def test_streams_of_unknown_length(coder: Coder, raw: bytes) -> None:
    """A coder behind another one gets at most so many bytes, and says how many there were."""
    spec = TensorSpec((300,), torch.uint8, variable=True)
    symbols = torch.tensor(list(raw), dtype=torch.uint8)
    stream = coder.encode(symbols, spec)
    assert len(stream) <= coder.limit_bytes(spec)
    assert torch.equal(coder.decode(stream, spec), symbols)


@every_coder
@given(data=st.data())
def test_any_bytes_are_symbols_or_refused(coder: Coder, data: st.DataObject) -> None:
    _, spec = data.draw(carriers(data.draw(st.sampled_from(ALPHABETS))))
    repeated = st.builds(lambda piece, times: piece * times, st.binary(max_size=3), st.integers(0, 99))
    raw = data.draw(st.one_of(st.binary(max_size=60), repeated))
    decoded_or_refused(coder, torch.tensor(list(raw), dtype=torch.uint8), spec)


@every_coder
@given(data=st.data())
def test_altered_streams_are_other_symbols_or_refused(coder: Coder, data: st.DataObject) -> None:
    values, spec = data.draw(carriers(data.draw(st.sampled_from(ALPHABETS))))
    stream = coder.encode(symbols_of(spec, values), spec)
    cut = data.draw(st.integers(0, len(stream)))
    decoded_or_refused(coder, stream[:cut], spec)
    decoded_or_refused(coder, torch.cat((stream, stream[:cut])), spec)
    if len(stream):
        flipped = stream.clone()
        flipped[data.draw(st.integers(0, len(stream) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        decoded_or_refused(coder, flipped, spec)


@every_coder
@given(data=st.data())
@quick
def test_nothing_may_follow_a_stream(coder: Coder, data: st.DataObject) -> None:
    values, spec = data.draw(carriers(15))
    stream = coder.encode(symbols_of(spec, values), spec)
    for tail in (0, 1, 255):
        assert decoded_or_refused(coder, torch.cat((stream, torch.tensor([tail]).byte())), spec) is None


@pytest.mark.parametrize("coder", [coder for coder in CODERS if isinstance(coder, Elias)], ids=repr)
@given(raw=st.binary(max_size=12), count=st.integers(0, 12))
def test_symbols_have_one_elias_stream(coder: Elias, raw: bytes, count: int) -> None:
    """Whatever is decoded is what would have been encoded."""
    spec, stream = spec_of(count, 15, zero=7), torch.tensor(list(raw), dtype=torch.uint8)
    symbols = decoded_or_refused(coder, stream, spec)
    assert symbols is None or torch.equal(coder.encode(symbols, spec), stream)


@pytest.mark.parametrize("coder", CODERS[:8], ids=repr)
@pytest.mark.parametrize("byte", [0x00, 0xFF, 0x55])
def test_hostile_streams_cost_little(coder: Coder, byte: int) -> None:
    """Ten million symbols expected, a megabyte of nonsense received: time and memory follow what was received."""
    spec = TensorSpec((10_000_000,), torch.uint8, alphabet=15, zero=7)
    stream = torch.full((1_000_000,), byte, dtype=torch.uint8)
    tracemalloc.start()
    start = time.perf_counter()
    decoded_or_refused(coder, stream, spec)
    seconds, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * 8 * 8_000_000 + 8 * 10_000_000
    assert seconds < 20


@pytest.mark.parametrize("coder", CODERS[:-1], ids=repr)
def test_only_symbols_can_be_coded(coder: Coder) -> None:
    spec = TensorSpec((3,), zero=0)
    with pytest.raises(TypeError, match=r"codes integer symbols, and a carrier of torch\.float32 has no alphabet; put"):
        coder.encode(torch.zeros(3), spec)
    with pytest.raises(TypeError, match="has no alphabet"):
        coder.decode(torch.zeros(3, dtype=torch.uint8), spec)
    with pytest.raises(TypeError, match="has no alphabet"):
        coder.limit_bytes(spec)


@every_coder
def test_symbols_must_be_what_the_spec_says(coder: Coder) -> None:
    with pytest.raises(ValueError, match=r"symbols lie in \[0, 5\), got some in \[2, 5\]"):
        coder.encode(torch.tensor([2, 5]), TensorSpec((2,), torch.int64, alphabet=5, zero=2))
    with pytest.raises(ValueError, match=r"symbols lie in \[0, 5\), got some in \[-1, 2\]"):
        coder.encode(torch.tensor([2, -1]), TensorSpec((2,), torch.int64, alphabet=5, zero=2))
    with pytest.raises(ValueError, match="the spec says 3 elements, got 2"):
        coder.encode(torch.tensor([2, 2]), TensorSpec((3,), torch.int64, alphabet=5, zero=2))
    if not (isinstance(coder, Elias) and coder.sparse):
        with pytest.raises(ValueError, match="the spec says at most 1 elements, got 2"):
            coder.encode(torch.tensor([2, 2]).byte(), TensorSpec((1,), torch.uint8, variable=True))


@pytest.mark.parametrize("coder", CODERS[:-1], ids=repr)
def test_alphabets_have_a_largest_size(coder: Coder) -> None:
    with pytest.raises(ValueError, match=r"must have 1 to 2\*\*44 symbols, got 35184372088832"):
        coder.limit_bytes(TensorSpec((3,), torch.int64, alphabet=1 << 45, zero=0))


@every_coder
def test_a_stream_is_a_flat_tensor_of_bytes(coder: Coder) -> None:
    spec = spec_of(3, 15, zero=7)
    for stream in (torch.zeros(3), torch.zeros(2, 2, dtype=torch.uint8)):
        with pytest.raises(PayloadError, match="expected a flat uint8 tensor, got torch"):
            coder.decode(stream, spec)


@pytest.mark.parametrize("coder", [Elias(), Huffman(), GolombRice(), ANS()], ids=repr)
def test_numbers_of_symbols_that_cannot_be(coder: Coder) -> None:
    spec = TensorSpec((300,), torch.uint8, variable=True)
    with pytest.raises(PayloadError, match="3 bytes cannot hold the number of symbols"):
        coder.decode(torch.zeros(3, dtype=torch.uint8), spec)
    with pytest.raises(PayloadError, match="301 symbols are announced, and there cannot be more than 300"):
        coder.decode(torch.tensor([45, 1, 0, 0, 0], dtype=torch.uint8), spec)


@every_coder
def test_a_coder_behind_a_quantiser(coder: Coder) -> None:
    """The chain's estimate is the quantiser's own, whatever the coder; bytes are counted as they travel."""
    chain, plain = QSGD(bits=4, bucket=512) >> coder, QSGD(bits=4, bucket=512)
    x, key = torch.randn(3000, generator=torch.Generator().manual_seed(0)), Key(0)
    spec = TensorSpec.of(x)
    payload, _ = chain.compress(x, chain.init(spec), key)
    expected = plain.decompress(plain.compress(x, plain.init(spec), key)[0])
    assert torch.equal(chain.decompress(payload), expected)
    message = wire.pack(payload)
    assert len(message) == payload.nbytes + wire.HEADER_BYTES
    assert torch.equal(chain.decompress(wire.unpack(message, chain, spec)), expected)
    assert chain.unbiased
    assert chain.variance_bound(3000) == plain.variance_bound(3000)


@pytest.mark.parametrize("first", [Elias(), Elias("gamma", sparse=True), Huffman(), GolombRice(), ANS()], ids=repr)
@pytest.mark.parametrize("second", [Elias("delta"), Huffman(), ANS(), Zstd()], ids=repr)
def test_a_coder_behind_a_coder(first: Coder, second: Coder) -> None:
    chain, plain = QSGD(bits=4, bucket=512) >> first >> second, QSGD(bits=4, bucket=512)
    x, key = torch.randn(1000, generator=torch.Generator().manual_seed(0)), Key(0)
    spec = TensorSpec.of(x)
    payload, _ = chain.compress(x, chain.init(spec), key)
    expected = plain.decompress(plain.compress(x, plain.init(spec), key)[0])
    assert torch.equal(chain.decompress(wire.unpack(wire.pack(payload), chain, spec)), expected)


@every_coder
def test_a_coder_is_written_as_it_is_made(coder: Coder) -> None:
    assert (
        eval(repr(coder), {"Elias": Elias, "Huffman": Huffman, "GolombRice": GolombRice, "ANS": ANS, "Zstd": Zstd})
        == coder
    )
