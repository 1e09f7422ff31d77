"""Momentum and memory of Deep Gradient Compression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thriftgrad.core.feedback import WithMemory


class Corrected(NamedTuple):
    """The state of momentum correction."""

    velocity: Tensor  # float32 or float64, the tensor's shape: this worker's momentum
    memory: Tensor  # the same: the sum of velocities that was not sent
    inner: Any


@dataclass(frozen=True, repr=False)
class MomentumCorrection(WithMemory):
    """u = momentum * u + x, v = v + u: send C(v), keep v' = v - C(v). With ``nesterov`` u = momentum * (u + x) and
    v = v + u + x.

    A coordinate that waits accumulates what momentum would have made of it, and not its gradients alone. With
    ``masking`` the velocity u is set to zero wherever C(v) is not, so that no gradient of long ago pushes on what was
    sent; a C that leaves nothing out loses all momentum by it. Momentum is inside: take what comes out as the step of
    plain SGD. With momentum=0 it is ``ErrorFeedback``. Both u and v are float32, float64 for a float64 tensor.

    Claims nothing, as every map with a memory. A tensor with a NaN or an infinity is passed on and enters neither.

    Raises ``ValueError`` if C claims no contraction or takes all tensors as one, or momentum lies outside [0, 1);
    ``TypeError`` for tensors that are not floating point.
    Lin et al., Deep Gradient Compression, ICLR 2018, arXiv:1712.01887. Differs: the k largest are found exactly, where
    the paper estimates their threshold on a sample.

    >>> from thriftgrad.compress import TopK
    >>> from thriftgrad.core import Key, TensorSpec
    >>> compressor = MomentumCorrection(TopK(k=1))
    >>> x, state = torch.tensor([4.0, 3.0]), compressor.init(TensorSpec((2,)))
    >>> for step in range(2):
    ...     payload, state = compressor.compress(x, state, Key(step))
    ...     compressor.decompress(payload)
    tensor([4., 0.])
    tensor([0.0000, 8.7000])
    """

    momentum: float = 0.9
    nesterov: bool = False
    masking: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise ValueError(f"MomentumCorrection: momentum must lie in [0, 1), got {self.momentum}.")

    def start(self, zeros: Tensor, inner: Any) -> Corrected:
        return Corrected(zeros, zeros.clone(), inner)

    def owed(self, x: Tensor, state: Corrected) -> Corrected:
        if self.nesterov:
            velocity = self.momentum * (state.velocity + x)
            return state._replace(velocity=velocity, memory=state.memory + velocity + x)
        velocity = self.momentum * state.velocity + x
        return state._replace(velocity=velocity, memory=state.memory + velocity)

    def paid(self, state: Corrected, sent: Tensor) -> Corrected:
        velocity = torch.where(sent != 0, 0.0, state.velocity) if self.masking else state.velocity
        return state._replace(velocity=velocity, memory=state.memory - sent)
