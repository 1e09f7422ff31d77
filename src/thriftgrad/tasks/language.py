"""Windows of token streams, and the loss of language models on them."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from thriftgrad.tasks.task import Batch, Indices, device_of, evaluation, spread

Stream = NDArray[np.unsignedinteger[Any]]


class Windows:
    """Token streams cut into windows of `context` tokens, side by side; a window's targets are its tokens moved by one.

    Example:
        >>> windows = Windows([np.arange(5, dtype=np.uint8), np.arange(10, 15, dtype=np.uint8)], context=2)
        >>> len(windows)
        4
        >>> inputs, targets = windows.batch(np.array([1, 2]))
        >>> inputs.tolist(), targets.tolist()
        ([[2, 3], [10, 11]], [[3, 4], [11, 12]])
    """

    def __init__(self, streams: Sequence[Stream], context: int) -> None:
        self.streams = streams
        self.context = context
        self.firsts = np.cumsum(
            [0, *((len(stream) - 1) // context for stream in streams)]
        )  # each stream's first window

    def __len__(self) -> int:
        return int(self.firsts[-1])

    def batch(self, indices: Indices) -> Batch:
        """Inputs and targets, both int64[len(indices), context]."""
        of_stream = np.searchsorted(self.firsts, indices, side="right") - 1
        starts = (indices - self.firsts[of_stream]) * self.context
        rows = [self.streams[k][start : start + self.context + 1] for k, start in zip(of_stream, starts, strict=True)]
        tokens = torch.from_numpy(np.stack(rows).astype(np.int64))
        return tokens[:, :-1], tokens[:, 1:]

    def sample(self, count: int) -> Batch:
        """At most `count` windows, spread evenly over all of them; the same ones every time."""
        return self.batch(spread(len(self), count))


def next_token_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy in nats per token."""
    inputs, targets = (part.to(device_of(model)) for part in batch)
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def bits_per_token(model: nn.Module, batch: Batch) -> float:
    """Mean cross-entropy in bits per token."""
    with evaluation(model):
        return float(next_token_loss(model, batch)) / math.log(2)
