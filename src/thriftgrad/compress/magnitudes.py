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


def count(rows: Tensor, weights: Tensor) -> Tensor:
    """How many magnitudes fall into each bin, each counted by its row's weight, and plainly: int64[2, BINS].

    rows: float32[m, d] in [0, 1]; weights: int64[m].

    The bin is read off the number's own bits (exponent and four bits of the mantissa), alike on all devices.

    >>> counts = count(torch.tensor([[0.0, 1.0, 0.5]]), torch.tensor([7]))
    >>> counts.nonzero().tolist(), counts[:, 512].tolist()
    ([[0, 0], [0, 497], [0, 512], [1, 0], [1, 497], [1, 512]], [7, 1])
    """
    bins = (rows.view(torch.int32) >> _SHIFT).sub_(_FIRST - 1).clamp_(0, BINS - 1).reshape(-1)
    none = torch.zeros(BINS, dtype=torch.int64, device=rows.device)
    weighted = none.index_add(0, bins, weights[:, None].expand(rows.shape).reshape(-1))
    return torch.stack((weighted, torch.bincount(bins, minlength=BINS)))


def histogram(counts: Tensor) -> Histogram:
    """The symmetric distribution of coordinates whose magnitudes were counted; ``ValueError`` if there are none."""
    return Histogram.symmetric(EDGES, counts.tolist())
