"""One bit a coordinate, and the vote on such bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thriftgrad import kernels
from thriftgrad.compress.buckets import check_integer
from thriftgrad.core import Compressor, Key, Layout, Payload, TensorSpec, floats


class Magnitudes(NamedTuple):
    """The side information of a scaled sign."""

    scale: Tensor  # float32[ceil(n / bucket)]: the magnitude that each bucket's coordinates get


@dataclass(frozen=True, repr=False)
class Sign(Compressor[None, Magnitudes]):
    """C(x)_i = c sign(x_i), c = |x|_m / d over the d coordinates of x_i's bucket; zero maps to +1.

    ``order`` is the m of the norm: 1, the default, makes c the mean magnitude; a higher one makes it smaller.
    ``bucket=None``: the whole tensor is one bucket. ``scaled=False``: c = 1, and only the bits travel (for votes).
    Wire: n bits, and one float32 per bucket if scaled.

    Claims, if scaled, with d = min(n, bucket): a contraction with delta = 1 / d for m = 1 and d**(2/m - 2) for
    m >= 2. For m = 1 exactly, |x - C(x)|^2 = |x|^2 - |x|_1^2 / d in each bucket, so delta is the ratio
    |x|_1^2 / (d |x|^2), which is 2 / pi on Gaussian data. A bucket with a NaN or an infinity decompresses to NaN;
    unscaled, the whole tensor does.

    Raises ``ValueError`` for a bucket or an order below 1, and for a bucket or an order without a scale;
    ``TypeError`` for an order that is no integer and tensors that are not floating point.
    Karimireddy et al., Error Feedback Fixes SignSGD, 2019, arXiv:1901.09847; higher orders: Basu et al.,
    Qsparse-local-SGD, 2019, arXiv:1906.02367, Lemma 3.

    >>> import torch; from thriftgrad import Key, Sign
    >>> payload, _ = Sign().compress(torch.tensor([3.0, -1.0, 0.5, -2.0, 0.0]), None, Key(0))
    >>> Sign().decompress(payload)
    tensor([ 1.3000, -1.3000,  1.3000, -1.3000,  1.3000])
    """

    bucket: int | None = None
    scaled: bool = True
    order: int = 1

    def __post_init__(self) -> None:
        if self.bucket is not None and self.bucket < 1:
            raise ValueError(f"Sign: bucket must be at least 1, got {self.bucket}.")
        if self.bucket is not None and not self.scaled:
            raise ValueError(f"Sign: bucket={self.bucket} has no effect where scaled is False; leave one of them out.")
        check_integer("Sign", "order", self.order)
        if self.order < 1:
            raise ValueError(f"Sign: order must be at least 1, got {self.order}.")
        if self.order > 1 and not self.scaled:
            raise ValueError(f"Sign: order={self.order} has no effect where scaled is False; leave one of them out.")

    def init(self, spec: TensorSpec) -> None:
        return None

    def layout(self, spec: TensorSpec, shared: Any = None) -> Layout:
        bits = TensorSpec((spec.numel,), torch.uint8, spec.device, alphabet=2)
        buckets = -(-spec.numel // self._width(spec.numel))
        scale = TensorSpec((buckets if self.scaled else min(1, buckets),), torch.float32, spec.device)
        return Layout(spec, bits, Magnitudes(scale), repr(self))  # type: ignore[arg-type]  # a tree of specs

    def compress(self, x: Tensor, state: None, key: Key) -> tuple[Payload[Magnitudes], None]:
        flat = floats(x, self)
        if self._fused:
            quantised = kernels.quantise_sign(flat, self._width(flat.numel()))
            return Payload(None, Magnitudes(quantised.scale), self.layout(TensorSpec.of(x)), quantised.stream), None
        bits = (flat >= 0).to(torch.uint8)
        return Payload(bits, Magnitudes(self._scale(flat)), self.layout(TensorSpec.of(x))), None

    def split(
        self, x: Tensor, memory: Tensor, decay: float, state: None, key: Key
    ) -> tuple[Payload[Magnitudes], Tensor | None, None]:
        if not self._fused or memory.dtype != torch.float32:
            return super().split(x, memory, decay, state, key)
        flat = floats(x, self)
        quantised = kernels.quantise_sign(flat, self._width(flat.numel()), memory.reshape(-1), decay)
        layout = self.layout(TensorSpec.of(memory))
        payload = Payload(None, Magnitudes(quantised.scale), layout, quantised.stream)
        return payload, quantised.finite_rest(memory.shape), None

    @property
    def _fused(self) -> bool:
        """Whether a kernel does it at one go."""
        return self.scaled and self.order == 1

    def decompress(self, payload: Payload[Magnitudes]) -> Tensor:
        spec = payload.layout.spec
        total = spec.with_dtype(torch.float32).nothing()
        self.add_to(total, payload)
        return total.to(spec.dtype)

    def add_to(self, total: Tensor, payload: Payload[Magnitudes]) -> None:
        if total.dtype != torch.float32:
            total += self.decompress(payload)
            return
        signs = torch.tensor([-1.0, 1.0], device=total.device)
        kernels.dequantise_add(payload.packed, payload.side.scale, signs, self._width(total.numel()), total.view(-1))

    def _width(self, n: int) -> int:
        return max(1, n if self.bucket is None else min(self.bucket, n))

    def _scale(self, flat: Tensor) -> Tensor:
        width = self._width(flat.numel())
        rows = torch.nn.functional.pad(flat, (0, -flat.numel() % width)).view(-1, width)
        sizes = torch.full((rows.shape[0],), width, dtype=torch.float64, device=flat.device)
        sizes[-1:] -= -flat.numel() % width
        scale = (self._norms(rows.abs()) / sizes).to(torch.float32)
        scale = scale if self.scaled else torch.ones_like(scale)
        return torch.where(rows.isfinite().all(1), scale, torch.nan)

    def _norms(self, magnitudes: Tensor) -> Tensor:
        """|x|_m of each row, float64; over the largest magnitude, because the m-th power of 1e30 may be no float64."""
        if self.order == 1 or not magnitudes.numel():
            return magnitudes.sum(1, dtype=torch.float64)
        wide = magnitudes.to(torch.float64)
        largest = wide.amax(1)
        shares = wide / torch.where(largest > 0, largest, 1.0)[:, None]
        return largest * shares.pow(self.order).sum(1).pow(1 / self.order)

    def contraction(self, n: int) -> float | None:
        if not self.scaled:
            return None
        d = self._width(n)
        return 1 / d if self.order == 1 else float(d) ** (2 / self.order - 2)


@dataclass(frozen=True, repr=False)
class Vote(Compressor[None, Magnitudes]):
    """C(x)_i = the sign of x_i in {-1, 0, +1}: what a majority decided, where a tie is no vote.

    Wire: 1.6 bits a coordinate, and one float32 that is NaN if x held a NaN or an infinity.
    Claims nothing. Raises ``TypeError`` for tensors that are not floating point.
    Bernstein et al., signSGD with Majority Vote, 2018, arXiv:1810.05291; there a tie becomes +1, which biases even
    numbers of workers.
    """

    def init(self, spec: TensorSpec) -> None:
        return None

    def layout(self, spec: TensorSpec, shared: Any = None) -> Layout:
        symbols = TensorSpec((spec.numel,), torch.uint8, spec.device, alphabet=3)
        scale = TensorSpec((min(1, spec.numel),), torch.float32, spec.device)
        return Layout(spec, symbols, Magnitudes(scale), repr(self))  # type: ignore[arg-type]  # a tree of specs

    def compress(self, x: Tensor, state: None, key: Key) -> tuple[Payload[Magnitudes], None]:
        flat = floats(x, self)
        symbols = (flat.sign().nan_to_num(0.0) + 1).to(torch.uint8)
        scale = torch.where(flat.isfinite().all(), 1.0, torch.nan).view(1)[: flat.numel()].to(torch.float32)
        return Payload(symbols, Magnitudes(scale), self.layout(TensorSpec.of(x))), None

    def decompress(self, payload: Payload[Magnitudes]) -> Tensor:
        spec = payload.layout.spec
        values = (payload.carrier.to(torch.float32) - 1) * payload.side.scale.expand(spec.numel)
        return values.to(spec.dtype).view(spec.shape)
