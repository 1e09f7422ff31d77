"""Adaptive quantisers fitted by hand, as an aggregator does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from thriftgrad import Key, TensorSpec
from thriftgrad.compress.adaptive import AdaptedLevels, AdaptiveQuantizer

KEY = Key(0)


def fitted(
    compressor: AdaptiveQuantizer, xs: Sequence[Tensor], states: Sequence[AdaptedLevels] | None = None
) -> list[AdaptedLevels]:
    """Every worker's state after they agreed about these tensors: the largest peak, the sum of all counts."""
    states = states or [compressor.init(TensorSpec.of(x)) for x in xs]
    pairs = list(zip(xs, states, strict=True))
    asked = [compressor.peaks(x, state, KEY) for x, state in pairs]
    peaks = None if asked[0] is None else torch.stack([peak for peak in asked if peak is not None]).amax(0)
    counts = torch.stack([compressor.counts(x, state, KEY, peaks) for x, state in pairs]).sum(0)
    return [compressor.adapt(state, peaks, counts) for state in states]


def table(compressor: Any, state: Any) -> Tensor:
    """The levels in use, float32."""
    levels: Tensor = compressor.table(compressor.shared(state))
    return levels
