"""How near PowerSGD's estimate comes to what it is given, matrix by matrix, while plain SGD trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from thriftgrad import tasks
from thriftgrad.aggregate import PowerSGD
from thriftgrad.comm import simulate
from thriftgrad.core import Key, TensorSpec
from thriftgrad.core.matrices import matrix_shape
from thriftgrad.lab.reproduce.probes import Measurement
from thriftgrad.lab.reproduce.records import Row
from thriftgrad.lab.training import local_gradients
from thriftgrad.tasks.task import Task

WHOLE = "all matrices"
EVERY = 4
"""So often estimates are looked at, over the last half of the steps."""
MOMENTUM = 0.9


@dataclass(frozen=True)
class Approximations(Measurement):
    """Forms of PowerSGD that look on along SGD's path; each has its own memory of what it did not send.

    With D the mean gradient plus memory and D' the estimate, a row: label, ``tensor`` (``WHOLE``: all that are
    compressed, as one), ``error`` = the mean over steps of |D - D'| / |D|, ``best``: the same for the nearest matrix of
    the rank that is sent, ``kept`` = the mean of 1 - |D - D'|^2 / |D|^2, and ``least_kept``, the least of these.
    One worker with the mean gradient stands for all, which PowerSGD's linearity allows.
    """

    task: str
    seed: int
    forms: tuple[tuple[str, PowerSGD], ...]
    steps: int
    workers: int
    seconds: float

    @property
    def label(self) -> str:
        return f"approximations on {self.task}, seed {self.seed}"

    def rows(self) -> Iterator[Row]:
        task = tasks.load(self.task)
        model = task.build(self.seed)
        named = dict(model.named_parameters())
        specs = [TensorSpec.of(p, name) for name, p in named.items()]
        states = {label: form.init(specs) for label, form in self.forms}
        seen: dict[tuple[str, str], list[Look]] = {}
        for step, mean in enumerate(mean_gradients(task, model, self.seed, self.steps, self.workers)):
            for label, form in self.forms:
                before, key = states[label], Key(self.seed).fold(step)
                ((estimate, states[label]),) = simulate([form.aggregate(mean, before, key)])
                if 2 * step >= self.steps and step % EVERY == 0:
                    owed = [
                        g if state.inner.memory is None else g + state.inner.memory.view(g.shape)
                        for g, state in zip(mean, before, strict=True)
                    ]
                    for name, look in looks(form, specs, owed, estimate).items():
                        seen.setdefault((label, name), []).append(look)
        for (label, name), found in seen.items():
            kept = [1 - look.rest / look.owed for look in found]
            yield {
                "label": label,
                "tensor": name,
                "error": fmean((look.rest / look.owed) ** 0.5 for look in found),
                "best": fmean((look.least / look.owed) ** 0.5 for look in found),
                "kept": fmean(kept),
                "least_kept": min(kept),
                "seed": self.seed,
            }


@dataclass(frozen=True)
class Look:
    """Squared norms: of what was owed, of what is left of it, and of what the best of the same rank would leave."""

    owed: float
    rest: float
    least: float


def looks(
    form: PowerSGD, specs: Sequence[TensorSpec], owed: Sequence[Tensor], estimate: Sequence[Tensor]
) -> dict[str, Look]:
    """A look at each compressed matrix that is not zero, and at all of them."""
    found = {}
    for spec, d, e in zip(specs, owed, estimate, strict=True):
        if form.compresses(spec) and d.any():
            matrix = d.to(torch.float64).view(matrix_shape(spec))
            values = torch.linalg.svdvals(matrix).square()
            rest = float((d - e).to(torch.float64).square().sum())
            rank = form.rank * form.residual_iterations
            found[spec.name] = Look(float(values.sum()), rest, float(values[rank:].sum()))
    whole = Look(*(sum(getattr(look, part) for look in found.values()) for part in ("owed", "rest", "least")))
    return found | ({WHOLE: whole} if found else {})


def mean_gradients(task: Task, model: torch.nn.Module, seed: int, steps: int, workers: int) -> Iterator[list[Tensor]]:
    """The mean gradient of each step of SGD with momentum on it, at the task's learning rate."""
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=task.learning_rate, momentum=MOMENTUM)
    batches = [task.batches(seed, rank, workers) for rank in range(workers)]
    for _ in range(steps):
        gradients = local_gradients(task, model, batches, [[] for _ in batches])
        mean = [torch.stack(shares).mean(0) for shares in zip(*gradients, strict=True)]
        yield mean
        for parameter, gradient in zip(parameters, mean, strict=True):
            parameter.grad = gradient
        optimizer.step()
