"""One line for a DistributedDataParallel model: its gradients are exchanged by a method of this library.

No ``from __future__ import annotations`` here: DDP inspects the hook's real annotations.
"""

import logging
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import thriftgrad
from thriftgrad.aggregate import Aggregator
from thriftgrad.core import Key, TensorSpec
from thriftgrad.local import LocalMethod
from thriftgrad.train.groups import own_group
from thriftgrad.train.handle import Handle, aggregator_of
from thriftgrad.train.method import Method
from thriftgrad.train.state import agree, facts

log = logging.getLogger("thriftgrad")


def attach(ddp_model: DistributedDataParallel, method: Method | Aggregator[Any], seed: int = 0) -> Handle:
    """Exchange the gradients of a DDP model by ``method`` from the next ``backward`` on; every rank calls it alike.

    Nothing else in a training loop changes: ``backward`` leaves the method's estimate of the mean gradient in
    ``p.grad``. Of a ``Method`` only the aggregator acts, its optimiser is the caller's to make
    (``method.optimizer(...)``). Step t draws its random numbers from ``Key(seed).fold(t)`` by parameter name, so the
    training equals the simulated one.

    A method that is not in effect for some parameters says so through the logger "thriftgrad", on rank 0: at level
    INFO, or WARNING where it has no effect at all.

    Raises ``TypeError`` for a model that is not DDP, parameters that are not floating point or a method that is
    neither; ``ValueError`` for a model with a hook of its own, an empty parameter, sparse gradients, a seed outside
    [0, 2**64), and on every rank where two ranks differ in method, seed, parameters or version of this library.

    >>> import torch, torch.distributed as dist, thriftgrad
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # torchrun gives the real ones
    >>> model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 2))
    >>> with thriftgrad.attach(model, thriftgrad.parse("top_k(fraction=0.25)")) as handle:
    ...     model(torch.ones(1, 4)).sum().backward()
    >>> model.module.weight.grad.count_nonzero(), handle.stats().steps
    (tensor(2), 1)
    >>> dist.destroy_process_group()
    """
    names = _parameter_names(ddp_model)
    aggregator = _checked(method)
    Key(seed)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        states = aggregator.init([TensorSpec.of(parameter, name) for parameter, name in names.items()])
    specs = [state.spec for state in states]
    group = ddp_model.process_group
    agree(group, "attach", {"thriftgrad version": thriftgrad.__version__} | facts(method, seed, specs))
    if dist.get_rank(group) == 0:
        for note in notes:
            log.warning("%s", note.message)
        _say_what_is_uncompressed(aggregator, specs)
    used = _record_use(names) if ddp_model.find_unused_parameters else None
    handle = Handle(method, seed, names, states, used, own_group(group, specs[0].device))
    ddp_model.register_comm_hook(handle, _exchange)
    return handle


def _exchange(handle: Handle, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:  # type: ignore[name-defined]
    """The communication hook."""
    return handle.exchange(bucket)


def _parameter_names(ddp_model: DistributedDataParallel) -> dict[Tensor, str]:
    """The parameters that DDP reduces, by the names that the module has for them."""
    if not isinstance(ddp_model, DistributedDataParallel):
        raise TypeError(
            f"attach: expected a DistributedDataParallel model, got {type(ddp_model).__name__}; wrap it first, as in "
            "attach(DistributedDataParallel(model), method)."
        )
    if ddp_model._comm_hooks:
        hook = ddp_model._comm_hooks[0][0]
        raise ValueError(
            f"attach: this model already has a communication hook, {hook.__module__}.{hook.__qualname__}, and DDP "
            "takes one; wrap the module in a new DistributedDataParallel."
        )
    for name, module in ddp_model.module.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
            raise ValueError(f"attach: {name!r} gives sparse gradients, which cannot be compressed; use sparse=False.")
    return {
        parameter: name
        for name, parameter in ddp_model.module.named_parameters()
        if parameter.requires_grad and name not in ddp_model.parameters_to_ignore
    }


def _checked(method: object) -> Aggregator[Any]:
    if isinstance(method, LocalMethod):
        raise TypeError(
            f"attach: {method.schedule!r} belongs to a method whose workers train on their own, and attach exchanges "
            "gradients; use LocalUpdates(module, method, optimizer)."
        )
    if not isinstance(method, Method | Aggregator):
        cure = (
            f"write thriftgrad.parse({method!r})"
            if isinstance(method, str)
            else "take one of thriftgrad.recipes, or put a compressor into an aggregator, as in AllGather(QSGD(bits=4))"
        )
        raise TypeError(f"attach: method must be a Method or an Aggregator, got {method!r}; {cure}.")
    return aggregator_of(method)


def _record_use(names: Mapping[Tensor, str]) -> set[str]:
    """The names of the parameters this rank uses, added as ``backward`` comes to them."""
    used: set[str] = set()
    for parameter, name in names.items():
        parameter.register_post_accumulate_grad_hook(partial(_note_use, used, name))  # type: ignore[no-untyped-call]
    return used


def _note_use(used: set[str], name: str, parameter: Tensor) -> None:
    used.add(name)


def _say_what_is_uncompressed(aggregator: Aggregator[Any], specs: Sequence[TensorSpec]) -> None:
    names = aggregator.uncompressed(specs)
    if 0 < len(names) < len(specs):  # where it is all of them, the aggregator itself has warned
        log.info(
            "%r compresses %d of the %d parameters; these travel as they are: %s",
            aggregator,
            len(specs) - len(names),
            len(specs),
            ", ".join(names),
        )
