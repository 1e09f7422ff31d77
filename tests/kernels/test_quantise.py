"""Quantisation, compiled, equals its definition in plain torch bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thriftgrad import kernels, theory
from thriftgrad.kernels import quantised, reference
from thriftgrad.kernels.cpu import threads
from thriftgrad.kernels.quantised import Norm, Quantised

SIZES = (0, 1, 63, 64, 127, 128, 129, 1000, 8192 + 5, 70001)
BUCKETS = (1, 64, 100, 512, 1024, 8192, 1 << 20)

TABLES = {
    "ternary": torch.tensor([-1.0, 0.0, 1.0]),
    "sign": torch.tensor([-1.0, 1.0]),
    "powers": torch.from_numpy(theory.amq_levels(0.5, 4, True)).float(),
    "powers without zero": torch.from_numpy(theory.amq_levels(0.5, 3, False)).float(),
    "many powers": torch.from_numpy(theory.amq_levels(0.5, 7, True)).float(),
    "too many powers": torch.from_numpy(theory.amq_levels(0.5, 8, False)).float(),
    "uniform": quantised.uniform_levels(7),
    "uniform, many": quantised.uniform_levels(127),
    "symmetric": torch.from_numpy(theory.amq_levels(0.6, 4, True)).float(),
    "symmetric without zero": torch.from_numpy(theory.amq_levels(0.3, 4, False)).float(),
    "symmetric, 17": torch.from_numpy(theory.signed([0, 0.01, 0.1, 0.2, 0.4, 0.7, 0.8, 0.9, 1])).float(),
    "symmetric, 19": torch.from_numpy(theory.signed([0, 0.01, 0.1, 0.2, 0.4, 0.5, 0.7, 0.8, 0.9, 1])).float(),
    "lopsided": torch.tensor([-1.0, 0.2, 0.5, 1.0]),
    "lopsided, 256": torch.cat((torch.linspace(-1, 0.5, 255), torch.ones(1))),
    "tiny gap": torch.tensor([-1.0, -1e-40, 0.0, 1e-40, 1.0]),
}


def vector(n: int, seed: int = 0) -> Tensor:
    """Gaussian, with zeros of both signs, denormals and outliers."""
    x = torch.randn(n, generator=torch.Generator().manual_seed(seed))
    x[3::97] = 0.0
    x[5::97] = -0.0
    x[7::211] = -1e-42
    x[11::1009] = 1e30
    return x


def equal(ours: Quantised, owed: Quantised) -> None:
    assert torch.equal(ours.stream, owed.stream)
    assert same(ours.scale, owed.scale)
    assert (ours.rest is None) == (owed.rest is None)
    if ours.rest is not None and owed.rest is not None:
        assert same(ours.rest, owed.rest)


def same(a: Tensor, b: Tensor) -> bool:
    """Equal bits, NaN like NaN."""
    bits = [each.masked_fill(each.isnan(), torch.nan).view(torch.int32) for each in (a, b)]
    return torch.equal(*bits)


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"], autouse=True)
def thread_count(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(threads, "SMALLEST_SLICE", 4096)
    kernels.set_threads(request.param)
    yield request.param
    kernels.set_threads(None)


def both(name: str, *arguments: object) -> tuple[Quantised, Quantised]:
    return getattr(kernels, name)(*arguments), getattr(quantised, name)(*arguments)


@pytest.mark.parametrize("bucket", BUCKETS)
@pytest.mark.parametrize("n", SIZES)
def test_every_size_and_bucket(n: int, bucket: int) -> None:
    x, memory = vector(n), vector(n, 1)
    norms: tuple[Norm, ...] = ("l2", "linf")
    for norm in norms:
        equal(*both("quantise_uniform", x, 7, bucket, norm, 2**64 - 5))
        equal(*both("quantise_uniform", x, 1, bucket, norm, 5, memory, 0.9))
        equal(*both("quantise_levels", x, TABLES["symmetric"], bucket, norm, 5, memory, 1.0))
        equal(*both("quantise_levels", x, TABLES["powers without zero"], bucket, norm, 5))
    equal(*both("quantise_sign", x, bucket))
    equal(*both("quantise_sign", x, bucket, memory, 0.9))


@pytest.mark.parametrize("s", [1, 2, 3, 7, 15, 31, 63, 127, 128, 255])
def test_uniform_of_every_width(s: int) -> None:
    x, memory = vector(20001), vector(20001, 1)
    equal(*both("quantise_uniform", x, s, 512, "linf", 1, memory, 0.5))
    equal(*both("quantise_uniform", x, s, 100, "l2", 1))


@pytest.mark.parametrize("name", TABLES)
def test_tables(name: str) -> None:
    x, memory = vector(20001), vector(20001, 1)
    levels = TABLES[name]
    on_levels = levels[torch.arange(20001) % len(levels)]
    for each in (x, on_levels):
        equal(*both("quantise_levels", each, levels, 512, "linf", 1, memory, 0.5))
        equal(*both("quantise_levels", each, levels, 100, "l2", 1))
        equal(*both("quantise_levels", each, levels, 20001, "linf", 1))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite(bad: float) -> None:
    x, memory = vector(9001), vector(9001, 1)
    x[600], memory[5000] = bad, bad
    for bucket in (100, 512, 9001):
        equal(*both("quantise_uniform", x, 7, bucket, "l2", 1, memory, 1.0))
        equal(*both("quantise_levels", x, TABLES["symmetric"], bucket, "linf", 1, memory, 1.0))
        equal(*both("quantise_levels", x, TABLES["powers"], bucket, "l2", 1))
        equal(*both("quantise_sign", x, bucket, memory, 1.0))


@pytest.mark.parametrize("scale", [0.0, 1e-42, 1e-30, 1e-15, 1e15, 1e37])
def test_every_magnitude(scale: float) -> None:
    x = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * scale
    for norm in ("l2", "linf"):
        equal(*both("quantise_uniform", x, 7, 512, norm, 1, x, 1.0))
        equal(*both("quantise_levels", x, TABLES["symmetric"], 512, norm, 1, x, 1.0))
        equal(*both("quantise_levels", x, TABLES["powers"], 512, norm, 1, x, 1.0))


def test_the_extreme_random_numbers() -> None:
    """What stands on a level, and what is a hair off it, under every random number there is."""
    levels = torch.arange(8) / 7
    for hair in (0.0, 2.0**-24, 2.0**-17, 1.5 * 2.0**-17, 2.0**-16):
        x = ((levels + hair).clamp_max(1).repeat(1 << 15)).contiguous()
        equal(*both("quantise_uniform", x, 7, 1 << 18, "linf", 3))
        equal(*both("quantise_levels", x, TABLES["powers"], 1 << 18, "linf", 3))
        equal(*both("quantise_levels", x, TABLES["uniform"], 1 << 18, "linf", 3))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_buckets_of_more_than_a_second_level_cache(norm: Norm) -> None:
    n = 300_001
    x, memory = vector(n), vector(n, 1)
    for bucket in (131072, 140_000, n):
        equal(*both("quantise_uniform", x, 7, bucket, norm, 1, memory, 0.9))
        rows = x[: n // bucket * bucket].view(-1, bucket)
        assert same(kernels.bucket_norms(rows, norm), quantised.bucket_norms(rows, norm))
    equal(*both("quantise_sign", x, n, memory, 0.9))


@pytest.mark.parametrize("columns", [1, 63, 64, 100, 8193])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_norms_of_rows(norm: Norm, columns: int) -> None:
    for count in (0, 1, 7):
        rows = vector(count * columns).view(count, columns)
        assert same(kernels.bucket_norms(rows, norm), quantised.bucket_norms(rows, norm))


@pytest.mark.parametrize("bucket", [1, 100, 512, 70001])
@pytest.mark.parametrize("name", TABLES)
def test_dequantise_add(name: str, bucket: int) -> None:
    levels = TABLES[name]
    for n in (0, 1, 129, 8197, 70001):
        symbols = torch.arange(n) * 7919 % len(levels)
        stream = reference.pack(symbols, len(levels))
        scale = vector(-(-n // min(bucket, max(n, 1))), 2)
        scale[-1:] = torch.nan
        ours, owed = vector(n), vector(n)
        kernels.dequantise_add(stream, scale, levels, bucket, ours)
        quantised.dequantise_add(stream, scale, levels, bucket, owed)
        assert same(ours, owed)


def test_dequantise_add_of_more_than_256_levels() -> None:
    levels = quantised.uniform_levels(200)
    made = quantised.quantise_uniform(vector(1000), 200, 512, "l2", 0)
    ours, owed = torch.zeros(1000), torch.zeros(1000)
    kernels.dequantise_add(made.stream, made.scale, levels, 512, ours)
    quantised.dequantise_add(made.stream, made.scale, levels, 512, owed)
    assert same(ours, owed)


def test_a_stream_or_scales_that_are_too_short_are_told() -> None:
    levels, total = TABLES["uniform"], torch.zeros(1000)
    with pytest.raises(ValueError, match="1000 of 15 symbols take 500 bytes, and there are 499"):
        kernels.dequantise_add(torch.zeros(499, dtype=torch.uint8), torch.ones(2), levels, 512, total)
    with pytest.raises(ValueError, match="1000 elements in buckets of 512 need more than 1 scales"):
        kernels.dequantise_add(torch.zeros(500, dtype=torch.uint8), torch.ones(1), levels, 512, total)


floats = st.floats(width=32, allow_nan=True, allow_infinity=True)


@given(
    st.lists(floats, min_size=1, max_size=300),
    st.integers(1, 400),
    st.sampled_from(["l2", "linf"]),
    st.integers(0, 2**64 - 1),
    st.sampled_from(sorted(TABLES)),
    st.booleans(),
)
def test_anything(values: list[float], bucket: int, norm: Norm, seed: int, name: str, kept: bool) -> None:
    x = torch.tensor(values)
    memory = (x.flip(0), 0.7) if kept else ()
    levels = TABLES[name]
    ours, owed = both("quantise_levels", x, levels, bucket, norm, seed, *memory)
    equal(ours, owed)
    equal(*both("quantise_uniform", x, 7, bucket, norm, seed, *memory))
    equal(*both("quantise_sign", x, bucket, *memory))


@pytest.mark.parametrize("alphabet", [1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129, 256, 257])
def test_streams(alphabet: int) -> None:
    for n in (*SIZES, 2560, 2561, 2567):
        symbols = torch.arange(n) * 7919 % alphabet
        stream = kernels.pack(symbols, alphabet)
        assert torch.equal(stream, reference.pack(symbols, alphabet))
        back = kernels.unpack(stream, n, alphabet)
        owed = reference.unpack(stream, n, alphabet)
        assert back.dtype == owed.dtype
        assert torch.equal(back, owed)
        largest = kernels.largest_symbol(stream, n, alphabet)
        assert largest == quantised.largest_symbol(stream, n, alphabet)
        assert largest == (int(symbols.max()) if n else -1)


def test_symbols_behind_the_end_do_not_count() -> None:
    for alphabet in (2, 3, 4, 5, 15, 100):
        stream = torch.full((2,), 255 if alphabet != 3 else 242, dtype=torch.uint8)
        stream[0] = 0
        assert kernels.largest_symbol(stream, 1, alphabet) == quantised.largest_symbol(stream, 1, alphabet)


def test_streams_that_are_too_short_are_told() -> None:
    short = torch.zeros(3, dtype=torch.uint8)
    for function in (kernels.unpack, kernels.largest_symbol):
        with pytest.raises(ValueError, match="16 of 3 symbols take 4 bytes, and there are 3"):
            function(short, 16, 3)


ELEMENTWISE: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "round_stochastic": lambda x: (kernels.round_stochastic(x * 9, 3), reference.round_stochastic(x * 9, 3)),
    "round_to_powers": lambda x: (kernels.round_to_powers(x, 3), reference.round_to_powers(x, 3)),
    "round_to_powers, less": lambda x: (kernels.round_to_powers(x, 3, 120), reference.round_to_powers(x, 3, 120)),
    "random_signs": lambda x: (kernels.random_signs(len(x), 3), reference.random_signs(len(x), 3)),
    "nearest_level": lambda x: tuple(map(partial(_nearest, x), (kernels, reference))),  # type: ignore[dict-item]
}


def _nearest(x: Tensor, module: object) -> Tensor:
    x = torch.cat((x, TABLES["symmetric"], torch.tensor([torch.nan, torch.inf])))
    nearest: Tensor = module.nearest_level(x, TABLES["symmetric"])  # type: ignore[attr-defined]
    return nearest


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise(name: str, n: int) -> None:
    ours, owed = ELEMENTWISE[name](vector(n))
    assert ours.dtype == owed.dtype
    assert torch.equal(ours, owed)


@pytest.mark.parametrize("d", [1, 2, 64, 128, 1024])
@pytest.mark.parametrize("m", [0, 1, 70])
def test_hadamard(m: int, d: int) -> None:
    rows = vector(m * d).view(m, d)
    assert same(kernels.hadamard(rows), reference.hadamard(rows))
