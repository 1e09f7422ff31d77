"""``first >> second``: the second compressor compresses the first one's carrier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from thriftgrad.core.compressor import Compressor, LinearCompressor
from thriftgrad.core.feedback import LARGE
from thriftgrad.core.key import Key
from thriftgrad.core.payload import Layout, Payload
from thriftgrad.core.spec import TensorSpec

Pair = tuple[Any, Any]


@dataclass(frozen=True, repr=False)
class Chain(Compressor[Pair, Pair]):
    """The composition a >> b: b compresses a's carrier, a's side information travels as it is.

    Associative, with ``Identity()`` as unit. The key passes through unchanged and each random compressor
    folds in its own name, so that regrouping a chain changes no bit.

    Claims, where a maps its carrier isometrically: unbiased if both are, with 1 + omega = (1 + omega_a)(1 + omega_b);
    for an orthogonal projection a, delta = delta_a delta_b, because b's error is orthogonal to what a left out
    (Basu et al., Qsparse-local-SGD, 2019, arXiv:1906.02367, Lemmas 1 to 3). A lossless b leaves a's claims alone.

    Raises ``TypeError`` where b is lossy and a's carrier holds symbols, ``ValueError`` where one has a memory
    and the other is lossy, or where b needs matrices, which carriers are not.
    """

    first: Compressor[Any, Any]
    second: Compressor[Any, Any]

    def __new__(cls, first: Any = None, second: Any = None) -> Chain:
        """A chain of linear compressors is linear, and its type says so."""
        linear = isinstance(first, LinearCompressor) and isinstance(second, LinearCompressor)
        return object.__new__(LinearChain if linear else cls)

    def __post_init__(self) -> None:
        first, second = self.first, self.second
        if (first.has_memory and not second.lossless) or (second.has_memory and not first.lossless):
            raise ValueError(
                f"{self!r}: a memory must stand outermost, since it has to see what every stage leaves out; "
                "write ErrorFeedback(... >> ...)."
            )
        if second.lossless and not first.lossless:
            second.layout(first.layout(TensorSpec((1,))).carrier)  # a coder refuses what it cannot code
        if not second.lossless and _holds_symbols(first):
            raise TypeError(
                f"{self!r}: {first!r} carries integer symbols, which the lossy {second!r} cannot compress; "
                "swap the two or use a lossless coder second."
            )
        if not first.lossless and second.leaves_alone(TensorSpec((LARGE,))):
            raise ValueError(
                f"{self!r}: {second!r} compresses matrices, and the carrier of {first!r} is flat, so it would travel "
                "as it is; put the compressor of matrices first."
            )

    def __repr__(self) -> str:
        return f"{self.first!r} >> {self.second!r}"

    def after(self, first: Compressor[Any, Any]) -> Chain:
        """Lean to the left, so that one chain has one form."""
        return self.second.after(self.first.after(first))

    def init(self, spec: TensorSpec) -> Pair:
        return self.first.init(spec), self.second.init(self.first.layout(spec).carrier)

    def layout(self, spec: TensorSpec, shared: Any = None) -> Layout:
        shared_a, shared_b = shared or (None, None)
        first = self.first.layout(spec, shared_a)
        second = self.second.layout(first.carrier, shared_b)
        return Layout(spec, second.carrier, (first.side, second.side), repr(self), _pair(first.shared, second.shared))

    def compress(self, x: Tensor, state: Pair, key: Key) -> tuple[Payload[Pair], Pair]:
        return self.compress_carrier(x, TensorSpec.of(x), state, key)

    def compress_carrier(self, carrier: Tensor, spec: TensorSpec, state: Pair, key: Key) -> tuple[Payload[Pair], Pair]:
        a, first = self.first.compress_carrier(carrier, spec, state[0], key)
        b, second = self.second.compress_carrier(a.carrier, a.layout.carrier, state[1], key)
        return replace(b, side=(a.side, b.side), layout=self.layout(spec, self.shared(state))), (first, second)

    def decompress(self, payload: Payload[Pair]) -> Tensor:
        return self.first.decompress(self._first(payload))

    def add_to(self, total: Tensor, payload: Payload[Pair]) -> None:
        self.first.add_to(total, self._first(payload))

    def _first(self, payload: Payload[Pair]) -> Payload[Any]:
        """What the first stage made, as the second one gives it back."""
        shared_a, shared_b = payload.layout.shared or (None, None)
        layout = self.first.layout(payload.layout.spec, shared_a)
        side_a, side_b = payload.side
        second = replace(payload, side=side_b, layout=self.second.layout(layout.carrier, shared_b))
        return Payload(self.second.decompress(second), side_a, layout)

    def shared(self, state: Pair) -> Any:
        return _pair(self.first.shared(state[0]), self.second.shared(state[1]))

    def due(self, state: Pair) -> bool:
        return self.first.due(state[0]) or self.second.due(state[1])

    def peaks(self, x: Tensor, state: Pair, key: Key) -> Any:
        return self._of_due_parts(x, state, key, lambda part, at, i: part.peaks(at, state[i], key))

    def counts(self, x: Tensor, state: Pair, key: Key, peaks: Any) -> Any:
        return self._of_due_parts(x, state, key, lambda part, at, i: part.counts(at, state[i], key, peaks[i]))

    def adapt(self, state: Pair, peaks: Any, counts: Any) -> Pair:
        first = self.first.adapt(state[0], peaks[0], counts[0]) if self.first.due(state[0]) else state[0]
        second = self.second.adapt(state[1], peaks[1], counts[1]) if self.second.due(state[1]) else state[1]
        return first, second

    def _of_due_parts(
        self, x: Tensor, state: Pair, key: Key, ask: Callable[[Compressor[Any, Any], Tensor, int], Any]
    ) -> Pair:
        """What each part answers that is due; the second one is asked about the first one's carrier."""
        first = ask(self.first, x, 0) if self.first.due(state[0]) else None
        if not self.second.due(state[1]):
            return first, None
        return first, ask(self.second, self.first.compress(x, state[0], key)[0].carrier, 1)

    def leaves_alone(self, spec: TensorSpec) -> bool:
        """Whether the first stage does, or leaves it to a second one that does; what stands behind may still act."""
        if self.first.leaves_alone(spec):
            return True
        return self.first.lossless and self.second.leaves_alone(self.first.layout(spec).carrier)

    @property
    def shares_scale(self) -> bool:
        return self.first.shares_scale or self.second.shares_scale

    @property
    def per_tensor(self) -> bool:
        return self.first.per_tensor and self.second.per_tensor

    @property
    def lossless(self) -> bool:  # type: ignore[override]  # depends on the parts
        return self.first.lossless and self.second.lossless

    @property
    def isometric(self) -> bool:  # type: ignore[override]
        return self.first.isometric and self.second.isometric

    @property
    def has_memory(self) -> bool:  # type: ignore[override]
        return self.first.has_memory or self.second.has_memory

    @property
    def unbiased(self) -> bool:
        return self.first.unbiased and self.second.unbiased and self._claims_survive

    @property
    def projection(self) -> bool:
        return self.first.projection and self.second.projection

    def variance_bound(self, n: int) -> float | None:
        a, b = self.first.variance_bound(n), self._second_length(n, "variance_bound")
        return None if a is None or b is None or not self._claims_survive else (1 + a) * (1 + b) - 1

    def contraction(self, n: int) -> float | None:
        if self.second.lossless:
            return self.first.contraction(n)
        if self.first.projection and self.first.isometric:
            a, b = self.first.contraction(n), self._second_length(n, "contraction")
            return None if a is None or b is None else a * b
        return super().contraction(n)

    @property
    def _claims_survive(self) -> bool:
        return self.first.isometric or self.second.lossless

    def _second_length(self, n: int, claim: str) -> float | None:
        """The second compressor's claim at the length of the first one's carrier."""
        length = self.first.layout(TensorSpec((n,))).carrier.numel
        bound: float | None = getattr(self.second, claim)(length)
        return bound


def _holds_symbols(compressor: Compressor[Any, Any]) -> bool:
    """Whether its carrier is integers; a coder's own input need not be floating point, but its stream never is."""
    if compressor.lossless and not compressor.isometric:
        return True
    carrier = compressor.layout(TensorSpec((1,))).carrier
    return carrier.alphabet is not None or carrier.variable


def _pair(first: Any, second: Any) -> Pair | None:
    return None if first is None and second is None else (first, second)


@dataclass(frozen=True, repr=False)
class LinearChain(Chain, LinearCompressor[Pair, Pair]):
    """A chain of linear compressors; ``>>`` chooses it."""
