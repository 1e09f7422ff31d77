"""ATOMO: a few atoms of a decomposition, drawn so that the variance is least: coordinates, or singular triples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from thriftgrad.compress import fraction as share
from thriftgrad.compress.factors import Factored
from thriftgrad.compress.top_k import Support, TopK
from thriftgrad.core import Compressor, Key, Layout, Payload, TensorSpec, floating, wide


def probabilities(coefficients: Tensor, count: int) -> Tensor:
    """The probabilities of least variance sum lambda_i^2 (1 / p_i - 1) with sum p_i = ``count``, float64[n].

    p_i = min(1, |lambda_i| (s - j) / (sum of all but the j largest)), with the least j for which none of the others
    exceeds 1: the conditions of Karush, Kuhn and Tucker. ``coefficients``: finite, any order; 1 <= ``count`` <= n.
    If fewer than ``count`` of them are not zero, those have probability 1 and the others 0.

    >>> probabilities(torch.tensor([1.0, 8.0, 0.0, 3.0]), 2)
    tensor([0.2500, 1.0000, 0.0000, 0.7500], dtype=torch.float64)
    """
    size = coefficients.detach().to(torch.float64).abs()
    size = size / size.max().clamp_min(torch.finfo(torch.float64).tiny)  # so that no sum leaves the type's range
    largest = size.topk(count)
    # No more than count can have probability 1, so the others need no order.
    tail = size.index_fill(0, largest.indices, 0.0).sum()
    rest = largest.values.flip(0).cumsum(0).flip(0) + tail
    left = torch.arange(count, 0, -1, device=size.device)
    j = (largest.values * left <= rest).to(torch.int8).argmax()  # the first; it holds of the last
    return torch.where(size > 0, size * left[j] / rest[j], 0.0).clamp_max(1.0)


def drawn(p: Tensor, count: int, key: Key) -> Tensor:
    """``count`` different atoms, atom i among them with probability p_i: int64[count], ascending.

    Systematic sampling: with u uniform on [0, 1), atom i is drawn where u, u + 1, u + 2 ... fall on its piece of the
    line on which all p_i lie end to end. Pieces are at most 1 long, so none is hit twice. Where fewer than ``count``
    have any chance, atoms without one fill up.
    """
    certain = (p >= 1).nonzero().view(-1)
    missing = count - certain.numel()
    uncertain = ((p > 0) & (p < 1)).nonzero().view(-1)
    if missing and uncertain.numel():
        ends = p[uncertain].cumsum(0)
        u = (key.seed >> 11) * 2.0**-53
        points = (torch.arange(missing, dtype=torch.float64, device=p.device) + u) * (ends[-1] / missing)
        at = torch.searchsorted(ends, points, right=True).clamp_max(uncertain.numel() - 1)
        others = uncertain[at]
    else:
        others = (p <= 0).nonzero().view(-1)[:missing]
    return torch.cat((certain, others)).sort().values


@dataclass(frozen=True, repr=False)
class Atomo(Compressor[None, Support]):
    """Keep k = ceil(fraction n) coordinates (or ``k`` itself, at most n) drawn with probabilities p_i, divided by them.

    C(x)_i = x_i / p_i if i is drawn, else 0; p_i in proportion to |x_i| but at most 1, and of sum k, which has
    the least variance of all such p. ATOMO in the standard basis.
    Wire: k values of the tensor's own type and k indices of ceil(log2 n) bits, as for ``TopK``. The carrier holds the
    values, so that ``Atomo(fraction=0.01) >> QSGD(bits=4)`` quantises them.

    Claims: unbiased with omega = n / k - 1. Proof: E|C(x) - x|^2 = sum x_i^2 (1 / p_i - 1), and p_i = k / n for all i,
    which is one choice of p, has (n / k - 1) |x|^2; so has the best one where all |x_i| are equal. On k-sparse
    tensors exact. A tensor with a NaN or an infinity is sent as NaN.

    Raises ``ValueError`` for a fraction outside (0, 1], k below 1, both or neither; ``TypeError`` for tensors that are
    not floating point.
    Wang et al., ATOMO, NeurIPS 2018, arXiv:1806.04090. Differs: there atoms are drawn independently, k in the mean, and
    the published codes draw again if the number does not suit them, which is biased; here systematic sampling
    draws exactly k with the same p_i, hence with the same mean and, atoms being orthogonal, the same variance.

    >>> import torch; from thriftgrad import Key
    >>> payload, _ = Atomo(k=2).compress(torch.tensor([1.0, 8.0, 0.0, 3.0]), None, Key(0))
    >>> Atomo(k=2).decompress(payload)  # 8 for certain, and 1 / 0.25 or 3 / 0.75
    tensor([4., 8., 0., 0.])
    """

    fraction: float | None = None
    k: int | None = None

    isometric = True

    def __post_init__(self) -> None:
        share.check("Atomo", self.fraction, self.k)

    def init(self, spec: TensorSpec) -> None:
        return None

    def layout(self, spec: TensorSpec, shared: Any = None) -> Layout:
        return replace(self._sparse.layout(spec), label=repr(self))

    def compress(self, x: Tensor, state: None, key: Key) -> tuple[Payload[Support], None]:
        flat = floating(x, self)
        k = share.kept(flat.numel(), self.fraction, self.k)
        indices, values = torch.arange(k, device=flat.device), torch.full_like(flat[:k], torch.nan)
        if k and flat.isfinite().all():
            p = probabilities(flat, k)
            indices = drawn(p, k, key.fold("Atomo"))
            values = _divided(flat[indices].to(wide(flat.dtype)), p[indices]).to(flat.dtype)
        return Payload(values, Support(indices), self.layout(TensorSpec.of(x))), None

    def decompress(self, payload: Payload[Support]) -> Tensor:
        return self._sparse.decompress(payload)

    @property
    def _sparse(self) -> TopK:
        """Whose wire this is."""
        return TopK(self.fraction, self.k)

    @property
    def unbiased(self) -> bool:
        return True

    def variance_bound(self, n: int) -> float:
        return n / share.kept(n, self.fraction, self.k) - 1 if n else 0.0


@dataclass(frozen=True, repr=False)
class SpectralAtomo(Factored):
    """Keep r = ``rank`` singular triples of a matrix, drawn with probabilities p_i and divided by them.

    C(M) = sum of (sigma_i / p_i) u_i v_i^T over the drawn i; p_i in proportion to sigma_i but at most 1, and of sum r.
    A tensor is the matrix [n, m] of its first dimension and all the others. One of fewer than two dimensions, or for
    which r (n + m) >= n m, travels as it is.
    Wire: r (n + m) float32, the left vectors times sigma_i / p_i and then the right ones, whatever the tensor's type.

    Claims: unbiased with omega = max(sqrt(N) / r - 1, 0) for N elements. Proof: E|C(M) - M|^2 =
    sum sigma_i^2 (1 / p_i - 1), which for p_i = r / q, q = min(n, m) <= sqrt(N), would be (q / r - 1) |M|^2. To the
    precision of a float32 SVD. A matrix with a NaN or an infinity is sent as NaN.

    Every step costs a full SVD. Behind another compressor, or in ``ScatterReduce``, tensors come flat, and so as they
    are. Raises ``TypeError`` for a rank that is no integer, ``ValueError`` for one below 1; ``TypeError`` for
    tensors that are not floating point.
    Wang et al., ATOMO, NeurIPS 2018, arXiv:1806.04090. Differs: systematic sampling, as in ``Atomo``; large
    sigma_i are capped as the paper says, where its code clips once and sends fewer than r in the mean; matrices
    keep their rows, where the code folds them to be nearly square, and vectors to be of two columns.

    >>> import torch; from thriftgrad import Key
    >>> one = torch.outer(torch.arange(1.0, 9.0), torch.ones(6))
    >>> payload, _ = SpectralAtomo(rank=1).compress(one, None, Key(0))
    >>> payload.nbytes, bool(torch.allclose(SpectralAtomo(rank=1).decompress(payload), one))
    (56, True)
    """

    def _chosen(self, sigma: Tensor, key: Key) -> tuple[Tensor, Tensor]:
        p = probabilities(sigma, self.rank)
        indices = drawn(p, self.rank, key.fold("SpectralAtomo"))
        return indices, _divided(sigma[indices], p[indices])

    @property
    def unbiased(self) -> bool:
        return True

    def variance_bound(self, n: int) -> float:
        return max(sqrt(n) / self.rank - 1, 0.0)


def _divided(values: Tensor, p: Tensor) -> Tensor:
    """values / p, and 0 for what fills up."""
    return torch.where(p > 0, values / p, 0.0).to(values.dtype)
