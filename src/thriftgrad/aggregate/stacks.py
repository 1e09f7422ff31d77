"""Tensors of a call in the order in which low-rank products take them, and in which their means lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from thriftgrad import kernels
from thriftgrad.aggregate.subspace import Fit, Stack, split
from thriftgrad.core import TensorSpec, wide
from thriftgrad.core.matrices import matrix_shape
from thriftgrad.kernels import Size, Sizes
from thriftgrad.kernels.recycled import ALIGNMENT, empty


class Specs:
    """The specs of a call, known by their identity: a cache need not read through a hundred of them to find one."""

    def __init__(self, specs: Iterable[TensorSpec]) -> None:
        self.each = tuple(specs)
        self._ids = tuple(map(id, self.each))  # of objects that live as long as this one

    def __hash__(self) -> int:
        return hash(self._ids)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Specs) and self._ids == other._ids


class Group(NamedTuple):
    """Tensors whose matrices have one type and one device, and whose step starts on one side."""

    chosen: tuple[int, ...]  # equal sizes are neighbours
    sizes: Sizes
    dtype: torch.dtype
    device: torch.device
    from_left: bool

    def stack(self, tensors: Sequence[Tensor], memories: Sequence[Tensor | None]) -> Stack:
        """The matrices of these among all tensors of the call."""
        chosen, kept = [tensors[i] for i in self.chosen], [memories[i] for i in self.chosen]
        return Stack(kernels.low_rank_matrices(self.device, chosen, kept, self.sizes), self.sizes, self.from_left)


class Order(NamedTuple):
    """What happens to each tensor of a call."""

    plain: tuple[int, ...]  # these travel as they are
    groups: tuple[Group, ...]
    end_to_end: bool  # whether all means can lie in one vector, in the order of the tensors
    numels: list[int]
    runs: list[int]  # elements of that vector, by turns of plain tensors together and of those between them
    shift: int  # so many elements after a cache line's beginning, most of its matrices begin with one


def ordered(specs: Sequence[TensorSpec], sides: Sequence[bool | None], rank: int) -> Order:
    """By the side on which the step of each tensor starts, True for left; None for one that travels as it is."""
    plain = tuple(i for i, side in enumerate(sides) if side is None)
    groups: dict[tuple[torch.dtype, torch.device, bool], dict[Size, list[int]]] = {}
    begun: Counter[int] = Counter()
    runs, start = [0], 0
    for i, (spec, side) in enumerate(zip(specs, sides, strict=True)):
        if side is not None:
            n, m = matrix_shape(spec)
            by_size = groups.setdefault((wide(spec.dtype), spec.device, side), {})
            by_size.setdefault(Size(n, m, min(rank, n, m)), []).append(i)
            begun[-start % (ALIGNMENT // 4)] += n * m
        if (side is None) != len(runs) % 2:
            runs.append(0)
        runs[-1] += spec.numel
        start += spec.numel
    kinds = {(spec.dtype, spec.device) for spec in specs}
    return Order(
        plain,
        tuple(_group(by_size, *kind) for kind, by_size in groups.items()),
        len(kinds) == 1 and specs[0].dtype == wide(specs[0].dtype) and bool(groups),
        [spec.numel for spec in specs],
        runs,
        begun.most_common(1)[0][0] if begun else 0,
    )


def _group(by_size: dict[Size, list[int]], dtype: torch.dtype, device: torch.device, from_left: bool) -> Group:
    chosen = tuple(i for same in by_size.values() for i in same)
    sizes = tuple(size for size, same in by_size.items() for _ in same)
    return Group(chosen, sizes, dtype, device, from_left)


def laid_out(
    order: Order,
    specs: Sequence[TensorSpec],
    fits: Sequence[Sequence[Fit]],
    plain: Sequence[Tensor],
    found: Sequence[Tensor],
) -> list[Tensor]:
    """All means, in the type of their sums; ``fits``: the iterations on each group; ``found``: the means of ``plain``.

    End to end where that can be, as DDP's bucket has them, so that its hook need not copy them.
    """
    if not order.end_to_end:
        means = dict(zip(order.plain, _apart(found, plain), strict=True))
        for group, iterations in zip(order.groups, fits, strict=True):
            outs = [torch.empty(n * m, dtype=group.dtype, device=group.device) for n, m, _ in group.sizes]
            _multiply(group, iterations, outs)
            means |= zip(group.chosen, outs, strict=True)
        return [means[i].view(spec.shape) for i, spec in enumerate(specs)]
    vector = _vector(order, specs[0])
    if found:
        for part, mean in zip(
            torch.split(vector, order.runs)[::2], torch.split(found[0], order.runs[::2]), strict=True
        ):
            part.copy_(mean)
    places = torch.split(vector, order.numels)
    for group, iterations in zip(order.groups, fits, strict=True):
        _multiply(group, iterations, [places[i] for i in group.chosen])
    return [x if len(spec.shape) == 1 else x.view(spec.shape) for x, spec in zip(places, specs, strict=True)]


def _vector(order: Order, spec: TensorSpec) -> Tensor:
    if spec.device.type == "cpu":
        return empty(sum(order.numels), spec.dtype, order.shift)
    return torch.empty(sum(order.numels), dtype=spec.dtype, device=spec.device)


def _multiply(group: Group, iterations: Sequence[Fit], outs: Sequence[Tensor]) -> None:
    """The estimate of each matrix, by all iterations together."""
    lefts, rights = zip(*(fit.sides for fit in iterations), strict=True)
    if len(iterations) == 1:
        (left,), (right,) = lefts, rights
    else:
        left, right = joined(beside(lefts, group.sizes, True)), joined(beside(rights, group.sizes, False))
    kernels.outer_products(left, right, wider(group.sizes, len(iterations)), outs)


def wider(sizes: Sizes, times: int) -> Sizes:
    """With so many factors side by side."""
    return sizes if times == 1 else tuple(Size(n, m, times * r) for n, m, r in sizes)


def beside(vectors: Sequence[Tensor], sizes: Sizes, left: bool) -> list[Tensor]:
    """The factor of each matrix, [n or m, r]; those of several vectors side by side."""
    found = [split(vector, sizes, left) for vector in vectors]
    return found[0] if len(found) == 1 else [torch.cat(each, 1) for each in zip(*found, strict=True)]


def joined(factors: Iterable[Tensor]) -> Tensor:
    """Factors of several matrices as one vector."""
    return torch.cat([factor.reshape(-1) for factor in factors])


def end_to_end(tensors: Sequence[Tensor], world: int) -> list[Tensor]:
    """Their elements divided by ``world``, before a sum that could be too large: one vector for each type."""
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for x in tensors:
        by_type.setdefault(x.dtype, []).append(x if x.dim() == 1 else x.reshape(-1))
    vectors = [same[0] if len(same) == 1 else torch.cat(same) for same in by_type.values()]
    return vectors if world == 1 else [x / world for x in vectors]


def _apart(vectors: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """The pieces of what ``end_to_end`` has joined."""
    sizes: dict[torch.dtype, list[int]] = {}
    for x in like:
        sizes.setdefault(x.dtype, []).append(x.numel())
    pieces = {each.dtype: iter(torch.split(each, sizes[each.dtype])) for each in vectors}
    return [next(pieces[x.dtype]) for x in like]
