"""Error feedback: what was not sent is kept and added next time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from thriftgrad.core.compressor import Compressor, LinearCompressor, check_compressor, floating
from thriftgrad.core.finite import all_finite
from thriftgrad.core.key import Key
from thriftgrad.core.payload import Layout, Payload
from thriftgrad.core.spec import TensorSpec, wide

LARGE = 1 << 40
"""A tensor size at which a claim must hold to be a claim about every tensor."""


class Memory(NamedTuple):
    """The state of error feedback."""

    memory: Tensor  # float32 or float64, the tensor's shape: what was not sent
    inner: Any


@dataclass(frozen=True, repr=False)
class WithMemory(Compressor[Any, Any]):
    """What compressors with a memory share: they send C of what they owe, and go on owing what C left out.

    The state is a named tuple with a ``memory`` (float32, or float64 for a float64 tensor) and C's state, ``inner``.
    A tensor with a NaN or an infinity, or whose C has one, is sent as NaN and changes no state.

    Raises ``ValueError`` if C claims no contraction or takes all tensors as one; ``TypeError`` for tensors that are not
    floating point.
    """

    compressor: Compressor[Any, Any]

    has_memory = True

    def __post_init__(self) -> None:
        name = type(self).__name__.removeprefix("Linear")
        check_compressor(self.compressor, name)
        if not self.compressor.per_tensor:
            raise ValueError(
                f"{name} keeps a memory for each tensor, and {self.compressor!r} takes all tensors as one; "
                "use per_tensor=True."
            )
        if self.compressor.contraction(LARGE) is None:
            raise ValueError(
                f"{name} needs a contraction, E|C(x) - x|^2 <= (1 - delta)|x|^2, and {self.compressor!r} claims "
                "none, so its memory could grow without bound; drop the rescaling, use finer levels, or use Shrink."
            )

    @abstractmethod
    def start(self, zeros: Tensor, inner: Any) -> Any:
        """The state before the first step; ``zeros`` is of the memory's shape and type."""

    @abstractmethod
    def owed(self, x: Tensor, state: Any) -> Any:
        """The state with ``x``, which has the memory's type, taken in: its memory is what C is to send."""

    def paid(self, state: Any, sent: Tensor) -> Any:
        """The state after ``owed``, less what was sent."""
        return state._replace(memory=state.memory - sent)

    def init(self, spec: TensorSpec) -> Any:
        spec = _widened(spec)
        return self.start(spec.zeros(), self.compressor.init(spec))

    def layout(self, spec: TensorSpec, shared: Any = None) -> Layout:
        inner = self.compressor.layout(_widened(spec), shared)
        return Layout(spec, inner.carrier, inner.side, repr(self), inner.shared)

    def compress(self, x: Tensor, state: Any, key: Key) -> tuple[Payload[Any], Any]:
        payload, after = self.settled(floating(x, self).view(x.shape), state, key)
        if after is None:  # x was not finite, or C of it
            # NaN throughout, so that a sparse compressor cannot fail to show it.
            nan, after = torch.full_like(state.memory, torch.nan), state
            payload, _ = self.compressor.compress(nan, state.inner, key)
        layout = self.layout(TensorSpec.of(x), self.shared(state))
        return Payload(payload.held, payload.side, layout, payload.stream), after

    def settled(self, x: Tensor, state: Any, key: Key) -> tuple[Payload[Any], Any]:
        """What C sends of x and of what is owed, and the state after that; None if its memory is not finite."""
        owed = self.owed(x.to(state.memory.dtype), state)
        payload, inner = self.compressor.compress(owed.memory, state.inner, key)
        after = self.paid(owed, self.compressor.decompress(payload))._replace(inner=inner)
        return payload, after if all_finite([after.memory]) else None

    def decompress(self, payload: Payload[Any]) -> Tensor:
        return self.compressor.decompress(self._inner(payload)).to(payload.layout.spec.dtype)

    def add_to(self, total: Tensor, payload: Payload[Any]) -> None:
        self.compressor.add_to(total, self._inner(payload))

    def _inner(self, payload: Payload[Any]) -> Payload[Any]:
        """As C made it, of a tensor of the memory's type."""
        layout = self.compressor.layout(_widened(payload.layout.spec), payload.layout.shared)
        return Payload(payload.held, payload.side, layout, payload.stream)

    def _owed(self, x: Tensor, state: Any) -> Any:
        return self.owed(floating(x, self).view(x.shape).to(state.memory.dtype), state)

    def shared(self, state: Any) -> Any:
        return self.compressor.shared(state.inner)

    def due(self, state: Any) -> bool:
        return self.compressor.due(state.inner)

    def peaks(self, x: Tensor, state: Any, key: Key) -> Any:
        return self.compressor.peaks(self._owed(x, state).memory, state.inner, key)

    def counts(self, x: Tensor, state: Any, key: Key, peaks: Any) -> Any:
        return self.compressor.counts(self._owed(x, state).memory, state.inner, key, peaks)

    def adapt(self, state: Any, peaks: Any, counts: Any) -> Any:
        return state._replace(inner=self.compressor.adapt(state.inner, peaks, counts))

    def leaves_alone(self, spec: TensorSpec) -> bool:
        return self.compressor.leaves_alone(spec)

    @property
    def shares_scale(self) -> bool:
        return self.compressor.shares_scale

    def contraction(self, n: int) -> float | None:
        """None: over one step, a map with memory is no function of its input."""
        return None


@dataclass(frozen=True, repr=False)
class ErrorFeedback(WithMemory):
    """Send C(x + decay * e), keep e' = x + decay * e - C(x + decay * e).

    The memory e is float32 whatever the tensor's type, float64 for a float64 tensor. It starts at zero and, for a
    contraction C, stays bounded: |e| <= 2 sqrt(1 - delta) / delta * max |x|, in the root mean square. A tensor with a
    NaN or an infinity is passed on and never enters it. Linear if C is.

    Raises ``ValueError`` if C claims no contraction or takes all tensors as one, or decay lies outside (0, 1];
    ``TypeError`` for tensors that are not floating point.
    Stich et al., Sparsified SGD with Memory, 2018, arXiv:1809.07599; Karimireddy et al., 2019, arXiv:1901.09847.
    """

    decay: float = 1.0

    def __new__(cls, compressor: Any = None, decay: float = 1.0) -> ErrorFeedback:
        """Feedback around a linear compressor is linear, and its type says so."""
        return object.__new__(LinearErrorFeedback if isinstance(compressor, LinearCompressor) else cls)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.decay <= 1:
            raise ValueError(f"ErrorFeedback: decay must lie in (0, 1], got {self.decay}.")

    def start(self, zeros: Tensor, inner: Any) -> Memory:
        return Memory(zeros, inner)

    def owed(self, x: Tensor, state: Memory) -> Memory:
        return state._replace(memory=x + self.decay * state.memory)

    def settled(self, x: Tensor, state: Memory, key: Key) -> tuple[Payload[Any], Memory | None]:
        payload, rest, inner = self.compressor.split(x, state.memory, self.decay, state.inner, key)
        return payload, None if rest is None else Memory(rest, inner)


@dataclass(frozen=True, repr=False)
class LinearErrorFeedback(ErrorFeedback, LinearCompressor[Any, Any]):
    """Error feedback around a linear compressor; ``ErrorFeedback`` chooses it."""


def memories(tree: Any) -> Iterator[Tensor]:
    """Everything in the state of a compressor or an aggregator that was not sent, wherever in the tree it is.

    >>> list(memories((Memory(torch.ones(2), None), 3)))
    [tensor([1., 1.])]
    """
    if isinstance(tree, tuple):
        for name, branch in zip(_field_names(tree), tree, strict=False):
            if name == "memory" and isinstance(branch, Tensor):
                yield branch
            else:
                yield from memories(branch)


def without_memories(tree: Any) -> Any:
    """The same state, as if everything had been sent: its memories are zero, all else is as it was.

    >>> without_memories((Memory(torch.ones(2), None), 3))
    (Memory(memory=tensor([0., 0.]), inner=None), 3)
    """
    if not isinstance(tree, tuple):
        return tree
    branches = [
        torch.zeros_like(branch) if name == "memory" and isinstance(branch, Tensor) else without_memories(branch)
        for name, branch in zip(_field_names(tree), tree, strict=False)
    ]
    return type(tree)(*branches) if hasattr(tree, "_fields") else tuple(branches)


def _field_names(tree: tuple[Any, ...]) -> Iterator[str]:
    return iter(cast(Any, tree)._fields) if hasattr(tree, "_fields") else repeat("")


def _widened(spec: TensorSpec) -> TensorSpec:
    return spec.with_dtype(wide(spec.dtype))
