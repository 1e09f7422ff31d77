"""Matrices and their products with factors of few columns: the definition, in plain torch for any device.

A compiled backend gives the same to rounding, since no library promises the order of a matrix product's sums. What must
be equal on all workers, ``orthonormal_factors`` and ``outer_products``, is so among those of one backend.

Factors of several matrices lie end to end in one vector, float32: of each n x m one [m, r] on its right, [n, r] on its
left.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from thriftgrad.kernels.orthonormal import orthonormal


class Size(NamedTuple):
    """Of a matrix: rows, columns, and how many columns its factors have."""

    n: int
    m: int
    r: int


Sizes = tuple[Size, ...]


class Matrices(ABC):
    """Matrices of one type on one device, each the sum of a gradient and its memory.

    Products are divided by ``world``, before a sum over so many workers that the type might not hold.
    """

    @abstractmethod
    def times_unit(self, starts: Sequence[Tensor], world: int) -> Tensor:
        """M Q / world of each, Q one of ``starts`` [m, r] with columns brought to length one, zeros left as they are.

        Q is as long as the last gradient, and a product with the next one as its square, which float32 need not hold.
        """

    @abstractmethod
    def times(self, factor: Tensor, left: bool, world: int) -> Tensor:
        """M F / world of each, or with ``left`` M^T F / world."""

    @abstractmethod
    def split(self, factor: Tensor, left: bool, world: int) -> Tensor:
        """G = ``times``, and M becomes what is left of it: M - F (world G)^T with ``left``, else M - (world G) F^T."""

    @abstractmethod
    def tensors(self) -> list[Tensor]:
        """The matrices, [n, m] each; for those who keep them the last use."""


def low_rank_matrices(
    device: torch.device, tensors: Sequence[Tensor], memories: Sequence[Tensor | None], sizes: Sizes
) -> Matrices:
    """M = gradient + memory of each, in the type of the memory, or gradient where that is None.

    All of one wide type; equal sizes that are neighbours are multiplied together.
    """
    found = []
    start = 0
    for count, (n, m, _) in _runs(sizes):
        dtype = torch.float64 if tensors[start].dtype == torch.float64 else torch.float32
        batch = torch.empty((count, n, m), dtype=dtype, device=device)
        for row, x, memory in zip(batch, tensors[start:], memories[start:], strict=False):
            if memory is None:
                row.copy_(x.detach().reshape(n, m))
            else:
                torch.add(x.detach().reshape(n, m).to(dtype), memory.detach(), out=row)
        found.append(batch)
        start += count
    return _Batches(found, sizes)


class _Batches(Matrices):
    def __init__(self, batches: list[Tensor], sizes: Sizes) -> None:
        self._batches = batches
        self._sizes = sizes

    def times_unit(self, starts: Sequence[Tensor], world: int) -> Tensor:
        factor = torch.cat([start.reshape(-1) for start in starts])
        return self.times(_flat([_unit(f) for f in _factors(factor, self._sizes, False)]), False, world)

    def times(self, factor: Tensor, left: bool, world: int) -> Tensor:
        batches = [m.mT if left else m for m in self._batches]
        pairs = zip(batches, _factors(factor, self._sizes, left), strict=True)
        # (F^T M^T)^T, which a processor's matrix library multiplies several times as fast as M F.
        return _flat([(f.to(m.dtype).mT @ m.mT / world).mT for m, f in pairs])

    def split(self, factor: Tensor, left: bool, world: int) -> Tensor:
        found = self.times(factor, left, world)
        sides = _factors(factor, self._sizes, left), _factors(world * found, self._sizes, not left)
        for m, p, q in zip(self._batches, *(sides if left else sides[::-1]), strict=True):
            p, q = p.to(m.dtype), q.to(m.dtype)
            if p.shape[2] == 1:
                m.addcmul_(p, q.mT, value=-1)
            else:
                m.baddbmm_(p, q.mT, alpha=-1)
        return found

    def tensors(self) -> list[Tensor]:
        return [m for batch in self._batches for m in batch.unbind()]


def outer_products(lefts: Tensor, rights: Tensor, sizes: Sizes, outs: Sequence[Tensor]) -> None:
    """P Q^T of each matrix into a vector of n m elements."""
    dtype = outs[0].dtype
    sides = _factors(lefts.to(dtype), sizes, True), _factors(rights.to(dtype), sizes, False)
    # Element by element at rank one: batched matrix products are slow at an inner dimension of one.
    batches = [p * q.mT if p.shape[2] == 1 else p @ q.mT for p, q in zip(*sides, strict=True)]
    for out, found in zip(outs, (m for batch in batches for m in batch.unbind()), strict=True):
        out.copy_(found.reshape(-1))


def orthonormal_factors(factor: Tensor, sizes: Sizes, left: bool) -> Tensor:
    """``orthonormal`` of each factor by itself."""
    return _flat([orthonormal(f) for f in _factors(factor, sizes, left)])


def extremes(x: Tensor) -> tuple[float, float]:
    """The least and the greatest magnitude in a vector that is not empty; the greatest is NaN where there is one."""
    least, greatest = x.detach().abs().aminmax()
    return float(least), float(greatest)


def _unit(factors: Tensor) -> Tensor:
    wide = factors.to(torch.float64)
    lengths = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
    return (wide / torch.where(lengths == 0, 1.0, lengths)).to(torch.float32)


def _factors(factor: Tensor, sizes: Sizes, left: bool) -> Iterator[Tensor]:
    """The factors of equal neighbours together, [count, n or m, r]."""
    start = 0
    for count, (n, m, r) in _runs(sizes):
        length = n if left else m
        yield factor[start : start + count * length * r].view(count, length, r)
        start += count * length * r


def _flat(factors: Sequence[Tensor]) -> Tensor:
    return torch.cat([f.to(torch.float32).reshape(-1) for f in factors])


@lru_cache(maxsize=256)
def _runs(sizes: Sizes) -> tuple[tuple[int, Size], ...]:
    """How often each size follows itself."""
    return tuple((len(list(same)), size) for size, same in groupby(sizes))
