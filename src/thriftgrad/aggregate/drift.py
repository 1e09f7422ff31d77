"""What should be equal on all workers: a digest goes round, and worker 0's counts where one differs."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from thriftgrad.comm import Comm, all_gather, broadcast, place
from thriftgrad.core import TensorSpec

log = logging.getLogger("thriftgrad")


def settled(owner: str, tensors: Sequence[Tensor]) -> Comm[Sequence[Tensor]]:
    """These float32 tensors if all workers hold the same bits, else worker 0's on all, and a warning in the log.

    Wire: 8 bytes a tensor all-gathered; the tensors themselves, broadcast, where they differ.
    """
    mine = torch.stack([digest(x) for x in tensors])
    everybodys = yield from all_gather(mine)
    different = [rank for rank, theirs in enumerate(everybodys) if not torch.equal(theirs, everybodys[0])]
    if not different:
        return tensors
    me = yield from place()
    if me.rank == 0:
        log.warning(
            "%s: the factors of workers %s had drifted from worker 0's, whose are taken now; what they made of the "
            "parameters before is not undone, so compare the replicas",
            owner,
            ", ".join(map(str, different)),
        )
    flat = torch.cat([x.reshape(-1) for x in tensors])
    told = yield from broadcast(flat if me.rank == 0 else None, TensorSpec.of(flat), 0)
    parts = torch.split(told, [x.numel() for x in tensors])
    return [part.view(x.shape) for part, x in zip(parts, tensors, strict=True)]


def digest(x: Tensor) -> Tensor:
    """64 bits of a float32 tensor's own, int64[]: a sum weighted by odd numbers; every NaN counts alike.

    >>> bool(digest(torch.tensor([1.0, 2.0])) == digest(torch.tensor([2.0, 1.0])))
    False
    """
    bits = torch.where(x.isnan(), 0.0, x).reshape(-1).view(torch.int32).to(torch.int64)
    return (bits * (2 * torch.arange(bits.numel(), device=x.device) + 1)).sum()
