"""A linear subspace for the slices of a tensor, learned now and then from the mean itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from thriftgrad import kernels
from thriftgrad.aggregate.aggregator import Aggregator, warn_of_none
from thriftgrad.aggregate.all_reduce import all_reduce_list
from thriftgrad.aggregate.drift import settled
from thriftgrad.comm import Comm, place, replicated
from thriftgrad.compress.buckets import check_integer
from thriftgrad.core import Key, TensorSpec, wide
from thriftgrad.kernels.orthonormal import orthonormal

_SEEN = 1e-10
"""Of the greatest second moment; what is less is rounding noise of float32, whose square is about 1e-14."""


class Sliced(NamedTuple):
    """State of one tensor."""

    step: int
    memory: Tensor | None  # float32 or float64, the tensor's shape: what was not sent; None if nothing is remembered
    moment: Tensor | None  # float64[K, K]: sum of s s^T over the slices seen in this burst; None outside of one
    basis: Tensor | None  # float32[K, d], orthonormal columns, equal on all workers; None where nothing is compressed


@dataclass(frozen=True, repr=False)
class GradiVeQ(Aggregator[Sliced]):
    r"""Slices of K elements in a common subspace of d dimensions: s -> U U^T s, with error feedback.

    A tensor is flattened, filled up with zeros and cut into slices s of K = ``slice_elements``. Two phases alternate:

    ``uncompressed_steps``: gradient + memory travels as it is and the memory is empty; all workers add up the second
    moment of the mean's slices, S = sum s s^T. At the end U, K x d, are the d = ``components`` leading eigenvectors;
    where a burst has shown fewer directions the rest is drawn at random, alike on all workers.
    ``compressed_steps``: the d numbers U^T s of each slice are all-reduced, and the estimate is U mean(U^T s);
    memory' = s - U U^T s (``memory=False``: nothing is kept).

    Wire: n elements in an uncompressed step, d ceil(n / K) in a compressed one, all tensors of a call in one buffer;
    8 bytes a tensor at the end of a burst, for a digest of U, and U itself from worker 0 where the workers' differ.
    Tensors that fit into one slice always travel as they are.

    A burst pays back at once all that a compressed phase has kept: one long step, the longer the phase.

    Exact on means whose slices lie in the subspace; with d = K on all. PowerSGD works on the two sides of each matrix
    and learns its factors anew at every step; here one side alone is compressed, the subspace is up to
    ``compressed_steps`` steps old, and learning it takes bursts of whole gradients and a K x K eigenproblem a tensor.

    Raises ``TypeError`` for a number that is no integer, ``ValueError`` for one below 1, or more components
    than elements.
    Yu et al., GradiVeQ, NeurIPS 2018, arXiv:1811.03617. Not verified against the paper: the defaults of slice size,
    components and phases, whether slices are centred (here they are not), and where exactly the residual is fed back.

    >>> GradiVeQ(slice_elements=256, components=32)
    GradiVeQ()
    """

    slice_elements: int = 256
    components: int = 32
    uncompressed_steps: int = 1
    compressed_steps: int = 19
    memory: bool = True

    def __post_init__(self) -> None:
        for name in ("slice_elements", "components", "uncompressed_steps", "compressed_steps"):
            check_integer("GradiVeQ", name, getattr(self, name))
            if getattr(self, name) < 1:
                raise ValueError(f"GradiVeQ: {name} must be at least 1, got {getattr(self, name)}.")
        if self.components > self.slice_elements:
            raise ValueError(
                f"GradiVeQ: a slice of {self.slice_elements} elements has no more components than that, got "
                f"components={self.components}; use fewer, or longer slices."
            )

    def compresses(self, spec: TensorSpec) -> bool:
        """Whether a tensor of this size is more than one slice."""
        return spec.numel > self.slice_elements

    def uncompressed(self, specs: Sequence[TensorSpec]) -> tuple[str, ...]:
        return tuple(spec.name for spec in specs if not self.compresses(spec))

    def check(self, specs: Sequence[TensorSpec]) -> None:
        why = f"each fits into one slice of {self.slice_elements} elements"
        warn_of_none(repr(self), specs, self.uncompressed(specs), why)

    def init_tensor(self, spec: TensorSpec) -> Sliced:
        remembers = self.memory and self.compresses(spec)
        return Sliced(0, spec.with_dtype(wide(spec.dtype)).zeros() if remembers else None, None, None)

    def exchange(
        self, tensors: Sequence[Tensor], specs: Sequence[TensorSpec], states: Sequence[Sliced], key: Key
    ) -> Comm[tuple[list[Tensor], list[Sliced]]]:
        me = yield from place()
        owed = [
            x if state.memory is None else x.to(state.memory.dtype) + state.memory
            for x, state in zip(tensors, states, strict=True)
        ]
        # Divided before the sum, which could leave the range of a small type.
        sent = [self._sent(x, state) / me.world for x, state in zip(owed, states, strict=True)]
        sums = yield from all_reduce_list(sent)
        memories = [
            self._left(x, me.world * mine, state) if state.memory is not None else None
            for x, mine, state in zip(owed, sent, states, strict=True)
        ]

        def seen() -> tuple[list[Tensor], list[Sliced]]:
            means = [self._received(*each) for each in zip(sums, states, owed, strict=True)]
            return means, [self._after(*each, key) for each in zip(means, specs, states, strict=True)]

        means, after = yield from replicated(seen)
        ended = [i for i, state in enumerate(states) if state.basis is None and after[i].basis is not None]
        if ended:
            bases = yield from settled("GradiVeQ", [basis for i in ended if (basis := after[i].basis) is not None])
            after = list(after)
            for i, basis in zip(ended, bases, strict=True):
                after[i] = after[i]._replace(basis=basis)
        estimates = [mean.to(x.dtype) for mean, x in zip(means, tensors, strict=True)]
        return estimates, [s._replace(memory=memory) for s, memory in zip(after, memories, strict=True)]

    def _sent(self, x: Tensor, state: Sliced) -> Tensor:
        """The tensor as it is, or the coefficients of its slices, [slices, d]."""
        if state.basis is None:
            return x
        slices = self._slices(x.to(wide(x.dtype)))
        return slices @ state.basis.to(slices.dtype)

    def _received(self, sent: Tensor, state: Sliced, like: Tensor) -> Tensor:
        """What a tensor like this one becomes of what is sent."""
        if state.basis is None:
            return sent
        return (sent @ state.basis.to(sent.dtype).mT).view(-1)[: like.numel()].view(like.shape)

    def _left(self, owed: Tensor, sent: Tensor, state: Sliced) -> Tensor:
        """What is still owed after this was sent."""
        return torch.zeros_like(owed) if state.basis is None else owed - self._received(sent, state, owed)

    def _after(self, mean: Tensor, spec: TensorSpec, state: Sliced, key: Key) -> Sliced:
        """The state after this step, but for the memory; the same on all workers."""
        step = state.step + 1
        at = step % (self.uncompressed_steps + self.compressed_steps)
        if not self.compresses(spec):
            return state._replace(step=step)
        if state.basis is not None:
            return Sliced(step, None, None, state.basis if at else None)
        slices = self._slices(mean.to(torch.float64))
        found = slices.mT @ slices
        before = torch.zeros_like(found) if state.moment is None else state.moment
        # A step that float64 cannot square teaches nothing, and one with a NaN is taken back by the caller.
        moment = torch.where((before + found).isfinite().all(), before + found, before)
        if at != self.uncompressed_steps:
            return Sliced(step, None, moment, None)
        return Sliced(step, None, None, self._leading(moment, key.fold("GradiVeQ", spec.name)))

    def _leading(self, moment: Tensor, key: Key) -> Tensor:
        """The leading eigenvectors, float32[K, d]; directions that were not seen are drawn, not left to rounding."""
        values, vectors = (each.flip(-1)[..., : self.components] for each in torch.linalg.eigh(moment))
        drawn = kernels.normal(vectors.numel(), key.seed, moment.device).view(vectors.shape)
        found = torch.where(values > _SEEN * values[0], vectors.to(torch.float32), drawn)
        return orthonormal(found[None])[0]

    def _slices(self, x: Tensor) -> Tensor:
        """[slices, K], the last one filled up with zeros."""
        flat = x.reshape(-1)
        return torch.nn.functional.pad(flat, (0, -flat.numel() % self.slice_elements)).view(-1, self.slice_elements)
