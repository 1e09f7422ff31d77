"""TernGrad: three levels, after clipping, on one scale that all workers share."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thriftgrad import kernels
from thriftgrad.compress import buckets
from thriftgrad.compress.buckets import Scales
from thriftgrad.core import Compressor, Key, Layout, Payload, TensorSpec, floats


class AgreedScale(NamedTuple):
    """What the workers have agreed on for the next tensor."""

    scale: Tensor | None  # float32[buckets]: the greatest of everybody's; None until they have


@dataclass(frozen=True, repr=False)
class TernGrad(Compressor[AgreedScale, Scales]):
    """C(x)_i = s sign(x_i) b_i on x clipped to [-clip sigma, clip sigma], with P(b_i = 1) = |x_i| / s, else b_i = 0.

    sigma is the root mean square of x, s the largest magnitude after clipping; with ``shared_scale``, in an
    aggregator, the largest over all workers, so that the mean of N workers has at most 2 N + 1 levels. All of
    it for each tensor, or for each run of ``bucket`` coordinates. ``per_tensor=False``: all tensors of a call
    (a DDP bucket, or the model) are one vector. ``clip=None`` leaves the clipping out; the name always says which.
    Wire: 1.6 bits a coordinate and one float32 a bucket; sharing the scale costs one round of 4 bytes a bucket more.

    Claims: without clipping, unbiased; with a scale of its own also omega = sqrt(d) - 1 for d = min(n, bucket)
    (exactly, the variance is s |x|_1 - |x|^2). A bucket with a NaN or an infinity decompresses to NaN.

    Raises ``ValueError`` for a clip that is not positive and finite or a bucket below 1; ``TypeError`` for tensors that
    are not floating point.
    Wen et al., TernGrad, NeurIPS 2017, arXiv:1705.07878. There sigma is the deviation from the mean of the layer, which
    is taken to be zero; here about zero, so that a constant gradient is not clipped away.

    >>> TernGrad(), TernGrad(clip=None)
    (TernGrad(clip=2.5), TernGrad(clip=None))
    """

    clip: float | None = 2.5
    per_tensor: bool = True
    shared_scale: bool = True
    bucket: int | None = None

    def __post_init__(self) -> None:
        if self.clip is not None:
            if type(self.clip) not in (int, float):
                raise TypeError(f"TernGrad: clip must be a number, or None for no clipping, got {self.clip!r}.")
            if not 0 < self.clip < inf:
                raise ValueError(
                    f"TernGrad: clip must be positive and finite, or None to leave it out, got {self.clip}."
                )
        if self.bucket is not None:
            buckets.check_bucket("TernGrad", self.bucket)

    def __repr__(self) -> str:
        shown = super().__repr__()
        return shown if "clip=" in shown else shown.replace("(", f"(clip={self.clip}, ", 1).replace(", )", ")")

    def init(self, spec: TensorSpec) -> AgreedScale:
        return AgreedScale(None)

    def layout(self, spec: TensorSpec, shared: Any = None) -> Layout:
        symbols = TensorSpec((spec.numel,), torch.uint8, spec.device, alphabet=3, zero=1)
        scales = TensorSpec((buckets.count(spec.numel, self.bucket),), torch.float32, spec.device)
        return Layout(spec, symbols, Scales(scales), repr(self))  # type: ignore[arg-type]  # a tree of specs

    def due(self, state: AgreedScale) -> bool:
        return self.shared_scale and state.scale is None

    def peaks(self, x: Tensor, state: AgreedScale, key: Key) -> Tensor:
        return kernels.bucket_norms(self._clipped(x), "linf")

    def adapt(self, state: AgreedScale, peaks: Any, counts: Any) -> AgreedScale:
        return AgreedScale(peaks)

    def compress(self, x: Tensor, state: AgreedScale, key: Key) -> tuple[Payload[Scales], AgreedScale]:
        rows = self._clipped(x)
        scale = kernels.bucket_norms(rows, "linf") if state.scale is None else state.scale
        u = buckets.normalised(rows, scale).reshape(-1)[: x.numel()]
        rounded = kernels.round_stochastic(u.abs(), key.fold("TernGrad").seed).copysign(u)
        return Payload((rounded + 1).to(torch.uint8), Scales(scale), self.layout(TensorSpec.of(x))), AgreedScale(None)

    def decompress(self, payload: Payload[Scales]) -> Tensor:
        """Linear in the symbols, so that their mean over workers decompresses to the mean of the estimates.

        In the precision of such a mean, float32 for symbols themselves.
        """
        spec = payload.layout.spec
        wide = torch.promote_types(payload.carrier.dtype, torch.float32)
        rows = buckets.rows(payload.carrier.to(wide) - 1, self.bucket)
        values = (rows * payload.side.scale[:, None]).reshape(-1)[: spec.numel]
        return values.to(spec.dtype).view(spec.shape)

    def _clipped(self, x: Tensor) -> Tensor:
        """The buckets, every coordinate within clip times the root mean square of its own; NaN stays."""
        rows = buckets.rows(floats(x, self), self.bucket)
        if self.clip is None or not rows.numel():
            return rows
        sizes = torch.full((len(rows),), rows.shape[1], dtype=torch.float64, device=rows.device)
        sizes[-1] -= rows.numel() - x.numel()
        lengths = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
        limit = (self.clip * lengths / sizes.sqrt()).to(torch.float32)[:, None]
        return torch.where(rows.isfinite(), rows.clamp(-limit, limit), rows)

    @property
    def shares_scale(self) -> bool:
        return self.shared_scale

    @property
    def unbiased(self) -> bool:
        return self.clip is None

    def variance_bound(self, n: int) -> float | None:
        """None with a shared scale: another worker's scale says nothing of this one's x."""
        return None if self.clip or self.shared_scale else sqrt(buckets.width(n, self.bucket)) - 1
