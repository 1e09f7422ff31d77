"""Levels that follow the gradients: ALQ, AMQ, their unweighted variants, and Lloyd's optimal quantiser."""

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
from thriftgrad.compress.buckets import Norm, Scales
from thriftgrad.compress.quantizer import LevelQuantizer, check_bits
from thriftgrad.core import Codebook, Key, Layout, Payload, TensorSpec, floats
from thriftgrad.theory import published
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
        scale = buckets.norms(buckets.rows(floats(x, self), self.bucket), self.norm)
        return scale.amax().view(1) if scale.numel() else scale.new_zeros(1)

    def counts(self, x: Tensor, state: AdaptedLevels, key: Key, peaks: Tensor | None) -> Tensor:
        rows = buckets.rows(floats(x, self), self.bucket)
        scale = buckets.norms(rows, self.norm)
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


@dataclass(frozen=True, repr=False, kw_only=True)
class ALQ_N(AdaptiveQuantizer):  # noqa: N801 - the paper's name
    """ALQ on the plain distribution of normalised coordinates: every bucket counts alike, whatever its norm.

    All that ``ALQ`` does, claims and raises, without its ``weight_power``.
    Faghri et al., Adaptive Gradient Quantization for Data-Parallel SGD, NeurIPS 2020, arXiv:2010.12460.

    >>> ALQ_N(bits=3, include_zero=False)
    ALQ_N(bits=3, include_zero=False)
    """

    include_zero: bool = True
    reference_mode: Literal["ltq"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        published.asked(self.reference_mode, self.include_zero, type(self).__name__)  # or refused

    def fitted(self, distribution: Distribution) -> Grid:
        return theory.alq_levels(distribution, self.bits, self.include_zero, self.reference_mode)


@dataclass(frozen=True, repr=False, kw_only=True)
class ALQ(ALQ_N):
    """Unbiased rounding to the levels of least expected variance for the gradients at hand.

    The levels minimise sum_j int over (l_j, l_j+1) of (l_j+1 - r)(r - l_j) dF(r), with F the distribution of x_i / c
    over all workers' buckets, each weighted by norm**weight_power (2: of least variance in total). The grid is
    symmetric: 2**bits - 1 levels with zero, 2**bits without. Fitted anew when the step is in ``update_at`` or a
    multiple of ``update_every``, from the gradients that are about to be sent.
    ``distribution="empirical"``: the histogram of the coordinates; ``"normal"``: the normal distribution of the same
    deviation, as in the paper. ``reference_mode="ltq"``: the solver of the authors' published code.
    ``per_tensor=False``: all tensors of a call (a DDP bucket, or the model) are quantised as one vector.
    Wire: n symbols of ``bits`` bits and one float32 norm per bucket; levels do not travel, a message names their
    version. A fit costs two small collectives, 4 bytes and 8 kB a tensor.

    Claims: unbiased; whatever the levels, omega = sqrt(d) - 1 with zero and d - 1 without, d = min(n, bucket). What
    the levels in use guarantee: ``theory.worst_case_variance``.

    Raises ``ValueError`` for bits outside 2 ... 8 (1 ... 8 without zero), a bucket below 1, another norm, distribution
    or reference mode, a schedule that makes no sense, a reference mode with zero; ``TypeError`` for tensors that are
    not floating point.
    Faghri et al., Adaptive Gradient Quantization for Data-Parallel SGD, NeurIPS 2020, arXiv:2010.12460. There F is a
    truncated normal fitted to a few extra gradients; the histogram has a lower variance on real ones.

    >>> ALQ(bits=2, include_zero=False).init(TensorSpec((512,))).levels.numpy().round(3).tolist()
    [-1.0, -0.067, 0.067, 1.0]
    """

    weight_power: int = 2


@dataclass(frozen=True, repr=False, kw_only=True)
class AMQ_N(AdaptiveQuantizer):  # noqa: N801 - the paper's name
    """AMQ on the plain distribution of normalised coordinates: every bucket counts alike, whatever its norm.

    All that ``AMQ`` does, claims and raises, without its ``weight_power``.
    Faghri et al., Adaptive Gradient Quantization for Data-Parallel SGD, NeurIPS 2020, arXiv:2010.12460.

    >>> AMQ_N(bits=3)
    AMQ_N(bits=3)
    """

    include_zero: bool = False
    reference_mode: Literal["ltq"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        published.asked(self.reference_mode, self.include_zero, type(self).__name__)  # or refused

    def fitted(self, distribution: Distribution) -> Grid:
        p = theory.amq_multiplier(distribution, self.bits, self.include_zero, self.reference_mode)
        return theory.amq_levels(p, self.bits, self.include_zero)


@dataclass(frozen=True, repr=False, kw_only=True)
class AMQ(AMQ_N):
    """Unbiased rounding to powers of one multiplier p, the best for the gradients at hand.

    Levels +-p**j for j below 2**(bits - 1) (with ``include_zero``: 0 and j below 2**(bits - 1) - 1), p of least
    expected variance as in ``ALQ``, whose options these are.
    Wire: n symbols of ``bits`` bits and one float32 norm per bucket; p = 1/2 or not costs nothing, since decoding
    looks levels up.

    Claims: unbiased; whatever p, omega = d - 1 without zero and sqrt(d) - 1 with, d = min(n, bucket).

    Raises ``ValueError`` as ``ALQ`` does, ``TypeError`` for tensors that are not floating point.
    Faghri et al., Adaptive Gradient Quantization for Data-Parallel SGD, NeurIPS 2020, arXiv:2010.12460. The paper's
    grid has no zero; its code chooses p by a cost that leaves out the middle interval.

    >>> AMQ(bits=2).init(TensorSpec((512,))).levels.numpy().round(3).tolist()
    [-1.0, -0.067, 0.067, 1.0]
    """

    weight_power: int = 2


@dataclass(frozen=True, repr=False, kw_only=True)
class Lloyd(AdaptiveQuantizer):
    """Each coordinate to the nearest of 2**bits levels, those of least squared error for the gradients at hand.

    The levels are the centroids of their cells under the distribution of x_i / c, weighted and fitted as in ``ALQ``;
    not rounded at random, so biased: use it with error feedback. What is sent for the scale is the number that makes
    each bucket's error least, s = <x, q> / |q|^2 with q the levels chosen.
    Wire: n symbols of ``bits`` bits and one float32 per bucket.

    Claims: a contraction with delta = 1 / min(n, bucket), whatever the levels; on most inputs far more.

    Raises ``ValueError`` for bits outside 1 ... 8 and as ``ALQ`` does, ``TypeError`` for tensors that are not floating
    point.
    Lloyd, Least Squares Quantization in PCM, 1982; learned as in Zhang et al., LQ-Nets, 2018, arXiv:1807.10029.

    >>> (Lloyd(bits=2).init(TensorSpec((512,))).levels * 512**0.5).numpy().round(2).tolist()
    [-1.51, -0.45, 0.45, 1.51]
    """

    weight_power: int = 2

    def fitted(self, distribution: Distribution) -> Grid:
        return theory.lloyd_levels(distribution, self.bits)

    def probabilities(self, levels: Grid, distribution: Distribution) -> Grid:
        middles = (levels[1:] + levels[:-1]) / 2
        return np.asarray(distribution.m0(np.append(-1.0, middles), np.append(middles, 1.0)))

    def compress(self, x: Tensor, state: AdaptedLevels, key: Key) -> tuple[Payload[Scales], AdaptedLevels]:
        rows = buckets.rows(floats(x, self), self.bucket)
        shared = self.shared(state)
        levels = self.table(shared).to(rows.device)
        u = buckets.normalised(rows, buckets.norms(rows, self.norm))
        symbols = kernels.nearest_level(u, levels)
        real = buckets.rows(torch.ones(x.numel(), dtype=torch.float64, device=rows.device), self.bucket)
        q = levels[symbols.to(torch.int64)].to(torch.float64) * real
        scale = (rows * q).sum(1) / q.square().sum(1).clamp_min(torch.finfo(torch.float64).tiny)
        largest = torch.finfo(torch.float32).max  # of huge coordinates, where all levels are small, less than the best
        scale = scale.clamp(-largest, largest)
        finite = torch.where(rows.isfinite().all(1), scale, torch.nan).to(torch.float32)
        return Payload(
            symbols.reshape(-1)[: x.numel()], Scales(finite), self.layout(TensorSpec.of(x), shared)
        ), self._next(state)

    @property
    def unbiased(self) -> bool:
        return False

    def variance_bound(self, n: int) -> float | None:
        return None

    def contraction(self, n: int) -> float | None:
        return 1 / buckets.width(n, self.bucket)
