"""ALQ and AMQ: the levels of least expected variance, free ones or powers of one multiplier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from thriftgrad import theory
from thriftgrad.compress.adaptive import AdaptiveQuantizer, Grid
from thriftgrad.theory import published
from thriftgrad.theory.distributions import Distribution


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

    >>> from thriftgrad import TensorSpec
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

    >>> from thriftgrad import TensorSpec
    >>> AMQ(bits=2).init(TensorSpec((512,))).levels.numpy().round(3).tolist()
    [-1.0, -0.067, 0.067, 1.0]
    """

    weight_power: int = 2
