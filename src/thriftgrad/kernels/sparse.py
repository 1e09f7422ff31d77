"""Choosing coordinates by magnitude, and adding few of them: the definition in plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SAMPLE = 1 << 14
"""About how many elements are looked at to guess where the largest begin."""


class Chosen(NamedTuple):
    """The coordinates that are sent of a vector, and what is left over."""

    indices: Tensor  # int64[k], ascending
    values: Tensor  # [k]
    rest: Tensor | None  # [n]: owed - what is sent, where owed = x + decay * memory; None without a memory

    def finite_rest(self, shape: Sequence[int]) -> Tensor | None:
        """The rest in this shape; None if something in it is not finite, which would be among the largest."""
        assert self.rest is not None
        return self.rest.view(shape) if self.values.isfinite().all() else None


def magnitudes(flat: Tensor) -> Tensor:
    """What coordinates are ranked by: NaN counts as an infinity."""
    return flat.abs().nan_to_num(torch.inf, posinf=torch.inf)


def largest(flat: Tensor, k: int) -> Tensor:
    """Indices of the k largest magnitudes, int64[k], ascending; ties to the lowest index.

    flat: any floating type, 0 <= k <= n. Where there are many, a sample tells a magnitude that a little more than k of
    them are likely to reach, and the search goes on among those that do. If they are at least k, the k largest are
    there, whatever the sample was; if not, all are searched.
    """
    n = flat.numel()
    if n >= 4 * SAMPLE and k <= n // 4:
        candidates = _beyond(flat, _likely_floor(flat, k))
        if k <= candidates.numel() <= n // 2:
            return candidates[_largest(flat[candidates], k)]
    return _largest(flat, k)


def choose_largest(x: Tensor, k: int, memory: Tensor | None = None, decay: float = 1.0) -> Chosen:
    """The k largest coordinates of owed = x + decay * memory, by ``largest``; the rest is zero there (or NaN).

    x, memory: [n] of one type, contiguous.
    """
    whole = x if memory is None else owed(x, memory, decay)
    indices = largest(whole, k)
    values = whole[indices]
    rest = None if memory is None else whole.index_copy_(0, indices, values - values)
    return Chosen(indices, values, rest)


def largest_of_rows(rows: Tensor, k: int) -> Tensor:
    """Columns of the k largest magnitudes of each row, row by row and ascending, int64[m k]; ties to the lowest column.

    rows: [m, d] of any floating type, 0 <= k <= d.
    """
    if not len(rows) * k:
        return torch.empty(0, dtype=torch.int64, device=rows.device)
    magnitude = magnitudes(rows)
    threshold = magnitude.topk(k, sorted=True).values[:, -1:]
    chosen = magnitude >= threshold
    crowded = chosen.sum(1) > k  # where more than there is room for share the last place, the first of them get it
    if crowded.any():
        level, last = magnitude[crowded], threshold[crowded]
        tied = level == last
        room = k - (level > last).sum(1, keepdim=True)
        chosen[crowded] = (level > last) | (tied & (tied.cumsum(1) <= room))
    return chosen.nonzero()[:, 1]


def owed(x: Tensor, memory: Tensor, decay: float) -> Tensor:
    """x + decay * memory, a new vector; x, memory: [n] of one type."""
    return x + decay * memory


def add_at(total: Tensor, indices: Tensor, values: Tensor) -> None:
    """total[indices[i]] += values[i], one after the other; total: [n], contiguous; indices: int64, in range(n)."""
    total.index_add_(0, indices, values.to(total.dtype))


def _likely_floor(flat: Tensor, k: int) -> Tensor:
    """The magnitude in a strided sample that hardly ever fewer than k reach: four deviations and a bit further down."""
    sample = magnitudes(flat[:: flat.numel() // SAMPLE])
    expected = k * sample.numel() / flat.numel()
    rank = min(sample.numel(), int(expected + 4 * expected**0.5) + 8)
    return sample.topk(rank).values[-1]


def _beyond(flat: Tensor, floor: Tensor) -> Tensor:
    """Indices of all elements of that magnitude or a larger one, NaN among them; comparing takes no copy of numbers."""
    within = flat < floor
    within &= flat > -floor
    return within.logical_not_().nonzero().view(-1)


def _largest(flat: Tensor, k: int) -> Tensor:
    """``largest``, among all."""
    magnitude = magnitudes(flat)
    if k == 0:
        return torch.empty(0, dtype=torch.int64, device=flat.device)
    threshold = magnitude.topk(k).values[-1]
    above = (magnitude > threshold).nonzero().view(-1)
    tied = (magnitude == threshold).nonzero().view(-1)[: k - above.numel()]
    return torch.cat((above, tied)).sort().values
