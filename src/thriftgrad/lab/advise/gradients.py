"""Real gradients, as DDP hands them out."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from thriftgrad.core import TensorSpec


@dataclass(frozen=True, eq=False)
class Gradients:
    """The gradients of several batches, one for each worker: ``batches[worker][bucket]`` are the tensors of a DDP
    bucket, ``names[bucket]`` their parameters.
    """

    names: tuple[tuple[str, ...], ...]
    batches: tuple[tuple[tuple[Tensor, ...], ...], ...]

    def specs(self) -> list[TensorSpec]:
        """Of all tensors."""
        pairs = zip(self.names, self.batches[0], strict=True)
        return [TensorSpec.of(x, name) for names, xs in pairs for name, x in zip(names, xs, strict=True)]

    def as_one(self) -> Gradients:
        """All tensors in one bucket: what workers exchange that train on their own in between."""
        names = tuple(name for bucket in self.names for name in bucket)
        return Gradients((names,), tuple((tuple(x for bucket in batch for x in bucket),) for batch in self.batches))
