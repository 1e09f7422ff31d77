"""One worker of a synchronous local method: its drift, anchor and memory; the same code simulated and on real ranks."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from math import sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thriftgrad.aggregate import Aggregator, TensorState
from thriftgrad.aggregate.all_reduce import all_reduce_list
from thriftgrad.comm import Comm, broadcast, place
from thriftgrad.core import Key, TensorSpec, all_finite
from thriftgrad.core.feedback import memories, without_memories
from thriftgrad.core.spec import wide
from thriftgrad.local.method import LocalMethod
from thriftgrad.local.schedule import split


class Part(NamedTuple):
    """The state of one part of the model: all of it, or a fragment of a ``Streaming`` schedule."""

    anchors: tuple[Tensor, ...]  # the last model that all workers shared, float32 or float64
    exchange: tuple[TensorState, ...]
    outer: tuple[Any, ...]
    learning_rates: tuple[float, ...]  # the inner ones at the last sync; 0 before the first


class Exchanged(NamedTuple):
    """What an exchange has come to; None in ``after`` where somebody's drift was not finite."""

    after: Part | None
    mean: list[Tensor]  # the estimate of the workers' mean drift
    buffers: list[Tensor]
    finite: bool = True  # whether this worker's own drift was


class Replica:
    """One worker's copy of the model, and what it remembers from sync to sync.

    After each step of the inner optimiser: ``advance()``; for each part that is ``starting()``, ``exchange`` it with
    the other workers; for each that is ``landing()``, ``land`` the result. ``parameters`` and ``buffers`` are the
    worker's own and change in place when a result lands.

    A drift with a NaN or an infinity, on any worker, changes no anchor and no memory: all go back to the anchor.
    """

    def __init__(
        self,
        method: LocalMethod,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        assert isinstance(method.aggregator, Aggregator)  # an AsyncServer has callers, not replicas
        self.method, self.aggregator, self.seed = method, method.aggregator, seed
        self.parameters = dict(parameters)
        self.step = self.syncs = self.skipped_syncs = 0
        names = list(self.parameters)
        self._members = [[names[i] for i in part] for part in split(names, method.schedule.parts)]
        averaged = buffers if buffers is not None and method.buffers == "average" else {}
        self._buffers = self._divided({name: b for name, b in averaged.items() if b.is_floating_point()})
        self.shared_buffers = [[buffer.clone() for buffer in part] for part in self._buffers]  # as after the last sync
        self.parts = [self._begin(members) for members in self._members]

    def _begin(self, members: Sequence[str]) -> Part:
        anchors = tuple(widened(self.parameters[name]) for name in members)
        specs = [TensorSpec.of(anchor, name) for anchor, name in zip(anchors, members, strict=True)]
        exchange = self.aggregator.init(specs)
        outer = tuple(self.method.outer.init(spec) for spec in specs)
        return Part(anchors, exchange, outer, (0.0,) * len(members))

    def _divided(self, buffers: Mapping[str, Tensor]) -> list[list[Tensor]]:
        """Each buffer in the part of its module's parameters, or in the first."""
        home = {name.rpartition(".")[0]: i for i, members in enumerate(self._members) for name in members}
        divided: list[list[Tensor]] = [[] for _ in self._members]
        for name, buffer in buffers.items():
            divided[home.get(name.rpartition(".")[0], 0)].append(buffer)
        return divided

    def advance(self) -> None:
        """The inner optimiser has taken a step."""
        self.step += 1

    def starting(self) -> tuple[int, ...]:
        """The parts whose exchange begins now; the same on every worker."""
        return self.method.schedule.starting(self.step)

    def landing(self) -> tuple[int, ...]:
        """The parts whose results are used now; of a part without delay, the one that is starting."""
        return self.method.schedule.starting(self.step - self.method.schedule.delay_steps)

    def on_their_way(self, step: int) -> tuple[int, ...]:
        """The parts whose exchange has begun by this step and whose results have not been used."""
        first = max(1, step - self.method.schedule.delay_steps + 1)
        return tuple(part for begun in range(first, step + 1) for part in self.method.schedule.starting(begun))

    def buffers(self, part: int) -> list[Tensor]:
        """The buffers that are averaged with this part."""
        return self._buffers[part]

    def drifts(self, part: int) -> list[Tensor]:
        """The anchor minus the local model, tensor by tensor."""
        anchors, members = self.parts[part].anchors, self._members[part]
        return [drift(anchor, self.parameters[name]) for anchor, name in zip(anchors, members, strict=True)]

    def key(self) -> Key:
        """The public key of an exchange after the current step: that of a gradient's in this step."""
        return Key(self.seed).fold(self.step - 1)

    def exchange(self, part: int, learning_rates: Mapping[str, float]) -> Comm[Exchanged]:
        """Exchange this worker's drift; ``learning_rates`` are the inner optimiser's, by parameter."""
        me = yield from place()
        before, members = self.parts[part], self._members[part]
        mine = [buffer / me.world for buffer in self._buffers[part]]
        rates = tuple(learning_rates[name] for name in members)
        own, drifts, key = rates, self.drifts(part), self.key()
        means, exchange = yield from self.aggregator.aggregate(drifts, before.exchange, key)
        if self.method.outer.reads_learning_rate:
            rates = yield from _of_first(rates, before.anchors[0].device)  # the anchor must stay the same everywhere
        buffers = (yield from all_reduce_list(mine)) if mine else []
        if exchange is before.exchange:  # how an aggregator says that somebody's drift was not finite
            return Exchanged(None, means, buffers, all_finite(drifts))
        if self.method.reset_memory_on_lr_drop:
            exchange = tuple(
                state._replace(inner=without_memories(state.inner)) if rate < last else state
                for state, rate, last in zip(exchange, own, before.learning_rates, strict=True)
            )
            if not self.syncs and not any(memory.numel() for memory in memories(exchange)):
                warnings.warn(
                    f"LocalMethod: reset_memory_on_lr_drop has no effect, because {self.aggregator!r} has no memory.",
                    stacklevel=2,
                )
        moved = [self.method.outer.step(*each) for each in zip(before.anchors, means, before.outer, rates, strict=True)]
        after = Part(tuple(anchor for anchor, _ in moved), exchange, tuple(state for _, state in moved), own)
        return Exchanged(after, means, buffers)

    def land(self, part: int, exchanged: Exchanged) -> None:
        """Take over the result: the new anchor, mixed with the local model if the schedule says so."""
        if exchanged.after is None:
            self.skipped_syncs += 1
            self.go_back()
            return
        self.parts[part] = exchanged.after
        self.syncs += 1
        kept = self.method.schedule.kept
        self.shared_buffers[part] = [  # an overflow, or a mask of infinities, is no average
            torch.where(mean.isfinite(), mean, last)
            for mean, last in zip(exchanged.buffers, self.shared_buffers[part], strict=True)
        ]
        with torch.no_grad():
            for name, anchor in zip(self._members[part], self.parts[part].anchors, strict=True):
                parameter = self.parameters[name]
                parameter.copy_(anchor.lerp(widened(parameter), kept) if kept else anchor)
        self._share_buffers(part)

    def go_back(self) -> None:
        """To the last shared model, every part of it: what is not finite in one part has spread to all."""
        anchors = self.anchors()
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(anchors[name])
        for part in range(len(self.parts)):
            self._share_buffers(part)

    def _share_buffers(self, part: int) -> None:
        for buffer, shared in zip(self._buffers[part], self.shared_buffers[part], strict=True):
            overwrite(buffer, shared)

    def restart(self, step: int, parts: Sequence[Part], shared_buffers: Sequence[list[Tensor]]) -> None:
        """Go on from a checkpoint; the parameters and buffers are the caller's to restore."""
        self.step, self.parts, self.shared_buffers = step, list(parts), list(shared_buffers)

    def anchors(self) -> dict[str, Tensor]:
        """The model that all workers share, by parameter."""
        return {
            name: anchor
            for members, part in zip(self._members, self.parts, strict=True)
            for name, anchor in zip(members, part.anchors, strict=True)
        }

    def memory_norm(self) -> float:
        """The l2 norm of everything this worker has not sent yet."""
        return norm(memories(tuple(part.exchange for part in self.parts)))


def drift(anchor: Tensor, parameter: Tensor) -> Tensor:
    """What a parameter has moved since it was set to the anchor, which rounded it to the parameter's own type."""
    return anchor.to(parameter.dtype).to(anchor.dtype) - widened(parameter)


def norm(tensors: Iterable[Tensor]) -> float:
    """The l2 norm of all of them together."""
    return sqrt(sum(float(x.double().square().sum()) for x in tensors))


def overwrite(tensor: Tensor, value: Tensor) -> None:
    """``tensor.copy_(value)``, also for an expanded one, whose elements lie in one place and are equal."""
    once = tuple(slice(0, 1) if not stride else slice(None) for stride in tensor.stride())
    with torch.no_grad():
        tensor[once].copy_(value[once])


def _of_first(rates: Sequence[float], device: torch.device) -> Comm[tuple[float, ...]]:
    """Worker 0's learning rates, for all."""
    mine = torch.tensor(rates, dtype=torch.float64, device=device)
    answer = yield from broadcast(mine, TensorSpec.of(mine), 0)
    return tuple(answer.tolist())


def widened(parameter: Tensor) -> Tensor:
    """A copy in float32, or in float64 if it is that."""
    return parameter.detach().to(wide(parameter.dtype), copy=True)


def learning_rates_of(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> dict[str, float]:
    """The current learning rate of each parameter; 0 for one that the optimiser does not have."""
    rates = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
    return {name: rates.get(id(parameter), 0.0) for name, parameter in parameters.items()}
