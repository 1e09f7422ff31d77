"""Prefix codes of groups: the best lengths there are; compiled streams are the reference's, and neither trusts any."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coders.oracles import huffman_cost
from thriftgrad import QSGD, Huffman, Key, TensorSpec, kernels
from thriftgrad.kernels import Grouping, prefix_codes
from thriftgrad.kernels.cpu import huffman, threads
from thriftgrad.kernels.prefix_codes import BLOCK, SMALLEST_QUARTERED, is_alone

each = pytest.mark.parametrize("kernel", [prefix_codes, huffman], ids=["reference", "compiled"])
GROUPINGS = (
    *(Grouping(size, 0, 15, 7) for size in (1, 2, 3)),
    *(Grouping(size, 5, 3, 5) for size in (4, 5, 7)),
    Grouping(8, 254, 2, 255),
    Grouping(1, 0, 255, 0),
    Grouping(1, 300, 511, 300),
    Grouping(1, 9, 1, 9),
)
COUNTS = (1, 2, 7, 8, 9, 23, 1000, 2 * SMALLEST_QUARTERED - 1, 2 * SMALLEST_QUARTERED, 70_001)
EMPTY = torch.empty(0, dtype=torch.uint8)


def symbols_of(grouping: Grouping, count: int, seed: int = 0) -> Tensor:
    """Falling off geometrically from the filler on."""
    offsets = np.random.default_rng(seed).geometric(0.4, count) - 1
    values = grouping.lowest + (grouping.filler - grouping.lowest + offsets) % grouping.base
    return torch.from_numpy(values.astype(np.uint8 if grouping.lowest + grouping.base <= 256 else np.int16))


def lengths_of(weights: list[int]) -> np.ndarray:
    """By both, which agree."""
    lengths = huffman.code_lengths(torch.tensor(weights))
    assert torch.equal(lengths, prefix_codes.code_lengths(torch.tensor(weights)))
    return lengths.numpy()


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=60).filter(lambda w: sum(map(bool, w)) > 1))
def test_lengths_are_the_best(weights: list[int]) -> None:
    lengths = lengths_of(weights)
    assert ((lengths > 0) == (np.array(weights) > 0)).all()
    assert sum(2.0 ** -lengths[lengths > 0]) == 1
    # 60 weights below 1001 need at most 14 bits only if none is tiny beside the others; the limit may cost otherwise.
    assert lengths @ weights >= huffman_cost(weights)
    if lengths.max() < 14:
        assert lengths @ weights == huffman_cost(weights)


def test_lengths_are_limited_and_still_complete() -> None:
    fibonacci = [1, 1]
    while len(fibonacci) < 40:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    lengths = lengths_of(fibonacci)  # without a limit: up to 39 bits
    assert lengths.max() == 14
    assert sum(2.0**-lengths) == 1
    assert lengths @ fibonacci == pytest.approx(huffman_cost(fibonacci), rel=1e-3)


def test_the_limit_costs_the_least_possible() -> None:
    weights = [1, *(1 << i for i in range(15))]  # depth 15 without a limit
    lengths = lengths_of(weights)
    # 15 bits become 14 by lengthening the cheapest subtree: the four lightest move to one level.
    assert lengths.max() == 14
    assert sum(2.0**-lengths) == 1
    assert lengths @ weights - huffman_cost(weights) == 2


def test_lengths_of_one_or_no_symbol() -> None:
    assert lengths_of([0, 5, 0]).tolist() == [0, 1, 0]
    assert lengths_of([0, 0]).tolist() == [0, 0]
    assert lengths_of([3, 3]).tolist() == [1, 1]


@settings(max_examples=20)
@given(st.integers(2, 4096), st.integers(0, 2**32 - 1))
def test_lengths_of_many(size: int, seed: int) -> None:
    """As many groups as there may be, of weights over many magnitudes, ties among them."""
    rng = np.random.default_rng(seed)
    lengths = lengths_of((2.0 ** rng.integers(0, 30, size) * rng.integers(0, 2, size)).astype(np.int64).tolist())
    if np.count_nonzero(lengths) > 1:
        assert sum(2.0 ** -lengths[lengths > 0]) == 1
        assert lengths.max() <= 14


def test_codes_are_canonical() -> None:
    lengths = np.array([2, 3, 0, 1, 3])
    codes = prefix_codes.canonical(lengths).tolist()
    words = [f"{code:b}".zfill(length) for code, length in zip(codes, lengths, strict=True)]
    assert [words[i] for i in (3, 0, 1, 4)] == ["0", "10", "110", "111"]


@pytest.fixture(params=[1, 3])
def slices(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, or three on short vectors too."""
    monkeypatch.setattr(threads, "SMALLEST_SLICE", 1000)
    threads.set_threads(request.param)
    yield
    threads.set_threads(None)


@pytest.mark.usefixtures("slices")
@pytest.mark.parametrize("grouping", GROUPINGS, ids=str)
def test_streams_are_those_of_the_reference(grouping: Grouping) -> None:
    for count in COUNTS:
        symbols = symbols_of(grouping, count)
        counts = prefix_codes.count_groups(symbols, grouping)
        assert torch.equal(huffman.count_groups(symbols, grouping), counts)
        lengths = prefix_codes.code_lengths(counts)
        head, bits = torch.tensor([7, 8, 9]).byte(), int(counts @ lengths)
        stream = prefix_codes.write_groups(head, symbols, grouping, lengths, bits)
        assert torch.equal(huffman.write_groups(head, symbols, grouping, lengths, bits), stream)
        assert stream[:3].tolist() == [7, 8, 9]
        for kernel in (prefix_codes, huffman):
            assert torch.equal(kernel.read_groups(stream[3:], count, grouping, lengths), symbols)


@pytest.mark.usefixtures("slices")
@pytest.mark.parametrize("size", [1, 2, 3])
def test_more_than_a_block_with_codes_of_every_length(size: int) -> None:
    """Codes that the data does not like: as long as they can be."""
    grouping, count = Grouping(size, 0, 15, 0), 3 * size * BLOCK + 5
    symbols = symbols_of(grouping, count)
    weights = torch.from_numpy(np.random.default_rng(0).integers(1, 1 << 40, grouping.groups) >> 30) + 1
    lengths = prefix_codes.code_lengths(weights)
    bits = int(prefix_codes.count_groups(symbols, grouping) @ lengths)
    stream = prefix_codes.write_groups(EMPTY, symbols, grouping, lengths, bits)
    assert torch.equal(huffman.write_groups(EMPTY, symbols, grouping, lengths, bits), stream)
    for kernel in (prefix_codes, huffman):
        assert torch.equal(kernel.read_groups(stream, count, grouping, lengths), symbols)


def test_every_group_of_every_base() -> None:
    """Numbers are made of symbols and symbols of numbers by tricks, which hold for all."""
    for base in (*range(2, 17), 31, 43, 48, 63, 64):
        for size in range(1, 9):
            for lowest in (0, 1, 256 - base) if base**size <= 4096 else ():
                grouping = Grouping(size, lowest, base, lowest)
                symbols = torch.from_numpy(prefix_codes.members(grouping).reshape(-1))
                assert huffman.count_groups(symbols, grouping).eq(1).all()
                lengths = prefix_codes.code_lengths(torch.ones(grouping.groups, dtype=torch.int64))
                bits = int(lengths.sum())
                stream = huffman.write_groups(EMPTY, symbols, grouping, lengths, bits)
                assert torch.equal(huffman.read_groups(stream, symbols.numel(), grouping, lengths), symbols)
                if base < 5:
                    assert torch.equal(prefix_codes.write_groups(EMPTY, symbols, grouping, lengths, bits), stream)


@given(st.lists(st.integers(0, 14), min_size=1, max_size=80).filter(any))
def test_tables_are_those_of_the_reference(raw: list[int]) -> None:
    table = prefix_codes.write_lengths(torch.tensor(raw))
    assert torch.equal(huffman.write_lengths(torch.tensor(raw)), table)
    longer = torch.cat((table, torch.tensor([255, 0]).byte()))
    found = [kernel.read_lengths(longer, len(raw)) for kernel in (prefix_codes, huffman)]
    whole = prefix_codes.is_whole(np.array(raw))
    for each_found in found:
        assert (each_found is not None) == whole
        if each_found is not None:
            assert each_found[0].tolist() == raw
            assert each_found[1] == len(table)


@given(st.binary(max_size=60), st.integers(1, 300))
def test_any_bytes_are_one_table_or_none(raw: bytes, size: int) -> None:
    stream = torch.tensor(list(raw), dtype=torch.uint8)
    ours, theirs = huffman.read_lengths(stream, size), prefix_codes.read_lengths(stream, size)
    assert (ours is None) == (theirs is None)
    if ours is not None and theirs is not None:
        assert torch.equal(ours[0], theirs[0])
        assert ours[1] == theirs[1] <= len(raw)


def read_by_both(stream: Tensor, count: int, grouping: Grouping, lengths: Tensor) -> Tensor | None:
    ours = huffman.read_groups(stream, count, grouping, lengths)
    theirs = prefix_codes.read_groups(stream, count, grouping, lengths)
    assert (ours is None) == (theirs is None)
    if ours is not None and theirs is not None:
        assert torch.equal(ours, theirs)
        assert len(ours) == count
        assert int(ours.min()) >= grouping.lowest
        assert int(ours.max()) < grouping.lowest + grouping.base
    return ours


@settings(max_examples=60)
@given(
    st.sampled_from(GROUPINGS[:-1]),
    st.sampled_from([1, 5, 100, 20_000]),
    st.binary(max_size=40) | st.tuples(st.binary(max_size=3), st.integers(0, 9000)).map(lambda pair: pair[0] * pair[1]),
)
def test_any_bytes_are_the_same_symbols_or_none(grouping: Grouping, count: int, raw: bytes) -> None:
    lengths = prefix_codes.code_lengths(torch.arange(1, grouping.groups + 1))
    read_by_both(torch.tensor(list(raw), dtype=torch.uint8), count, grouping, lengths)


@settings(max_examples=60)
@given(st.sampled_from(GROUPINGS[:-1]), st.sampled_from([1, 5, 100, 20_000]), st.data())
def test_altered_streams_are_other_symbols_or_none(grouping: Grouping, count: int, data: st.DataObject) -> None:
    symbols = symbols_of(grouping, count)
    counts = prefix_codes.count_groups(symbols, grouping)
    lengths = prefix_codes.code_lengths(counts)
    stream = huffman.write_groups(EMPTY, symbols, grouping, lengths, int(counts @ lengths))
    assert torch.equal(read_by_both(stream, count, grouping, lengths), symbols)
    if not len(stream):
        return
    for _ in range(3):
        altered = stream.clone()
        place = data.draw(st.integers(0, min(len(stream) - 1, 8)) | st.integers(0, len(stream) - 1))
        altered[place] ^= 1 << data.draw(st.integers(0, 7))
        read_by_both(altered, count, grouping, lengths)
    cut = data.draw(st.integers(0, len(stream) - 1))
    assert read_by_both(stream[:cut], count, grouping, lengths) is None
    assert read_by_both(torch.cat((stream, stream[: cut + 1])), count, grouping, lengths) is None


@each
def test_one_group_alone_takes_no_bits(kernel: ModuleType) -> None:
    grouping = Grouping(3, 0, 5, 2)
    lengths = torch.zeros(125, dtype=torch.int64)
    lengths[2 * 31] = 1  # 222
    symbols = torch.full((10,), 2).byte()
    assert is_alone(lengths.numpy())
    assert torch.equal(kernel.write_groups(EMPTY, symbols, grouping, lengths, 0), EMPTY)
    assert torch.equal(kernel.read_groups(EMPTY, 10, grouping, lengths), symbols)
    assert kernel.read_groups(torch.zeros(1).byte(), 10, grouping, lengths) is None
    assert kernel.read_groups(EMPTY, 10, grouping._replace(filler=1), lengths) is None


@pytest.mark.parametrize("n", [3, 50, 3000, 200_000])
def test_the_coder_writes_the_same_by_both_backends(n: int) -> None:
    quantisers = (QSGD(bits=4, norm="linf"), QSGD(bits=3), QSGD(levels=1, bucket=64), QSGD(levels=15), QSGD(levels=200))
    x = torch.randn(n, generator=torch.Generator().manual_seed(n))
    for quantiser in quantisers:
        payload, _ = quantiser.compress(x, quantiser.init(TensorSpec.of(x)), Key(0))
        spec, streams = payload.layout.carrier, []
        for name in ("reference", "cpu"):
            kernels.use(name)
            streams.append(Huffman().encode(payload.carrier, spec))
            assert torch.equal(Huffman().decode(streams[-1], spec), payload.carrier)
        kernels.use(None)
        assert torch.equal(*streams)
