"""Outer optimisers: how the mean drift of the workers moves the model that they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from torch import Tensor

from thriftgrad.core import TensorSpec
from thriftgrad.core.compressor import Expression

State = TypeVar("State")


@dataclass(frozen=True, repr=False)
class Outer(Expression, ABC, Generic[State]):
    """x' from the anchor x and the workers' mean drift D = x - mean of their models; equal on all workers.

    eta is the inner learning rate, for those who measure in gradients: ``reads_learning_rate``. All workers then use
    worker 0's.
    """

    reads_learning_rate: ClassVar[bool] = False

    @property
    def momentum_described(self) -> str:
        """In a few words; empty if it has none."""
        return ""

    @abstractmethod
    def init(self, spec: TensorSpec) -> State:
        """The state before the first sync."""

    @abstractmethod
    def step(self, anchor: Tensor, drift: Tensor, state: State, learning_rate: float) -> tuple[Tensor, State]:
        """The next anchor and the next state; ``learning_rate`` is the inner optimiser's."""


@dataclass(frozen=True, repr=False)
class Average(Outer[None]):
    """x' = x - D: the mean of the workers' models, as in local SGD and Qsparse-local-SGD."""

    def init(self, spec: TensorSpec) -> None:
        return None

    def step(self, anchor: Tensor, drift: Tensor, state: None, learning_rate: float) -> tuple[Tensor, None]:
        return anchor - drift, None


@dataclass(frozen=True, repr=False)
class OuterSGD(Outer[Tensor]):
    """m' = mu m + D; x' = x - lr m', or x - lr (D + mu m') with Nesterov's look-ahead: SGD with D for a gradient.

    Raises ``ValueError`` for a learning rate that is not positive, momentum outside [0, 1), or Nesterov without it.
    Douillard et al., DiLoCo, 2023, arXiv:2311.08105, whose settings are the defaults.
    """

    learning_rate: float = 0.7
    momentum: float = 0.9
    nesterov: bool = True

    def __post_init__(self) -> None:
        check_rate("OuterSGD", self.learning_rate)
        check_momentum("OuterSGD", self.momentum)
        if self.nesterov and not self.momentum:
            raise ValueError("OuterSGD: nesterov=True has no effect without momentum; give one or nesterov=False.")

    @property
    def momentum_described(self) -> str:
        return f"{self.momentum}{' Nesterov' if self.nesterov else ''}" if self.momentum else ""

    def init(self, spec: TensorSpec) -> Tensor:
        return spec.zeros()

    def step(self, anchor: Tensor, drift: Tensor, state: Tensor, learning_rate: float) -> tuple[Tensor, Tensor]:
        velocity = self.momentum * state + drift
        move = drift + self.momentum * velocity if self.nesterov else velocity
        return anchor - self.learning_rate * move, velocity


@dataclass(frozen=True, repr=False)
class SlowMo(Outer[Tensor]):
    """u' = beta u + D / eta; x' = x - alpha eta u': momentum that keeps its units when eta changes.

    Raises ``ValueError`` for a learning rate alpha that is not positive or momentum beta outside [0, 1).
    Wang et al., SlowMo, ICLR 2020, arXiv:1910.00643.
    """

    learning_rate: float = 1.0
    momentum: float = 0.7

    reads_learning_rate = True

    def __post_init__(self) -> None:
        check_rate("SlowMo", self.learning_rate)
        check_momentum("SlowMo", self.momentum)

    @property
    def momentum_described(self) -> str:
        return f"{self.momentum} slow" if self.momentum else ""

    def init(self, spec: TensorSpec) -> Tensor:
        return spec.zeros()

    def step(self, anchor: Tensor, drift: Tensor, state: Tensor, learning_rate: float) -> tuple[Tensor, Tensor]:
        # A learning rate of zero moves nothing, so there is no drift to divide by it.
        velocity = self.momentum * state + (drift / learning_rate if learning_rate else 0.0)
        return anchor - self.learning_rate * learning_rate * velocity, velocity


@dataclass(frozen=True, repr=False)
class OuterSign(Outer[None]):
    """x' = (1 - eta weight_decay) x - eta sign(D): every coordinate moves by the inner learning rate.

    Raises ``ValueError`` for a negative weight decay. Peng et al., DeMo, 2024, arXiv:2411.19870.
    """

    weight_decay: float = 0.0

    reads_learning_rate = True

    def __post_init__(self) -> None:
        if not self.weight_decay >= 0:
            raise ValueError(f"OuterSign: weight_decay cannot be negative, got {self.weight_decay}.")

    def init(self, spec: TensorSpec) -> None:
        return None

    def step(self, anchor: Tensor, drift: Tensor, state: None, learning_rate: float) -> tuple[Tensor, None]:
        return (1 - learning_rate * self.weight_decay) * anchor - learning_rate * drift.sign(), None


def check_rate(owner: str, rate: float) -> None:
    """``ValueError`` unless the learning rate is positive."""
    if not rate > 0:
        raise ValueError(f"{owner}: learning_rate must be positive, got {rate}.")


def check_momentum(owner: str, momentum: float) -> None:
    """``ValueError`` unless momentum lies in [0, 1)."""
    if not 0 <= momentum < 1:
        raise ValueError(f"{owner}: momentum must lie in [0, 1), got {momentum}.")
