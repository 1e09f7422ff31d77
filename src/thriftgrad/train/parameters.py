"""What a user may hand over to be trained: a module, or named parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Parameters = nn.Module | Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]


def named(params: Parameters) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters that require gradients, and buffers, by name; named parameters are taken as they are.

    >>> [list(each) for each in named(nn.BatchNorm1d(2))]
    [['weight', 'bias'], ['running_mean', 'running_var', 'num_batches_tracked']]
    """
    if isinstance(params, DistributedDataParallel):
        params = params.module
    if isinstance(params, nn.Module):
        trained = {name: p for name, p in params.named_parameters() if p.requires_grad}
        return dict(trained), dict(params.named_buffers())
    return dict(params.items() if isinstance(params, Mapping) else params), {}
