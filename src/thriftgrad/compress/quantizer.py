"""The family of quantisers: buckets, a scale for each, sorted levels, unbiased rounding, packed symbols."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from thriftgrad import kernels, theory
from thriftgrad.compress import buckets
from thriftgrad.compress.buckets import Norm, Scales
from thriftgrad.core import Compressor, Key, Layout, Payload, TensorSpec, floats

State = TypeVar("State")


def check_bits(name: str, bits: int, include_zero: bool) -> None:
    """``ValueError`` unless so many bits make levels of both signs, and zero where it is wanted."""
    buckets.check_integer(name, "bits", bits)
    least = 2 if include_zero else 1
    if not least <= bits <= 8:
        advice = "; one bit has no zero, so write include_zero=False" if bits == 1 else ""
        raise ValueError(f"{name}: bits must lie in {least} ... 8 (sign included), got {bits}{advice}.")


def symbol_type(alphabet: int) -> torch.dtype:
    """The type that holds one of so many symbols in memory; on the wire each takes ceil(log2 alphabet) bits."""
    return torch.uint8 if alphabet <= 256 else torch.int16


class LevelQuantizer(Compressor[State, Scales]):
    """C(x)_i = c times one of the two levels around x_i / c, at random so that E C(x)_i = x_i.

    c is the norm of the bucket of consecutive coordinates that x_i lies in; the last bucket may be shorter and is
    quantised like any other. Levels are sorted, from -1 to 1. Variance of a coordinate: c**2 (up - u)(u - low).
    Wire: n symbols of ceil(log2 L) bits and one float32 per bucket.

    E C(x)_i = x_i holds to within 2**-17 of the gap between the two levels, which is what 16 random bits resolve.

    A member of the family says what its ``table`` of levels is; the rest is here. A bucket of zeros decompresses to
    zeros, one with a NaN or an infinity to NaN, and a bucket of one coordinate is exact.
    """

    bucket: int | None  # None: the whole tensor
    norm: Norm

    @abstractmethod
    def table(self, shared: Any = None) -> Tensor:
        """The levels, float32[L], ascending from -1 to 1; ``shared`` is the codebook of an adaptive member."""

    def layout(self, spec: TensorSpec, shared: Any = None) -> Layout:
        levels = self.table(shared)
        zero = (levels == 0).nonzero().view(-1).tolist()
        alphabet = levels.numel()
        symbols = TensorSpec(
            (spec.numel,), symbol_type(alphabet), spec.device, alphabet=alphabet, zero=zero[0] if zero else None
        )
        scales = TensorSpec((buckets.count(spec.numel, self.bucket),), torch.float32, spec.device)
        return Layout(spec, symbols, Scales(scales), repr(self), shared)  # type: ignore[arg-type]  # a tree of specs

    def compress(self, x: Tensor, state: State, key: Key) -> tuple[Payload[Scales], State]:
        shared = self.shared(state)
        quantised = self._quantised(floats(x, self), shared, self._seed(key))
        return self._payload(quantised, TensorSpec.of(x), shared), self._next(state)

    def split(
        self, x: Tensor, memory: Tensor, decay: float, state: State, key: Key
    ) -> tuple[Payload[Scales], Tensor | None, State]:
        if memory.dtype != torch.float32:
            return super().split(x, memory, decay, state, key)
        shared = self.shared(state)
        quantised = self._quantised(floats(x, self), shared, self._seed(key), memory.reshape(-1), decay)
        payload = self._payload(quantised, TensorSpec.of(memory), shared)
        return payload, quantised.finite_rest(memory.shape), self._next(state)

    def _quantised(
        self, x: Tensor, shared: Any, seed: int, memory: Tensor | None = None, decay: float = 1.0
    ) -> kernels.Quantised:
        """Of a flat tensor."""
        table = _levels(self, shared, x.device)
        width = buckets.width(x.numel(), self.bucket)
        return kernels.quantise_levels(x, table, width, self.norm, seed, memory, decay)

    def _payload(self, quantised: kernels.Quantised, spec: TensorSpec, shared: Any) -> Payload[Scales]:
        return Payload(None, Scales(quantised.scale), self.layout(spec, shared), quantised.stream)

    def _seed(self, key: Key) -> int:
        return key.fold(type(self).__name__).seed

    def _next(self, state: State) -> State:
        return state

    def decompress(self, payload: Payload[Scales]) -> Tensor:
        spec = payload.layout.spec
        total = spec.with_dtype(torch.float32).nothing()
        self.add_to(total, payload)
        return total.to(spec.dtype)

    def add_to(self, total: Tensor, payload: Payload[Scales]) -> None:
        if total.dtype != torch.float32:
            total += self.decompress(payload)
            return
        table = _levels(self, payload.layout.shared, total.device)
        width = buckets.width(total.numel(), self.bucket)
        kernels.dequantise_add(payload.packed, payload.side.scale, table, width, total.view(-1))

    @property
    def unbiased(self) -> bool:
        return True


@lru_cache(maxsize=256)
def _levels(quantizer: LevelQuantizer[Any], shared: Any, device: torch.device) -> Tensor:
    """The table of levels where it is needed, made once."""
    return quantizer.table(shared).to(device)


@dataclass(frozen=True, repr=False)
class Quantizer(LevelQuantizer[None]):
    """Unbiased rounding to any levels of your own.

    ``levels``: magnitudes from 0 to 1, used with both signs, or signed levels from -1 to 1 (a grid without 0 must be
    given so). Everything else as in the family: C(x)_i = c times the level below or above x_i / c.
    Wire: n symbols of ceil(log2 L) bits and one float32 per bucket of ``bucket`` coordinates.
    ``per_tensor=False``: all tensors of a call (a DDP bucket, or the model) are quantised as one vector.

    Claims: unbiased; omega = the exact worst case of the levels, for min(n, bucket) coordinates; for linf too,
    whose scale is never longer.

    Raises ``ValueError`` for levels that are not sorted, finite, distinct in float32 and from 0 or -1 to 1, or more
    than 256 of them, a bucket below 1 or another norm; ``TypeError`` for tensors that are not floating point.
    The general grid of Faghri et al., ALQ and AMQ, NeurIPS 2020, arXiv:2010.12460.

    >>> import torch; from thriftgrad import Key
    >>> payload, _ = Quantizer(levels=(0, 0.1, 1)).compress(torch.randn(1024), None, Key(0))
    >>> payload.layout.carrier.alphabet, payload.nbytes  # 5 symbols in 3 bits, two norms
    (5, 392)
    """

    levels: tuple[float, ...]
    bucket: int = 512
    norm: Norm = "l2"
    _: KW_ONLY
    per_tensor: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", _numbers(self.levels))
        theory.check_levels(self.levels, "Quantizer")
        table = self.table()
        if len(table) > 256:
            raise ValueError(f"Quantizer: a symbol is one byte at most, got {len(table)} levels; give up to 256.")
        equal = table[1:][table.diff() <= 0].tolist()
        if equal:
            raise ValueError(f"Quantizer: levels must differ in float32 too, got two of {equal[-1]}.")
        buckets.check_bucket("Quantizer", self.bucket)
        buckets.check_norm("Quantizer", self.norm)

    def init(self, spec: TensorSpec) -> None:
        return None

    def table(self, shared: Any = None) -> Tensor:
        return torch.from_numpy(theory.signed(self.levels)).to(torch.float32)

    def variance_bound(self, n: int) -> float:
        return theory.worst_case_variance(self.levels, buckets.width(n, self.bucket))


def _numbers(levels: Any) -> tuple[float, ...]:
    """The levels as plain floats, which print as what they are; ``TypeError`` for what are no numbers."""
    try:
        return tuple(each + 0.0 for each in np.asarray(levels, dtype=np.float64).tolist())
    except (TypeError, ValueError):
        raise TypeError(f"Quantizer: levels must be a sequence of numbers, got {levels!r}.") from None
