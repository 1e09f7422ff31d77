"""Inputs and small runs that many tests share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from thriftgrad import Key, TensorSpec, simulate
from thriftgrad.comm import Observer
from thriftgrad.core import Compressor

KINDS = ("gaussian", "flat", "one-hot", "heavy")

SHAPES = {"conv.weight": (8, 12), "conv.bias": (7,), "scale": (1,), "lstm": (3, 4, 5), "norm": (2, 9), "again": (8, 12)}


def vector(kind: str, n: int = 400, seed: int = 0) -> Tensor:
    """A float32 vector: the inputs on which compressors behave most differently."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(n, generator=generator)
    match kind:
        case "gaussian":
            return normal
        case "flat":
            return normal.sign() * 3.0
        case "one-hot":
            return torch.nn.functional.one_hot(torch.tensor(n // 3), n).float() * -5.0
        case "heavy":
            return normal.sign() * normal.abs() ** 7
    raise AssertionError(kind)


def compressed(compressor: Compressor[Any, Any], x: Tensor, key: Key = Key(0)) -> Tensor:  # noqa: B008
    """C(x) from a fresh state."""
    return compressor.decompress(compressor.compress(x, compressor.init(TensorSpec.of(x)), key)[0])


def gradients(workers: int, step: int = 0, dtype: torch.dtype = torch.float32) -> list[list[Tensor]]:
    """Each worker's tensors of SHAPES, another set at each step."""
    generator = torch.Generator().manual_seed(1000 * step + 7)
    return [[torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES.values()] for _ in range(workers)]


def specs(dtype: torch.dtype = torch.float32) -> list[TensorSpec]:
    """What ``gradients`` returns, named."""
    return [TensorSpec(shape, dtype, name=name) for name, shape in SHAPES.items()]


def step(
    aggregator: Any,
    tensors: Sequence[Sequence[Tensor]],
    states: Sequence[Any],
    key: Key,
    observe: Observer | None = None,
) -> tuple[list[list[Tensor]], list[Any]]:
    """One simulated step: every worker's estimates and next state."""
    workers = [aggregator.aggregate(x, state, key) for x, state in zip(tensors, states, strict=True)]
    results = simulate(workers, observe)
    return [means for means, _ in results], [state for _, state in results]


def estimates(aggregator: Any, tensors: Sequence[Sequence[Tensor]], key: Key = Key(0)) -> list[list[Tensor]]:  # noqa: B008
    """Every worker's estimates of one step from fresh states; tensors are named by their position."""
    states = [aggregator.init([TensorSpec.of(x) for x in mine]) for mine in tensors]
    return step(aggregator, tensors, states, key)[0]


def bits(x: Tensor) -> Tensor:
    """The tensor's bytes, so that equality means equal bits, NaN and the sign of zero included."""
    return x.detach().contiguous().reshape(-1).view(torch.uint8)


def same_leaf(a: Any, b: Any) -> bool:
    """Two leaves of a state: tensors by their bits, numbers by their value."""
    return same_bits(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(bits(a), bits(b))


def label(value: object) -> str:
    """What a test is called after: the repr without addresses, which differ between the processes of one run."""
    return re.sub(r" at 0x\w+", "", repr(value))
