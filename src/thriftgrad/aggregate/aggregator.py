"""The contract of an aggregator, and what all of them share: names, checks and the guard against NaN."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from thriftgrad import wire
from thriftgrad.comm import Comm
from thriftgrad.core import Compressor, Key, Layout, Payload, TensorSpec, all_finite, wide
from thriftgrad.core.compressor import Expression
from thriftgrad.core.tree import leaves
from thriftgrad.core.vector import as_vector

State = TypeVar("State")


class TensorState(NamedTuple):
    """What an aggregator keeps for one tensor."""

    spec: TensorSpec
    inner: Any


@dataclass(frozen=True, repr=False)
class Aggregator(Expression, ABC, Generic[State]):
    """Estimates the mean over workers of a list of tensors; may talk to the others by yielding requests.

    State is kept per tensor and randomness is keyed by the tensor's name, so the estimate does not depend on how the
    tensors of a model are grouped into calls, and a regrouped DDP bucket finds its memories again.

    A worker with a NaN or an infinity anywhere sends NaN in place of all its tensors. So every worker sees a
    non-finite estimate, hands it on, and keeps the state it had: nothing non-finite ever enters a memory, on
    any worker, and no extra round is spent on agreeing about it.
    """

    def init(self, specs: Sequence[TensorSpec]) -> tuple[TensorState, ...]:
        """The state before the first step, one entry per tensor; an unnamed tensor is named by its position.

        Raises ``ValueError`` for an empty tensor or a name used twice, ``TypeError`` if not floating point.
        """
        specs = [spec if spec.name else replace(spec, name=str(i)) for i, spec in enumerate(specs)]
        names = [spec.name for spec in specs]
        for spec in specs:
            if not spec.dtype.is_floating_point:
                raise TypeError(
                    f"tensor {spec.name!r} holds {spec.dtype}; only floating-point tensors can be averaged."
                )
            if spec.numel == 0:
                raise ValueError(f"tensor {spec.name!r} of shape {spec.shape} is empty; leave it out.")
            if names.count(spec.name) > 1:
                raise ValueError(f"two tensors are named {spec.name!r}; give each tensor a name of its own.")
        self.check(specs)
        return tuple(TensorState(*each) for each in zip(specs, self.init_tensors(specs), strict=True))

    def aggregate(
        self, tensors: Sequence[Tensor], state: tuple[TensorState, ...], key: Key
    ) -> Comm[tuple[list[Tensor], tuple[TensorState, ...]]]:
        """Estimate the mean; returns new tensors of the same shapes and types, and the next state.

        After a non-finite step the estimates are NaN throughout, and the next state is the very object that was given.

        ``key`` is public: the same on every worker, another at each step.
        Raises ``ValueError`` if the tensors are not those the state was made for.
        """
        _check_fit(tensors, state)
        if not tensors:
            return [], state
        specs, inner = [entry.spec for entry in state], [entry.inner for entry in state]
        tensors = [x.detach() if x.requires_grad else x for x in tensors]
        means, after = yield from self.guarded(tensors, specs, inner, key)
        if after is None:
            return nans(means), state
        return means, tuple(TensorState(spec, each) for spec, each in zip(specs, after, strict=True))

    def guarded(
        self, tensors: Sequence[Tensor], specs: Sequence[TensorSpec], states: Sequence[State], key: Key
    ) -> Comm[tuple[list[Tensor], list[State] | None]]:
        """``exchange``, of NaN if anything is not finite here; None for the states if anything was not on any worker.

        Overridden where that can be told without another reading of all tensors.
        """
        finite = all_finite(tensors)
        means, after = yield from self.exchange(tensors if finite else nans(tensors), specs, states, key)
        return means, after if finite and all_finite(means) else None

    def uncompressed(self, specs: Sequence[TensorSpec]) -> tuple[str, ...]:
        """The names of the tensors that travel as they are, because this aggregator leaves them alone."""
        return ()

    def check(self, specs: Sequence[TensorSpec]) -> None:
        """Say, by an error or a warning, what about these tensors does not suit this aggregator."""

    @abstractmethod
    def init_tensor(self, spec: TensorSpec) -> State:
        """The state of one tensor before the first step."""

    def init_tensors(self, specs: Sequence[TensorSpec]) -> list[State]:
        """The states before the first step of all tensors that ``init`` was given."""
        return [self.init_tensor(spec) for spec in specs]

    def forms(self, spec: TensorSpec) -> Iterable[State]:
        """The forms that the state of one tensor may have before a step, as to be found in a checkpoint."""
        return (self.init_tensor(spec),)

    @abstractmethod
    def exchange(
        self, tensors: Sequence[Tensor], specs: Sequence[TensorSpec], states: Sequence[State], key: Key
    ) -> Comm[tuple[list[Tensor], list[State]]]:
        """Do the work of ``aggregate``: the estimates and the next states, tensor by tensor."""


def as_one(
    aggregator: Aggregator[Any], tensors: Sequence[Tensor], specs: Sequence[TensorSpec], states: Sequence[Any], key: Key
) -> Comm[tuple[list[Tensor], list[Any]]]:
    """``exchange`` with all tensors laid end to end, under the name and state of the first.

    Buckets run across tensors, so another grouping or order of them is another vector and another estimate. Afterwards
    each tensor holds the state, so that DDP may regroup its buckets and all ranks still find the same one.
    """
    kinds = {x.dtype for x in tensors}
    if len(kinds) > 1:
        kinds = {torch.float64 if torch.float64 in kinds else torch.float32}
    (dtype,) = kinds
    cast = [x.to(dtype) for x in tensors]
    flat = as_vector(cast)
    if flat is None:
        flat = torch.cat([x.reshape(-1) for x in cast])
    spec = TensorSpec.of(flat, specs[0].name)
    furthest = max(states, key=lambda state: [leaf for leaf in leaves(state) if isinstance(leaf, int)])
    (mean,), (state,) = yield from aggregator.exchange([flat], [spec], [furthest], key)
    parts = torch.split(mean, [x.numel() for x in tensors])
    return [part.view(x.shape).to(x.dtype) for part, x in zip(parts, tensors, strict=True)], [state] * len(tensors)


def check_memories(owner: str, up: Compressor[Any, Any], down: Compressor[Any, Any]) -> None:
    """``ValueError`` where one keeps a memory for each tensor and the other takes all tensors as one."""
    for one, other in ((up, down), (down, up)):
        if one.has_memory and not other.per_tensor:
            raise ValueError(
                f"{owner}: {one!r} keeps a memory for each tensor, and {other!r} takes all tensors as one; "
                "use per_tensor=True."
            )


def left_alone(compressor: Compressor[Any, Any], specs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """The names of the tensors that this compressor leaves alone."""
    return tuple(spec.name for spec in specs if compressor.leaves_alone(spec))


def warn_of_none(who: str, specs: Sequence[TensorSpec], alone: Sequence[str], why: str) -> None:
    """Warn if all of the tensors are left alone, and say why."""
    if specs and len(alone) == len(specs):
        warnings.warn(
            f"{who} compresses none of the {len(specs)} tensors: {why}; all travel as they are.",
            stacklevel=4,  # who called the ``init`` that called the ``check`` that called this
        )


def no_use(compressor: Compressor[Any, Any]) -> str:
    """Why a compressor leaves all tensors alone."""
    return f"they are vectors, or too small for {compressor!r} to save anything"


def shown(tensors: list[Tensor]) -> list[Tensor]:
    """The same, or NaN throughout if something is not finite, so that a next hop cannot lose that on the way."""
    return tensors if all_finite(tensors) else nans(tensors)


def nans(tensors: Sequence[Tensor]) -> list[Tensor]:
    """NaN in place of every element: what no compressor can hide, however few elements it keeps."""
    return [torch.full_like(x, torch.nan) for x in tensors]


def mean_of_messages(
    messages: Sequence[Tensor], compressor: Compressor[Any, Any], layouts: list[Layout], over_senders: bool = False
) -> list[Tensor]:
    """The mean of what several messages of one layout decompress to, over all of them or, coordinate by coordinate,
    over those that are not zero there.

    Summed in float32 (float64, for such tensors) in the given order.
    """
    first, *others = [[_widened(payload) for payload in wire.unpack_all(message, layouts)] for message in messages]
    sums = [compressor.decompress(payload) for payload in first]
    senders = [(x != 0).to(x.dtype) for x in sums] if over_senders else []
    for payloads in others:
        if over_senders:
            values = [compressor.decompress(payload) for payload in payloads]
            for total, number, value in zip(sums, senders, values, strict=True):
                total += value
                number += value != 0
        else:
            for total, payload in zip(sums, payloads, strict=True):
                compressor.add_to(total, payload)
    if over_senders:
        means = [x / n.clamp_min(1) for x, n in zip(sums, senders, strict=True)]
    else:
        means = [x.div_(len(messages)) for x in sums]
    return [x.to(layout.spec.dtype) for x, layout in zip(means, layouts, strict=True)]


def _widened(payload: Payload[Any]) -> Payload[Any]:
    """The same payload of a wide tensor: an estimate may leave a narrow type's range where the mean does not."""
    spec = payload.layout.spec
    if spec.dtype == wide(spec.dtype):
        return payload
    return replace(payload, layout=replace(payload.layout, spec=spec.with_dtype(wide(spec.dtype))))


def _check_fit(tensors: Sequence[Tensor], state: Sequence[TensorState]) -> None:
    if len(tensors) != len(state):
        raise ValueError(
            f"aggregate: got {len(tensors)} tensors for the state of {len(state)}; call init for these ones."
        )
    for x, (spec, _) in zip(tensors, state, strict=True):
        if x.shape != spec.shape or x.dtype != spec.dtype:
            raise ValueError(
                f"aggregate: tensor {spec.name!r} is {x.dtype} of shape {tuple(x.shape)}, its state was made for "
                f"{spec.dtype} of shape {spec.shape}; call init for this one."
            )
