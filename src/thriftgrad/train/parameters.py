"""What a user may hand over to be trained: a module, or named parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Parameters = nn.Module | Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]


class Named(NamedTuple):
    """Parameters that are trained and buffers, by name, and parameters that are not trained."""

    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    frozen: list[Tensor]


def named(params: Parameters) -> Named:
    """The tensors of a module, wrapped in DDP or not; named parameters are taken as they are, all of them trained.

    >>> found = named(nn.BatchNorm1d(2))
    >>> list(found.parameters), list(found.buffers)
    (['weight', 'bias'], ['running_mean', 'running_var', 'num_batches_tracked'])
    """
    if isinstance(params, DistributedDataParallel):
        params = params.module
    if isinstance(params, nn.Module):
        trained = {name: p for name, p in params.named_parameters() if p.requires_grad}
        frozen = [p for p in params.parameters() if not p.requires_grad]
        return Named(dict(trained), dict(params.named_buffers()), list(frozen))
    return Named(dict(params.items() if isinstance(params, Mapping) else params), {}, [])
