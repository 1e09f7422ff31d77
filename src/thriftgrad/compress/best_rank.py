"""The nearest matrix of rank r."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from thriftgrad.compress.factors import Factored
from thriftgrad.core import Key


@dataclass(frozen=True, repr=False)
class BestRank(Factored):
    """Keep the r = ``rank`` largest singular triples of a matrix, drop the rest.

    C(M) = sum of sigma_i u_i v_i^T over the r largest sigma_i: no matrix of rank r is nearer. A tensor is the matrix
    [n, m] of its first dimension and all the others. One of fewer than two dimensions, or for which r (n + m) >= n m,
    travels as it is.
    Wire: r (n + m) float32, the left vectors times sigma_i and then the right ones, whatever the tensor's type.

    Claims: an orthogonal projection with delta = min(1, r / sqrt(N)) for N elements; fit for ``ErrorFeedback``. Proof:
    |M|^2 is the sum of q = min(n, m) squares sigma_i^2, of which the r largest are at least the share r / q, and
    q <= sqrt(N). Exact on matrices of rank r, to the precision of a float32 SVD. A matrix with a NaN or an infinity is
    sent as NaN.

    Every worker fits its own matrix, so estimates are gathered and their mean has up to r times the workers' rank;
    ``PowerSGD`` fits the mean of all, for a fraction of the time of an SVD. Raises ``TypeError`` for a rank that is no
    integer, ``ValueError`` for one below 1; ``TypeError`` for tensors that are not floating point.
    The best approximation of Vogels et al., PowerSGD, 2019, arXiv:1905.13727; there it is of the mean, by more power
    iterations.

    >>> import torch; from thriftgrad import Key
    >>> m = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.0, 0.0]))
    >>> BestRank(rank=2).decompress(BestRank(rank=2).compress(m, None, Key(0))[0]).diagonal().tolist()
    [3.0, 2.0, 0.0, 0.0, 0.0]
    """

    def _chosen(self, sigma: Tensor, key: Key) -> tuple[Tensor, Tensor]:
        return torch.arange(self.rank, device=sigma.device), sigma[: self.rank]

    @property
    def projection(self) -> bool:
        return True

    def contraction(self, n: int) -> float:
        return min(1.0, self.rank / sqrt(n)) if n else 1.0
