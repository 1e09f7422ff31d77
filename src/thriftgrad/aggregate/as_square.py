"""All tensors of a call as one square matrix, for PowerSGD."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thriftgrad.aggregate.aggregator import Aggregator, warn_of_none
from thriftgrad.aggregate.power_sgd import LowRank, PowerSGD
from thriftgrad.comm import Comm
from thriftgrad.core import Key, TensorSpec, wide


@dataclass(frozen=True, repr=False)
class AsSquare(Aggregator[LowRank]):
    """PowerSGD on one square: all tensors of a call laid end to end, row by row, filled up with zeros.

    With N elements in all, the side is ceil(sqrt(N)), and 2 r ceil(sqrt(N)) floats travel, vectors included: fewer, and
    fewer but larger products, than with a matrix for each tensor. The price: rows and columns of the tensors are lost
    in the square, whose rank says nothing of theirs, so that quality is usually lower, above all at ranks above 1.
    A square that factors would not shrink ``min_compression_rate`` times travels as it is.

    Each tensor keeps its own piece of the memory; what falls on the zeros at the end is dropped. Step and factor belong
    to the call, and its tensors keep copies. After DDP has regrouped its buckets the memories are still right; the
    square is another one, so another grouping of tensors is another estimate, and where its side has changed the
    factor is drawn anew.

    ``aggregator``: a ``PowerSGD`` with any of its options. Raises ``TypeError`` for anything else.
    As ``batched_powerSGD_hook`` of PyTorch; Vogels et al., PowerSGD, NeurIPS 2019, arXiv:1905.13727, has a matrix for
    each tensor. Differs from the hook: as ``PowerSGD`` does, in memories, factors and non-finite values.

    >>> AsSquare(PowerSGD(rank=1))
    AsSquare(aggregator=PowerSGD(rank=1))
    """

    aggregator: PowerSGD

    def __post_init__(self) -> None:
        if not isinstance(self.aggregator, PowerSGD):
            raise TypeError(f"AsSquare needs a PowerSGD such as PowerSGD(rank=2), got {self.aggregator!r}.")

    def uncompressed(self, specs: Sequence[TensorSpec]) -> tuple[str, ...]:
        """All of them or none, if they come in one call."""
        worth = not specs or self.aggregator.compresses(_square(specs))
        return () if worth else tuple(spec.name for spec in specs)

    def check(self, specs: Sequence[TensorSpec]) -> None:
        if alone := self.uncompressed(specs):
            side, rate = _square(specs).shape[0], self.aggregator.min_compression_rate
            why = f"their square of {side} x {side} is too small for its rank to save {rate} times"
            warn_of_none(repr(self), specs, alone, why)

    def init_tensor(self, spec: TensorSpec) -> LowRank:
        kept = self.aggregator.memory != "none"
        return LowRank(0, spec.with_dtype(wide(spec.dtype)).zeros() if kept else None, None)

    def exchange(
        self, tensors: Sequence[Tensor], specs: Sequence[TensorSpec], states: Sequence[LowRank], key: Key
    ) -> Comm[tuple[list[Tensor], list[LowRank]]]:
        square = _square(specs)
        furthest = max(states, key=lambda state: state.step)
        kept = [state.memory for state in states if state.memory is not None]
        matrix = _laid(tensors, square)
        memory = _laid(kept, square.with_dtype(wide(square.dtype))) if kept else None
        if memory is not None and not self.aggregator.compresses(square):
            matrix, memory = matrix.to(memory.dtype) + memory, None  # of a larger call, before a regrouping
        square = square.with_dtype(matrix.dtype)
        factor = furthest.factor
        if factor is not None and factor.shape[0] != square.shape[0]:
            factor = None
        inner = LowRank(furthest.step, memory, factor)
        (mean,), (after,) = yield from self.aggregator.exchange([matrix], [square], [inner], key)
        left = torch.zeros_like(matrix) if after.memory is None else after.memory
        owed = [
            None if state.memory is None else piece.to(state.memory.dtype)
            for state, piece in zip(states, _pieces(left, specs), strict=True)
        ]
        means = [piece.to(x.dtype) for piece, x in zip(_pieces(mean, specs), tensors, strict=True)]
        return means, [after._replace(memory=each) for each in owed]


def _square(specs: Sequence[TensorSpec]) -> TensorSpec:
    """The square of these tensors, by the name of the first."""
    kinds = {spec.dtype for spec in specs}
    if len(kinds) > 1:
        kinds = {torch.float64 if torch.float64 in kinds else torch.float32}
    (dtype,) = kinds
    side = math.isqrt(sum(spec.numel for spec in specs) - 1) + 1
    return TensorSpec((side, side), dtype, specs[0].device, specs[0].name)


def _laid(tensors: Sequence[Tensor], square: TensorSpec) -> Tensor:
    flat = torch.cat([x.reshape(-1).to(square.dtype) for x in tensors])
    return torch.nn.functional.pad(flat, (0, square.numel - flat.numel())).view(square.shape)


def _pieces(matrix: Tensor, specs: Sequence[TensorSpec]) -> list[Tensor]:
    """What of the square is each tensor's, without the zeros at the end."""
    sizes = [spec.numel for spec in specs]
    parts = torch.split(matrix.reshape(-1)[: sum(sizes)], sizes)
    return [part.view(spec.shape) for part, spec in zip(parts, specs, strict=True)]
