"""Aggregators tried out in this process: what they hand to collectives, and what they leave out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thriftgrad import kernels
from thriftgrad.aggregate.aggregator import Aggregator
from thriftgrad.comm import Ledger, simulate
from thriftgrad.core import Key, TensorSpec, memories, without_memories

TOLERANCE = 1e-3
"""Of |x|^2: the rounding of an estimate in bfloat16 and that of a memory in float32 stay far below it."""

CACHED = 65_536
"""Pairs of candidate and tensor whose bytes are kept: well above what one model has, as each step reads them all."""


class Bytes(NamedTuple):
    """What a worker hands to collectives for one tensor in a step."""

    alone: int
    shared: int  # of these, what a second such tensor in the same call would not add: a header


@lru_cache(maxsize=CACHED)
def payload_bytes(candidate: Aggregator[Any], spec: TensorSpec) -> Bytes:
    """The bytes of one such tensor; of the second and third step, the larger.

    Raises ``ValueError`` where they depend on the data or on the number of workers, and for a memory that is not the
    tensor less what was sent, in the tensor's own units: what no other aggregator could go on from.
    """
    normal = kernels.normal(spec.numel, Key(0).seed, spec.device).view(spec.shape).to(spec.dtype)
    state, steps = candidate.init_tensor(spec), []
    for i in range(3):
        (estimate,), (state,), nbytes = _step(candidate, [spec], [[normal]], [[state]], Key(i))
        steps.append(nbytes)
        if i == 0:
            _check_memory(candidate, normal, estimate, list(memories(state)))

    def first(x: Tensor, tensors: int, workers: int) -> float:
        fresh = [[candidate.init_tensor(spec) for _ in range(tensors)] for _ in range(workers)]
        return _step(candidate, [spec] * tensors, [[x] * tensors] * workers, fresh, Key(0))[2]

    if first(spec.zeros(), 1, 2) != steps[0]:
        raise ValueError(
            f"Budgeted: the bytes of {candidate!r} depend on the data or on the number of workers, so no budget holds; "
            "take AllReduce, AllGather or PowerSGD, without a coder of varying length."
        )
    return Bytes(int(max(steps[1:])), max(0, int(2 * steps[0] - first(normal, 2, 1))))


def local_errors(
    candidate: Aggregator[Any], tensors: Sequence[Tensor], specs: Sequence[TensorSpec], key: Key
) -> Tensor:
    """|x - estimate|^2 of each tensor, where this worker is alone, in a second step on the same tensors: float64[t].

    The second, so that a warm start is warm; memories are emptied before it.
    """
    states = [candidate.init_tensor(spec) for spec in specs]
    estimates: list[Tensor] = []
    for i in range(2):
        estimates, after, _ = _step(candidate, specs, [tensors], [states], key.fold(i))
        states = [without_memories(state) for state in after]
    return torch.stack([_square(x - y.to(x.dtype)) for x, y in zip(map(_wide, tensors), estimates, strict=True)])


def owed(state: Any, spec: TensorSpec) -> Tensor | None:
    """The sum of all memories of a tensor, in its shape; None if there is none."""
    total: Tensor | None = None
    for memory in memories(state):
        total = memory.view(spec.shape) if total is None else total + memory.view(spec.shape)
    return total


def _step(
    candidate: Aggregator[Any],
    specs: Sequence[TensorSpec],
    tensors: Sequence[Sequence[Tensor]],
    states: Sequence[Sequence[Any]],
    key: Key,
) -> tuple[list[Tensor], list[Any], float]:
    """Worker 0's estimates and next states, and the bytes that a worker hands in; ``tensors`` are by worker."""
    ledger = Ledger()
    workers = [candidate.exchange(x, specs, state, key) for x, state in zip(tensors, states, strict=True)]
    estimates, after = simulate(workers, ledger)[0]
    return estimates, after, ledger.payload_up_bytes


def _check_memory(candidate: Aggregator[Any], x: Tensor, estimate: Tensor, kept: Sequence[Tensor]) -> None:
    if not kept:
        return
    left = _wide(x) - _wide(estimate)
    if all(memory.numel() == x.numel() for memory in kept):
        left = left - sum(_wide(memory).view(x.shape) for memory in kept)
        if _square(left) <= TOLERANCE * _square(_wide(x)):
            return
    raise ValueError(
        f"Budgeted: what {candidate!r} remembers is not its tensor less what it sent, so no other candidate could go "
        "on from there; leave out what makes it so, or its memory."
    )


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.float64)


def _square(x: Tensor) -> Tensor:
    return x.square().sum()
