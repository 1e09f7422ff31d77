"""One all-reduce of the compressed carriers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thriftgrad.aggregate.aggregator import Aggregator, as_one, left_alone, no_use, warn_of_none
from thriftgrad.comm import Comm, all_reduce, place
from thriftgrad.core import (
    Compressor,
    ErrorFeedback,
    Key,
    LinearCompressor,
    Payload,
    Shrink,
    TensorSpec,
    check_compressor,
)
from thriftgrad.core.feedback import LARGE


@dataclass(frozen=True, repr=False)
class AllReduce(Aggregator[Any]):
    """Sum the carriers on the way and decompress once: the cost does not grow with the number of workers.

    Legal for linear compressors alone. All tensors' carriers of one type travel in one buffer; the side information
    is equal on all workers and does not travel.

    Raises ``TypeError`` for a compressor that is not linear.
    """

    compressor: LinearCompressor[Any, Any] | ErrorFeedback | Shrink  # of a linear one

    def __post_init__(self) -> None:
        compressor: Compressor[Any, Any] = self.compressor
        check_compressor(compressor, "AllReduce")
        if not isinstance(compressor, LinearCompressor):
            shards = not compressor.leaves_alone(TensorSpec((LARGE,)))  # which are flat
            instead = f" or ScatterReduce({compressor!r}, {compressor!r})" if shards else ""
            raise TypeError(
                f"AllReduce needs a linear compressor, and {compressor!r} is not: the sum of two of its carriers does "
                f"not decompress to the sum of the tensors. Use AllGather({compressor!r}){instead}."
            )

    def uncompressed(self, specs: Sequence[TensorSpec]) -> tuple[str, ...]:
        return left_alone(self.compressor, specs)

    def check(self, specs: Sequence[TensorSpec]) -> None:
        warn_of_none(repr(self), specs, self.uncompressed(specs), no_use(self.compressor))

    def init_tensor(self, spec: TensorSpec) -> Any:
        return self.compressor.init(spec)

    def exchange(
        self, tensors: Sequence[Tensor], specs: Sequence[TensorSpec], states: Sequence[Any], key: Key
    ) -> Comm[tuple[list[Tensor], list[Any]]]:
        if self.compressor.elementwise and len(tensors) > 1 and len({(x.dtype, x.device) for x in tensors}) == 1:
            return (yield from as_one(self, tensors, specs, states, key))  # the same numbers in a few calls
        me = yield from place()
        sent = [
            self.compressor.compress(x, state, key.fold(spec.name))
            for x, spec, state in zip(tensors, specs, states, strict=True)
        ]
        # Divided before the sum, which could leave the range of a small type.
        carriers = yield from all_reduce_list([payload.carrier for payload, _ in sent], divisor=me.world)
        means = [
            self.compressor.decompress(Payload(carrier, payload.side, payload.layout))
            for carrier, (payload, _) in zip(carriers, sent, strict=True)
        ]
        return means, [state for _, state in sent]


def all_reduce_list(tensors: Sequence[Tensor], divisor: int = 1) -> Comm[list[Tensor]]:
    """The sums over workers of several tensors, each divided first, in one buffer for each type of number."""
    sums: dict[int, Tensor] = {}
    for dtype in sorted({x.dtype for x in tensors}, key=str):
        chosen = [i for i, x in enumerate(tensors) if x.dtype == dtype]
        parts = [tensors[i].reshape(-1) for i in chosen]
        if divisor == 1:
            buffer = torch.cat(parts)
        else:
            buffer = parts[0] / divisor if len(parts) == 1 else torch.cat(parts).div_(divisor)
        buffer = yield from all_reduce(buffer, donated=True)
        split = torch.split(buffer, [part.numel() for part in parts])
        sums |= {i: part.view(tensors[i].shape) for i, part in zip(chosen, split, strict=True)}
    return [sums[i] for i in range(len(tensors))]
