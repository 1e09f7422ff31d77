"""Momentum kept by each worker and compressed in place of the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from thriftgrad.aggregate.aggregator import Aggregator, nans
from thriftgrad.comm import Comm
from thriftgrad.core import Key, TensorSpec, all_finite, wide


class Momentum(NamedTuple):
    """A worker's own average of its gradients."""

    average: Tensor  # float32 or float64
    inner: Any


@dataclass(frozen=True, repr=False)
class LocalMomentum(Aggregator[Momentum]):
    """m' = beta m + (1 - beta) x on each worker, and the aggregator's estimate of the mean of the m'.

    Raises ``ValueError`` for beta outside [0, 1).
    As in Signum: Bernstein et al., 2018, arXiv:1802.04434.
    """

    aggregator: Aggregator[Any]
    beta: float = 0.9

    def __post_init__(self) -> None:
        if not isinstance(self.aggregator, Aggregator):
            raise TypeError(f"LocalMomentum needs an aggregator such as AllGather(Sign()), got {self.aggregator!r}.")
        if not 0 <= self.beta < 1:
            raise ValueError(f"LocalMomentum: beta must lie in [0, 1), got {self.beta}.")

    def uncompressed(self, specs: Sequence[TensorSpec]) -> tuple[str, ...]:
        return self.aggregator.uncompressed(specs)

    def check(self, specs: Sequence[TensorSpec]) -> None:
        self.aggregator.check(specs)

    def init_tensor(self, spec: TensorSpec) -> Momentum:
        return Momentum(spec.with_dtype(wide(spec.dtype)).zeros(), self.aggregator.init_tensor(spec))

    def exchange(
        self, tensors: Sequence[Tensor], specs: Sequence[TensorSpec], states: Sequence[Momentum], key: Key
    ) -> Comm[tuple[list[Tensor], list[Momentum]]]:
        averages = [
            state.average.lerp(x.to(wide(x.dtype)), 1 - self.beta) for x, state in zip(tensors, states, strict=True)
        ]
        if not all_finite(averages):  # the sum left the type's range, and a sparse compressor might not show it
            averages = nans(averages)
        shown = [average.to(x.dtype) for average, x in zip(averages, tensors, strict=True)]
        means, inner = yield from self.aggregator.exchange(shown, specs, [state.inner for state in states], key)
        return means, [Momentum(average, each) for average, each in zip(averages, inner, strict=True)]
