"""What compression does to one step's gradient: variance, bias, angle, entropy of the symbols, levels.

Everything here looks and changes nothing: estimates are drawn again from copies of the states, outside the books.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, fields
from math import isfinite, sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thriftgrad.aggregate import Aggregator, TensorState
from thriftgrad.comm import all_reduce
from thriftgrad.core import Compressor, Key, Payload
from thriftgrad.core.compressor import Expression
from thriftgrad.lab.cluster import Cluster
from thriftgrad.lab.load import Levels

DRAWS = 3
"""Estimates that a measurement is made from: the one that is applied, and so many less one under keys of their own."""


@dataclass(frozen=True)
class Distortion:
    """Errors of an estimate of the mean gradient m, from K estimates e_k of it with mean e; None where not measured.

    With V = sum_k |e_k - e|^2 / (K - 1), which has expectation E|e_k - E e_k|^2 (no factor 1 + 1/K is left in it):

    relative_error       |e_1 - m| / |m|, e_1 the estimate that is applied
    variance             V / |m|^2
    coordinate_variance  V / n: the mean over the n coordinates of each one's variance
    bias                 |e - m| / |m|
    bias_floor           sqrt(V / K) / |m|: what ``bias`` would be, in the root mean square, if there were none
    cosine               of the angle between e_1 and m

    So E bias^2 = |E e_k - m|^2 / |m|^2 + E bias_floor^2, and the difference of the squares is free of the draws' noise.
    """

    relative_error: float | None = None
    variance: float | None = None
    coordinate_variance: float | None = None
    bias: float | None = None
    bias_floor: float | None = None
    cosine: float | None = None


@dataclass(frozen=True)
class Symbols:
    """What symbols travel at and could travel at, in bits each; None where no symbols travel.

    symbol_width_bits    as they are packed, without coding: the carriers' bytes over the number of symbols
    symbol_entropy_bits  the entropy of the symbols' frequencies within each payload, mean over symbols: no coder of
                         single symbols goes below it
    """

    symbol_width_bits: float | None = None
    symbol_entropy_bits: float | None = None


@dataclass(frozen=True)
class Measurement:
    """Everything that is measured at an evaluation."""

    distortion: Distortion = Distortion()
    symbols: Symbols = Symbols()


def measure(
    cluster: Cluster,
    aggregator: Aggregator[Any],
    gradients: Sequence[Sequence[Tensor]],
    states: Sequence[tuple[TensorState, ...]],
    key: Key,
    mean: Tensor,
    estimate: Sequence[Tensor],
    draws: int = DRAWS,
) -> Measurement:
    """Measure the step that turned the local workers' ``gradients`` and ``states`` into ``estimate`` under ``key``.

    Costs ``draws - 1`` further exchanges, which are in nobody's books. ``mean``: float64, as from ``mean_gradient``.
    Symbols are those that worker 0 sends up. Every process of a cluster calls this.
    """
    payloads: list[Payload[Any]] = []
    unseen = [aggregator for _ in cluster.ranks]
    seen = [watched(aggregator, payloads) if rank == 0 else aggregator for rank in cluster.ranks]

    def again(draw: int) -> list[Tensor]:
        comms = [
            each.aggregate(given, state, key.fold("again", draw))
            for each, given, state in zip(seen if draw == 1 else unseen, gradients, states, strict=True)
        ]
        return cluster.exchange(comms)[0][0]

    estimates = (flat(estimate) if draw == 0 else flat(again(draw)) for draw in range(draws))
    return Measurement(distortion(mean, estimates), symbols(payloads))


def mean_gradient(cluster: Cluster, gradients: Sequence[Sequence[Tensor]]) -> Tensor:
    """The mean over all workers, exact up to float64: float64[n]."""
    return cluster.exchange([all_reduce(flat(each)) for each in gradients])[0] / cluster.world


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All tensors end to end, float64."""
    return torch.cat([x.detach().reshape(-1).to(torch.float64) for x in tensors])


def distortion(mean: Tensor, estimates: Iterable[Tensor]) -> Distortion:
    """The distortion of two or more independent estimates of ``mean``, all float64[n]; the first is the applied one.

    Relative figures are None if the mean is zero, all are None if an estimate is not finite. Raises ``ValueError`` for
    fewer than two estimates. Holds two vectors besides those given.

    >>> import torch
    >>> m = torch.tensor([3.0, 4.0])
    >>> found = distortion(m, [torch.tensor([3.0, 5.0]), torch.tensor([3.0, 3.0])])
    >>> found.coordinate_variance, found.variance, found.bias, found.relative_error
    (1.0, 0.08, 0.0, 0.2)
    """
    source = iter(estimates)
    one = next(source, None)
    if one is None:
        raise ValueError("distortion: a variance takes at least two estimates, got none; draw more.")
    # Against the first estimate and not against zero, so that equal estimates have no variance at all.
    drift, squares, count = torch.zeros_like(one), 0.0, 1
    for other in source:
        step = other - one
        drift, squares, count = drift + step, squares + float(step.square().sum()), count + 1
    if count < 2:
        raise ValueError("distortion: a variance takes at least two estimates, got 1; draw more.")
    total = max(0.0, squares - float(drift.square().sum()) / count) / (count - 1)
    bias, error = float((one + drift / count - mean).norm()), float((one - mean).norm())
    if not all(isfinite(each) for each in (total, bias, error)):
        return Distortion()
    length, reach = float(mean.norm()), float(one.norm())
    if not length > 0:
        return Distortion(coordinate_variance=total / mean.numel())
    return Distortion(
        relative_error=error / length,
        variance=total / length**2,
        coordinate_variance=total / mean.numel(),
        bias=bias / length,
        bias_floor=sqrt(total / count) / length,
        cosine=float(one @ mean) / length / reach if reach > 0 else None,
    )


def symbols(payloads: Iterable[Payload[Any]]) -> Symbols:
    """Width and entropy of the payloads' symbols; carriers without an alphabet have none.

    >>> import torch; from thriftgrad import Key, Sign
    >>> payload, _ = Sign().compress(torch.tensor([1.0, -1.0, 1.0, 2.0, 3.0, -1.0, 1.0, 1.0]), None, Key(0))
    >>> symbols([payload])  # 6 of 8 are positive
    Symbols(symbol_width_bits=1.0, symbol_entropy_bits=0.8112781244591328)
    """
    count, nbytes, entropy = 0, 0, 0.0
    for payload in payloads:
        spec = payload.layout.carrier
        if spec.alphabet is not None:
            count, nbytes = count + payload.carrier.numel(), nbytes + spec.nbytes
            entropy += payload.carrier.numel() * entropy_bits(payload.carrier)
    return Symbols(8 * nbytes / count, entropy / count) if count else Symbols()


def entropy_bits(carrier: Tensor) -> float:
    """Entropy of the frequencies of a tensor's symbols, in bits a symbol: -sum_s p_s log2 p_s.

    >>> import torch
    >>> entropy_bits(torch.tensor([0, 1, 1, 2]))
    1.5
    """
    counts = torch.unique(carrier, return_counts=True)[1].to(torch.float64)
    p = counts / counts.sum()
    return abs(float((p * p.log2()).sum()))  # no minus zero


def watched(aggregator: Aggregator[Any], payloads: list[Payload[Any]]) -> Aggregator[Any]:
    """The same aggregator, whose lossy compressors add what they send up to ``payloads`` as they send it.

    Found wherever they stand in the expression: the stage that turns numbers into symbols, not the coders after it.
    Compressors of a way ``down`` are left alone.
    """

    def copied(node: Any) -> Any:
        if isinstance(node, tuple):
            return tuple(copied(each) for each in node)
        if not isinstance(node, Expression):
            return node
        inner = {
            field.name: copied(getattr(node, field.name))
            for field in fields(node)  # type: ignore[arg-type]  # every expression is a dataclass
            if field.name != "down"
        }
        twin = copy(node)
        for name, value in inner.items():
            object.__setattr__(twin, name, value)
        innermost = not any(isinstance(each, Expression) for each in inner.values())
        if isinstance(node, Compressor) and innermost and not node.lossless:
            object.__setattr__(twin, "compress", noting(node))
        return twin

    def noting(stage: Compressor[Any, Any]) -> Any:
        def compress(x: Tensor, state: Any, key: Key) -> tuple[Payload[Any], Any]:
            payload, after = stage.compress(x, state, key)
            payloads.append(payload)
            return payload, after

        return compress

    twin: Aggregator[Any] = copied(aggregator)
    return twin


class _Book(NamedTuple):
    """A codebook of a tensor, as found in a state."""

    elements: int
    tensor: str
    codebook: Any


def levels_of(states: Sequence[TensorState]) -> Levels | None:
    """The levels that the largest tensor is quantised to; None where no state holds any.

    >>> from typing import NamedTuple; from thriftgrad import TensorSpec
    >>> class Fitted(NamedTuple):
    ...     version: int
    ...     levels: tuple
    >>> levels_of([TensorState(TensorSpec((9,), name="w"), (None, Fitted(2, (0.0, 0.25, 1.0))))])
    Levels(tensor='w', version=2, values=(0.0, 0.25, 1.0))
    """
    books = [
        _Book(state.spec.numel, state.spec.name, book)
        for state in states
        if (book := next(_codebooks(state.inner), None)) is not None
    ]
    if not books:
        return None
    _, tensor, book = max(books, key=lambda each: each.elements)  # the first of equals
    return Levels(tensor, int(book.version), tuple(float(level) for level in book.levels))


def _codebooks(state: Any) -> Iterator[Any]:
    """Whatever in a state has levels and their version."""
    if hasattr(state, "levels") and hasattr(state, "version"):
        yield state
    elif isinstance(state, tuple):
        for each in state:
            yield from _codebooks(each)
