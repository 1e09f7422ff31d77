"""The reference kernels against independent oracles: scalar code, scipy, Python integers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from thriftgrad import TensorSpec, kernels
from thriftgrad.kernels import reference
from thriftgrad.kernels.philox import philox

seeds = st.integers(0, 2**64 - 1)
SEEDS = (0, 1, 0x1234_5678_9ABC_DEF0, 2**64 - 1)


@pytest.mark.parametrize("seed", SEEDS)
def test_philox_of_a_tensor_is_philox_of_each_counter(seed: int) -> None:
    words = kernels.philox(50, seed)
    assert words.shape == (4, 50)
    for i in range(50):
        assert tuple(words[:, i].tolist()) == philox((i, 0, 0, 0), seed)


def test_no_counters_no_words() -> None:
    assert kernels.philox(0, 1).shape == (4, 0)
    assert kernels.uniform16(0, 1).shape == (0,)


@pytest.mark.parametrize("n", [1, 5, 63, 64, 65, 127, 128, 129, 300])
def test_uniform16_lies_as_documented(n: int) -> None:
    seed, values = 77, kernels.uniform16(n, 77).tolist()
    for e, value in enumerate(values):
        chunk, within = divmod(e, 128)
        half, p = divmod(within, 64)
        word = philox((16 * chunk + p % 16, 0, 0, 0), seed)[p // 16]
        assert value == (word >> 16 * half) & 0xFFFF
    assert len(values) == n


def test_uniform16_is_a_prefix_of_its_longer_self() -> None:
    assert torch.equal(kernels.uniform16(333, 5), kernels.uniform16(1000, 5)[:333])


@pytest.mark.parametrize("seed", SEEDS)
def test_uniform16_is_uniform_and_uncorrelated(seed: int) -> None:
    x = kernels.uniform16(1 << 16, seed).numpy()
    assert x.min() >= 0
    assert x.max() < 1 << 16
    for digit in (x & 0xFF, x >> 8):
        assert stats.chisquare(np.bincount(digit, minlength=256)).pvalue > 1e-4
    for lag in (1, 16, 64, 128):
        assert abs(np.corrcoef(x[:-lag], x[lag:])[0, 1]) < 5 / math.sqrt(len(x))


def test_streams_of_different_seeds_are_uncorrelated() -> None:
    a, b = kernels.uniform16(1 << 14, 10).numpy(), kernels.uniform16(1 << 14, 11).numpy()
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(len(a))


@pytest.mark.parametrize("fraction", [0.0, 2.0**-16, 0.001, 0.25, 0.5, 1 / 3, 0.9, 1 - 2.0**-14])
def test_rounding_is_unbiased(fraction: float) -> None:
    n = 1 << 18
    up = (kernels.round_stochastic(torch.full((n,), 3.0 + fraction), seed=9) - 3.0).double()
    assert set(up.unique().tolist()) <= {0.0, 1.0}
    exact = float(torch.tensor(3.0 + fraction)) - 3.0
    sigma = math.sqrt(exact * (1 - exact) / n)
    assert abs(up.mean().item() - exact) <= 5 * sigma + 2.0**-16


def test_the_probability_of_rounding_up_is_the_fraction_to_2_to_the_minus_16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every 16-bit number once: the exact expectation, not an estimate of it."""
    monkeypatch.setattr(reference, "uniform16", lambda n, seed, device: torch.arange(n))
    for fraction in (0.0, 2.0**-17, 2.0**-16, 0.1, 0.5, 0.7, 1 - 2.0**-15, 1 - 2.0**-17):
        up = reference.round_stochastic(torch.full((1 << 16,), fraction), seed=0)
        assert abs(up.double().mean().item() - fraction) <= 2.0**-16


@given(st.lists(st.floats(0, 127, width=32), min_size=1, max_size=50), seeds)
def test_rounding_goes_to_a_neighbour(values: list[float], seed: int) -> None:
    x = torch.tensor(values)
    rounded = kernels.round_stochastic(x, seed)
    assert ((rounded == x.floor()) | (rounded == x.ceil())).all()


@pytest.mark.parametrize("off", [-(2.0**-17), 0.0, 2.0**-17])
def test_what_stands_on_an_integer_but_for_its_last_bit_is_always_rounded_to_it(off: float) -> None:
    """2**20 draws hold each of the 2**16 random numbers about 16 times."""
    x = torch.full((1 << 20,), 127.0 if off < 0 else 64.0) + off
    assert kernels.round_stochastic(x, seed=3).unique().tolist() == [round(x[0].item())]


@pytest.mark.parametrize("seed", SEEDS)
def test_normal_is_normal(seed: int) -> None:
    x = kernels.normal(10_001, seed)
    assert x.dtype == torch.float32
    assert x.shape == (10_001,)
    assert x.isfinite().all()
    assert stats.kstest(x.numpy(), "norm").pvalue > 1e-4
    half = 5001
    assert abs(np.corrcoef(x[: half - 1].numpy(), x[half : 2 * half - 1].numpy())[0, 1]) < 5 / math.sqrt(half)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_normal_is_the_box_muller_transform(n: int) -> None:
    """Computed again with scalars: cosines first, then sines."""
    cosines, sines = [], []
    for i in range(-(-n // 2)):
        a, b, _, _ = philox((i, 0, 0, 0), 42)
        radius, angle = math.sqrt(-2 * math.log((a + 1) / 2**32)), 2 * math.pi * b / 2**32
        cosines.append(radius * math.cos(angle))
        sines.append(radius * math.sin(angle))
    assert kernels.normal(n, 42).tolist() == pytest.approx((cosines + sines)[:n], abs=1e-6)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 10, 97, 100, 1000, 1025])
def test_permutation_permutes(n: int) -> None:
    for seed in SEEDS:
        assert kernels.permutation(n, n, seed).sort().values.tolist() == list(range(n))


@given(st.integers(0, 300), st.integers(0, 5000), seeds)
def test_draws_are_distinct_and_nested(k: int, more: int, seed: int) -> None:
    n = k + more
    drawn = kernels.permutation(k, n, seed).tolist()
    assert len(set(drawn)) == k
    assert all(0 <= each < n for each in drawn)
    assert kernels.permutation(k // 2, n, seed).tolist() == drawn[: k // 2]


def test_permutation_of_a_huge_range_costs_by_what_is_drawn() -> None:
    drawn = kernels.permutation(100, 10**12, 5)
    assert len(drawn.unique()) == 100
    assert 0.2 < (drawn.double().mean().item() / 10**12) < 0.8


@pytest.mark.parametrize(("k", "n"), [(1, 2), (1, 3), (2, 5), (3, 11), (9, 40)])
def test_every_element_and_every_place_is_equally_likely(k: int, n: int) -> None:
    draws = 25 * n
    counts = np.zeros((k, n))
    for seed in range(draws):
        counts[range(k), kernels.permutation(k, n, seed * 0x9E3779B97F4A7C15 % 2**64).tolist()] += 1
    assert stats.chisquare(counts.sum(0)).pvalue > 1e-4
    assert stats.chisquare(counts[0]).pvalue > 1e-4


def test_pairs_are_equally_likely() -> None:
    n, counts = 6, np.zeros((6, 6))
    for seed in range(900):
        a, b = kernels.permutation(2, n, seed * 0x9E3779B97F4A7C15 % 2**64).tolist()
        counts[a, b] += 1
    off_diagonal = counts[~np.eye(n, dtype=bool)]
    assert counts.trace() == 0
    assert stats.chisquare(off_diagonal).pvalue > 1e-4


def test_permutation_is_frozen() -> None:
    """A sparse payload carries the seed alone: the support it stands for is part of the wire format."""
    assert kernels.permutation(8, 1000, 42).tolist() == [732, 751, 137, 468, 411, 172, 871, 145]
    assert kernels.permutation(8, 37, 2**63 - 1).tolist() == [1, 6, 36, 30, 29, 32, 15, 28]


alphabets = st.one_of(st.integers(1, 20), st.sampled_from([127, 128, 255, 256, 257, 1000, 65_536, 10**6, 2**40 + 1]))


@given(alphabets, st.integers(0, 700), st.integers(0, 2**32))
def test_packing_round_trips_in_the_announced_bytes(alphabet: int, n: int, seed: int) -> None:
    kind = torch.uint8 if alphabet <= 256 else torch.int64
    symbols = torch.randint(alphabet, (n,), generator=torch.Generator().manual_seed(seed)).to(kind)
    stream = kernels.pack(symbols, alphabet)
    assert stream.dtype == torch.uint8
    assert len(stream) == TensorSpec((n,), kind, alphabet=alphabet).nbytes
    assert torch.equal(kernels.unpack(stream, n, alphabet), symbols)


@given(st.lists(st.integers(0, 2), max_size=30))
def test_ternary_is_base_three(symbols: list[int]) -> None:
    fives = [symbols[i : i + 5] for i in range(0, len(symbols), 5)]
    expected = [sum(digit * 3**i for i, digit in enumerate(five)) for five in fives]
    assert kernels.pack(torch.tensor(symbols, dtype=torch.uint8), 3).tolist() == expected


@pytest.mark.parametrize("alphabet", [5, 8, 20, 100, 1000, 2**17])
def test_odd_widths_follow_each_other_lowest_bit_first(alphabet: int) -> None:
    symbols = torch.randint(alphabet, (41,), generator=torch.Generator().manual_seed(2))
    width = (alphabet - 1).bit_length()
    number = sum(symbol << width * i for i, symbol in enumerate(symbols.tolist()))
    assert bytes(kernels.pack(symbols, alphabet).tolist()) == number.to_bytes(-(-41 * width // 8), "little")


@pytest.mark.parametrize(("alphabet", "width"), [(2, 1), (4, 2), (13, 4), (16, 4)])
@pytest.mark.parametrize("n", [1, 64, 100, 512, 513, 1200])
def test_narrow_widths_lie_in_chunks(alphabet: int, width: int, n: int) -> None:
    """Symbol i of byte b of a chunk is the chunk's element i * (bytes of the chunk) + b; a chunk has 64 bytes."""
    symbols = torch.randint(alphabet, (n,), generator=torch.Generator().manual_seed(2)).tolist()
    per_byte, expected = 8 // width, []
    for start in range(0, n, 64 * per_byte):
        chunk = symbols[start : start + 64 * per_byte]
        size = 64 if len(chunk) == 64 * per_byte else -(-len(chunk) // per_byte)
        for b in range(size):
            inside = [(i, i * size + b) for i in range(per_byte)]
            expected.append(sum(chunk[e] << width * i for i, e in inside if e < len(chunk)))
    assert kernels.pack(torch.tensor(symbols, dtype=torch.uint8), alphabet).tolist() == expected
