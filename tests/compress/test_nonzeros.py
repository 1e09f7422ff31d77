"""What is not zero comes back bit for bit, in the fewest bytes of three forms; hostile streams are refused."""

from __future__ import annotations

import math
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from samples import compressed, estimates, gradients, same_bits, specs, step
from thriftgrad import (
    QSGD,
    AllGather,
    ErrorFeedback,
    Huffman,
    Identity,
    Key,
    Ledger,
    Nonzeros,
    ParameterServer,
    Payload,
    PayloadError,
    RandomK,
    TensorSpec,
    TopK,
    Zstd,
    wire,
)

KINDS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
ANY_KINDS = [*KINDS, torch.int64, torch.int8, torch.bool, torch.complex64, torch.complex128]


def sparse(n: int, k: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """k ones and twos among n zeros."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.zeros(n)
    x[torch.randperm(n, generator=generator)[:k]] = torch.randint(1, 3, (k,), generator=generator).float()
    return x.to(dtype)


def stream_of(x: Tensor) -> Tensor:
    return Nonzeros().compress(x, None, Key(0))[0].carrier


def read(stream: bytes | Tensor, spec: TensorSpec) -> Tensor:
    """What a stream says, from its bytes alone."""
    layout = Nonzeros().layout(spec)
    stream = torch.tensor(list(stream), dtype=torch.uint8) if isinstance(stream, bytes) else stream
    like = torch.empty(0, dtype=spec.dtype)
    return Nonzeros().decompress(Payload(stream, type(layout.side)(like), layout))


def fewest_bytes(n: int, k: int, itemsize: int) -> int:
    """By the three formulas, each with the byte that says which."""
    index_bits = math.ceil(math.log2(n)) if n > 1 else 0
    packed = math.ceil(k / 5) if n == 3 else math.ceil(k * index_bits / 8)
    return 1 + min(n * itemsize, 4 + packed + k * itemsize, math.ceil(n / 8) + k * itemsize)


@pytest.mark.parametrize("dtype", ANY_KINDS, ids=str)
def test_bit_for_bit_and_no_longer_than_needed(dtype: torch.dtype) -> None:
    for n in (1, 2, 3, 8, 9, 257, 1000):
        for k in {0, 1, 2, n // 100, n // 12, n // 9, n // 2, n - n // 40, n - 1, n}:
            if k > n:
                continue
            x = sparse(n, k, dtype, seed=k)
            stream = stream_of(x)
            assert len(stream) == fewest_bytes(n, k, dtype.itemsize)
            assert same_bits(read(stream, TensorSpec.of(x)), x)


def test_all_three_forms_are_used() -> None:
    assert [int(stream_of(sparse(1000, k))[0]) for k in (0, 90, 110, 960, 980, 1000)] == [1, 1, 2, 2, 0, 0]


def test_by_hand() -> None:
    x = torch.zeros(100)
    x[[3, 64]] = torch.tensor([1.0, -2.0])
    indices = 3 + (64 << 7)  # 7 bits each, lowest first
    expected = struct.pack("<BIHff", 1, 2, indices, 1.0, -2.0)
    assert bytes(stream_of(x).tolist()) == expected
    x = torch.tensor([0.0, 1.0, 0.0, 0.0, 2.0, 3.0], dtype=torch.float64)
    # Six bits in planes of one byte: element i is bit i.
    assert bytes(stream_of(x).tolist()) == struct.pack("<BBddd", 2, 0b110010, 1.0, 2.0, 3.0)
    assert bytes(stream_of(torch.ones(2)).tolist()) == struct.pack("<Bff", 0, 1.0, 1.0)


@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_minus_zero_nan_infinity_and_denormals_are_no_zeros(dtype: torch.dtype) -> None:
    denormal = torch.finfo(dtype).smallest_normal / 4
    special = torch.tensor([-0.0, math.nan, -math.nan, math.inf, -math.inf, denormal], dtype=dtype)
    x = torch.zeros(500, dtype=dtype)
    x[::90] = special
    x[1] = torch.finfo(dtype).max
    assert len(stream_of(x)) == fewest_bytes(500, 7, dtype.itemsize)
    assert same_bits(compressed(Nonzeros(), x), x)


@given(st.binary(min_size=0, max_size=400))
def test_any_bits_come_back(raw: bytes) -> None:
    """NaNs of every payload among them."""
    raw = raw[: len(raw) // 8 * 8] + bytes(64)
    for dtype in KINDS:
        x = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(dtype)
        assert same_bits(read(stream_of(x), TensorSpec.of(x)), x)


def test_shapes_and_views() -> None:
    x = sparse(120, 9).view(4, 5, 6)
    for view in (x, x.transpose(0, 2), x[:, ::2], x[1, 2, 3], x[:0]):
        assert same_bits(compressed(Nonzeros(), view), view.contiguous())


def test_a_reader_may_want_another_type() -> None:
    """As one who averages bfloat16 messages in float32 does, also behind another stage."""
    x = sparse(300, 20, torch.bfloat16)
    for compressor in (Nonzeros(), Identity() >> Nonzeros(), TopK(k=25) >> Nonzeros()):
        (mean,) = estimates(AllGather(compressor), [[x], [2 * x]])[0]
        assert mean.dtype == torch.bfloat16
        assert torch.equal(mean, (x.float() * 1.5).bfloat16())


def test_symbols_are_packed_and_their_zero_left_out() -> None:
    x = torch.zeros(1000)
    x[:100] = torch.tensor([1.0, -1.0, 1.0, 1.0]).repeat(25)
    chain = QSGD(bits=2, norm="linf", bucket=1000) >> Nonzeros()
    payload, _ = chain.compress(x, (None, None), Key(0))
    assert len(payload.carrier) == 1 + 125 + 20  # a bit for each, and a hundred symbols, five to a byte
    assert torch.equal(chain.decompress(payload), x)
    assert torch.equal(chain.decompress(wire.unpack(wire.pack(payload), chain, TensorSpec.of(x))), x)
    x[3:] = 0
    assert len(chain.compress(x, (None, None), Key(0))[0].carrier) == 1 + 4 + 4 + 1  # three of 10 bits, and a byte
    everything = chain.compress(torch.ones(1000), (None, None), Key(0))[0].carrier
    assert (int(everything[0]), len(everything)) == (0, 1 + 200)


def test_a_coder_may_follow_and_none_may_stand_before() -> None:
    x = sparse(1000, 600)
    assert torch.equal(compressed(Nonzeros() >> Zstd(), x), x)
    with pytest.raises(TypeError, match=r"^Nonzeros\(\) leaves out zeros, and a coder's stream has none; leave one of"):
        QSGD(bits=2) >> Huffman() >> Nonzeros()


def test_claims() -> None:
    c = Nonzeros()
    assert (c.unbiased, c.projection, c.lossless, c.isometric, c.has_memory) == (True, True, True, False, False)
    assert (c.variance_bound(100), c.contraction(100)) == (0.0, 1.0)
    assert (RandomK(k=3, rescale=False) >> c).contraction(30) == 0.1


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_union_of_supports_comes_back_from_a_server(world: int) -> None:
    """The same estimates and memories as with a dense way back, in the bytes of the union."""
    union, dense = (ParameterServer(ErrorFeedback(TopK(k=3)), down) for down in (Nonzeros(), Identity()))
    states = [[each.init(specs()) for _ in range(world)] for each in (union, dense)]
    for i in range(3):
        book = Ledger()
        means, states[0] = step(union, gradients(world, i), states[0], Key(i), book)
        expected, states[1] = step(dense, gradients(world, i), states[1], Key(i))
        for one, other in zip(means, expected, strict=True):
            assert all(same_bits(a, b) for a, b in zip(one, other, strict=True))
        nonzero = [int((x != 0).sum()) for x in means[0]]
        assert max(nonzero) <= 3 * world
        streams = [4 + fewest_bytes(x.numel(), k, 4) for x, k in zip(means[0], nonzero, strict=True)]
        for rank in range(1, world):  # the message's length goes ahead, in 8 bytes
            assert book.per_worker[rank].payload_down_bytes == 8 + wire.HEADER_BYTES + sum(streams)


@pytest.mark.parametrize(
    ("stream", "n", "words"),
    [
        (b"", 4, "the first byte of a stream is 0, 1 or 2, got None"),
        (b"\x03" + bytes(16), 4, "the first byte of a stream is 0, 1 or 2, got 3"),
        (b"\x00" + bytes(15), 4, "16 bytes belong where 15 are; it was truncated or extended"),
        (b"\x00" + bytes(17), 4, "16 bytes belong where 17 are; it was truncated or extended"),
        (b"\x01\x00\x00", 4, "4 bytes belong where 2 are"),
        (b"\x01\x05\x00\x00\x00" + bytes(40), 4, "5 elements are announced where there are 4"),
        (b"\x01\xff\xff\xff\xff" + bytes(40), 4, "4294967295 elements are announced where there are 4"),
        (b"\x01\x02\x00\x00\x00\x04" + bytes(7), 4, "8 bytes belong where 7 are"),
        (b"\x01\x02\x00\x00\x00", 4, "1 bytes belong where 0 are"),
        (b"\x01\x02\x00\x00\x00\x00" + bytes(8), 4, "indices that do not ascend"),
        (b"\x01\x02\x00\x00\x00\x01" + bytes(8), 4, "indices that do not ascend"),
        (b"\x01\x01\x00\x00\x00\x04" + bytes(4), 4, "bits that are no symbols of an alphabet of 4"),
        (b"\x01\x01\x00\x00\x00\x07" + bytes(4), 6, "bits that are no symbols of an alphabet of 6"),
        (b"\x01\x01\x00\x00\x00\xf4" + bytes(4), 3, "bits that are no symbols of an alphabet of 3"),
        (b"\x02\x03" + bytes(4), 4, "8 bytes belong where 4 are"),
        (b"\x02\x10", 4, "bits that are no symbols of an alphabet of 2"),
        (b"\x02", 4, "1 bytes belong where 0 are"),
    ],
)
def test_hostile_streams(stream: bytes, n: int, words: str) -> None:
    with pytest.raises(PayloadError, match=words) as raised:
        read(stream, TensorSpec((n,)))
    assert str(raised.value).startswith("payload: ")
    assert str(raised.value).endswith(".")


SPECS = (
    TensorSpec((0,)),
    TensorSpec((1,)),
    TensorSpec((3,), torch.bfloat16),
    TensorSpec((5, 8), torch.float64),
    TensorSpec((300,)),
    TensorSpec((300,), torch.uint8, alphabet=3, zero=1),
    TensorSpec((70,), torch.int64, alphabet=1000),
    TensorSpec((9,), torch.uint8, alphabet=1),
)
lengths = st.integers(0, 2**32 - 1).map(lambda n: struct.pack("<I", n)) | st.integers(0, 12).map(
    lambda n: struct.pack("<I", n)
)
noise = st.binary(max_size=60) | st.builds(
    lambda form, length, rest: bytes([form]) + length + rest, st.integers(0, 2), lengths, st.binary(max_size=60)
)


def tensor_or_refused(stream: bytes, spec: TensorSpec) -> Tensor | None:
    try:
        x = read(stream, spec)
    except PayloadError:
        return None
    assert (x.shape, x.dtype) == (spec.shape, spec.dtype)
    assert spec.alphabet is None or x.max() < spec.alphabet
    return x


@settings(max_examples=300)
@given(noise, st.sampled_from(SPECS))
def test_any_bytes_are_a_tensor_or_refused(stream: bytes, spec: TensorSpec) -> None:
    tensor_or_refused(stream, spec)


@settings(max_examples=300)
@given(st.sampled_from([1, 40, 200, 290]), st.data())
def test_altered_streams_are_a_tensor_or_refused(k: int, data: st.DataObject) -> None:
    """A flipped bit makes another tensor or none; what is cut off or added makes none."""
    x, spec = sparse(300, k), TensorSpec((300,))
    stream = bytes(stream_of(x).tolist())
    flipped, bit = bytearray(stream), data.draw(st.integers(0, 8 * len(stream) - 1))
    flipped[bit // 8] ^= 1 << bit % 8
    other = tensor_or_refused(bytes(flipped), spec)
    assert other is None or not same_bits(other, x)
    assert tensor_or_refused(stream[: data.draw(st.integers(0, len(stream) - 1))], spec) is None
    assert tensor_or_refused(stream + data.draw(st.binary(min_size=1, max_size=9)), spec) is None
