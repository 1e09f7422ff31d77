"""Measurements without training: what a quantiser does to gradients, and how many bits its symbols take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thriftgrad import tasks
from thriftgrad.aggregate.agreement import agreed
from thriftgrad.comm import simulate
from thriftgrad.core import Compressor, Key, TensorSpec
from thriftgrad.lab.distortion import entropy_bits
from thriftgrad.lab.reproduce.pool import Job
from thriftgrad.lab.reproduce.records import Row, record, recorded
from thriftgrad.lab.reproduce.snapshots import Snapshots, along_sgd, sampling_variance

AnyCompressor = Compressor[Any, Any]


@dataclass(frozen=True)
class Measurement(Job):
    """A job whose result is rows in ``measurements/NAME.jsonl``."""

    name: str

    def path(self, folder: Path) -> Path:
        """Where the rows go."""
        return folder / "measurements" / f"{self.name}.jsonl"

    def done(self, folder: Path) -> bool:
        return recorded(self.path(folder)) is not None

    def perform(self, folder: Path) -> None:
        record(self.path(folder), self.rows())

    def rows(self) -> Iterator[Row]:
        """What is measured, row by row."""
        raise NotImplementedError


@dataclass(frozen=True)
class Probe:
    """One compressor to put on snapshots: ``sweep`` and ``label`` say where its rows belong, ``x`` where on an axis.

    ``fitted``: the steps whose gradients the workers agree on levels at, as a schedule; None: the step just before
    each snapshot. ``steps``: the snapshots it is put on.
    """

    sweep: str
    label: str
    compressor: AnyCompressor
    steps: tuple[int, ...]
    x: float = 0.0
    fitted: tuple[int, ...] | None = None

    def fitted_before(self, step: int) -> int:
        """The last step before ``step`` whose gradients made the levels."""
        return max((at for at in self.fitted if at < step), default=0) if self.fitted is not None else step - 1

    @cached_property
    def needs(self) -> set[int]:
        """The steps of the trajectory that it looks at."""
        return {*self.steps, *(self.fitted_before(step) for step in self.steps)}


@dataclass(frozen=True)
class ProbedGradients(Measurement):
    """All probes on the SGD trajectory of one task and seed.

    A row: sweep, label, x, step, ``relative_variance`` = E|C(g) - g|^2 / |g|^2, ``in_sampling`` = the same error over
    the variance of the gradient itself, ``bits`` per coordinate on the wire, ``symbol_bits`` without scales,
    ``entropy_bits`` of the symbols (None where they are coded bytes), ``zeros``: the share of coordinates that become
    zero.
    """

    task: str
    seed: int
    probes: tuple[Probe, ...]
    seconds: float

    @property
    def label(self) -> str:
        return f"gradients of {self.task}, seed {self.seed}"

    def rows(self) -> Iterator[Row]:
        needed = {step for probe in self.probes for step in probe.needs}
        snapshots = along_sgd(tasks.load(self.task), self.seed, needed)
        for probe in self.probes:
            for step in probe.steps:
                yield probed(probe, step, snapshots, Key(self.seed).fold(probe.label, step)) | {"seed": self.seed}


def probed(probe: Probe, step: int, snapshots: Snapshots, key: Key) -> Row:
    """One row: the probe on the gradients of one step. Half of the workers are looked at."""
    gradients = snapshots[step]
    states = states_after(probe.compressor, snapshots[probe.fitted_before(step)], key.fold("before"))
    agreement = [
        agreed(probe.compressor, [g], [state], [key.private(rank)])
        for rank, (g, state) in enumerate(zip(gradients, states, strict=True))
    ]
    ready = [inner for (inner,) in simulate(agreement)]
    seen = [
        put_through(probe.compressor, g, state, key.private(rank))
        for rank, (g, state) in enumerate(zip(gradients[::2], ready[::2], strict=True))
    ]
    size = sum(float(g.to(torch.float64).square().sum()) for g in gradients[::2])
    error = sum(each.squared_error for each in seen)
    entropies = [each.entropy_bits for each in seen if each.entropy_bits is not None]
    return {
        "sweep": probe.sweep,
        "label": probe.label,
        "x": probe.x,
        "step": step,
        "relative_variance": error / size,
        "in_sampling": error / len(seen) / sampling_variance(gradients),
        "bits": sum(each.bits for each in seen) / len(seen),
        "symbol_bits": sum(each.symbol_bits for each in seen) / len(seen),
        "entropy_bits": sum(entropies) / len(entropies) if entropies else None,
        "zeros": sum(each.zeros for each in seen) / len(seen),
    }


@dataclass(frozen=True)
class Effect:
    """What a compressor did to one vector; bits are per coordinate."""

    squared_error: float
    bits: float
    symbol_bits: float
    entropy_bits: float | None
    zeros: float


def put_through(compressor: AnyCompressor, x: Tensor, state: Any, key: Key) -> Effect:
    """Compress and decompress a vector, and look."""
    payload, _ = compressor.compress(x, state, key)
    value = compressor.decompress(payload)
    spec = payload.layout.carrier
    coded = spec.alphabet is None or spec.variable
    symbol_nbytes = payload.carrier.numel() if spec.variable else spec.nbytes
    return Effect(
        squared_error=float((value.to(torch.float64) - x).square().sum()),
        bits=8 * payload.nbytes / x.numel(),
        symbol_bits=8 * symbol_nbytes / x.numel(),
        entropy_bits=None if coded else entropy_bits(payload.carrier),
        zeros=float((value == 0).to(torch.float64).mean()),
    )


def states_after(compressor: AnyCompressor, gradients: Sequence[Tensor], key: Key) -> list[Any]:
    """Each worker's state after one step on these gradients: they agree on levels, if any, and compress."""
    first = compressor.init(TensorSpec.of(gradients[0], "gradient"))
    keys = [key.private(rank) for rank in range(len(gradients))]
    agreement = [agreed(compressor, [g], [first], [each]) for g, each in zip(gradients, keys, strict=True)]
    states = [inner for (inner,) in simulate(agreement)]
    if states[0] is None:
        return states  # nothing to remember
    return [compressor.compress(g, state, each)[1] for g, state, each in zip(gradients, states, keys, strict=True)]
