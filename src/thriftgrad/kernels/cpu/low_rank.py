"""Low-rank products of float32 matrices on the CPU: gradient and memory are read, and only what is left is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thriftgrad.kernels import low_rank as reference
from thriftgrad.kernels.cpu import factor_loops, low_rank_loops
from thriftgrad.kernels.cpu.arrays import array, fit, in_place
from thriftgrad.kernels.cpu.low_rank_table import COLUMNS, FACTOR, START, TO, X
from thriftgrad.kernels.cpu.settings import LINE
from thriftgrad.kernels.cpu.threads import over_slices
from thriftgrad.kernels.low_rank import Matrices, Sizes
from thriftgrad.kernels.recycled import empty

BLOCK = 1 << 17
"""Elements in a block of columns: half a megabyte, which the second-level cache holds for the second reading."""

NARROWEST = 256
"""Columns in a block, at least: what lies together is fetched together."""

STREAMED = 1 << 20
"""Elements of all matrices from which results go past the cache, which would not hold them until they are needed."""

FEW = 8
"""Columns up to which a loop over them is faster than a factorisation."""


class _Part(NamedTuple):
    """Matrices that the loops take by equally many columns of their factors."""

    columns: tuple[int, ...]  # so many numbers
    chosen: NDArray[np.int64]
    table: NDArray[np.int64]  # without addresses
    elements: int


class _Plan(NamedTuple):
    """What follows from the sizes alone."""

    parts: list[_Part]
    elements: int
    outputs: NDArray[np.int64]  # where each matrix begins in a buffer of all
    cuts: list[int]  # such a buffer, cut where a matrix or the gap after it ends
    lefts: NDArray[np.int64]  # where each factor begins among all
    rights: NDArray[np.int64]
    left_length: int  # of a vector of all factors
    right_length: int
    most_columns: int
    largest: int  # elements of a matrix

    def places(self, factor: Tensor, left: bool) -> NDArray[np.int64]:
        """The address of each factor."""
        found: NDArray[np.int64] = factor.data_ptr() + 4 * (self.lefts if left else self.rights)
        return found


@lru_cache(maxsize=256)
def _plan(sizes: Sizes) -> _Plan:
    numels = np.array([(n * m, n * r, m * r) for n, m, r in sizes], np.int64)
    gaps = -numels[:, 0] % LINE  # every matrix of an output begins with a cache line
    outputs = _starts(numels[:, 0] + gaps)
    lefts, rights = _starts(numels[:, 1]), _starts(numels[:, 2])
    # One column at a time would save 3 % at rank one, and take four seconds more to compile.
    columns = np.array([2 if r <= 2 else 4 for _, _, r in sizes])
    parts = []
    for count in np.unique(columns):
        chosen = np.flatnonzero(columns == count)
        table = np.zeros((len(chosen), COLUMNS), np.int64)
        table[:, :X] = [(*sizes[i], 0, lefts[i], rights[i], _block(*sizes[i])) for i in chosen]
        table[:, START] = _starts(numels[chosen, 0])
        parts.append(_Part((0,) * int(count), chosen, table, int(numels[chosen, 0].sum())))
    cuts = np.stack((numels[:, 0], gaps), 1).reshape(-1).tolist()
    elements, left_length, right_length = numels.sum(0).tolist()
    most, largest = max(r for _, _, r in sizes), int(numels[:, 0].max())
    return _Plan(parts, elements, outputs, cuts, lefts, rights, left_length, right_length, most, largest)


def _starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    starts: NDArray[np.int64] = np.cumsum(lengths) - lengths
    return starts


def _block(n: int, m: int, r: int) -> int:
    """How many columns ``from_left`` takes at a time."""
    blocks = max(1, min(round(n * m / BLOCK), m // NARROWEST))
    return -(-m // (blocks * LINE)) * LINE


def low_rank_matrices(
    device: torch.device, tensors: Sequence[Tensor], memories: Sequence[Tensor | None], sizes: Sizes
) -> Matrices:
    """As the reference has it."""
    if any(x.dtype == torch.float64 for x in tensors):
        return reference.low_rank_matrices(device, tensors, memories, sizes)
    kept = [None if e is None else _readable(e) for e in memories]
    return _Matrices([_readable(x) for x in tensors], kept, sizes)


def _readable(x: Tensor) -> Tensor:
    """Float32 whose address is that of its numbers."""
    if x.dtype == torch.float32 and x.is_contiguous() and not x.is_neg():
        return x
    return x.to(torch.float32).resolve_neg().contiguous()


class _Matrices(Matrices):
    """Gradients and memories, and once there has been a pass over them their sums, in one buffer."""

    def __init__(self, tensors: Sequence[Tensor], memories: Sequence[Tensor | None], sizes: Sizes) -> None:
        self._tensors, self._memories, self._sizes, self._plan = tensors, memories, sizes, _plan(sizes)
        self._sums: Tensor | None = None
        self._nothing = _zeros(self._plan.largest)  # held, for loops know its address alone

    def times_unit(self, starts: Sequence[Tensor], world: int) -> Tensor:
        kept = [_readable(start) for start in starts]
        return self._multiplied(np.array([start.data_ptr() for start in kept], np.int64), False, True, world, False)

    def times(self, factor: Tensor, left: bool, world: int) -> Tensor:
        kept = _readable(factor)
        return self._multiplied(self._plan.places(kept, left), left, False, world, False)

    def split(self, factor: Tensor, left: bool, world: int) -> Tensor:
        kept = _readable(factor)
        return self._multiplied(self._plan.places(kept, left), left, False, world, True)

    def tensors(self) -> list[Tensor]:
        if self._sums is None:
            pairs = zip(self._tensors, self._memories, self._sizes, strict=True)
            return [(x if e is None else x.view(n, m) + e.view(n, m)).view(n, m) for x, e, (n, m, _) in pairs]
        pieces = torch.split(self._sums, self._plan.cuts)[::2]
        return [piece.view(n, m) for piece, (n, m, _) in zip(pieces, self._sizes, strict=True)]

    def _multiplied(self, factors: NDArray[np.int64], left: bool, unit: bool, world: int, subtract: bool) -> Tensor:
        """``factors``: their addresses."""
        plan = self._plan
        addresses, fresh = self._addresses(subtract)
        found = torch.empty(plan.right_length if left else plan.left_length)
        out, shares, stream = found.numpy(), np.float32(world), plan.elements >= STREAMED
        for part in plan.parts:
            table = part.table.copy()
            table[:, X:FACTOR], table[:, FACTOR] = addresses[part.chosen], factors[part.chosen]
            loop: Callable[[int, int], None]
            if left:
                loop = partial(low_rank_loops.from_left, part.columns, fresh, table, out, shares, subtract)
            else:
                arguments = part.columns, fresh, table, unit, out, shares, subtract, stream
                loop = partial(low_rank_loops.from_right, *arguments)
            over_slices(loop, part.elements)
        return found

    def _addresses(self, subtract: bool) -> tuple[NDArray[np.int64], tuple[int, ...]]:
        """Of each matrix or gradient, of its memory and of their sum; and whether that is to be made in this pass."""
        plan = self._plan
        addresses = np.zeros((len(self._sizes), 3), np.int64)
        if self._sums is not None:
            addresses[:, 0] = self._sums.data_ptr() + 4 * plan.outputs
            return addresses, ()
        addresses[:, 0] = [x.data_ptr() for x in self._tensors]
        if not subtract and all(e is None for e in self._memories):
            return addresses, ()
        self._sums = empty(sum(plan.cuts))
        addresses[:, 1] = [self._nothing.data_ptr() if e is None else e.data_ptr() for e in self._memories]
        addresses[:, 2] = self._sums.data_ptr() + 4 * plan.outputs
        return addresses, (0,)


def outer_products(lefts: Tensor, rights: Tensor, sizes: Sizes, outs: Sequence[Tensor]) -> None:
    """As the reference has it; every operation is rounded, so that all processors agree."""
    if not fit(*outs) or not all(in_place(out) for out in outs):
        reference.outer_products(lefts, rights, sizes, outs)
        return
    plan = _plan(sizes)
    lefts, rights = _readable(lefts), _readable(rights)
    left, factors = array(lefts), plan.places(rights, False)
    places = np.array([out.data_ptr() for out in outs], np.int64)
    for part in plan.parts:
        table = part.table.copy()
        table[:, TO], table[:, FACTOR] = places[part.chosen], factors[part.chosen]
        over_slices(partial(low_rank_loops.outer, part.columns, table, left, plan.elements >= STREAMED), part.elements)


def orthonormal_factors(factor: Tensor, sizes: Sizes, left: bool) -> Tensor:
    """As the reference has it; the same bits on all processors, up to a few columns."""
    plan = _plan(sizes)
    if plan.most_columns > FEW:
        return reference.orthonormal_factors(factor, sizes, left)
    found, given = torch.empty(len(factor)), array(_readable(factor))
    for part in plan.parts:
        factor_loops.gram_schmidt(part.table, left, given, found.numpy())
    return found


def extremes(x: Tensor) -> tuple[float, float]:
    """As the reference has it."""
    if not fit(x):
        return reference.extremes(x)
    least, greatest = np.array(factor_loops.extremes(array(x).view(np.int32)), np.int32).view(np.float32).tolist()
    return least, greatest


@lru_cache(maxsize=8)
def _zeros(length: int) -> Tensor:
    """For matrices without a memory; never written, it takes next to no memory itself, and reading it no time."""
    return torch.zeros(length)
