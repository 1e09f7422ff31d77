"""Exact top-k against its definition, on data of every kind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gpu.same import same
from thriftgrad.kernels import sparse
from thriftgrad.kernels.gpu import compiled, top_k


def not_finite(x: Tensor) -> Tensor:
    x[::7], x[::5] = torch.nan, -torch.inf
    return x


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda x: x,
    "ties": lambda x: (x * 4).round(),
    "constant": lambda x: torch.full_like(x, -3.0),
    "zeros of both signs": lambda x: torch.zeros_like(x).copysign(x),
    "not finite": not_finite,
    "tiny and heavy": lambda x: x**9 * 1e-38,
    "ascending": lambda x: x.abs().sort().values,
    "the sample sees none": lambda x: torch.where(torch.arange(len(x)) % 16 == 0, 0.0, x),
    "the sample sees too much": lambda x: torch.where(torch.arange(len(x)) % 16 == 0, 9.0, x),
}
SIZES = [(1, 1), (5, 2), (5, 5), (5, 0), (100, 7), (5000, 1250), (9000, 90), (20_000, 2000), (20_000, 15_000)]


def vector(n: int, kind: str) -> Tensor:
    return KINDS[kind](torch.randn(n, generator=torch.Generator().manual_seed(n)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "k"), SIZES)
def test_the_largest(n: int, k: int, kind: str) -> None:
    x = vector(n, kind)
    assert same(compiled.largest(x, k), sparse.largest(x, k))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(dtype: torch.dtype) -> None:
    x = vector(6000, "normal").to(dtype)
    assert same(compiled.largest(x, 60), sparse.largest(x, 60))
    assert same(compiled.choose_largest(x, 60, x), sparse.choose_largest(x, 60, x))


@pytest.mark.parametrize("kind", KINDS)
def test_with_a_memory(kind: str) -> None:
    x, memory = vector(5000, kind), torch.randn(5000, generator=torch.Generator().manual_seed(1))
    assert same(compiled.choose_largest(x, 50, memory, 0.7), sparse.choose_largest(x, 50, memory, 0.7))
    assert same(compiled.choose_largest(x, 50), sparse.choose_largest(x, 50))
    assert same(compiled.owed(x, memory, 0.7), sparse.owed(x, memory, 0.7))


@pytest.mark.parametrize(
    ("kind", "k", "collected"),
    [("normal", 200, 1), ("the sample sees none", 200, 0), ("the sample sees too much", 1500, 0), ("constant", 200, 0)],
)
def test_what_the_sample_decides(kind: str, k: int, collected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search among those above the floor is taken where it can be, and left where it cannot."""
    seen: list[int] = []
    launch = top_k.launch

    def watched(kernel: object, programs: int, like: Tensor, *arguments: object, **settings: object) -> None:
        launch(kernel, programs, like, *arguments, **settings)
        if kernel is top_k._begin:
            state = arguments[1]
            assert isinstance(state, Tensor)
            seen.append(int(state[0]))

    monkeypatch.setattr(top_k, "launch", watched)
    x = vector(20_000, kind)
    assert same(compiled.largest(x, k), sparse.largest(x, k))
    assert seen == [collected]
