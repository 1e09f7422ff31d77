"""Clipping on each worker, before anything is accumulated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Any

import torch
from torch import Tensor

from thriftgrad.aggregate.aggregator import Aggregator
from thriftgrad.comm import Comm, place
from thriftgrad.core import Key, TensorSpec, wide


@dataclass(frozen=True, repr=False)
class LocalClip(Aggregator[Any]):
    """x min(1, c / |x|) with c = threshold / sqrt(n) on each of n workers, tensor by tensor; then the aggregator.

    |x| is the l2 norm. The sum of n independent gradients of norm c has the norm threshold: so clipping before
    memories and momentum stands in for clipping the sum, which no worker has.

    Raises ``ValueError`` for a threshold that is not positive, ``TypeError`` for what is no aggregator.
    Lin et al., Deep Gradient Compression, ICLR 2018, arXiv:1712.01887.

    >>> from thriftgrad.compress import TopK
    >>> from thriftgrad.aggregate import AllGather
    >>> LocalClip(AllGather(TopK(fraction=0.01)), threshold=0.25)
    LocalClip(aggregator=AllGather(compressor=TopK(fraction=0.01)), threshold=0.25)
    """

    aggregator: Aggregator[Any]
    threshold: float

    def __post_init__(self) -> None:
        if not isinstance(self.aggregator, Aggregator):
            raise TypeError(f"LocalClip needs an aggregator such as AllReduce(Identity()), got {self.aggregator!r}.")
        if not (self.threshold > 0 and isfinite(self.threshold)):
            raise ValueError(f"LocalClip: threshold must be a positive number, got {self.threshold}.")

    def uncompressed(self, specs: Sequence[TensorSpec]) -> tuple[str, ...]:
        return self.aggregator.uncompressed(specs)

    def check(self, specs: Sequence[TensorSpec]) -> None:
        self.aggregator.check(specs)

    def init_tensor(self, spec: TensorSpec) -> Any:
        return self.aggregator.init_tensor(spec)

    def exchange(
        self, tensors: Sequence[Tensor], specs: Sequence[TensorSpec], states: Sequence[Any], key: Key
    ) -> Comm[tuple[list[Tensor], list[Any]]]:
        me = yield from place()
        clipped = [_clipped(x, self.threshold / sqrt(me.world)) for x in tensors]
        return (yield from self.aggregator.exchange(clipped, specs, states, key))


def _clipped(x: Tensor, longest: float) -> Tensor:
    """``x``, shortened to the l2 norm ``longest`` if it is longer; NaN throughout if it has one."""
    length: Tensor = torch.linalg.vector_norm(x, dtype=torch.float64)
    factor = (longest / length).clamp_max(1.0)  # of a zero tensor 1; NaN stays
    return (x.to(wide(x.dtype)) * factor).to(x.dtype)
