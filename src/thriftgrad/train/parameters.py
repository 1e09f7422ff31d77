"""What a user may hand over to be trained: a module, or named parameters."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

log = logging.getLogger("thriftgrad")

Parameters = nn.Module | Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]


class Named(NamedTuple):
    """Parameters that are trained and buffers, by name, and parameters that are not trained."""

    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    frozen: list[Tensor]


def named(params: Parameters) -> Named:
    """The tensors of a module, wrapped in DDP or not; named parameters are taken as they are, all of them trained.

    Raises ``TypeError`` for anything else and for what is not floating point, ``ValueError`` for a name used twice.

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
    pairs = list(params.items()) if isinstance(params, Mapping) else _pairs(params)
    for name, x in pairs:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"parameter {name!r} must be a tensor of floating-point numbers, got {kind}; leave it out.")
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two parameters are named {name!r}; give each a name of its own.")
    return Named(dict(pairs), {}, [])


def _pairs(params: object) -> list[tuple[str, Tensor]]:
    """The named parameters, if they are that."""
    pairs: list[Any] = list(params) if isinstance(params, Iterable) else [params]
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise TypeError(
                f"expected a module or its named_parameters(), got {type(params).__name__} of {type(pair).__name__}; "
                "pass the module itself."
            )
    return pairs


def check_optimizer(owner: str, optimizer: object, parameters: Mapping[str, Tensor]) -> None:
    """``TypeError`` for what is no optimiser, ``ValueError`` for parameters it lacks; the log tells of others."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"{owner}: optimizer must be the inner torch.optim.Optimizer, got {optimizer!r}; pass that.")
    held = {id(p): p for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, parameter in parameters.items() if id(parameter) not in held]
    if missing:
        raise ValueError(
            f"{owner}: the optimizer does not hold parameter {missing[0]!r}"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            + "; pass the one that trains this model."
        )
    ours = {id(parameter) for parameter in parameters.values()}
    if others := sum(p.requires_grad for at, p in held.items() if at not in ours):  # frozen ones it does not train
        log.warning("%s: the optimizer trains %d more parameters, which are never synchronised", owner, others)
