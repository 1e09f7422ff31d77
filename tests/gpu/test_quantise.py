"""Quantisation at one go against its definition."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import triton
from torch import Tensor

from gpu.same import SEED, exact_fma, same
from thriftgrad.kernels import quantised
from thriftgrad.kernels.gpu import compiled, rounding, tiles

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of NaN and infinity in the interpreter

SIZES = [(1, 1), (100, 100), (129, 64), (300, 100), (1000, 512), (5000, 512), (8400, 8192), (8400, 8400), (4200, 128)]
"""Elements and bucket: one bucket or many, a power of two or not, in part, and of more than one block."""


@pytest.fixture(params=["long way", "short way"])
def division(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The short way needs an fma that rounds once, as a device's does; the interpreter's rounds twice."""
    if request.param == "short way":
        builder, handle = triton.runtime.interpreter.InterpreterBuilder, triton.runtime.interpreter.TensorHandle

        def fma(self: Any, x: Any, y: Any, z: Any) -> Any:
            exact = exact_fma if z.data.dtype == "float32" else lambda a, b, c: a * b + c
            return handle(exact(x.data, y.data, z.data), z.dtype.scalar)

        monkeypatch.setattr(builder, "create_fma", fma)
        monkeypatch.setattr(tiles, "FMA_ROUNDS_ONCE", True)


def vectors(n: int, with_memory: bool) -> tuple[Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, generator=generator), torch.randn(n, generator=generator) if with_memory else None


@pytest.mark.usefixtures("division")
@pytest.mark.parametrize("with_memory", [False, True], ids=["alone", "with memory"])
@pytest.mark.parametrize(("n", "bucket"), SIZES)
def test_uniform_levels(n: int, bucket: int, with_memory: bool) -> None:
    x, memory = vectors(n, with_memory)
    for norm in ("l2", "linf"):
        for s in (1, 7):
            arguments = (x, s, bucket, norm, SEED, memory, 0.9)
            assert same(compiled.quantise_uniform(*arguments), quantised.quantise_uniform(*arguments))


@pytest.mark.parametrize("s", [1, 2, 3, 7, 15, 31, 63, 127, 128, 255])
def test_every_width(s: int) -> None:
    x, memory = vectors(1111, True)
    arguments = (x, s, 256, "linf", SEED, memory, 1.0)
    assert same(compiled.quantise_uniform(*arguments), quantised.quantise_uniform(*arguments))


@pytest.mark.parametrize("with_memory", [False, True], ids=["alone", "with memory"])
@pytest.mark.parametrize("size", [2, 3, 4, 5, 8, 15, 16, 17, 200, 256])
def test_any_levels(size: int, with_memory: bool) -> None:
    x, memory = vectors(1111, with_memory)
    even = torch.linspace(-1, 1, size)
    levels = even.abs() ** 2.5 * even.sign()
    for bucket in (1111, 512, 100):
        arguments = (x, levels, bucket, "l2", SEED, memory, 0.9)
        assert same(compiled.quantise_levels(*arguments), quantised.quantise_levels(*arguments))


@pytest.mark.parametrize("with_memory", [False, True], ids=["alone", "with memory"])
@pytest.mark.parametrize(("n", "bucket"), SIZES)
def test_levels_and_signs(n: int, bucket: int, with_memory: bool) -> None:
    x, memory = vectors(n, with_memory)
    for levels in (torch.tensor([-1.0, 1.0]), torch.tensor([-1.0, -0.1, 0.1, 1.0]), torch.linspace(-1, 1, 15)):
        arguments = (x, levels, bucket, "linf", SEED, memory, 0.9)
        assert same(compiled.quantise_levels(*arguments), quantised.quantise_levels(*arguments))
    assert same(compiled.quantise_sign(x, bucket, memory, 0.9), quantised.quantise_sign(x, bucket, memory, 0.9))


@pytest.mark.usefixtures("division")
@pytest.mark.parametrize("magnitude", [1e-44, 1e-38, 1e-20, 1e-19, 1e20, 1e38])
def test_where_divisions_underflow_or_overflow(magnitude: float) -> None:
    x, _ = vectors(2000, False)
    x = x / 4 * magnitude
    for s in (1, 7, 127, 255):
        arguments = (x, s, 512, "linf", SEED)
        assert same(compiled.quantise_uniform(*arguments), quantised.quantise_uniform(*arguments))
    arguments = (x, torch.linspace(-1, 1, 16), 512, "linf", SEED)
    assert same(compiled.quantise_levels(*arguments), quantised.quantise_levels(*arguments))


@pytest.mark.usefixtures("division")
@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf, -math.inf, 0.0, -0.0])
def test_what_is_not_finite_or_zero(value: float) -> None:
    x, memory = vectors(300, True)
    x[270] = x[0] = value
    whole = torch.full((300,), value)
    for vector in (x, whole):
        for first, second in (
            (compiled.quantise_uniform, quantised.quantise_uniform),
            (compiled.quantise_levels, quantised.quantise_levels),
        ):
            levels = 7 if first is compiled.quantise_uniform else torch.tensor([-1.0, 0.0, 0.3, 1.0])
            for kept in (memory, None):
                arguments = (vector, levels, 256, "l2", SEED, kept)
                assert same(first(*arguments), second(*arguments))
        assert same(compiled.quantise_sign(vector, 256, memory), quantised.quantise_sign(vector, 256, memory))


def test_nothing() -> None:
    x = torch.empty(0)
    assert same(compiled.quantise_uniform(x, 7, 512, "l2", 0), quantised.quantise_uniform(x, 7, 512, "l2", 0))
    levels = torch.tensor([-1.0, 1.0])
    assert same(compiled.quantise_levels(x, levels, 512, "l2", 0), quantised.quantise_levels(x, levels, 512, "l2", 0))
    assert same(compiled.quantise_sign(x, 512), quantised.quantise_sign(x, 512))


def test_the_input_is_untouched_at_an_odd_place() -> None:
    base = torch.randn(2000, generator=torch.Generator().manual_seed(3))
    before, x, memory = base.clone(), base[3:1000], base[1003:]
    ours = compiled.quantise_uniform(x, 7, 512, "l2", SEED, memory)
    assert torch.equal(base, before)
    assert same(ours, quantised.quantise_uniform(x.clone(), 7, 512, "l2", SEED, memory.clone()))


def test_no_quotient_comes_near_enough_to_the_middle_for_the_short_way_to_err() -> None:
    """Of every 419th divisor, all dividends whose quotient lies nearest to the middle of two float32.

    The correction errs by at most 3.5 * 2**-24 of the last place, and X / S lies |k| / (2 S) of it from a middle, with
    X and S in 2**23 ... 2**24 and an integer k: so these are all dividends that it could get wrong. (All divisors were
    searched once, 41 million such pairs, and there is none.)
    """
    divisors = torch.arange(2**23, 2**24, 419)
    checked = 0
    for shift in (24, 25):  # X >= S and X < S
        for k in (*range(-7, 0), *range(1, 8)):
            dividends, by = _nearest(divisors, shift, k)
            x, c = dividends.float().numpy(), by.float().numpy()
            reciprocal = 1 / c
            product = x * reciprocal
            corrected = exact_fma(exact_fma(product, -c, x), reciprocal, product)
            assert (corrected == x / c).all()
            checked += len(x)
    assert checked > 50_000
    assert rounding.SMALLEST.value > 0


def _nearest(divisors: Tensor, shift: int, k: int) -> tuple[Tensor, Tensor]:
    """X and S with 2**shift X = M S + k, M odd, X and S in 2**23 ... 2**24, X >= S exactly if shift is 24."""
    odd, twos = divisors.clone(), torch.zeros_like(divisors)
    for _ in range(3):  # |k| < 8, and the twos of S divide it
        even = odd % 2 == 0
        odd, twos = torch.where(even, odd // 2, odd), twos + even
    fits = (odd % 2 == 1) & (k % (1 << twos) == 0)
    s, odd, twos = divisors[fits], odd[fits], twos[fits]
    x = torch.remainder(k >> twos, odd)
    for step in range(shift):  # halve it, modulo odd
        halved = torch.where(x % 2 == 0, x // 2, (x + odd) // 2)
        x = torch.where(step < shift - twos, halved, x)
    x = x + (2**23 - x + odd - 1).div(odd, rounding_mode="floor") * odd
    pairs = [(x + i * odd, s) for i in range(9)]
    dividends, by = (torch.cat(each) for each in zip(*pairs, strict=True))
    middle = ((dividends << shift) - k) // by
    inside = (dividends < 2**24) & ((dividends >= by) == (shift == 24)) & (middle % 2 == 1)
    return dividends[inside], by[inside]
