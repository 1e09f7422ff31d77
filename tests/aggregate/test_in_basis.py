"""Exchange in another basis: the aggregator sees coefficients, everybody else tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from samples import estimates, gradients, same_bits, specs, step
from thriftgrad import (
    QSGD,
    AllGather,
    AllReduce,
    Cast,
    ErrorFeedback,
    Identity,
    Key,
    Payload,
    PowerSGD,
    RandomK,
    ScatterReduce,
    TensorSpec,
    TopK,
)
from thriftgrad.aggregate import InBasis
from thriftgrad.core import Layout, LinearCompressor, memories
from thriftgrad.core.compressor import floating


def cosines(n: int) -> np.ndarray[Any, Any]:
    """The orthonormal DCT-II, from its definition."""
    i = np.arange(n)
    matrix = np.cos(np.pi / n * (i[None] + 0.5) * i[:, None]) * np.sqrt(2 / n)
    matrix[0] /= np.sqrt(2)
    return np.asarray(matrix)


@dataclass(frozen=True, repr=False)
class Cosines(LinearCompressor[None, tuple[()]]):
    """A whole tensor as its cosine coefficients; ``scale`` is not 1 where it must be refused."""

    scale: float = 1.0

    isometric = True

    def init(self, spec: TensorSpec) -> None:
        return None

    def layout(self, spec: TensorSpec, shared: Any = None) -> Layout:
        return Layout(spec, TensorSpec((spec.numel,), spec.dtype, spec.device), (), repr(self))

    def matrix(self, x: Tensor) -> Tensor:
        return torch.from_numpy(cosines(x.numel())).to(x.dtype)

    def compress(self, x: Tensor, state: None, key: Key) -> tuple[Payload[tuple[()]], None]:
        flat = floating(x, self)
        return Payload(self.matrix(flat) @ flat, (), self.layout(TensorSpec.of(x))), None

    def decompress(self, payload: Payload[tuple[()]]) -> Tensor:
        return (self.matrix(payload.carrier).T @ payload.carrier).view(payload.layout.spec.shape)

    @property
    def unbiased(self) -> bool:
        return True

    def variance_bound(self, n: int) -> float | None:
        return 0.0 if self.scale == 1 else 1.0


def test_identity_changes_nothing() -> None:
    inner = AllGather(ErrorFeedback(TopK(k=2) >> QSGD(bits=8)), mean="senders")
    method = InBasis(Identity(), inner)
    states, plain = [method.init(specs()) for _ in range(3)], [inner.init(specs()) for _ in range(3)]
    for i in range(3):
        means, states = step(method, gradients(3, i), states, Key(i))
        expected, plain = step(inner, gradients(3, i), plain, Key(i))
        for a, b in zip(means[0], expected[0], strict=True):
            assert same_bits(a, b)


@pytest.mark.parametrize("inner", [AllReduce(Identity()), ScatterReduce(Identity(), Identity())], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_without_loss_inside_it_is_the_mean(inner: Any, dtype: torch.dtype) -> None:
    tensors = gradients(3, dtype=dtype)
    precision = 1e-13 if dtype == torch.float64 else 1e-5
    for at, mean in enumerate(estimates(InBasis(Cosines(), inner), tensors)[0]):
        assert mean.dtype == dtype
        expected = torch.stack([mine[at] for mine in tensors]).mean(0)
        torch.testing.assert_close(mean, expected, rtol=0, atol=precision)


def test_the_largest_coefficients_are_kept_and_the_others_remembered() -> None:
    n, method = 24, InBasis(Cosines(), AllGather(ErrorFeedback(TopK(k=3), decay=0.5)))
    states, basis = [method.init([TensorSpec((4, 6), torch.float64)])], cosines(n)
    memory = np.zeros(n)
    for i in range(4):
        x = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(i))
        owed = basis @ x.numpy().reshape(-1) + 0.5 * memory
        chosen = np.argsort(-np.abs(owed), kind="stable")[:3]
        memory = owed.copy()
        memory[chosen] = 0
        means, states = step(method, [[x]], states, Key(i))
        np.testing.assert_allclose(means[0][0].numpy().reshape(-1), basis.T @ (owed - memory), atol=1e-13)
        (kept,) = memories(states[0])
        np.testing.assert_allclose(kept.numpy(), memory, atol=1e-13)


def test_the_aggregator_sees_coefficients_by_the_tensors_names() -> None:
    """A wave is one coefficient: exact in its basis, where k = 1 of the tensor itself would lose nearly all."""
    wave = torch.from_numpy(cosines(32)[5]).float()
    method = InBasis(Cosines(), AllGather(TopK(k=1)))
    torch.testing.assert_close(estimates(method, [[wave]])[0][0], wave, rtol=0, atol=1e-6)
    assert float((estimates(AllGather(TopK(k=1)), [[wave]])[0][0] - wave).norm()) > 0.9
    low_rank = InBasis(Identity(), PowerSGD(rank=1))
    with pytest.warns(UserWarning, match="compresses none of the 6 tensors"):  # coefficients are vectors
        low_rank.init(specs())
    assert low_rank.uncompressed(specs()) == tuple(spec.name for spec in specs())


def test_coefficients_beyond_their_type_are_seen_although_none_is_drawn() -> None:
    """3e38 sqrt(100) is no float32, and it is one coefficient of 100."""
    method = InBasis(Cosines(), AllGather(RandomK(k=1)))
    states = [method.init([TensorSpec((100,))])]
    for i in range(5):
        means, after = step(method, [[torch.full((100,), 3e38)]], states, Key(i))
        assert not means[0][0].isfinite().any()
        assert after[0] is states[0]


@pytest.mark.parametrize(
    "basis", [Cast("bf16"), Cast("fp16"), RandomK(k=9), RandomK(fraction=1.0), Cosines(scale=2.0)], ids=repr
)
def test_it_must_be_a_change_of_basis(basis: Any) -> None:
    words = (
        r"InBasis needs a change of basis that keeps lengths and every element, without side information, and .* none"
    )
    with pytest.raises(ValueError, match=words):
        InBasis(basis, AllGather(TopK(k=1)))


def test_a_basis_that_fills_up_is_refused() -> None:
    @dataclass(frozen=True, repr=False)
    class Padded(Cosines):
        def layout(self, spec: TensorSpec, shared: Any = None) -> Layout:
            return Layout(spec, TensorSpec((spec.numel + 1,), spec.dtype), (), repr(self))

    with pytest.raises(ValueError, match=r"and Padded\(\) is none; use Identity\(\) or a DCT\."):
        InBasis(Padded(), AllGather(TopK(k=1)))


@pytest.mark.parametrize(
    ("basis", "aggregator", "words"),
    [
        (TopK(k=1), AllGather(TopK(k=1)), r"InBasis needs a linear compressor such as Identity\(\), got TopK\(k=1\)"),
        (AllReduce(Identity()), AllGather(TopK(k=1)), "InBasis needs a linear compressor"),
        (Identity(), TopK(k=1), r"InBasis needs an aggregator such as AllGather\(.*\), got TopK\(k=1\)"),
    ],
    ids=repr,
)
def test_types(basis: Any, aggregator: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        InBasis(basis, aggregator)
