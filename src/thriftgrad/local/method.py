"""A local method: what workers exchange, when, and what they do between and afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from thriftgrad.aggregate import Aggregator
from thriftgrad.core import TensorSpec
from thriftgrad.core.compressor import Expression
from thriftgrad.local.async_server import AsyncServer
from thriftgrad.local.inner import Inner, InnerSGD
from thriftgrad.local.outer import Average, Outer
from thriftgrad.local.schedule import Every, Schedule, split


@dataclass(frozen=True, repr=False)
class LocalMethod(Expression):
    """Inner steps; drift from the anchor; memory, compressor and mean, in ``aggregator``; outer step; new anchor.

    Each worker trains its own copy with ``inner``. When the ``schedule`` says so, it compresses its drift, the anchor
    (the last model that all shared) minus its copy; ``outer`` moves the anchor by the mean drift and every copy starts
    from there. The drift contains the learning rate, so memories are in parameter units and a change of the learning
    rate rescales nothing.

    The way back is the aggregator's: ``AllGather`` forwards every message, ``ParameterServer(up, down)`` sends the mean
    through ``down``. With an ``AsyncServer`` workers come when their own schedule says so.

    ``buffers``: what becomes of BatchNorm's averages and other floating-point buffers at a sync, their mean over
    workers or ``"local"``: nothing. ``reset_memory_on_lr_drop``: a sync at a lower inner learning rate than the
    last one discards what it did not send; under a learning rate that falls all the time that is every sync, and no
    memory at all.

    Raises ``ValueError`` where schedule, aggregator and outer optimiser do not suit each other.
    Basu et al., Qsparse-local-SGD, 2019, arXiv:1906.02367; Douillard et al., DiLoCo, 2023, arXiv:2311.08105.
    """

    aggregator: Aggregator[Any] | AsyncServer
    schedule: Schedule = Every(1)
    inner: Inner = InnerSGD()
    outer: Outer[Any] = Average()
    buffers: Literal["average", "local"] = "average"
    reset_memory_on_lr_drop: bool = False
    learning_rate_scale: float = 1.0
    paper: str = ""

    def __post_init__(self) -> None:
        for name, kind, example in (
            ("aggregator", Aggregator | AsyncServer, "AllGather(ErrorFeedback(TopK(k=1000)))"),
            ("schedule", Schedule, "Every(8)"),
            ("inner", Inner, "InnerSGD(momentum=0.9)"),
            ("outer", Outer, "Average()"),
        ):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"LocalMethod: {name} must be something like {example}, got {getattr(self, name)!r}.")
        if self.buffers not in ("average", "local"):
            raise ValueError(f'LocalMethod: buffers must be "average" or "local", got {self.buffers!r}.')
        if not self.learning_rate_scale > 0:
            raise ValueError(f"LocalMethod: learning_rate_scale must be positive, got {self.learning_rate_scale}.")
        self._check_server() if self.asynchronous else self._check_common()

    def _check_common(self) -> None:
        if not self.schedule.common:
            raise ValueError(
                f"LocalMethod: with {self.schedule!r} workers come at different steps, and {self.aggregator!r} needs "
                "all at once; use an AsyncServer."
            )

    def _check_server(self) -> None:
        if self.schedule.parts > 1 or self.schedule.delay_steps or self.schedule.kept:
            raise ValueError(
                f"LocalMethod: an AsyncServer answers with the whole model, and {self.schedule!r} divides it; "
                "use Every or RandomGaps."
            )
        if self.outer != Average():
            raise ValueError(
                f"LocalMethod: an AsyncServer adds what comes when it comes, so {self.outer!r} has no round to act on; "
                "use Average()."
            )

    @property
    def asynchronous(self) -> bool:
        """Whether workers synchronise with a server, each at steps of its own."""
        return isinstance(self.aggregator, AsyncServer)

    @property
    def momentum_described(self) -> str:
        """In words, where momentum sits."""
        places = ((self.inner, "on each worker"), (self.outer, "after aggregation"))
        found = [f"{part.momentum_described} {place}" for part, place in places if part.momentum_described]
        return " and ".join(found) or "none"

    def check(self, specs: Sequence[TensorSpec], world: int, steps: int) -> None:
        """Say, by an error or a warning, what about these tensors, so many workers or steps does not suit this method.

        Raises ``ValueError`` for a schedule that would not synchronise once.
        """
        self.schedule.check(world)
        split([spec.name for spec in specs], self.schedule.parts)
        for rank in range(world):
            if not any(self.schedule.due(step, rank) for step in range(1, steps + 1)):
                raise ValueError(
                    f"{self.schedule!r}: worker {rank} would not synchronise once in {steps} steps; train longer or "
                    f"synchronise more often than every {self.schedule.gap()} steps."
                )
        if isinstance(self.aggregator, Aggregator):
            self.aggregator.init(specs)

    def optimizer(self, parameters: Iterable[Tensor], learning_rate: float) -> torch.optim.Optimizer:
        """The inner optimiser of one worker's parameters."""
        return self.inner.optimizer(parameters, learning_rate)
