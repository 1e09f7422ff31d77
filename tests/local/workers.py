"""Workers of a synchronous local method in one process, driven by the same gradients as the oracles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from local.oracles import Array, Gradient, Step
from thriftgrad import Ledger, simulate
from thriftgrad.core import memories
from thriftgrad.local import LocalMethod, Replica, learning_rates_of
from thriftgrad.local.replica import Exchanged


class Workers:
    """R copies of a model of named tensors, each with the method's own optimiser; ``gradients[r](x, t)`` as in oracles.

    A model is one vector to the gradients: its tensors end to end, in their order.
    """

    def __init__(
        self,
        method: LocalMethod,
        start: Mapping[str, Tensor],
        gradients: Sequence[Gradient],
        seed: int = 0,
        buffers: Sequence[Mapping[str, Tensor]] | None = None,
    ) -> None:
        self.method, self.gradients, self.steps = method, gradients, 0
        self.models = [{name: nn.Parameter(x.clone()) for name, x in start.items()} for _ in gradients]
        self.optimizers = [method.optimizer(model.values(), 1.0) for model in self.models]
        owned = buffers or [None] * len(gradients)
        self.replicas = [Replica(method, m, b, seed) for m, b in zip(self.models, owned, strict=True)]
        self.ledger = Ledger()
        self.waiting: dict[int, list[Exchanged]] = {}

    def step(self, eta: float) -> None:
        """A local step of everybody, and what is due after it."""
        for optimizer, model, gradient in zip(self.optimizers, self.models, self.gradients, strict=True):
            optimizer.param_groups[0]["lr"] = eta
            split_into(model, gradient(vector(model.values()), self.steps))
            optimizer.step()
        self.steps += 1
        self.synchronise()

    def synchronise(self) -> None:
        """The inner step has been taken."""
        for replica in self.replicas:
            replica.advance()
        for part in self.replicas[0].starting():
            rates = [learning_rates_of(o, r.parameters) for o, r in zip(self.optimizers, self.replicas, strict=True)]
            going = [replica.exchange(part, each) for replica, each in zip(self.replicas, rates, strict=True)]
            self.waiting[part] = simulate(going, self.ledger)
        for part in self.replicas[0].landing():
            for replica, exchanged in zip(self.replicas, self.waiting.pop(part), strict=True):
                replica.land(part, exchanged)

    def run(self, rates: Sequence[float]) -> list[Step]:
        """Where everybody stands at the start and after each step."""
        trace = [self.now()]
        for rate in rates:
            self.step(rate)
            trace.append(self.now())
        return trace

    def now(self) -> Step:
        anchors = [vector(replica.anchors()[name] for name in model) for replica, model in self._pairs()]
        local = [vector(model.values()) for model in self.models]
        return Step(anchors[0], np.array(local), np.array(anchors), np.array([self.memory(r) for r in self.ranks]))

    def memory(self, rank: int) -> Array:
        """What this worker has not sent, in the order of its tensors: its share alone, not a server's."""
        states = [state for part in self.replicas[rank].parts for state in part.exchange]
        owed = {state.spec.name: list(memories(getattr(state.inner, "up", state.inner))) for state in states}
        return vector(owed[name][0] if owed[name] else torch.zeros_like(x) for name, x in self.models[rank].items())

    @property
    def ranks(self) -> range:
        return range(len(self.models))

    def _pairs(self) -> Any:
        return zip(self.replicas, self.models, strict=True)


def vector(tensors: Any) -> Array:
    """Tensors end to end, float64."""
    flat: Array = torch.cat([x.detach().reshape(-1).double() for x in tensors]).numpy()
    return flat


def split_into(model: Mapping[str, nn.Parameter], gradient: Array) -> None:
    """Set every tensor's ``grad`` to its piece of the vector."""
    pieces = torch.from_numpy(np.asarray(gradient)).split([p.numel() for p in model.values()])
    for parameter, piece in zip(model.values(), pieces, strict=True):
        parameter.grad = piece.view(parameter.shape).to(parameter.dtype)
