"""A method: what is exchanged, and where momentum sits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thriftgrad.aggregate import Aggregator
from thriftgrad.core import TensorSpec
from thriftgrad.core.compressor import Expression
from thriftgrad.train.plus_gradient import GradientPlusMomentum


@dataclass(frozen=True, repr=False)
class Method(Expression):
    """One named, printable training recipe: an aggregator and the optimiser that takes its estimates.

    ``momentum``, ``nesterov``: of the SGD that follows the aggregation, equal on all workers. ``plus_gradient``: the
    step is gradient + momentum, ``GradientPlusMomentum``. ``learning_rate_scale``: a sound learning rate relative to
    plain SGD's, for methods whose steps have another length. ``momentum_place`` says in words where momentum sits,
    ``paper`` where the method comes from.

    Raises ``ValueError`` for momentum outside [0, 1), Nesterov or plus_gradient without momentum, both of them, or a
    scale that is not positive.
    """

    aggregator: Aggregator[Any]
    momentum: float = 0.9
    nesterov: bool = False
    learning_rate_scale: float = 1.0
    momentum_place: str = "after aggregation"
    paper: str = ""
    plus_gradient: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.aggregator, Aggregator):
            raise TypeError(
                f"Method: aggregator must be one such as AllGather(QSGD(bits=4)), got {self.aggregator!r}; an "
                "AsyncServer belongs into a LocalMethod."
            )
        if not 0 <= self.momentum < 1:
            raise ValueError(f"Method: momentum must lie in [0, 1), got {self.momentum}.")
        if self.nesterov and not self.momentum:
            raise ValueError("Method: nesterov=True has no effect without momentum; give one or leave it out.")
        if self.plus_gradient and (self.nesterov or not self.momentum):
            raise ValueError(
                "Method: plus_gradient=True is a form of momentum without Nesterov's look-ahead; give momentum and "
                "nesterov=False, or leave it out."
            )
        if not self.learning_rate_scale > 0:
            raise ValueError(f"Method: learning_rate_scale must be positive, got {self.learning_rate_scale}.")

    @property
    def momentum_described(self) -> str:
        """In words, where momentum sits."""
        form = " plus gradient" if self.plus_gradient else ""
        return f"{self.momentum}{form} {self.momentum_place}" if self.momentum else self.momentum_place

    def check(self, specs: Sequence[TensorSpec], world: int, steps: int) -> None:
        """Say, by an error or a warning, what about these tensors does not suit this method."""
        self.aggregator.init(specs)

    def optimizer(self, parameters: Iterable[Tensor], learning_rate: float) -> torch.optim.Optimizer:
        """The optimiser that takes the estimates; ``learning_rate`` is used as it is."""
        if self.plus_gradient:
            return GradientPlusMomentum(parameters, lr=learning_rate, momentum=self.momentum)
        return torch.optim.SGD(parameters, lr=learning_rate, momentum=self.momentum, nesterov=self.nesterov)
