"""Matrices with orthonormal columns."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LOST = 2e-6
"""A column that keeps less than this share of its length after the others are projected out is rounding noise."""

FEW = 2
"""Up to so many columns a loop over them is faster than one factorisation."""


def orthonormal(p: Tensor) -> Tensor:
    """An orthonormal basis for the columns of each matrix of a batch, float32[b, n, r]; a lost column is zero.

    Column i is what is left of column i of ``p`` after projecting out those before it, at length one: all three ways
    below give that, in float64 and each matrix by itself. Two columns or fewer take Gram-Schmidt's loop. More take
    Householder's QR, the fastest on a processor; on a GPU, where factorisations are slow and products are not,
    Cholesky-QR, and QR where that is not accurate. Matrices with a lost column take Gram-Schmidt.

    >>> orthonormal(torch.tensor([[[3.0, 1.0], [4.0, 1.0]]]))
    tensor([[[ 0.6000,  0.8000],
             [ 0.8000, -0.6000]]])
    """
    if p.shape[2] <= FEW or p.shape[1] < p.shape[2] or not p.isfinite().all():
        return gram_schmidt(p)
    if p.device.type == "cpu":
        return _mended(p, *qr(p), gram_schmidt)
    return _mended(p, *cholesky_qr(p), lambda rest: _mended(rest, *qr(rest), gram_schmidt))


def _mended(p: Tensor, basis: Tensor, good: Tensor, slower: Callable[[Tensor], Tensor]) -> Tensor:
    """The basis, and what ``slower`` finds where it is not good."""
    if not good.all():
        basis[~good] = slower(p[~good])
    return basis


def gram_schmidt(p: Tensor) -> Tensor:
    """Modified Gram-Schmidt, column by column: the only one of the three that can leave a lost column out."""
    wide = p.to(torch.float64)
    columns: list[Tensor] = []
    for i in range(p.shape[2]):
        column = wide[:, :, i : i + 1]
        length = torch.linalg.vector_norm(column, dim=1, keepdim=True)
        for other in columns:
            column = column - other * (other * column).sum(1, keepdim=True)
        rest = torch.linalg.vector_norm(column, dim=1, keepdim=True)
        lost = (rest <= LOST * length) & rest.isfinite()  # false for NaN and infinities, which must come through
        columns.append(torch.where(lost, 0.0, column / torch.where(lost, 1.0, rest)))
    return torch.cat(columns, 2).to(torch.float32)


def qr(p: Tensor) -> tuple[Tensor, Tensor]:
    """Householder's QR, with the signs of Gram-Schmidt; and which matrices of the batch have no lost column."""
    wide = p.to(torch.float64)
    basis, upper = torch.linalg.qr(wide)
    diagonal = upper.diagonal(dim1=1, dim2=2)
    whole = (diagonal.abs() > LOST * torch.linalg.vector_norm(wide, dim=1)).all(1)
    return (basis * torch.where(diagonal < 0, -1.0, 1.0).unsqueeze(1)).to(torch.float32), whole


def cholesky_qr(p: Tensor) -> tuple[Tensor, Tensor]:
    """Cholesky-QR of columns of length one, twice; and for which matrices of the batch it is accurate.

    The Gram matrix squares the condition number, so it serves up to about 1e6 in float64. What the second pass finds
    still to be done tells how accurate the first was.
    """
    wide = p.to(torch.float64)
    lengths = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
    once, fine = _divided(wide / torch.where(lengths == 0, 1.0, lengths))
    gram = once.mT @ once
    off = (gram - torch.eye(p.shape[2], dtype=torch.float64, device=p.device)).abs().amax((1, 2))
    basis, again = _divided(once)
    return basis.to(torch.float32), fine & again & (off < _ACCURATE)


_ACCURATE = 1e-3


def _divided(x: Tensor) -> tuple[Tensor, Tensor]:
    """x R^-1 with R^T R = x^T x for columns of length one, and where that could be done and none is lost.

    NaN elsewhere is for others to replace.
    """
    upper, failed = torch.linalg.cholesky_ex(x.mT @ x, upper=True)
    basis = torch.linalg.solve_triangular(upper, x, upper=True, left=False)
    whole = (upper.diagonal(dim1=1, dim2=2) > LOST).all(1)
    return basis, (failed == 0) & whole & basis.isfinite().all((1, 2))
