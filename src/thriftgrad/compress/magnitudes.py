"""Statistics of normalised coordinates: integer counts over fixed bins, so that sums over workers are exact."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from thriftgrad.theory import Histogram

PER_OCTAVE = 16
OCTAVES = 32
WEIGHT = 1 << 24
"""What the heaviest bucket's coordinates count."""

BINS = OCTAVES * PER_OCTAVE + 1
EDGES = np.concatenate(
    ([0.0], *(2.0**-octave * (1 + np.arange(PER_OCTAVE) / PER_OCTAVE) for octave in range(OCTAVES, 0, -1)), [1.0])
)
"""float64[BINS + 1]: from 2**-32 on, 16 bins to each factor of two; one bin for what is smaller."""

_SHIFT = 23 - (PER_OCTAVE.bit_length() - 1)
_FIRST = (127 - OCTAVES) * PER_OCTAVE


def count(magnitudes: Tensor, weights: Tensor) -> Tensor:
    """The sum of the weights in each bin: float32[n] in [0, 1] and int64[n] -> int64[BINS].

    The bin is read off the number's own bits (exponent and four bits of the mantissa), alike on all devices.

    >>> count(torch.tensor([0.0, 1.0, 0.5]), torch.tensor([1, 2, 3])).nonzero().view(-1).tolist()
    [0, 497, 512]
    """
    bits = magnitudes.view(torch.int32) >> _SHIFT
    bins = (bits - _FIRST + 1).clamp(0, BINS - 1).to(torch.int64)
    return torch.zeros(BINS, dtype=torch.int64, device=weights.device).index_add_(0, bins, weights)


def histogram(counts: Tensor) -> Histogram:
    """The symmetric distribution of coordinates whose magnitudes were counted; ``ValueError`` if there are none."""
    return Histogram.symmetric(EDGES, counts.tolist())
