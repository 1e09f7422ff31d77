"""Quantisers whose levels follow the gradients: state, schedule, and what the workers agree on."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import lru_cache
from math import log, sqrt
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thriftgrad import kernels, theory
from thriftgrad.compress import buckets, magnitudes
from thriftgrad.compress.buckets import Norm
from thriftgrad.compress.quantizer import LevelQuantizer, check_bits
from thriftgrad.core import Codebook, Key, Layout, TensorSpec, floats
from thriftgrad.theory.distributions import Distribution

Grid = NDArray[np.float64]


class AdaptedLevels(NamedTuple):
    """State: the levels in use and what they were fitted to; the same on every worker."""

    step: int  # how often it has compressed
    updated: int  # the step of the last fit, -1 before the first
    version: int
    levels: Tensor  # float64[L], ascending on [-1, 1]
    probabilities: Tensor  # float64[L], of a coordinate to be sent as each level
    counts: Tensor  # int64[2, BINS]: of the last fit's magnitudes, weighted by the buckets' norms, and unweighted


def adapted_levels(state: Any) -> Iterator[AdaptedLevels]:
    """Those that a state holds, of a compressor or an aggregator, wherever they are in it."""
    if isinstance(state, AdaptedLevels):
        yield state
    elif isinstance(state, tuple):
        for branch in state:
            yield from adapted_levels(branch)


@dataclass(frozen=True, repr=False)
class AdaptiveQuantizer(LevelQuantizer[AdaptedLevels]):
    """A quantiser whose levels are fitted to everybody's gradients at the steps of a schedule.

    At those steps, workers agree on the largest norm of any bucket, then sum integer counts of |x_i| / c over fixed
    bins (each coordinate weighted by its bucket's norm**weight_power), and all solve the same problem in float64. The
    statistics are those of the gradient that is about to be sent: no extra pass. A gradient of zeros fits nothing: the
    levels stay, and the fit is due again at the next step. Before the first fit, and outside an aggregator,
    levels are those for Gaussian data.
    """

    bits: int
    bucket: int = 512
    norm: Norm = "l2"
    _: KW_ONLY
    per_tensor: bool = True
    distribution: Literal["empirical", "normal"] = "empirical"
    update_at: tuple[int, ...] = (0, 100, 2000)
    update_every: int | None = 10_000

    @property
    def include_zero(self) -> bool:
        """Whether 0 is a level."""
        return False

    @property
    def weight_power(self) -> int:
        """The power of its bucket's norm that a coordinate counts with."""
        return 0

    @abstractmethod
    def fitted(self, distribution: Distribution) -> Grid:
        """The levels for a symmetric distribution of normalised coordinates."""

    def probabilities(self, levels: Grid, distribution: Distribution) -> Grid:
        """How often each level is sent."""
        return theory.level_probabilities(levels, distribution)

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_bits(name, self.bits, self.include_zero)
        buckets.check_bucket(name, self.bucket)
        buckets.check_norm(name, self.norm)
        buckets.check_integer(name, "weight_power", self.weight_power)
        if not 0 <= self.weight_power <= 4:
            raise ValueError(f"{name}: weight_power must lie in 0 ... 4, got {self.weight_power}.")
        if self.distribution not in ("empirical", "normal"):
            raise ValueError(f'{name}: distribution must be "empirical" or "normal", got {self.distribution!r}.')
        self._check_schedule(name)

    def _check_schedule(self, name: str) -> None:
        if not isinstance(self.update_at, Sequence):
            raise TypeError(f"{name}: update_at must be a sequence of steps, such as (0, 100), got {self.update_at!r}.")
        object.__setattr__(self, "update_at", tuple(self.update_at))
        for step in self.update_at:
            buckets.check_integer(name, "a step of update_at", step)
        if any(step < 0 for step in self.update_at):
            raise ValueError(f"{name}: update_at counts steps from 0, got {self.update_at}.")
        if self.update_every is not None:
            buckets.check_integer(name, "update_every", self.update_every)
            if self.update_every < 1:
                raise ValueError(f"{name}: update_every must be at least 1, or None, got {self.update_every}.")

    def init(self, spec: TensorSpec) -> AdaptedLevels:
        start = self._start()
        return AdaptedLevels(
            step=0,
            updated=-1,
            version=start.version,
            levels=torch.tensor(start.levels, dtype=torch.float64),
            probabilities=torch.tensor(start.probabilities, dtype=torch.float64),
            counts=torch.zeros(2, magnitudes.BINS, dtype=torch.int64),
        )

    def _start(self) -> Codebook:
        """For Gaussian buckets of d coordinates: in units of the l2 norm their deviation is 1 / sqrt(d), of the largest
        about 1 / sqrt(2 log 2d)."""
        d = self.bucket
        return _gaussian_start(self, 1 / sqrt(d if self.norm == "l2" else 2 * log(2 * d)))

    def shared(self, state: AdaptedLevels) -> Codebook:
        return Codebook(state.version, tuple(state.levels.tolist()), tuple(state.probabilities.tolist()))

    def table(self, shared: Any = None) -> Tensor:
        return torch.tensor((shared or self._start()).levels, dtype=torch.float32)

    def layout(self, spec: TensorSpec, shared: Any = None) -> Layout:
        shared = shared or self._start()
        layout = super().layout(spec, shared)
        return replace(layout, carrier=replace(layout.carrier, probabilities=shared.probabilities))

    def due(self, state: AdaptedLevels) -> bool:
        reached = [step for step in self.update_at if step <= state.step]
        if self.update_every is not None:
            reached.append(state.step - state.step % self.update_every)
        return max(reached, default=-1) > state.updated

    def peaks(self, x: Tensor, state: AdaptedLevels, key: Key) -> Tensor | None:
        if self.weight_power == 0:
            return None  # nothing is weighed
        scale = kernels.bucket_norms(buckets.rows(floats(x, self), self.bucket), self.norm)
        return scale.amax().view(1) if scale.numel() else scale.new_zeros(1)

    def counts(self, x: Tensor, state: AdaptedLevels, key: Key, peaks: Tensor | None) -> Tensor:
        rows = buckets.rows(floats(x, self), self.bucket)
        scale = kernels.bucket_norms(rows, self.norm)
        if peaks is None:
            weights = torch.ones_like(scale, dtype=torch.int64)
        elif peaks > 0:
            weights = (
                ((scale.to(torch.float64) / peaks) ** self.weight_power * magnitudes.WEIGHT).round().to(torch.int64)
            )
        else:  # zero everywhere, or NaN somewhere
            return torch.zeros(2, magnitudes.BINS, dtype=torch.int64, device=scale.device)
        u, used = buckets.normalised(rows, scale).abs_(), scale > 0
        counts = magnitudes.count(u, weights) if used.all() else magnitudes.count(u[used], weights[used])
        filled = rows.numel() - x.numel()  # zeros at the end of the last bucket are nobody's
        if filled and used[-1]:
            counts[:, 0] -= filled * torch.stack((weights[-1], torch.ones_like(weights[-1])))
        return counts

    def adapt(self, state: AdaptedLevels, peaks: Any, counts: Any) -> AdaptedLevels:
        if counts is None or not counts.any():
            return state
        kept = counts.cpu()
        levels, probabilities = _fit(self, kept.numpy().tobytes())
        return AdaptedLevels(
            step=state.step,
            updated=state.step,
            version=state.version + 1,
            levels=torch.from_numpy(levels.copy()),
            probabilities=torch.from_numpy(probabilities.copy()),
            counts=kept,
        )

    def _next(self, state: AdaptedLevels) -> AdaptedLevels:
        return state._replace(step=state.step + 1)

    def modelled(self, histogram: Distribution) -> Distribution:
        """The distribution that levels are fitted to: the histogram itself, or the normal one of its deviation."""
        if self.distribution == "empirical":
            return histogram
        deviation = sqrt(float(histogram.m2(-1.0, 1.0)))
        return theory.TruncatedNormal(0.0, deviation)

    def variance_bound(self, n: int) -> float | None:
        """Whatever the levels become: all of them lie between 0 and 1, and one more level never raises the variance."""
        d = buckets.width(n, self.bucket)
        return sqrt(d) - 1 if self.include_zero else d - 1.0


@lru_cache(maxsize=256)
def _fit(quantizer: AdaptiveQuantizer, counts: bytes) -> tuple[Grid, Grid]:
    """Levels and their probabilities; the workers of a simulation share the solution."""
    weighted, plain = torch.frombuffer(bytearray(counts), dtype=torch.int64).view(2, -1)
    levels = quantizer.fitted(quantizer.modelled(magnitudes.histogram(weighted)))
    return levels, quantizer.probabilities(levels, magnitudes.histogram(plain))


@lru_cache(maxsize=256)
def _gaussian_start(quantizer: AdaptiveQuantizer, deviation: float) -> Codebook:
    distribution = theory.TruncatedNormal(0.0, deviation)
    levels = quantizer.fitted(distribution)
    return Codebook(1, tuple(levels.tolist()), tuple(quantizer.probabilities(levels, distribution).tolist()))
