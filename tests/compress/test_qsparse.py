"""The operators of Qsparse-local-SGD: golden values, the lemmas, what is refused, and the bits of a ResNet-50."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from math import ceil, log2, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from samples import compressed, vector
from thriftgrad import (
    ErrorFeedback,
    Key,
    PayloadError,
    QRandK,
    QTopK,
    Shrink,
    Sign,
    SignTopK,
    TensorSpec,
    TopK,
    parse,
    theory,
    wire,
)
from thriftgrad.compress import QSGD, RandomK
from thriftgrad.lab.explain import overview

X = torch.tensor([3.0, -1.0, 0.5, -2.0, 0.0])


def square(x: Tensor) -> float:
    return float(x.double().square().sum())


def residual(compressor: Any, x: Tensor) -> float:
    """|x - C(x)|^2."""
    return square(x.double() - compressed(compressor, x).double())


def kept(x: Tensor, k: int) -> Tensor:
    """The k largest magnitudes by numpy, signs kept."""
    order = np.argsort(-x.abs().numpy(), kind="stable")[:k]
    return x[torch.from_numpy(order.copy())].double()


# Vectors that bring out the corners: zeros, ties, one coordinate, constants, and scales from 1e-20 to 1e20.
levels = st.sampled_from([0.0, 0.0, 1.0, -1.0, 1.0, 0.5, -2.0, 3.0, 1e-3])
any_vector = st.builds(
    lambda values, scale: torch.tensor(values) * scale,
    st.one_of(
        st.lists(levels, min_size=1, max_size=40),
        st.lists(st.floats(-10, 10).map(lambda value: round(value, 6)), min_size=1, max_size=40),  # no denormals
        st.builds(lambda n, i: [5.0 * (j == i % n) for j in range(n)], st.integers(1, 40), st.integers(0, 39)),
        st.builds(lambda n, c: [c] * n, st.integers(1, 40), st.sampled_from([1.0, -2.5])),
    ),
    st.sampled_from([1.0, 1e20, 1e-20]),
)


@pytest.mark.parametrize(
    ("compressor", "expected"),
    [
        (TopK(k=2), [3, 0, 0, -2, 0]),
        (SignTopK(k=2), [2.5, 0, 0, -2.5, 0]),
        (SignTopK(k=2, order=2), [1.802776, 0, 0, -1.802776, 0]),
        (Sign(), [1.3, -1.3, 1.3, -1.3, 1.3]),
    ],
    ids=repr,
)
def test_golden_values(compressor: Any, expected: list[float]) -> None:
    torch.testing.assert_close(
        compressed(compressor, X), torch.tensor(expected, dtype=torch.float32), rtol=1e-6, atol=0
    )


def test_golden_residual() -> None:
    assert residual(SignTopK(k=2), X) == 14.25 - 25 / 2 == 1.75


@pytest.mark.parametrize("order", [1, 2, 3, 4, 7, 50])
@pytest.mark.parametrize("bucket", [None, 7])
@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-30, 1e-41])
def test_the_scale_is_the_norm_over_the_number(order: int, bucket: int | None, scale: float) -> None:
    """numpy's m-norm of each bucket, the last one shorter; the m-th powers themselves leave float64 both ways."""
    x = vector("gaussian", 37) * scale
    side = Sign(bucket=bucket, order=order).compress(x, None, Key(0))[0].side
    for i, start in enumerate(range(0, 37, bucket or 37)):
        part = x[start : start + (bucket or 37)].double().numpy()
        expected = np.abs(part).max() * np.linalg.norm(part / np.abs(part).max(), ord=order) / len(part)
        np.testing.assert_allclose(side.scale[i].item(), expected, rtol=1e-6, atol=1e-45)


def test_sign_of_nothing_and_of_zero() -> None:
    assert not compressed(Sign(order=3), torch.zeros(5)).any()
    assert compressed(Sign(order=3), torch.zeros(0)).numel() == 0
    assert compressed(Sign(order=3), torch.tensor([1.0, torch.inf])).isnan().all()


@given(any_vector, st.integers(1, 45))
def test_lemma_3_of_order_one_is_an_identity(x: Tensor, k: int) -> None:
    """|x - C(x)|^2 = |x|^2 - |y|_1^2 / k, which is at most (1 - 1 / n) |x|^2."""
    y = kept(x, min(k, len(x)))
    exact = square(x) - float(y.abs().sum()) ** 2 / len(y)
    assert residual(SignTopK(k=k), x) == pytest.approx(exact, rel=1e-5, abs=1e-6 * square(x))
    assert exact <= (1 - 1 / len(x)) * square(x) * (1 + 1e-12)
    assert SignTopK(k=k).contraction(len(x)) == pytest.approx(1 / len(x))


@pytest.mark.parametrize("order", [2, 3, 6])
@given(x=any_vector, k=st.integers(1, 45))
def test_lemma_3_of_higher_orders(order: int, x: Tensor, k: int) -> None:
    compressor, few = SignTopK(k=k, order=order), min(k, len(x))
    delta = compressor.contraction(len(x)) or 0.0
    assert delta == pytest.approx(few ** (2 / order - 1) / len(x))
    y = kept(x, few)
    assert residual(compressor, x) <= (1 - delta + 1e-6) * square(x)
    norm = float(torch.linalg.vector_norm(y, order))
    exact = square(x) - (2 * norm * float(y.abs().sum()) - norm**2) / few
    assert residual(compressor, x) == pytest.approx(exact, rel=1e-5, abs=1e-6 * square(x))


def expected_residual(x: Tensor, k: int, s: int, scaled: bool) -> float:
    """E|x - C(x)|^2 exactly: rounding is unbiased, and orthogonal to what top-k left out."""
    y = kept(x, k)
    length = float(y.norm())
    variance = theory.exact_variance(y.numpy(), np.linspace(-1, 1, 2 * s + 1), length) if length else 0.0
    c = 1 / (1 + min(k / s**2, sqrt(k) / s)) if scaled else 1.0
    return square(x) - square(y) + (1 - c) ** 2 * square(y) + c**2 * variance


@given(any_vector, st.integers(1, 45), st.sampled_from([1, 2, 4, 15, 255]))
def test_lemmas_1_and_2(x: Tensor, k: int, s: int) -> None:
    n, k = len(x), min(k, len(x))
    beta = min(k / s**2, sqrt(k) / s)
    delta = QTopK(k=k, levels=s).contraction(n) or 0.0
    assert delta == pytest.approx(k / (n * (1 + beta)))
    assert expected_residual(x, k, s, scaled=True) <= (1 - delta + 1e-9) * square(x)
    if beta < 1:
        unscaled = QTopK(k=k, levels=s, scaled=False).contraction(n) or 0.0
        assert unscaled == pytest.approx((1 - beta) * k / n)
        assert unscaled <= delta  # 1 - beta <= 1 / (1 + beta)
        assert expected_residual(x, k, s, scaled=False) <= (1 - unscaled + 1e-9) * square(x)


@pytest.mark.parametrize("kind", ["gaussian", "heavy", "flat"])
@pytest.mark.parametrize(("s", "scaled"), [(2, True), (4, True), (15, True), (15, False), (255, False)])
def test_the_error_is_what_theory_says(kind: str, s: int, scaled: bool) -> None:
    x, compressor = vector(kind, 200), QTopK(k=20, levels=s, scaled=scaled)
    errors = torch.tensor([square(x - compressed(compressor, x, Key(i))) for i in range(200)], dtype=torch.float64)
    sigma = float(errors.std()) / sqrt(len(errors))
    assert float(errors.mean()) == pytest.approx(expected_residual(x, 20, s, scaled), abs=5 * sigma + 1e-5 * square(x))


def test_unscaled_rounding_to_few_levels_expands() -> None:
    """d = 200, k = 20, s = 1, beta = 4.47: in the mean more is lost than there was, 2.5 times as much at worst."""
    for kind, least in (("gaussian", 1.4), ("flat", 1.2)):
        x, chain = vector(kind, 200), TopK(k=20) >> QSGD(levels=1, bucket=None)
        mean = sum(square(x - compressed(chain, x, Key(i))) for i in range(100)) / 100 / square(x)
        assert mean > least
        assert expected_residual(x, 20, 1, scaled=True) <= 0.9817 * square(x)
    heavy = torch.cat([torch.linspace(1, 4, 20), torch.zeros(180)])
    assert expected_residual(heavy, 20, 1, scaled=False) > 2.5 * square(heavy)
    assert QTopK(k=20, levels=1).contraction(200) == pytest.approx(1 - 0.9817, abs=1e-4)
    assert QTopK(k=20, levels=16, scaled=False).contraction(200) == pytest.approx(1 - 0.9078, abs=1e-4)
    assert QTopK(k=20, levels=16).contraction(200) == pytest.approx(1 - 0.9072, abs=1e-4)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: QTopK(k=20, levels=1, scaled=False),
            "QTopK: unscaled, 20 values on 1 levels have a variance of up to beta = 4.47 times their square, and from "
            "1 on that is no contraction; use scaled=True or more levels.",
        ),
        (lambda: QRandK(k=225, levels=15, scaled=False), "QRandK: unscaled, 225 values on 15 levels have a variance"),
        (QTopK, "TopK: give either fraction or k, got fraction=None and k=None."),
        (lambda: QTopK(k=0, scaled=False), "TopK: k must be at least 1, got 0."),
        (lambda: QTopK(k=3, levels=256), "QSGD: levels must lie in 1 ... 255, got 256."),
        (lambda: QRandK(fraction=2.0), "RandomK: fraction must lie in (0, 1], got 2.0."),
        (lambda: SignTopK(k=3, order=0), "Sign: order must be at least 1, got 0."),
        (lambda: Sign(order=-2), "Sign: order must be at least 1, got -2."),
        (
            lambda: Sign(scaled=False, order=2),
            "Sign: order=2 has no effect where scaled is False; leave one of them out.",
        ),
    ],
)
def test_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(words)) as raised:
        make()
    assert str(raised.value).endswith(".")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("order", [2.0, "2", None, True])
def test_an_order_that_is_no_integer(order: Any) -> None:
    with pytest.raises(TypeError, match=f"^Sign: order must be an integer, got {re.escape(repr(order))}[.]$"):
        Sign(order=order)


def test_feedback_refuses_what_is_no_contraction_of_large_tensors() -> None:
    """A fraction of a large tensor is many values, whose beta is beyond 1 whatever the levels; a number is not."""
    for levels in (1, 255):
        with pytest.raises(ValueError, match="ErrorFeedback needs a contraction"):
            ErrorFeedback(QTopK(fraction=0.01, levels=levels, scaled=False))
    for chain in (QTopK(k=1000, levels=255, scaled=False), QTopK(fraction=0.01, levels=1), QRandK(k=9, scaled=False)):
        assert ErrorFeedback(chain).compressor == chain


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("SignTopK(k=10)", TopK(k=10) >> Sign()),
        ("SignTopK(fraction=0.1, order=3)", TopK(fraction=0.1) >> Sign(order=3)),
        ("SignTopK(k=9, index_coder=GolombRice())", parse("TopK(k=9, index_coder=GolombRice()) >> Sign()")),
        ("QTopK(k=10, levels=2)", TopK(k=10) >> Shrink(QSGD(levels=2, bucket=None))),
        ("QTopK(k=10, levels=255, scaled=False)", TopK(k=10) >> QSGD(levels=255, bucket=None)),
        ("QRandK(fraction=0.1)", RandomK(fraction=0.1, rescale=False) >> Shrink(QSGD(levels=15, bucket=None))),
        ("QRandK(k=10, levels=4, scaled=False)", RandomK(k=10, rescale=False) >> QSGD(levels=4, bucket=None)),
    ],
)
def test_names_are_read_and_parts_are_printed(text: str, value: Any) -> None:
    assert parse(text) == value
    assert parse(repr(parse(text))) == value
    nested = parse(f"AllGather(ErrorFeedback({text}))")
    assert nested.compressor.compressor == value
    assert parse(repr(nested)) == nested


def test_they_are_listed_among_compressors() -> None:
    tables: list[Any] = [each for each in overview().renderables if hasattr(each, "columns")]
    (compressors,) = [table for table in tables if str(table.title) == "Compressors"]
    assert {"SignTopK", "QTopK", "QRandK", "TopK"} <= {str(cell) for cell in compressors.columns[0].cells}


def resnet50() -> list[tuple[int, ...]]:
    """The shapes of a ResNet-50's parameters: a stem, four stages of bottlenecks, a linear layer."""
    shapes: list[tuple[int, ...]] = []

    def convolution(out: int, into: int, side: int) -> None:
        shapes.extend([(out, into, side, side), (out,), (out,)])  # and its batch norm

    convolution(64, 3, 7)
    into = 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            convolution(width, into, 1)
            convolution(width, width, 3)
            convolution(4 * width, width, 1)
            if block == 0:
                convolution(4 * width, into, 1)
            into = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


SHAPES = resnet50()
SIZES = [TensorSpec(shape).numel for shape in SHAPES]


def test_the_shapes_of_a_resnet50() -> None:
    assert len(SHAPES) == 161
    assert sum(SIZES) == 25_557_032


@pytest.mark.parametrize(
    ("compressor", "value_bits", "once_bits", "published"),
    [
        (TopK(k=1000), 32, 0, 4.56e6),
        (QTopK(k=1000, levels=15), 1 + 4, 32, 1.88e6),
        (SignTopK(k=1000), 1, 32, 1.48e6),
    ],
    ids=repr,
)
def test_bits_of_a_message(compressor: Any, value_bits: int, once_bits: int, published: float) -> None:
    """k_t = min(d_t, 1000) values and indices of ceil(log2 d_t) bits, each a whole number of bytes."""
    nbits = 8 * sum(compressor.layout(TensorSpec(shape)).nbytes for shape in SHAPES)
    kept_of = [(min(n, 1000), ceil(log2(n))) for n in SIZES]
    closed = sum(once_bits + k * (value_bits + index_bits) for k, index_bits in kept_of)
    rounded = sum(once_bits + 8 * ceil(k * value_bits / 8) + 8 * ceil(k * index_bits / 8) for k, index_bits in kept_of)
    assert nbits == rounded
    assert closed <= nbits < closed + 14 * len(SIZES)
    assert nbits == pytest.approx(published, rel=0.004)
    assert 32 * sum(SIZES) / nbits == pytest.approx({4.56e6: 179, 1.88e6: 435, 1.48e6: 551}[published], rel=0.004)


def test_a_shared_seed_costs_64_bits() -> None:
    for n in (5, 10_000):
        assert 8 * RandomK(k=1000, rescale=False).layout(TensorSpec((n,))).nbytes == 32 * min(n, 1000) + 64


def test_piecewise_the_least_contraction_is_that_of_all() -> None:
    """Tensor by tensor: delta of the whole is the least of the deltas, and no more where the worst tensor is alone."""
    compressors: list[Any] = [TopK(k=10), SignTopK(k=10), Sign(order=2), TopK(k=10)]
    sizes = [400, 20, 50, 7]
    deltas = [each.contraction(n) for each, n in zip(compressors, sizes, strict=True)]
    assert deltas == [10 / 400, 1 / 20, 1 / 50, 1.0]
    for kind in ("gaussian", "flat", "one-hot", "heavy"):
        xs = [vector(kind, n, seed) for seed, n in enumerate(sizes)]
        lost = sum(residual(c, x) for c, x in zip(compressors, xs, strict=True))
        assert lost <= (1 - min(deltas)) * sum(square(x) for x in xs)
    alone = [torch.ones(400), *(torch.zeros(n) for n in sizes[1:])]
    lost = sum(residual(c, x) for c, x in zip(compressors, alone, strict=True))
    assert lost / 400 == pytest.approx(1 - deltas[0])


def test_of_a_resnet50_the_largest_layer_decides() -> None:
    worst = min(TopK(k=1000).contraction(n) or 0.0 for n in SIZES)
    assert worst == 1000 / (512 * 512 * 9) == pytest.approx(4.2e-4, rel=0.01)


@pytest.mark.parametrize(("s", "bits"), [(127, 8), (128, 9), (200, 9), (255, 9)])
def test_many_levels_take_the_bits_they_need(s: int, bits: int) -> None:
    """One norm for all, 2 s + 1 symbols of so many bits, in int16 where a byte is too narrow, and back bit for bit."""
    x, compressor = vector("gaussian", 1001), QSGD(levels=s, bucket=None)
    payload, _ = compressor.compress(x, None, Key(1))
    assert payload.layout.carrier.alphabet == 2 * s + 1
    assert payload.carrier.dtype == (torch.uint8 if s == 127 else torch.int16)
    assert payload.side.scale.tolist() == [pytest.approx(float(x.double().norm()), rel=1e-7)]
    assert payload.nbytes == ceil(1001 * bits / 8) + 4
    again = wire.unpack(wire.pack(payload), compressor, TensorSpec.of(x))
    assert torch.equal(again.carrier, payload.carrier)
    assert torch.equal(compressor.decompress(again), compressor.decompress(payload))
    # Each coordinate is on one of the two levels around it.
    at = compressor.decompress(payload).double() / payload.side.scale.double() * s
    assert float((at - at.round()).abs().max()) < 1e-4
    assert float((at - x.double() / payload.side.scale.double() * s).abs().max()) < 1 + 1e-4


def test_a_symbol_beyond_the_levels_is_refused() -> None:
    compressor = QSGD(levels=200, bucket=None)  # nine bits hold 512 symbols, of which 401 are used
    payload, _ = compressor.compress(X, None, Key(0))
    symbols = payload.carrier
    symbols[2] = 401
    with pytest.raises(PayloadError, match="symbol 401 outside the alphabet of 401"):
        wire.unpack(wire.pack(replace(payload, held=symbols, stream=None)), compressor, TensorSpec.of(X))
