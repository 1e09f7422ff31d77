"""Huffman codes: shortest, complete, near the entropy, never worse than packing; and what strangers may send."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from coders.oracles import bits_of, entropy_bits, gamma, spec_of, stream_of, symbols_of
from thriftgrad import PayloadError, TensorSpec
from thriftgrad.kernels.prefix_codes import LONGEST_BITS, canonical
from thriftgrad.wire.coders import Huffman
from thriftgrad.wire.coders.huffman import expected_bits, group_sizes, model_lengths
from thriftgrad.wire.coders.symbols import packed_bytes


def drawn(probabilities: list[float], count: int, seed: int = 0) -> torch.Tensor:
    shares = np.array(probabilities) / sum(probabilities)
    return torch.from_numpy(np.random.default_rng(seed).choice(len(shares), count, p=shares))


def bell(alphabet: int, width: float) -> list[float]:
    """A Gaussian histogram around the middle symbol."""
    shares = stats.norm.pdf(np.arange(alphabet) - alphabet // 2, scale=width)
    return list(shares / shares.sum())


def test_a_stream_is_head_range_table_codes() -> None:
    """Kinds 2, 3, 5 and 6 of nine, singles pay: lowest 2, range 4. Lengths 1 3 - 3 2: 0001 0011, 0000 1, 0011 0010."""
    values = [2] * 80 + [6] * 30 + [3] * 15 + [5] * 10
    np.random.default_rng(0).shuffle(values)
    spec = spec_of(len(values), 9)
    code = {2: "0", 6: "10", 3: "110", 5: "111"}
    table = "00010011" + "0000" + gamma(1) + "00110010"
    stream = Huffman().encode(symbols_of(spec, values), spec)
    assert stream[:3].tolist() == [0x10 | 1, 2, 4]
    assert torch.equal(stream[3:], torch.cat((stream_of(table), stream_of("".join(code[value] for value in values)))))


def test_large_symbols_have_two_bytes_in_front() -> None:
    values = [1000] * 300 + [1001, 1002] * 20
    spec = spec_of(len(values), 5000)
    stream = Huffman().encode(symbols_of(spec, values), spec)
    assert stream[:5].tolist() == [0x10 | 1, 0xE8, 0x03, 2, 0]
    assert Huffman().decode(stream, spec).tolist() == values


def test_a_group_is_a_number_whose_first_symbol_is_the_highest_digit() -> None:
    """With a model no table travels. A group of two: 0.9 ** 2 gets 0, and the last one is filled with the zero."""
    model = (0.05, 0.9, 0.05)
    lengths = model_lengths(model, 2).numpy()
    codes = canonical(lengths).tolist()
    words = {pair: f"{codes[i]:b}".zfill(lengths[i]) for i, pair in enumerate(product(range(3), repeat=2))}
    assert words[1, 1] == "0"
    values = [1, 1, 1, 2, 1, 1, 0, 1, 1]
    spec = spec_of(9, 3, zero=1, probabilities=model)
    bits = "".join(words[pair] for pair in ((1, 1), (1, 2), (1, 1), (0, 1), (1, 1)))
    stream = torch.cat((torch.tensor([0x20 | 2]).byte(), stream_of(bits)))
    assert Huffman().decode(stream, spec).tolist() == values


def test_a_long_stream_lies_in_quarters_behind_their_lengths() -> None:
    """4096 groups of one of two kinds, which takes a bit: four quarters of 128 bytes."""
    model = (0.5, 0.3, 0.2)
    values = np.random.default_rng(0).choice(3, 4096, p=model).tolist()
    spec = spec_of(4096, 3, probabilities=model)
    lengths = model_lengths(model, 1).numpy()
    words = [f"{code:b}".zfill(length) for code, length in zip(canonical(lengths).tolist(), lengths, strict=True)]
    quarters = [stream_of("".join(words[value] for value in values[i : i + 1024])) for i in range(0, 4096, 1024)]
    sizes = torch.tensor([byte for quarter in quarters[:3] for byte in len(quarter).to_bytes(2, "little")]).byte()
    stream = torch.cat((torch.tensor([0x20 | 1]).byte(), sizes, *quarters))
    assert Huffman().decode(stream, spec).tolist() == values


@pytest.mark.parametrize("width", [0.3, 0.5, 1.0, 2.0])
def test_a_known_model_sends_no_table(width: float) -> None:
    model = tuple(bell(15, width))
    symbols = drawn(list(model), 3000)
    known, unknown = spec_of(3000, 15, zero=7, probabilities=model), spec_of(3000, 15, zero=7)
    with_model, without = (Huffman().encode(symbols.byte(), spec) for spec in (known, unknown))
    if width > 0.3:  # there, codes for all that the model thinks nearly impossible cost more than a table
        assert len(with_model) < len(without)
        assert with_model[0] & 0xF0 == 0x20
    assert len(with_model) <= len(without)
    assert torch.equal(Huffman().decode(with_model, known), symbols.byte())


@given(st.lists(st.integers(0, 2), max_size=60))
def test_long_codes_of_improbable_groups(values: list[int]) -> None:
    """A model that is sure of itself gives what it thinks rare codes of up to 14 bits."""
    model, group = (0.05, 0.9, 0.05), 6
    lengths = model_lengths(model, group).numpy()
    assert lengths.max() == LONGEST_BITS
    assert sum(2.0**-lengths) == 1
    spec = spec_of(len(values), 3, zero=1, probabilities=model)
    codes = [f"{code:b}".zfill(length) for code, length in zip(canonical(lengths).tolist(), lengths, strict=True)]
    filled = "".join(map(str, [*values, *[1] * (-len(values) % group)]))
    bits = "".join(codes[int(filled[i : i + group], 3)] for i in range(0, len(filled), group))
    if values:
        stream = torch.cat((torch.tensor([0x20 | group]).byte(), stream_of(bits)))
        assert Huffman().decode(stream, spec).tolist() == values
    symbols = symbols_of(spec, values)
    assert torch.equal(Huffman().decode(Huffman().encode(symbols, spec), spec), symbols)


def test_a_model_that_is_wrong_gives_way_to_a_table() -> None:
    model = (0.98, 0.01, 0.01)
    symbols = drawn([0.01, 0.98, 0.01], 10_000).byte()
    stream = Huffman().encode(symbols, spec_of(10_000, 3, probabilities=model))
    assert stream[0] & 0xF0 == 0x10
    assert 8 * len(stream) < 0.3 * 10_000  # a seventh of a bit is the least of groups of seven
    assert torch.equal(Huffman().decode(stream, spec_of(10_000, 3, probabilities=model)), symbols)


def test_symbols_that_a_model_thinks_impossible_can_be_sent() -> None:
    spec = spec_of(4, 4, probabilities=(0.0, 1.0, 0.0, 0.0))
    symbols = torch.tensor([0, 1, 2, 3], dtype=torch.uint8)
    assert torch.equal(Huffman().decode(Huffman().encode(symbols, spec), spec), symbols)
    for group in group_sizes(4):
        assert model_lengths((0.0, 1.0, 0.0, 0.0), group).min() > 0


@pytest.mark.parametrize(
    "probabilities", [[0.05, 0.9, 0.05], [0.2, 0.6, 0.2], [1 / 3] * 3, bell(15, 2.0), bell(7, 1.0)]
)
def test_within_a_bit_a_group_of_the_entropy(probabilities: list[float]) -> None:
    entropy = stats.entropy(probabilities, base=2)
    for group in group_sizes(len(probabilities))[:3]:
        assert entropy <= expected_bits(probabilities, group) < entropy + 1 / group
    symbols = drawn(probabilities, 20_000)
    spec = TensorSpec((20_000,), torch.int64, alphabet=len(probabilities))
    bits = 8 * len(Huffman().encode(symbols, spec)) / 20_000
    table_bits = 24 + 4 * len(probabilities) ** 2 * 1.5  # of the pairs, at most, and what stands in front
    assert entropy_bits(symbols) <= bits <= entropy_bits(symbols) + 1 / 2 + table_bits / 20_000


@pytest.mark.parametrize("probabilities", [[0.05, 0.9, 0.05], [0.1, 0.8, 0.1], [0.2, 0.6, 0.2], [0.3, 0.4, 0.3]])
def test_ternary_symbols_within_three_percent_of_the_entropy(probabilities: list[float]) -> None:
    symbols = drawn(probabilities, 100_000)
    bits = 8 * len(Huffman().encode(symbols, TensorSpec((100_000,), torch.int64, alphabet=3, zero=1))) / 100_000
    entropy = entropy_bits(symbols)
    assert entropy <= bits <= 1.03 * entropy
    if probabilities[1] == 0.9:
        assert bits < 0.6


@pytest.mark.parametrize("width", [1.5, 2.0, 3.0])
def test_four_bits_within_a_percent_of_the_entropy(width: float) -> None:
    symbols = drawn(bell(15, width), 100_000)
    bits = 8 * len(Huffman().encode(symbols, TensorSpec((100_000,), torch.int64, alphabet=15, zero=7))) / 100_000
    assert entropy_bits(symbols) <= bits <= 1.01 * entropy_bits(symbols)


def test_expected_bits_are_what_is_measured() -> None:
    model = bell(7, 0.8)
    symbols, spec = drawn(model, 100_000), TensorSpec((100_000,), torch.int64, alphabet=7, probabilities=tuple(model))
    stream = Huffman().encode(symbols, spec)
    assert 8 * len(stream) / 100_000 == pytest.approx(expected_bits(model, int(stream[0]) & 15), rel=0.01)


@given(st.lists(st.integers(0, 14), max_size=50), st.booleans())
def test_never_more_than_a_byte_over_packing(values: list[int], model: bool) -> None:
    spec = spec_of(len(values), 15, zero=7, probabilities=tuple(bell(15, 0.5)) if model else None)
    stream = Huffman().encode(symbols_of(spec, values), spec)
    assert len(stream) <= 1 + packed_bytes(len(values), 15) == Huffman().limit_bytes(spec)


def test_a_constant_tensor_takes_no_bits_a_symbol() -> None:
    spec = spec_of(100_000, 3, zero=1)
    stream = Huffman().encode(torch.ones(100_000, dtype=torch.uint8), spec)
    assert len(stream) == 4  # the head, the symbol, the range of it, and a length
    assert Huffman().decode(stream, spec).eq(1).all()


def test_wide_ranges_and_large_symbols_are_packed() -> None:
    assert list(group_sizes(1 << 12)) == [1]
    assert list(group_sizes(1 + (1 << 12))) == []
    spec = spec_of(1000, 1 << 20)
    for high, head in ((4095, 0x11), (4096, 0)):
        assert Huffman().encode(torch.arange(1000) // 999 * high, spec)[0] == head
    for symbol, head in (((1 << 15) - 1, 0x11), (1 << 15, 0)):
        assert Huffman().encode(torch.full((1000,), symbol), spec)[0] == head
    assert list(group_sizes(64)) == [1, 2]
    assert list(group_sizes(64, highest=300)) == [1]
    assert max(group_sizes(2)) == 8


TABLE = "00010011" + "0000" + gamma(1) + "00110010"  # lengths 1 3 - 3 2
NO_TABLE = "no complete code"


@pytest.mark.parametrize(
    ("head", "bits", "message"),
    [
        ([0x11, 0, 4], TABLE[:8], NO_TABLE),
        ([0x11, 0, 4], TABLE[:8] + "0000" + "0" * 30, NO_TABLE),
        ([0x11, 0, 4], TABLE[:8] + "0000" + "0" * 300, NO_TABLE),
        ([0x11, 0, 4], "0000" + gamma(1) + "0000" + gamma(1) + "0" * 20, NO_TABLE),
        ([0x11, 0, 4], "0000" + gamma(6) + "0" * 20, NO_TABLE),
        ([0x11, 0, 4], "0000" + gamma(5), NO_TABLE),
        ([0x11, 0, 4], "0001" * 3 + "0000" + gamma(2), NO_TABLE),
        ([0x11, 0, 4], "0001" + "0010" + "0000" + gamma(3), NO_TABLE),
        ([0x11, 0, 4], "0010" + "0000" + gamma(4), NO_TABLE),
        ([0x11, 0, 4], "1111" + TABLE[4:], NO_TABLE),
        ([0x11, 0, 4], TABLE + "1" * 3 + "0" * 8, NO_TABLE),  # what fills the table's last byte
        ([0x11, 0, 4], TABLE + "0" * 40, "5 bytes of codes are not those of 8 symbols"),
        ([0x11, 0, 4], TABLE, "0 bytes of codes are not those of 8 symbols"),
        ([0x11, 0, 4], TABLE + "0" * 3 + "1" * 8, "1 bytes of codes are not those of 8 symbols"),
        ([0x11, 0, 4], TABLE + "0" * 3 + "1" * 32, "4 bytes of codes are not those of 8 symbols"),
        ([0x11, 0, 5], TABLE, "announce no groups of 8 symbols of 5 kinds"),
        ([0x11, 4, 1], TABLE, "announce no groups"),
        ([0x17, 0, 4], TABLE, "announce no groups"),
        ([0x10, 0, 4], TABLE, "announce no groups"),
        ([0x31, 0, 4], TABLE, "announce no groups"),
        ([0x21, 0, 4], TABLE, r"bytes \[33, 0, 4, 19, 9\] announce no groups"),  # no probabilities are known
        ([0x11, 0], "", "announce no groups"),
        ([0x11], "", "announce no groups"),
        ([1], TABLE, "or written by an earlier version"),
        ([255], TABLE, "announce no groups"),
        ([0], "0" * 16, "8 symbols take 3 bytes, got 2"),
        ([0], "1" * 24, "symbol 7 outside the alphabet of 5"),
    ],
)
def test_hostile_streams(head: list[int], bits: str, message: str) -> None:
    stream = torch.cat((torch.tensor(head, dtype=torch.uint8), stream_of(bits)))
    with pytest.raises(PayloadError, match=message):
        Huffman().decode(stream, spec_of(8, 5))


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 4, 5, 6])
def test_lengths_of_quarters_that_cannot_be(cut: int) -> None:
    spec = spec_of(50_000, 3, probabilities=(0.5, 0.3, 0.2))
    stream = Huffman().encode(drawn([0.5, 0.3, 0.2], 50_000).byte(), spec)
    for size in (0, 1, 0xFFFF):
        altered = stream.clone()
        altered[1:3] = torch.tensor([size & 255, size >> 8])
        with pytest.raises(PayloadError, match="bytes of codes are not those of 50000 symbols"):
            Huffman().decode(altered, spec)
    with pytest.raises(PayloadError, match="bytes of codes are not those of 50000 symbols"):
        Huffman().decode(stream[: 1 + cut], spec)


def test_a_last_group_filled_otherwise_is_refused() -> None:
    spec = spec_of(1, 3, zero=1, probabilities=(0.05, 0.9, 0.05))
    lengths = model_lengths((0.05, 0.9, 0.05), 2).numpy()
    code = f"{canonical(lengths)[3 * 1 + 2]:b}".zfill(lengths[3 * 1 + 2])
    with pytest.raises(PayloadError, match="1 bytes of codes are not those of 1 symbols"):
        Huffman().decode(torch.cat((torch.tensor([0x22]).byte(), stream_of(code))), spec)


def test_no_bytes_at_all() -> None:
    with pytest.raises(PayloadError, match="has no first byte"):
        Huffman().decode(torch.empty(0, dtype=torch.uint8), spec_of(8, 5))


@pytest.mark.parametrize(
    "model", [(0.5, 0.5), (0.5, 0.5, -0.1), (0.0, 0.0, 0.0), (1.0, math.nan, 0.0), (math.inf, 0.0, 1.0)]
)
def test_probabilities_that_are_none(model: tuple[float, ...]) -> None:
    spec = spec_of(2, 3, probabilities=model)
    with pytest.raises(ValueError, match=r"probabilities must be 3 numbers >= 0 with a sum > 0"):
        Huffman().encode(torch.zeros(2, dtype=torch.uint8), spec)


def test_bits_of_reads_what_stream_of_wrote() -> None:
    assert bits_of(stream_of("10110")) == "10110000"
