"""What compressors share that send a matrix as singular vectors: the two factors of a product."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from thriftgrad.compress.fraction import check_rank
from thriftgrad.core import Compressor, Key, Layout, Payload, TensorSpec, floating, wide
from thriftgrad.core.matrices import matrix_shape


@dataclass(frozen=True, repr=False)
class Factored(Compressor[None, tuple[()]]):
    """C(M) = sum over r chosen i of w_i u_i v_i^T, of the singular vectors of M.

    Wire: float32[n, r] with the columns w_i u_i, then float32[r, m] with the rows v_i. A tensor of fewer than two
    dimensions, or for which r (n + m) >= n m, travels as it is.
    """

    rank: int

    def __post_init__(self) -> None:
        check_rank(type(self).__name__, self.rank)

    @abstractmethod
    def _chosen(self, sigma: Tensor, key: Key) -> tuple[Tensor, Tensor]:
        """Which r of the singular values, which come in descending order, and the weight w_i of each."""

    def init(self, spec: TensorSpec) -> None:
        return None

    def layout(self, spec: TensorSpec, shared: Any = None) -> Layout:
        if self._factors(spec):
            carrier = TensorSpec((self.rank * sum(matrix_shape(spec)),), torch.float32, spec.device)
        else:
            carrier = replace(spec, shape=(spec.numel,), name="")
        return Layout(spec, carrier, (), repr(self))

    def compress(self, x: Tensor, state: None, key: Key) -> tuple[Payload[tuple[()]], None]:
        flat, spec = floating(x, self), TensorSpec.of(x)
        layout = self.layout(spec)
        if not self._factors(spec):
            return Payload(flat, (), layout), None
        if not flat.isfinite().all():  # of which there is no SVD
            nan = torch.full(layout.carrier.shape, torch.nan, dtype=torch.float32, device=flat.device)
            return Payload(nan, (), layout), None
        u, sigma, v = torch.linalg.svd(flat.to(wide(flat.dtype)).view(matrix_shape(spec)), full_matrices=False)
        chosen, weights = self._chosen(sigma, key)
        factors = (u[:, chosen] * weights).reshape(-1), v[chosen].reshape(-1)
        return Payload(torch.cat(factors).to(torch.float32), (), layout), None

    def decompress(self, payload: Payload[tuple[()]]) -> Tensor:
        spec = payload.layout.spec
        if not self._factors(spec):
            return payload.carrier.view(spec.shape)
        n, m = matrix_shape(spec)
        factors, r = payload.carrier.to(wide(spec.dtype)), self.rank
        product = factors[: n * r].view(n, r) @ factors[n * r :].view(r, m)
        return product.to(spec.dtype).view(spec.shape)

    def leaves_alone(self, spec: TensorSpec) -> bool:
        return not self._factors(spec)

    def _factors(self, spec: TensorSpec) -> bool:
        """Whether r (n + m) < n m; that has r < min(n, m)."""
        return len(spec.shape) >= 2 and self.rank * sum(matrix_shape(spec)) < spec.numel
