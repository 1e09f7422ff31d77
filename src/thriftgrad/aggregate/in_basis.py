"""Exchange in another orthonormal basis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from thriftgrad.aggregate.aggregator import Aggregator, nans
from thriftgrad.comm import Comm, replicated
from thriftgrad.core import Key, LinearCompressor, TensorSpec, all_finite
from thriftgrad.core.feedback import LARGE
from thriftgrad.core.tree import leaves


@dataclass(frozen=True, repr=False)
class InBasis(Aggregator[Any]):
    """B^T (the aggregator's estimate of the mean of the B x), for an orthonormal change of basis B.

    ``basis`` is a linear compressor that loses nothing and sends nothing but its carrier, as ``Identity()`` or ``DCT``.
    The aggregator sees the coefficients in place of the tensors, by the same names; its memories and its choice of
    coordinates are in terms of them. Nothing of the change of basis crosses the wire.

    Raises ``TypeError`` for a basis that is not linear or what is no aggregator, ``ValueError`` for a basis that loses
    something, has side information or changes the number of elements.
    As in DeMo: Peng et al., 2024, arXiv:2411.19870.

    >>> from thriftgrad.aggregate import AllGather
    >>> from thriftgrad.compress import Identity, TopK
    >>> InBasis(Identity(), AllGather(TopK(fraction=0.01)))
    InBasis(basis=Identity(), aggregator=AllGather(compressor=TopK(fraction=0.01)))
    """

    basis: LinearCompressor[Any, Any]
    aggregator: Aggregator[Any]

    def __post_init__(self) -> None:
        if not isinstance(self.basis, LinearCompressor):
            raise TypeError(f"InBasis needs a linear compressor such as Identity(), got {self.basis!r}.")
        if not isinstance(self.aggregator, Aggregator):
            raise TypeError(f"InBasis needs an aggregator such as AllGather(TopK(k=9)), got {self.aggregator!r}.")
        layout = self.basis.layout(TensorSpec((LARGE,)))
        side = list(leaves(layout.side))
        keeps_all = self.basis.variance_bound(LARGE) == 0 and self.basis.contraction(LARGE) == 1
        if not (self.basis.isometric and self.basis.unbiased and keeps_all) or side or layout.carrier.numel != LARGE:
            raise ValueError(
                f"InBasis needs a change of basis that keeps lengths and every element, without side information, and "
                f"{self.basis!r} is none; use Identity() or a DCT."
            )

    def uncompressed(self, specs: Sequence[TensorSpec]) -> tuple[str, ...]:
        return self.aggregator.uncompressed([self._of_coefficients(spec) for spec in specs])

    def check(self, specs: Sequence[TensorSpec]) -> None:
        self.aggregator.check([self._of_coefficients(spec) for spec in specs])

    def init_tensor(self, spec: TensorSpec) -> Any:
        return self.aggregator.init_tensor(self._of_coefficients(spec))

    def _of_coefficients(self, spec: TensorSpec) -> TensorSpec:
        return replace(self.basis.layout(spec).carrier, name=spec.name)

    def exchange(
        self, tensors: Sequence[Tensor], specs: Sequence[TensorSpec], states: Sequence[Any], key: Key
    ) -> Comm[tuple[list[Tensor], list[Any]]]:
        payloads = [
            self.basis.compress(x, self.basis.init(spec), key.fold(spec.name))[0]
            for x, spec in zip(tensors, specs, strict=True)
        ]
        coefficients = [payload.carrier for payload in payloads]
        if not all_finite(coefficients):  # a sum left the type's range, and a sparse compressor might not show it
            coefficients = nans(coefficients)
        inner = [self._of_coefficients(spec) for spec in specs]
        means, after = yield from self.aggregator.exchange(coefficients, inner, states, key)

        def estimates() -> list[Tensor]:
            return [
                self.basis.decompress(replace(payload, held=mean, stream=None))
                for payload, mean in zip(payloads, means, strict=True)
            ]

        return (yield from replicated(estimates)), after
