"""Inner optimisers: what each worker does on its own between two syncs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from thriftgrad.core.compressor import Expression
from thriftgrad.local.outer import check_momentum


@dataclass(frozen=True, repr=False)
class Inner(Expression, ABC):
    """An optimiser of torch as a value; its state is a worker's own and is never exchanged or reset."""

    @property
    @abstractmethod
    def momentum_described(self) -> str:
        """In a few words; empty if it has none."""

    @abstractmethod
    def optimizer(self, parameters: Iterable[Tensor], learning_rate: float) -> torch.optim.Optimizer:
        """The optimiser of these parameters."""


@dataclass(frozen=True, repr=False)
class InnerSGD(Inner):
    """``torch.optim.SGD``. Raises ``ValueError`` for momentum outside [0, 1), or Nesterov without it."""

    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_momentum("InnerSGD", self.momentum)
        if self.nesterov and not self.momentum:
            raise ValueError("InnerSGD: nesterov=True has no effect without momentum; give one or leave it out.")
        check_weight_decay("InnerSGD", self.weight_decay)

    @property
    def momentum_described(self) -> str:
        return f"{self.momentum}{' Nesterov' if self.nesterov else ''}" if self.momentum else ""

    def optimizer(self, parameters: Iterable[Tensor], learning_rate: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            parameters,
            lr=learning_rate,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
        )


@dataclass(frozen=True, repr=False)
class InnerAdamW(Inner):
    """``torch.optim.AdamW``. Raises ``ValueError`` for betas outside [0, 1)."""

    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        for name, beta in (("beta1", self.beta1), ("beta2", self.beta2)):
            if not 0 <= beta < 1:
                raise ValueError(f"InnerAdamW: {name} must lie in [0, 1), got {beta}.")
        check_weight_decay("InnerAdamW", self.weight_decay)

    @property
    def momentum_described(self) -> str:
        return "AdamW's"

    def optimizer(self, parameters: Iterable[Tensor], learning_rate: float) -> torch.optim.Optimizer:
        betas = (self.beta1, self.beta2)
        return torch.optim.AdamW(parameters, lr=learning_rate, betas=betas, weight_decay=self.weight_decay)


def check_weight_decay(owner: str, weight_decay: float) -> None:
    """``ValueError`` for a negative weight decay."""
    if not weight_decay >= 0:
        raise ValueError(f"{owner}: weight_decay cannot be negative, got {weight_decay}.")
