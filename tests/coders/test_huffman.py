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

from coders.oracles import bits_of, entropy_bits, gamma, huffman_cost, spec_of, stream_of, symbols_of
from thriftgrad import PayloadError, TensorSpec
from thriftgrad.wire.coders import Huffman
from thriftgrad.wire.coders.huffman import canonical, code_lengths, expected_bits, group_sizes, model_lengths
from thriftgrad.wire.coders.symbols import packed_bytes


def drawn(probabilities: list[float], count: int, seed: int = 0) -> torch.Tensor:
    shares = np.array(probabilities) / sum(probabilities)
    return torch.from_numpy(np.random.default_rng(seed).choice(len(shares), count, p=shares))


def bell(alphabet: int, width: float) -> list[float]:
    """A Gaussian histogram around the middle symbol."""
    shares = stats.norm.pdf(np.arange(alphabet) - alphabet // 2, scale=width)
    return list(shares / shares.sum())


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=60).filter(lambda w: sum(map(bool, w)) > 1))
def test_lengths_are_the_best(weights: list[int]) -> None:
    lengths = code_lengths(weights)
    assert ((lengths > 0) == (np.array(weights) > 0)).all()
    assert sum(2.0 ** -lengths[lengths > 0]) == 1
    # 60 weights below 1001 need at most 15 bits only if none is tiny beside the others; the limit may cost otherwise.
    assert lengths @ weights >= huffman_cost(weights)
    if lengths.max() < 15:
        assert lengths @ weights == huffman_cost(weights)


def test_lengths_are_limited_and_still_complete() -> None:
    fibonacci = [1, 1]
    while len(fibonacci) < 40:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    lengths = code_lengths(fibonacci)  # without a limit: up to 39 bits
    assert lengths.max() == 15
    assert sum(2.0**-lengths) == 1
    assert lengths @ fibonacci == pytest.approx(huffman_cost(fibonacci), rel=1e-3)


def test_the_limit_costs_the_least_possible() -> None:
    """Of all complete lengths of at most 3 bits for five symbols, ours would be a best one; here by the real limit."""
    weights = [1, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768]  # depth 16 unlimited
    lengths = code_lengths(weights)
    # 16 bits become 15 by lengthening the cheapest subtree: the four lightest move to one level.
    assert lengths.max() == 15
    assert sum(2.0**-lengths) == 1
    assert lengths @ weights - huffman_cost(weights) == 2


def test_lengths_of_one_or_no_symbol() -> None:
    assert code_lengths([0, 5, 0]).tolist() == [0, 1, 0]
    assert code_lengths([0, 0]).tolist() == [0, 0]


def test_codes_are_canonical() -> None:
    lengths = np.array([2, 3, 0, 1, 3])
    codes = [f"{code:b}".zfill(length) for code, length in zip(canonical(lengths).tolist(), lengths, strict=True)]
    assert [codes[i] for i in (3, 0, 1, 4)] == ["0", "10", "110", "111"]


def test_a_stream_is_head_table_codes() -> None:
    """Four of five kinds occur; singles pay. Lengths 1 3 - 3 2: 0001 0011, a run of one 0000 1, 0011 0010."""
    values = [0] * 80 + [4] * 30 + [1] * 15 + [3] * 10
    np.random.default_rng(0).shuffle(values)
    spec = spec_of(len(values), 5)
    code = {0: "0", 4: "10", 1: "110", 3: "111"}
    bits = "00010011" + "0000" + gamma(1) + "00110010" + "".join(code[value] for value in values)
    stream = Huffman().encode(symbols_of(spec, values), spec)
    assert stream[0] == 1
    assert torch.equal(stream[1:], stream_of(bits))


def test_a_group_is_a_number_in_base_alphabet() -> None:
    """With a model no table travels. A group of two: 0.9 ** 2 gets 0, and the last one is filled with the zero."""
    model = (0.05, 0.9, 0.05)
    lengths = model_lengths(model, 2)
    codes = canonical(lengths).tolist()
    words = {pair: f"{codes[i]:b}".zfill(lengths[i]) for i, pair in enumerate(product(range(3), repeat=2))}
    assert words[1, 1] == "0"
    values = [1, 1, 1, 2, 1, 1, 0, 1, 1]
    spec = spec_of(9, 3, zero=1, probabilities=model)
    bits = "".join(words[pair] for pair in ((1, 1), (1, 2), (1, 1), (0, 1), (1, 1)))
    assert Huffman().decode(torch.cat((torch.tensor([2]).byte(), stream_of(bits))), spec).tolist() == values


@pytest.mark.parametrize("width", [0.3, 0.5, 1.0, 2.0])
def test_a_known_model_sends_no_table(width: float) -> None:
    model = tuple(bell(15, width))
    symbols = drawn(list(model), 3000)
    known, unknown = spec_of(3000, 15, zero=7, probabilities=model), spec_of(3000, 15, zero=7)
    with_model, without = (Huffman().encode(symbols.byte(), spec) for spec in (known, unknown))
    assert len(with_model) < len(without)
    assert torch.equal(Huffman().decode(with_model, known), symbols.byte())


@given(st.lists(st.integers(0, 2), max_size=60))
def test_long_codes_of_improbable_groups(values: list[int]) -> None:
    """A model that is sure of itself gives what it thinks rare codes of up to 28 bits."""
    model, group = (0.05, 0.9, 0.05), 6
    lengths = model_lengths(model, group)
    assert 20 < lengths.max() <= 28
    assert sum(2.0**-lengths) == 1
    spec = spec_of(len(values), 3, zero=1, probabilities=model)
    codes = [f"{code:b}".zfill(length) for code, length in zip(canonical(lengths).tolist(), lengths, strict=True)]
    filled = "".join(map(str, [*values, *[1] * (-len(values) % group)]))
    bits = "".join(codes[int(filled[i : i + group], 3)] for i in range(0, len(filled), group))
    if values:
        stream = torch.cat((torch.tensor([group]).byte(), stream_of(bits)))
        assert Huffman().decode(stream, spec).tolist() == values
    symbols = symbols_of(spec, values)
    assert torch.equal(Huffman().decode(Huffman().encode(symbols, spec), spec), symbols)


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
    table_bits = 8 + 4 * len(probabilities) ** 2 * 1.5  # of the pairs, at most
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
    assert 8 * len(stream) / 100_000 == pytest.approx(expected_bits(model, int(stream[0])), rel=0.01)


@given(st.lists(st.integers(0, 14), max_size=50), st.booleans())
def test_never_more_than_a_byte_over_packing(values: list[int], model: bool) -> None:
    spec = spec_of(len(values), 15, zero=7, probabilities=tuple(bell(15, 0.5)) if model else None)
    stream = Huffman().encode(symbols_of(spec, values), spec)
    assert len(stream) <= 1 + packed_bytes(len(values), 15) == Huffman().limit_bytes(spec)


def test_a_constant_tensor_takes_no_bits_a_symbol() -> None:
    spec = spec_of(100_000, 3, zero=1)
    stream = Huffman().encode(torch.ones(100_000, dtype=torch.uint8), spec)
    assert len(stream) == 3  # the head, then a run of one, a length and a run of one in 14 bits
    assert Huffman().decode(stream, spec).eq(1).all()


def test_large_alphabets_are_packed() -> None:
    assert list(group_sizes(1 << 15)) == [1]
    assert list(group_sizes(1 + (1 << 15))) == []
    spec = spec_of(1000, 1 + (1 << 15))
    assert Huffman().encode(torch.zeros(1000, dtype=torch.int64), spec)[0] == 0
    assert list(group_sizes(64)) == [1, 2]
    assert max(group_sizes(2)) == 15


TABLE = "00010011" + "0000" + gamma(1) + "00110010"  # lengths 1 3 - 3 2


@pytest.mark.parametrize(
    ("head", "bits", "message"),
    [
        (1, TABLE[:8], "4 bits are needed where 0 are left"),
        (1, TABLE[:8] + "0000" + "0" * 30, "a run without end"),
        (1, "0000" + gamma(1) + "0000" + gamma(1) + "0" * 20, "two runs where one would do"),
        (1, "0000" + gamma(6) + "0" * 20, "no complete code"),
        (1, "0000" + gamma(5), "no complete code"),
        (1, "0001" * 3 + "0000" + gamma(2), "no complete code"),
        (1, "0001" + "0010" + "0000" + gamma(3), "no complete code"),
        (1, "0010" + "0000" + gamma(4), "no complete code"),
        (1, TABLE + "0" * 20, "4 bytes follow|1 bytes follow|2 bytes follow"),
        (1, TABLE + "0", "8 codes cannot lie|ends inside|cannot lie"),
        (7, TABLE, "groups of 7 symbols cannot be"),
        (255, TABLE, "groups of 255 symbols cannot be"),
        (0, "0" * 16, "8 symbols take 3 bytes, got 2"),
        (0, "1" * 24, "symbol 7 outside the alphabet of 5"),
    ],
)
def test_hostile_streams(head: int, bits: str, message: str) -> None:
    stream = torch.cat((torch.tensor([head], dtype=torch.uint8), stream_of(bits)))
    with pytest.raises(PayloadError, match=message):
        Huffman().decode(stream, spec_of(8, 5))


def test_a_last_group_filled_otherwise_is_refused() -> None:
    spec = spec_of(1, 3, zero=1, probabilities=(0.05, 0.9, 0.05))
    lengths = model_lengths((0.05, 0.9, 0.05), 2)
    code = f"{canonical(lengths)[3 * 1 + 2]:b}".zfill(lengths[3 * 1 + 2])
    with pytest.raises(PayloadError, match="last group is not filled"):
        Huffman().decode(torch.cat((torch.tensor([2]).byte(), stream_of(code))), spec)


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
