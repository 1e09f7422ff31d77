"""What workers agree on before they compress: levels fitted to everybody's gradients, scales that all share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from thriftgrad.comm import Comm, all_gather, all_reduce
from thriftgrad.core import Compressor, Key
from thriftgrad.core.tree import leaves, map_leaves


def agreed(
    compressor: Compressor[Any, Any], tensors: Sequence[Tensor], states: Sequence[Any], keys: Sequence[Key]
) -> Comm[list[Any]]:
    """The states with which to compress these tensors, after two rounds for those that are ``due``.

    First the greatest of everybody's ``peaks``, then the sum of everybody's ``counts``. The counts are integers, so
    the order of summation changes no bit, and every worker solves for the same levels.
    """
    due = [i for i, state in enumerate(states) if compressor.due(state)]
    if not due:
        return list(states)
    peaks = yield from _combined([compressor.peaks(tensors[i], states[i], keys[i]) for i in due], _greatest)
    counts = yield from _combined(
        [compressor.counts(tensors[i], states[i], keys[i], peak) for i, peak in zip(due, peaks, strict=True)],
        all_reduce,
    )
    after = list(states)
    for i, peak, count in zip(due, peaks, counts, strict=True):
        after[i] = compressor.adapt(states[i], peak, count)
    return after


def _greatest(x: Tensor) -> Comm[Tensor]:
    everybodys = yield from all_gather(x)
    return torch.stack(everybodys).amax(0)  # a NaN is the greatest of all


def _combined(trees: list[Any], combine: Callable[[Tensor], Comm[Tensor]]) -> Comm[list[Any]]:
    """The trees with their tensors, all of one type, combined over workers in one collective; none if they are bare."""
    tensors: list[Tensor] = list(leaves(tuple(trees)))
    if not tensors:
        return trees
    whole = yield from combine(torch.cat([x.reshape(-1) for x in tensors]))
    parts = iter(torch.split(whole, [x.numel() for x in tensors]))
    return [map_leaves(lambda x: next(parts).view(x.shape), tree) for tree in trees]
