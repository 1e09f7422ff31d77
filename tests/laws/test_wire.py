"""Payload to bytes and back, and bytes that are not what they should be."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import zoo
from samples import same_bits, vector
from thriftgrad import QSGD, Identity, Key, PayloadError, RandomK, Sign, TensorSpec, TopK, wire
from thriftgrad.core import Compressor, Payload
from thriftgrad.core.tree import leaves

EVERY = pytest.mark.parametrize("compressor", zoo.COMPRESSORS, ids=repr)
SPEC = TensorSpec((3, 10))


def payload_of(compressor: Compressor[Any, Any], x: Tensor) -> Payload[Any]:
    return compressor.compress(x, compressor.init(TensorSpec.of(x)), Key(2))[0]


def message_of(compressor: Compressor[Any, Any]) -> bytes:
    return bytes(wire.pack(payload_of(compressor, vector("gaussian", 30).view(3, 10))).tolist())


MESSAGES = {compressor: message_of(compressor) for compressor in zoo.COMPRESSORS}


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_round_trip_is_bit_exact_and_the_length_was_known(compressor: Compressor[Any, Any], dtype: torch.dtype) -> None:
    for shape in ((), (0,), (1,), (13,), (3, 43), (130, 5)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        spec, payload = TensorSpec.of(x), payload_of(compressor, x)
        message = wire.pack(payload)
        assert message.dtype == torch.uint8
        assert len(message) == payload.nbytes + wire.HEADER_BYTES
        announced = compressor.layout(spec)
        assert wire.message_nbytes([announced]) == (None if announced.variable else len(message))
        assert len(message) <= announced.nbytes + wire.HEADER_BYTES
        for received in (message, bytes(message.tolist())):
            again = wire.unpack(received, compressor, spec)
            sent_tensors, got = leaves((payload.carrier, payload.side)), leaves((again.carrier, again.side))
            assert all(same_bits(a, b) for a, b in zip(sent_tensors, got, strict=True))
            assert type(again.side) is type(payload.side)
            assert same_bits(compressor.decompress(again), compressor.decompress(payload))


def test_several_payloads_travel_in_one_message() -> None:
    compressors = [TopK(k=3), QSGD(bits=3), Sign()]
    xs = [vector("gaussian", n) for n in (9, 1, 33)]
    payloads = [payload_of(c, x) for c, x in zip(compressors, xs, strict=True)]
    message = wire.pack(*payloads)
    assert len(message) == wire.HEADER_BYTES + sum(p.nbytes for p in payloads)
    again = wire.unpack_all(message, [p.layout for p in payloads])
    for compressor, one, two in zip(compressors, payloads, again, strict=True):
        assert same_bits(compressor.decompress(one), compressor.decompress(two))


@pytest.mark.parametrize(
    ("compressor", "n", "nbytes"),
    [
        (Identity(), 1000, 4000),
        (QSGD(bits=2), 1000, 200 + 4 * 2),  # ternary: five to a byte
        (QSGD(bits=3), 1000, 375 + 4 * 2),
        (QSGD(bits=4), 1000, 500 + 4 * 2),
        (QSGD(bits=8, bucket=100), 1000, 1000 + 4 * 10),
        (QSGD(levels=8, bucket=1000), 1000, 625 + 4),  # 17 symbols: 5 bits
        (TopK(k=7), 1000, 7 * 4 + 9),  # 7 indices of 10 bits: 70 bits
        (TopK(k=7), 1024, 7 * 4 + 9),
        (TopK(k=7), 1025, 7 * 4 + 10),
        (TopK(fraction=0.01) >> Sign(), 1000, 2 + 4 + 13),
        (RandomK(k=7), 1000, 7 * 4 + 8),
        (Sign(), 1000, 125 + 4),
        (Sign(bucket=64), 1000, 125 + 4 * 16),
    ],
    ids=repr,
)
def test_bytes_by_their_closed_forms(compressor: Compressor[Any, Any], n: int, nbytes: int) -> None:
    assert payload_of(compressor, vector("gaussian", n)).nbytes == nbytes


rows = st.sampled_from(zoo.COMPRESSORS)


@given(rows, st.data())
def test_truncated(compressor: Compressor[Any, Any], data: st.DataObject) -> None:
    message = MESSAGES[compressor]
    with pytest.raises(PayloadError, match="truncated"):
        wire.unpack(message[: data.draw(st.integers(0, len(message) - 1))], compressor, SPEC)


@given(rows, st.binary(min_size=1, max_size=40))
def test_extended(compressor: Compressor[Any, Any], more: bytes) -> None:
    with pytest.raises(PayloadError, match="truncated or extended"):
        wire.unpack(MESSAGES[compressor] + more, compressor, SPEC)
    with pytest.raises(PayloadError):
        wire.unpack(more + MESSAGES[compressor], compressor, SPEC)


@given(rows, st.data())
@settings(max_examples=300)
def test_any_flipped_bit(compressor: Compressor[Any, Any], data: st.DataObject) -> None:
    message = bytearray(MESSAGES[compressor])
    bit = data.draw(st.integers(0, 8 * len(message) - 1))
    message[bit // 8] ^= 1 << bit % 8
    with pytest.raises(PayloadError):
        wire.unpack(bytes(message), compressor, SPEC)


@EVERY
def test_every_bit_of_the_header_counts(compressor: Compressor[Any, Any]) -> None:
    for bit in range(8 * wire.HEADER_BYTES):
        message = bytearray(MESSAGES[compressor])
        message[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PayloadError):
            wire.unpack(bytes(message), compressor, SPEC)


@given(rows, st.binary(max_size=200))
def test_random_bytes(compressor: Compressor[Any, Any], noise: bytes) -> None:
    with pytest.raises(PayloadError):
        wire.unpack(noise, compressor, SPEC)
    with pytest.raises(PayloadError):
        wire.unpack(b"TG\x01\x00" + noise, compressor, SPEC)


@given(rows, st.data())
@settings(max_examples=300)
def test_whatever_bytes_follow_a_right_header_nothing_but_payload_error_comes(
    compressor: Compressor[Any, Any], data: st.DataObject
) -> None:
    size = len(MESSAGES[compressor]) - wire.HEADER_BYTES
    body = data.draw(st.binary(min_size=size, max_size=size))
    header = bytearray(MESSAGES[compressor][: wire.HEADER_BYTES])
    header[-4:] = struct.pack("<I", zlib.crc32(body))
    try:
        estimate = compressor.decompress(wire.unpack(bytes(header) + body, compressor, SPEC))
    except PayloadError:
        return  # symbols outside their alphabet, an index beyond the tensor, a stream that is no code
    assert estimate.shape == SPEC.shape


@pytest.mark.parametrize(
    ("compressor", "body", "words"),
    [
        (QSGD(bits=4, bucket=30), b"\xff" * 15 + bytes(4), "symbol 15 outside the alphabet of 15"),
        (TopK(k=3), bytes(12) + b"\xff\x7f", "symbol 31 outside the alphabet of 30"),
    ],
)
def test_symbols_outside_their_alphabet(compressor: Compressor[Any, Any], body: bytes, words: str) -> None:
    header = bytearray(message_of(compressor)[: wire.HEADER_BYTES])
    header[-4:] = struct.pack("<I", zlib.crc32(body))
    with pytest.raises(PayloadError, match=words):
        wire.unpack(bytes(header) + body, compressor, SPEC)


@given(rows, rows)
def test_another_compressor(compressor: Compressor[Any, Any], other: Compressor[Any, Any]) -> None:
    if compressor != other:
        with pytest.raises(PayloadError, match=r"packed (by another compressor or for another tensor|with levels)"):
            wire.unpack(MESSAGES[compressor], other, SPEC)


@pytest.mark.parametrize(
    "spec",
    [TensorSpec((30,)), TensorSpec((10, 3)), TensorSpec((3, 11)), TensorSpec((0,)), SPEC.with_dtype(torch.float64)],
    ids=lambda spec: f"{spec.shape}-{spec.dtype}",
)
@EVERY
def test_another_spec(compressor: Compressor[Any, Any], spec: TensorSpec) -> None:
    with pytest.raises(PayloadError, match="packed by another compressor or for another tensor"):
        wire.unpack(MESSAGES[compressor], compressor, spec)


def altered(offset: int, form: str, value: int) -> bytes:
    message = bytearray(MESSAGES[TopK(k=3)])
    struct.pack_into(form, message, offset, value)
    return bytes(message)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"", "0 bytes cannot hold the header of 20; it was truncated"),
        (b"PK" + MESSAGES[TopK(k=3)][2:], "begins with b'PK' and not with b'TG', so it is none of ours"),
        (altered(2, "<B", 9), "format version 9, this build reads version 1; update both ends"),
        (altered(3, "<B", 1), "levels of version 1, and version 0 is held here; bring all workers to one state"),
        (altered(4, "<I", 0), "packed by another compressor"),
        (altered(8, "<Q", 2**60), f"follow a header that announces {2**60}, .* truncated or extended"),
        (altered(16, "<I", 0), "the checksum does not fit the bytes, so they were altered on the way"),
    ],
)
def test_messages(message: bytes, words: str) -> None:
    with pytest.raises(PayloadError, match=words):
        wire.unpack(message, TopK(k=3), SPEC)


@pytest.mark.parametrize("message", [torch.zeros(40), torch.zeros(4, 10, dtype=torch.uint8), torch.zeros(40).char()])
def test_only_flat_bytes_are_read(message: Tensor) -> None:
    with pytest.raises(PayloadError, match="expected a flat uint8 tensor, got"):
        wire.unpack(message, TopK(k=3), SPEC)


def test_a_strided_message_is_read_like_its_copy() -> None:
    compressor = QSGD(bits=4)
    message = torch.frombuffer(bytearray(MESSAGES[compressor]), dtype=torch.uint8)
    strided = torch.zeros(2 * len(message), dtype=torch.uint8)
    strided[::2] = message
    one, two = wire.unpack(strided[::2], compressor, SPEC), wire.unpack(message, compressor, SPEC)
    assert same_bits(one.carrier, two.carrier)


def test_a_payload_error_is_a_value_error() -> None:
    assert issubclass(PayloadError, ValueError)
